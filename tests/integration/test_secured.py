"""The worker through TLS, SASL and ACL users, by its plain settings alone."""

import asyncio
import uuid

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer

from schemas.messages import Score
from tests import killing
from tests.integration.servers import KafkaServer, RedisServer
from tests.killing import Site, WorkerProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
async def test_worker_scores_over_tls_and_sasl(
    mechanism: str, kafka: KafkaServer, secured_redis: RedisServer
) -> None:
    assert kafka.account is not None
    assert kafka.certificates is not None
    assert secured_redis.account is not None
    assert secured_redis.certificates is not None
    site = Site(kafka.bootstrap, "unused", True, f"secured-{uuid.uuid4().hex[:6]}", "sasl")
    await killing.create_topics(site)
    records = killing.load(2, 1, 0.1)
    await killing.produce(site, records, 0.1)
    secured = {
        "RISKSTREAM_BROKER": kafka.sasl_bootstrap,
        "RISKSTREAM_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "RISKSTREAM_KAFKA_SASL_MECHANISM": mechanism,
        "RISKSTREAM_KAFKA_USERNAME": kafka.account.username,
        "RISKSTREAM_KAFKA_PASSWORD": kafka.account.password,
        "RISKSTREAM_KAFKA_CA_FILE": str(kafka.certificates.ca),
        "RISKSTREAM_REDIS": secured_redis.tls_url,
        "RISKSTREAM_REDIS_USERNAME": secured_redis.account.username,
        "RISKSTREAM_REDIS_PASSWORD": secured_redis.account.password,
        "RISKSTREAM_REDIS_CA_FILE": str(secured_redis.certificates.ca),
    }
    with WorkerProcess(site, **secured) as worker:
        await worker.ready()
        assert (await _first_score(site)).model == "vitals"
        assert await worker.stop() == 0, worker.tail()
        for secret in (kafka.account.password, secured_redis.account.password):
            assert secret not in worker.log_text()
    async with secured_redis.client() as client:
        assert await client.keys(f"riskstream:*{site.run}*:marker")


async def _first_score(site: Site) -> Score:
    consumer = AIOKafkaConsumer(
        f"{site.run}-{site.group}-scores", bootstrap_servers=site.broker, auto_offset_reset="earliest"
    )
    async with consumer, asyncio.timeout(30):
        return msgspec.json.decode((await consumer.getone()).value or b"", type=Score)
