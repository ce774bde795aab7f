"""The feed on a broker: read back, follow, survive what is no message, wait for the broker."""

import asyncio
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from schemas.messages import MAX_ACTIVATION_BYTES, Alert, Finding, Score
from tests.worker.ward import HOUR_MS, alert, finding, picture, score
from worker import board_feed, cli, config, embedded
from worker.board_feed import MAX_BYTES, MAX_FINDING_BYTES, Feed, now_ms
from worker.board_ward import Bounds, Ward
from worker.config import Settings

ROOT = Path(cli.__file__).resolve().parent.parent
BOUNDS = Bounds(24 * HOUR_MS, 168 * HOUR_MS, 100)


def made(settings: Settings) -> tuple[Ward, Feed]:
    ward = Ward(BOUNDS)
    return ward, Feed(settings, ward)


async def until(holds: Callable[[], bool]) -> None:
    deadline = time.perf_counter() + 20
    while not holds() and time.perf_counter() < deadline:  # noqa: ASYNC110 -- several tasks move it
        await asyncio.sleep(0.02)
    assert holds()


@asynccontextmanager
async def running(feed: Feed) -> AsyncIterator[None]:
    task = asyncio.create_task(feed.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def publish(settings: Settings, *messages: Score | Alert | Finding) -> None:
    topics = {
        Score: settings.topic_scores,
        Alert: settings.topic_alerts,
        Finding: settings.topic_findings,
    }
    producer = AIOKafkaProducer(**settings.kafka_client())
    await producer.start()
    for message in messages:
        await producer.send_and_wait(topics[type(message)], msgspec.json.encode(message), partition=0)
    await producer.stop()


async def test_topics_are_read_back_then_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_feed, "RETRY_S", 0.05)
    with embedded.tansu() as broker:
        settings = config.load(broker=broker.address)
        ward, feed = made(settings)
        async with running(feed):
            await until(lambda: feed.state().kafka_up)
            assert (feed.state().scores.exists, feed.state().alerts.exists) == (False, False)
        admin: Any = AIOKafkaAdminClient(**settings.kafka_client())
        await admin.start()
        assert await admin.list_topics() == []  # a page that only reads has created none
        names = (settings.topic_scores, settings.topic_alerts)
        await admin.create_topics([NewTopic(name, 2, 1) for name in names])
        await admin.close()
        await publish(settings, score("p", 0.1), alert("p"))
        ward, feed = made(settings)
        assert feed.state().loading
        async with running(feed):
            await until(lambda: feed.state().scores.taken == 1 and feed.state().alerts.taken == 1)
            await until(lambda: not feed.state().loading)
            state = feed.state()
            assert (state.kafka_up, state.unreadable, state.patients) == (True, 0, 1)
            assert state.last is not None
            assert abs(state.now - state.last) < 60_000
            await publish(settings, score("q", 0.2))
            await until(lambda: len(ward) == 2)
            # The imaging role may come to a hospital long after the page.
            admin = AIOKafkaAdminClient(**settings.kafka_client())
            await admin.start()
            await admin.create_topics([NewTopic(settings.topic_findings, 1, 1)])
            await admin.close()
            await publish(settings, finding("r", activation_png=picture()))
            await until(lambda: len(ward) == 3)
            broker.kill()
            await until(lambda: not feed.state().kafka_up)
        assert len(ward) == 3


async def test_a_broker_that_is_not_there_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_feed, "RETRY_S", 0.05)
    port = embedded.free_port()
    _, feed = made(config.load(broker=f"127.0.0.1:{port}"))
    async with running(feed):
        await asyncio.sleep(0.3)
        assert (feed.state().kafka_up, feed.state().loading) == (False, True)
        with embedded.tansu(port):
            await until(lambda: feed.state().kafka_up)


BROKEN = [
    None,
    b"",
    b"{",
    b"[]",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"patient": "p"}',
    msgspec.json.encode(score("p" * 129, 0.1)),
    msgspec.json.encode(score("p", 0.1)).replace(b"0.1", b"1e999"),
    b" " * (MAX_BYTES + 1),
    msgspec.json.encode(score("p", 0.1)).replace(b'12:00:00Z"', b'12:00:00"'),
    msgspec.json.encode(alert("p")).replace(b'12:00:00Z"', b'12:00:00"'),
    msgspec.json.encode(finding("p")).replace(b"0.87", b"1.87"),
    b" " * (MAX_FINDING_BYTES + 1),
]


@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize("topic", ["risk-scores", "risk-alerts", "alert-feedback", "findings"])
def test_what_is_no_message_is_counted_and_left_out(topic: str, value: bytes | None) -> None:
    ward, feed = made(config.load())
    feed.take(topic, value, now_ms())
    assert (len(ward), feed.state().unreadable) == (0, 1)


def test_the_greatest_picture_that_a_finding_may_have_is_taken() -> None:
    ward, feed = made(config.load())
    png = picture()
    whole = png[:-12] + bytes(MAX_ACTIVATION_BYTES - len(png)) + png[-12:]
    feed.take("findings", msgspec.json.encode(finding("p", activation_png=whole)), now_ms())
    assert feed.state().unreadable == 0
    told = ward.detail(1)
    assert told is not None
    assert ward.picture(1, told.findings[0].number) == whole


@pytest.mark.parametrize("field", ["time", "raised_at", "expires_at"])
def test_a_time_without_a_zone_among_others_is_left_out(field: str) -> None:
    ward, feed = made(config.load())
    zoned = msgspec.json.decode(msgspec.json.encode(alert("p")))
    for told in ({}, {field: "2026-01-02T00:00:00", "episode": "c/vitals/0/8"}, {"sequence": 1}):
        feed.take("risk-alerts", msgspec.json.encode(zoned | told), now_ms())
    assert (len(ward), feed.state().unreadable) == (1, 1)


def test_a_timestamp_ahead_of_the_clock_is_now() -> None:
    _, feed = made(config.load())
    feed.take("risk-scores", msgspec.json.encode(score("p", 0.1)), now_ms() + 10 * HOUR_MS)
    state = feed.state()
    assert state.last is not None
    assert state.last <= state.now


def command(**settings: str) -> "subprocess.Popen[str]":
    env = os.environ | {f"RISKSTREAM_{name}": value for name, value in settings.items()}
    return subprocess.Popen(
        [sys.executable, "-m", "worker.cli", "board"],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def test_the_command_serves_without_a_broker_logs_no_address_and_ends_on_sigterm() -> None:
    nobody = f"127.0.0.1:{embedded.free_port()}"
    with command(BROKER=nobody, BOARD_PORT="0") as process:
        assert isinstance(process.stdout, io.TextIOBase)
        announced = await asyncio.to_thread(process.stdout.readline)
        url = announced.removeprefix("ward page: ").strip()
        async with aiohttp.ClientSession() as http, http.get(f"{url}api/patients/424242") as answer:
            assert answer.status == 404
        process.send_signal(signal.SIGTERM)
        _, errors = await asyncio.to_thread(process.communicate, timeout=20)
    assert process.returncode == 0
    assert "424242" not in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"BOARD_HOST": "0.0.0.0"},
            "riskstream board: RISKSTREAM_BOARD_HOST is 0.0.0.0, which other",
        ),
        (
            {"BOARD_TOKEN": "short"},
            "riskstream board: board_token must have",
        ),
    ],
)
def test_the_command_refuses_in_one_line(settings: dict[str, str], told: str) -> None:
    with command(**settings) as process:
        out, errors = process.communicate(timeout=30)
    assert (process.returncode, out) == (1, "")
    assert errors.startswith(told)
    assert errors.count("\n") == 1
