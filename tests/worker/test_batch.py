"""Many callers, one engine: order kept, no row's failure another's."""

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import numpy as np
import pytest

from engines.engine import F32, Engine
from engines.errors import BackendError, GoldenError
from worker.batch import Batcher
from worker.errors import EngineDownError, EngineHungError, EngineSilentError

POISON = np.float32(666)


class PickyEngine(Engine):
    """The model's engine, but it fails on any batch with a poisonous row; can be held."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner.config, "picky")
        self.inner = inner
        self.error: type[Exception] = BackendError
        self.sizes: list[int] = []
        self.free = threading.Event()
        self.free.set()
        self.entered = threading.Event()

    def _execute(self, inputs: Mapping[str, F32], rows: int) -> dict[str, F32]:
        self.sizes.append(rows)
        self.entered.set()
        self.free.wait(10)
        if (inputs["values"] == POISON).any():
            raise self.error("a row is poisonous")
        return self.inner.run(inputs)

    def close(self) -> None:
        """Nothing of its own to free."""


def healthy() -> None:
    """The golden data agree."""


def broken() -> None:
    raise GoldenError("the golden data do not agree")


@asynccontextmanager
async def batching(
    engine: Engine, verify: object = healthy, timeout_s: float = 5.0, patience_s: float = 5.0
) -> AsyncIterator[Batcher]:
    batcher = Batcher(engine, verify, timeout_s, patience_s)  # type: ignore[arg-type]
    try:
        yield batcher
    finally:
        await batcher.close()


def tensors(engine: Engine, rows: int, seed: int = 0) -> dict[str, F32]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.uniform(0, 40, (rows, *dims)).astype(np.float32) for name, dims in engine.input_dims.items()
    }


async def test_concurrent_requests_share_batches_and_keep_their_rows(engine: Engine) -> None:
    picky = PickyEngine(engine)
    picky.free.clear()
    requests = [tensors(engine, 1 + n % 3, n) for n in range(30)]
    async with batching(picky) as batcher:
        first = asyncio.create_task(batcher.infer(requests[0]))
        await asyncio.to_thread(picky.entered.wait, 5)
        others = [asyncio.create_task(batcher.infer(request)) for request in requests[1:]]
        await asyncio.sleep(0)
        picky.free.set()
        outputs = await asyncio.gather(first, *others)

    assert picky.sizes == [1, sum(1 + n % 3 for n in range(1, 30))], "what waited went together"
    for request, output in zip(requests, outputs, strict=True):
        for name, array in engine.run(request).items():
            assert array.tobytes() == output[name].tobytes()


async def test_idle_engine_starts_at_once(engine: Engine) -> None:
    picky = PickyEngine(engine)
    async with batching(picky) as batcher:
        for n in range(3):
            await batcher.infer(tensors(engine, 1, n))
    assert picky.sizes == [1, 1, 1]


async def test_more_rows_than_a_batch_takes(engine: Engine) -> None:
    largest = engine.config.dynamic_batching.max_batch_size
    inputs = tensors(engine, largest + 7)
    async with batching(engine) as batcher:
        risks = (await batcher.infer(inputs))["risk"]

    expected = [
        engine.run({n: a[i : i + 1] for n, a in inputs.items()})["risk"][0]
        for i in (0, largest, -1 + largest + 7)
    ]
    assert risks[[0, largest, -1]].tolist() == [float(risk) for risk in expected]
    assert risks.shape == (largest + 7,)


@pytest.mark.parametrize("poisonous", [[0], [12], [3, 4, 11], list(range(13))])
async def test_poisonous_rows_fail_alone(engine: Engine, poisonous: list[int]) -> None:
    inputs = tensors(engine, 13)
    clean = engine.run(inputs)["risk"]
    inputs["values"][poisonous, 0] = POISON
    async with batching(PickyEngine(engine)) as batcher:
        outputs = await batcher.infer(inputs)

    fine = [i for i in range(13) if i not in poisonous]
    assert np.isnan(outputs["risk"][poisonous]).all()
    assert np.isnan(outputs["state_out"][poisonous]).all()
    assert outputs["risk"][fine].tobytes() == clean[fine].tobytes()


async def test_engine_that_fails_its_golden_data_is_down(engine: Engine) -> None:
    inputs = tensors(engine, 3)
    inputs["values"][1, 0] = POISON
    async with batching(PickyEngine(engine), broken) as batcher:
        with pytest.raises(EngineDownError, match="golden-mismatch"):
            await batcher.infer(inputs)
        assert np.isfinite((await batcher.infer(tensors(engine, 2)))["risk"]).all()


async def test_hung_call_loses_the_engine(engine: Engine) -> None:
    picky = PickyEngine(engine)
    picky.free.clear()
    async with batching(picky, timeout_s=0.05) as batcher:
        with pytest.raises(EngineHungError, match=r"more than 0\.05 s"):
            await batcher.infer(tensors(engine, 1))
        assert batcher.hung
        with pytest.raises(EngineHungError):
            await batcher.infer(tensors(engine, 1))
        picky.free.set()


async def test_late_call_is_not_waited_for_and_the_next_one_longer(engine: Engine) -> None:
    picky, one = PickyEngine(engine), tensors(engine, 1)
    picky.free.clear()
    async with batching(picky, timeout_s=10.0, patience_s=0.1) as batcher:
        with pytest.raises(EngineSilentError, match=r"more than 0\.1 s"):
            await batcher.infer(one)
        with pytest.raises(EngineSilentError):
            await batcher.infer(one)
        assert not await batcher.answers()
        assert not batcher.hung
        picky.free.set()
        while not await batcher.answers():  # noqa: ASYNC110 (a late call announces nothing)
            await asyncio.sleep(0.01)
        assert np.isfinite((await batcher.infer(one))["risk"]).all()

        picky.free.clear()
        slow = asyncio.create_task(batcher.infer(one))
        await asyncio.sleep(0.05)
        picky.free.set()
        assert np.isfinite((await slow)["risk"]).all()


async def test_patience_grows_with_a_slow_engine(engine: Engine) -> None:
    picky, one = PickyEngine(engine), tensors(engine, 1)
    async with batching(picky, timeout_s=10.0, patience_s=0.1) as batcher:
        picky.free.clear()
        with pytest.raises(EngineSilentError):
            await batcher.infer(one)
        picky.free.set()
        await asyncio.sleep(0.1)
        picky.free.clear()
        slow = asyncio.create_task(batcher.infer(one))
        await asyncio.sleep(0.14)
        picky.free.set()
        assert np.isfinite((await slow)["risk"]).all()


async def test_engine_answers_unless_its_golden_data_disagree(engine: Engine) -> None:
    async with batching(engine) as sound, batching(engine, broken) as unsound:
        assert await sound.answers()
        assert not await unsound.answers()


async def test_a_fault_that_nobody_foresaw_reaches_the_caller(engine: Engine) -> None:
    picky = PickyEngine(engine)
    picky.error = ZeroDivisionError
    inputs = tensors(engine, 1)
    inputs["values"][0, 0] = POISON
    async with batching(picky) as batcher:
        with pytest.raises(ZeroDivisionError):
            await batcher.infer(inputs)


async def test_an_engine_that_is_found_wrong_serves_nobody_until_it_is_right_again(engine: Engine) -> None:
    wrong = threading.Event()

    def verify() -> None:
        if wrong.is_set():
            broken()

    async with batching(PickyEngine(engine), verify) as batcher:
        await batcher.infer(tensors(engine, 1))
        wrong.set()
        await batcher.infer(tensors(engine, 1))  # finite, so nobody has asked
        assert not await batcher.answers()
        with pytest.raises(EngineDownError, match="golden"):
            await batcher.infer(tensors(engine, 1))
        wrong.clear()
        assert await batcher.answers()
        await batcher.infer(tensors(engine, 1))
