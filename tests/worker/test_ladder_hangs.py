"""Calls and loads that hang, engines that are closed: nothing waits for them, nothing is left behind."""

import asyncio
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from engines import onnxruntime_backend, repository
from engines.engine import F32, Engine
from engines.errors import BackendError
from schemas.model_config import ModelConfig
from tests import kinds
from tests.worker.ladders import (
    PATIENCE_S,
    REFERENCE,
    RTX,
    Library,
    Walk,
    bare,
    it_is_time,
    name_version,
    put,
    records,
    rung,
    settings,
    small,
    started,
    steps,
    undisturbed,
)
from worker import serving
from worker.app import Worker
from worker.config import Role
from worker.errors import EngineDownError

HALF = 12


@pytest.fixture
def models(tmp_path: Path) -> Path:
    put(tmp_path, *small())
    return tmp_path


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    return Library(monkeypatch)


async def test_a_call_that_hangs_is_replaced_within_the_patience(models: Path, library: Library) -> None:
    free = threading.Event()
    stepped = steps(REFERENCE, "engine-silent")
    async with started(models) as ladder:
        walk = Walk(ladder)
        await walk.process(records()[:HALF])
        hung = ladder.current
        library.module.meanwhile = lambda: free.wait(60)
        began = time.perf_counter()
        await walk.process(records()[HALF : HALF + 4])
        assert time.perf_counter() - began < PATIENCE_S + 5.0
        assert walk.partition.unanswered is None
        assert ladder.current.rung == rung() == 1
        assert steps(REFERENCE, "engine-silent") == stepped + 1
        it_is_time(ladder)
        made = library.driver.made
        assert not await ladder.climb()
        assert library.driver.made == made, "nothing is loaded beside a call that hangs"
        assert hung in ladder._retired

        library.module.meanwhile = lambda: None
        free.set()
        while hung.batcher.busy:  # noqa: ASYNC110 (a late call announces nothing)
            await asyncio.sleep(0.01)
        it_is_time(ladder)
        assert await ladder.climb()
        assert not ladder._retired
        await walk.process(records()[HALF + 4 :])
    assert bare(walk.outbox.messages) == (await undisturbed(models)).messages
    library.driver.expect_clean()


async def test_a_call_that_outlives_its_deadline_and_comes_back_lets_its_rung_be_tried(
    models: Path, library: Library
) -> None:
    free = threading.Event()
    async with started(models, infer_timeout_s=PATIENCE_S) as ladder:
        walk = Walk(ladder)
        library.module.meanwhile = lambda: free.wait(60)
        await walk.process(records()[:4])
        assert ladder.current.rung == 1
        it_is_time(ladder)
        assert not await ladder.climb()
        library.module.meanwhile = lambda: None
        free.set()
        async with asyncio.timeout(20):
            while not await ladder.climb():
                it_is_time(ladder)
                await asyncio.sleep(0.01)
        assert ladder.current.rung == 0


async def test_a_call_that_never_comes_back_holds_up_neither_work_nor_the_stop(
    models: Path, library: Library
) -> None:
    free = threading.Event()
    try:
        async with started(models) as ladder:
            walk = Walk(ladder)
            library.module.meanwhile = lambda: free.wait(60)
            await walk.process(records())
            assert ladder.current.rung == 1
            reference = ladder.current.batcher.engine
            began = time.perf_counter()
            await ladder.close()
            assert time.perf_counter() - began < 5.0
            with pytest.raises(BackendError, match="closed"):
                reference.run(kinds.inputs_of(reference, 1))
    finally:
        free.set()
    assert bare(walk.outbox.messages) == (await undisturbed(models)).messages


async def test_a_chunk_keeps_the_engine_that_it_stepped_down_to(models: Path, library: Library) -> None:
    """A climb while the lower rung computes a chunk must not close it under that chunk."""
    async with started(models) as ladder:
        walk = Walk(ladder)
        await walk.process(records()[:HALF])
        entered, free = threading.Event(), threading.Event()
        original = onnxruntime_backend.OnnxRuntimeEngine._execute

        def slow(self: onnxruntime_backend.OnnxRuntimeEngine, inputs: object, rows: int) -> object:
            if threading.current_thread().name.startswith("engine"):
                entered.set()
                free.wait(20)
            return original(self, inputs, rows)  # type: ignore[arg-type]

        onnxruntime_backend.OnnxRuntimeEngine._execute = slow  # type: ignore[assignment, method-assign]
        try:
            library.module.spoiled = True
            chunk = asyncio.create_task(walk.process(records()[HALF : HALF + 4]))
            await asyncio.to_thread(entered.wait, 20)
            library.module.spoiled = False
            it_is_time(ladder)
            assert await ladder.climb()
            assert 1 in [old.rung for old in ladder._retired]
            free.set()
            await chunk
        finally:
            onnxruntime_backend.OnnxRuntimeEngine._execute = original  # type: ignore[method-assign]
        await walk.process(records()[HALF + 4 :])
        await ladder._sweep()
        assert not ladder._retired
    assert bare(walk.outbox.messages) == (await undisturbed(models)).messages


async def test_a_closed_engine_refuses_whoever_waits(models: Path) -> None:
    async with started(models, "onnxruntime") as ladder:
        batcher, free = ladder.current.batcher, threading.Event()
        inputs = kinds.inputs_of(batcher.engine, 1)
        held = asyncio.create_task(batcher._in_thread(lambda: free.wait(0.2)))
        await asyncio.sleep(0.01)
        waiting = asyncio.create_task(batcher.infer(inputs))
        await asyncio.sleep(0.01)
        await batcher.close()
        with pytest.raises(EngineDownError, match="replaced"):
            await waiting
        with suppress(EngineDownError):
            await held
        with pytest.raises(EngineDownError, match="replaced"):
            await batcher.infer(inputs)
        assert not await batcher.answers()


async def test_a_load_that_hangs_is_given_up_and_its_engine_freed(
    models: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = threading.Event()
    library.module.meanwhile = lambda: free.wait(60)
    monkeypatch.setattr("worker.loading.LOAD_S", 0.2)
    loading = asyncio.create_task(started(models).__aenter__())
    ladder = await loading
    try:
        assert ladder.current.rung == rung() == 1
        it_is_time(ladder)
        assert not await ladder.climb(), "the load has not come back"
        library.module.meanwhile = lambda: None
        free.set()
        async with asyncio.timeout(20):
            while ladder._loader.late(RTX):  # noqa: ASYNC110 (a late load announces nothing)
                await asyncio.sleep(0.01)
        library.driver.expect_clean()
        monkeypatch.setattr("worker.loading.LOAD_S", 30.0)
        it_is_time(ladder)
        assert await ladder.climb()
    finally:
        free.set()
        await ladder.close()
    library.driver.expect_clean()


async def test_risks_that_are_wrong_but_finite_are_found_while_a_new_version_takes_long_to_load(
    models: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "LOOK_S", 0.01)
    monkeypatch.setattr(serving, "PROVE_S", 0.05)
    stepped, load = steps(REFERENCE, "engine-down"), repository.load_unproved
    loading, free = threading.Event(), threading.Event()

    def slow(where: Path, config: ModelConfig, *more: Any, **named: Any) -> Engine:
        if config.version == 2:
            loading.set()
            free.wait(20)
        return load(where, config, *more, **named)

    monkeypatch.setattr(repository, "load_unproved", slow)
    async with started(models) as ladder:
        walk = Walk(ladder)
        await walk.process(records()[:HALF])
        beside = [asyncio.create_task(work) for work in (ladder.follow(), ladder.prove())]
        try:
            put(models, *small(2, note="second"))
            await asyncio.to_thread(loading.wait, 20)
            await asyncio.sleep(0.2)
            assert ladder.current.rung == 0, "it is proven, and right"
            engine = ladder.current.batcher.engine
            right = engine._execute

            def wrong(inputs: Mapping[str, F32], rows: int) -> dict[str, F32]:
                return {name: array * np.float32(0.9) for name, array in right(inputs, rows).items()}

            monkeypatch.setattr(engine, "_execute", wrong)
            async with asyncio.timeout(20):
                while ladder.current.rung == 0:  # noqa: ASYNC110 (a ladder announces nothing)
                    await asyncio.sleep(0.01)
            assert (ladder.current.config.version, rung()) == (1, 1)
            assert steps(REFERENCE, "engine-down") == stepped + 1
            await walk.process(records()[HALF:])
        finally:
            for task in beside:
                task.cancel()
            free.set()
    name_version(models, small()[0])
    assert bare(walk.outbox.messages) == (await undisturbed(models)).messages


async def test_a_worker_that_stops_closes_its_engine(models: Path) -> None:
    worker = Worker(settings(models, broker="127.0.0.1:9", http_port=0))
    running = asyncio.create_task(worker.run())
    async with asyncio.timeout(20):
        while not worker._ladder.started:  # noqa: ASYNC110 (a worker announces nothing)
            await asyncio.sleep(0.01)
    engine = worker._ladder.current.batcher.engine
    worker._stop.set()
    await running
    with pytest.raises(BackendError, match="closed"):
        engine.run(kinds.inputs_of(engine, 1))


@pytest.mark.parametrize("role", [Role.VITALS, Role.IMAGING])
async def test_a_worker_stops_while_it_loads(
    models: Path, monkeypatch: pytest.MonkeyPatch, role: Role
) -> None:
    image, graph = kinds.model_of("image")
    put(models, msgspec.structs.replace(image, name="picture"), graph)
    entered, free, closed = threading.Event(), threading.Event(), threading.Event()
    load = repository.load_unproved

    def slow(*arguments: Any, **named: Any) -> Engine:
        engine = load(*arguments, **named)
        close = engine.close

        def and_tell() -> None:
            close()
            closed.set()

        engine.close = and_tell  # type: ignore[method-assign]
        entered.set()
        free.wait(20)
        return engine

    monkeypatch.setattr(repository, "load_unproved", slow)
    more: dict[str, Any] = {"broker": "127.0.0.1:9", "http_port": 0, "imaging_model": "picture"}
    worker = Worker(settings(models, **more), role)
    ladder = worker._imaging._ladder if worker._imaging is not None else worker._ladder
    running = asyncio.create_task(worker.run())
    await asyncio.to_thread(entered.wait, 20)
    worker._stop.set()
    await asyncio.sleep(0.05)
    free.set()
    async with asyncio.timeout(20):
        await running
    assert not ladder.started
    assert closed.is_set()
