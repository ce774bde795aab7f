"""The last rung: NEWS2 answers alone while the engine does not, and the model's alerts follow, none lost."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import pytest

from engines import repository
from engines.engine import F32, Engine
from engines.errors import BackendError
from engines.steps import fingerprint
from tests.worker.records import HOUR, PLACE, TOPICS, LocalPath, Outbox, worsening
from tests.worker.test_checkpoint import HORIZON_MS, Life, ListLog, log_of, remains, undisturbed
from tests.worker.test_lanes import SoughtLog
from worker import metrics
from worker.alert_log import LastAlerts, no_alerts
from worker.batch import Batcher
from worker.checkpoint import Checkpointer
from worker.errors import EngineDownError, EngineHungError
from worker.lanes import Lane, Stages
from worker.partition import Place
from worker.restore import Restorer
from worker.store import Store

PATIENCE_S = 0.1
GIVEN_UP_S = 20.0


class BreakableEngine(Engine):
    """The shipped model's engine, which can be made to raise, and to hang."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner.config, inner.backend)
        self.inner = inner
        self.broken = False
        self.free = threading.Event()
        self.free.set()

    def _execute(self, inputs: Mapping[str, F32], rows: int) -> dict[str, F32]:
        self.free.wait(30)
        if self.broken:
            raise BackendError("the device is gone")
        return self.inner.run(inputs)

    def close(self) -> None:
        """Nothing of its own to free."""


class Ward:
    """A lane with a real batcher around an engine that breaks, and what it published."""

    def __init__(self, engine: Engine, store: Store, log: ListLog, timeout_s: float) -> None:
        self.engine = BreakableEngine(engine)
        golden = repository.read_golden(
            repository.SHIPPED / "vitals" / str(engine.config.version) / "golden.npz"
        )
        self.batcher = Batcher(
            self.engine, lambda: repository.verify(self.engine, golden), timeout_s, PATIENCE_S
        )
        self.path = LocalPath(engine)
        self.path.served.run = self.batcher.infer
        self.log = SoughtLog(log)
        restorer = Restorer(store, self.log, lambda: fingerprint(engine.config), HORIZON_MS)
        checkpointer = Checkpointer(store, self.log)

        async def alert_log(place: Place, before: int) -> LastAlerts:
            return no_alerts()

        stages = Stages(
            self.path.pipeline, restorer, checkpointer, self.log, alert_log, self.batcher.answers, 0.05
        )
        self.lane = Lane(PLACE, stages)

    @property
    def outbox(self) -> Outbox:
        return self.path.outbox

    async def until(self, holds: Callable[[], bool]) -> None:
        """Feed the lane, as the transport does, until something holds."""
        async with asyncio.timeout(GIVEN_UP_S):
            while not holds():
                if self.lane.has_room and self.log.position < len(self.log.records):
                    self.lane.put(self.log.fetch(5))
                await asyncio.sleep(0.002)

    async def at_the_end(self) -> None:
        end = len(self.log.records)
        await self.until(lambda: self.lane.partition is not None and self.lane.partition.position == end)

    async def answered(self) -> None:
        await self.until(lambda: self.lane.lag() == 0)


@asynccontextmanager
async def ward(engine: Engine, store: Store, timeout_s: float = 30.0) -> AsyncIterator[Ward]:
    made = Ward(engine, store, log_of(40), timeout_s)
    await made.until(lambda: made.lane.has_room)
    try:
        yield made
    finally:
        made.engine.free.set()
        await made.lane.stop(5.0)
        await made.batcher.close()


def break_by_raising(engine: BreakableEngine) -> Callable[[], None]:
    engine.broken = True

    def mend() -> None:
        engine.broken = False

    return mend


def break_by_hanging(engine: BreakableEngine) -> Callable[[], None]:
    engine.free.clear()
    return engine.free.set


@pytest.mark.parametrize("breaking", [break_by_raising, break_by_hanging])
@pytest.mark.parametrize("after", [0, 33])
async def test_news2_answers_while_the_engine_does_not(
    engine: Engine, store: Store, breaking: Callable[[BreakableEngine], Callable[[], None]], after: int
) -> None:
    quiet = await undisturbed(engine, log_of(40))
    expected = quiet.outbox.by_voice()
    async with ward(engine, store) as site:
        await site.until(lambda: site.lane.partition is not None and site.lane.partition.position >= after)
        mend = breaking(site.engine)
        answered = len(site.outbox.alerts)
        await site.at_the_end()

        assert site.lane.floored
        assert [m.value for m in site.outbox.by_voice()["news2"]] == [m.value for m in expected["news2"]]
        assert len(site.outbox.alerts) <= answered + 1  # of the chunk that was under way
        assert (site.lane.lag() or 0) > 0
        site.lane.watch()
        assert metrics.floor_active.labels("vitals", str(PLACE.partition))._value.get() == 1
        assert site.lane.stuck_since is None

        mend()
        await site.answered()
        assert not site.lane.floored
        await site.lane.checkpoint(caught_up=False)
        assert site.log.committed is not None
        assert site.log.committed.offset == len(site.log.records)
        assert site.lane.partition is not None
        assert remains(site.lane.partition) == remains(quiet.partition)
        found = site.outbox.by_voice()

    assert found["news2"] == expected["news2"], "and none twice"
    assert {m.value for m in found["vitals"]} == {m.value for m in expected["vitals"]}
    assert {m.value for m in site.outbox.of(TOPICS[1])} == {m.value for m in quiet.outbox.of(TOPICS[1])}
    assert {m.value for m in site.outbox.of(TOPICS[2])} == {m.value for m in quiet.outbox.of(TOPICS[2])}


async def test_what_news2_alone_saw_is_never_stored(engine: Engine, store: Store) -> None:
    async with ward(engine, store) as site:
        await site.until(lambda: site.lane.partition is not None and site.lane.partition.position >= 30)
        site.engine.broken = True
        await site.at_the_end()
        assert site.lane.partition is not None
        unanswered = site.lane.partition.unanswered
        assert unanswered is not None
        await asyncio.sleep(0.2)
        committed = site.log.committed
        assert committed is None or committed.offset <= unanswered
        site.engine.broken = False
        await site.answered()


async def test_killed_while_news2_answers_alone_repeats_alerts_under_the_same_ids(
    engine: Engine, store: Store
) -> None:
    log, outbox = log_of(40), Outbox()
    first = Life(engine, store, log, outbox)
    await first.begin()
    await first.work(30)
    await first.checkpointer.checkpoint(first.partition)

    async def down(inputs: Mapping[str, F32]) -> dict[str, F32]:
        raise EngineDownError("the device is gone")

    first.path.served.run = down
    await first.work(len(log.records))
    assert first.partition.unanswered == 30

    second = Life(engine, store, log, outbox)
    await second.begin()
    assert second.partition.position == 30
    await second.work(len(log.records))

    quiet = await undisturbed(engine, log)
    assert {m.value for m in outbox.messages} == {m.value for m in quiet.outbox.messages}
    assert remains(second.partition) == remains(quiet.partition)


async def test_rebuild_without_an_engine_keeps_news2_alerting(engine: Engine, store: Store) -> None:
    log, outbox = log_of(40), Outbox()
    first = Life(engine, store, log, outbox)
    await first.begin()
    await first.work(50)
    await first.checkpointer.checkpoint(first.partition)
    await store._redis.flushall()

    async def down(inputs: Mapping[str, F32]) -> dict[str, F32]:
        raise EngineDownError("the device is gone")

    second = Life(engine, store, log, outbox)
    second.path.served.run = down
    await second.begin()
    assert second.rebuilt
    await second.work(len(log.records))

    quiet = await undisturbed(engine, log)
    assert outbox.by_voice()["news2"] == quiet.outbox.by_voice()["news2"]


async def test_on_the_floor_only_news2_says_who_is_silent(engine: Engine) -> None:
    """The model's latches stand still there: its silence is the engine's, not the patient's."""
    path = LocalPath(engine)
    records = worsening("ill", 0, 12)
    await path.process(records)
    assert path.outbox.alerts
    assert path.outbox.warnings
    path.partition.seen_s.clear()
    path.partition.began_s -= 1e6  # as if this process had seen none of them for long
    path.partition.unanswered = path.partition.position
    now_ms = records[-1].timestamp + 20 * HOUR

    await path.pipeline.expire_silent(path.partition, now_ms)
    assert path.outbox.warnings[-1].transition == "expired"
    assert "expired" not in [alert.transition for alert in path.outbox.alerts]

    path.partition.unanswered = None
    await path.pipeline.expire_silent(path.partition, now_ms)
    assert [alert.transition for alert in path.outbox.alerts].count("expired") == 1
    assert [alert.transition for alert in path.outbox.warnings].count("expired") == 1


async def test_an_engine_that_stays_hung_ends_the_lane(engine: Engine, store: Store) -> None:
    async with ward(engine, store, timeout_s=0.5) as site:
        site.engine.free.clear()
        await site.until(lambda: site.lane.floored)
        assert site.outbox.warnings
        await site.until(lambda: site.lane.failure() is not None)
        assert isinstance(site.lane.failure(), EngineHungError)


async def test_another_models_state_is_computed_anew_once_the_engine_answers(
    engine: Engine, store: Store
) -> None:
    log, outbox = log_of(40), Outbox()
    first = Life(engine, store, log, outbox)
    await first.begin()
    await first.work(40)
    first.partition.model = "another" * 8
    await first.checkpointer.checkpoint(first.partition)

    async def down(inputs: Mapping[str, F32]) -> dict[str, F32]:
        raise EngineDownError("the device is gone")

    second = Life(engine, store, log, outbox)
    second.path.served.run = down
    await second.begin()
    await second.work(len(log.records))
    assert second.partition.unanswered == 40
    quiet = await undisturbed(engine, log)
    assert outbox.by_voice()["news2"] == quiet.outbox.by_voice()["news2"]

    third = Life(engine, store, log, outbox)
    await third.begin()
    assert all(patient.failed for patient in third.partition.patients.values())
    await third.work(len(log.records))
    assert {m.value for m in outbox.messages} == {m.value for m in quiet.outbox.messages}
    there, here = remains(quiet.partition), remains(third.partition)
    silent = {key for key, patient in third.partition.patients.items() if patient.failed}
    assert silent == {"well"}  # no record of theirs has come since
    assert all(here[key] == there[key] for key in here.keys() - silent)
