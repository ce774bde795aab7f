"""From the findings topic to a patient's alerts, by a worker process on the embedded broker."""

import asyncio
import base64
import time
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from schemas.messages import Alert, DeadLetter, Finding
from tests import killing
from tests.killing import Site, WorkerProcess
from tests.worker.imaging_site import ImagingSite
from tests.worker.pictures import inline, png, record
from tests.worker.records import HOUR, PNEUMONIA, worsening
from tests.worker.test_findings import finding
from tests.worker.test_imaging_live import now
from worker.audit_run import Order, audit
from worker.decode import FINDING_TYPE
from worker.embedded import redis, tansu
from worker.publish import Outgoing, Publisher

PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(1000)
PATIENTS = ("p-1", "p-2", "p-3")


async def until(consumer: AIOKafkaConsumer, found: list[Any], enough: int) -> list[Any]:
    """What has come, once it is enough."""
    async with asyncio.timeout(40):
        while len(found) < enough:
            found.append(await consumer.getone())
    return found


async def reader(site: Site, topic: str, partitions: int = killing.PARTITIONS) -> AIOKafkaConsumer:
    consumer = AIOKafkaConsumer(bootstrap_servers=site.broker, enable_auto_commit=False)
    await consumer.start()
    places = [TopicPartition(topic, number) for number in range(partitions)]
    consumer.assign(places)
    await consumer.seek_to_beginning(*places)
    return consumer


async def scenario(site: Site) -> None:
    settings, now = site.settings(), time.time_ns() // 1_000_000
    await killing.create_topics(site)
    with WorkerProcess(site) as worker:
        await worker.ready()
        publisher = Publisher(settings)
        await publisher.start()
        pictures = [
            finding(name, now - HOUR, 0.95, activation_png=base64.b64encode(PICTURE).decode())
            for name in PATIENTS
        ]
        values = [msgspec.json.encode(content) for content in pictures]
        sent = [Outgoing("findings", name.encode(), v, ()) for name, v in zip(PATIENTS, values, strict=True)]
        await publisher.publish([*sent, Outgoing("findings", b"p-1", b'{"risk": 2}', ()), sent[0]])

        alerts = await reader(site, settings.topic_alerts)
        came = [msgspec.json.decode(r.value, type=Alert) for r in await until(alerts, [], len(PATIENTS))]
        assert {alert.patient for alert in came} == set(PATIENTS)
        for alert in came:
            assert (alert.model.name, alert.transition, alert.severity) == (PNEUMONIA.name, "raised", "high")
            assert alert.findings[0].id == f"{alert.patient}-{now - HOUR}"

        vitals = [
            killing.Sent(one.key or b"", one.value or b"", one.timestamp)
            for name in PATIENTS
            for one in worsening(name, 0, 8, now - 8 * HOUR)
        ]
        ends = await killing.produce(site, vitals, 0.5)
        await killing.committed_to_the_end(site, ends)
        found: list[Any] = []
        names: set[tuple[str, str]] = set()
        while len(names) < 2 * len(PATIENTS):
            await until(alerts, found, len(found) + 1)
            alert = msgspec.json.decode(found[-1].value, type=Alert)
            assert alert.model.name in {"vitals", "news2"}
            assert [one.risk for one in alert.findings] == [0.95]
            names.add((alert.patient, alert.model.name))
        await alerts.stop()
        await publisher.stop()
        assert await worker.stop() == 0, worker.tail()
    await carried(site, settings.topic_vitals, settings.topic_dead_letters)
    result = await audit(settings, Order())
    assert result.well
    assert result.alerts >= 3 * len(PATIENTS)


async def carried(site: Site, topic: str, dead: str) -> None:
    """What stands in the vitals topic, and what was refused."""
    consumer = await reader(site, topic)
    records = await until(consumer, [], 9 * len(PATIENTS) + 1)
    await consumer.stop()
    place = {one.key: one.partition for one in records if not one.headers}
    mine = [one for one in records if dict(one.headers).get("content-type") == FINDING_TYPE]
    assert len(mine) == len(PATIENTS) + 1
    for one in mine:
        assert one.partition == place[one.key]
        assert msgspec.json.decode(one.value, type=Finding).activation_png is None
        assert len(one.value) < len(PICTURE)
    consumer = await reader(site, dead)
    (letter,) = await until(consumer, [], 1)
    await consumer.stop()
    told = msgspec.json.decode(letter.value, type=DeadLetter)
    assert (told.reason, told.source.topic) == ("invalid-message", "findings")


def test_findings_reach_the_alerts_of_their_patients() -> None:
    with tansu() as broker, redis() as cache:
        asyncio.run(scenario(Site(broker.address, cache.address, False, "pictures", "live")))


async def from_pictures(site: ImagingSite) -> None:
    """Both roles in one process."""
    settings = site.settings()
    sent = [now(record(number, inline(png(number)), f"p{number}")) for number in range(4)]
    with WorkerProcess(site) as worker:
        await worker.ready()
        await site.send(sent)
        findings = (await site.until(len(sent))).findings
        assert {found.risk >= PNEUMONIA.policy.levels[0].enter for found in findings.values()} == {True}
        consumer = await reader(site, settings.topic_alerts, settings.partitions)
        alerts = [msgspec.json.decode(one.value, type=Alert) for one in await until(consumer, [], len(sent))]
        await consumer.stop()
        assert await worker.stop() == 0, worker.tail()
    for alert in alerts:
        (seen,) = alert.findings
        found = findings[seen.id]
        assert (alert.patient, alert.model, alert.backend) == (found.patient, found.model, found.backend)
        assert (alert.transition, alert.risk, alert.source.topic) == (
            "raised", found.risk, settings.topic_vitals,
        )  # fmt: skip
    assert {alert.patient for alert in alerts} == {found.patient for found in findings.values()}


def test_a_picture_sent_to_the_imaging_role_raises_its_patients_alert() -> None:
    with tansu() as broker, redis() as cache:
        asyncio.run(from_pictures(ImagingSite(broker.address, cache.address, "all")))
