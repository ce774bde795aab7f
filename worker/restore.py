"""Where a newly assigned partition starts: state from Redis when it can be trusted, else from the log.

    stored state                         what is done
    complete up to the commit or beyond  load it, go on from where it is complete
    complete up to before the commit     load it, replay the gap silently
    missing, damaged or past the log     rewind by the horizon, rebuild silently up to the commit
    no committed offset                  discard, start at the log's first record, publishing

"Silently" means that records change state and publish nothing. A rebuild starts from nothing, so its
decisions are worthless until the windows are full: its traces are right when it ends, because the horizon
covers a silent patient's 48 h, a window before that, and what a trace remembers; its episodes come from
the alert log.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from schemas.latch import Episode
from worker import metrics
from worker.alert_log import LastAlerts
from worker.codec import LayoutError, decode
from worker.decide import remembered
from worker.errors import OwnershipError, StoreError
from worker.partition import Lease, Partition, Place
from worker.policies import Policies
from worker.store import Marker, Store
from worker.transport import Committed


class Log(Protocol):
    """What restoring asks of the consumer."""

    async def committed_offset(self, place: Place) -> Committed | None: ...
    async def log_range(self, place: Place, known: int) -> tuple[int, int]: ...
    async def offset_at(self, place: Place, timestamp_ms: int) -> int | None: ...


class Restored(NamedTuple):
    """A partition ready to be read on from its position; `rebuilt` when its episodes are still to come."""

    partition: Partition
    rebuilt: bool


class Restorer:
    """Decides where a partition starts and loads its state."""

    def __init__(self, store: Store, log: Log, model: Callable[[], str], horizon_ms: int) -> None:
        """`model` gives the fingerprint of the model that serves."""
        self._store = store
        self._log = log
        self._model = model
        self._horizon_ms = horizon_ms

    async def restore(self, place: Place) -> Restored:
        """The partition as it stands at its position.

        Raises:
            RetryError: Kafka did not answer.
            OwnershipError: another worker took the partition's state meanwhile.
        """
        committed = await self._log.committed_offset(place)
        lease, marker = await self._acquire(place)
        known = max(committed.offset if committed else 0, marker.offset or 0)
        first, end = await self._log.log_range(place, known)
        if committed is None or committed.offset > end:
            restored = self._fresh(place, first)
        elif marker.offset is None or not first <= marker.offset <= end:
            restored = await self._rebuild(place, committed, first)
        else:
            restored = await self._load(place, committed, marker, first)
        partition = restored.partition
        partition.lease = lease
        partition.committed = committed.offset if committed is not None else -1
        partition.metadata = committed.metadata if committed is not None else ""
        if lease is not None and not partition.patients:
            await self._discard(partition, lease)
        return restored

    async def _acquire(self, place: Place) -> tuple[Lease | None, Marker]:
        try:
            return await self._store.acquire(place)
        except StoreError as error:
            # Redis is a cache: without it the log gives the same state, and the alerts go on.
            metrics.redis_up.set(0)
            metrics.checkpoint_failures.labels(error.reason).inc()
            return None, Marker(None, 0)

    async def _discard(self, partition: Partition, lease: Lease) -> None:
        try:
            if await self._store.discard(partition.place, lease) != "ok":
                raise OwnershipError("another worker has taken the partition's state over")
        except StoreError:
            partition.lease = None

    def _fresh(self, place: Place, first: int) -> Restored:
        metrics.restores.labels("fresh").inc()
        return Restored(Partition(place, first, first), False)

    async def _rebuild(self, place: Place, committed: Committed, first: int) -> Restored:
        metrics.restores.labels("rebuilt").inc()
        live_from = max(committed.offset, first)
        start: int | None = first
        if committed.metadata.isdigit():
            begin_ms = max(int(committed.metadata) - self._horizon_ms, 0)
            start = await self._log.offset_at(place, begin_ms)
        position = live_from if start is None else max(first, min(start, live_from))
        partition = Partition(place, position, live_from)
        return Restored(partition, True)

    async def _load(self, place: Place, committed: Committed, marker: Marker, first: int) -> Restored:
        assert marker.offset is not None
        partition = Partition(place, marker.offset, max(committed.offset, marker.offset))
        partition.model = self._model()
        try:
            for stored in await self._store.load(place):
                patient = decode(stored.hot, stored.bins, partition.model)
                partition.patients[patient.id] = patient
        except (LayoutError, StoreError):
            return await self._rebuild(place, committed, first)
        metrics.restores.labels("replayed" if partition.replaying else "loaded").inc()
        return Restored(partition, False)


def adopt_episodes(partition: Partition, last_alerts: LastAlerts, policies: Policies) -> None:
    """Give rebuilt patients the episodes that the alert log shows; discard those that the replay made up.

    An `expired` alert that a timer published ahead of the patient's next record leaves the episode open,
    as it was in the memory of the worker that published it.
    """
    for key, patient in partition.patients.items():
        for which, latch in patient.latches.items():
            last, trace = last_alerts[which].get(key), latch.trace
            episode: Episode | None = None
            if last is None or trace is None:
                pass
            elif last.expired_ms is None or trace.time <= last.expired_ms:
                policy = policies.last(which, patient)
                episode = remembered(policy, last.episode, trace.time)
                if last.expired_ms is not None:
                    partition.expired_early.add((key, which))
            patient.latches[which] = latch._replace(episode=episode)
        partition.dirty.add(key)
        patient.stored_bins.clear()
        patient.dirty_bins = patient.filled_bins()
