"""A partition whose stored state is gone: rebuilt from the log and the alert log, silently."""

import pytest

from engines.engine import Engine
from tests.worker.records import HOUR, PLACE, Outbox
from tests.worker.test_checkpoint import Life, ids, log_of, remains, undisturbed
from worker.store import Store
from worker.transport import Committed


@pytest.mark.parametrize("cut", [3, 30, 60, 110])
async def test_rebuilt_state_is_the_undisturbed_one(engine: Engine, store: Store, cut: int) -> None:
    log, outbox = log_of(), Outbox()
    first = Life(engine, store, log, outbox)
    await first.begin()
    await first.work(cut)
    await first.checkpointer.checkpoint(first.partition)
    await store._redis.flushall()
    published = len(outbox.messages)

    second = Life(engine, store, log, outbox)
    await second.begin()
    assert second.rebuilt
    await second.work(cut)
    assert len(outbox.messages) == published
    assert remains(second.partition) == remains(first.partition)
    await second.work(len(log.records))

    quiet = await undisturbed(engine, log)
    assert ids(outbox) == ids(quiet.outbox)
    assert remains(second.partition) == remains(quiet.partition)


async def test_damaged_state_is_rebuilt(engine: Engine, store: Store) -> None:
    log, outbox = log_of(), Outbox()
    first = Life(engine, store, log, outbox)
    await first.begin()
    await first.work(50)
    await first.checkpointer.checkpoint(first.partition)
    (key, *_) = await store._redis.keys(f"*{store._group}*:p:*")
    await store._redis.hset(key, "hot", b"\x93damaged")

    second = Life(engine, store, log, outbox)
    await second.begin()

    assert second.rebuilt
    await second.work(50)
    assert remains(second.partition) == remains(first.partition)


async def test_a_commit_made_before_any_record_was_accepted(engine: Engine, store: Store) -> None:
    log, outbox = log_of(), Outbox()
    log.committed = Committed(1, "0")

    life = Life(engine, store, log, outbox)
    await life.begin()

    assert (life.partition.position, life.partition.live_from) == (0, 1)


async def test_no_commit_starts_at_the_first_record_and_discards(engine: Engine, store: Store) -> None:
    log, outbox = log_of(), Outbox()
    first = Life(engine, store, log, outbox)
    await first.begin()
    await first.work(20)
    await first.checkpointer.checkpoint(first.partition)
    log.committed = None

    second = Life(engine, store, log, outbox)
    await second.begin()

    assert (second.partition.position, second.partition.replaying, second.rebuilt) == (0, False, False)
    assert await store.load(PLACE) == []


async def test_state_past_the_end_of_the_log_is_not_trusted(engine: Engine, store: Store) -> None:
    log, outbox = log_of(), Outbox()
    first = Life(engine, store, log, outbox)
    await first.begin()
    await first.work(50)
    await first.checkpointer.checkpoint(first.partition)
    log.records = log.records[:20]

    second = Life(engine, store, log, outbox)
    await second.begin()

    assert (second.partition.position, second.partition.patients) == (0, {})


async def test_rebuild_reads_no_more_than_the_horizon(engine: Engine, store: Store) -> None:
    log, outbox = log_of(200), Outbox()
    end = len(log.records)
    log.committed = Committed(end, str(log.records[-1].timestamp))

    life = Life(engine, store, log, outbox)
    await life.begin()

    first = log.records[life.partition.position]
    assert log.records[-1].timestamp - 120 * HOUR <= first.timestamp <= log.records[-1].timestamp - 119 * HOUR
