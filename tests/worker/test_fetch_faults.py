"""Whose fault it is when a picture does not come from a DICOMweb service: the object's, or the server's."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from schemas.imaging import DicomwebImage
from tests.worker.pacs import (
    CANARY,
    INSTANCE,
    PICTURE,
    Answer,
    Pacs,
    assert_anonymous,
    dicomweb,
    event_of,
    fetch,
    hang_up,
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
    FetchError,
    FetchFailedError,
    SourceAwayError,
    SourceDeniedError,
)
from worker.fetch import Fetcher


@pytest.fixture
async def pacs() -> AsyncIterator[Pacs]:
    async with running() as pacs:
        yield pacs


# The object's fault: the server answers otherwise


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (status(404), "not-found"),
        (status(410), "not-found"),
        (status(403), "forbidden"),
        (status(500), "server-error"),
        (status(406), "unexpected-status"),
        (status(204), "unexpected-status"),
        (silence, "too-slow"),
        (trickle(multipart(PICTURE)[:1000], 2, 0.0, "hang"), "too-slow"),
        (trickle(multipart(PICTURE), 2000, 0.02), "too-slow"),
        (hang_up, "connection-closed"),
        (trickle(multipart(PICTURE)[:1000], 2, 0.0, "abort"), "connection-closed"),
        (trickle(multipart(PICTURE)[:1000], 2, 0.0, "abort", len(PICTURE)), "connection-closed"),
        (raw(multipart(PICTURE)[:100_000]), "broken-response"),
        (raw(multipart(PICTURE)[:-20]), "broken-response"),
        (
            parts(b"short", headers="Content-Type: application/dicom\r\nContent-Length: 9\r\n"),
            "broken-response",
        ),
        (raw(b""), "broken-response"),
        (raw(b"\r\n--edge--\r\n"), "broken-response"),
        (raw(b"no boundary at all\r\n" * 100), "broken-response"),
        (plain(multipart(PICTURE), "multipart/related"), "broken-response"),
        (plain(multipart(PICTURE), f"multipart/related; boundary={'e' * 71}"), "broken-response"),
        (parts(PICTURE, headers=f"X-Long: {'x' * 10_000}\r\n"), "broken-response"),
        (parts(PICTURE, headers="X-Many: x\r\n" * 1000), "broken-response"),
        (parts(PICTURE, headers="no header\r\n"), "broken-response"),
        (parts(b""), "truncated"),
        (plain(b""), "truncated"),
    ],
)
async def test_an_object_at_fault(pacs: Pacs, answer: Answer, reason: str) -> None:
    pacs.answer = answer
    began = time.perf_counter()
    with pytest.raises(FetchFailedError) as caught:
        await fetch(settings_for(pacs), dicomweb(pacs))
    assert caught.value.reason == reason
    assert_anonymous(caught.value)
    assert pacs.paths[0] == INSTANCE
    assert time.perf_counter() - began < 3


async def test_a_response_that_never_ends_in_time(pacs: Pacs) -> None:
    pacs.answer = trickle(multipart(PICTURE), 2000, 0.02)
    settings = settings_for(pacs, imaging_min_bytes_per_s=1, imaging_fetch_timeout_s=0.4)
    with pytest.raises(FetchFailedError) as caught:
        await fetch(settings, dicomweb(pacs))
    assert caught.value.reason == "too-slow"


async def test_a_preamble_that_never_ends(pacs: Pacs) -> None:
    pacs.answer = trickle(b"preamble\r\n" * 100, 100, 0.02, "hang")
    with pytest.raises(FetchFailedError) as caught:
        await fetch(settings_for(pacs, imaging_fetch_timeout_s=0.5), dicomweb(pacs))
    assert caught.value.reason == "too-slow"


# The server is away


@pytest.mark.parametrize("code", [429, 502, 503, 504])
async def test_a_server_that_apologises(pacs: Pacs, code: int) -> None:
    pacs.answer = status(code)
    with pytest.raises(SourceAwayError) as caught:
        await fetch(settings_for(pacs), dicomweb(pacs))
    assert caught.value.retry_after_s is None
    assert_anonymous(caught.value)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "9" * 5000}, 999_999_999.0),
        (
            {"Retry-After": "Thu, 01 Jan 2026 00:01:30 GMT", "Date": "Thu, 01 Jan 2026 00:00:00 GMT"},
            90.0,
        ),
        ({"Retry-After": "Thu, 01 Jan 2026 00:00:00 GMT", "Date": "Fri, 02 Jan 2026 00:00:00 GMT"}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": ""}, None),
    ],
)
async def test_what_a_server_asks_us_to_wait(
    pacs: Pacs, headers: dict[str, str], seconds: float | None
) -> None:
    pacs.answer = status(503, **headers)
    with pytest.raises(SourceAwayError) as caught:
        await fetch(settings_for(pacs), dicomweb(pacs))
    assert caught.value.retry_after_s == seconds


async def test_credentials_that_are_not_taken(pacs: Pacs) -> None:
    pacs.answer = status(401, **{"WWW-Authenticate": "Basic"})
    with pytest.raises(SourceDeniedError) as caught:
        await fetch(settings_for(pacs), dicomweb(pacs))
    assert caught.value.reason == "source-denied"


@pytest.mark.parametrize("base", [silence, hang_up, status(502)], ids=["silent", "closing", "502"])
@pytest.mark.parametrize("answer", [silence, hang_up], ids=["silent", "closing"])
async def test_a_server_that_answers_nothing(pacs: Pacs, answer: Answer, base: Answer) -> None:
    pacs.answer, pacs.base = answer, base
    with pytest.raises(SourceAwayError) as caught:
        await fetch(settings_for(pacs), dicomweb(pacs))
    assert pacs.paths[0] == INSTANCE
    assert "/" in pacs.paths
    assert_anonymous(caught.value)


async def test_a_server_that_is_restarted(pacs: Pacs) -> None:
    fetcher = Fetcher(settings_for(pacs))
    assert (await fetcher.fetch(dicomweb(pacs))).content == PICTURE
    await pacs.stop()
    with pytest.raises(SourceAwayError) as caught:
        await fetcher.fetch(dicomweb(pacs))
    assert_anonymous(caught.value)
    await pacs.start()
    assert (await fetcher.fetch(dicomweb(pacs))).content == PICTURE
    await fetcher.close()


async def test_a_name_that_does_not_resolve(pacs: Pacs, monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror(socket.EAI_AGAIN, f"cannot resolve {CANARY}")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    url = "http://pacs.example/dicom-web"
    with pytest.raises(SourceAwayError) as caught:
        await fetch(
            settings_for(pacs, imaging_hosts=[url], imaging_internal_hosts=[]),
            event_of(DicomwebImage(url + INSTANCE)),
        )
    assert_anonymous(caught.value)


async def test_a_server_that_does_not_speak_http() -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    pacs = Pacs()
    pacs.port = server.sockets[0].getsockname()[1]
    async with server:
        with pytest.raises((FetchError, SourceAwayError)) as caught:
            await fetch(settings_for(pacs), dicomweb(pacs))
    assert caught.value.reason == "broken-response"
    assert_anonymous(caught.value)
