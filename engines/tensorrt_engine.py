"""Plans run by TensorRT, or by TensorRT for RTX with the same code: compiled, never executed on a GPU.

    rows --> page-locked --copy stream--> device --compute stream--> device --copy stream--> page-locked
                              `arrived`                `computed`                `left`

A large batch goes in two halves through two sets of buffers: one half is copied while the other is computed.
"""

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from engines import memory
from engines.engine import F32, Engine, Parts
from engines.errors import BackendError, GraphError
from engines.precision import Precision
from engines.tensorrt_buffers import Buffers
from engines.tensorrt_module import message_log, primary_context
from schemas.model_config import ModelConfig

TILE = 16
"""Rows. Batches are padded to a multiple, as the reference's are, so that few shapes ever occur."""

SPLIT_BYTES = 1 << 20
"""A batch whose inputs are as large goes in halves. Copying 1 MiB over PCIe should take some 50 microseconds,
more than launching a second half; no GPU has been asked yet."""


class TensorRTEngine(Engine):
    """A plan in an execution context, with a stream for computing and one for copying.

    Threads: nothing belongs to a thread. The GPU's primary context is pushed for the length of a load, a run
    or a close, on whichever thread does it, and popped before that returns, so loading may happen in one
    thread and running in another. A second thread that runs meanwhile is refused. A close meanwhile leaves
    freeing to the thread that runs, at the end of its call: nothing is freed under a call that hangs.

    Bytes of a row: batches are padded as the reference's, but TensorRT may choose kernels by shape. That a
    row's bytes do not depend on its batch is not proven; outputs are held to `golden_tolerance`.
    """

    def __init__(
        self,
        config: ModelConfig,
        plan: bytes,
        module: Any,
        driver: Any,
        split_bytes: int = SPLIT_BYTES,
        cache: Path | None = None,
        precision: Precision = "fp32",
    ) -> None:
        """Load a plan and allocate all memory it will use.

        Args:
            config: the model's.
            plan: made by the same version of the module from this model; `engines/tensorrt_load.py` checks.
            module: `tensorrt` or `tensorrt_rtx`.
            driver: PyCUDA's, from `cuda_driver`.
            split_bytes: inputs from this size on go in halves.
            cache: file for the kernels that TensorRT for RTX compiles when it loads a plan: read now, written
                at the close, so that the next load need not compile them. TensorRT has no such cache.
            precision: of the plan; `backend` names it unless it is fp32.

        Raises:
            BackendError: the runtime does not load the plan, or the GPU fails or has too little memory.
            GraphError: the plan's tensors are not the config's.
            MemoryBudgetError: its context and buffers need more of the GPU's memory than is free.
        """
        named = "" if precision == "fp32" else f"-{precision}"
        super().__init__(config, f"{module.__name__.replace('_', '-')}-cuda{named}")
        self._module, self._driver, self._split_bytes = module, driver, split_bytes
        self._cache_file = cache
        self._lock = threading.Lock()
        self._closed = False
        # What lives on the GPU is held by these alone, never by a local: an error's traceback would keep that
        # until no context is current, and PyCUDA would leak it.
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._cache: Any = None
        self._copying: Any = None
        self._computing: Any = None
        self._buffers: list[Buffers] = []
        self._log = message_log(module)
        try:
            with self._entered("loading the plan"):
                self._open(plan)
        except BaseException:
            self.close()
            raise

    def _execute(self, inputs: Mapping[str, F32], rows: int) -> dict[str, F32]:
        outputs = self._room(rows)
        pieces = self._pieces(inputs, rows)
        with self._entered(f"a batch of {rows}"):
            self._send(inputs, pieces[0], self._buffers[0])
            for i, piece in enumerate(pieces):
                if i + 1 < len(pieces):  # its buffers are those of the piece before this one, which has left
                    self._send(inputs, pieces[i + 1], self._buffers[(i + 1) % 2])
                self._fetch(outputs, piece, self._buffers[i % 2])
        return outputs

    def _execute_in_parts(self, inputs: Mapping[str, F32], rows: int) -> tuple[dict[str, F32], Parts | None]:
        """The same pieces one after the other, so that their parts do not overlap; by the GPU's own clock.

        Copying in and out hold what the host does for them: staging, and taking out.
        """
        outputs = self._room(rows)
        copy_in = compute = copy_out = 0.0
        with self._entered(f"a batch of {rows}"):
            for piece in self._pieces(inputs, rows):
                buffers = self._buffers[0]
                staging = self._send(inputs, piece, buffers, timed=True)
                taking = self._fetch(outputs, piece, buffers, timed=True)
                copy_in += staging + buffers.seconds("sent", "arrived")
                compute += buffers.seconds("begun", "computed")
                copy_out += buffers.seconds("fetched", "left") + taking
        return outputs, Parts(copy_in, compute, copy_out)

    def close(self) -> None:
        """Free everything, now or, where a call is under way in another thread, when it ends."""
        self._closed = True
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self._runtime is not None:
                with suppress(self._driver.Error), self._pushed():
                    self._free()
        finally:
            self._lock.release()

    @contextmanager
    def _entered(self, doing: str) -> Iterator[None]:
        """For one thread at a time: the context current; nothing under way at the end, failed or not."""
        if not self._lock.acquire(blocking=False):
            raise BackendError("the engine is in use by another thread: only one at a time may run it")
        try:
            if self._closed:
                raise BackendError("the engine is closed")
            self._log.messages.clear()
            with self._pushed():
                try:
                    yield
                except BaseException:
                    self._drain()
                    raise
        except self._driver.Error as error:
            raise BackendError(f"CUDA failed at {doing}: {error}; if it persists, start again") from error
        finally:
            self._lock.release()
            if self._closed:
                self.close()

    @contextmanager
    def _pushed(self) -> Iterator[None]:
        context = primary_context(self._driver)
        context.push()
        try:
            yield
        finally:
            context.pop()

    def _open(self, plan: bytes) -> None:
        self._runtime = self._module.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise BackendError(
                f"{self._module.__name__} {self._module.__version__} does not load the plan of "
                f"{self.config.name} ({self._told()}): build it again on this machine, with a driver that "
                "this version supports, or serve on onnxruntime"
            )
        self._compare()
        shapes = [self._engine.get_tensor_profile_shape(name, 0) for name in self.input_dims]
        self._least = max(int(least[0]) for least, _, _ in shapes)
        self._most = min(int(most[0]) for _, _, most in shapes)
        # The plan's weights are there by now; what its context and the buffers take is not.
        rest = int(self._engine.device_memory_size_v2) + memory.of_plan(self.config, 0, self._most)[1]
        memory.require(self.config, rest, None, int(self._driver.mem_get_info()[0]), "the GPU")
        self._context = self._new_context()
        if self._context is None:
            raise BackendError(f"no execution context for {self.config.name}: {self._told()}")
        self._copying = self._driver.Stream()
        self._computing = self._driver.Stream()
        try:
            for _ in range(2):
                self._buffers.append(Buffers(self._driver, self.input_dims | self.output_dims, self._most))
        except self._driver.MemoryError as error:
            free, total = (size >> 20 for size in self._driver.mem_get_info())
            raise BackendError(
                f"too little memory for {self.config.name} at batches of {self._most} (the GPU has {free} of "
                f"{total} MiB free): free some, or build a plan for smaller batches ({error})"
            ) from error

    def _new_context(self) -> Any:
        strategy = getattr(self._module, "DynamicShapesKernelSpecializationStrategy", None)
        if strategy is None:
            return self._engine.create_execution_context()
        # TensorRT for RTX would change to kernels of a shape's own while it serves, and so a row's bytes.
        options = self._engine.create_runtime_config()
        options.dynamic_shapes_kernel_specialization_strategy = strategy.NONE
        if self._cache_file is not None:
            self._cache = options.create_runtime_cache()
            with suppress(
                OSError
            ):  # there is none yet; one of another GPU, driver or version is not taken in
                self._cache.deserialize(self._cache_file.read_bytes())
            options.set_runtime_cache(self._cache)
        return self._engine.create_execution_context(options)

    def _compare(self) -> None:
        """Check that the plan's tensors are the config's, float32 with a free batch axis."""
        mode = self._module.TensorIOMode
        sides = ((mode.INPUT, self.input_dims), (mode.OUTPUT, self.output_dims))
        wanted = {name: (side, (-1, *dims)) for side, all_dims in sides for name, dims in all_dims.items()}
        found = {}
        for i in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(i)
            found[name] = (self._engine.get_tensor_mode(name), tuple(self._engine.get_tensor_shape(name)))
            if self._engine.get_tensor_dtype(name) != self._module.DataType.FLOAT:
                raise GraphError(f"{name} is float32 in config.json, not so in the plan: build it again")
        if found != wanted:
            raise GraphError(
                f"{self.config.name}: config.json has the tensors {sorted(wanted)}, the plan {sorted(found)}"
                ", or with other dims: build it again"
            )

    def _pieces(self, inputs: Mapping[str, F32], rows: int) -> list[slice]:
        size = rows
        if rows >= 2 * TILE and sum(array.nbytes for array in inputs.values()) >= self._split_bytes:
            size = -(-rows // (2 * TILE)) * TILE
        size = min(size, self._most)
        return [slice(at, min(at + size, rows)) for at in range(0, rows, size)]

    def _padded(self, rows: int) -> int:
        return min(max(-(-rows // TILE) * TILE, self._least), self._most)

    def _room(self, rows: int) -> dict[str, F32]:
        return {name: np.empty((rows, *dims), np.float32) for name, dims in self.output_dims.items()}

    def _send(
        self, inputs: Mapping[str, F32], piece: slice, buffers: Buffers, *, timed: bool = False
    ) -> float:
        """Stage rows and queue their copies and computation; the seconds that staging took."""
        rows = piece.stop - piece.start
        padded = self._padded(rows)
        began = perf_counter()
        for name, array in inputs.items():
            buffers.host[name][:rows] = array[piece]
            buffers.host[name][rows:padded] = 0
        staged = perf_counter() - began
        marks, driver = buffers.events, self._driver
        if timed:
            marks["sent"].record(self._copying)
        for name in inputs:
            driver.memcpy_htod_async(buffers.device[name], buffers.host[name][:padded], self._copying)
        marks["arrived"].record(self._copying)
        self._computing.wait_for_event(marks["arrived"])
        if timed:
            marks["begun"].record(self._computing)
        self._enqueue(buffers, padded)
        marks["computed"].record(self._computing)
        return staged

    def _enqueue(self, buffers: Buffers, padded: int) -> None:
        taken = [
            self._context.set_input_shape(name, (padded, *dims)) for name, dims in self.input_dims.items()
        ]
        taken += [
            self._context.set_tensor_address(name, int(memory)) for name, memory in buffers.device.items()
        ]
        if not all(taken) or not self._context.execute_async_v3(self._computing.handle):
            raise BackendError(f"TensorRT failed on a batch padded to {padded}: {self._told()}")

    def _fetch(
        self, outputs: dict[str, F32], piece: slice, buffers: Buffers, *, timed: bool = False
    ) -> float:
        """Queue the copies of what `_send` computes, wait for them, and take them out; the last's seconds."""
        rows = piece.stop - piece.start
        marks = buffers.events
        self._copying.wait_for_event(marks["computed"])
        if timed:
            marks["fetched"].record(self._copying)
        for name in outputs:
            self._driver.memcpy_dtoh_async(buffers.host[name][:rows], buffers.device[name], self._copying)
        marks["left"].record(self._copying)
        marks["left"].synchronize()
        began = perf_counter()
        for name, output in outputs.items():
            output[piece] = buffers.host[name][:rows]
        return perf_counter() - began

    def _drain(self) -> None:
        """Wait for what a failed call left under way: it writes to buffers that the next call will use."""
        for stream in (self._copying, self._computing):
            if stream is not None:
                with suppress(self._driver.Error):
                    stream.synchronize()

    def _keep_cache(self) -> None:
        """Write the compiled kernels; where that cannot be, the next load compiles them again."""
        content = None if self._cache is None else self._cache.serialize()
        if content is not None and self._cache_file is not None:
            beside = self._cache_file.with_name(f".{self._cache_file.name}.{os.getpid()}")
            with suppress(OSError):
                beside.write_bytes(bytes(content))
                beside.replace(self._cache_file)

    def _free(self) -> None:
        """The last made first. The context is current, and nothing is under way."""
        while self._buffers:
            self._buffers.pop().free()
        self._computing = self._copying = None
        loaded = self._context is not None
        self._context = None
        if loaded:
            self._keep_cache()
        self._cache = None
        self._engine = None
        self._runtime = None

    def _told(self) -> str:
        """The runtime's own first words; they name layers and devices, no rows."""
        return str(self._log.messages[0]) if self._log.messages else "it gives no reason"
