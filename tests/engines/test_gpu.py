"""TensorRT, TensorRT for RTX and ONNX Runtime on a GPU: the contract, golden data of what ships, and leaks.

Skipped, with the reason, where a backend cannot run. Only these tests are evidence that a GPU runs a plan.
"""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from engines import bench, repository, tensorrt_load
from engines.engine import Engine
from engines.errors import BackendError, EngineError
from engines.tensorrt_engine import TensorRTEngine
from engines.tensorrt_module import BACKENDS, cuda_driver, primary_context
from schemas.model_config import ModelConfig
from tests.engines.conftest import config_of, graph, tiny_inputs, tiny_outputs
from tests.engines.contract import EngineContract, Opener
from tests.engines.kernel_tensorrt import KernelTensorRT

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:The CUDA compiler succeeded")]

SHIPPED = [config.name for config in repository.list_models()]

LOADS = 100

LEAK_BYTES = 8 << 20
"""A runtime keeps caches of its own; loads that leaked would keep 100 contexts and 1,200 buffers."""


ONNX_RUNTIME = "onnxruntime-cuda"


def require(backend: str) -> None:
    """Skip where the backend's libraries or a GPU are missing; what then fails to run is a failure."""
    try:
        if backend in BACKENDS:
            tensorrt_load.runtime(backend)
        elif not Path("/dev/nvidiactl").exists():
            pytest.skip(f"{backend} cannot run here: no NVIDIA driver has made /dev/nvidiactl")
        elif "CUDAExecutionProvider" not in ort.get_available_providers():
            repository.open_engine(config_of(graph()), graph(), backend)
    except BackendError as error:
        pytest.skip(str(error))


class OnAGpu(EngineContract):
    backend: str

    @pytest.fixture
    def opener(self) -> Opener:
        require(self.backend)

        def opened(config: ModelConfig, content: bytes) -> Engine:
            return repository.open_engine(config, content, self.backend)

        return opened


class TestOnnxRuntimeCuda(OnAGpu):
    backend = ONNX_RUNTIME


class TestTensorRT(OnAGpu):
    backend = "tensorrt"


class TestTensorRTForRtx(OnAGpu):
    backend = "tensorrt-rtx"


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    require(request.param)
    name: str = request.param
    return name


@pytest.fixture(params=(ONNX_RUNTIME, *BACKENDS))
def served(request: pytest.FixtureRequest) -> str:
    require(request.param)
    name: str = request.param
    return name


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """The shipped models in a folder that plans can be written to."""
    for name in SHIPPED:
        (tmp_path / name).mkdir()
        for file in (repository.SHIPPED / name).iterdir():
            if file.is_file():
                (tmp_path / name / file.name).symlink_to(file)
        version = str(repository.read_config(repository.SHIPPED, name).version)
        (tmp_path / name / version).mkdir()
        for file in (repository.SHIPPED / name / version).iterdir():
            if file.is_file():
                (tmp_path / name / version / file.name).symlink_to(file)
    return tmp_path


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models_reproduce_golden_data_and_the_reference(served: str, name: str, models: Path) -> None:
    engine = repository.load(models, name, served)
    reference = repository.load(models, name)
    inputs = bench.repeated(bench.golden_inputs(models, engine.config), 64)
    expected = reference.run(inputs)
    for tensor, array in engine.run(inputs).items():
        np.testing.assert_allclose(array, expected[tensor], atol=engine.config.golden_tolerance)
    engine.close()
    reference.close()


def test_batches_in_flight_give_what_they_give_alone(backend: str) -> None:
    content = graph()
    config = config_of(content)
    module, driver = tensorrt_load.runtime(backend)
    engine = TensorRTEngine(config, tensorrt_load.build_plan(config, content, module), module, driver)
    requests = [tiny_inputs(1 + seed % 32, seed) for seed in range(200)]
    expected = [engine.run(inputs) for inputs in requests]
    with ThreadPoolExecutor(engine.in_flight) as threads:
        for outputs, alone in zip(threads.map(engine.run, requests), expected, strict=True):
            for tensor, array in outputs.items():
                np.testing.assert_allclose(array, alone[tensor], atol=config.golden_tolerance)
    engine.close()


def test_a_hundred_loads_leave_the_gpus_memory_as_it_was(backend: str) -> None:
    content = graph()
    config = config_of(content)
    module, driver = tensorrt_load.runtime(backend)
    plan = tensorrt_load.build_plan(config, content, module)

    def load() -> None:
        engine = TensorRTEngine(config, plan, module, driver)
        engine.run(tiny_inputs(32))
        engine.close()

    load()
    before = free_bytes()
    for _ in range(LOADS):
        load()
        with pytest.raises(BackendError):
            TensorRTEngine(config, plan[: len(plan) // 2], module, driver)
    assert before - free_bytes() < LEAK_BYTES


CYCLES = 50_000_000
"""For which a kernel keeps the GPU busy: some 30 ms, in which the host queues all that is to overlap."""


@contextmanager
def kernel(cycles: int = 0) -> Iterator[TensorRTEngine]:
    """PyCUDA's half of the engine with a kernel in TensorRT's place; skipped where it cannot be."""
    try:
        driver = cuda_driver()
    except EngineError as error:
        pytest.skip(str(error))
    if shutil.which("nvcc") is None:
        pytest.skip("the kernel is compiled by nvcc of the CUDA toolkit, which is not on the PATH")
    module = KernelTensorRT(cycles)
    engine = TensorRTEngine(config_of(graph()), b"", module, driver)
    module.engine = engine
    try:
        yield engine
    finally:
        engine.close()


def test_a_kernel_through_the_buffers_in_other_threads() -> None:
    with kernel() as engine, ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as two:
        for thread in (one, two, one):
            for rows in (1, 7, 16, 31, 32):
                inputs = tiny_inputs(rows, rows)
                outputs, parts = thread.submit(engine.run_in_parts, inputs).result()
                again = thread.submit(engine.run, inputs).result()
                assert parts is not None
                assert min(parts) > 0
                for tensor, expected in tiny_outputs(inputs).items():
                    np.testing.assert_allclose(outputs[tensor], expected, atol=1e-6)
                    np.testing.assert_array_equal(again[tensor], outputs[tensor])


def test_a_batch_arrives_while_another_is_computed() -> None:
    with kernel(CYCLES) as engine, ThreadPoolExecutor(engine.in_flight) as threads:
        for _ in range(2):  # a kernel's first launch also loads it
            list(threads.map(engine.run_in_parts, [tiny_inputs(32)] * 2))
        one, two = (slot.events for slot in engine._slots)
        overlaps = [
            first["computed"].time_since(second["arrived"]) for first, second in ((one, two), (two, one))
        ]
        assert min(overlaps) > 0  # milliseconds, by the GPU's clock


def test_loads_of_a_kernel_leave_the_gpus_memory_as_it_was() -> None:
    with kernel():
        before = free_bytes()
        for _ in range(LOADS):
            with kernel() as engine:
                engine.run(tiny_inputs(32))
    assert before - free_bytes() < LEAK_BYTES


def free_bytes() -> int:
    driver = cuda_driver()
    context = primary_context(driver)
    context.push()
    try:
        return int(driver.mem_get_info()[0])
    finally:
        context.pop()
