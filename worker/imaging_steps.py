"""What a picture on its way does: a step of its own, which takes only so long, or waiting, without limit.

The lane gives each record a `Step` and looks at it; the stages that the record passes say `begins()`, and
`waiting()` around what others must do first: give a place back, come back, answer. A record whose step is
older than any may be is stuck, whatever others do; one that waits is not, because whoever it waits for is
looked at too. The step goes with the record's task (a context variable), so no stage is handed it.
"""

import time
from asyncio import Lock, Semaphore
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar


class Step:
    """since: when the step under way began, by `perf_counter`; None while the record waits."""

    __slots__ = ("since",)

    def __init__(self) -> None:
        self.since: float | None = time.perf_counter()


_current: ContextVar[Step | None] = ContextVar("step", default=None)


def follow(step: Step) -> None:
    """Have the stages of the task that runs now tell what they do to `step`."""
    _current.set(step)


def begins() -> None:
    """The record begins a step."""
    step = _current.get()
    if step is not None:
        step.since = time.perf_counter()


@contextmanager
def waiting() -> Iterator[None]:
    """The record waits for its turn or for what is away; a step begins where it ends. Not one in another."""
    step = _current.get()
    if step is not None:
        step.since = None
    try:
        yield
    finally:
        begins()


@asynccontextmanager
async def turn(of: Lock | Semaphore) -> AsyncIterator[None]:
    """Hold `of`, which the record waits for."""
    with waiting():
        await of.acquire()
    try:
        yield
    finally:
        of.release()
