"""An engine that takes two batches at once: the next is handed over while one is computed, and no more."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

import numpy as np
import pytest

from engines.engine import F32, Engine
from engines.errors import BackendError, GoldenError
from engines.tensorrt_engine import TensorRTEngine
from engines.tensorrt_slot import Slot
from tests import kinds
from tests.engines.conftest import config_of, graph, tiny_inputs
from tests.engines.fake_cuda import FakeDriver
from tests.engines.fake_tensorrt import FakeTensorRT
from worker.batch import Batcher
from worker.errors import EngineDownError, EngineSilentError

POISON = np.float32(666)


class Double(Engine):
    """The step model's engine, for two batches at once; each is held until its number is let go.

    Attributes:
        sizes: rows of each batch, in the order of their start.
        held: the numbers of the batches, from 0, that wait until they are taken out of it.
        most: batches that were in it at once.
    """

    in_flight = 2

    def __init__(self) -> None:
        self.inner = kinds.engine_of("step")
        super().__init__(self.inner.config, "double")
        self.sizes: list[int] = []
        self.held: set[int] = set()
        self.now = self.most = 0
        self.changed = threading.Condition()

    def _execute(self, inputs: Mapping[str, F32], rows: int) -> dict[str, F32]:
        with self.changed:
            number = len(self.sizes)
            self.sizes.append(rows)
            self.now += 1
            self.most = max(self.most, self.now)
            assert self.changed.wait_for(lambda: number not in self.held, 20)
            self.now -= 1
            if (inputs["values"] == POISON).any():
                raise BackendError("a row is poisonous")
            return self.inner.run(inputs)

    def let_go(self, *numbers: int) -> None:
        with self.changed:
            self.held -= set(numbers)
            self.changed.notify_all()

    def close(self) -> None:
        self.inner.close()


@pytest.fixture
def engine() -> Double:
    return Double()


@asynccontextmanager
async def batching(
    engine: Engine, verify: Callable[[], None] = lambda: None, patience_s: float = 10.0
) -> AsyncIterator[Batcher]:
    batcher = Batcher(engine, verify, 20.0, patience_s)
    try:
        yield batcher
    finally:
        if isinstance(engine, Double):
            engine.let_go(*engine.held)
        await batcher.close()
        engine.close()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 (an engine announces nothing)
            await asyncio.sleep(0.001)


def rows(engine: Engine, number: int, seed: int = 0) -> dict[str, F32]:
    return kinds.inputs_of(engine, number, seed)


async def test_the_second_batch_starts_while_the_first_runs_and_the_rest_collect(engine: Double) -> None:
    engine.held = {0, 1}
    requests = [rows(engine, 1 + n, n) for n in range(5)]
    async with batching(engine) as batcher:
        calls = []
        for n in range(2):
            calls.append(asyncio.create_task(batcher.infer(requests[n])))
            await until(lambda n=n: len(engine.sizes) == n + 1)  # type: ignore[misc]
        calls += [asyncio.create_task(batcher.infer(request)) for request in requests[2:]]
        await asyncio.sleep(0.02)
        assert engine.sizes == [1, 2], "there is room for two"
        engine.let_go(1)
        late = await calls[1]
        await until(lambda: len(engine.sizes) == 3)
        assert not calls[0].done(), "the second may end before the first"
        engine.let_go(0)
        outputs = await asyncio.gather(*calls)
    assert engine.sizes == [1, 2, 3 + 4 + 5]
    assert engine.most == 2
    assert late is outputs[1]
    reference = kinds.engine_of("step")
    for request, output in zip(requests, outputs, strict=True):
        for name, array in reference.run(request).items():
            assert array.tobytes() == output[name].tobytes()


async def test_requests_that_come_together_share_a_batch(engine: Double) -> None:
    async with batching(engine) as batcher:
        await asyncio.gather(*(batcher.infer(rows(engine, 1, n)) for n in range(6)))
    assert engine.sizes == [6]


async def test_a_poisonous_row_fails_alone_and_leaves_the_other_batch(engine: Double) -> None:
    engine.held = {0, 1}
    poisonous, clean = rows(engine, 3), rows(engine, 4, seed=1)
    poisonous["values"][1, 0] = POISON
    async with batching(engine) as batcher:
        bad = asyncio.create_task(batcher.infer(poisonous))
        await until(lambda: len(engine.sizes) == 1)
        good = asyncio.create_task(batcher.infer(clean))
        await until(lambda: len(engine.sizes) == 2)
        engine.let_go(0)
        assert np.isnan((await bad)["risk"]).tolist() == [False, True, False]
        engine.let_go(1)
        assert np.isfinite((await good)["risk"]).all()


async def test_while_one_call_is_late_nobody_else_is_served_but_what_is_in_flight(engine: Double) -> None:
    engine.held = {0}
    async with batching(engine, patience_s=0.15) as batcher:
        lost = asyncio.create_task(batcher.infer(rows(engine, 1)))
        await until(lambda: len(engine.sizes) == 1)
        await batcher.infer(rows(engine, 1))
        with pytest.raises(EngineSilentError):
            await lost
        with pytest.raises(EngineSilentError, match="not come back yet"):
            await batcher.infer(rows(engine, 1))
        assert batcher.busy
        assert not await batcher.answers()
        engine.let_go(0)
        await until(lambda: not batcher.busy)
        assert np.isfinite((await batcher.infer(rows(engine, 1)))["risk"]).all()


async def test_two_late_calls_double_the_patience_once(engine: Double) -> None:
    engine.held = {0, 1}
    async with batching(engine, patience_s=0.15) as batcher:
        lost = []
        for n in range(2):
            lost.append(asyncio.create_task(batcher.infer(rows(engine, 1))))
            await until(lambda n=n: len(engine.sizes) == n + 1)  # type: ignore[misc]
        for call in lost:
            with pytest.raises(EngineSilentError, match=r"more than 0\.15 s"):
                await call
        engine.let_go(0)
        await asyncio.sleep(0.05)
        with pytest.raises(EngineSilentError, match="not come back yet"):
            await batcher.infer(rows(engine, 1))  # the other has not
        engine.let_go(1)
        await until(lambda: not batcher.busy)
        engine.held = {2}
        with pytest.raises(EngineSilentError, match=r"more than 0\.3 s"):
            await batcher.infer(rows(engine, 1))


async def test_the_engine_proves_itself_while_a_batch_runs(engine: Double) -> None:
    engine.held = {0}
    proofs = []

    def verify() -> None:
        proofs.append(engine.run(rows(engine, 2)))
        if len(proofs) > 1:
            raise GoldenError("the golden data do not agree")

    async with batching(engine, verify) as batcher:
        call = asyncio.create_task(batcher.infer(rows(engine, 1)))
        await until(lambda: len(engine.sizes) == 1)
        assert await batcher.answers()
        assert not await batcher.answers()
        with pytest.raises(EngineDownError, match="golden"):
            await batcher.infer(rows(engine, 1))
        engine.let_go(0)
        with pytest.raises(EngineDownError, match="golden"):
            await call  # computed, but by an engine that has been found wrong meanwhile


async def test_a_close_refuses_all_and_waits_for_both_calls(engine: Double) -> None:
    engine.held = {0, 1}
    batcher = Batcher(engine, lambda: None, 20.0, 10.0)
    calls = []
    for n in range(2):
        calls.append(asyncio.create_task(batcher.infer(rows(engine, 1))))
        await until(lambda n=n: len(engine.sizes) == n + 1)  # type: ignore[misc]
    calls.append(asyncio.create_task(batcher.infer(rows(engine, 1))))
    await asyncio.sleep(0)
    closing = asyncio.create_task(batcher.close())
    for call in calls:
        with pytest.raises(EngineDownError, match="replaced"):
            await call
    for n in range(2):
        await asyncio.sleep(0.02)
        assert not closing.done()
        engine.let_go(n)
    await asyncio.wait_for(closing, 10)
    assert engine.now == 0
    with pytest.raises(EngineDownError, match="replaced"):
        await asyncio.wait_for(batcher.infer(rows(engine, 1)), 10)
    engine.close()


async def test_a_plan_on_a_fake_answers_many_callers_from_two_slots() -> None:
    driver = FakeDriver()
    content = graph()
    engine = TensorRTEngine(config_of(content), content, FakeTensorRT(driver), driver)
    requests = [tiny_inputs(1 + n % 5, n) for n in range(300)]
    expected = [engine.run(request) for request in requests]
    taken = {id(slot): 0 for slot in engine._slots}
    entered = engine._slot

    @contextmanager
    def counted(doing: str, asked: Slot | None = None) -> Iterator[Slot]:
        with entered(doing, asked) as slot:
            taken[id(slot)] += 1
            yield slot

    engine._slot = counted  # type: ignore[method-assign]
    batcher = Batcher(engine, lambda: None, 20.0, 10.0)
    rng = np.random.default_rng(0)

    async def ask(request: dict[str, F32], pause_s: float) -> dict[str, F32]:
        await asyncio.sleep(pause_s)
        return await batcher.infer(request)

    async with asyncio.timeout(30):
        outputs = await asyncio.gather(*(ask(request, rng.uniform(0, 0.2)) for request in requests))
    await batcher.close()
    engine.close()
    for output, alone in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(output["risk"], alone["risk"], atol=1e-6)
    assert min(taken.values()) > 0
    driver.expect_clean()
