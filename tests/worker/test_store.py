"""The store on a real redis-server: what is written comes back, and only the owner writes."""

import time

import pytest

from tests.worker.records import PLACE
from worker import config, embedded
from worker.config import Settings
from worker.errors import StoreError
from worker.store import Marker, Store, Stored, Write, digest

BINS = {490_896: b"\x00one", 490_897: b"two\xff"}
A, B = digest("a"), digest("b")


async def test_saved_patients_are_loaded(store: Store) -> None:
    token, marker = await store.acquire(PLACE)
    assert marker == Marker(None, 0)

    verdict = await store.save(PLACE, token, [Write(A, b"hot\x00", BINS, ()), Write(B, b"b", {}, ())], 17, 99)

    assert verdict == "ok"
    assert sorted(await store.load(PLACE)) == sorted([Stored(b"hot\x00", BINS), Stored(b"b", {})])
    _, marker = await store.acquire(PLACE)
    assert marker == Marker(17, 99)


async def test_bins_are_dropped_and_patients_deleted(store: Store) -> None:
    token, _ = await store.acquire(PLACE)
    await store.save(PLACE, token, [Write(A, b"1", BINS, ()), Write(B, b"b", {}, ())], 1, 0)

    await store.save(PLACE, token, [Write(A, b"2", {3: b"x"}, [490_896]), Write(B, b"", {}, ())], 2, 0)

    assert await store.load(PLACE) == [Stored(b"2", {490_897: b"two\xff", 3: b"x"})]


async def test_many_patients_take_several_calls(store: Store) -> None:
    token, _ = await store.acquire(PLACE)
    writes = [Write(digest(str(n)), str(n).encode(), {n: b"b"}, ()) for n in range(300)]

    assert await store.save(PLACE, token, writes, 300, 1) == "ok"
    assert len(await store.load(PLACE)) == 300
    await store.discard(PLACE, token)
    assert await store.load(PLACE) == []


async def test_fenced_token_writes_nothing(store: Store) -> None:
    old, _ = await store.acquire(PLACE)
    new, _ = await store.acquire(PLACE)
    await store.save(PLACE, new, [Write(A, b"new", {}, ())], 5, 0)

    assert (
        await store.save(PLACE, old, [Write(A, b"old", {}, ()), Write(B, b"old", {}, ())], 4, 0) == "fenced"
    )
    assert await store.load(PLACE) == [Stored(b"new", {})]
    assert (await store.acquire(PLACE))[1].offset == 5


async def test_lost_marker_is_missing(store: Store, redis_settings: Settings) -> None:
    token, _ = await store.acquire(PLACE)
    await store.save(PLACE, token, [], 5, 0)
    await store._redis.delete(f"riskstream:{{cluster:{redis_settings.group}:vitals:3}}:marker")

    assert await store.save(PLACE, token, [Write(A, b"x", {}, ())], 6, 0) == "missing"
    assert await store.load(PLACE) == []


async def test_discard_keeps_the_token(store: Store) -> None:
    token, _ = await store.acquire(PLACE)
    await store.save(PLACE, token, [Write(A, b"x", {}, ())], 6, 7)

    await store.discard(PLACE, token)

    assert await store.save(PLACE, token, [], 0, 0) == "ok"
    assert await store.load(PLACE) == []


async def test_partitions_and_groups_are_apart(store: Store, redis_settings: Settings) -> None:
    token, _ = await store.acquire(PLACE)
    await store.save(PLACE, token, [Write(A, b"x", {}, ())], 6, 7)
    other = Store(config.load(redis=redis_settings.redis, group="another"))
    try:
        for where, place in ((store, PLACE._replace(partition=4)), (other, PLACE)):
            assert await where.load(place) == []
            assert (await where.acquire(place))[1] == Marker(None, 0)
    finally:
        await other.close()


async def test_no_key_names_a_patient(store: Store) -> None:
    token, _ = await store.acquire(PLACE)
    await store.save(PLACE, token, [Write(digest("canary"), b"x", {}, ())], 1, 0)

    assert not [key for key in await store._redis.keys("*") if b"canary" in key]


async def test_stopped_redis_is_a_quick_store_error() -> None:
    with embedded.redis() as server:
        store = Store(config.load(redis=f"redis://{server.address}", redis_timeout_s=0.5))
        token, _ = await store.acquire(PLACE)
        server.stop()
        started = time.perf_counter()
        for call in (
            store.ping(),
            store.acquire(PLACE),
            store.load(PLACE),
            store.discard(PLACE, token),
            store.save(PLACE, token, [], 1, 0),
            store.info(),
        ):
            with pytest.raises(StoreError):
                await call
        assert time.perf_counter() - started < 5
        server.start()
        assert await store.save(PLACE, token, [], 1, 0) == "missing"
        await store.close()


async def test_policy_is_read(store: Store) -> None:
    assert (await store.info())["maxmemory_policy"] == "noeviction"
