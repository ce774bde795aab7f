"""200 studies in a real Orthanc, on Apache Kafka and redis-server, from the PACS to the patients' alerts.

Imaging events are sent and come again; the PACS hangs and is stopped, the imaging worker is killed. Then each
study has one finding, each finding stands in its patient's alerts, and only what is at fault was refused.
"""

import asyncio
import copy
import json
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from schemas.imaging import DicomwebImage, ImagingEvent
from schemas.messages import Alert, Finding
from tests import killing
from tests.integration import studies
from tests.integration.orthanc import OrthancServer
from tests.integration.servers import KafkaServer, RedisServer
from tests.integration.studies import Study
from tests.killing import WorkerProcess
from tests.worker.imaging_site import Came, ImagingSite
from tests.worker.records import PNEUMONIA, Record, worsening
from tests.worker.test_imaging_live import state

pytestmark = pytest.mark.asyncio(loop_scope="module")

STUDIES, PATIENTS = 200, 180
"""The first patients have two."""

BY_QUERY = 120
"""Studies that Orthanc has before anything is sent; the others are announced before they are stored."""

MASKED = (1000, 1001)
"""Numbers of two more studies, with text burned in."""

BEFORE_H, AFTER_H = 3, 6
"""Hours of vital signs before the films and after."""


class OrthancSite(ImagingSite):
    """One run on Apache Kafka, its pictures in Orthanc."""

    partitions = killing.PARTITIONS

    def __init__(self, kafka: KafkaServer, redis: RedisServer, orthanc: OrthancServer) -> None:
        account = orthanc.account
        known = {orthanc.url: f"basic {account.username}:{account.password}"}
        super().__init__(
            kafka.bootstrap,
            redis.url.removeprefix("redis://").removesuffix("/0"),
            RISKSTREAM_IMAGING_HOSTS=orthanc.url,
            RISKSTREAM_IMAGING_INTERNAL_HOSTS="127.0.0.1",
            RISKSTREAM_IMAGING_CREDENTIALS=json.dumps(known),
            # So that 200 pictures take long enough to be disturbed, and a hung PACS is soon known to be one.
            RISKSTREAM_IMAGING_CONCURRENCY="2",
            RISKSTREAM_IMAGING_FETCH_CONCURRENCY="2",
            RISKSTREAM_IMAGING_SILENCE_TIMEOUT_S="1",
            RISKSTREAM_IMAGING_BACKOFF_S="0.5",
            RISKSTREAM_IMAGING_BACKOFF_MAX_S="1",
            RISKSTREAM_CHECKPOINT_INTERVAL_S="1",
        )
        self.idempotence = True

    def ward(self) -> "OrthancSite":
        """The same run, for the worker of the vitals role."""
        other = copy.copy(self)
        other.role = "vitals"
        return other

    async def create(self) -> None:
        await killing.create_topics(self)
        await super().create()

    async def query(self, orthanc: OrthancServer) -> None:
        """`riskstream send imaging dicomweb:URL`."""
        command = ("-m", "worker.cli", "send", "imaging", f"dicomweb:{orthanc.url}")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            env=dict(os.environ) | self.environment(),
            stderr=asyncio.subprocess.PIPE,
        )
        _, told = await process.communicate()
        assert process.returncode == 0, told.decode()
        print(told.decode().strip())

    async def events(self) -> dict[tuple[int, int], ImagingEvent]:
        """What has been sent, by partition and offset."""
        records = await self.records(self.topics[0])
        return {(r.partition, r.offset): msgspec.json.decode(r.value, type=ImagingEvent) for r in records}

    async def alerts(self) -> list[Alert]:
        """All alerts so far, each once."""
        records = await self.records(f"{self.run}-g-alerts")
        found = [msgspec.json.decode(record.value, type=Alert) for record in records]
        return list({alert.id: alert for alert in found}.values())

    async def carried(self) -> None:
        """Wait until all findings so far stand among their patients' records, and are taken in."""
        findings, vitals = self.topics[1], f"{self.run}-vitals"
        await self.committed_by(f"{self.run}-g-findings", findings, await self.ends(findings), 40)
        await self.committed_by(f"{self.run}-g", vitals, await self.ends(vitals), 40)


class Tally:
    """Counts findings as they are published, those that come again too."""

    def __init__(self) -> None:
        self.count = 0
        self._grown = asyncio.Condition()

    async def one_more(self) -> None:
        async with self._grown:
            self.count += 1
            self._grown.notify_all()

    async def reaches(self, count: int, seconds: float = 60.0) -> None:
        async with asyncio.timeout(seconds), self._grown:
            await self._grown.wait_for(lambda: self.count >= count)


@asynccontextmanager
async def tally(site: OrthancSite) -> AsyncIterator[Tally]:
    """Counts while the context lasts."""
    counted = Tally()
    consumer = AIOKafkaConsumer(bootstrap_servers=site.broker, auto_offset_reset="earliest")
    await consumer.start()
    consumer.assign([TopicPartition(site.topics[1], partition) for partition in range(site.partitions)])

    async def count() -> None:
        async for _ in consumer:
            await counted.one_more()

    task = asyncio.create_task(count())
    try:
        yield counted
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await consumer.stop()


def patient_of(number: int) -> str:
    return f"patient-{number % PATIENTS:03d}"


async def made(orthanc: OrthancServer, begins: datetime) -> list[Study]:
    """All studies, none of them stored; films are taken once the patients are known."""
    taken = begins + timedelta(hours=BEFORE_H - 0.5)
    return [
        await studies.make(
            number, patient_of(number), taken + timedelta(seconds=60 * (number >= PATIENTS)), orthanc
        )
        for number in range(STUDIES)
    ]


def event(study: Study, orthanc: OrthancServer, path: str | None = None, **more: Any) -> Record:
    """A record that announces a study, with its size and digest."""
    stamp = round(study.time.timestamp() * 1000)
    told = {
        "event_id": f"announced-{study.number}",
        "patient": study.patient,
        "time": study.time.isoformat(),
        "image": {"type": "dicomweb", "url": orthanc.url + (path or study.path)},
        "sha256": study.digest,
        "size": len(study.file),
        **more,
    }
    return Record(study.number, stamp, study.patient.encode(), msgspec.json.encode(told))


async def vitals(site: OrthancSite, begins: datetime, hours: range) -> None:
    """Send some hours of every patient's vital signs; they decline all the time."""
    start_ms = round(begins.timestamp() * 1000)
    records = [
        one
        for number in range(PATIENTS)
        for one in worsening(patient_of(number), 100 * number, BEFORE_H + AFTER_H, start_ms)
        if one.offset % 100 in hours
    ]
    records.sort(key=lambda one: one.timestamp)
    sent = [killing.Sent(one.key or b"", one.value or b"", one.timestamp) for one in records]
    await killing.committed_to_the_end(site, await killing.produce(site, sent, 1.0))


async def until_away(worker: WorkerProcess, seconds: float = 20.0) -> None:
    """Wait until the worker says that pictures wait for their source."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                status, body = await state(worker)
            except OSError:
                status, body = 0, {}
            if status == 503 and body.get("imaging", {}).get("sources_away"):
                return
            await asyncio.sleep(0.1)


async def hang_and_kill(orthanc: OrthancServer, worker: WorkerProcess) -> None:
    """The PACS hangs; the worker is killed while it waits, and waits again when it is back."""
    orthanc.pause()
    await until_away(worker)
    worker.kill()
    worker.start()
    await until_away(worker, 40)
    orthanc.resume()


async def announce(
    site: OrthancSite, orthanc: OrthancServer, films: Sequence[Study], up: asyncio.Event
) -> None:
    """Send events of studies that are stored a moment later, as far as Orthanc is up."""
    for at in range(0, len(films), 10):
        batch = films[at : at + 10]
        await site.send([event(study, orthanc) for study in batch])
        await asyncio.sleep(0.3)
        await up.wait()
        await orthanc.store([study.file for study in batch])


async def stop_for_a_while(orthanc: OrthancServer, worker: WorkerProcess, up: asyncio.Event) -> None:
    """The PACS is stopped, and started again once the worker has noticed."""
    up.clear()
    await orthanc.stop()
    await until_away(worker)
    await asyncio.sleep(1.0)
    await orthanc.start()
    up.set()


async def test_studies_of_orthanc_reach_their_patients_alerts(
    kafka: KafkaServer, redis_server: RedisServer, orthanc: OrthancServer
) -> None:
    started = time.perf_counter()
    site = OrthancSite(kafka, redis_server, orthanc)
    begins = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=BEFORE_H + AFTER_H)
    films = await made(orthanc, begins)
    masked = [
        await studies.make(number, patient_of(number), begins, orthanc, BurnedInAnnotation="YES")
        for number in MASKED
    ]
    await orthanc.store([study.file for study in (*films[:BY_QUERY], *masked)])
    await site.create()
    with WorkerProcess(site.ward()) as ward, WorkerProcess(site) as worker:
        await asyncio.gather(ward.ready(), worker.ready())
        await vitals(site, begins, range(BEFORE_H))
        async with tally(site) as scored:
            began = time.perf_counter()
            await site.query(orthanc)
            await scored.reaches(20)
            await hang_and_kill(orthanc, worker)
            up = asyncio.Event()
            up.set()
            announced = asyncio.create_task(announce(site, orthanc, films[BY_QUERY:], up))
            await scored.reaches(BY_QUERY // 2)
            await stop_for_a_while(orthanc, worker, up)
            await scored.reaches(BY_QUERY)
            worker.kill()
            worker.start()
            await announced
            await site.send(faulty(films, masked, orthanc))
            await site.query(orthanc)
            await site.committed(await site.ends(site.topics[0]), 90)
            took = time.perf_counter() - began
        await site.carried()
        await vitals(site, begins, range(BEFORE_H, BEFORE_H + AFTER_H))
        for process in (worker, ward):
            assert await process.stop() == 0, process.tail()
    came, alerts = await site.came(), await site.alerts()
    repeated = sum(came.times.values()) - len(came.findings)
    sent = await site.events()
    in_all = time.perf_counter() - started
    print(
        f"{len(sent)} events, {len(came.findings)} findings in {took:.1f} s, {repeated} of them twice, "
        f"{len(came.letters)} dead letters, {len(alerts)} alerts; {in_all:.1f} s in all"
    )
    each_study_has_one_finding(came, films)
    what_is_at_fault_was_refused(came, sent, films, orthanc)
    alerts_are_those_of_the_findings(alerts, list(came.findings.values()))
    assert repeated < STUDIES / 4


def faulty(films: Sequence[Study], masked: Sequence[Study], orthanc: OrthancServer) -> list[Record]:
    """Events that must not lead to findings: of studies that are nowhere, and one with another's digest."""
    nowhere = [
        event(film, orthanc, "/studies/1.2/series/1.3/instances/1.2.826.9999", event_id=f"nowhere-{number}")
        for number, film in enumerate(films[:2])
    ]
    return [*nowhere, event(masked[0], orthanc, event_id="other", sha256=films[0].digest, size=None)]


def each_study_has_one_finding(came: Came, films: Sequence[Study]) -> None:
    """By what was stored: Orthanc gives it back to the bit, however it is compressed."""
    found = Counter((one.patient, one.time, one.image_sha256) for one in came.findings.values())
    assert found == Counter((film.patient, film.time, film.digest) for film in films)


def what_is_at_fault_was_refused(
    came: Came, sent: dict[tuple[int, int], ImagingEvent], films: Sequence[Study], orthanc: OrthancServer
) -> None:
    """Those events and no others, each with its reason."""
    good = {orthanc.url + film.path for film in films}
    refused = {(one.source.partition, one.source.offset): one.reason for one in came.letters}
    assert refused.keys() == {at for at, told in sent.items() if url_of(told) not in good}
    assert Counter(refused.values()) == {"burned-in": 2 * len(MASKED), "not-found": 2, "wrong-digest": 1}


def url_of(told: ImagingEvent) -> str:
    assert isinstance(told.image, DicomwebImage)
    return told.image.url


def alerts_are_those_of_the_findings(alerts: Sequence[Alert], findings: Sequence[Finding]) -> None:
    """Films above the policy have alerted, others not; what alerted later names the newest film."""
    enter = PNEUMONIA.policy.levels[0].enter
    newest = {one.patient: one for one in sorted(findings, key=lambda one: one.time)}
    above = {patient for patient, one in newest.items() if one.risk >= enter}
    ever = {one.patient for one in findings if one.risk >= enter}
    imaged = [one for one in alerts if one.model.name == PNEUMONIA.name and one.transition == "raised"]
    assert above <= {one.patient for one in imaged} <= ever
    assert PATIENTS / 4 < len(above) < PATIENTS
    known = {(one.patient, one.id, one.risk) for one in findings}
    assert all((one.patient, told.id, told.risk) in known for one in imaged for told in one.findings)
    later = [one for one in alerts if one.model.name != PNEUMONIA.name and one.transition != "expired"]
    later = [one for one in later if one.time > newest[one.patient].time]
    assert {one.patient for one in later} == newest.keys()
    assert all([told.id for told in one.findings] == [newest[one.patient].id] for one in later)
    print(f"{len(above)} patients alerted by their films; {len(later)} later alerts name the film")
