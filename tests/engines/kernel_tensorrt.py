"""A stand-in for `tensorrt` whose plan is one CUDA kernel: PyCUDA's half of the engine on a GPU, without it.

Contexts, page-locked buffers, streams, events and frees are the engine's own, on PyCUDA; only what computes
is replaced, by a kernel for the graph `tiny`. Compiled by NVRTC, never executed.
"""

from enum import Enum
from typing import Any

import numpy as np

from tests.engines.conftest import FEATURES, WIDTH

KERNEL = """
__global__ void tiny(const float *values, const float *elapsed, const float *counts, const float *state,
                     float *risk, float *state_out, int rows, int features, int width, long long cycles)
{
    long long until = clock64() + cycles;
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row < rows) {
        float sum = 0.0f;
        for (int i = row * features; i < (row + 1) * features; ++i)
            sum += values[i] + elapsed[i] + counts[i];
        risk[row] = 1.0f / (1.0f + expf(-sum / (3 * features)));
        for (int i = row * width; i < (row + 1) * width; ++i)
            state_out[i] = state[i] + 1.0f;
    }
    while (clock64() < until) { }
}
"""
"""The graph of `conftest.graph`, a thread for each row; then it keeps the GPU busy for so many cycles."""

BLOCK = 128


class _Severity(Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class _Logger:
    Severity = _Severity


class _Mode(Enum):
    INPUT = 0
    OUTPUT = 1


class _Type(Enum):
    FLOAT = 0


ROW = (-1, len(FEATURES))
TENSORS: dict[str, tuple[_Mode, tuple[int, ...]]] = {
    **dict.fromkeys(("values", "elapsed", "counts"), (_Mode.INPUT, ROW)),
    "state": (_Mode.INPUT, (-1, WIDTH)),
    "risk": (_Mode.OUTPUT, (-1,)),
    "state_out": (_Mode.OUTPUT, (-1, WIDTH)),
}
"""In the order of the kernel's pointers."""


class KernelTensorRT:
    """The module; `cycles` keeps each execution busy. `engine` is to be set to the engine that runs on it."""

    __name__ = "kernel"
    __version__ = "1"
    ILogger, TensorIOMode, DataType = _Logger, _Mode, _Type

    def __init__(self, cycles: int = 0) -> None:
        self.cycles = cycles
        self.engine: Any = None

    def Runtime(self, log: Any) -> "_Runtime":
        return _Runtime(self)


class _Runtime:
    def __init__(self, module: KernelTensorRT) -> None:
        self._module = module

    def deserialize_cuda_engine(self, plan: bytes) -> "_Engine":
        return _Engine(self._module)


class _Engine:
    """The loaded kernel. It goes where the real one does, with the context current."""

    num_io_tensors = len(TENSORS)
    device_memory_size_v2 = 0

    def __init__(self, module: KernelTensorRT) -> None:
        from pycuda.compiler import SourceModule

        self._module = module
        self._kernel = SourceModule(KERNEL).get_function("tiny")

    def get_tensor_name(self, i: int) -> str:
        return list(TENSORS)[i]

    def get_tensor_mode(self, name: str) -> _Mode:
        return TENSORS[name][0]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return TENSORS[name][1]

    def get_tensor_dtype(self, name: str) -> _Type:
        return _Type.FLOAT

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(size, *TENSORS[name][1][1:]) for size in (1, 32, 64)]

    def create_execution_context(self) -> "_Context":
        return _Context(self._module, self._kernel)


class _Context:
    def __init__(self, module: KernelTensorRT, kernel: Any) -> None:
        self._module, self._kernel = module, kernel
        self._addresses: dict[str, int] = {}
        self._rows = 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._rows = shape[0]
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, handle: int) -> bool:
        # PyCUDA launches on its own streams, not on handles.
        [stream] = [slot.stream for slot in self._module.engine._slots if slot.stream.handle == handle]
        self._kernel(
            *(np.uint64(self._addresses[name]) for name in TENSORS),
            *(np.int32(number) for number in (self._rows, len(FEATURES), WIDTH)),
            np.int64(self._module.cycles),
            block=(BLOCK, 1, 1),
            grid=(-(-self._rows // BLOCK), 1),
            stream=stream,
        )
        return True
