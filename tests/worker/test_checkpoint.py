"""Crashes between any two steps, on a real redis-server: afterwards all is as if nothing had happened."""

import asyncio

import msgspec
import pytest

from engines.engine import Engine
from schemas.messages import Alert
from tests.worker.records import HOUR, PLACE, T0, LocalPath, Outbox, Record, observation, record, worsening
from worker.alert_log import LastAlerts, enter, no_alerts
from worker.checkpoint import Checkpointer
from worker.codec import encode_bin, encode_hot
from worker.errors import OwnershipError
from worker.partition import Partition, Place
from worker.patient import Patient
from worker.restore import Restorer, adopt_episodes
from worker.store import Store
from worker.transport import Committed

HORIZON_MS = 120 * HOUR


class ListLog:
    """The consumer's side of a checkpoint and of restoring, over a list of records."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records
        self.committed: Committed | None = None
        self.owned = True

    async def commit_offset(self, place: Place, offset: int, metadata: str) -> bool:
        if self.owned:
            self.committed = Committed(offset, metadata)
        return self.owned

    async def committed_offset(self, place: Place) -> Committed | None:
        return self.committed

    async def log_range(self, place: Place, known: int) -> tuple[int, int]:
        return self.records[0].offset, self.records[-1].offset + 1

    async def offset_at(self, place: Place, timestamp_ms: int) -> int | None:
        assert timestamp_ms >= 0, "Kafka refuses negative times"
        return next((r.offset for r in self.records if r.timestamp >= timestamp_ms), None)


class Life:
    """One worker's time with the partition, until it is dropped without a goodbye."""

    def __init__(self, engine: Engine, store: Store, log: ListLog, outbox: Outbox) -> None:
        self.path = LocalPath(engine)
        self.path.outbox.messages = outbox.messages
        self.log = log
        self.checkpointer = Checkpointer(store, log)
        self.restorer = Restorer(store, log, lambda: self.path.served.fingerprint, HORIZON_MS)
        self.rebuilt = False

    @property
    def partition(self) -> Partition:
        return self.path.partition

    async def begin(self) -> None:
        self.path.partition, self.rebuilt = await self.restorer.restore(PLACE)

    async def work(self, until: int, chunk: int = 7) -> None:
        """Process up to an offset, as a lane does."""
        while self.partition.position < until:
            live = self.partition.live_from
            end = min(until, self.partition.position + chunk)
            if self.partition.replaying:
                end = min(end, live)
            await self.path.process(
                [r for r in self.log.records if self.partition.position <= r.offset < end]
            )
            if self.rebuilt and not self.partition.replaying:
                self.rebuilt = False
                adopt_episodes(self.partition, self._last_alerts(live), self.path.pipeline.policies)

    def _last_alerts(self, before: int) -> LastAlerts:
        found = no_alerts()
        for message in self.path.outbox.of("risk-alerts"):
            alert = msgspec.json.decode(message.value, type=Alert)
            enter(found, alert, PLACE, self.path.pipeline.policies.names, before)
        return found


def log_of(hours: int = 60) -> ListLog:
    """Two patients who decline, one who is well and then silent; bad records between."""
    streams = [*worsening("ill", 0, hours), *worsening("worse", 0, hours - 20, T0 + 17 * HOUR)]
    streams += [
        record(0, "well", T0 + n * HOUR + 5, observation("heart_rate", 70), event_id=f"w{n}")
        for n in range(9)
    ]
    streams += [Record(0, T0 + n * HOUR + 9, b"ill", b"{") for n in range(0, hours, 7)]
    streams.sort(key=lambda one: one.timestamp)
    return ListLog(
        [
            one._replace(
                offset=n, value=(one.value or b"").replace(b'"event_id": "e', b'"event_id": "e%d-' % n)
            )
            for n, one in enumerate(streams)
        ]
    )


def ids(outbox: Outbox) -> set[bytes]:
    return {message.value for message in outbox.messages}


def remains(partition: Partition) -> dict[str, object]:
    """What a later record could depend on, as stored bytes."""
    return {
        key: (
            encode_hot(_at(patient, 0), "m"),
            {hour: encode_bin(patient, hour) for hour in patient.filled_bins()},
        )
        for key, patient in partition.patients.items()
    }


def _at(patient: Patient, applied: int) -> Patient:
    patient.applied = applied
    return patient


async def undisturbed(engine: Engine, log: ListLog) -> LocalPath:
    path = LocalPath(engine)
    await path.process(log.records)
    return path


@pytest.mark.parametrize("crash", ["before the Redis write", "between write and commit", "after the commit"])
@pytest.mark.parametrize("cut", [1, 40, 75])
async def test_killed_between_any_two_steps(engine: Engine, store: Store, crash: str, cut: int) -> None:
    log, outbox = log_of(), Outbox()
    end = len(log.records)
    first = Life(engine, store, log, outbox)
    await first.begin()
    await first.work(cut // 2)
    assert await first.checkpointer.checkpoint(first.partition)
    await first.work(cut)
    if crash == "between write and commit":
        log.owned = False
        with pytest.raises(OwnershipError):
            await first.checkpointer.checkpoint(first.partition)
        log.owned = True
    elif crash == "after the commit":
        assert await first.checkpointer.checkpoint(first.partition)

    second = Life(engine, store, log, outbox)
    await second.begin()
    assert second.partition.position == (cut // 2 if crash == "before the Redis write" else cut)
    await second.work(end)

    quiet = await undisturbed(engine, log)
    assert ids(outbox) == ids(quiet.outbox)
    assert remains(second.partition) == remains(quiet.partition)


async def test_commit_ahead_of_redis_replays_the_gap_in_silence(engine: Engine, store: Store) -> None:
    log, outbox = log_of(), Outbox()
    first = Life(engine, store, log, outbox)
    await first.begin()
    await first.work(30)
    await first.checkpointer.checkpoint(first.partition)
    await first.work(60)
    log.committed = Committed(60, str(first.partition.stream_ms()))
    published = len(outbox.messages)

    second = Life(engine, store, log, outbox)
    await second.begin()
    assert (second.partition.position, second.partition.live_from) == (30, 60)
    await second.work(60)
    assert len(outbox.messages) == published
    await second.work(len(log.records))

    quiet = await undisturbed(engine, log)
    assert ids(outbox) == ids(quiet.outbox)
    assert len(outbox.messages) == len(quiet.outbox.messages)
    assert remains(second.partition) == remains(quiet.partition)


async def test_lost_marker_is_written_again_from_memory(engine: Engine, store: Store) -> None:
    log, outbox = log_of(), Outbox()
    life = Life(engine, store, log, outbox)
    await life.begin()
    await life.work(40)
    await life.checkpointer.checkpoint(life.partition)
    await store._redis.flushall()
    await life.work(50)

    assert not await life.checkpointer.checkpoint(life.partition)
    assert await life.checkpointer.checkpoint(life.partition)

    after = Life(engine, store, log, outbox)
    await after.begin()
    assert (after.partition.position, after.rebuilt) == (50, False)
    assert remains(after.partition) == remains(life.partition)


async def test_an_engine_that_falls_silent_meanwhile_is_no_loss_of_the_partition(
    engine: Engine, store: Store
) -> None:
    log, outbox = log_of(), Outbox()
    life = Life(engine, store, log, outbox)
    await life.begin()
    await life.work(10)
    async with life.partition.lock:  # a chunk is under way
        checkpoint = asyncio.create_task(life.checkpointer.checkpoint(life.partition))
        while not life.partition.lock._waiters:  # noqa: ASYNC110 - the lock tells nobody who waits
            await asyncio.sleep(0)
        life.partition.unanswered, life.partition.whole = 10, False

    assert not await checkpoint
    assert log.committed is None


async def test_zombie_is_fenced(engine: Engine, store: Store) -> None:
    log, outbox = log_of(), Outbox()
    zombie, successor = Life(engine, store, log, outbox), Life(engine, store, log, outbox)
    await zombie.begin()
    await zombie.work(10)
    await zombie.checkpointer.checkpoint(zombie.partition)
    await successor.begin()
    await zombie.work(20)

    with pytest.raises(OwnershipError):
        await zombie.checkpointer.checkpoint(zombie.partition)

    assert log.committed is not None
    assert log.committed.offset == 10
    await successor.work(15)
    assert await successor.checkpointer.checkpoint(successor.partition)


async def test_state_from_an_older_copy_of_redis_is_noticed_and_brought_up(
    engine: Engine, store: Store
) -> None:
    """As after a restart from a snapshot, or a failover: what was saved since is gone, the token is old."""
    log, outbox = log_of(), Outbox()
    life = Life(engine, store, log, outbox)
    await life.begin()
    await life.work(30)
    await life.checkpointer.checkpoint(life.partition)
    keys = await store._redis.keys("*")
    copy = {key: await store._redis.dump(key) for key in keys}
    await life.work(60)
    await life.checkpointer.checkpoint(life.partition)
    await store._redis.flushall()
    for key, value in copy.items():
        await store._redis.restore(key, 0, value)

    await life.work(80)
    with pytest.raises(OwnershipError):
        await life.checkpointer.checkpoint(life.partition)
    await life.begin()
    assert life.partition.position == 30
    assert life.partition.live_from == 60
    await life.work(len(log.records))

    path = await undisturbed(engine, log)
    assert ids(life.path.outbox) == ids(path.outbox)
    assert remains(life.partition) == remains(path.partition)


async def test_zombie_cannot_discard_its_successors_state(engine: Engine, store: Store) -> None:
    log, outbox = log_of(), Outbox()
    zombie, successor = Life(engine, store, log, outbox), Life(engine, store, log, outbox)
    lease, _ = await store.acquire(PLACE)
    await successor.begin()
    await successor.work(40)
    await successor.checkpointer.checkpoint(successor.partition)
    stored = len(await store.load(PLACE))

    assert await store.discard(PLACE, lease) == "fenced"

    assert len(await store.load(PLACE)) == stored > 0
    assert zombie.partition.patients == {}


async def test_one_wrong_clock_ends_nobody_elses_episode(engine: Engine, store: Store) -> None:
    path = LocalPath(engine)
    ahead = record(50, "other", T0 + 2400 * HOUR, observation("heart_rate", 70))
    records = worsening("ill", 0, 20)
    await path.process(records[:12])
    await path.process([ahead])
    path.partition.seen_s.clear()
    path.partition.began_s -= 1e6  # as if this process had seen none of them for long

    await path.pipeline.expire_silent(path.partition, path.partition.stream_ms() - HOUR)
    path.partition.forget_silent()
    await path.process(records[12:])

    assert "ill" in path.partition.patients
    assert not [alert for alert in path.outbox.alerts if alert.transition == "expired"]
