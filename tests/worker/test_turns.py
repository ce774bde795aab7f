"""Two engines on one device: batches by turns, and calls that hang hold the other up for a patience at most.

Stand-ins for engines: no GPU says here how it shares itself between two of them.
"""

import asyncio
import threading
import time
from collections.abc import Mapping
from itertools import groupby

import pytest

from engines.engine import F32, Engine
from tests import kinds
from worker.batch import Batcher
from worker.errors import EngineSilentError
from worker.loading import ON_A_GPU, device_turns

PATIENCE_S = 0.3


class Noted(Engine):
    """The step model's engine; notes its batches in a list that others share. Can be made to hang."""

    in_flight = 2

    def __init__(self, name: str, notes: list[str]) -> None:
        self.inner = kinds.engine_of("step")
        super().__init__(self.inner.config, name)
        self.notes = notes
        self.lock = threading.Lock()
        self.free = threading.Event()
        self.free.set()

    def _execute(self, inputs: Mapping[str, F32], rows: int) -> dict[str, F32]:
        self.notes.append(self.backend)
        self.free.wait(20)
        time.sleep(0.002)
        with self.lock:
            return self.inner.run(inputs)

    def close(self) -> None:
        self.inner.close()


def pair(notes: list[str]) -> list[Batcher]:
    turns = device_turns()
    made = [Noted(name, notes) for name in ("vitals", "images")]
    return [Batcher(engine, lambda: None, 20.0, PATIENCE_S, turns("tensorrt")) for engine in made]


def test_engines_on_the_cpu_take_no_turns() -> None:
    turns = device_turns()
    assert turns("onnxruntime") is None
    assert turns("tensorrt") is turns("tensorrt-rtx") is turns("onnxruntime-cuda") is not None


async def test_saturated_engines_alternate() -> None:
    notes: list[str] = []
    batchers = pair(notes)
    largest = batchers[0].engine.config.dynamic_batching.max_batch_size
    inputs = kinds.inputs_of(batchers[0].engine, largest)  # so that each request is a batch
    try:
        await asyncio.gather(*(b.infer(inputs) for b in batchers for _ in range(30)))
    finally:
        for batcher in batchers:
            await batcher.close()
    assert sorted(notes) == ["images"] * 30 + ["vitals"] * 30
    runs = [len(list(run)) for _, run in groupby(notes)]
    assert max(runs) <= 3, "two in flight, and one that took its turn before the other's came"
    for end in range(4, len(notes) + 1, 4):
        assert abs(notes[:end].count("vitals") - end / 2) <= 2, "neither gets ahead of the other"


async def test_an_engine_that_has_little_to_do_waits_for_one_batch_of_a_busy_one() -> None:
    notes: list[str] = []
    busy, rare = pair(notes)
    largest = busy.engine.config.dynamic_batching.max_batch_size
    inputs = kinds.inputs_of(busy.engine, largest)
    try:
        work = [asyncio.create_task(busy.infer(inputs)) for _ in range(40)]
        for n in range(5):
            while len(notes) < 5 * (n + 1):  # noqa: ASYNC110 (an engine announces nothing)
                await asyncio.sleep(0.001)
            asked = len(notes)
            await rare.infer(kinds.inputs_of(rare.engine, 1))
            assert notes[asked:].index("images") <= 1
        await asyncio.gather(*work)
    finally:
        for batcher in (busy, rare):
            await batcher.close()


async def test_calls_that_hang_hold_the_other_up_for_a_patience() -> None:
    notes: list[str] = []
    hung, other = pair(notes)
    one = kinds.inputs_of(other.engine, 1)
    full = kinds.inputs_of(hung.engine, hung.engine.config.dynamic_batching.max_batch_size)
    assert isinstance(hung.engine, Noted)
    hung.engine.free.clear()
    try:
        lost = [asyncio.create_task(hung.infer(full)) for _ in range(ON_A_GPU)]
        while len(notes) < ON_A_GPU:  # noqa: ASYNC110 (an engine announces nothing)
            await asyncio.sleep(0.001)
        began = time.perf_counter()
        await other.infer(one)
        assert time.perf_counter() - began < PATIENCE_S + 0.5
        for call in lost:
            with pytest.raises(EngineSilentError):
                await call
        began = time.perf_counter()
        await asyncio.gather(*(other.infer(one) for _ in range(5)))
        assert time.perf_counter() - began < PATIENCE_S, "it is held up once"
    finally:
        hung.engine.free.set()
        for batcher in (hung, other):
            await batcher.close()
