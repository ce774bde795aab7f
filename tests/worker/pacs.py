"""A DICOMweb service for the tests, on a real socket: every test says how it behaves."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from aiohttp import web

from schemas.imaging import DicomwebImage, FileImage, ImagingEvent, InlineImage, ObjectImage
from worker import config
from worker.config import Settings
from worker.fetch import Fetched, Fetcher

CANARY = "7715991"
"""In every UID, path and key of the tests; no error may hold it."""

INSTANCE = f"/studies/1.2.{CANARY}/series/1.2.3/instances/1.2.3.4"

PICTURE = b"\0" * 128 + b"DICM" + bytes(range(256)) * 1000 + b"\r\n--edg\r\n--" + b"end"
"""256 KB with what looks like a boundary in it."""

DIGEST = sha256(PICTURE).hexdigest()

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def multipart(*contents: bytes, headers: str = "Content-Type: application/dicom\r\n") -> bytes:
    """A body of multipart/related; boundary=edge."""
    parts = (b"\r\n--edge\r\n" + headers.encode() + b"\r\n" + content for content in contents)
    return b"".join(parts) + b"\r\n--edge--\r\n"


def related(body: bytes) -> web.Response:
    """A multipart answer."""
    kind = 'multipart/related; type="application/dicom"; boundary=edge'
    return web.Response(body=body, headers={"Content-Type": kind})


async def good(_: web.Request) -> web.StreamResponse:
    """The picture, as a server should send it."""
    return related(multipart(PICTURE))


async def nothing(_: web.Request) -> web.StreamResponse:
    """No such resource: what most servers say at their base."""
    return web.Response(status=404)


def plain(body: bytes, kind: str = "application/dicom", **headers: str) -> Answer:
    """A body that is no multipart."""

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(body=body, headers={"Content-Type": kind, **headers})

    return answer


def status(code: int, **headers: str) -> Answer:
    """No body that counts."""

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=code, headers=headers, text=CANARY)

    return answer


def parts(*contents: bytes, headers: str = "Content-Type: application/dicom\r\n") -> Answer:
    """A multipart answer of these contents."""

    async def answer(_: web.Request) -> web.StreamResponse:
        return related(multipart(*contents, headers=headers))

    return answer


def raw(body: bytes) -> Answer:
    """A multipart answer with this body, however broken."""

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
    """No answer at all."""
    await asyncio.sleep(60)
    raise AssertionError("nobody waits for so long")


async def hang_up(request: web.Request) -> web.StreamResponse:
    """The connection is cut."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


class Pacs:
    """Answers instances by `answer` and its base by `base`; remembers what it was asked."""

    def __init__(self) -> None:
        self.answer: Answer = good
        self.base: Answer = nothing
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.port = 0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """The service's base."""
        return f"http://127.0.0.1:{self.port}/dicom-web"

    @property
    def paths(self) -> list[str]:
        """What was asked for, below the base."""
        return [path.removeprefix("/dicom-web") for path, _ in self.asked]

    async def start(self, tls: ssl.SSLContext | None = None) -> None:
        """Listen; after a stop, on the same port."""
        app = web.Application()
        app.router.add_get("/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=tls).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Close the socket and all connections."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.raw_path, dict(request.headers)))
        answer = self.base if request.path == "/dicom-web/" else self.answer
        return await answer(request)


@asynccontextmanager
async def running(tls: ssl.SSLContext | None = None) -> AsyncIterator[Pacs]:
    """A service that is stopped in the end."""
    pacs = Pacs()
    await pacs.start(tls)
    try:
        yield pacs
    finally:
        await pacs.stop()


def settings_for(pacs: Pacs, **changes: Any) -> Settings:
    """Settings that allow the service, with short times."""
    return config.load(
        **{
            "imaging_hosts": [pacs.url],
            "imaging_internal_hosts": ["127.0.0.1"],
            "imaging_max_bytes": 1 << 20,
            "imaging_connect_timeout_s": 0.5,
            "imaging_silence_timeout_s": 0.3,
            "imaging_fetch_timeout_s": 5.0,
            **changes,
        }
    )


async def fetch(settings: Settings, event: ImagingEvent) -> Fetched:
    """One try with a fetcher of its own."""
    fetcher = Fetcher(settings)
    try:
        return await fetcher.fetch(event)
    finally:
        await fetcher.close()


def event_of(
    image: InlineImage | FileImage | DicomwebImage | ObjectImage,
    *,
    sha256: str | None = None,
    size: int | None = None,
) -> ImagingEvent:
    """An event with this picture."""
    time = datetime(2026, 1, 1, tzinfo=UTC)
    return ImagingEvent(f"e-{CANARY}", f"p-{CANARY}", time, image, sha256=sha256, size=size)


def dicomweb(pacs: Pacs, path: str = INSTANCE, *, rendered: bool = False, **expected: Any) -> ImagingEvent:
    """An event whose picture the service has."""
    return event_of(DicomwebImage(pacs.url + path, rendered), **expected)


def file(path: Path | str, **expected: Any) -> ImagingEvent:
    """An event whose picture is a file."""
    return event_of(FileImage(str(path)), **expected)


def assert_anonymous(error: BaseException) -> None:
    """What an error says holds neither an identifier nor a place."""
    said = f"{error!s}{error!r}{error.__cause__!r}{getattr(error, 'reason', '')}"
    assert CANARY not in said
    assert "127.0.0.1" not in said
    assert "/" not in str(getattr(error, "reason", ""))
