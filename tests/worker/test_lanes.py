"""A lane takes every record once and in order, whatever is lost or late between it and the broker."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from engines.engine import Engine
from engines.steps import fingerprint
from tests.worker.records import PLACE, LocalPath
from tests.worker.test_checkpoint import HORIZON_MS, ListLog, ids, log_of, undisturbed
from worker import metrics
from worker.alert_log import LastAlerts, no_alerts
from worker.checkpoint import Checkpointer
from worker.errors import OwnershipError, RetryError
from worker.lanes import Lane, Stages
from worker.partition import Place
from worker.publish import Outgoing
from worker.restore import Restorer
from worker.store import Store
from worker.transport import Chunk, Committed


class SoughtLog(ListLog):
    """A consumer over a list: fetches go on from where it was last sought."""

    def __init__(self, log: ListLog) -> None:
        super().__init__(log.records)
        self.position = -1
        self.asked = 0
        self.silent_for = 0

    async def committed_offset(self, place: Place) -> Committed | None:
        self.asked += 1
        if self.silent_for:
            self.silent_for -= 1
            raise RetryError("Kafka: no answer")
        return await super().committed_offset(place)

    async def seek_offset(self, place: Place, offset: int) -> None:
        self.position = offset

    def log_end(self, place: Place) -> int | None:
        return len(self.records)

    def fetch(self, count: int) -> Chunk:
        start, self.position = self.position, min(self.position + count, len(self.records))
        return Chunk(start, self.records[start : self.position])


class Station:
    """One lane and all that it works with."""

    def __init__(self, engine: Engine, store: Store, log: SoughtLog) -> None:
        self.path = LocalPath(engine)
        self.log = log
        restorer = Restorer(store, log, lambda: fingerprint(engine.config), HORIZON_MS)
        checkpointer = Checkpointer(store, log)

        async def empty(place: Place, before: int) -> LastAlerts:
            return no_alerts()

        async def answers() -> bool:
            return True

        self.lane = Lane(PLACE, Stages(self.path.pipeline, restorer, checkpointer, log, empty, answers))

    async def until_room(self) -> None:
        async with asyncio.timeout(20):
            while not self.lane.has_room:  # noqa: ASYNC110 (a lane announces nothing)
                await asyncio.sleep(0.005)

    async def until_done(self) -> None:
        """Fetch, as the transport does, until the end of the log is handled."""
        end = len(self.log.records)
        async with asyncio.timeout(30):
            while self.lane.partition is None or self.lane.partition.position < end:
                if self.lane.has_room and self.log.position < end:
                    self.lane.put(self.log.fetch(9))
                await asyncio.sleep(0.001)


@pytest.fixture
async def station(engine: Engine, store: Store) -> AsyncIterator[Station]:
    made = Station(engine, store, SoughtLog(log_of(30)))
    await made.until_room()
    yield made
    await made.lane.stop(5.0)


async def test_fetch_lost_on_the_way_is_read_again(station: Station, engine: Engine) -> None:
    station.lane.put(station.log.fetch(5))
    station.log.fetch(7)  # Faust has dropped it

    station.lane.put(station.log.fetch(4))
    assert not station.lane.has_room
    await station.until_done()

    assert ids(station.path.outbox) == ids((await undisturbed(engine, station.log)).outbox)
    assert len(station.path.outbox.messages) == len(ids(station.path.outbox))


async def test_fetch_from_before_a_seek_is_dropped(station: Station, engine: Engine) -> None:
    stale = Chunk(40, station.log.records[40:50])

    station.lane.put(stale)
    await station.until_done()

    assert ids(station.path.outbox) == ids((await undisturbed(engine, station.log)).outbox)


async def test_lane_takes_two_chunks_and_no_more(station: Station) -> None:
    for _ in range(2):
        assert station.lane.has_room
        station.lane.put(station.log.fetch(3))

    assert station.lane.full
    assert not station.lane.has_room
    await station.until_done()


async def test_stopped_lane_leaves_everything_stored_and_committed(station: Station) -> None:
    await station.until_done()

    await station.lane.stop(5.0)

    assert station.log.committed is not None
    assert station.log.committed.offset == len(station.log.records)


async def test_stopped_lane_says_nothing_more_of_its_partition(station: Station) -> None:
    await station.until_done()
    station.log.records.extend(station.log.records[:3])
    station.lane.watch()
    gauges = (metrics.lag, metrics.patients)
    labels = (PLACE.topic, str(PLACE.partition))
    assert all(gauge.labels(*labels)._value.get() > 0 for gauge in gauges)

    await station.lane.stop(5.0)

    assert all(gauge.labels(*labels)._value.get() == 0 for gauge in (*gauges, metrics.partition_ready))


async def test_partition_that_stays_goes_on_from_memory(station: Station, engine: Engine) -> None:
    before = station.lane.partition
    station.lane.put(station.log.fetch(30))
    station.lane.put(station.log.fetch(9))
    restored = metrics.restores.labels("kept")._value.get()
    assert before is not None
    async with asyncio.timeout(20):
        while before.position < 30:  # noqa: ASYNC110 (a lane announces nothing)
            await asyncio.sleep(0.001)

    await station.lane.hold(5.0)
    assert not station.lane.has_room
    assert station.lane.partition is before
    station.lane.resume()
    await station.until_done()

    assert station.lane.partition is before
    assert metrics.restores.labels("kept")._value.get() == restored + 1
    assert ids(station.path.outbox) == ids((await undisturbed(engine, station.log)).outbox)
    assert len(station.path.outbox.messages) == len(ids(station.path.outbox))


async def test_held_partition_is_left_alone_by_its_timer(station: Station) -> None:
    await station.until_done()
    await station.lane.hold(5.0)
    assert station.lane.partition is not None
    station.lane.partition.dirty.add("ill")
    station.log.owned = False  # a commit between two generations is refused

    await station.lane.checkpoint(caught_up=True)

    assert station.lane.partition.dirty == {"ill"}


async def test_partition_on_which_another_has_gone_on_is_restored(station: Station) -> None:
    await station.until_done()
    before = station.lane.partition
    await station.lane.hold(5.0)
    station.log.committed = Committed(len(station.log.records) - 2, "")

    station.lane.resume()
    await station.until_room()

    assert station.lane.partition is not None
    assert station.lane.partition is not before


async def test_lane_that_is_not_held_needs_no_resuming(station: Station) -> None:
    station.lane.put(station.log.fetch(30))
    at_work = station.lane._task

    station.lane.resume()
    await station.until_done()

    assert station.lane._task is at_work
    assert len(station.path.outbox.messages) == len(ids(station.path.outbox))


async def test_closed_lane_is_dropped_with_its_memory(station: Station) -> None:
    await station.until_done()
    await station.lane.hold(5.0)

    station.lane.close()

    assert station.lane.partition is None
    assert metrics.patients.labels(PLACE.topic, str(PLACE.partition))._value.get() == 0


async def test_fenced_lane_takes_nothing_while_the_group_does_not_answer(
    station: Station, store: Store
) -> None:
    await station.until_done()
    await station.lane.checkpoint(caught_up=True)
    successor, _ = await store.acquire(PLACE)
    station.log.owned = False
    station.log.silent_for, asked = 1, station.log.asked

    assert station.lane.partition is not None
    station.lane.partition.dirty.add("ill")
    await station.lane.checkpoint(caught_up=True)
    async with asyncio.timeout(10):
        while station.log.asked < asked + 3:  # noqa: ASYNC110 (a lane announces nothing)
            await asyncio.sleep(0.01)

    assert await store.save(PLACE, successor, [], 1, 0) == "ok"
    assert station.lane.partition is None


async def test_chunk_given_up_halfway_is_never_stored(engine: Engine, store: Store) -> None:
    path, log = LocalPath(engine), log_of(30)
    never = asyncio.Event()

    async def silent(messages: Sequence[Outgoing]) -> None:
        await never.wait()

    path.partition.lease, _ = await store.acquire(PLACE)
    path.pipeline._publish = silent
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(path.process(log.records), 2.0)

    with pytest.raises(OwnershipError):
        await Checkpointer(store, log).checkpoint(path.partition)

    assert await store.load(PLACE) == []
    assert log.committed is None
