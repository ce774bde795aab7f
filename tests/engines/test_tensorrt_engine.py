"""Contexts, buffers, streams, frees and threads of the TensorRT engine, on fakes that find mistakes of order.

The fakes run no GPU: what they show is that the engine's own logic keeps the rules of CUDA.
"""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from engines import plans, repository, tensorrt_load, tensorrt_module
from engines.errors import BackendError, BuildError, DigestError, ExtraError, GoldenError, MemoryBudgetError
from engines.plans import Key
from engines.tensorrt_build import AMPERE_PLUS, Built
from engines.tensorrt_engine import TensorRTEngine
from tests.engines.conftest import config_of, golden_of, graph, tiny_inputs, tiny_outputs
from tests.engines.fake_cuda import FakeDriver
from tests.engines.fake_tensorrt import FakeTensorRT
from worker import config, loading

GRAPH = graph()
CONFIG = config_of(GRAPH)
INPUTS = tiny_inputs(32)


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


@pytest.fixture
def module(driver: FakeDriver) -> FakeTensorRT:
    return FakeTensorRT(driver)


def opened(module: FakeTensorRT) -> TensorRTEngine:
    return TensorRTEngine(CONFIG, GRAPH, module, module.driver)


def expect_right(engine: TensorRTEngine, rows: int, seed: int = 0) -> None:
    inputs = tiny_inputs(rows, seed)
    for name, expected in tiny_outputs(inputs).items():
        np.testing.assert_allclose(engine.run(inputs)[name], expected, atol=1e-6)


def test_loads_runs_and_closes_in_three_threads(module: FakeTensorRT) -> None:
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as two, ThreadPoolExecutor(1) as three:
        engine = one.submit(opened, module).result()
        assert engine.backend == "tensorrt-rtx-cuda"
        for rows in (1, 32, 7):
            two.submit(expect_right, engine, rows, rows).result()
        three.submit(engine.close).result()
    assert module.deaths == ["context", "context", "engine", "runtime"]
    assert module.driver.retained == 1
    module.driver.expect_clean()


def test_batches_are_padded_to_tiles(module: FakeTensorRT) -> None:
    engine = opened(module)
    for rows in (1, 16, 17, 31, 32):
        engine.run(tiny_inputs(rows))
    assert module.executions == [16, 16, 32, 32, 32]
    engine.close()


@pytest.mark.parametrize("profile", [(1, 2, 4), (8, 8, 10), (1, 16, 16), (32, 32, 32)])
def test_a_batch_over_the_profile_goes_in_pieces(module: FakeTensorRT, profile: tuple[int, int, int]) -> None:
    module.profile = profile
    engine = opened(module)
    for rows in (1, 9, 31, 32):
        expect_right(engine, rows, seed=rows)
    assert max(module.executions) <= profile[2]
    engine.close()
    module.driver.expect_clean()


def test_nothing_is_allocated_after_the_load(module: FakeTensorRT) -> None:
    engine = opened(module)
    made = module.driver.made
    for rows in range(1, 33):
        engine.run(tiny_inputs(rows))
        engine.run_in_parts(tiny_inputs(rows))
    assert module.driver.made == made
    engine.close()


def test_every_allocation_that_fails_frees_those_before(module: FakeTensorRT) -> None:
    driver = module.driver
    opened(module).close()
    for number in range(1, driver.made + 1):
        driver.made, driver.fail_at = 0, number
        with pytest.raises(BackendError, match=r"memory") as told:
            opened(module)
        driver.expect_clean()
        del told
    driver.fail_at = None
    opened(module).close()
    driver.expect_clean()


def test_too_little_memory_says_how_much_there_is(module: FakeTensorRT) -> None:
    module.driver.fail_at = 5
    with pytest.raises(BackendError, match=r"too little memory for tiny at batches of 64 .* 3 of 8 MiB free"):
        opened(module)


def test_a_hundred_refused_plans_leave_nothing(module: FakeTensorRT) -> None:
    module.refusal = "Error Code 6: the engine plan file is generated on an incompatible device"
    for _ in range(100):
        with pytest.raises(
            BackendError, match=r"does not load the plan of tiny \(Error Code 6.* build it again"
        ):
            opened(module)
    assert module.deaths == ["runtime"] * 100
    module.driver.expect_clean()


def test_no_execution_context(module: FakeTensorRT) -> None:
    module.no_context = True
    with pytest.raises(BackendError, match="no execution context for tiny: not enough device memory"):
        opened(module)
    assert module.deaths == ["engine", "runtime"]
    module.driver.expect_clean()


def test_a_context_that_would_not_fit_is_not_made(module: FakeTensorRT) -> None:
    module.context_bytes = 3 << 19  # of which two are made, and 3 MiB are free
    with pytest.raises(
        MemoryBudgetError, match=r"needs about 4 MiB of the GPU's memory, 3 MiB are available"
    ):
        opened(module)
    assert module.deaths == ["engine", "runtime"]
    module.driver.expect_clean()


def test_after_a_failed_batch_the_next_is_right(module: FakeTensorRT) -> None:
    module.failures = {1, 3}
    engine = opened(module)
    for seed in (5, 6):
        with pytest.raises(BackendError, match="failed on a batch padded to 32: a kernel failed"):
            engine.run(INPUTS)
        assert not module.driver.queue
        inputs = tiny_inputs(32, seed)
        np.testing.assert_allclose(engine.run(inputs)["risk"], tiny_outputs(inputs)["risk"], atol=1e-6)
    engine.close()
    module.driver.expect_clean()


def test_a_batch_goes_while_another_is_computed_and_no_event_orders_them(module: FakeTensorRT) -> None:
    engine, other = opened(module), tiny_inputs(7, seed=3)

    def second() -> list[int]:
        np.testing.assert_allclose(engine.run(other)["risk"], tiny_outputs(other)["risk"], atol=1e-6)
        return list(module.driver.clock)

    with ThreadPoolExecutor(1) as pool:
        waited: list[int] = []
        module.meanwhile = once(lambda: waited.extend(pool.submit(second).result(10)))
        outputs = engine.run(INPUTS)
    np.testing.assert_allclose(outputs["risk"], tiny_outputs(INPUTS)["risk"], atol=1e-6)
    ways = [(slot.stream.handle, set(slot.stream.clock)) for slot in engine._slots]
    assert len({own for own, _ in ways}) == 2
    assert all(before == {own} for own, before in ways), "a copy of one waits for the other"
    assert waited == [ways[1][0]], "the host waited for more than its own batch"
    engine.close()
    module.driver.expect_clean()


def test_a_batch_that_fails_leaves_the_other_alone(module: FakeTensorRT) -> None:
    engine, module.failures = opened(module), {2}

    def second() -> None:
        with pytest.raises(BackendError, match="a kernel failed"):
            engine.run(tiny_inputs(7))

    with ThreadPoolExecutor(1) as pool:
        module.meanwhile = once(lambda: pool.submit(second).result(10))
        expect_right(engine, 32)
    engine.close()
    module.driver.expect_clean()


def test_a_third_thread_is_refused_and_a_close_waits_for_the_calls(module: FakeTensorRT) -> None:
    engine, done = opened(module), []

    def closing() -> None:
        with pytest.raises(BackendError, match="in use by 2 other threads"):
            engine.run(INPUTS)
        engine.close()
        with pytest.raises(BackendError, match="closed"):
            engine.run(INPUTS)
        done.append("closed")

    def second(pool: ThreadPoolExecutor) -> None:
        module.meanwhile = once(lambda: pool.submit(closing).result(10))
        engine.run(INPUTS)
        assert module.driver.live, "freed under the first call"
        done.append("second")

    with ThreadPoolExecutor(2) as pool:
        module.meanwhile = once(lambda: pool.submit(second, pool).result(10))
        outputs = engine.run(INPUTS)
    np.testing.assert_allclose(outputs["risk"], tiny_outputs(INPUTS)["risk"], atol=1e-6)
    assert done == ["closed", "second"]
    module.driver.expect_clean()


def once(work: Callable[[], object]) -> Callable[[], None]:
    """Something to be called again and again that works at the first call only."""
    left = [work]

    def call() -> None:
        if left:
            left.pop()()

    return call


def test_parts_come_from_events_that_have_passed(module: FakeTensorRT) -> None:
    engine = opened(module)
    _, parts = engine.run_in_parts(INPUTS)
    assert parts is not None
    assert min(parts) > 0
    engine.close()
    module.driver.expect_clean()


def key(**changes: object) -> Key:
    usual: dict[str, object] = {
        "model": "tiny",
        "version": 3,
        "digest": CONFIG.digest,
        "graph_digest": CONFIG.digest,
        "backend": "tensorrt-rtx",
        "module_version": "1.7",
        "architecture": AMPERE_PLUS,
        "precision": "fp32",
        "profile": (1, 32, 32),
    }
    return Key(**(usual | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("device", [(8, 0), (8, 9), (9, 0), (12, 0)])
def test_a_plan_for_ampere_and_later(device: tuple[int, int]) -> None:
    tensorrt_load.check(key(backend="tensorrt"), CONFIG, "1.7", device)
    tensorrt_load.check(
        key(backend="tensorrt", architecture=f"sm80+sm{device[0]}{device[1]}"), CONFIG, "1.7", device
    )


@pytest.mark.parametrize(
    ("changes", "device", "error", "message"),
    [
        (
            {"digest": "0" * 64},
            (8, 9),
            BuildError,
            "stale, made of another model.onnx of tiny: riskstream model",
        ),
        ({"module_version": "1.6"}, (8, 9), BuildError, "stale, built by tensorrt-rtx 1.6, here is 1.7"),
        ({}, (7, 0), BackendError, "the GPU is sm70, too old: TensorRT runs on sm75"),
        ({}, (7, 5), BackendError, "for Ampere .sm80. and later, the GPU is sm75: serve on onnxruntime"),
        (
            {"architecture": "sm75+sm86"},
            (8, 9),
            BackendError,
            "the plan is for sm75.sm86, the GPU is sm89: .* --backend tensorrt-rtx --architecture 89",
        ),
        (
            {"architecture": "sm86", "backend": "tensorrt"},
            (8, 9),
            BackendError,
            "the plan is for sm86, the GPU is sm89: .* --backend tensorrt on this machine",
        ),
    ],
)
def test_plans_that_cannot_run_are_told_apart(
    changes: dict[str, object], device: tuple[int, int], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        tensorrt_load.check(key(**changes), CONFIG, "1.7", device)


@pytest.fixture
def fakes(module: FakeTensorRT, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    """The module and the driver are the fakes, and a build gives the graph as the plan."""

    def module_of(backend: str) -> FakeTensorRT:
        return module

    def build(_: object, content: bytes, *__: object) -> Built:
        return Built(content, (), 1, (), (), None)

    monkeypatch.setattr(tensorrt_load, "module_of", module_of)
    monkeypatch.setattr(tensorrt_load, "cuda_driver", lambda: module.driver)
    monkeypatch.setattr(plans, "module_of", module_of)
    monkeypatch.setattr("engines.tensorrt_build.build", build)
    return module


def test_the_repository_builds_loads_and_verifies(fakes: FakeTensorRT, repository_path: Path) -> None:
    folder = repository_path / "tiny/3/plans"
    for _ in range(2):
        engine = repository.load(repository_path, "tiny", "tensorrt-rtx")
        engine.close()
        assert sorted(file.suffix for file in folder.iterdir()) == [".json", ".kernels", ".plan"]
    golden_and_warm_up = [16, 16, 16, 16, 16, 16, 32, 32]  # 5 rows, then 1, 5 and 32, in each of two slots
    assert fakes.executions == golden_and_warm_up * 2
    fakes.driver.expect_clean()


def test_plans_and_compiled_kernels_are_kept_where_a_worker_says(
    fakes: FakeTensorRT, repository_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "kept"
    monkeypatch.setenv("RISKSTREAM_PLANS", str(folder))
    settings = config.load(model="tiny", backend="tensorrt-rtx", model_repository=repository_path)
    served = repository.read_config(repository_path, "tiny")
    for _ in range(2):
        loading._proven(settings, served, settings.backend, False).engine.close()
    assert not (repository_path / "tiny/3/plans").exists()
    [kernels] = (folder / "tiny" / "3").glob("*.kernels")
    assert fakes.cached == [b"", b"kernels."]
    assert kernels.read_bytes() == b"kernels.kernels."
    kernels.write_bytes(b"damaged")
    repository.load(repository_path, settings.model, settings.backend, settings.plans).close()
    assert fakes.cached[-1] == b""
    kernels.unlink()
    kernels.mkdir()  # it can be neither read nor written
    repository.load(repository_path, settings.model, settings.backend, settings.plans).close()
    assert fakes.cached[-1] == b""
    fakes.driver.expect_clean()


def test_a_folder_that_cannot_be_written_names_the_setting(
    fakes: FakeTensorRT, repository_path: Path
) -> None:
    (repository_path / "tiny/3/plans").write_text("a file")
    with pytest.raises(BuildError, match="for a worker by RISKSTREAM_PLANS"):
        repository.load(repository_path, "tiny", "tensorrt-rtx")


def test_an_engine_that_computes_something_else_is_closed(fakes: FakeTensorRT, repository_path: Path) -> None:
    wrong = golden_of(INPUTS, tiny_outputs(tiny_inputs(32, seed=1)))
    (repository_path / "tiny/3/golden.npz").write_bytes(wrong)
    with pytest.raises(GoldenError):
        repository.load(repository_path, "tiny", "tensorrt-rtx")
    fakes.driver.expect_clean()


def test_a_plan_over_the_budget_is_not_loaded(fakes: FakeTensorRT, repository_path: Path) -> None:
    with pytest.raises(MemoryBudgetError, match="needs about 1 MiB of the GPU's memory, its budget is 0 MiB"):
        repository.load(repository_path, "tiny", "tensorrt-rtx", memory_limit=10)
    assert not fakes.deaths
    fakes.driver.expect_clean()


def test_a_damaged_model_is_not_built(fakes: FakeTensorRT, repository_path: Path) -> None:
    (repository_path / "tiny/3/model.onnx").write_bytes(graph(bias=1.0))
    with pytest.raises(DigestError):
        repository.load(repository_path, "tiny", "tensorrt-rtx")


def test_an_old_gpu_is_refused_before_anything_is_built(fakes: FakeTensorRT, repository_path: Path) -> None:
    fakes.driver.capability = (6, 1)
    with pytest.raises(BackendError, match="sm61, too old"):
        repository.load(repository_path, "tiny", "tensorrt-rtx")
    assert not (repository_path / "tiny/3/plans").exists()


def test_without_pycuda_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(ExtraError, match=r"NVIDIA's driver .* CUDA toolkit .* 'riskstream\[cuda\]'"):
        tensorrt_module.cuda_driver()


def test_without_a_gpu_it_says_where_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    class CudaError(Exception):
        pass

    def init() -> None:
        raise CudaError("cuInit failed: no CUDA-capable device is detected")

    vendor = ModuleType("pycuda.driver")
    vendor.Error, vendor.init = CudaError, init  # type: ignore[attr-defined]
    package = ModuleType("pycuda")
    package.driver = vendor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", vendor)
    with pytest.raises(BackendError, match=r"no GPU that can be used: cuInit failed.*nvidia-smi"):
        tensorrt_module.cuda_driver()


@pytest.mark.parametrize("backend", tensorrt_module.BACKENDS)
def test_without_its_libraries_no_other_backend_is_taken(
    backend: str, repository_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pycuda", "pycuda.driver", "tensorrt"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendError, match=f"{backend} cannot run here: .*pip install 'riskstream"):
        repository.load(repository_path, "tiny", backend)
