"""Policies that change and feedback that comes while workers run and are killed, on Apache Kafka.

Afterwards every alert verifies by computing it again from the topics, which knows nothing of when the workers
heard of what.
"""

import asyncio
import json
import os
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import msgspec
import pytest

from engines import repository
from schemas.messages import Alert, VitalsRecord
from tests import killing
from tests.integration.servers import KafkaServer, RedisServer
from tests.killing import Sent, Site, WorkerProcess
from tests.worker.records import HOUR, rfc3339, worsening
from worker.audit_run import Order, audit
from worker.cluster import describe
from worker.config import Settings
from worker.history import History

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOURS = 22
COUNTED = 'riskstream_feedback_total{action="acknowledged",model="vitals",reason=""} 1.0'
PATIENTS = ("left-alone", "raised-threshold", "answered")


def course(now_ms: int) -> Iterator[Sent]:
    """Three patients who decline within eight hours, then recover; the last record is of now."""
    for patient in PATIENTS:
        declines = worsening(patient, 0, 9)
        for hour in range(HOURS):
            like = declines[hour if hour <= 8 else max(16 - hour, 0)]
            time_ms = now_ms - (HOURS - hour) * HOUR
            content = json.loads(like.value or b"")
            content |= {"event_id": f"{patient}-{hour}", "time": rfc3339(time_ms), "care_unit": "ward-7"}
            record = msgspec.convert(content, VitalsRecord)
            yield Sent(patient.encode(), msgspec.json.encode(record), time_ms)


async def command(site: Site, *words: str) -> str:
    """Run a command of ours with the site's settings; what it prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker.cli", *words),
        env={**os.environ, **site.environment()},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    told, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, told.decode()
    return told.decode()


async def until_metric(worker: WorkerProcess, line: str) -> None:
    async with asyncio.timeout(40), aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"http://127.0.0.1:{worker.port}/metrics") as response:
                if line in await response.text():
                    return
            await asyncio.sleep(0.1)


async def alerts(settings: Settings) -> list[Alert]:
    """What stands in the alert topic, in order within each patient; a repeated id once."""
    found: dict[str, Alert] = {}
    async with History(settings) as log:
        for partition in range(killing.PARTITIONS):
            async for records in log.read(
                settings.topic_alerts, partition, *await log.span(settings.topic_alerts, partition)
            ):
                for record in records:
                    alert = msgspec.json.decode(record.value, type=Alert)
                    found.setdefault(alert.id, alert)
    return list(found.values())


async def test_policies_and_feedback_while_workers_are_killed(
    kafka: KafkaServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    address = redis_server.url.removeprefix("redis://").removesuffix("/0")
    run = f"policies-{uuid.uuid4().hex[:6]}"
    site = Site(kafka.bootstrap, address, True, run, "said")
    settings = site.settings()
    await describe(settings, create=True)
    now_ms = time.time_ns() // 1_000_000
    sent = sorted(course(now_ms), key=lambda one: one.timestamp_ms)
    split = next(n for n, one in enumerate(sent) if one.timestamp_ms >= now_ms - 12 * HOUR)
    threshold = {
        "model": "vitals",
        "patient": "raised-threshold",
        "version": 3,
        "levels": [{"severity": "elevated", "enter": 0.98}],
        "exit": 0.97,
        "effective_from": rfc3339(now_ms - 40 * HOUR),
    }
    half_way = rfc3339(now_ms - 12 * HOUR)
    scale = {"model": "news2", "care_unit": "ward-7", "version": 2, "scale": 2, "effective_from": half_way}
    changes = tmp_path / "changes.json"
    changes.write_bytes(msgspec.json.encode([threshold, scale]))

    await command(site, "policy", "publish", str(changes))
    with WorkerProcess(site) as worker:
        await worker.ready()
        await until_metric(worker, 'riskstream_policy_changes{source="topic"} 2.0')
        half = await killing.produce(site, sent[:split], 1.0)
        await killing.committed_to_the_end(site, half, 60.0)
        mine = [a for a in await alerts(settings) if a.patient == "answered" and a.model.name == "vitals"]
        await command(site, "feedback", mine[-1].id, "acknowledged", "--role", "nurse")
        await until_metric(worker, COUNTED)
        worker.kill()
        worker.start()
        await worker.ready()
        end = await killing.produce(site, sent[split:], 1.0)
        await killing.committed_to_the_end(site, end, 60.0)
        assert await worker.stop() == 0, worker.tail()

    published = await alerts(settings)
    shipped = repository.read_config(repository.SHIPPED, "vitals").policy.version
    by_model = [a for a in published if a.model.name == "vitals"]
    assert {(a.policy_version, a.care_unit) for a in mine} == {(shipped, "ward-7")}
    assert "raised-threshold" not in {a.patient for a in by_model}
    assert {a.policy_version for a in published if a.model.name == "news2"} >= {"1+unit.2"}
    after = {
        patient: [a.transition for a in by_model if a.patient == patient and a.source.offset > 0]
        for patient in ("left-alone", "answered")
    }
    assert after["left-alone"].count("updated") > after["answered"].count("updated")
    assert after["answered"][-1] == "resolved"

    result = await audit(settings, Order())
    assert result.well, [(f.published.alert.id, f.differences) for f in result.findings]
    assert result.alerts == len(published) >= 4
