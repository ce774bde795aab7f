"""Offsets and changed state -> Redis, then the Kafka commit.

The order is the delivery contract:

    1. A chunk is applied to memory, scored and decided.            (pipeline)
    2. Its alerts, scores and dead letters are confirmed.           (pipeline)
    3. What changed is written to Redis, stamped, then the marker.  (`_store`)
    4. The offset is committed.                                     (`_commit`)

Killed after 2 or 3, the next owner reads records again: those a patient's stamp covers are skipped, the
others give the same alerts with the same ids. A snapshot is taken between chunks and written while the
next ones go on, so publishing never waits for Redis.
"""

import time
from typing import NamedTuple, Protocol

import structlog

from schemas.window import WINDOW_BINS
from worker import metrics
from worker.codec import encode_bin, encode_hot
from worker.errors import OwnershipError, RetryError, StoreError
from worker.partition import Partition, Place
from worker.patient import Patient
from worker.store import Store, Write, digest

log = structlog.get_logger("riskstream.checkpoint")


class Committer(Protocol):
    """The consumer's side of a commit."""

    async def commit_offset(self, place: Place, offset: int, metadata: str) -> bool:
        """Commit; False when the group no longer lets this worker."""
        ...


class Snapshot(NamedTuple):
    """A partition's changes at one position; `ids` and `gone` are the patients written and deleted."""

    position: int
    newest_ms: int
    writes: list[Write]
    ids: list[str]
    gone: list[str]


class Checkpointer:
    """Takes snapshots and makes them durable, one at a time for each partition.

    failing: whether the last attempt of any partition was not completed.
    """

    def __init__(self, store: Store, committer: Committer) -> None:
        self._store = store
        self._committer = committer
        self.redis_up = False
        self.failing = False

    async def checkpoint(self, partition: Partition) -> bool:
        """Make the partition durable up to its position.

        False when Redis or Kafka is away: try again. False too while it replays, and while NEWS2 answers
        alone: its memory is not whole then.

        Raises:
            OwnershipError: another worker owns the partition.
        """
        async with partition.checkpointing:
            if partition.replaying or partition.unanswered is not None:
                return False
            return await self._checkpoint(partition)

    async def _checkpoint(self, partition: Partition) -> bool:
        started = time.perf_counter()
        try:
            if partition.lease is None:
                await self._take_over(partition)
            async with partition.lock:
                if partition.unanswered is not None:
                    return False  # the engine fell silent while this waited for the chunk
                if not partition.whole:
                    raise OwnershipError("a chunk was given up halfway; the partition is thrown away")
                partition.forget_silent()
                if partition.position == partition.committed and not partition.dirty and not partition.gone:
                    return True
                snapshot = self._snapshot(partition)
            await self._store_snapshot(partition, snapshot)
            self._redis(True, "")
            await self._commit(partition, snapshot)
            self.failing = False
        except RetryError as error:
            self.failing = True
            if isinstance(error, StoreError):
                self._redis(False, str(error))
            metrics.checkpoint_failures.labels(error.reason).inc()
            return False
        metrics.checkpoint_duration.observe(time.perf_counter() - started)
        metrics.checkpoint_bytes.inc(
            sum(len(w.hot) + sum(map(len, w.bins.values())) for w in snapshot.writes)
        )
        return True

    async def _take_over(self, partition: Partition) -> None:
        """Become the writer of a partition that has none, and write all of it again.

        The commit proves that this worker still owns the partition: a worker that was away must not take
        the state from its successor.
        """
        place = partition.place
        if not await self._committer.commit_offset(place, max(partition.committed, 0), partition.metadata):
            raise OwnershipError("the group no longer lets this worker commit")
        lease, _ = await self._store.acquire(place)
        if await self._store.discard(place, lease) != "ok":
            raise OwnershipError("another worker has taken the partition's state over")
        async with partition.lock:
            partition.lease = lease
            partition.gone.clear()
            for key, patient in partition.patients.items():
                partition.dirty.add(key)
                patient.stored_bins.clear()
                patient.dirty_bins = patient.filled_bins()

    async def _store_snapshot(self, partition: Partition, snapshot: Snapshot) -> None:
        assert partition.lease is not None
        try:
            verdict = await self._store.save(
                partition.place, partition.lease, snapshot.writes, snapshot.position, snapshot.newest_ms
            )
        except BaseException:
            _undo(partition, snapshot)
            raise
        if verdict == "fenced":
            raise OwnershipError("Redis has another token: another worker's, or an older copy's")
        if verdict == "missing":
            _undo(partition, snapshot)
            partition.lease = None
            metrics.restores.labels("rewritten").inc()
            raise StoreError("Redis has lost the partition's marker; everything is written again")

    async def _commit(self, partition: Partition, snapshot: Snapshot) -> None:
        place = partition.place
        metadata = str(snapshot.newest_ms) if snapshot.newest_ms else ""
        if not await self._committer.commit_offset(place, snapshot.position, metadata):
            metrics.checkpoint_failures.labels("commit").inc()
            raise OwnershipError("the group no longer lets this worker commit")
        partition.committed, partition.metadata = snapshot.position, metadata

    def _snapshot(self, partition: Partition) -> Snapshot:
        ids = sorted(partition.dirty)
        writes = [_write(partition.patients[key], partition) for key in ids]
        gone = sorted(partition.gone - partition.patients.keys())
        writes += [Write(digest(key), b"", {}, ()) for key in gone]
        partition.dirty = set()
        partition.gone = set()
        return Snapshot(partition.position, partition.stream_ms(), writes, ids, gone)

    def _redis(self, up: bool, why: str) -> None:
        if up != self.redis_up:
            log.info("checkpoints are written" if up else "checkpoints wait, alerts go on", why=why)
        self.redis_up = up
        metrics.redis_up.set(up)


def _write(patient: Patient, partition: Partition) -> Write:
    patient.applied = partition.position
    window = range(patient.open - WINDOW_BINS + 1, patient.open + 1)
    bins = {hour: encode_bin(patient, hour) for hour in sorted(patient.dirty_bins) if hour in window}
    drop = sorted(hour for hour in patient.stored_bins if hour not in window)
    patient.stored_bins = {hour for hour in patient.stored_bins | bins.keys() if hour in window}
    patient.dirty_bins = set()
    return Write(digest(patient.id), encode_hot(patient, partition.model), bins, drop)


def _undo(partition: Partition, snapshot: Snapshot) -> None:
    """Mark what a failed write held as changed again."""
    for key, write in zip(snapshot.ids, snapshot.writes, strict=False):
        patient = partition.patients.get(key)
        if patient is not None:
            partition.dirty.add(key)
            patient.dirty_bins |= write.bins.keys()
            patient.stored_bins |= set(write.drop)
    partition.gone |= {key for key in snapshot.gone if key not in partition.patients}
