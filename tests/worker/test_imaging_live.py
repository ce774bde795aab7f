"""The imaging role as a process, on the embedded broker: what it publishes, and what no kill takes away."""

import asyncio
import random
import time
from collections.abc import Iterator
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp import web
from redis.asyncio import Redis

from tests.engines.pictures import dicom, of_class
from tests.killing import WorkerProcess
from tests.worker.imaging_site import ImagingSite
from tests.worker.pacs import Pacs, multipart, related
from tests.worker.pictures import inline, png, record
from tests.worker.records import Record, rfc3339
from worker.embedded import redis, tansu

SEED = 20_261_121

CANARY = "771599183"
"""In ids and paths; neither a log line nor a metric may hold it."""


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[str, str]]:
    """Addresses of an embedded broker and Redis."""
    with tansu() as broker, redis() as cache:
        yield broker.address, cache.address


def now(sent: Record) -> Record:
    """The same record, stamped now, as a topic that deletes by age would have it."""
    moment = time.time_ns() // 1_000_000
    value = (sent.value or b"").replace(rfc3339(sent.timestamp).encode(), rfc3339(moment).encode())
    return sent._replace(timestamp=moment, value=value)


def file(number: int) -> bytes:
    """A DICOM file of its own instance."""
    return dicom(of_class(number % 2, 28, np.random.default_rng(number)), SOPInstanceUID=f"1.2.3.{number}")


def kept(pacs: Pacs, number: int, **more: Any) -> Record:
    """A record of a picture in the PACS."""
    url = f"{pacs.url}/studies/1.2/series/1.3/instances/1.2.3.{number}"
    return now(record(number, {"type": "dicomweb", "url": url}, f"p{number}", **more))


async def answer(request: web.Request) -> web.StreamResponse:
    """The instance that is asked for, after a while."""
    number = int(request.path.rsplit(".", 1)[-1])
    await asyncio.sleep(random.Random(number).uniform(0, 0.1))
    return related(multipart(file(number)))


def served(pacs: Pacs) -> dict[str, str]:
    """Settings that allow the PACS."""
    return {"RISKSTREAM_IMAGING_HOSTS": pacs.url, "RISKSTREAM_IMAGING_INTERNAL_HOSTS": "127.0.0.1"}


async def state(worker: WorkerProcess) -> tuple[int, dict[str, Any]]:
    """Status and body of /health/ready."""
    url = f"http://127.0.0.1:{worker.port}/health/ready"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.json()


async def metrics_of(worker: WorkerProcess) -> str:
    """All of /metrics."""
    url = f"http://127.0.0.1:{worker.port}/metrics"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return await response.text()


async def test_pictures_become_findings_and_what_is_at_fault_dead_letters(
    servers: tuple[str, str],
) -> None:
    site = ImagingSite(*servers)
    await site.create()
    p = [f"{CANARY}{number}" for number in range(7)]
    sent = [
        now(record(0, inline(png(0)), p[0])),
        now(record(1, inline(file(1)), p[1], modality="DX")),
        now(record(2, inline(png(0)), p[0])),
        now(record(3, inline(file(1)), p[1])),
        now(record(4, inline(file(1)), p[2])),
        now(record(5, inline(b"\x89PNG broken"), p[3], event_id=f"e{CANARY}")),
        now(record(6, inline(png(6)), p[4]))._replace(key=p[5].encode()),
        now(record(7, {"type": "file", "path": f"/etc/{CANARY}"}, p[6])),
    ]
    with WorkerProcess(site) as worker:
        await worker.ready()
        await site.committed(await site.send(sent))
        came, fates, told = await site.came(), await worker.fates(), await metrics_of(worker)
        assert await worker.stop() == 0, worker.tail()
        log = worker.log_text()
    assert came.patients == p[:3]
    assert set(came.times.values()) == {1}
    assert sorted(letter.reason for letter in came.letters)[:2] == ["damaged-file", "key-mismatch"]
    assert len(came.letters) == 3
    assert fates == {"scored": 3, "duplicate": 2, "dead_lettered": 3}
    assert CANARY not in log + told
    assert all(f.activation_png and f.activation_png[:4] == b"\x89PNG" for f in came.findings.values())


async def test_killed_at_random_moments_it_loses_nothing_and_names_each_image_once(
    servers: tuple[str, str],
) -> None:
    rng, pacs = random.Random(SEED), Pacs()
    pacs.answer = answer
    await pacs.start()
    site = ImagingSite(*servers, **served(pacs))
    await site.create()
    count = 60
    sent = [kept(pacs, i) if i % 2 else now(record(i, inline(png(i, i % 2)), f"p{i}")) for i in range(count)]
    sent += rng.sample(sent, 10)
    with WorkerProcess(site) as worker:
        await worker.ready()
        load = asyncio.create_task(site.send(sent, 0.05))
        for _ in range(3):
            await asyncio.sleep(rng.uniform(0.4, 1.0))
            worker.kill()
            worker.start()
            await worker.ready()
        await site.committed(await load)
        assert await worker.stop() == 0, worker.tail()
    await pacs.stop()
    came = await site.came()
    assert came.patients == sorted(f"p{i}" for i in range(count))
    assert came.letters == []
    print(f"seed {SEED}: {sum(came.times.values()) - count} findings came twice")


async def test_killed_after_publishing_it_knows_what_it_has_scored(servers: tuple[str, str]) -> None:
    """Nothing is committed before a kill, so all is read again: Redis tells duplicates, ids the rest."""
    site = ImagingSite(*servers)
    await site.create()
    sent = [now(record(i, inline(png(i)), f"p{i}")) for i in range(8)]
    with WorkerProcess(site, RISKSTREAM_CHECKPOINT_INTERVAL_S="60") as worker:
        await worker.ready()
        ends = await site.send(sent)
        await site.until(8)
        worker.kill()
        worker.start()
        await worker.ready()
        for _ in range(100):
            if await worker.fates() == {"duplicate": 8}:
                break
            await asyncio.sleep(0.1)
        assert await worker.fates() == {"duplicate": 8}
        worker.kill()
    remembered = Redis.from_url(f"redis://{servers[1]}/0")
    await remembered.flushall()
    await remembered.aclose()
    with WorkerProcess(site) as worker:
        await worker.ready()
        await site.committed(ends)
        assert await worker.fates() == {"scored": 8}
        assert await worker.stop() == 0, worker.tail()
    came = await site.came()
    assert came.patients == [f"p{i}" for i in range(8)]
    assert set(came.times.values()) == {2}


async def test_a_picture_that_comes_slowly_is_no_standstill(servers: tuple[str, str]) -> None:
    """Its fetch takes longer than RISKSTREAM_STALL_AFTER_S, and is bounded by a time of its own."""
    pacs, asked = Pacs(), asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        asked.set()
        await asyncio.sleep(10)
        return await answer(request)

    pacs.answer = slow
    await pacs.start()
    times = {"STALL_AFTER_S": "5", "IMAGING_SILENCE_TIMEOUT_S": "20", "IMAGING_FETCH_TIMEOUT_S": "30"}
    site = ImagingSite(*servers, **served(pacs))
    await site.create()
    lives = []
    with WorkerProcess(site, **{f"RISKSTREAM_{name}": value for name, value in times.items()}) as worker:
        await worker.ready()
        ends = await site.send([kept(pacs, 1)])
        await asyncio.wait_for(asked.wait(), 30)
        url = f"http://127.0.0.1:{worker.port}/health/live"
        async with aiohttp.ClientSession() as session:
            for _ in range(18):
                async with session.get(url) as response:
                    lives.append(response.status)
                await asyncio.sleep(0.5)
        await site.committed(ends)
        assert len((await site.came()).findings) == 1
    await pacs.stop()
    assert set(lives) == {200}


async def test_a_source_that_is_away_is_waited_for(servers: tuple[str, str]) -> None:
    pacs = Pacs()
    pacs.answer = answer
    await pacs.start()
    site = ImagingSite(*servers, **served(pacs))
    await pacs.stop()
    await site.create()
    with WorkerProcess(site) as worker:
        await worker.ready()
        ends = await site.send([kept(pacs, 1), now(record(2, inline(png(2)), "p2"))])
        assert (await site.until(1)).patients == ["p2"]
        for _ in range(100):
            status, body = await state(worker)
            if body["imaging"]["sources_away"]:
                break
            await asyncio.sleep(0.1)
        assert (status, body["imaging"]["sources_away"], body["imaging"]["in_flight"]) == (503, 1, 1)
        await pacs.start()
        assert (await site.until(2)).patients == ["p1", "p2"]
        await site.committed(ends)
        await worker.ready()
        assert await worker.stop() == 0, worker.tail()
    await pacs.stop()
    assert (await site.came()).letters == []
