"""Watches the tasks of batchers: one that dies serves nobody any more, and nobody hears of it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def none_dies() -> Iterator[None]:
    """For batchers that are made, and closed, within."""
    runners: list[asyncio.Task[None]] = []

    def noting(loop: Any, work: Any, **more: Any) -> "asyncio.Task[Any]":
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **more)
        if work.__qualname__ == "Batcher._run":
            runners.append(task)
        return task

    asyncio.get_running_loop().set_task_factory(noting)
    yield
    assert runners
    for runner in runners:
        assert runner.cancelled() or runner.exception() is None
