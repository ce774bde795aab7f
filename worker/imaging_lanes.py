"""One lane for each partition of the imaging topic: many records on their way, commits without gaps.

A lane has no state of patients. It remembers of each record since the low-water mark whether it is done;
what is committed is the offset before which all are. A record that takes long, because its source is away,
holds up the commit and nothing else, until `WINDOW` records or the bytes that all lanes share are used up:
then the partition is fetched no further until it is done. A worker that ends reads again from the low-water
mark; what was scored meanwhile is remembered (`imaging_memory.py`) and not scored twice.
"""

import asyncio
import time
from collections import deque
from typing import Protocol

import structlog

from worker import metrics
from worker.decode import Record
from worker.errors import RetryError
from worker.imaging import Fate
from worker.imaging_steps import Step, begins, follow
from worker.lanes import LOOK_S, RETRY_S, Consumer, seek
from worker.partition import Place
from worker.transport import Chunk

WINDOW = 1024
"""Records between the low-water mark and the newest, per partition; those done hold some 100 bytes."""

DRAIN_S = 2.0
"""How long records on their way are waited for when a partition is let go: the group waits meanwhile, and
what is cut short is read again by the next owner."""

log = structlog.get_logger("riskstream.imaging")


class Room:
    """Bytes of records that are on their way, of all lanes together.

    A partition is fetched while there is any room, so the bytes may exceed the limit by a fetch of each.
    """

    def __init__(self, limit: int) -> None:
        self.held = 0
        self._limit = limit

    @property
    def left(self) -> bool:
        """Whether more may be fetched."""
        return self.held < self._limit


class Path(Protocol):
    """What takes records."""

    async def take(self, place: Place, record: Record) -> Fate: ...


class ImagingStages:
    """What every lane works with; `interval_s` is the time between a lane's commits."""

    def __init__(self, path: Path, consumer: Consumer, room: Room, interval_s: float) -> None:
        self.path = path
        self.consumer = consumer
        self.room = room
        self.interval_s = interval_s


class _Entry:
    """A record since the low-water mark."""

    __slots__ = ("done", "offset", "step")

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.done = False
        self.step = Step()


class ImagingLane:
    """One partition's records on their way, and its commits."""

    def __init__(self, place: Place, stages: ImagingStages) -> None:
        self.place = place
        self.stuck_since: float | None = None
        self._stages = stages
        self._window: deque[_Entry] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._low = -1
        self._committed = -1
        self._expected = 0
        self._accepting = False
        self._held = False
        self._doubtful = False
        self._error: BaseException | None = None
        self._nothing_since: float | None = None
        self._end = 0
        self._labels = (place.topic, str(place.partition))
        self._task = asyncio.create_task(self._start(), name=f"imaging-{place.partition}")
        self._ticks = asyncio.create_task(self._tick(), name=f"imaging-ticks-{place.partition}")

    @property
    def ready(self) -> bool:
        """Whether the partition is being read."""
        return self._low >= 0

    @property
    def has_room(self) -> bool:
        """Whether another chunk may be fetched."""
        return self._accepting and len(self._window) < WINDOW and self._stages.room.left

    @property
    def full(self) -> bool:
        """Whether chunks may not be fetched only because enough is here."""
        return self._accepting and not self.has_room

    def lag(self) -> int | None:
        """Records in the log from the low-water mark on; None when not known yet."""
        end = max(self._stages.consumer.log_end(self.place) or 0, self._end)
        return max(end - self._low, 0) if end and self._low >= 0 else None

    def put(self, chunk: Chunk) -> None:
        """Start on a chunk that follows what came before; else seek again."""
        if not self._accepting:
            return
        if chunk.start != self._expected:
            self._accepting = False
            self._task = asyncio.create_task(self._seek(self._expected), name=f"seek-{self.place.partition}")
            return
        self._expected = chunk.end
        for record in chunk.records:
            entry = _Entry(record.offset)
            self._window.append(entry)
            task = asyncio.create_task(self._take(entry, record), name=f"image-{self.place.partition}")
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    async def hold(self, seconds: float) -> None:
        """Finish what can be finished soon, commit, and touch the partition no more; twice is once."""
        self._accepting = False
        self._held = True
        try:
            async with asyncio.timeout(seconds):
                if self._tasks:
                    await asyncio.wait(self._tasks, timeout=min(DRAIN_S, seconds / 2))
                await self._let_go()
                await self.commit()
        except TimeoutError:
            log.warning("partition held without a commit", partition=self.place.partition)
        finally:
            await self._let_go()

    def resume(self) -> None:
        """Go on with a partition that the group has given back, from what is committed."""
        if self._held:
            self._held = False
            self._restart(doubtful=False)

    def close(self) -> None:
        """Drop a held partition."""
        self._ticks.cancel()
        for gauge in (metrics.partition_ready, metrics.lag):
            gauge.labels(*self._labels).set(0)

    async def stop(self, seconds: float) -> None:
        """Hold, then drop."""
        await self.hold(seconds)
        self.close()
        await asyncio.gather(self._ticks, return_exceptions=True)

    def failure(self) -> BaseException | None:
        """What ended the lane, if anything did."""
        for task in (self._task, self._ticks):
            if task.done() and not task.cancelled() and task.exception() is not None:
                return task.exception()
        return self._error

    def watch(self) -> None:
        """Note since when the oldest step of a record goes on, or nothing comes that is there; never waits.

        What is away is no standstill of this process: a restart would mend nothing. Nor is a picture that is
        tried again, a step each: its tries would begin anew, and never come to an end. What other partitions
        or other pictures do makes up for nothing.
        """
        lag, under_way = self.lag(), [entry.step.since for entry in self._window if not entry.done]
        if under_way or not lag or not self._stages.room.left:  # what takes the room is watched itself
            self._nothing_since = None
        elif self._nothing_since is None:
            self._nothing_since = time.perf_counter()
        self.stuck_since = min(
            (since for since in under_way if since is not None), default=self._nothing_since
        )
        if lag is not None:
            metrics.lag.labels(*self._labels).set(lag)

    async def commit(self) -> None:
        """Commit the low-water mark, if it has moved."""
        low = self._low
        if low < 0 or low == self._committed:
            return
        started = time.perf_counter()
        try:
            if await self._stages.consumer.commit_offset(self.place, low, ""):
                self._committed = low
                metrics.checkpoint_duration.observe(time.perf_counter() - started)
                return
        except RetryError as error:
            metrics.checkpoint_failures.labels(error.reason).inc()
            return
        metrics.checkpoint_failures.labels("commit").inc()
        log.warning("partition taken over", partition=self.place.partition)
        if not self._held:
            self._restart(doubtful=True)

    async def _take(self, entry: _Entry, record: Record) -> None:
        follow(entry.step)
        begins()
        room, size = self._stages.room, len(record.value or b"")
        room.held += size
        try:
            fate = await self._stages.path.take(self.place, record)
        finally:
            room.held -= size
        metrics.records.labels(self.place.topic, fate).inc()
        entry.done = True
        while self._window and self._window[0].done:
            self._low = self._window.popleft().offset + 1

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._error = self._error or task.exception()

    async def _let_go(self) -> None:
        """Cut short what is on its way."""
        tasks = [self._task, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._window.clear()

    def _restart(self, *, doubtful: bool) -> None:
        """Start over from what is committed; if doubtful, once the group lets this worker commit."""
        self._accepting = False
        self._doubtful = self._doubtful or doubtful
        before = self._task
        self._task = asyncio.create_task(self._start_over(before), name=f"imaging-{self.place.partition}")

    async def _start_over(self, before: "asyncio.Task[None]") -> None:
        before.cancel()
        tasks = [before, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._start()

    async def _start(self) -> None:
        self._window.clear()
        self._low = self._committed = -1
        metrics.partition_ready.labels(*self._labels).set(0)
        while True:
            try:
                position = await self._position()
                break
            except RetryError as error:
                log.warning(
                    "partition cannot be read yet", partition=self.place.partition, reason=error.reason
                )
                await asyncio.sleep(RETRY_S)
        self._low = position
        await self._seek(position)
        metrics.partition_ready.labels(*self._labels).set(1)
        log.info("partition is read", partition=self.place.partition, position=position)

    async def _position(self) -> int:
        """Where to read on: what is committed, if the log still has it; else the log's first record."""
        consumer = self._stages.consumer
        committed = await consumer.committed_offset(self.place)
        if committed is None:
            self._committed = (await consumer.log_range(self.place, 0))[0]
            return self._committed
        if self._doubtful and not await consumer.commit_offset(self.place, committed.offset, ""):
            raise RetryError("the group no longer lets this worker commit")
        self._doubtful = False
        first, end = await consumer.log_range(self.place, committed.offset)
        if not first <= committed.offset <= end:
            return first
        self._committed = committed.offset
        return committed.offset

    async def _seek(self, offset: int) -> None:
        await seek(self._stages.consumer, self.place, offset)
        self._expected = offset
        self._accepting = not self._held

    async def _tick(self) -> None:
        """Commit for ever; ask now and then where the log ends, in case fetching has stalled."""
        looked = time.perf_counter()
        while True:
            await asyncio.sleep(self._stages.interval_s)
            if self._held:
                continue
            await self.commit()
            if time.perf_counter() - looked > LOOK_S:
                looked = time.perf_counter()
                try:
                    _, self._end = await self._stages.consumer.log_range(self.place, 0)
                except RetryError:
                    continue
