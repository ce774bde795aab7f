"""A stand-in for `pycuda.driver` that runs nothing on a GPU and finds mistakes of ordering and of ownership.

What is queued runs only when the host synchronises with it, and then no more than what must have run by then:
memory that is read too early holds NaN or an older batch. Every operation carries a vector clock (stream ->
operations that surely ran before it), so two accesses of device memory that no event orders are a fault,
whichever of them happens to run first here. What one thread of the host has waited for, another does not know
of. Faults are collected: `expect_clean` raises them.

It says nothing about a GPU: no fake is evidence that one computes anything.
"""

import itertools
import threading
from collections.abc import Callable, Iterable
from enum import IntFlag
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

Clock = dict[int, int]


class Error(Exception):
    """Base of the driver's errors."""


class OutOfMemoryError(Error):
    """As `pycuda.driver.MemoryError`."""


class _EventFlags(IntFlag):
    DEFAULT = 0
    BLOCKING_SYNC = 1


class _Access(NamedTuple):
    stream: int
    place: int
    write: bool


class _Queued(NamedTuple):
    stream: int
    place: int
    run: Callable[[], None]
    uses: tuple["Memory", ...]


class Memory:
    """An allocation on the device or page-locked on the host; NaN until written."""

    def __init__(self, driver: "FakeDriver", shape: tuple[int, ...], address: int | None = None) -> None:
        self._array = np.full(shape, np.nan, np.float32)
        self.content = self._array.reshape(-1)
        self.address = address if address is not None else self.content.ctypes.data
        self.driver, self.freed = driver, False
        self.accesses: list[_Access] = []
        driver.live.append(self)

    def __int__(self) -> int:
        return self.address

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self._array.__array_interface__

    def free(self) -> None:
        if not self.driver.current():
            self.driver.faults.append("memory freed in a thread where its context is not current")
        if self.freed:
            self.driver.faults.append("memory freed twice")
            return
        if any(self in queued.uses for queued in self.driver.queue):
            self.driver.faults.append("memory freed while a queued operation uses it")
        self.freed = True
        self.driver.live.remove(self)


class FakeStream:
    """Operations in order, run at synchronisation."""

    def __init__(self, driver: "FakeDriver") -> None:
        self.driver, self.handle, self.clock = driver, next(driver.handles), Clock()
        self.made = False
        driver.make("stream")
        self.made = True
        driver.streams[self.handle] = self

    def wait_for_event(self, event: "FakeEvent") -> None:
        self.driver.require_current()
        _merge(self.clock, event.clock)

    def synchronize(self) -> None:
        self.driver.require_current()
        self.driver.host_waits(self.clock)

    def __del__(self) -> None:
        if self.made:
            self.driver.lost("stream")


class FakeEvent:
    """A place in a stream."""

    def __init__(self, driver: "FakeDriver", flags: int) -> None:
        self.driver, self.clock, self.recorded = driver, Clock(), 0
        self.spins = not flags & _EventFlags.BLOCKING_SYNC
        self.made = False
        driver.make("event")
        self.made = True

    def record(self, stream: FakeStream) -> None:
        self.driver.require_current()
        self.clock = dict(stream.clock)
        self.recorded = next(self.driver.handles)

    def synchronize(self) -> None:
        self.driver.require_current()
        if self.spins:
            self.driver.faults.append("a thread spins for an event")
        self.driver.host_waits(self.clock)

    def time_since(self, other: "FakeEvent") -> float:
        """Milliseconds: here, how many handles were given out between."""
        for event in (self, other):
            if not event.recorded or not _before(event.clock, self.driver.clock):
                self.driver.faults.append("time asked of an event that has not passed")
        return float(self.recorded - other.recorded)

    def __del__(self) -> None:
        if self.made:
            self.driver.lost("event")


class Context:
    """The primary context; a stack for each thread."""

    def __init__(self, driver: "FakeDriver") -> None:
        self._driver = driver

    def push(self) -> None:
        self._driver.stack().append(self)

    def pop(self) -> None:
        if not self._driver.stack():
            self._driver.faults.append("pop of an empty context stack")
            return
        self._driver.stack().pop()


class FakeDriver:
    """The calls of `pycuda.driver` that the engine makes.

    Attributes:
        fail_at: the number of the creating call that runs out of memory; None for none.
        made: creating calls so far.
    """

    Error = Error
    MemoryError = OutOfMemoryError
    event_flags = _EventFlags

    def __init__(self, capability: tuple[int, int] = (8, 9)) -> None:
        self.capability = capability
        self.faults: list[str] = []
        self.live: list[Memory] = []
        self.streams: WeakValueDictionary[int, FakeStream] = WeakValueDictionary()
        self.queue: list[_Queued] = []
        self.lock = threading.RLock()
        self.handles = itertools.count(1)
        self.fail_at: int | None = None
        self.made = 0
        self.retained = 0
        self.counts = {"stream": 0, "event": 0}
        self._addresses = itertools.count(1 << 20, 1 << 20)
        self._threads = threading.local()
        self.all_stacks: list[list[Context]] = []

    # What PyCUDA has.

    def init(self) -> None: ...

    def Device(self, number: int) -> "FakeDriver":
        assert number == 0
        return self

    def compute_capability(self) -> tuple[int, int]:
        return self.capability

    def retain_primary_context(self) -> Context:
        self.retained += 1
        return Context(self)

    def mem_get_info(self) -> tuple[int, int]:
        return 3 << 20, 8 << 20

    def pagelocked_empty(self, shape: tuple[int, ...], dtype: Any) -> NDArray[np.float32]:
        self.make("memory")
        memory = Memory(self, shape)
        array: NDArray[np.float32] = np.asarray(memory)
        owner: Any = array.base
        assert owner is memory
        assert array.dtype == dtype
        return array

    def mem_alloc(self, nbytes: int) -> Memory:
        self.make("memory")
        return Memory(self, (nbytes // 4,), next(self._addresses))

    def Stream(self, flags: int = 0) -> FakeStream:
        if flags != 1:
            self.faults.append("a stream that waits for the default stream")
        return FakeStream(self)

    def Event(self, flags: int = 0) -> FakeEvent:
        return FakeEvent(self, flags)

    def memcpy_htod_async(self, to: Memory, source: NDArray[np.float32], stream: FakeStream) -> None:
        pinned = self._pinned(source)

        def copy() -> None:
            to.content[: source.size] = source.reshape(-1)

        self.enqueue(stream, copy, reads=[pinned], writes=[to])

    def memcpy_dtoh_async(self, to: NDArray[np.float32], source: Memory, stream: FakeStream) -> None:
        pinned = self._pinned(to)

        def copy() -> None:
            to[...] = source.content[: to.size].reshape(to.shape)

        self.enqueue(stream, copy, reads=[source], writes=[pinned])

    # What stands behind it.

    def stack(self) -> list[Context]:
        if not hasattr(self._threads, "stack"):
            self._threads.stack = []
            self.all_stacks.append(self._threads.stack)
        stack: list[Context] = self._threads.stack
        return stack

    @property
    def clock(self) -> Clock:
        """Of the thread that asks: what it has waited for."""
        if not hasattr(self._threads, "clock"):
            self._threads.clock = Clock()
        clock: Clock = self._threads.clock
        return clock

    def current(self) -> bool:
        return bool(self.stack())

    def require_current(self) -> None:
        if not self.current():
            raise Error("no context is current in this thread")

    def make(self, what: str) -> None:
        """Count a creating call, and fail if it is to."""
        self.require_current()
        self.made += 1
        if self.made == self.fail_at:
            raise OutOfMemoryError("out of memory")
        if what in self.counts:
            self.counts[what] += 1

    def lost(self, what: str) -> None:
        self.counts[what] -= 1
        if not self.current():
            self.faults.append(f"{what} destroyed in a thread where its context is not current")

    def at(self, address: int) -> Memory:
        """The device memory that starts there."""
        for memory in self.live:
            if memory.address == address:
                return memory
        raise AssertionError("an address of no allocation that lives")

    def enqueue(
        self, stream: FakeStream, run: Callable[[], None], reads: Iterable[Memory], writes: Iterable[Memory]
    ) -> None:
        self.require_current()
        reads, writes = tuple(reads), tuple(writes)
        with self.lock:
            _merge(stream.clock, self.clock)
            index = stream.clock[stream.handle] = stream.clock.get(stream.handle, 0) + 1
            for memory in (*reads, *writes):
                self._touch(memory, _Access(stream.handle, index, memory in writes), stream.clock)
            self.queue.append(_Queued(stream.handle, index, run, (*reads, *writes)))

    def host_waits(self, clock: Clock) -> None:
        """Run what must have run by then, no more, and let the thread know of it."""
        with self.lock:
            due = [queued for queued in self.queue if queued.place <= clock.get(queued.stream, 0)]
            self.queue = [queued for queued in self.queue if queued not in due]
            for queued in due:
                if any(memory.freed for memory in queued.uses):
                    self.faults.append("an operation ran on freed memory")
                queued.run()
        _merge(self.clock, clock)

    def expect_clean(self, *, closed: bool = True) -> None:
        """Raise what was found; with `closed`, also what still lives or waits."""
        assert not self.faults, self.faults
        assert not any(self.all_stacks), "a context was left on a thread's stack"
        if closed:
            assert not self.live, f"{len(self.live)} allocations were never freed"
            assert self.counts == {"stream": 0, "event": 0}
            assert not self.queue, "operations never ran"

    def _touch(self, memory: Memory, access: _Access, clock: Clock) -> None:
        if memory.freed:
            self.faults.append("an operation is queued on freed memory")
        for before in memory.accesses:
            if (before.write or access.write) and clock.get(before.stream, 0) < before.place:
                self.faults.append(f"no event orders {before} and {access}")
        if access.write:
            memory.accesses.clear()
        memory.accesses.append(access)

    def _pinned(self, array: NDArray[np.float32]) -> Memory:
        start, end = array.ctypes.data, array.ctypes.data + array.nbytes
        for memory in self.live:
            if memory.address <= start and end <= memory.address + memory.content.nbytes:
                return memory
        raise Error("an asynchronous copy needs page-locked memory that lives")


def _merge(clock: Clock, other: Clock) -> None:
    for stream, index in other.items():
        clock[stream] = max(clock.get(stream, 0), index)


def _before(clock: Clock, other: Clock) -> bool:
    return all(other.get(stream, 0) >= index for stream, index in clock.items())
