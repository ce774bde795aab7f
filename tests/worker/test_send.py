"""What is sent arrives once, in order, with the key, timestamp and header that the worker expects."""

import asyncio
import io
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from schemas.messages import VitalsRecord
from worker import config, embedded, recording
from worker.config import Settings
from worker.recording import Choice
from worker.send import Confirmed, Pace, Sender, SendError, send

RECORDING = recording.read("simulate", Choice(patients=6, hours=8))
PARTITIONS = 4
ROOT = Path(embedded.__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def broker() -> Iterator[embedded.Server]:
    with embedded.tansu() as server:
        yield server


@pytest.fixture
async def settings(broker: embedded.Server, request: pytest.FixtureRequest) -> AsyncIterator[Settings]:
    """Settings with a vitals topic of this test's own."""
    topic = request.node.name
    made = config.load(broker=broker.address, kafka_idempotence=False, topic_vitals=topic)
    admin = AIOKafkaAdminClient(**made.kafka_client())
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, PARTITIONS, 1)])
        yield made
    finally:
        await admin.close()


async def read_back(settings: Settings, count: int) -> dict[int, list[Any]]:
    """The `count` records of the vitals topic, by partition, and a little patience for any others."""
    consumer = AIOKafkaConsumer(**settings.kafka_client(), auto_offset_reset="earliest")
    await consumer.start()
    try:
        partitions = [TopicPartition(settings.topic_vitals, p) for p in range(PARTITIONS)]
        consumer.assign(partitions)
        found: dict[int, list[Any]] = {p: [] for p in range(PARTITIONS)}
        async with asyncio.timeout(20):
            while (batch := await consumer.getmany(timeout_ms=500)) or sum(map(len, found.values())) < count:
                for place, records in batch.items():
                    found[place.partition].extend(records)
        return found
    finally:
        await consumer.stop()


async def test_everything_arrives_once_in_order_with_its_key_time_and_type(settings: Settings) -> None:
    confirmed: list[Confirmed] = []
    async with Sender(settings, confirmed.append) as sender:
        await send(sender, RECORDING)
    log = await read_back(settings, RECORDING.count)
    arrived = [record for records in log.values() for record in records]
    decoded = {r.event_id: r for r in (msgspec.json.decode(a.value, type=VitalsRecord) for a in arrived)}
    assert decoded == {record.event_id: record for record in RECORDING.open()}
    assert len(arrived) == RECORDING.count == sender.sent == sender.confirmed
    assert {(c.partition, c.offset) for c in confirmed} == {(a.partition, a.offset) for a in arrived}
    for record in arrived:
        vitals = msgspec.json.decode(record.value, type=VitalsRecord)
        assert record.key == vitals.patient.encode()
        assert record.timestamp == round(vitals.time.timestamp() * 1000)
        assert dict(record.headers) == {"content-type": b"application/json"}
    for records in log.values():
        assert [r.timestamp for r in records] == sorted(r.timestamp for r in records)


async def test_what_is_recorded_is_what_was_sent(settings: Settings) -> None:
    file = io.BytesIO()
    async with Sender(settings, record_to=file) as sender:
        await send(sender, RECORDING)
    lines = file.getvalue().splitlines()
    assert [msgspec.json.decode(line, type=VitalsRecord) for line in lines] == list(RECORDING.open())


async def test_sending_ends_when_its_time_is_over(settings: Settings) -> None:
    async with Sender(settings) as sender:
        await send(sender, RECORDING, speed=3600.0, seconds=0.3)
    assert 0 < sender.sent < RECORDING.count
    assert sender.confirmed == sender.sent


async def test_pace_keeps_event_time() -> None:
    begins = datetime(2026, 1, 1, tzinfo=UTC)
    started = time.perf_counter()
    pace = Pace(begins, speed=600.0)
    await pace.until(begins + timedelta(minutes=1))
    assert 0.1 <= time.perf_counter() - started < 2
    await pace.until(begins)
    await Pace(begins, None).until(begins + timedelta(days=9))
    assert time.perf_counter() - started < 2


async def test_a_record_too_large_for_the_broker_is_an_error(settings: Settings) -> None:
    (first, *_) = RECORDING.open()
    large = msgspec.structs.replace(first, observations=first.observations * 2000)
    async with Sender(settings) as sender:
        with pytest.raises(SendError, match="larger than the broker takes"):
            await sender.send(large)


async def test_the_command_sends_a_source_and_what_it_recorded_of_it(
    settings: Settings, tmp_path: Path
) -> None:
    async def run(*arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "worker.cli", "send", *arguments),
            cwd=ROOT,
            env=os.environ
            | {
                "RISKSTREAM_BROKER": settings.broker,
                "RISKSTREAM_TOPIC_VITALS": settings.topic_vitals,
                "RISKSTREAM_KAFKA_IDEMPOTENCE": "false",
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        told, _ = await process.communicate()
        assert process.returncode == 0, told
        return " ".join(told.decode().split())

    file = tmp_path / "recording.jsonl"
    first = await run("simulate", "--patients", "2", "--hours", "3", "--record", str(file))
    again = await run(str(file), "--seconds", "0.2")
    count = len(file.read_bytes().splitlines())
    assert first == again == f"sent {count} records of 2 patients to {settings.topic_vitals}"
    log = await read_back(settings, 2 * count)
    for records in log.values():
        values = [record.value for record in records]
        assert values[: len(values) // 2] == values[len(values) // 2 :]


def test_a_recording_that_cannot_be_written_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    sent = subprocess.run(
        [
            sys.executable,
            "-m",
            "worker.cli",
            "send",
            "simulate",
            "--record",
            str(tmp_path / "none" / "r.jsonl"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert sent.returncode == 1
    assert sent.stderr.startswith("riskstream send: --record: cannot write")
    assert sent.stderr.count("\n") == 1


async def test_no_broker_is_an_error() -> None:
    settings = config.load(broker=f"127.0.0.1:{embedded.free_port()}", kafka_idempotence=False)
    with pytest.raises(SendError, match="cannot connect"):
        async with Sender(settings):
            pass
