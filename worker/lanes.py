"""One lane for each partition this worker owns: its chunks, one after the other, and its checkpoints.

A lane restores its partition, seeks to where that starts, then takes chunks until it is held: for as long as
the group rebalances, or for good. A partition that the group gives back goes on from memory. The three fates
of an error are decided here, by class: `RetryError` waits and goes on, `OwnershipError` throws the
partition's memory away and starts over, anything else stops the process.

An engine that does not answer holds up nothing but the model's part: the lane reads on for NEWS2's sake, and
starts over from its last checkpoint once the engine answers, so that every record gets its score and alerts.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import structlog

from worker import metrics
from worker.alert_log import LastAlerts
from worker.checkpoint import Checkpointer, Committer
from worker.decode import Record
from worker.errors import OwnershipError, RetryError
from worker.partition import Partition, Place
from worker.pipeline import Pipeline
from worker.restore import Log, Restorer, adopt_episodes
from worker.transport import Chunk

OUTSTANDING = 2
"""Chunks a lane holds: the one at work and the next one, so that the fetch overlaps the work."""

EXPIRY_SLACK_MS = 3_600_000
"""How far stream time must be past an expiry before a timer publishes it: late records come first."""

LOOK_S = 15.0
"""Between two questions to the broker where the log ends; fetches say it too, while they come."""

RETRY_S = 1.0
"""Wait before a lane tries again what its dependencies refused."""

log = structlog.get_logger("riskstream.lanes")


class Consumer(Log, Committer, Protocol):
    """What lanes ask of the consumer."""

    async def seek_offset(self, place: Place, offset: int) -> None: ...
    def log_end(self, place: Place) -> int | None: ...


async def seek(consumer: Consumer, place: Place, offset: int) -> None:
    """Have a partition fetched from an offset on, however long the consumer refuses."""
    while True:
        try:
            await consumer.seek_offset(place, offset)
            return
        except RetryError as error:
            log.warning("cannot seek yet", partition=place.partition, reason=error.reason)
            await asyncio.sleep(RETRY_S)


AlertLog = Callable[[Place, int], Awaitable[LastAlerts]]


class Lane:
    """One partition's worker task.

    partition: its memory; none while it is restored for the first time or anew.
    """

    def __init__(self, place: Place, stages: "Stages") -> None:
        self.place = place
        self.partition: Partition | None = None
        self.moved_at = time.perf_counter()
        self._stages = stages
        self._chunks: asyncio.Queue[Sequence[Record] | None] = asyncio.Queue()
        self._outstanding = 0
        self._expected = 0
        self._accepting = False
        self._rebuilding = False
        self._doubtful = False
        self._warned = 0
        self._held = False
        self._task = asyncio.create_task(self._run(), name=f"lane-{place.partition}")
        self._ticks = asyncio.create_task(self._tick(), name=f"ticks-{place.partition}")
        self._labels = (place.topic, str(place.partition))
        self.stuck_since: float | None = None
        self._watched = -1
        self._end = 0

    @property
    def ready(self) -> bool:
        """Whether the partition's state is restored and live."""
        return self.partition is not None and not self.partition.replaying

    @property
    def has_room(self) -> bool:
        """Whether another chunk may be fetched."""
        return self._accepting and self._outstanding < OUTSTANDING

    @property
    def full(self) -> bool:
        """Whether chunks may not be fetched only because enough are here."""
        return self._accepting and self._outstanding >= OUTSTANDING

    @property
    def floored(self) -> bool:
        """Whether NEWS2 answers alone."""
        return self.partition is not None and self.partition.unanswered is not None

    def lag(self) -> int | None:
        """Records in the log that the model has not answered; None when not known yet."""
        return None if self.partition is None else self._behind(self.partition.answered)

    def _behind(self, position: int) -> int | None:
        end = max(self._stages.consumer.log_end(self.place) or 0, self._end)
        return max(end - position, 0) if end else None

    def put(self, chunk: Chunk) -> None:
        """Take a chunk that follows what came before; else seek again, once what is here is done."""
        if not self._accepting:
            return
        if chunk.start != self._expected:
            self._accepting = False
            self._chunks.put_nowait(None)
            return
        self._expected = chunk.end
        self._outstanding += 1
        self._chunks.put_nowait(chunk.records)

    async def hold(self, seconds: float) -> None:
        """Finish the chunk at work and checkpoint, within a deadline; touch the partition no more.

        Its memory stays for `resume`, unless it is not whole. Holding twice is holding once.
        """
        self._accepting = False
        self._held = True
        partition = self.partition
        stored = False
        try:
            async with asyncio.timeout(seconds):
                if partition is not None:
                    async with partition.lock:
                        self._task.cancel()
                    stored = await self._stages.checkpointer.checkpoint(partition)
        except (TimeoutError, OwnershipError):
            self.partition = None
        finally:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if partition is not None and not stored:
            log.warning("partition held without a checkpoint", partition=self.place.partition)
        if partition is not None and not (partition.whole and partition.unanswered is None):
            self.partition = None

    def resume(self) -> None:
        """Go on with a partition that the group has given back; a lane that is not held goes on anyway."""
        if not self._held:
            return
        self._held = False
        self._warned = 0
        self._task = asyncio.create_task(self._run(), name=f"lane-{self.place.partition}")

    def close(self) -> None:
        """Drop a held partition."""
        self._ticks.cancel()
        self.partition = None
        # What this process says of a partition that it no longer has would be added to its owner's.
        for gauge in (metrics.partition_ready, metrics.lag, metrics.patients, metrics.floor_active):
            gauge.labels(*self._labels).set(0)

    async def stop(self, seconds: float) -> None:
        """Hold, then drop."""
        await self.hold(seconds)
        self.close()
        await asyncio.gather(self._ticks, return_exceptions=True)

    def failure(self) -> BaseException | None:
        """What ended the lane, if anything did."""
        for task in (self._task, self._ticks):
            if task.done() and not task.cancelled():
                return task.exception()
        return None

    def watch(self) -> None:
        """Note since when there has been something to do and nothing has moved; never waits."""
        lag, position = self.lag(), self.partition.position if self.partition is not None else -1
        unread = None if self.partition is None else self._behind(position)
        if not unread or position != self._watched:
            self.stuck_since = None
        elif self.stuck_since is None:
            self.stuck_since = time.perf_counter()
        self._watched = position
        if lag is not None:
            metrics.lag.labels(*self._labels).set(lag)
        metrics.floor_active.labels(*self._labels).set(self.floored)
        if self.partition is not None:
            metrics.patients.labels(*self._labels).set(len(self.partition.patients))

    async def _tick(self) -> None:
        """Checkpoint for ever; ask now and then where the log ends, in case fetching has stalled."""
        looked = time.perf_counter()
        while True:
            await asyncio.sleep(self._stages.interval_s)
            if self._held:
                continue
            if time.perf_counter() - looked > LOOK_S:
                looked = time.perf_counter()
                try:
                    _, self._end = await self._stages.consumer.log_range(self.place, 0)
                except RetryError:
                    continue
            await self.checkpoint(caught_up=self.lag() == 0)
            await self._leave_floor()

    async def checkpoint(self, *, caught_up: bool) -> None:
        """Publish what has expired in silence, then checkpoint.

        Stream time is the partition's; once the lane is caught up it runs on with the wall.
        """
        partition = self.partition
        if partition is None or partition.replaying:
            return
        try:
            idle_ms = round((time.perf_counter() - self.moved_at) * 1000) if caught_up else 0
            async with partition.lock:
                now_ms = partition.stream_ms() + idle_ms - EXPIRY_SLACK_MS
                if not self._held:
                    await self._stages.pipeline.expire_silent(partition, now_ms)
            if not self._held:
                await self._stages.checkpointer.checkpoint(partition)
        except OwnershipError:
            log.warning("partition taken over", partition=self.place.partition)
            self._restart(doubtful=True)

    async def _leave_floor(self) -> None:
        """Start over with the model, if NEWS2 answers alone and the engine has come back."""
        partition = self.partition
        if partition is None or partition.unanswered is None or not await self._stages.answers():
            return
        async with partition.lock:
            log.info("the model answers again", partition=self.place.partition, records=self.lag())
            self._warned = partition.position
            self._restart(doubtful=False)

    def _restart(self, *, doubtful: bool) -> None:
        """Start over; if doubtful, once the group has said that the partition is still this worker's.

        A held lane starts over when it is resumed.
        """
        self._accepting = False
        self._doubtful = doubtful
        self.partition = None
        if self._held:
            return
        self._task.cancel()
        self._task = asyncio.create_task(self._run(), name=f"lane-{self.place.partition}")

    async def _run(self) -> None:
        partition = await self._restore()
        while True:
            records = await self._chunks.get()
            if records is None:
                await self._seek(self._expected)
                continue
            answered = not self.floored
            async with partition.lock:
                before, after = _split(records, partition)
                if before:
                    await self._stages.pipeline.process(partition, before)
                if after:
                    # Offsets have gaps, so the first live record may lie beyond `live_from`.
                    partition.position = max(partition.position, partition.live_from)
                if self._rebuilding and not partition.replaying:
                    await self._finish_rebuild(partition)
                if after:
                    await self._stages.pipeline.process(partition, after)
            if answered and self.floored:
                log.error("the model does not answer: NEWS2 alone", partition=self.place.partition)
            self._outstanding -= 1
            self.moved_at = time.perf_counter()

    async def _restore(self) -> Partition:
        self._chunks = asyncio.Queue()
        self._outstanding = 0
        stages = self._stages
        while True:
            try:
                if self._doubtful and not await self._is_ours():
                    await asyncio.sleep(RETRY_S)
                    continue
                self._doubtful = False
                kept = await self._kept()
                if kept is not None:
                    partition = kept
                else:
                    self.partition = None
                    partition, self._rebuilding = await stages.restorer.restore(self.place)
                    partition.warned = self._warned
                if self._rebuilding and not partition.replaying:
                    await self._finish_rebuild(partition)
                break
            except (RetryError, OwnershipError) as error:
                self._doubtful = self._doubtful or isinstance(error, OwnershipError)
                log.warning(
                    "partition cannot be restored yet", partition=self.place.partition, reason=error.reason
                )
                await asyncio.sleep(RETRY_S)
        self.partition = partition
        self.moved_at = time.perf_counter()
        await self._seek(partition.position)
        metrics.partition_ready.labels(*self._labels).set(not partition.replaying)
        log.info(
            "partition restored" if kept is None else "partition kept",
            partition=self.place.partition,
            position=partition.position,
            live_from=partition.live_from,
            patients=len(partition.patients),
        )
        return partition

    async def _kept(self) -> Partition | None:
        """The memory from before a rebalance, unless somebody else has gone on with the partition since.

        It is true to the log in any case, and what is stored stays fenced; this spares messages coming twice.
        """
        if self.partition is None:
            return None
        committed = await self._stages.consumer.committed_offset(self.place)
        if (committed.offset if committed is not None else -1) != self.partition.committed:
            return None
        metrics.restores.labels("kept").inc()
        return self.partition

    async def _is_ours(self) -> bool:
        """Whether the group lets this worker commit what is committed already.

        A worker that was away must not take the state from its successor; it waits to be revoked.
        """
        consumer = self._stages.consumer
        committed = await consumer.committed_offset(self.place)
        if committed is None:
            return True
        return await consumer.commit_offset(self.place, committed.offset, committed.metadata)

    async def _seek(self, offset: int) -> None:
        """Read on from an offset. A fetch may be on its way meanwhile; `put` tells what it brings."""
        await seek(self._stages.consumer, self.place, offset)
        self._expected = offset
        self._accepting = True

    async def _finish_rebuild(self, partition: Partition) -> None:
        while True:
            try:
                last = await self._stages.alert_log(self.place, partition.live_from)
                break
            except RetryError as error:
                log.warning(
                    "alert log cannot be read yet", partition=self.place.partition, reason=error.reason
                )
                await asyncio.sleep(RETRY_S)
        adopt_episodes(partition, last, self._stages.pipeline.policies)
        self._rebuilding = False
        metrics.partition_ready.labels(*self._labels).set(1)
        log.info(
            "partition rebuilt from the log", partition=self.place.partition, patients=len(partition.patients)
        )


class Stages:
    """What every lane works with."""

    def __init__(
        self,
        pipeline: Pipeline,
        restorer: Restorer,
        checkpointer: Checkpointer,
        consumer: Consumer,
        alert_log: AlertLog,
        answers: Callable[[], Awaitable[bool]],
        interval_s: float = 1.0,
    ) -> None:
        """`answers` says whether the engine does; `interval_s` is the time between a lane's checkpoints."""
        self.answers = answers
        self.interval_s = interval_s
        self.pipeline = pipeline
        self.restorer = restorer
        self.checkpointer = checkpointer
        self.consumer = consumer
        self.alert_log = alert_log


def _split(records: Sequence[Record], partition: Partition) -> tuple[Sequence[Record], Sequence[Record]]:
    """The records from the partition's position on: those before it goes live, and the others."""
    fresh = [record for record in records if record.offset >= partition.position]
    live = next((i for i, record in enumerate(fresh) if record.offset >= partition.live_from), len(fresh))
    return fresh[:live], fresh[live:]
