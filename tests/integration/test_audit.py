"""Every alert of 300 stays verifies on Apache Kafka, those made while workers were being killed too."""

import asyncio
import time
import uuid
from collections import Counter

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from tests import killing
from tests.integration.servers import KafkaServer, RedisServer
from tests.killing import Site, WorkerProcess
from worker.audit_run import Order, audit
from worker.errors import FatalError
from worker.history import History
from worker.replay import Bound, ReplayOrder, replay

pytestmark = pytest.mark.asyncio(loop_scope="module")

STAYS = 300
SEED = 20_261_121
DAYS = 12.0
"""Stays begin over this long, so the recording is longer than the rebuild horizon of five days."""
LOAD_S = 40.0


async def after_kills(kafka: KafkaServer, redis_server: RedisServer) -> Site:
    """The topics of two workers, each killed under load and started again."""
    address = redis_server.url.removeprefix("redis://").removesuffix("/0")
    site = Site(kafka.bootstrap, address, True, f"audit-{uuid.uuid4().hex[:6]}", "killed")
    records = killing.load(STAYS, SEED, DAYS)
    await killing.create_topics(site)
    with WorkerProcess(site) as first, WorkerProcess(site) as second:
        await asyncio.gather(first.ready(), second.ready())
        load = asyncio.create_task(killing.produce(site, records, LOAD_S))
        for worker in (first, second):
            await asyncio.sleep(LOAD_S / 4)
            worker.kill()
            worker.start()
        await killing.committed_to_the_end(site, await load, 240.0)
        await asyncio.sleep(killing.SETTLE_S)
        for worker in (first, second):
            assert await worker.stop() == 0, worker.tail()
    return site


async def cut(site: Site, partition: int) -> None:
    """Delete the first half of a partition of the vitals topic."""
    settings = site.settings()
    async with History(settings) as log:
        span = await log.span(settings.topic_vitals, partition)
    admin = AIOKafkaAdminClient(bootstrap_servers=site.broker)
    await admin.start()
    try:
        tp = TopicPartition(settings.topic_vitals, partition)
        await admin.delete_records({tp: RecordsToDelete(before_offset=span.end // 2)})
    finally:
        await admin.close()


async def test_every_alert_of_many_stays_verifies(kafka: KafkaServer, redis_server: RedisServer) -> None:
    site = await after_kills(kafka, redis_server)
    settings = site.settings()

    began = time.perf_counter()
    result = await audit(settings, Order())
    print(f"{result.verified} of {result.alerts} alerts verified in {time.perf_counter() - began:.1f} s")

    assert result.well, [(finding.published.alert.id, finding.differences) for finding in result.findings]
    assert result.alerts >= 100

    missing = ReplayOrder(Bound(), Bound(), (0,), f"{site.run}-nowhere")
    with pytest.raises(FatalError, match=r"does not exist; give --create"):
        await replay(settings, settings, missing)

    await cut(site, 0)
    after = await audit(settings, Order(partitions=(0,)))
    verdicts = Counter(finding.verdict for finding in after.findings)
    print(f"beginning deleted: {after.verified} of {after.alerts} verified, {dict(verdicts)}")
    assert verdicts.keys() == {"incomplete-history"}
    assert 0 < after.verified < after.alerts
