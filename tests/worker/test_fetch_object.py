"""Objects, of fsspec's memory file system in the place of a store, and by s3fs from a store on a socket."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from aiohttp import web
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from schemas.imaging import ObjectImage
from tests.worker.pacs import CANARY, DIGEST, PICTURE, assert_anonymous, event_of, fetch
from worker import config
from worker.config import Settings
from worker.errors import FetchFailedError, FetchRefusedError, SourceAwayError, SourceDeniedError
from worker.fetch import Fetched, Fetcher

KEY = f"scans/chest/{CANARY}.dcm"


def settings_of(**changes: Any) -> Settings:
    return config.load(
        **{
            "imaging_buckets": "s3://scans/chest",
            "imaging_max_bytes": 1 << 20,
            "imaging_connect_timeout_s": 0.5,
            **changes,
        }
    )


def an_object(path: str = KEY, **expected: Any) -> Any:
    return event_of(ObjectImage(f"s3://{path}"), **expected)


class Store(MemoryFileSystem):  # type: ignore[misc]
    """fsspec's own, with calls that can be made to fail or hang."""

    before: Callable[[str], None] = staticmethod(lambda _: None)

    def info(self, path: str, **options: Any) -> Any:
        type(self).before(path)
        return super().info(path, **options)

    def cat_file(self, path: str, **options: Any) -> Any:
        type(self).before(path)
        return super().cat_file(path, **options)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Store]]:
    monkeypatch.setitem(_registry, "s3", Store)
    memory = Store()
    for path in (KEY, "scans/other/x", "scans/chest/folder/x"):
        memory.pipe_file(path, PICTURE)
    memory.pipe_file("scans/chest/large", b"x" * ((1 << 20) + 1))
    memory.pipe_file("scans/chest/empty", b"")
    yield Store
    Store.before = staticmethod(lambda _: None)
    memory.rm("/", recursive=True)


async def test_an_object(store: type[Store]) -> None:
    event = an_object(sha256=DIGEST, size=len(PICTURE))
    assert await fetch(settings_of(), event) == Fetched(PICTURE)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("scans/other/x", "bucket-not-allowed"),
        ("scans/chest/../other/x", "invalid-reference"),
        ("scans/chest/folder", "not-a-file"),
        ("scans/chest/large", "image-too-large"),
    ],
)
async def test_an_object_that_is_refused(store: type[Store], path: str, reason: str) -> None:
    with pytest.raises(FetchRefusedError) as caught:
        await fetch(settings_of(), an_object(path))
    assert caught.value.reason == reason
    assert_anonymous(caught.value)


async def test_without_buckets_no_object_is_read() -> None:
    with pytest.raises(FetchRefusedError) as caught:
        await fetch(settings_of(imaging_buckets=""), an_object())
    assert caught.value.reason == "bucket-not-allowed"


async def test_an_object_that_grows_behind_its_size(
    store: type[Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more is read than was told."""
    asked = []
    cat_file = MemoryFileSystem.cat_file

    def watch(self: Any, path: str, **options: Any) -> Any:
        asked.append((options["start"], options["end"]))
        return cat_file(self, path, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", watch)
    await fetch(settings_of(), an_object())
    assert asked == [(0, len(PICTURE))]


def failing(error: Exception, *, everywhere: bool) -> Callable[[str], None]:
    def fail(path: str) -> None:
        if everywhere or path == KEY:
            raise error

    return fail


@pytest.mark.parametrize(
    ("path", "error", "reason"),
    [
        ("scans/chest/absent", None, "not-found"),
        ("scans/chest/empty", None, "truncated"),
        (KEY, PermissionError(CANARY), "forbidden"),
        (KEY, RuntimeError(CANARY), "unreadable"),
        (KEY, ConnectionError(CANARY), "unreadable"),
    ],
)
async def test_an_object_at_fault(
    store: type[Store], path: str, error: Exception | None, reason: str
) -> None:
    if error is not None:
        store.before = staticmethod(failing(error, everywhere=False))
    with pytest.raises(FetchFailedError) as caught:
        await fetch(settings_of(), an_object(path))
    assert caught.value.reason == reason
    assert_anonymous(caught.value)


@pytest.mark.parametrize("error", [ConnectionError(CANARY), RuntimeError(CANARY), TimeoutError(CANARY)])
async def test_a_store_that_is_away(store: type[Store], error: Exception) -> None:
    fetcher = Fetcher(settings_of())
    store.before = staticmethod(failing(error, everywhere=True))
    with pytest.raises(SourceAwayError) as caught:
        await fetcher.fetch(an_object())
    assert_anonymous(caught.value)
    store.before = staticmethod(lambda _: None)
    assert (await fetcher.fetch(an_object())).content == PICTURE
    await fetcher.close()


@pytest.mark.parametrize(("everywhere", "error"), [(False, FetchFailedError), (True, SourceAwayError)])
async def test_a_store_that_hangs(store: type[Store], everywhere: bool, error: type[Exception]) -> None:
    released = threading.Event()

    def hang(path: str) -> None:
        if everywhere or path == KEY:
            released.wait(20)

    store.before = staticmethod(hang)
    with pytest.raises(error):
        await fetch(settings_of(imaging_fetch_timeout_s=0.1, imaging_connect_timeout_s=0.3), an_object())
    released.set()
    for thread in threading.enumerate():
        if thread.name == "fetch-object":
            await asyncio.to_thread(thread.join)


async def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from engines.errors import ExtraError

    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ExtraError, match=r"riskstream\[objects\]"):
        Fetcher(settings_of())


# s3fs, against a socket that speaks as much of S3 as one object needs


class S3:
    """One object in a bucket; `fault` is the status of all paths that begin with `faulty`."""

    def __init__(self) -> None:
        self.fault = 0
        self.faulty = ""
        self.asked: list[tuple[str, str, str]] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.method, request.path, request.headers.get("Range", "")))
        if self.fault and request.path.startswith(self.faulty):
            return web.Response(status=self.fault)
        if request.path in ("/scans", "/scans/"):
            return web.Response()
        if request.path != f"/{KEY}":
            return web.Response(status=404)
        if request.method == "HEAD":
            return web.Response(headers={"Content-Length": str(len(PICTURE)), "ETag": '"x"'})
        first, _, last = request.headers["Range"].removeprefix("bytes=").partition("-")
        return web.Response(status=206, body=PICTURE[int(first) : int(last) + 1])


@pytest.fixture
async def s3(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[S3]:
    pytest.importorskip("s3fs")
    server = S3()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{runner.addresses[0][1]}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    yield server
    await runner.cleanup()


async def test_an_object_by_s3fs(s3: S3) -> None:
    event = an_object(sha256=DIGEST, size=len(PICTURE))
    assert (await fetch(settings_of(), event)).content == PICTURE
    assert [method for method, _, _ in s3.asked] == ["HEAD", "GET"]
    assert s3.asked[1][2] == f"bytes=0-{len(PICTURE) - 1}"


async def test_faults_by_s3fs(s3: S3) -> None:
    fetcher = Fetcher(settings_of())
    with pytest.raises(FetchFailedError) as absent:
        await fetcher.fetch(an_object("scans/chest/absent"))
    s3.fault, s3.faulty = 403, f"/{KEY}"
    with pytest.raises(FetchFailedError) as forbidden:
        await fetcher.fetch(an_object())
    s3.faulty = ""
    with pytest.raises(SourceDeniedError):
        await fetcher.fetch(an_object())
    s3.fault = 503
    with pytest.raises(SourceAwayError):
        await fetcher.fetch(an_object())
    await fetcher.close()
    assert absent.value.reason == "not-found"
    assert forbidden.value.reason == "forbidden"


async def test_a_store_that_refuses_connections_by_s3fs(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(SourceAwayError) as caught:
        await fetch(settings_of(), an_object())
    assert_anonymous(caught.value)
