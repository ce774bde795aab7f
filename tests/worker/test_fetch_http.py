"""Pictures from a DICOMweb service on a real socket, and what is refused of it."""

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from schemas.imaging import DicomwebImage
from tests.worker.pacs import (
    DIGEST,
    INSTANCE,
    PICTURE,
    Answer,
    Pacs,
    assert_anonymous,
    dicomweb,
    event_of,
    fetch,
    good,
    multipart,
    parts,
    plain,
    raw,
    running,
    settings_for,
    silence,
    status,
    trickle,
)
from worker.errors import (
    FetchFailedError,
    FetchRefusedError,
)
from worker.fetch import Fetched, Fetcher

MIB = 1 << 20


@pytest.fixture
async def pacs() -> AsyncIterator[Pacs]:
    async with running() as pacs:
        yield pacs


# Good


@pytest.mark.parametrize(
    ("path", "rendered", "asked", "frame"),
    [
        (INSTANCE, False, INSTANCE, None),
        (f"{INSTANCE}/frames/3", False, INSTANCE, 3),
    ],
)
async def test_an_instance(pacs: Pacs, path: str, rendered: bool, asked: str, frame: int | None) -> None:
    event = dicomweb(pacs, path, rendered=rendered, sha256=DIGEST, size=len(PICTURE))

    assert await fetch(settings_for(pacs), event) == Fetched(PICTURE, "application/dicom", frame)

    assert pacs.paths == [asked]
    (_, headers) = pacs.asked[0]
    assert headers["Accept"] == 'multipart/related; type="application/dicom"; transfer-syntax=*'
    assert headers["Accept-Encoding"] == "identity"
    assert "Authorization" not in headers


@pytest.mark.parametrize("path", [INSTANCE, f"{INSTANCE}/frames/3"])
async def test_a_rendered_picture(pacs: Pacs, path: str) -> None:
    pacs.answer = plain(b"\x89PNG..", "image/png")
    fetched = await fetch(settings_for(pacs), dicomweb(pacs, path, rendered=True))
    assert fetched == Fetched(b"\x89PNG..", "image/png", None)
    assert pacs.paths == [f"{path}/rendered"]
    assert pacs.asked[0][1]["Accept"] == "image/png"


@pytest.mark.parametrize(
    "answer",
    [
        plain(PICTURE),
        parts(PICTURE, headers=f"Content-Type: application/dicom\r\nContent-Length: {len(PICTURE)}\r\n"),
        parts(PICTURE, headers="content-type: Application/DICOM; transfer-syntax=1.2.840.10008.1.2.1\r\n"),
        raw(b"a preamble\r\n" + multipart(PICTURE) + b"an epilogue"),
        raw(multipart(PICTURE)[2:]),
        trickle(multipart(PICTURE), 500, 0.0),
    ],
    ids=["single", "with-length", "with-syntax", "preamble", "no-first-line", "in-pieces"],
)
async def test_other_forms_of_the_same_answer(pacs: Pacs, answer: Answer) -> None:
    pacs.answer = answer
    assert (await fetch(settings_for(pacs), dicomweb(pacs, sha256=DIGEST))).content == PICTURE


async def test_credentials_go_to_their_service_alone(pacs: Pacs) -> None:
    async with running() as other:
        settings = settings_for(
            pacs,
            imaging_hosts=[pacs.url, other.url],
            imaging_credentials={pacs.url: "bearer hunter2-token"},
        )
        await fetch(settings, dicomweb(pacs))
        await fetch(settings, dicomweb(other))
        other.answer = silence
        with pytest.raises(FetchFailedError):
            await fetch(settings, dicomweb(other))
    assert pacs.asked[0][1]["Authorization"] == "Bearer hunter2-token"
    assert other.paths == [INSTANCE, INSTANCE, "/"]
    assert not any("Authorization" in headers for _, headers in other.asked)


async def test_fetches_at_a_service_are_bounded(pacs: Pacs) -> None:
    under_way, most = 0, 0

    async def slowly(request: web.Request) -> web.StreamResponse:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.02)
        under_way -= 1
        return await good(request)

    pacs.answer = slowly
    fetcher = Fetcher(settings_for(pacs, imaging_fetch_concurrency=3))
    fetched = await asyncio.gather(*(fetcher.fetch(dicomweb(pacs)) for _ in range(12)))
    await fetcher.close()
    assert len(fetched) == 12
    assert most == 3


# Refused, and never asked for again


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (parts(b"x" * (MIB + 1)), "image-too-large"),
        (plain(b"x" * (2 * MIB)), "image-too-large"),
        (trickle(multipart(b"x" * (2 * MIB)), 64, 0.0), "image-too-large"),
        (trickle(multipart(b"x" * (1 << 40 >> 20)), 4, 0.0, length=1 << 40), "image-too-large"),
        (raw(b"preamble\r\n" * (MIB // 8) + multipart(PICTURE)), "image-too-large"),
        (plain(gzip.compress(b"\0" * MIB), **{"Content-Encoding": "gzip"}), "encoded-response"),
        (
            parts(PICTURE, headers="Content-Type: application/dicom\r\nContent-Encoding: gzip\r\n"),
            "encoded-response",
        ),
        (
            parts(
                PICTURE, headers="Content-Type: application/dicom\r\nContent-Transfer-Encoding: base64\r\n"
            ),
            "encoded-response",
        ),
        (parts(PICTURE, PICTURE), "several-images"),
        (plain(b"<html>please sign in</html>", "text/html"), "wrong-media-type"),
        (plain(PICTURE, "image/jpeg"), "wrong-media-type"),
        (parts(PICTURE, headers="Content-Type: application/octet-stream\r\n"), "wrong-media-type"),
        (parts(PICTURE, headers=""), "wrong-media-type"),
        (
            parts(PICTURE, headers="Content-Type: multipart/related; boundary=inner\r\n"),
            "wrong-media-type",
        ),
        (status(302, Location="http://169.254.169.254/latest/meta-data"), "redirected"),
        (status(307, Location=f"/dicom-web{INSTANCE}/other"), "redirected"),
        (status(301, Location="https://evil.example/"), "redirected"),
    ],
)
async def test_an_answer_that_is_refused(pacs: Pacs, answer: Answer, reason: str) -> None:
    pacs.answer = answer
    with pytest.raises(FetchRefusedError) as caught:
        await fetch(settings_for(pacs), dicomweb(pacs))
    assert caught.value.reason == reason
    assert_anonymous(caught.value)
    assert pacs.paths == [INSTANCE]


@pytest.mark.parametrize("begin", [b"", multipart(b"")[:-12]], ids=["in-preamble", "in-part"])
async def test_a_body_without_end_is_left_at_its_limit(pacs: Pacs, begin: bytes) -> None:
    sent, left = 0, asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse(headers={"Content-Type": "multipart/related; boundary=edge"})
        await response.prepare(request)
        await response.write(begin)
        try:
            while True:
                await response.write(b"x" * MIB)
                sent += MIB
        finally:
            left.set()

    pacs.answer = endless
    with pytest.raises(FetchRefusedError) as caught:
        await fetch(settings_for(pacs), dicomweb(pacs))
    await left.wait()
    assert caught.value.reason == "image-too-large"
    assert sent < 16 * MIB  # what the sockets between hold included


@pytest.mark.parametrize(
    ("expected", "reason"),
    [
        ({"sha256": "0" * 64}, "wrong-digest"),
        ({"size": len(PICTURE) + 1}, "wrong-size"),
        ({"size": len(PICTURE) - 1, "sha256": DIGEST}, "wrong-size"),
    ],
)
async def test_another_picture_than_announced(pacs: Pacs, expected: dict[str, Any], reason: str) -> None:
    with pytest.raises(FetchRefusedError) as caught:
        await fetch(settings_for(pacs), dicomweb(pacs, **expected))
    assert caught.value.reason == reason
    assert_anonymous(caught.value)


async def test_a_host_with_a_private_address(pacs: Pacs, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://pacs.example:{pacs.port}/dicom-web"
    settings = settings_for(pacs, imaging_hosts=[url], imaging_internal_hosts=[])
    _resolve(monkeypatch, ["127.0.0.1"])
    with pytest.raises(FetchRefusedError) as caught:
        await fetch(settings, event_of(DicomwebImage(url + INSTANCE)))
    assert caught.value.reason == "private-address"
    assert_anonymous(caught.value)
    assert pacs.asked == []


async def test_a_name_that_turns_to_the_metadata_service(pacs: Pacs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each connection is checked, and goes to what was checked."""
    url = f"http://pacs.example:{pacs.port}/dicom-web"
    settings = settings_for(pacs, imaging_hosts=[url], imaging_internal_hosts=["pacs.example"])
    event = event_of(DicomwebImage(url + INSTANCE))
    resolved = _resolve(monkeypatch, ["127.0.0.1"], ["127.0.0.1", "169.254.169.254"], ["169.254.169.254"])
    fetcher = Fetcher(settings)

    async def closing(request: web.Request) -> web.StreamResponse:
        response = await good(request)
        response.force_close()
        return response

    pacs.answer = closing
    assert (await fetcher.fetch(event)).content == PICTURE
    for _ in range(2):
        with pytest.raises(FetchRefusedError) as caught:
            await fetcher.fetch(event)
        assert caught.value.reason == "private-address"
    await fetcher.close()
    assert len(pacs.asked) == 1
    assert len(resolved) == 3  # once for each connection, none after a check


def _resolve(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Have names resolve to these addresses, call after call; the names that were asked for."""
    asked: list[str] = []
    left = iter(answers)

    def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in next(left)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


async def test_proxies_of_the_environment_are_not_used(pacs: Pacs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert (await fetch(settings_for(pacs), dicomweb(pacs))).content == PICTURE
