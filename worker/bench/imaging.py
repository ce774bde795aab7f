"""`riskstream bench imaging`: pictures together against one by one, and vitals beside a PACS that hangs.

Together and one by one take the same way: inline events, decoder processes, the batcher, findings in JSON; a
publisher that confirms at once, and an embedded Redis. Rounds alternate.

Beside the PACS: one worker with all roles scores simulated vitals at a steady rate, in topics of its own.
Half of the phases are quiet; in the others imaging events arrive whose PACS accepts connections and never
answers. A latency is from just before a record is sent until its score has come back.
"""

import asyncio
import contextlib
import os
import sys
import time
import uuid
from base64 import b64encode
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from engines import images
from schemas.messages import Score, VitalsRecord
from worker import cluster, config, embedded, recording, store
from worker.bench import report
from worker.bench.transport import BenchError
from worker.config import Settings
from worker.decode import Record
from worker.http import Occupant, occupant
from worker.imaging import ImagingPath, Outlets
from worker.imaging_app import image_ladder
from worker.imaging_memory import ScoredImages
from worker.imaging_sources import FetchedAndDecoded
from worker.intake import Limits
from worker.loading import device_turns
from worker.partition import Place
from worker.publish import Outgoing
from worker.serving import Ladder

PACKAGES = ("riskstream", "numpy", "onnxruntime", "pillow", "aiokafka", "faust-streaming")

START_S = 90.0
"""For a worker to be ready on a busy machine."""

PATIENTS, PARTITIONS = 20, 2

TOPICS = tuple(name for name in Settings.model_fields if name.startswith("topic_"))

WAITING = 64
"""Pictures asked for while the PACS hangs: more than are fetched at once."""

WARM_S, SETTLE_S = 2.0, 4.0
"""Before the first phase; after the PACS has let go, when what waited is tried again and dead-lettered."""

Told = Callable[[str], None]


class _Confirmed:
    """Counts what is published, and confirms it at once."""

    def __init__(self) -> None:
        self.topics: list[str] = []

    async def __call__(self, messages: Sequence[Outgoing]) -> None:
        self.topics += [message.topic for message in messages]


class _Sent:
    """A record at hand."""

    headers: tuple[tuple[str, bytes], ...] = ()

    def __init__(self, offset: int, patient: str, image: dict[str, Any]) -> None:
        time = datetime.now(UTC)
        event = {"event_id": str(offset), "patient": patient, "time": time.isoformat(), "image": image}
        self.offset = offset
        self.timestamp = round(time.timestamp() * 1000)
        self.key: bytes | None = patient.encode()
        self.value: bytes | None = msgspec.json.encode(event)


def run(
    pictures: int,
    side: int,
    rounds: int,
    rate: float,
    seconds: float,
    broker: str | None = None,
    *,
    on_progress: Told,
) -> dict[str, Any]:
    """Measure both.

    Args:
        pictures: in each round. side: pixels of each side of a PNG.
        rounds: of each measurement; rates are medians, latencies of all phases together.
        rate: vitals records a second. seconds: of each phase beside the PACS.
        broker: host:port, for the latter; an embedded one unless given.
        on_progress: told what goes on.

    Raises:
        BenchError: a worker did not get ready, or scores did not come back.
    """
    with ExitStack() as stack:
        cache = stack.enter_context(embedded.redis())
        on_progress("pictures together and one by one")
        throughput = asyncio.run(_throughput(f"redis://{cache.address}/0", pictures, side, rounds))
        address = broker or stack.enter_context(embedded.tansu()).address
        on_progress("vitals beside a PACS that hangs")
        isolation = asyncio.run(_isolation(address, cache.address, rounds, rate, seconds, on_progress))
    isolation["broker"] = "given" if broker else "embedded"
    return {**report.circumstances(PACKAGES), "throughput": throughput, "isolation": isolation}


async def _throughput(redis: str, pictures: int, side: int, rounds: int) -> dict[str, Any]:
    settings = config.load(redis=redis)
    ladder = image_ladder(settings, device_turns())
    await ladder.start()
    served, sources = ladder.current, FetchedAndDecoded(settings)
    client = store.connect(settings)
    rates: dict[str, list[float]] = {"one_by_one": [], "together": []}
    try:
        await sources.start()
        for number in range(rounds):
            for way, found in rates.items():
                records = _inline(pictures, side, seed=2 * number + (way == "together"))
                scored = ScoredImages(client, f"bench:{number}:{way}", 1.0)
                confirmed = _Confirmed()
                path = _path(settings, ladder, sources, confirmed, scored)
                started = time.perf_counter()
                await _take_all(path, records, together=way == "together")
                found.append(pictures / (time.perf_counter() - started))
                if confirmed.topics != [settings.topic_findings] * pictures:
                    raise BenchError(
                        f"{pictures} pictures became {len(set(confirmed.topics))} kinds of message"
                    )
    finally:
        await sources.close()
        await ladder.close()
        await client.aclose()
    rows = {way: round(median(found), 1) for way, found in rates.items()}
    return {
        "pictures": pictures,
        "side": side,
        "model": served.config.name,
        "backend": served.backend,
        "decoders": settings.imaging_decoders,
        "rows_per_s": rows,
        "together_over_one_by_one": round(rows["together"] / rows["one_by_one"], 2),
    }


def _path(
    settings: Settings,
    ladder: Ladder,
    sources: FetchedAndDecoded,
    confirmed: _Confirmed,
    scored: ScoredImages,
) -> ImagingPath:
    outlets = Outlets(confirmed, settings.topic_findings, settings.topic_dead_letters)
    limits = Limits(settings.imaging_max_record_bytes, 3_600_000, 3_600_000)
    return ImagingPath(ladder, sources, outlets, scored, limits)


async def _take_all(path: ImagingPath, records: Sequence[Record], *, together: bool) -> None:
    place = Place("bench", "imaging", 0)
    if together:
        await asyncio.gather(*(path.take(place, record) for record in records))
        return
    for record in records:
        await path.take(place, record)


def _inline(pictures: int, side: int, seed: int) -> list[_Sent]:
    rng = np.random.default_rng(seed)
    nothing = np.zeros((1, 1), np.float32)
    made = []
    for number in range(pictures):
        png = images.overlay(rng.random((1, 32, 32), dtype=np.float32), nothing, side)
        made.append(_Sent(number, f"p{number}", {"type": "inline", "content": b64encode(png).decode()}))
    return made


async def _isolation(
    broker: str, redis: str, rounds: int, rate: float, seconds: float, on_progress: Told
) -> dict[str, Any]:
    name = f"bench-{uuid.uuid4().hex[:8]}"
    topics = {kind: f"{name}-{kind.removeprefix('topic_').replace('_', '-')}" for kind in TOPICS}
    own: dict[str, Any] = {
        "broker": broker,
        "redis": f"redis://{redis}/0",
        "kafka_idempotence": False,
        "publish_scores": True,
        "create_topics": True,
        "partitions": PARTITIONS,
        "group": f"{name}-vitals",
        "imaging_group": f"{name}-imaging",
        **topics,
        "http_port": embedded.free_port(),
        "model_repository": config.DEFAULT_MODELS,
    }
    settings = config.load(**own)
    await cluster.describe(settings, create=True)
    await cluster.describe_imaging(settings, create=True)
    try:
        latencies = await _phases(settings, own, rounds, rate, seconds, on_progress)
    finally:
        await _delete(settings, list(topics.values()))
    return {
        "records_per_s": rate,
        "pictures_waiting": WAITING,
        "latency_ms": {phase: _spread(found) for phase, found in latencies.items()},
    }


async def _delete(settings: Settings, topics: list[str]) -> None:
    """Take the run's topics away; those that were never made are no matter."""
    admin = AIOKafkaAdminClient(**settings.kafka_client())
    await admin.start()
    try:
        await admin.delete_topics(topics)
    finally:
        await admin.close()


async def _phases(
    settings: Settings, own: dict[str, Any], rounds: int, rate: float, seconds: float, on_progress: Told
) -> dict[str, list[float]]:
    """Latencies of all rounds, by what the PACS did."""
    async with _Pacs() as pacs, _Load(settings, rate) as load:
        own |= {
            "imaging_hosts": f"http://{embedded.LOOPBACK}:{pacs.port}/dicom-web",
            "imaging_internal_hosts": embedded.LOOPBACK,
            "imaging_fetch_tries": 1,
            "imaging_backoff_max_s": 1,
        }
        with _worker(own):
            await _ready(settings)
            await load.phase(WARM_S)
            latencies: dict[str, list[float]] = {"quiet": [], "pacs_hangs": []}
            for number in range(rounds):
                on_progress(f"vitals alone, round {number + 1} of {rounds}")
                latencies["quiet"] += await load.phase(seconds)
                on_progress(f"vitals beside a PACS that hangs, round {number + 1} of {rounds}")
                pacs.hang()
                await load.ask(pacs.port, WAITING)
                latencies["pacs_hangs"] += await load.phase(seconds)
                if not pacs.hung:
                    raise BenchError("no picture was asked for: the PACS held up nobody")
                pacs.let_go()
                await asyncio.sleep(SETTLE_S)
    return latencies


class _Pacs:
    """Accepts connections; answers none while it hangs, and knows no picture while it does not.

    hung: connections that it has left without an answer since `hang`.
    """

    def __init__(self) -> None:
        self.port = embedded.free_port()
        self.hung = 0
        self._going = asyncio.Event()
        self._server: asyncio.Server | None = None

    def hang(self) -> None:
        self.hung = 0
        self._going.clear()

    def let_go(self) -> None:
        self._going.set()

    async def __aenter__(self) -> "_Pacs":
        self._server = await asyncio.start_server(self._serve, embedded.LOOPBACK, self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self.let_go()
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            if not self._going.is_set():
                self.hung += 1
                await self._going.wait()
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
        writer.close()


class _Load:
    """Simulated vitals at a steady rate, and when their scores came back."""

    def __init__(self, settings: Settings, rate: float) -> None:
        kafka = settings.kafka_client()
        self._settings, self._rate = settings, rate
        self._producer = AIOKafkaProducer(**kafka, acks="all", linger_ms=0)
        self._consumer = AIOKafkaConsumer(**kafka, auto_offset_reset="earliest", fetch_max_wait_ms=20)
        self._records = recording.read(recording.SIMULATE, recording.Choice(PATIENTS, hours=500.0)).open()
        self._came: dict[tuple[int, int], float] = {}
        self._task: asyncio.Task[None] | None = None
        self._asked = 0

    async def __aenter__(self) -> "_Load":
        await self._producer.start()
        await self._consumer.start()
        self._consumer.assign([TopicPartition(self._settings.topic_scores, p) for p in range(PARTITIONS)])
        self._task = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._producer.stop()
        await self._consumer.stop()

    async def _read(self) -> None:
        decode = msgspec.json.Decoder(Score).decode
        async for message in self._consumer:
            now = time.perf_counter()
            source = decode(message.value).source
            self._came.setdefault((source.partition, source.offset), now)

    async def phase(self, seconds: float) -> list[float]:
        """Send for a while; milliseconds until each score came.

        Raises:
            BenchError: too few came.
        """
        began, sent = time.perf_counter(), []
        for number in range(round(seconds * self._rate)):
            await asyncio.sleep(max(0.0, began + number / self._rate - time.perf_counter()))
            sent.append(asyncio.create_task(self._send(next(self._records))))
        places = dict(await asyncio.gather(*sent))
        for _ in range(100):
            if places.keys() <= self._came.keys():
                break
            await asyncio.sleep(0.1)
        found = [1000 * (self._came[place] - at) for place, at in places.items() if place in self._came]
        if len(found) < 0.9 * len(places):
            raise BenchError(f"{len(found)} of {len(places)} records came back scored")
        return found

    async def _send(self, record: VitalsRecord) -> tuple[tuple[int, int], float]:
        stamp, at = round(record.time.timestamp() * 1000), time.perf_counter()
        told = await self._producer.send_and_wait(
            self._settings.topic_vitals,
            msgspec.json.encode(record),
            record.patient.encode(),
            timestamp_ms=stamp,
        )
        return (told.partition, told.offset), at

    async def ask(self, port: int, pictures: int) -> None:
        """Announce pictures that the PACS has, each of its own instance."""
        base = f"http://{embedded.LOOPBACK}:{port}/dicom-web/studies/1.2/series/1.3/instances"
        for _ in range(pictures):
            self._asked += 1
            image = {"type": "dicomweb", "url": f"{base}/1.4.{self._asked}"}
            sent = _Sent(self._asked, f"p{self._asked}", image)
            await self._producer.send(
                self._settings.topic_imaging, sent.value, sent.key, timestamp_ms=sent.timestamp
            )
        await self._producer.flush()


def _worker(own: dict[str, Any]) -> embedded.Child:
    root = str(Path(__file__).resolve().parents[2])
    env = os.environ | {f"RISKSTREAM_{name.upper()}": str(value) for name, value in own.items()}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (root, env.get("PYTHONPATH"))))
    child = embedded.Child("worker", [sys.executable, "-m", "worker.cli", "run", "--role", "all"], env)
    child.start()
    return child


async def _ready(settings: Settings) -> None:
    until = time.perf_counter() + START_S
    while time.perf_counter() < until:
        if await occupant(settings.http_host, settings.http_port) is Occupant.READY:
            return
        await asyncio.sleep(0.5)
    raise BenchError(f"the worker is not ready after {START_S:g} s")


def _spread(latencies: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.percentile(latencies, (50, 99))
    return {"records": len(latencies), "p50": round(float(p50), 1), "p99": round(float(p99), 1)}
