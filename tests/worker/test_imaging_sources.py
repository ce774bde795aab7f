"""Fetchers and decoders behind the imaging role: whose place is whose, and what waits for a source."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from aiohttp import web

from engines.decoded import Decoded
from schemas.imaging import ImagingEvent
from schemas.model_config import ImageInput
from tests.engines.pictures import dicom
from tests.worker.pacs import Pacs
from tests.worker.pictures import inline, png, record
from worker import config, imaging_sources
from worker.decode import Refusal
from worker.imaging import Original
from worker.imaging_sources import FetchedAndDecoded
from worker.imaging_steps import Step, follow


def event(image: dict[str, object]) -> ImagingEvent:
    """An event with an image."""
    return msgspec.json.decode(record(1, image).value or b"", type=ImagingEvent)


def kept(pacs: Pacs, number: int = 1) -> ImagingEvent:
    """An event of a picture in the PACS."""
    url = f"{pacs.url}/studies/1.2/series/1.3/instances/1.4.{number}"
    return event({"type": "dicomweb", "url": url, "rendered": True})


async def rendered(_: web.Request) -> web.StreamResponse:
    """A picture, rendered."""
    return web.Response(body=png(1), content_type="image/png")


WANTED = ImageInput(28, 28)


@asynccontextmanager
async def sources(pacs: Pacs, **more: Any) -> AsyncIterator[FetchedAndDecoded]:
    """Sources that may ask the PACS, with one place for each kind."""
    settings = config.load(
        imaging_hosts=pacs.url,
        imaging_internal_hosts="127.0.0.1",
        imaging_concurrency=1,
        imaging_decoders=1,
        imaging_backoff_s=0.05,
        imaging_backoff_max_s=0.05,
        **more,
    )
    found = FetchedAndDecoded(settings)
    await found.start()
    try:
        yield found
    finally:
        await found.close()


@pytest.fixture
async def pacs() -> AsyncIterator[Pacs]:
    """A PACS that renders."""
    pacs = Pacs()
    pacs.answer = rendered
    await pacs.start()
    yield pacs
    await pacs.stop()


async def content_of(found: FetchedAndDecoded, asked: ImagingEvent) -> bytes | str:
    """The bytes of a picture, or why there are none."""
    async with found.fetched(asked) as original:
        return original.reason if isinstance(original, Refusal) else original.content


async def test_a_picture_keeps_its_place_until_it_is_done_with(pacs: Pacs) -> None:
    async with sources(pacs) as found:
        async with found.fetched(kept(pacs)) as original:
            assert isinstance(original, Original)
            decoded = await found.decode(original, kept(pacs), WANTED)
            assert isinstance(decoded, Decoded)
            other = asyncio.create_task(content_of(found, kept(pacs, 2)))
            await asyncio.sleep(0.1)
            assert len(pacs.asked) == 1
            assert await content_of(found, event(inline(png(2)))) == png(2)  # of another kind
        assert await other == png(1)


async def test_a_pacs_that_hangs_keeps_nothing_from_others(pacs: Pacs, tmp_path: Path) -> None:
    let_go = asyncio.Event()

    async def hang(request: web.Request) -> web.StreamResponse:
        await let_go.wait()
        return await rendered(request)

    pacs.answer = hang
    (tmp_path / "a.png").write_bytes(png(3))
    async with sources(pacs, imaging_roots=str(tmp_path)) as found:
        waiting = [asyncio.create_task(content_of(found, kept(pacs, number))) for number in range(3)]
        assert await content_of(found, event(inline(png(2)))) == png(2)
        assert await content_of(found, event({"type": "file", "path": "a.png"})) == png(3)
        assert not any(task.done() for task in waiting)
        let_go.set()
        assert await asyncio.gather(*waiting) == [png(1)] * 3


async def test_a_picture_waits_between_its_tries_and_takes_a_step_for_each(pacs: Pacs) -> None:
    asked: list[float | None] = []

    async def missing(_: web.Request) -> web.StreamResponse:
        asked.append(step.since)
        return web.Response(status=404)

    pacs.answer = missing
    step = Step()
    follow(step)
    async with sources(pacs, imaging_fetch_tries=3) as found:
        looking = asyncio.create_task(content_of(found, kept(pacs)))
        seen = set[float | None]()
        while not looking.done():
            seen.add(step.since)
            await asyncio.sleep(0.002)
        assert await looking == "not-found"
    assert None in seen
    assert None not in asked
    assert sorted(set(asked), key=str) == asked  # each try a step of its own
    assert len(asked) == 3


async def test_a_source_that_is_away_is_counted_until_it_is_back(pacs: Pacs) -> None:
    async with sources(pacs) as found:
        await pacs.stop()
        waiting = [asyncio.create_task(content_of(found, kept(pacs, number))) for number in range(2)]
        for _ in range(200):
            if found.away == 2:
                break
            await asyncio.sleep(0.02)
        assert found.away == 2
        waiting[0].cancel()
        await asyncio.gather(waiting[0], return_exceptions=True)
        assert found.away == 1
        await pacs.start()
        assert await waiting[1] == png(1)
        assert found.away == 0


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"GIF89a", "not-an-image"), (b"\x89PNG\r\n", "damaged-file"), (png(1)[:60], "damaged-file")],
)
async def test_a_picture_that_cannot_be_opened_is_refused_by_its_reason(
    pacs: Pacs, content: bytes, reason: str
) -> None:
    async with sources(pacs) as found, found.fetched(event(inline(content))) as original:
        assert isinstance(original, Original)
        refusal = await found.decode(original, event(inline(content)), WANTED)
        assert isinstance(refusal, Refusal)
        assert (refusal.reason, refusal.path) == (reason, "$.image")


async def test_a_picture_that_may_not_be_fetched_is_refused_and_gives_its_place_back(pacs: Pacs) -> None:
    async with sources(pacs) as found:
        for _ in range(3):
            asked = event({"type": "file", "path": "/etc/passwd"})
            async with found.fetched(asked) as refusal:
                assert isinstance(refusal, Refusal)
        assert await content_of(found, event(inline(png(2)))) == png(2)


async def test_dicom_waits_for_pydicom_and_png_does_not(
    pacs: Pacs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pydicom.py").write_text("raise ModuleNotFoundError('No module named pydicom')")
    monkeypatch.syspath_prepend(tmp_path)  # decoders are started with this path
    monkeypatch.setattr(imaging_sources, "LACKING_S", 0.1)
    kept = event(inline(dicom(np.full((28, 28), 100, dtype=np.uint8))))
    async with sources(pacs) as found, found.fetched(kept) as original:
        assert isinstance(original, Original)
        waiting = asyncio.create_task(found.decode(original, kept, WANTED))
        for _ in range(200):
            if not found.decoders_up:
                break
            await asyncio.sleep(0.02)
        assert not found.decoders_up
        shown = Original(png(1), "")
        assert isinstance(await found.decode(shown, event(inline(png(1))), WANTED), Decoded)
        assert not found.decoders_up
        (tmp_path / "pydicom.py").unlink()  # as if it were installed
        assert isinstance(await waiting, Decoded)
        assert found.decoders_up


@pytest.mark.parametrize("match", [False, True])
async def test_a_file_of_another_patient_is_refused_where_that_is_asked_for(pacs: Pacs, match: bool) -> None:
    pixels = np.arange(28 * 28, dtype=np.uint8).reshape(28, 28)
    async with sources(pacs, imaging_match_patient=match) as found:
        outcomes = []
        for named in ("p1", "771599183"):
            asked = event(inline(dicom(pixels, PatientID=named)))
            assert asked.patient == "p1"
            async with found.fetched(asked) as original:
                assert isinstance(original, Original)
                outcomes.append(await found.decode(original, asked, WANTED))
        assert isinstance(outcomes[0], Decoded)
        if match:
            assert outcomes[1] == Refusal("other-patient", "$.image")
        else:
            assert isinstance(outcomes[1], Decoded)
