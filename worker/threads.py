"""Threads for what may hang: files on a mount, a vendor's library."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from engines.errors import BackendError

T = TypeVar("T")

_idle: list[ThreadPoolExecutor] = []
"""Of one thread each, kept for the next call: threads that come and go leave arenas of glibc's behind."""


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
    call.add_done_callback(lambda _: _idle.append(pool))  # not before the work ends, whoever is cancelled
    return asyncio.wrap_future(call)
