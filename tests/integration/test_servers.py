"""The servers that the other integration tests stand on, and the settings that reach them.

Clients are made from `worker.config.Settings`, so that a test of TLS and SASL is a test of the settings.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import pytest
import redis.asyncio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError
from pydantic import SecretStr

from tests.integration.servers import KafkaServer, RedisServer
from worker.config import Settings

pytestmark = pytest.mark.asyncio(loop_scope="module")


def plain(server: KafkaServer) -> Settings:
    return Settings(broker=server.bootstrap)


def sasl(server: KafkaServer, mechanism: str, password: str | None = None) -> Settings:
    assert server.account is not None
    assert server.certificates is not None
    return Settings(
        broker=server.sasl_bootstrap,
        kafka_security_protocol="SASL_SSL",
        kafka_sasl_mechanism=mechanism,
        kafka_username=server.account.username,
        kafka_password=SecretStr(password or server.account.password),
        kafka_ca_file=server.certificates.ca,
    )


async def create(settings: Settings, topic: str) -> None:
    admin = AIOKafkaAdminClient(**settings.kafka_client())
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 1, 1)])
    finally:
        await admin.close()


async def produce(settings: Settings, topic: str, values: Sequence[bytes]) -> None:
    async with AIOKafkaProducer(**settings.kafka_client(), acks="all", enable_idempotence=True) as producer:
        for value in values:
            await producer.send_and_wait(topic, value)


async def consume(settings: Settings, topic: str, count: int) -> list[bytes]:
    consumer = AIOKafkaConsumer(topic, **settings.kafka_client(), auto_offset_reset="earliest")
    async with consumer, asyncio.timeout(30):
        return [(await consumer.getone()).value for _ in range(count)]


async def test_records_pass_in_order(kafka: KafkaServer) -> None:
    await create(plain(kafka), "plain")
    sent = [b"first", b"second", b"third"]
    await produce(plain(kafka), "plain", sent)
    assert await consume(plain(kafka), "plain", 3) == sent


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_settings_reach_a_broker_with_tls_and_sasl(kafka: KafkaServer, mechanism: str) -> None:
    settings = sasl(kafka, mechanism)
    topic = f"sasl-{mechanism.lower()}"
    await create(settings, topic)
    await produce(settings, topic, [b"secured"])
    assert await consume(settings, topic, 1) == [b"secured"]


async def test_a_wrong_password_is_refused(kafka: KafkaServer) -> None:
    admin = AIOKafkaAdminClient(**sasl(kafka, "SCRAM-SHA-256", password="wrong").kafka_client())
    with pytest.raises(KafkaError):
        await admin.start()
    await admin.close()


async def test_a_topic_is_never_made_by_a_producer(kafka: KafkaServer) -> None:
    producer = AIOKafkaProducer(**plain(kafka).kafka_client() | {"request_timeout_ms": 2000})
    async with producer:
        with pytest.raises(KafkaError):
            await producer.send_and_wait("not-created", b"lost")


@pytest.mark.parametrize("way", ["stop", "kill"])
async def test_records_survive_a_broker_restart(kafka: KafkaServer, way: str) -> None:
    topic = f"survives-{way}"
    await create(plain(kafka), topic)
    await produce(plain(kafka), topic, [b"before"])
    if way == "stop":
        await kafka.stop()
    else:
        kafka.kill()
    await kafka.start()
    await produce(plain(kafka), topic, [b"after"])
    assert await consume(plain(kafka), topic, 2) == [b"before", b"after"]


async def test_redis_keeps_keys_over_a_restart_and_loses_them_in_a_flush(redis_server: RedisServer) -> None:
    async with redis_server.client() as client:
        await client.set("key", b"value")
    await redis_server.restart()
    async with redis_server.client() as client:
        assert await client.get("key") == b"value"
        assert (await client.config_get("maxmemory-policy"))["maxmemory-policy"] == "noeviction"
    await redis_server.flush()
    async with redis_server.client() as client:
        assert await client.dbsize() == 0


async def test_a_paused_redis_answers_nobody(redis_server: RedisServer) -> None:
    async with paused(redis_server), redis_server.client() as client:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.ping(), 0.5)
    assert await redis_server.answers()


@contextlib.asynccontextmanager
async def paused(server: RedisServer) -> AsyncIterator[None]:
    server.pause()
    try:
        yield
    finally:
        server.resume()


async def test_redis_takes_its_acl_user_over_tls(secured_redis: RedisServer) -> None:
    assert secured_redis.account is not None
    assert secured_redis.certificates is not None
    client = redis.asyncio.Redis.from_url(
        secured_redis.tls_url,
        username=secured_redis.account.username,
        password=secured_redis.account.password,
        ssl_ca_certs=str(secured_redis.certificates.ca),
        ssl_check_hostname=True,
    )
    async with client:
        assert await client.ping()


async def test_redis_refuses_who_gives_no_password(secured_redis: RedisServer) -> None:
    async with redis.asyncio.Redis.from_url(secured_redis.url) as client:
        with pytest.raises(redis.exceptions.AuthenticationError):
            await client.ping()
