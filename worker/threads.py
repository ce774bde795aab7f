"""Threads for what may hang: files on a mount, a vendor's library."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from engines.errors import BackendError

T = TypeVar("T")

_idle: list[ThreadPoolExecutor] = []
"""Of one thread each, kept for the next call: threads that come and go leave arenas of glibc's behind."""

_under_way: set["Future[Any]"] = set()


def in_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """Do something slow in a thread that does nothing else: should it hang, no other work waits behind it.

    Raises:
        BackendError: no thread can be started.
    """
    pool = _idle.pop() if _idle else ThreadPoolExecutor(max_workers=1, thread_name_prefix="slow")
    try:
        call = pool.submit(work)
    except RuntimeError as error:
        pool.shutdown(wait=False)
        raise BackendError(
            f"nothing can be loaded or read: {error}; the machine is out of memory or threads"
        ) from error
    _under_way.add(call)

    def ended(_: object) -> None:  # not before the work ends, whoever is cancelled
        _under_way.discard(call)
        _idle.append(pool)

    call.add_done_callback(ended)
    return asyncio.wrap_future(call)


def hang(seconds: float) -> bool:
    """Whether anything is still under way after waiting so long for all of it; blocks."""
    return bool(wait(tuple(_under_way), seconds).not_done)
