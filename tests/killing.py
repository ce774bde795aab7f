"""What the kill tests share: workers that are killed, the load, and what must be left afterwards.

A scenario disturbs two workers while records arrive. Then one worker that nothing disturbs reads the same
input topic with its own group, alert topic and Redis namespace: alert ids, dead letters, scores, windows
and latches must be the same.
"""

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import aiohttp
import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from engines import repository
from engines.steps import fingerprint
from schemas.messages import Alert, DeadLetter, Score, VitalsRecord
from worker import codec, config, recording
from worker.cluster import describe
from worker.embedded import free_port
from worker.partition import Place
from worker.patient import FORGET_MS, Patient
from worker.store import Store

DATA = Path(os.environ.get("RISKSTREAM_TEST_DATA", Path(__file__).parents[2] / "shared/data/physionet2012"))
"""Recorded stays to test with; simulated patients take their place where there are none."""

_FATES = re.compile(r'^riskstream_records_total\{fate="(\w+)",topic="[^"]*"\} (\S+)$', re.M)

PARTITIONS = 4
SESSION_S = 3.0
SETTLE_S = 4.5
"""Two checkpoint intervals: expiries found by the first are stored by the second."""
STUCK_S = 45.0
"""How long the group may take to reach the end of the log before a partition counts as stuck."""


class Sent(NamedTuple):
    """One record to produce."""

    key: bytes
    value: bytes
    timestamp_ms: int


@lru_cache(maxsize=2)
def stays(count: int) -> tuple[str, list[list[VitalsRecord]]]:
    """What they are, and the records of each stay, in order of time; not to be changed.

    A simulated patient has two and a half times the records of a recorded one, so there are fewer of them.
    To read recorded ones takes seconds, and scenarios ask for the same again and again.
    """
    source = f"physionet2012:{DATA}" if DATA.exists() else recording.SIMULATE
    if source == recording.SIMULATE:
        count = max(count // 3, 8)
    found: dict[str, list[VitalsRecord]] = {}
    for record in recording.read(source, recording.Choice(patients=count)).open():
        found.setdefault(record.patient, []).append(record)
    return source.split(":")[0], list(found.values())


def load(count: int, seed: int, days: float) -> list[Sent]:
    """Records of `count` stays that begin over some days, with duplicates and bad records among them."""
    rng = random.Random(seed)
    _, found = stays(count)
    made: list[Sent] = []
    for number, records in enumerate(found):
        shift = timedelta(days=days * number / count)
        for record in records:
            moved = msgspec.structs.replace(record, time=record.time + shift)
            made.append(_sent(moved.patient, msgspec.json.encode(moved), moved))
            if rng.random() < 0.02:
                made.append(made[-1])
            if rng.random() < 0.01:
                made.append(_sent(moved.patient, rng.choice([b"{", b"\x00\xff", b'{"patient":1}']), moved))
    made.sort(key=lambda sent: sent.timestamp_ms)
    return made


def _sent(patient: str, value: bytes, record: VitalsRecord) -> Sent:
    return Sent(patient.encode(), value, round(record.time.timestamp() * 1000))


@dataclass
class Site:
    """Servers and names of one run. Groups differ between the disturbed run and the reference."""

    broker: str
    redis: str
    idempotence: bool
    run: str
    group: str
    role: str = "vitals"

    def environment(self, **more: str) -> dict[str, str]:
        """Settings of a worker of this run."""
        return {
            "RISKSTREAM_BROKER": self.broker,
            "RISKSTREAM_REDIS": f"redis://{self.redis}/0",
            "RISKSTREAM_GROUP": f"{self.run}-{self.group}",
            "RISKSTREAM_KAFKA_IDEMPOTENCE": str(self.idempotence).lower(),
            "RISKSTREAM_TOPIC_VITALS": f"{self.run}-vitals",
            "RISKSTREAM_TOPIC_ALERTS": f"{self.run}-{self.group}-alerts",
            "RISKSTREAM_TOPIC_SCORES": f"{self.run}-{self.group}-scores",
            "RISKSTREAM_TOPIC_DEAD_LETTERS": f"{self.run}-{self.group}-dead",
            "RISKSTREAM_PUBLISH_SCORES": "true",
            "RISKSTREAM_CREATE_TOPICS": "true",
            "RISKSTREAM_PARTITIONS": str(PARTITIONS),
            "RISKSTREAM_SESSION_TIMEOUT_S": str(SESSION_S),
            "RISKSTREAM_REBALANCE_TIMEOUT_S": "6",
            "RISKSTREAM_PUBLISH_TIMEOUT_S": "5",
            # Longer than the default, so that a kill leaves records to be read again.
            "RISKSTREAM_CHECKPOINT_INTERVAL_S": "2",
            "RISKSTREAM_BACKEND": "onnxruntime",
            **more,
        }

    def settings(self) -> config.Settings:
        """The same, for reading back."""
        values: dict[str, Any] = {
            name.removeprefix("RISKSTREAM_").lower(): text for name, text in self.environment().items()
        }
        return config.load(None, **values)

    def reference(self) -> "Site":
        """The undisturbed run over the same input."""
        return Site(self.broker, self.redis, self.idempotence, self.run, "reference")


def inherited() -> dict[str, str]:
    """The environment that every process of a run has."""
    return dict(os.environ)


class WorkerProcess:
    """`riskstream run` as a process of its own."""

    def __init__(self, site: Site, **more: str) -> None:
        self.port = free_port()
        self._role = site.role
        self._environment = site.environment(RISKSTREAM_HTTP_PORT=str(self.port), **more)
        self._folder = tempfile.TemporaryDirectory(prefix="riskstream-test-")
        self._log = Path(self._folder.name) / "worker.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, or start again after an end."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "worker.cli", "run", "--role", self._role],
                env=inherited() | self._environment,
                stderr=log,
                stdout=subprocess.DEVNULL,
            )

    @property
    def pid(self) -> int:
        """Of the run that is or was the last."""
        assert self._process is not None
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    async def stop(self, seconds: float = 30.0) -> int:
        """SIGTERM, and wait; the exit status."""
        assert self._process is not None
        self._process.terminate()
        try:
            return await asyncio.to_thread(self._process.wait, seconds)
        except subprocess.TimeoutExpired:
            for number in (signal.SIGUSR1, signal.SIGUSR2):
                self.signal(number)
                await asyncio.sleep(0.5)
            self.kill()
            raise AssertionError(f"the worker did not stop:\n{self.tail()}") from None

    async def ready(self, seconds: float = 40.0) -> None:
        """Wait until `/health/ready` says so."""
        url = f"http://127.0.0.1:{self.port}/health/ready"
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline:
            try:
                async with aiohttp.ClientSession() as session, session.get(url) as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)
        raise AssertionError(f"the worker is not ready:\n{self.tail()}")

    async def fates(self) -> dict[str, int]:
        """Records by fate, from its metrics."""
        text = await get(self, "metrics")
        return {fate: int(float(count)) for fate, count in _FATES.findall(text)}

    def log_text(self) -> str:
        """Its log so far; all of it once the process has ended."""
        return self._log.read_text(errors="replace")

    def tail(self) -> str:
        """The end of its log."""
        return self.log_text()[-20_000:]

    def log_lines(self) -> list[dict[str, Any]]:
        """Its log lines."""
        return [json.loads(line) for line in self.log_text().splitlines() if line.startswith("{")]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()


async def get(worker: WorkerProcess, path: str) -> str:
    """What a worker's HTTP server answers."""
    url = f"http://127.0.0.1:{worker.port}/{path}"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return await response.text()


async def create_topics(site: Site) -> None:
    """The run's input topic and both groups' output topics."""
    admin = AIOKafkaAdminClient(bootstrap_servers=site.broker)
    await admin.start()
    try:
        names = [f"{site.run}-vitals"]
        for group in (site.group, "reference"):
            names += [f"{site.run}-{group}-{kind}" for kind in ("alerts", "scores", "dead")]
        await admin.create_topics([NewTopic(name, PARTITIONS, 1) for name in names])
    finally:
        await admin.close()


async def produce(site: Site, records: list[Sent], seconds: float) -> dict[int, int]:
    """Send the records evenly over some time, in order; the end of each partition's log afterwards."""
    producer = AIOKafkaProducer(
        bootstrap_servers=site.broker,
        acks="all",
        enable_idempotence=site.idempotence,
        request_timeout_ms=60_000,
    )
    await producer.start()
    started = time.perf_counter()
    try:
        waiting = []
        for i, (key, value, timestamp_ms) in enumerate(records):
            waiting.append(await producer.send(f"{site.run}-vitals", value, key, timestamp_ms=timestamp_ms))
            if i % 20 == 0:
                await asyncio.sleep(max(0.0, started + seconds * i / len(records) - time.perf_counter()))
        confirmed = await asyncio.gather(*waiting)
        return {place.partition: place.offset + 1 for place in confirmed}
    finally:
        await producer.stop()


async def committed_to_the_end(site: Site, ends: dict[int, int], seconds: float = STUCK_S) -> None:
    """Wait until the group has committed the end of every partition; else a partition is stuck."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=site.broker, group_id=f"{site.run}-{site.group}", enable_auto_commit=False
    )
    await consumer.start()
    tps = [TopicPartition(f"{site.run}-vitals", p) for p in range(PARTITIONS)]
    try:
        # Assigned by hand, it asks for the group's offsets without joining it.
        consumer.assign(tps)
        deadline = time.perf_counter() + seconds
        while True:
            offsets = {tp.partition: await consumer.committed(tp) or 0 for tp in tps if tp.partition in ends}
            if offsets == ends:
                return
            assert time.perf_counter() < deadline, f"stuck: committed {offsets}, log ends {ends}"
            await asyncio.sleep(0.3)
    finally:
        await consumer.stop()


@dataclass
class Outcome:
    """What a run left behind.

    alerts: id -> alert without what depends on when it was made. repeats: records with an id seen before.
    """

    alerts: dict[str, bytes] = field(default_factory=dict)
    scored: Counter[tuple[int, int]] = field(default_factory=Counter)
    risks: dict[tuple[int, int], float] = field(default_factory=dict)
    dead: Counter[tuple[int, int]] = field(default_factory=Counter)
    repeats: int = 0
    patients: dict[str, Any] = field(default_factory=dict)
    backends: set[str] = field(default_factory=set)
    fates: dict[str, int] = field(default_factory=dict)


async def outcome(site: Site) -> Outcome:
    """Read the run's topics and Redis."""
    found = Outcome()
    for value in await _read_all(site, f"{site.run}-{site.group}-alerts"):
        alert = msgspec.json.decode(value, type=Alert)
        if alert.id in found.alerts:
            found.repeats += 1
            assert found.alerts[alert.id] == value, (
                f"one id, two contents: {_unlike(found.alerts[alert.id], value)}"
            )
        found.alerts[alert.id] = value
        found.backends.add(alert.backend)
    for value in await _read_all(site, f"{site.run}-{site.group}-scores"):
        score = msgspec.json.decode(value, type=Score)
        place = (score.source.partition, score.source.offset)
        found.scored[place] += 1
        assert found.risks.setdefault(place, score.risk) == score.risk
    for value in await _read_all(site, f"{site.run}-{site.group}-dead"):
        letter = msgspec.json.decode(value, type=DeadLetter)
        found.dead[letter.source.partition, letter.source.offset] += 1
    found.patients = await _stored(site)
    return found


def _unlike(ours: bytes, theirs: bytes) -> dict[str, Any]:
    """The fields in which two JSON objects differ."""
    one, other = json.loads(ours), json.loads(theirs)
    return {key: (one[key], other[key]) for key in one if one[key] != other[key]}


async def _read_all(site: Site, topic: str) -> list[bytes]:
    consumer = AIOKafkaConsumer(bootstrap_servers=site.broker, auto_offset_reset="earliest")
    await consumer.start()
    values = []
    try:
        tps = [TopicPartition(topic, p) for p in range(PARTITIONS)]
        consumer.assign(tps)
        await consumer.seek_to_beginning(*tps)
        while True:
            for records in (await consumer.getmany(timeout_ms=500)).values():
                values += [record.value for record in records]
            # The high-water mark comes with every fetch; Tansu's answer to "latest offset" lags behind it.
            highs = {tp: consumer.highwater(tp) for tp in tps}
            if all([high is not None and await consumer.position(tp) >= high for tp, high in highs.items()]):
                break
    finally:
        await consumer.stop()
    return values


async def _stored(site: Site) -> dict[str, Any]:
    """Every stored patient of whom something still matters, in a form that can be compared."""
    settings = site.settings()
    cluster = await describe(settings, create=False)
    model = fingerprint(repository.read_config(settings.model_repository, settings.model))
    store = Store(settings, cluster.vitals_id)
    patients: dict[str, Any] = {}
    try:
        for partition in range(PARTITIONS):
            found = await store.load(Place(cluster.id, settings.topic_vitals, partition))
            here = [codec.decode(stored.hot, stored.bins, model) for stored in found]
            newest = max((patient.touched_ms for patient in here), default=0)
            for patient in here:
                # One silent for longer starts anew with its next record; when it is dropped is housekeeping.
                if patient.touched_ms >= newest - FORGET_MS:
                    patients[patient.id] = _comparable(patient)
    finally:
        await store.close()
    return patients


def _comparable(patient: Patient) -> Any:
    """All of a patient but the stamp of the last checkpoint."""
    patient.applied = 0
    hours = sorted(patient.filled_bins())
    bins = [codec.encode_bin(patient, hour) for hour in hours]
    return hours, bins, codec.encode_hot(patient, ""), patient.latches


async def undisturbed(site: Site, ends: dict[int, int]) -> Outcome:
    """The outcome of one worker that reads the same input with nothing in its way."""
    reference = site.reference()
    with WorkerProcess(reference) as worker:
        await committed_to_the_end(reference, ends)
        await asyncio.sleep(SETTLE_S)
        fates = await worker.fates()
        assert await worker.stop() == 0, worker.tail()
    found = await outcome(reference)
    found.fates = fates
    return found


def differences(disturbed: Outcome, reference: Outcome) -> list[str]:
    """What differs between two runs, in words; empty when nothing does."""
    found = list(_different("alert ids", disturbed.alerts.keys(), reference.alerts.keys()))
    unlike = [key for key in disturbed.alerts.keys() & reference.alerts.keys()
              if disturbed.alerts[key] != reference.alerts[key]]  # fmt: skip
    found += [f"{len(unlike)} alerts have an id in common and differ in content"] if unlike else []
    found += _different("scored records", disturbed.scored.keys(), reference.scored.keys())
    found += _different("dead letters", disturbed.dead.keys(), reference.dead.keys())
    risks = [place for place, risk in reference.risks.items() if disturbed.risks.get(place, risk) != risk]
    found += [f"{len(risks)} risks differ"] if risks else []
    found += _different("stored patients", disturbed.patients.keys(), reference.patients.keys())
    states = [key for key in disturbed.patients.keys() & reference.patients.keys()
              if disturbed.patients[key] != reference.patients[key]]  # fmt: skip
    for key in states[:3]:
        for name, ours, theirs in zip(
            ("hours", "bins", "hot", "latch"), disturbed.patients[key], reference.patients[key], strict=True
        ):
            if ours != theirs:
                found.append(f"{name} of a patient differ: {ours!r} and {theirs!r}"[:1500])
    found += [f"{len(states)} stored states differ"] if states else []
    return found


def _different(what: str, ours: Any, theirs: Any) -> Iterator[str]:
    if ours != theirs:
        yield f"{what}: {len(ours - theirs)} too many, {len(theirs - ours)} missing of {len(theirs)}"


def repeated(outcome: Outcome) -> int:
    """Messages that a consumer ignoring ids would see twice."""
    again = sum(count - 1 for seen in (outcome.scored, outcome.dead) for count in seen.values())
    return outcome.repeats + again


def unaccounted(records: int, disturbed: Outcome, reference: Outcome) -> list[str]:
    """Records without a fate, in words.

    The topics show scores and dead letters, the reference counts the rest.
    """
    found = []
    if sum(reference.fates.values()) != records:
        found.append(f"{records} records in, fates {reference.fates}")
    if len(disturbed.scored) != reference.fates.get("scored", 0):
        found.append(
            f"{len(disturbed.scored)} records have scores, {reference.fates.get('scored')} were scored"
        )
    refused = len(disturbed.dead.keys() - disturbed.scored.keys())
    if not refused <= reference.fates.get("dead_lettered", 0) <= len(disturbed.dead):
        found.append(f"{len(disturbed.dead)} dead letters, fates {reference.fates}")
    return found
