"""Picture files: under the allowed roots, regular, whole, and read by threads that may hang."""

import asyncio
import errno
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from schemas.imaging import InlineImage
from tests.worker.pacs import CANARY, DIGEST, PICTURE, assert_anonymous, event_of, fetch, file
from worker import config
from worker.config import Settings
from worker.errors import FetchFailedError, FetchRefusedError, SourceAwayError
from worker.fetch import Fetched, Fetcher
from worker.fetch_threads import Threads

NAME = f"scan-{CANARY}.dcm"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "2026").mkdir(parents=True)
    (root / NAME).write_bytes(PICTURE)
    (root / "2026" / NAME).write_bytes(PICTURE)
    (tmp_path / NAME).write_bytes(PICTURE)
    (tmp_path / "root-2").mkdir()
    (tmp_path / "root-2" / NAME).write_bytes(PICTURE)
    return root


def settings_of(*roots: Path, **changes: Any) -> Settings:
    return config.load(
        imaging_roots=list(roots),
        **{"imaging_max_bytes": 1 << 20, "imaging_connect_timeout_s": 0.3, **changes},
    )


@pytest.mark.parametrize(
    "path", ["{root}/" + NAME, NAME, "2026/" + NAME, "2026/../" + NAME, "./2026//" + NAME, "inside", "twice"]
)
async def test_a_file_under_the_root(root: Path, path: str) -> None:
    (root / "inside").symlink_to(root / "2026" / NAME)
    (root / "twice").symlink_to("inside")
    event = file(path.format(root=root), sha256=DIGEST, size=len(PICTURE))
    assert await fetch(settings_of(root), event) == Fetched(PICTURE)


async def test_roots_that_are_several_and_links(root: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.symlink_to(root)
    settings = settings_of(tmp_path / "root-2", linked)
    for path in (NAME, linked / NAME, root / NAME):
        assert (await fetch(settings, file(path))).content == PICTURE


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("{root}/../" + NAME, "outside-roots"),
        ("../" + NAME, "outside-roots"),
        ("2026/../../" + NAME, "outside-roots"),
        ("{root}-2/" + NAME, "outside-roots"),
        ("/etc/passwd", "outside-roots"),
        ("{root}", "outside-roots"),
        ("link-out", "outside-roots"),
        ("folder-out/" + NAME, "outside-roots"),
        ("device", "outside-roots"),
        ("2026", "not-a-file"),
        ("pipe", "not-a-file"),
        ("socket", "not-a-file"),
        ("large", "image-too-large"),
        ("zero\0byte", "invalid-reference"),
    ],
)
async def test_a_file_that_is_refused(root: Path, tmp_path: Path, path: str, reason: str) -> None:
    (root / "link-out").symlink_to(tmp_path / NAME)
    (root / "folder-out").symlink_to(tmp_path / "root-2")
    (root / "device").symlink_to("/dev/zero")
    os.mkfifo(root / "pipe")
    (root / "large").write_bytes(b"x" * ((1 << 20) + 1))
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(root / "socket"))
        with pytest.raises(FetchRefusedError) as caught:
            await fetch(settings_of(root), file(path.format(root=root)))
    assert caught.value.reason == reason
    assert_anonymous(caught.value)
    assert str(tmp_path) not in str(caught.value)


async def test_without_roots_no_file_is_read(root: Path) -> None:
    for path in (root / NAME, NAME, "/etc/passwd"):
        with pytest.raises(FetchRefusedError) as caught:
            await fetch(settings_of(), file(path))
        assert caught.value.reason == "outside-roots"


async def test_a_folder_that_is_swapped_for_a_link(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path is written under the root and leads out by the time it is opened."""
    normpath = os.path.normpath

    def and_swap(path: str) -> str:
        found = normpath(path)
        (root / "2026").rename(root / "2025")
        (root / "2026").symlink_to(tmp_path / "root-2")
        return found

    fetcher = Fetcher(settings_of(root))
    monkeypatch.setattr(os.path, "normpath", and_swap)
    with pytest.raises(FetchRefusedError) as caught:
        await fetcher.fetch(file(f"2026/{NAME}"))
    await fetcher.close()
    assert caught.value.reason == "outside-roots"


async def test_a_file_that_is_swapped_once_it_is_judged(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was judged is what is read."""
    (tmp_path / "secret").write_bytes(b"secret")
    fstat = os.fstat

    def and_swap(number: int) -> os.stat_result:
        (root / NAME).unlink(missing_ok=True)
        (root / NAME).symlink_to(tmp_path / "secret")
        return fstat(number)

    fetcher = Fetcher(settings_of(root))
    monkeypatch.setattr(os, "fstat", and_swap)
    try:
        assert (await fetcher.fetch(file(NAME))).content == PICTURE
    finally:
        monkeypatch.undo()
        await fetcher.close()
    assert (root / NAME).read_bytes() == b"secret"


@pytest.mark.parametrize(
    ("path", "size", "reason"),
    [
        ("absent", None, "not-found"),
        (f"{NAME}/below", None, "not-found"),
        ("dangling", None, "not-found"),
        ("circle", None, "unreadable"),
        ("x" * 300, None, "unreadable"),
        (NAME, len(PICTURE) + 1, "truncated"),
        ("empty", None, "truncated"),
    ],
)
async def test_a_file_at_fault(root: Path, path: str, size: int | None, reason: str) -> None:
    (root / "dangling").symlink_to(root / "absent")
    (root / "circle").symlink_to("circle")
    (root / "empty").touch()
    with pytest.raises(FetchFailedError) as caught:
        await fetch(settings_of(root), file(path, size=size))
    assert caught.value.reason == reason
    assert_anonymous(caught.value)


@pytest.mark.parametrize(
    ("error", "reason"), [(PermissionError, "forbidden"), (OSError(errno.EIO, CANARY), "unreadable")]
)
async def test_a_file_that_cannot_be_read(
    root: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    """Root, as which tests may run, is refused nothing; so the call is made to fail."""
    opens = os.open

    def refuse(path: str, *args: Any) -> int:
        if path.startswith("/proc/self/fd/"):
            raise error
        return opens(path, *args)

    fetcher = Fetcher(settings_of(root))
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(FetchFailedError) as caught:
        await fetcher.fetch(file(NAME))
    await fetcher.close()
    assert caught.value.reason == reason
    assert_anonymous(caught.value)


@pytest.mark.parametrize(
    ("expected", "reason"),
    [({"sha256": "0" * 64}, "wrong-digest"), ({"size": len(PICTURE) - 1}, "wrong-size")],
)
async def test_another_file_than_announced(root: Path, expected: dict[str, Any], reason: str) -> None:
    with pytest.raises(FetchRefusedError) as caught:
        await fetch(settings_of(root), file(NAME, **expected))
    assert caught.value.reason == reason


async def test_a_root_that_is_gone_is_away(root: Path, tmp_path: Path) -> None:
    fetcher = Fetcher(settings_of(root))
    os.rename(root, tmp_path / "unmounted")
    with pytest.raises(SourceAwayError) as caught:
        await fetcher.fetch(file(NAME))
    assert_anonymous(caught.value)
    os.rename(tmp_path / "unmounted", root)
    assert (await fetcher.fetch(file(NAME))).content == PICTURE
    await fetcher.close()


# Mounts that hang


class Mount:
    """Has opening files hang, or looking into folders, until it comes back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.back = threading.Event()
        self._open, self._stat = os.open, os.stat
        self._monkeypatch = monkeypatch

    def hang(self, *, folders: bool) -> None:
        self._monkeypatch.setattr(os, "open", self._hanging(self._open))
        if folders:
            self._monkeypatch.setattr(os, "stat", self._hanging(self._stat))

    def _hanging(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def hang(*args: Any) -> Any:
            if threading.current_thread().name == "fetch-file":
                assert self.back.wait(20)
            return call(*args)

        return hang


def stuck() -> float:
    return REGISTRY.get_sample_value("riskstream_fetch_stuck_threads", {"source": "file"}) or 0.0


async def test_a_mount_that_hangs_takes_its_own_threads_alone(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = Mount(monkeypatch)
    before, threads = stuck(), threading.active_count()
    fetcher = Fetcher(settings_of(root, imaging_fetch_timeout_s=0.1, imaging_fetch_concurrency=2))
    mount.hang(folders=True)
    began = time.perf_counter()
    results = await asyncio.gather(*(fetcher.fetch(file(NAME)) for _ in range(6)), return_exceptions=True)
    took = time.perf_counter() - began
    assert [type(result) for result in results] == [SourceAwayError] * 6
    assert took < 5
    assert threading.active_count() - threads <= 3  # two that read and one that looks at the root
    assert stuck() - before == threading.active_count() - threads
    assert (await fetcher.fetch(event_of(InlineImage(b"inline")))).content == b"inline"
    mount.back.set()
    for thread in threading.enumerate():
        if thread.name == "fetch-file":
            await asyncio.to_thread(thread.join)
    assert (await fetcher.fetch(file(NAME))).content == PICTURE
    assert stuck() == before
    await fetcher.close()


async def test_one_file_that_hangs_is_at_fault(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = Mount(monkeypatch)
    fetcher = Fetcher(settings_of(root, imaging_fetch_timeout_s=0.1))
    mount.hang(folders=False)
    with pytest.raises(FetchFailedError) as caught:
        await fetcher.fetch(file(NAME))
    mount.back.set()
    await fetcher.close()
    assert caught.value.reason == "too-slow"


async def test_a_thread_ends_after_its_loop() -> None:
    """What a hung call leaves behind does not disturb a process that ends."""
    released, errors = threading.Event(), list[Any]()
    hook, threading.excepthook = threading.excepthook, errors.append

    def abandon() -> None:
        async def call() -> None:
            with pytest.raises(TimeoutError):
                await Threads("test", 1).call(lambda: released.wait(20), 0.05)

        asyncio.run(call())

    await asyncio.to_thread(abandon)
    (hung,) = [thread for thread in threading.enumerate() if thread.name == "fetch-test"]
    assert hung.daemon
    released.set()
    hung.join(5)
    threading.excepthook = hook
    assert not hung.is_alive()
    assert not errors


# Inline


async def test_an_inline_picture() -> None:
    event = event_of(InlineImage(PICTURE), sha256=DIGEST, size=len(PICTURE))
    assert await fetch(config.load(), event) == Fetched(PICTURE)


@pytest.mark.parametrize(
    ("expected", "reason"),
    [({"sha256": "0" * 64}, "wrong-digest"), ({"size": 1}, "wrong-size"), ({}, "image-too-large")],
)
async def test_an_inline_picture_that_is_refused(expected: dict[str, Any], reason: str) -> None:
    most = 1 << 10 if reason == "image-too-large" else 1 << 20
    with pytest.raises(FetchRefusedError) as caught:
        await fetch(config.load(imaging_max_bytes=most), event_of(InlineImage(PICTURE), **expected))
    assert caught.value.reason == reason
    assert_anonymous(caught.value)
