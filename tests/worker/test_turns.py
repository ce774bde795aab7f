"""Two engines on one device: batches by turns, and calls that hang hold the other up for a patience at most.

Stand-ins for engines: no GPU says here how it shares itself between two of them. Their batches end one by
one, when a test lets them, so that what starts next is the batchers' choice and no race.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import groupby

import pytest

from engines.engine import F32, Engine
from tests import kinds
from tests.worker.runners import none_dies
from worker.batch import Batcher
from worker.errors import EngineSilentError
from worker.loading import ON_A_GPU, device_turns

PATIENCE_S = 0.3


class Gate:
    """Notes the batches of several engines as they start, and lets them end in that order."""

    def __init__(self) -> None:
        self.started: list[tuple[str, int]] = []
        self._allowed = 0.0
        self._changed = threading.Condition()

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.started]

    def through(self, name: str, rows: int) -> None:
        with self._changed:
            number = len(self.started)
            self.started.append((name, rows))
            assert self._changed.wait_for(lambda: number < self._allowed, 20)

    def let(self, allowed: float) -> None:
        """So many batches may end, of all that start."""
        with self._changed:
            self._allowed = allowed
            self._changed.notify_all()

    async def until(self, started: int) -> None:
        async with asyncio.timeout(10):
            while len(self.started) < started:  # noqa: ASYNC110 (an engine announces nothing)
                await asyncio.sleep(0.001)


class Gated(Engine):
    """The step model's engine, behind the gate."""

    def __init__(self, name: str, gate: Gate, in_flight: int = 2) -> None:
        self.inner = kinds.engine_of("step")
        super().__init__(self.inner.config, name)
        self.in_flight = in_flight
        self._gate = gate
        self._lock = threading.Lock()

    def _execute(self, inputs: Mapping[str, F32], rows: int) -> dict[str, F32]:
        self._gate.through(self.backend, rows)
        with self._lock:
            return self.inner.run(inputs)

    def close(self) -> None:
        self.inner.close()


@asynccontextmanager
async def sharing(gate: Gate, *engines: Engine, patience_s: float = 20.0) -> AsyncIterator[list[Batcher]]:
    """Batchers of engines on one device."""
    turns = device_turns()
    with none_dies():
        batchers = [Batcher(engine, lambda: None, 20.0, patience_s, turns("tensorrt")) for engine in engines]
        try:
            yield batchers
        finally:
            gate.let(float("inf"))
            for batcher in batchers:
                await batcher.close()
                batcher.engine.close()


def full(engine: Engine) -> dict[str, F32]:
    """A request that is a batch."""
    return kinds.inputs_of(engine, engine.config.dynamic_batching.max_batch_size)


def asked(batcher: Batcher, inputs: dict[str, F32], times: int) -> list["asyncio.Task[dict[str, F32]]"]:
    return [asyncio.create_task(batcher.infer(inputs)) for _ in range(times)]


def test_engines_on_the_cpu_take_no_turns() -> None:
    turns = device_turns()
    assert turns("onnxruntime") is None
    assert turns("tensorrt") is turns("tensorrt-rtx") is turns("onnxruntime-cuda") is not None


async def test_saturated_engines_alternate() -> None:
    gate = Gate()
    async with sharing(gate, Gated("vitals", gate), Gated("images", gate)) as batchers:
        work = [call for batcher in batchers for call in asked(batcher, full(batcher.engine), 15)]
        for ended in range(30):
            await gate.until(min(ended + ON_A_GPU, 30))
            assert len(gate.started) == min(ended + ON_A_GPU, 30)
            gate.let(ended + 1)
        await asyncio.gather(*work)
    assert sorted(gate.names) == ["images"] * 15 + ["vitals"] * 15
    assert max(len(list(run)) for _, run in groupby(gate.names)) <= ON_A_GPU


async def test_an_engine_that_has_little_to_do_waits_for_one_batch_of_a_busy_one() -> None:
    gate = Gate()
    async with sharing(gate, Gated("vitals", gate), Gated("images", gate)) as (rare, busy):
        work = asked(busy, full(busy.engine), 12)
        for ended in range(0, 9, 3):
            await gate.until(ended + ON_A_GPU)
            work += asked(rare, kinds.inputs_of(rare.engine, 1), 1)
            await asyncio.sleep(0.02)
            assert len(gate.started) == ended + ON_A_GPU
            gate.let(ended + 1)
            await gate.until(ended + ON_A_GPU + 1)
            assert gate.names[-1] == "vitals"
            gate.let(ended + 3)
        gate.let(float("inf"))
        await asyncio.gather(*work)


async def test_rows_collect_while_their_engine_waits_for_its_turn() -> None:
    gate = Gate()
    async with sharing(gate, Gated("vitals", gate), Gated("images", gate)) as (late, busy):
        work = asked(busy, full(busy.engine), 2)
        await gate.until(2)
        for _ in range(5):
            work += asked(late, kinds.inputs_of(late.engine, 1), 1)
            await asyncio.sleep(0.005)
        gate.let(float("inf"))
        await asyncio.gather(*work)
    assert gate.started[2:] == [("vitals", 5)]


@pytest.mark.parametrize("in_flight", [1, 2])
async def test_an_engine_alone_has_as_many_batches_as_it_takes(in_flight: int) -> None:
    gate = Gate()
    async with sharing(gate, Gated("vitals", gate, in_flight)) as (batcher,):
        work = asked(batcher, full(batcher.engine), 4)
        await gate.until(in_flight)
        await asyncio.sleep(0.03)
        assert len(gate.started) == in_flight
        gate.let(float("inf"))
        await asyncio.gather(*work)


async def test_calls_that_hang_hold_the_other_up_for_a_patience() -> None:
    gate, free = Gate(), Gate()
    free.let(float("inf"))
    engines = Gated("vitals", gate), Gated("images", free)
    async with sharing(gate, *engines, patience_s=PATIENCE_S) as (hung, other):
        lost = asked(hung, full(hung.engine), ON_A_GPU)
        await gate.until(ON_A_GPU)
        began = time.perf_counter()
        one = kinds.inputs_of(other.engine, 1)
        await other.infer(one)
        assert time.perf_counter() - began < PATIENCE_S + 0.5
        for call in lost:
            with pytest.raises(EngineSilentError):
                await call
        began = time.perf_counter()
        await asyncio.gather(*asked(other, one, 5))
        assert time.perf_counter() - began < PATIENCE_S, "it is held up once"


async def test_whoever_asks_a_silent_engine_is_refused_without_a_turn() -> None:
    gate, busy_gate = Gate(), Gate()
    engines = Gated("vitals", gate), Gated("images", busy_gate)
    async with sharing(gate, *engines, patience_s=PATIENCE_S) as (hung, busy):
        busy._patience_s = 20.0
        lost = asked(hung, full(hung.engine), 3)
        await gate.until(ON_A_GPU)
        work = asked(busy, full(busy.engine), ON_A_GPU)
        async with asyncio.timeout(PATIENCE_S + 5):
            for call in lost:
                with pytest.raises(EngineSilentError):
                    await call  # the third, too, which waits for a turn
            await busy_gate.until(ON_A_GPU)  # and holds both, for as long as it likes
            with pytest.raises(EngineSilentError, match="not come back"):
                await hung.infer(full(hung.engine))
            assert not await hung.answers()
        busy_gate.let(float("inf"))
        await asyncio.gather(*work)
