"""A worker that stops leaves behind what hangs, and says so."""

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import pytest

from tests.worker.ladders import settings
from worker import cli, role, threads


class Stubborn:
    """A Faust app that takes no notice of being cancelled while it stops, until it is let go."""

    def __init__(self) -> None:
        self.free = asyncio.Event()

    async def start(self) -> None:
        """Nothing to start."""

    async def wait_until_stopped(self) -> None:
        await asyncio.Event().wait()

    async def stop(self) -> None:
        while not self.free.is_set():
            with suppress(asyncio.CancelledError):
                await self.free.wait()


class NoLanes:
    async def run(self) -> None:
        await asyncio.Event().wait()

    async def stop(self, seconds: float) -> None:
        """Nothing to hold."""


async def test_faust_that_does_not_stop_is_left(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(role, "STOP_S", 0.1)
    app, stop, beside = Stubborn(), asyncio.Event(), list[Coroutine[Any, Any, None]]()
    stop.set()
    lanes: Any = NoLanes()
    async with asyncio.timeout(10):
        await role.serve_app(settings(tmp_path), app, lanes, stop, beside)
        assert "Faust did not stop in time" in capsys.readouterr().out
        assert await cli._tasks_hang()
        app.free.set()
        await asyncio.sleep(0)
        assert not await cli._tasks_hang()


async def test_work_that_hangs_is_known_and_idle_threads_are_not_taken_for_it() -> None:
    free = threading.Event()
    await threads.in_thread(lambda: None)
    assert not threads.hang(0.5)
    call = threads.in_thread(free.wait)
    assert threads.hang(0.05)
    free.set()
    await call
    assert not threads.hang(0.5)
