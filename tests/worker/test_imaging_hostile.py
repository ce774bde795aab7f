"""Everything hostile at one worker in one run, between good pictures: each gets its own reason, and no more.

A worker process on the embedded broker, real decoder processes, and a PACS on a real socket that lies, stalls
and leads astray.
"""

import asyncio
import hashlib
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from aiohttp import web
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit

from engines import repository
from schemas.messages import DeadLetter
from tests.engines.dicom_files import changed, grey, with_syntax, wrapped
from tests.engines.pictures import dicom, encoded
from tests.engines.test_dicom_refused import jpeg_size, siz, streamed
from tests.killing import WorkerProcess
from tests.worker import bombs, pacs
from tests.worker.imaging_site import ImagingSite
from tests.worker.pacs import Answer, Pacs
from tests.worker.pictures import inline, png, record
from tests.worker.records import Record
from tests.worker.test_imaging_live import now, state
from worker.embedded import redis, tansu

RAMP = grey(np.uint8, 255)
CHEST: dict[str, Any] = {"Modality": "DX", "BodyPartExamined": "CHEST"}
MIB = 1 << 20

MAX_BYTES = 4 * MIB
DECODE_S = 5.0
DECODE_MIB = 128

WORKER_MIB = 150
"""That the worker may grow beyond what it has when it is ready: some pictures of MAX_BYTES, and JSON."""

TREE_MIB = 400
"""That worker, decoder and child may take beyond that, pages that they share counted for each."""

HANGS = ("decode-timeout", "decode-crashed")
"""Of two pictures that would be decoded for ever, one is left alone and the child of one is killed."""


class Case(NamedTuple):
    """A record that must not lead to a finding.

    reason: of its dead letter. value, key: in the place of the event's own.
    """

    reason: str
    image: dict[str, Any]
    fields: Mapping[str, Any] = MappingProxyType({})
    value: bytes | None = None
    key: bytes | None = None


class Shelf:
    """What the PACS answers, by SOP instance UID."""

    def __init__(self, pacs: Pacs) -> None:
        self.pacs = pacs
        self._answers: dict[str, Answer] = {}
        pacs.answer = self._answer

    def instance(self, answer: Answer, base: str | None = None, end: str = "", **more: Any) -> dict[str, Any]:
        """The image of an event: an instance of its own that is answered so."""
        uid = f"1.2.3.{len(self._answers)}"
        self._answers[uid] = answer
        url = f"{base or self.pacs.url}/studies/1.2/series/1.3/instances/{uid}{end}"
        return {"type": "dicomweb", "url": url, **more}

    def held(self, content: bytes, **more: Any) -> dict[str, Any]:
        """An instance that it has, as DICOM."""
        return self.instance(pacs.parts(content), **more)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        return await self._answers[request.path.split("/instances/")[1].split("/")[0]](request)


async def slow_head(request: web.Request) -> web.StreamResponse:
    """Slow loris: a header that never ends, a line now and then."""
    assert request.transport is not None
    request.transport.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(600):
        request.transport.write(f"X-{number}: y\r\n".encode())
        await asyncio.sleep(0.1)
    raise AssertionError("nobody reads for so long")


async def endless(request: web.Request) -> web.StreamResponse:
    """A body without length and without end."""
    response = web.StreamResponse(headers={"Content-Type": "application/dicom"})
    response.enable_chunked_encoding()
    await response.prepare(request)
    while True:
        await response.write(bytes(1 << 18))


def file(path: Path | str) -> dict[str, Any]:
    return {"type": "file", "path": str(path)}


def good_dicom(**attributes: Any) -> bytes:
    return dicom(RAMP, **(CHEST | attributes))


def garbage(size: int) -> bytes:
    """Bytes that mean nothing, the same in every run."""
    return np.random.default_rng(size).bytes(size)


def pixels() -> Iterator[tuple[str, Case]]:
    """Files that are at fault by themselves."""
    frames: dict[str, Any] = {"NumberOfFrames": 10_000, "PixelData": bytes(64 * 10_000)}
    many = dicom(np.zeros((8, 8), np.uint8), **frames, **CHEST)
    jpeg = wrapped(encoded(RAMP, "JPEG"), RAMP, JPEGBaseline8Bit, **CHEST)
    j2k = with_syntax(good_dicom(), JPEG2000Lossless)
    yield "PNG of 900 million pixels", Case("too-large", inline(bombs.black_png(30_000, MIB)))
    yield "PNG larger than memory", Case("decode-memory", inline(bombs.black_png(6_000, 110 * MIB)))
    yield "PNG with a comment of 256 MiB", Case("damaged-file", inline(bombs.talkative_png(256 * MIB)))
    yield (
        "DICOM that inflates to 256 MiB",
        Case("unsupported-syntax", inline(bombs.deflated_dicom(256 * MIB))),
    )
    yield "JPEG whose stream lies", Case("size-mismatch", inline(streamed(jpeg, jpeg_size(8000, 8000))))
    yield "JPEG 2000 whose stream lies", Case("size-mismatch", inline(streamed(j2k, siz(8, 200, 200))))
    yield "JPEG 2000 that says too much", Case("too-large", inline(streamed(j2k, siz(8, 60_000, 60_000))))
    yield "10,000 frames, none chosen", Case("several-frames", inline(many))
    yield "10,001 frames", Case("too-large", inline(changed(many, NumberOfFrames=10_001)))
    yield "burned in", Case("burned-in", inline(good_dicom(BurnedInAnnotation="YES")))
    yield "a computed tomography", Case("wrong-modality", inline(good_dicom(Modality="CT")))
    yield "garbage", Case("not-an-image", inline(garbage(5000)))
    yield "garbage within PNG", Case("damaged-file", inline(png(901)[:60] + garbage(500)))
    yield "garbage within DICOM", Case("unsupported-syntax", inline(bytes(128) + b"DICM" + garbage(500)))
    yield "a picture cut off", Case("damaged-file", inline(png(902)[:-40]))
    for number in range(2):
        yield f"{FOR_EVER} {number}", Case("/".join(HANGS), inline(bombs.endless_jpeg(2000, 4000 + number)))


def events() -> Iterator[tuple[str, Case]]:
    """Records that are no events, or contradict themselves."""
    image, good = inline(png(911)), good_dicom()
    yield "no JSON", Case("invalid-json", image, value=b"\xff{not json")
    yield "nothing", Case("empty", image, value=b"")
    yield "nested", Case("too-deep", image, value=b'{"image":' * 100_000)
    yield "another's key", Case("key-mismatch", image, key=b"somebody else")
    yield "no base64", Case("invalid-message", {"type": "inline", "content": "*" * 40})
    yield "no such source", Case("invalid-message", {"type": "ftp", "url": "ftp://127.0.0.1/a"})
    yield "a long record", Case("too-large", inline(garbage(3 * MIB)))
    yield "another time", Case("implausible-time", image, {"time": "2001-01-01T00:00:00Z"})
    yield "wrong digest", Case("wrong-digest", inline(good), {"sha256": "0" * 64})
    yield "wrong size", Case("wrong-size", inline(good), {"size": len(good) + 1})


def places(root: Path, outside: Path) -> Iterator[tuple[str, Case]]:
    """Paths that lead where they must not."""
    (root / "link.dcm").symlink_to(outside)
    os.mkfifo(root / "pipe.dcm")
    yield "a file outside", Case("outside-roots", file(outside))
    yield "a path that climbs out", Case("outside-roots", file(f"../{outside.name}"))
    yield "a link that leads out", Case("outside-roots", file("link.dcm"))
    yield "a pipe", Case("not-a-file", file("pipe.dcm"))
    yield "no file", Case("not-found", file("nothing.dcm"))


def answers(shelf: Shelf, secret: Pacs) -> Iterator[tuple[str, Case]]:
    """A PACS that does what it must not."""
    here, good = shelf.pacs.url, good_dicom(SOPInstanceUID="1.2.3")
    away = pacs.status(302, Location="http://169.254.169.254/latest/meta-data")
    inside = pacs.status(307, Location=f"{secret.url}/studies/1.2/series/1.3/instances/1.2.9")
    slow = pacs.trickle(pacs.multipart(good), 2000, 0.2)
    packed = pacs.plain(good, **{"Content-Encoding": "gzip"})
    digest = hashlib.sha256(good[::-1]).hexdigest()
    yield "led to the metadata service", Case("redirected", shelf.instance(away))
    yield "led to another server", Case("redirected", shelf.instance(inside))
    yield "another server", Case("host-not-allowed", shelf.instance(pacs.good, secret.url))
    yield (
        "a name for a private address",
        Case("private-address", shelf.instance(pacs.good, here.replace("127.0.0.1", "localhost"))),
    )
    yield (
        "a user in the URL",
        Case("invalid-reference", shelf.instance(pacs.good, here.replace("//", "//user@"))),
    )
    yield "a path that climbs", Case("invalid-reference", shelf.instance(pacs.good, end="/../../secret"))
    yield "a slow body", Case("too-slow", shelf.instance(slow))
    yield "a slow header", Case("too-slow", shelf.instance(slow_head))
    yield "no answer", Case("too-slow", shelf.instance(pacs.silence))
    yield "a closed connection", Case("connection-closed", shelf.instance(pacs.hang_up))
    yield "a body without end", Case("image-too-large", shelf.instance(endless))
    yield "a long body", Case("image-too-large", shelf.instance(pacs.plain(bytes(6 * MIB))))
    yield "a packed body", Case("encoded-response", shelf.instance(packed))
    yield "two pictures", Case("several-images", shelf.instance(pacs.parts(good, good)))
    yield "a sign-in page", Case("wrong-media-type", shelf.instance(pacs.plain(b"<html>", "text/html")))
    yield "a broken envelope", Case("broken-response", shelf.instance(pacs.raw(b"--edge\r\nnothing")))
    yield "no such instance", Case("not-found", shelf.instance(pacs.status(404)))
    yield "a forbidden one", Case("forbidden", shelf.instance(pacs.status(403)))
    yield "a broken server", Case("server-error", shelf.instance(pacs.status(500)))
    yield "another file than announced", Case("wrong-digest", shelf.held(good), {"sha256": digest})
    yield "another frame", Case("wrong-frame", shelf.held(good, end="/frames/7"))
    yield "burned in, from a PACS", Case("burned-in", shelf.held(good_dicom(BurnedInAnnotation="YES")))


def models(folder: Path) -> Path:
    """The shipped models, the image model asking for chest films."""
    target = folder / "models"
    for source in repository.SHIPPED.rglob("*"):
        copy = target / source.relative_to(repository.SHIPPED)
        if source.is_dir():
            copy.mkdir(parents=True)
        elif source.name != "config.json" or source.parent.name != "pneumonia":
            copy.symlink_to(source)
        else:
            config = msgspec.json.decode(source.read_bytes())
            config["image"]["modality"] = ["DX", "CR"]
            copy.write_bytes(msgspec.json.encode(config))
    return target


def good_pictures(shelf: Shelf, root: Path, count: int) -> list[dict[str, Any]]:
    """Pictures that are scored, of every source, each its own."""
    made = []
    for number in range(count):
        content = good_dicom(SOPInstanceUID=f"1.9.{number}")
        (root / f"{number}.dcm").write_bytes(content)
        ways = (inline(content), shelf.held(content), file(f"{number}.dcm"))
        made.append(ways[number % len(ways)])
    return made


def settings(site: ImagingSite, shelf: Shelf, root: Path, folder: Path) -> dict[str, str]:
    """Of the worker: what is allowed, and limits that are soon reached."""
    here = shelf.pacs.url
    return {
        "RISKSTREAM_IMAGING_HOSTS": f"{here},{here.replace('127.0.0.1', 'localhost')}",
        "RISKSTREAM_IMAGING_INTERNAL_HOSTS": "127.0.0.1",
        "RISKSTREAM_IMAGING_ROOTS": str(root),
        "RISKSTREAM_IMAGING_MAX_BYTES": str(MAX_BYTES),
        "RISKSTREAM_IMAGING_MAX_RECORD_BYTES": str(3 * MIB),
        "RISKSTREAM_IMAGING_FETCH_TRIES": "2",
        "RISKSTREAM_IMAGING_SILENCE_TIMEOUT_S": "1",
        "RISKSTREAM_IMAGING_FETCH_TIMEOUT_S": "3",
        "RISKSTREAM_IMAGING_DECODE_TIMEOUT_S": str(DECODE_S),
        "RISKSTREAM_IMAGING_DECODE_MEMORY_MB": str(DECODE_MIB),
        "RISKSTREAM_MODEL_REPOSITORY": str(models(folder)),
    }


def mixed(cases: dict[str, Case], good: list[dict[str, Any]]) -> tuple[list[Record], list[str]]:
    """Records of all, hostile and good in turn, and what each is; a good one is named by its patient."""
    records, names = [], []
    for number, (name, case) in enumerate(cases.items()):
        sent = now(record(number, case.image, f"bad-{number}", **{"modality": "DX", **case.fields}))
        value = sent.value if case.value is None else case.value
        records.append(sent._replace(value=value, key=case.key or sent.key))
        names.append(name)
        if number < len(good):
            records.append(now(record(1000 + number, good[number], f"good-{number}")))
            names.append(f"good-{number}")
    return records, names


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(number) for number in task.read_text().split()]
        except OSError:
            continue
    return found


def resident(pid: int, name: str = "VmRSS") -> int:
    """MiB of a process; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) >> 10 for line in lines if line.startswith(name)), 0)


class Watch:
    """Looks at a worker's processes: what they take together, and which child decodes for long."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.before = resident(pid)
        self.peak = self.killed = 0

    async def look(self) -> None:
        """For ever; ends one child that decodes for over a second, by a signal as a crash is."""
        seen: dict[int, float] = {}
        while True:
            decoders = children(self.pid)
            working = [child for decoder in decoders for child in children(decoder)]
            self.peak = max(self.peak, sum(map(resident, [self.pid, *decoders, *working])))
            for child in working:
                since = seen.setdefault(child, time.perf_counter())
                if not self.killed and time.perf_counter() - since > 1.0 and resident(child) > 0:
                    os.kill(child, signal.SIGSEGV)
                    self.killed = child
            await asyncio.sleep(0.02)


Told = Counter[tuple[str, str]]
"""What was refused and by which reason."""

FOR_EVER = "a picture decoded for ever"


def told(letters: Sequence[DeadLetter], names: dict[tuple[int, int], str]) -> Told:
    found = Told()
    for letter in letters:
        name = names[letter.source.partition, letter.source.offset]
        found[FOR_EVER if name.startswith(FOR_EVER) else name, letter.reason] += 1
    return found


def expected(cases: dict[str, Case]) -> Told:
    alone = {name: case for name, case in cases.items() if not name.startswith(FOR_EVER)}
    return Told([*((name, case.reason) for name, case in alone.items()), *((FOR_EVER, h) for h in HANGS)])


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A root whose files may be read, and a good picture beside it that may not."""
    root, outside = tmp_path / "root", tmp_path / "secret.dcm"
    root.mkdir()
    outside.write_bytes(good_dicom(SOPInstanceUID="1.7.7"))
    return root, outside


async def test_each_gets_its_own_reason_and_the_good_ones_their_findings(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    root, outside = folders
    with tansu() as broker, redis() as cache:
        async with pacs.running() as served, pacs.running() as secret:
            site, shelf = ImagingSite(broker.address, cache.address), Shelf(served)
            cases = dict([*pixels(), *events(), *places(root, outside), *answers(shelf, secret)])
            records, names = mixed(cases, good_pictures(shelf, root, 30))
            await site.create()
            with WorkerProcess(site, **settings(site, shelf, root, tmp_path)) as worker:
                await worker.ready()
                watch = Watch(worker.pid)
                watching = asyncio.create_task(watch.look())
                began = time.perf_counter()
                sent = await site.placed(records)
                await site.committed({partition: offset + 1 for partition, offset in sent}, 90)
                took = time.perf_counter() - began
                watching.cancel()
                status, _ = await state(worker)
                highest, fates = resident(watch.pid, "VmHWM"), await worker.fates()
                assert (status, worker.pid) == (200, watch.pid)
                assert await worker.stop() == 0, worker.tail()
                log = worker.log_text()
            assert secret.asked == []
        came = await site.came()
    print(
        f"{len(cases)} hostile and {len(came.findings)} good pictures in {took:.1f} s; the worker took "
        f"{watch.before} MiB before and {highest} at most, with its decoder {watch.peak}"
    )
    assert told(came.letters, dict(zip(sent, names, strict=True))) == expected(cases)
    assert came.patients == sorted(name for name in names if name.startswith("good-"))
    assert set(came.times.values()) == {1}
    assert fates == {"scored": 30, "dead_lettered": len(cases)}
    assert watch.killed
    assert highest - watch.before < WORKER_MIB
    assert watch.peak - watch.before < TREE_MIB
    assert not [line for line in log.splitlines() if "bad-" in line or "good-" in line or "/studies" in line]
