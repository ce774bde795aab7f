"""Both slots are proven, failures are told in their own words, and nothing is freed beside a hung call."""

import gc
import re
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from time import sleep
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from engines import repository, tensorrt_device, tensorrt_module
from engines.errors import BackendError, GoldenError
from engines.tensorrt_engine import TensorRTEngine
from tests.engines.conftest import FEATURES, WIDTH, config_of, graph, tiny_inputs, tiny_outputs
from tests.engines.fake_cuda import FakeDriver
from tests.engines.fake_tensorrt import FakeTensorRT
from tests.engines.kernel_tensorrt import KernelTensorRT

GRAPH = graph()
CONFIG = config_of(GRAPH)
INPUTS = tiny_inputs(5)


@pytest.fixture
def module() -> FakeTensorRT:
    return FakeTensorRT(FakeDriver())


@pytest.fixture
def engine(module: FakeTensorRT) -> Iterator[TensorRTEngine]:
    engine = TensorRTEngine(CONFIG, GRAPH, module, module.driver)
    yield engine
    engine.close()
    module.driver.expect_clean()


def golden() -> dict[str, Any]:
    sides = {"in": INPUTS, "out": tiny_outputs(INPUTS)}
    return {f"{side}/{name}": array for side, arrays in sides.items() for name, array in arrays.items()}


def spoil(engine: TensorRTEngine, number: int) -> None:
    """Have one slot compute finite nonsense."""
    context = engine._slots[number].context
    execute = context.execute_async_v3

    def wrong(handle: int) -> bool:
        done: bool = execute(handle)
        slot = engine._slots[number]
        risk, driver = slot.device["risk"], engine._driver
        driver.enqueue(slot.stream, lambda: risk.content.fill(0.25), reads=[], writes=[risk])
        return done

    context.execute_async_v3 = wrong


@pytest.mark.parametrize("number", [0, 1])
def test_golden_data_are_asked_of_each_slot(engine: TensorRTEngine, number: int) -> None:
    repository.verify(engine, golden())
    spoil(engine, number)
    for _ in range(3):
        with pytest.raises(GoldenError, match="risk differs"):
            repository.verify(engine, golden())
        with pytest.raises(GoldenError, match="risk differs"):
            repository.warm_up(engine, golden())


def test_batches_take_slots_by_turns(engine: TensorRTEngine) -> None:
    taken = []
    for _ in range(4):
        engine.run(INPUTS)
        taken.append(engine._idle[-1])
    assert taken == engine._slots * 2


@contextmanager
def held(
    module: FakeTensorRT, engine: TensorRTEngine
) -> Iterator[tuple[ThreadPoolExecutor, threading.Event]]:
    """A batch that is in the engine until the event is set; and threads for what comes meanwhile."""
    free, entered = threading.Event(), threading.Event()

    def hold() -> None:
        module.meanwhile = lambda: None
        entered.set()
        assert free.wait(10)

    with ThreadPoolExecutor(2) as pool:
        module.meanwhile = hold
        batch = pool.submit(engine.run, INPUTS)
        assert entered.wait(10)
        yield pool, free
        batch.result(10)


def test_a_proof_waits_for_the_slot_that_is_in_use(module: FakeTensorRT, engine: TensorRTEngine) -> None:
    with held(module, engine) as (pool, free):
        proof = pool.submit(lambda: list(engine.run_in_each(INPUTS)))
        with pytest.raises(TimeoutError):
            proof.result(0.1)
        free.set()
        assert len(proof.result(10)) == 2


def test_a_proof_that_waits_ends_with_the_engine(module: FakeTensorRT, engine: TensorRTEngine) -> None:
    with held(module, engine) as (pool, free):
        proof = pool.submit(lambda: list(engine.run_in_each(INPUTS)))
        engine.close()
        with pytest.raises(BackendError, match="closed"):
            proof.result(10)
        free.set()


def test_a_failure_is_told_in_the_words_of_its_own_batch(
    module: FakeTensorRT, engine: TensorRTEngine
) -> None:
    """While the other slot is never idle, and has warned before."""
    entered, free = threading.Event(), threading.Event()

    def hold() -> None:
        module.meanwhile = lambda: None
        for _ in range(30):
            engine._log.log(module.ILogger.Severity.WARNING, "of the other batch")
        entered.set()
        assert free.wait(10)

    with ThreadPoolExecutor(1) as pool:
        module.meanwhile = hold
        other = pool.submit(engine.run, INPUTS)
        assert entered.wait(10)
        module.failures = {2}
        with pytest.raises(BackendError, match="padded to 16: a kernel failed"):
            engine.run(INPUTS)
        free.set()
        other.result(10)


def test_a_failure_is_not_told_in_the_words_of_a_batch_before(
    module: FakeTensorRT, engine: TensorRTEngine
) -> None:
    module.meanwhile = lambda: engine._log.log(module.ILogger.Severity.WARNING, "of the batch before")
    engine.run(INPUTS)
    module.meanwhile, module.failures = (lambda: None), {2}
    with pytest.raises(BackendError, match="padded to 16: a kernel failed"):
        engine.run(INPUTS)


def test_nothing_is_loaded_or_freed_beside_a_call_that_hangs(
    module: FakeTensorRT, engine: TensorRTEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_device, "HANGS_S", 0.05)
    other = TensorRTEngine(CONFIG, GRAPH, module, module.driver)
    lives, entered, free = len(module.driver.live), threading.Event(), threading.Event()

    def hang() -> None:
        module.meanwhile = lambda: None
        entered.set()
        assert free.wait(10)

    with ThreadPoolExecutor(1) as pool:
        module.meanwhile = hang
        call = pool.submit(engine.run, INPUTS)
        assert entered.wait(10)
        threading.Event().wait(0.1)
        with pytest.raises(BackendError, match=r"has not come back for 0\.05 s: nothing is loaded"):
            TensorRTEngine(CONFIG, GRAPH, module, module.driver)
        other.close()
        with pytest.raises(BackendError, match="closed"):
            other.run(INPUTS)
        assert len(module.driver.live) == lives, "freed while a call hangs"
        free.set()
        call.result(10)
    assert len(module.driver.live) == lives / 2
    TensorRTEngine(CONFIG, GRAPH, module, module.driver).close()


def test_the_context_is_retained_once_however_many_ask_first() -> None:
    driver = FakeDriver()
    retain = driver.retain_primary_context

    def slow() -> Any:
        sleep(0.02)
        return retain()

    driver.retain_primary_context = slow  # type: ignore[method-assign]
    barrier = threading.Barrier(8)

    def ask() -> Any:
        barrier.wait(10)
        return tensorrt_module.primary_context(driver)

    with ThreadPoolExecutor(8) as pool:
        found = {id(call.result(10)) for call in [pool.submit(ask) for _ in range(8)]}
    assert (driver.retained, len(found)) == (1, 1)


def test_the_kernel_of_the_gpu_tests_goes_through_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """With numpy in the kernel's place: so the tests that need a GPU fail for no other reason than a GPU."""
    driver = FakeDriver()

    def launch(*arguments: Any, block: Any, grid: Any, stream: Any) -> None:
        *addresses, rows, features, width, _ = (int(number) for number in arguments)
        assert (features, width) == (len(FEATURES), WIDTH)
        assert block[0] * grid[0] >= rows
        values, elapsed, counts, state, risk, state_out = map(driver.at, addresses)

        def compute() -> None:
            inputs = {
                name: memory.content[: rows * each].reshape(rows, each)
                for name, memory, each in (
                    ("values", values, features),
                    ("elapsed", elapsed, features),
                    ("counts", counts, features),
                    ("state", state, width),
                )
            }
            made = tiny_outputs(inputs)
            risk.content[:rows] = made["risk"]
            state_out.content[: rows * width] = made["state_out"].reshape(-1)

        driver.enqueue(stream, compute, reads=[values, elapsed, counts, state], writes=[risk, state_out])

    class SourceModule:
        def __init__(self, source: str) -> None:
            assert re.search(r"__global__ void tiny\(", source)

        def get_function(self, name: str) -> Any:
            return {"tiny": launch}[name]

    compiler = ModuleType("pycuda.compiler")
    compiler.SourceModule = SourceModule  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", ModuleType("pycuda"))
    monkeypatch.setitem(sys.modules, "pycuda.compiler", compiler)
    kernel = KernelTensorRT()
    kernel.engine = engine = TensorRTEngine(CONFIG, b"", kernel, driver)
    for rows in (1, 17, 32):
        inputs = tiny_inputs(rows, rows)
        for name, expected in tiny_outputs(inputs).items():
            np.testing.assert_allclose(engine.run(inputs)[name], expected, atol=1e-6)
    assert engine.run_in_parts(INPUTS)[1] is not None
    engine.close()
    kernel.engine = None
    del engine
    gc.collect()
    driver.expect_clean()
