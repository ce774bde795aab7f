"""What is tried again, how often and for how long, and what the metrics are told."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from aiohttp import web
from prometheus_client import REGISTRY

from tests.worker.pacs import (
    DIGEST,
    INSTANCE,
    PICTURE,
    Answer,
    Pacs,
    dicomweb,
    good,
    nothing,
    running,
    settings_for,
    status,
)
from worker import config
from worker.errors import FetchFailedError, FetchRefusedError
from worker.fetch import Fetcher
from worker.fetch_patience import Patience, fetch_patiently

QUICK = Patience(tries=4, failing_s=5.0, try_s=5.0, first_s=0.02, longest_s=0.05, retry_after_s=0.3)


@pytest.fixture
async def pacs() -> AsyncIterator[Pacs]:
    async with running() as pacs:
        yield pacs


@pytest.fixture
async def fetcher(pacs: Pacs) -> AsyncIterator[Fetcher]:
    fetcher = Fetcher(settings_for(pacs))
    yield fetcher
    await fetcher.close()


def in_turn(*answers: Answer) -> Answer:
    """One answer after another; the last one stays."""
    left: Iterator[Answer] = iter(answers)
    last = answers[-1]

    async def answer(request: web.Request) -> web.StreamResponse:
        return await next(left, last)(request)

    return answer


def told(outcome: str) -> float:
    labels = {"source": "dicomweb", "outcome": outcome}
    return REGISTRY.get_sample_value("riskstream_fetches_total", labels) or 0.0


async def test_a_picture_that_comes_late(pacs: Pacs, fetcher: Fetcher) -> None:
    before = told("failed"), told("fetched")
    bytes_before = REGISTRY.get_sample_value("riskstream_fetch_bytes_total") or 0.0
    pacs.answer = in_turn(nothing, status(500), good)

    fetched = await fetch_patiently(fetcher, dicomweb(pacs, sha256=DIGEST), QUICK)

    assert fetched.content == PICTURE
    assert pacs.paths == [INSTANCE] * 3
    assert (told("failed") - before[0], told("fetched") - before[1]) == (2, 1)
    assert REGISTRY.get_sample_value("riskstream_fetch_bytes_total") == bytes_before + len(PICTURE)


async def test_a_picture_that_never_comes(pacs: Pacs, fetcher: Fetcher) -> None:
    pacs.answer = nothing
    with pytest.raises(FetchFailedError) as caught:
        await fetch_patiently(fetcher, dicomweb(pacs), QUICK)
    assert caught.value.reason == "not-found"
    assert len(pacs.asked) == QUICK.tries


async def test_tries_end_with_their_time(pacs: Pacs, fetcher: Fetcher) -> None:
    pacs.answer = nothing
    with pytest.raises(FetchFailedError):
        await fetch_patiently(fetcher, dicomweb(pacs), QUICK._replace(tries=1000, failing_s=0.2))
    assert 3 < len(pacs.asked) < 30


async def test_waiting_for_others_uses_up_no_patience(pacs: Pacs) -> None:
    async def slowly(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.2)
        return await status(404)(request)

    pacs.answer = slowly
    patience = QUICK._replace(tries=3, failing_s=0.9, try_s=0.25)
    fetcher = Fetcher(settings_for(pacs, imaging_fetch_concurrency=1))
    tries = (fetch_patiently(fetcher, dicomweb(pacs), patience) for _ in range(5))
    ended = await asyncio.gather(*tries, return_exceptions=True)
    await fetcher.close()
    assert all(isinstance(error, FetchFailedError) for error in ended)
    assert len(pacs.asked) == 15, len(pacs.asked)


async def test_a_refusal_is_final(pacs: Pacs, fetcher: Fetcher) -> None:
    before = told("refused")
    with pytest.raises(FetchRefusedError):
        await fetch_patiently(fetcher, dicomweb(pacs, sha256="0" * 64), QUICK)
    assert len(pacs.asked) == 1
    assert told("refused") - before == 1


async def test_a_server_that_is_away_is_waited_for(pacs: Pacs, fetcher: Fetcher) -> None:
    """For more tries and longer than an object at fault would have."""
    before = told("away")
    await pacs.stop()
    hasty = QUICK._replace(tries=2, failing_s=0.1)
    waiting = asyncio.create_task(fetch_patiently(fetcher, dicomweb(pacs), hasty))
    await asyncio.sleep(0.6)
    assert not waiting.done()
    assert told("away") - before > 5

    await pacs.start()

    assert (await waiting).content == PICTURE
    assert pacs.paths == [INSTANCE]


async def test_absences_use_up_no_tries(pacs: Pacs, fetcher: Fetcher) -> None:
    pacs.answer = in_turn(nothing, *[status(503)] * 6, nothing, status(502), nothing, good)
    assert (await fetch_patiently(fetcher, dicomweb(pacs), QUICK)).content == PICTURE
    assert len(pacs.asked) == 11


@pytest.mark.parametrize(("asked", "least", "most"), [("0", 0.0, 0.25), ("3600", 0.3, 1.0)])
async def test_retry_after_is_obeyed_within_its_bound(
    pacs: Pacs, fetcher: Fetcher, asked: str, least: float, most: float
) -> None:
    pacs.answer = in_turn(status(503, **{"Retry-After": asked}), good)
    began = time.perf_counter()
    await fetch_patiently(fetcher, dicomweb(pacs), QUICK)
    assert least <= time.perf_counter() - began < most


async def test_waiting_can_be_given_up(pacs: Pacs, fetcher: Fetcher) -> None:
    arrived = asyncio.Event()

    async def silence(_: web.Request) -> web.StreamResponse:
        arrived.set()
        await asyncio.sleep(60)
        raise AssertionError("nobody waits for so long")

    pacs.answer = silence
    before = told("cancelled")
    waiting = asyncio.create_task(fetch_patiently(fetcher, dicomweb(pacs), QUICK))
    await arrived.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert told("cancelled") - before == 1


def test_waits_double_and_differ() -> None:
    patience = Patience.of(config.load())
    waits = [[patience.wait_s(failures) for _ in range(50)] for failures in (1, 2, 5, 6, 7, 10_000)]
    for some, whole in zip(waits, (1.0, 2.0, 16.0, 30.0, 30.0, 30.0), strict=True):
        assert all(whole / 2 <= wait <= whole for wait in some)
        assert len(set(some)) > 40
