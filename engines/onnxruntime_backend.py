"""ONNX Runtime, and its only home: the reference backend on the CPU, and by name its CUDA provider on a GPU.

Its CPU kernels differ by matrix height (one row takes a matrix-vector path) and at the ends of vectors, and
some look at memory alignment. So that a row's bytes never depend on its batch, it runs on a single thread, in
buffers of the engine's own that are aligned, and

    rows of features    padded with zero rows to a multiple of `TILE`
    windows and images  one by one: they are large, so company would save little, and padding cost sixteenfold

On the CUDA provider all go in batches, padded in the same way, and a row's bytes may depend on its batch.
That provider was written against the documents of ONNX Runtime and has never been executed.
"""

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from time import perf_counter

import numpy as np
import onnxruntime as ort

from engines.engine import F32, Engine, Parts
from engines.errors import BackendError, GraphError
from schemas.model_config import ModelConfig

TILE = 16
"""Rows. A multiple of the widest vector of floats (16 in AVX-512), so that no kernel sees a remainder."""

ALIGNMENT = 64
"""Bytes: a cache line and the widest vector."""

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
"""Names of ONNX Runtime's execution providers: who computes a session's nodes."""


def runs_one_by_one(config: ModelConfig) -> bool:
    """Whether a model's rows are large, as windows and pictures are."""
    return config.kind == "image" or (config.kind == "windowed-series" and not config.state)


class OnnxRuntimeEngine(Engine):
    """A graph in an ONNX Runtime session, every node of it on one provider."""

    def __init__(self, config: ModelConfig, graph: bytes, provider: str = CPU) -> None:
        """Load a graph.

        Args:
            config: the model's config.
            graph: content of model.onnx.
            provider: `CPU` or `CUDA`.

        Raises:
            GraphError: ONNX Runtime cannot load the graph, or its tensors are not the config's.
            BackendError: the provider is not there, or would leave nodes to another one.
        """
        super().__init__(config, "onnxruntime-cpu" if provider == CPU else "onnxruntime-cuda")
        self._session: ort.InferenceSession | None = _session(graph) if provider == CPU else _on_gpu(graph)
        _compare("input", self.input_dims, self._session.get_inputs())
        _compare("output", self.output_dims, self._session.get_outputs())
        self._names = list(self.output_dims)
        self.one_by_one = provider == CPU and runs_one_by_one(config)
        self._room = 0
        self._staged: dict[str, F32] = {}

    def _execute(self, inputs: Mapping[str, F32], rows: int) -> dict[str, F32]:
        if not self.one_by_one:
            return self._run(inputs, rows, -(-rows // TILE) * TILE)
        parts = [
            self._run({name: array[i : i + 1] for name, array in inputs.items()}, 1, 1) for i in range(rows)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in self._names}

    def _execute_in_parts(self, inputs: Mapping[str, F32], rows: int) -> tuple[dict[str, F32], Parts | None]:
        """The same steps with a look at the clock between them.

        Copying in fills the padded buffers, copying out cuts padding off and joins what ran one by one; what
        ONNX Runtime copies within its call counts as computing.
        """
        size, padded = (1, 1) if self.one_by_one else (rows, -(-rows // TILE) * TILE)
        copy_in = compute = copy_out = 0.0
        done = []
        for i in range(0, rows, size):
            began = perf_counter()
            feed = self._stage({name: array[i : i + size] for name, array in inputs.items()}, size, padded)
            staged = perf_counter()
            outputs = self._compute(feed, size)
            computed = perf_counter()
            done.append(self._taken(outputs, size))
            taken = perf_counter()
            copy_in += staged - began
            compute += computed - staged
            copy_out += taken - computed
        if not self.one_by_one:
            return done[0], Parts(copy_in, compute, copy_out)
        began = perf_counter()
        joined = {name: np.concatenate([part[name] for part in done]) for name in self._names}
        return joined, Parts(copy_in, compute, copy_out + perf_counter() - began)

    def _run(self, inputs: Mapping[str, F32], rows: int, padded: int) -> dict[str, F32]:
        return self._taken(self._compute(self._stage(inputs, rows, padded), rows), rows)

    def _stage(self, inputs: Mapping[str, F32], rows: int, padded: int) -> dict[str, F32]:
        if padded > self._room:
            self._staged = {name: _aligned((padded, *dims)) for name, dims in self.input_dims.items()}
            self._room = padded
        feed = {}
        for name, array in inputs.items():
            staged = self._staged[name][:padded]
            staged[:rows] = array
            staged[rows:] = 0
            feed[name] = staged
        return feed

    def _compute(self, feed: dict[str, F32], rows: int) -> list[F32]:
        if self._session is None:
            raise BackendError("the engine is closed")
        try:
            outputs: list[F32] = self._session.run(self._names, feed)
        except Exception as error:  # onnxruntime raises classes without a common base of its own
            raise BackendError(f"ONNX Runtime failed on a batch of {rows}: {type(error).__name__}") from error
        return outputs

    def _taken(self, outputs: list[F32], rows: int) -> dict[str, F32]:
        return {name: output[:rows] for name, output in zip(self._names, outputs, strict=True)}

    def close(self) -> None:
        """Free the session and the buffers."""
        self._session = None
        self._staged, self._room = {}, 0


def _session(graph: bytes) -> ort.InferenceSession:
    available = ort.get_available_providers()
    if CPU not in available:  # it would warn and take another
        raise BackendError(f"this ONNX Runtime has no {CPU}; it has {', '.join(available)}")
    try:
        session = ort.InferenceSession(graph, _options(), providers=[CPU])
    except Exception as error:  # as above
        raise GraphError(f"ONNX Runtime {ort.__version__} cannot load model.onnx: {error}") from error
    if session.get_providers() != [CPU]:
        raise BackendError(f"asked ONNX Runtime for {CPU} alone, got {session.get_providers()}")
    return session


def _on_gpu(graph: bytes) -> ort.InferenceSession:
    """A session on the CUDA provider, or none: the three ways back to the CPU are shut.

    A node that the provider does not take is refused by the session option; a session that cannot be made on
    it, and a run that fails on it, are retried on the CPU unless `enable_fallback` is 0.
    """
    available = ort.get_available_providers()
    if CUDA not in available:
        raise BackendError(
            f"onnxruntime-cuda cannot run here: this ONNX Runtime {ort.__version__} has no {CUDA} (it has "
            f"{', '.join(available)}): {_remedy()}"
        )
    if hasattr(ort, "preload_dlls"):  # CUDA's libraries out of pip's packages, from ONNX Runtime 1.21 on
        with redirect_stdout(sys.stderr):  # it prints what it misses; a command's output may be JSON
            ort.preload_dlls()
    options = _options()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        provider = (CUDA, {"use_tf32": "0"})  # fp32 is meant as fp32
        session = ort.InferenceSession(graph, options, providers=[provider], enable_fallback=0)
    except Exception as error:  # as above
        raise BackendError(
            f"onnxruntime-cuda cannot run here: ONNX Runtime {ort.__version__} does not put model.onnx on "
            f"the GPU ({error}); what it missed stands in its log. Be sure of the right build: {_remedy()}"
        ) from error
    if session.get_providers()[0] != CUDA:  # the CPU's may follow: it is always registered
        raise BackendError(f"asked ONNX Runtime for {CUDA}, got {session.get_providers()}: {_remedy()}")
    return session


def _remedy() -> str:
    return (
        "pip uninstall onnxruntime, then pip install "
        f"'onnxruntime-gpu[cuda,cudnn]=={ort.__version__}' in its place (both are the module onnxruntime). "
        "From 1.27 on it is built for CUDA 13 and needs NVIDIA's driver 580 or later, from 1.19 on for CUDA "
        "12 with driver 525 or later; cuDNN 9 for both. nvidia-smi says which driver there is"
    )


def _options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # failures come as exceptions
    return options


def _compare(side: str, expected: Mapping[str, tuple[int, ...]], actual: list[ort.NodeArg]) -> None:
    """Check that the graph's tensors are the config's, float32 with a free batch axis."""
    names = {tensor.name for tensor in actual}
    if names != expected.keys():
        raise GraphError(f"config.json has the {side}s {sorted(expected)}, model.onnx has {sorted(names)}")
    for tensor in actual:
        dims = expected[tensor.name]
        batch, *rest = tensor.shape or [0]
        if tensor.type != "tensor(float)" or isinstance(batch, int) or tuple(rest) != dims:
            raise GraphError(
                f"{side} {tensor.name} is float32[batch, {', '.join(map(str, dims))}] in config.json, "
                f"{tensor.type}{tensor.shape} in model.onnx"
            )


def _aligned(shape: tuple[int, ...]) -> F32:
    """An array of zeros that starts on an `ALIGNMENT` boundary."""
    size = int(np.prod(shape)) * 4
    memory = np.zeros(size + ALIGNMENT, dtype=np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(np.float32).reshape(shape)
