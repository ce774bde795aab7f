"""The GPU that engines share: its context, and the calls that are under way on it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from time import monotonic
from typing import Any

from engines.errors import BackendError
from engines.tensorrt_module import primary_context

HANGS_S = 5.0
"""Seconds. A call that takes longer may hang; no batch takes as long."""


class Device:
    """One GPU.

    Allocating and freeing wait for whatever the GPU does, and PyCUDA holds Python's interpreter meanwhile:
    beside a call that hangs, that would stop the whole process. So while one may hang, nothing is loaded, and
    what is to be freed waits.

    Threads: any.
    """

    def __init__(self, driver: Any) -> None:
        """`driver` is PyCUDA's, from `cuda_driver`; use `device`."""
        self._driver = driver
        self._lock = threading.Lock()
        self._calls: dict[object, float] = {}
        self._to_free: list[Callable[[], None]] = []

    @contextmanager
    def current(self) -> Iterator[None]:
        """The context is current in this thread."""
        context = primary_context(self._driver)
        context.push()
        try:
            yield
        finally:
            context.pop()

    @contextmanager
    def call(self) -> Iterator[None]:
        """A batch, with the context current. (A load may take long, and is no call.)"""
        name = object()
        with self._lock:
            self._calls[name] = monotonic()
        try:
            with self.current():
                yield
        finally:
            with self._lock:
                del self._calls[name]
                due = [] if self._hangs() else self._to_free
                self._to_free = [] if due else self._to_free
            for work in due:
                work()

    def refuse_hanging(self) -> None:
        """Raise BackendError while a call may hang."""
        with self._lock:
            if self._hangs():
                why = f"a call on the GPU has not come back for {HANGS_S:g} s"
                raise BackendError(f"{why}: nothing is loaded there until it does")

    def free(self, work: Callable[[], None]) -> None:
        """Free something now, or when no call may hang any more."""
        with self._lock:
            if self._hangs():
                self._to_free.append(work)
                return
        work()

    def _hangs(self) -> bool:
        return any(monotonic() - began > HANGS_S for began in self._calls.values())


_making = threading.Lock()


def device(driver: Any) -> Device:
    """The first GPU, one object for the process."""
    with _making:
        return _device(driver)


@cache
def _device(driver: Any) -> Device:
    return Device(driver)
