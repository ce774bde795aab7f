"""The ward page's feed on Apache Kafka: it reads back by record time, waits for a broker, leaves no group."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from schemas.messages import Alert, Score
from tests.integration.servers import KafkaServer
from tests.worker.ward import HOUR_MS, alert, score
from worker import board_feed
from worker.board_feed import Feed, now_ms
from worker.board_ward import Bounds, Ward
from worker.config import Settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

BOUNDS = Bounds(24 * HOUR_MS, 168 * HOUR_MS, 100)


async def topics(server: KafkaServer, name: str) -> Settings:
    """Settings with two topics of two partitions each, made for one test."""
    settings = Settings(
        broker=server.bootstrap, topic_scores=f"{name}-risk-scores", topic_alerts=f"{name}-risk-alerts"
    )
    admin = AIOKafkaAdminClient(**settings.kafka_client())
    await admin.start()
    await admin.create_topics([NewTopic(t, 2, 1) for t in (settings.topic_scores, settings.topic_alerts)])
    await admin.close()
    return settings


async def publish(
    settings: Settings, *records: tuple[Score | Alert, float, int], transaction: bool = False
) -> None:
    """Publish messages, each so many hours ago by its record's timestamp, into a partition."""
    told = {"transactional_id": "board-test"} if transaction else {}
    async with AIOKafkaProducer(**settings.kafka_client(), **told) as producer:
        if transaction:
            await producer.begin_transaction()
        for message, hours, partition in records:
            topic = settings.topic_scores if isinstance(message, Score) else settings.topic_alerts
            await producer.send_and_wait(
                topic,
                msgspec.json.encode(message),
                partition=partition,
                timestamp_ms=now_ms() - round(hours * HOUR_MS),
            )
        if transaction:
            await producer.commit_transaction()


@asynccontextmanager
async def feeding(settings: Settings) -> AsyncIterator[tuple[Ward, Feed]]:
    ward = Ward(BOUNDS)
    feed = Feed(settings, ward)
    task = asyncio.create_task(feed.run())
    try:
        yield ward, feed
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(holds: Callable[[], bool]) -> None:
    deadline = time.perf_counter() + 60
    while not holds() and time.perf_counter() < deadline:  # noqa: ASYNC110 -- several tasks move it
        await asyncio.sleep(0.02)
    assert holds()


def names(ward: Ward) -> set[str]:
    return {msgspec.json.decode(row)["patient"] for row in ward.rows()}


async def test_start_reads_back_by_record_time(kafka: KafkaServer) -> None:
    settings = await topics(kafka, "back")
    await publish(
        settings,
        (score("score-30h", 0.1), 30, 0),
        (score("score-23h", 0.1), 23, 0),
        (score("score-1h", 0.1), 1, 0),
        (score("score-alone-30h", 0.1), 30, 1),  # nothing in its partition is new enough
        (alert("alert-200h"), 200, 0),
        (alert("alert-167h"), 167, 0),
        (alert("alert-30h"), 30, 0),
    )
    async with feeding(settings) as (ward, feed), feeding(settings) as (other, second):
        await until(lambda: not feed.state().loading and not second.state().loading)
        for one in (ward, other):
            assert names(one) == {"score-23h", "score-1h", "alert-167h", "alert-30h"}
        assert (feed.state().scores.taken, feed.state().alerts.taken) == (2, 2)
        await publish(settings, (score("now", 0.2), 0, 1))
        await until(lambda: "now" in names(ward) and "now" in names(other))
    admin = AIOKafkaAdminClient(**settings.kafka_client())
    await admin.start()
    assert await admin.list_consumer_groups() == []
    await admin.close()


async def test_a_transaction_at_the_end_is_read_to_its_end(kafka: KafkaServer) -> None:
    settings = await topics(kafka, "transaction")
    await publish(settings, (score("p", 0.1), 0, 0), transaction=True)
    async with feeding(settings) as (ward, feed):
        await until(lambda: len(ward) == 1)
        await until(lambda: not feed.state().loading)


async def test_a_broker_that_restarts_is_read_on_where_it_stood(
    kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board_feed, "RETRY_S", 0.2)
    settings = await topics(kafka, "restart")
    await publish(settings, (score("before", 0.1), 0, 0))
    async with feeding(settings) as (ward, feed):
        await until(lambda: not feed.state().loading and len(ward) == 1)
        await kafka.stop()
        await until(lambda: not feed.state().kafka_up)
        assert names(ward) == {"before"}
        await kafka.start()
        await until(lambda: feed.state().kafka_up)
        await publish(settings, (score("after", 0.1), 0, 0))
        await until(lambda: len(ward) == 2)
        assert feed.state().scores.taken == 2
