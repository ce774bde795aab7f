"""A stand-in for `tensorrt_rtx`: a plan is the ONNX graph, computed by ONNX Runtime on a fake stream."""

import threading
from collections.abc import Callable
from enum import Enum
from typing import Any

import numpy as np
import onnxruntime as ort

from tests.engines.fake_cuda import FakeDriver

Dims = tuple[int, ...]


class _Severity(Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class _Logger:
    Severity = _Severity

    def __init__(self) -> None: ...

    def log(self, level: Any, message: str) -> None: ...


class _Mode(Enum):
    INPUT = 0
    OUTPUT = 1


class _Type(Enum):
    FLOAT = 0
    HALF = 1


class _Strategy(Enum):
    LAZY = 0
    NONE = 2


class _Capability(Enum):
    SM80 = 0
    SM89 = 1


class _Cache:
    """Compiled kernels: a word for every plan that was loaded with it."""

    def __init__(self) -> None:
        self.content = b""
        self.used = False

    def deserialize(self, blob: bytes) -> bool:
        taken = blob.startswith(b"kernels")
        self.content = blob if taken else self.content
        return taken

    def serialize(self) -> bytes:
        return self.content


class _Options:
    dynamic_shapes_kernel_specialization_strategy = _Strategy.LAZY
    cache: _Cache | None = None

    def create_runtime_cache(self) -> _Cache:
        return _Cache()

    def set_runtime_cache(self, cache: _Cache) -> None:
        self.cache = cache


class FakeTensorRT:
    """The module. `deaths` lists what was destroyed, in order; `refusal` is why no plan loads.

    `failures` are the numbers of the executions that fail, from 1 on; `executions` are all batch sizes.
    `meanwhile` is called within every execution. `cached` is what each plan with a cache found in it.
    While `spoiled`, NaN is all that comes out.
    """

    __name__ = "tensorrt_rtx"
    __version__ = "0.0.fake"
    ILogger, TensorIOMode, DataType = _Logger, _Mode, _Type
    DynamicShapesKernelSpecializationStrategy, ComputeCapability = _Strategy, _Capability

    def __init__(self, driver: FakeDriver, profile: tuple[int, int, int] = (1, 32, 64)) -> None:
        self.driver, self.profile = driver, profile
        self.deaths: list[str] = []
        self.refusal: str | None = None
        self.no_context = False
        self.context_bytes = 1 << 16
        self.failures: set[int] = set()
        self.executions: list[int] = []
        self.spoiled = False
        self.cached: list[bytes] = []
        self.meanwhile: Callable[[], object] = lambda: None

    def Runtime(self, log: Any) -> "_Runtime":
        self.driver.require_current()
        return _Runtime(self, log)

    def died(self, what: str) -> None:
        self.deaths.append(what)
        if not self.driver.current():
            self.driver.faults.append(f"{what} destroyed in a thread where its context is not current")


class _Runtime:
    def __init__(self, module: FakeTensorRT, log: Any) -> None:
        self._module, self._log = module, log

    def deserialize_cuda_engine(self, plan: bytes) -> "_Engine | None":
        if self._module.refusal is not None:
            self._log.log(_Severity.ERROR, self._module.refusal)
            return None
        return _Engine(self._module, self._log, plan)

    def __del__(self) -> None:
        self._module.died("runtime")


class _Engine:
    def __init__(self, module: FakeTensorRT, log: Any, plan: bytes) -> None:
        self._module, self._log = module, log
        self._session = ort.InferenceSession(plan, providers=["CPUExecutionProvider"])
        sides = ((_Mode.INPUT, self._session.get_inputs()), (_Mode.OUTPUT, self._session.get_outputs()))
        self._tensors = {
            str(tensor.name): (mode, (-1, *tensor.shape[1:])) for mode, tensors in sides for tensor in tensors
        }

    @property
    def device_memory_size_v2(self) -> int:
        return self._module.context_bytes

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, i: int) -> str:
        return list(self._tensors)[i]

    def get_tensor_mode(self, name: str) -> _Mode:
        return self._tensors[name][0]

    def get_tensor_shape(self, name: str) -> Dims:
        return self._tensors[name][1]

    def get_tensor_dtype(self, name: str) -> _Type:
        return _Type.FLOAT

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[Dims]:
        assert profile == 0
        return [(size, *self._tensors[name][1][1:]) for size in self._module.profile]

    def create_runtime_config(self) -> _Options:
        return _Options()

    def create_execution_context(self, options: _Options) -> "_Context | None":
        assert options.dynamic_shapes_kernel_specialization_strategy is _Strategy.NONE
        if self._module.no_context:
            self._log.log(_Severity.ERROR, "not enough device memory for the context")
            return None
        if options.cache is not None and not options.cache.used:
            self._module.cached.append(options.cache.content)
            options.cache.content += b"kernels."
            options.cache.used = True
        return _Context(self._module, self._log, self._session, self._tensors)

    def __del__(self) -> None:
        self._module.died("engine")


class _Context:
    def __init__(self, module: FakeTensorRT, log: Any, session: Any, tensors: dict[str, Any]) -> None:
        self._module, self._log, self._session, self._tensors = module, log, session, tensors
        self._shapes: dict[str, Dims] = {}
        self._addresses: dict[str, int] = {}
        self._thread: int | None = None

    def set_input_shape(self, name: str, shape: Dims) -> bool:
        least, _, most = self._module.profile
        if self._thread not in (None, threading.get_ident()):
            self._module.driver.faults.append("two threads use an execution context at once")
        self._thread = threading.get_ident()
        self._shapes[name] = shape
        return self._tensors[name][1][1:] == shape[1:] and least <= shape[0] <= most

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return name in self._tensors

    def execute_async_v3(self, handle: int) -> bool:
        module = self._module
        rows = {shape[0] for shape in self._shapes.values()}
        module.executions.append(max(rows))
        number = len(module.executions)
        module.meanwhile()
        if len(rows) != 1 or number in module.failures:
            self._log.log(_Severity.ERROR, "a kernel failed")
            self._thread = None
            return False
        memory = {name: module.driver.at(address) for name, address in self._addresses.items()}
        shapes, session, spoiled = dict(self._shapes), self._session, module.spoiled
        outputs = [name for name, (mode, _) in self._tensors.items() if mode is _Mode.OUTPUT]

        def compute() -> None:
            feed = {
                name: memory[name].content[: int(np.prod(shape))].reshape(shape)
                for name, shape in shapes.items()
            }
            for name, array in zip(outputs, session.run(outputs, feed), strict=True):
                memory[name].content[: array.size] = np.nan if spoiled else array.reshape(-1)

        module.driver.enqueue(
            module.driver.streams[handle],
            compute,
            reads=[memory[name] for name in shapes],
            writes=[memory[name] for name in outputs],
        )
        self._thread = None
        return True

    def __del__(self) -> None:
        self._module.died("context")
