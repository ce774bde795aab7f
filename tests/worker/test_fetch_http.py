"""Pictures from a DICOMweb service on a real socket, well and badly behaved."""

import asyncio
import gzip
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from schemas.imaging import DicomwebImage
from tests.worker.pacs import (
    CANARY,
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
    related,
    running,
    settings_for,
)
from worker.errors import (
    FetchError,
    FetchFailedError,
    FetchRefusedError,
    SourceAwayError,
    SourceDeniedError,
)
from worker.fetch import Fetched, Fetcher

MIB = 1 << 20


@pytest.fixture
async def pacs() -> AsyncIterator[Pacs]:
    async with running() as pacs:
        yield pacs


def plain(body: bytes, kind: str = "application/dicom", **headers: str) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(body=body, headers={"Content-Type": kind, **headers})

    return answer


def status(code: int, **headers: str) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=code, headers=headers, text=CANARY)

    return answer


def parts(*contents: bytes, headers: str = "Content-Type: application/dicom\r\n") -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        return related(multipart(*contents, headers=headers))

    return answer


def raw(body: bytes) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        return related(body)

    return answer


def trickle(body: bytes, pieces: int, pause_s: float, then: str = "end", length: int | None = None) -> Answer:
    """The body in pieces; then the end, an abort, or nothing any more."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": 'multipart/related; type="application/dicom"; boundary=edge'}
        )
        if length is None:
            response.enable_chunked_encoding()
        else:
            response.content_length = length
        await response.prepare(request)
        step = -(-len(body) // pieces)
        for at in range(0, len(body), step):
            await response.write(body[at : at + step])
            await asyncio.sleep(pause_s)
        if then == "hang":
            await asyncio.sleep(60)
        if then == "abort":
            assert request.transport is not None
            request.transport.abort()
        return response

    return answer


async def silence(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    raise AssertionError("nobody waits for so long")


async def hang_up(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


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
    assert [path for path in other.paths] == [INSTANCE, INSTANCE, "/"]
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
