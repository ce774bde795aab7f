"""Blocking calls that may never return, in threads that nobody waits for.

A read from a hung mount cannot be interrupted. Its thread keeps its place until it returns, so that hung
calls use up their own few threads and no others; being a daemon it does not keep the process from ending.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

from worker import metrics

T = TypeVar("T")


def longest_s(seconds: float) -> float:
    """The longest that a call takes whose patience is `seconds`: for a free thread, and in it."""
    return 2 * seconds


class NoThreadError(Exception):
    """Every thread was taken for as long as the caller waits: the calls in them hang."""


class Threads:
    """At most `limit` threads at a time. Made and used in one event loop."""

    def __init__(self, source: str, limit: int) -> None:
        """source: label of what the threads wait for."""
        self._source = source
        self._free = asyncio.Semaphore(limit)

    async def call(self, function: Callable[[], T], seconds: float) -> T:
        """What `function` returns or raises.

        Raises:
            NoThreadError: no thread was free for `seconds`.
            TimeoutError: the call took longer than `seconds`; it may still be running.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._free.acquire()
        except TimeoutError:
            raise NoThreadError from None
        running = _Call(function, self._source, self._free)
        try:
            async with asyncio.timeout(seconds):
                return await running.outcome
        finally:
            running.leave()


class _Call(Generic[T]):
    def __init__(self, function: Callable[[], T], source: str, free: asyncio.Semaphore) -> None:
        self._loop = asyncio.get_running_loop()
        self._function = function
        self._free = free
        self._stuck = metrics.fetch_stuck_threads.labels(source)
        self._left = False
        self._ended = False
        self.outcome: asyncio.Future[T] = self._loop.create_future()
        threading.Thread(target=self._run, name=f"fetch-{source}", daemon=True).start()

    def leave(self) -> None:
        """The caller goes on without the outcome, or has it."""
        self._left = not self._ended
        if self._left:
            self._stuck.inc()

    def _run(self) -> None:
        settle: Callable[[], None]
        try:
            settle = partial(self.outcome.set_result, self._function())
        except BaseException as error:  # carried over to the caller
            settle = partial(self.outcome.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop is closed, and with it whoever waited
            self._loop.call_soon_threadsafe(self._end, settle)

    def _end(self, settle: Callable[[], None]) -> None:
        self._ended = True
        self._free.release()
        if self._left:
            self._stuck.dec()
        if not self.outcome.cancelled():
            settle()
