"""`check` on Apache Kafka: what the broker tells of topics and rights, and what is made of it."""

import uuid

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.integration.servers import KafkaServer, RedisServer
from worker import config
from worker.check import check
from worker.cluster import describe
from worker.cluster_facts import CREATE
from worker.config import Settings
from worker.finding import Finding
from worker.topic_facts import READ, WRITE, gather_facts

pytestmark = pytest.mark.asyncio(loop_scope="module")

DAY = 86_400_000
CONFIGS = {
    "vitals": {"retention.ms": str(2 * DAY), "message.timestamp.after.max.ms": str(400 * DAY)},
    "alerts": {"retention.ms": str(10 * DAY)},
    "dead": {"max.message.bytes": "100000"},
    "policies": {"cleanup.policy": "delete"},
}


@pytest.fixture
def settings(kafka: KafkaServer, redis_server: RedisServer) -> Settings:
    run = f"check-{uuid.uuid4().hex[:6]}"
    return config.load(
        broker=kafka.bootstrap,
        redis=redis_server.url,
        group=run,
        topic_vitals=f"{run}-vitals",
        topic_alerts=f"{run}-alerts",
        topic_dead_letters=f"{run}-dead",
        topic_policies=f"{run}-policies",
        topic_feedback="",
        topic_findings="",
        http_port=0,
    )


async def create(settings: Settings, configs: dict[str, dict[str, str]]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.broker)
    await admin.start()
    new = [NewTopic(f"{settings.group}-{kind}", 3, 1, topic_configs=found) for kind, found in configs.items()]
    try:
        await admin.create_topics(new)
    finally:
        await admin.close()


async def found(settings: Settings) -> dict[str, Finding]:
    return {
        finding.subject.replace(settings.group, "run"): finding for finding in await check(settings, 30.0)
    }


async def test_topics_that_do_not_fit_are_found(settings: Settings) -> None:
    await create(settings, CONFIGS)

    findings = await found(settings)

    failed = {subject for subject, finding in findings.items() if finding.severity == "failed"}
    assert failed == {
        "topic run-vitals: retention",
        "topic run-dead: size",
        "topic run-policies: cleanup",
    }
    assert findings["topic run-vitals: timestamps"].severity == "warning"
    assert findings["topic run-alerts: retention"].severity == "warning"
    assert findings["topic run-alerts: replicas"].severity == "warning"


async def test_topics_as_shipped_are_only_warned_of_for_their_replicas(settings: Settings) -> None:
    shipped = {"vitals": 10 * DAY, "alerts": 90 * DAY, "dead": 30 * DAY}
    configs = {kind: {"retention.ms": str(ms)} for kind, ms in shipped.items()}
    await create(settings, configs | {"policies": {"cleanup.policy": "compact"}})

    findings = await found(settings)

    odd = {subject for subject, finding in findings.items() if finding.severity != "ok"}
    assert {subject for subject in odd if subject.startswith("topic")} == {
        f"topic run-{kind}: replicas" for kind in CONFIGS
    }
    assert all(finding.well for finding in findings.values())


async def test_the_broker_tells_what_this_user_may_do(settings: Settings) -> None:
    await create(settings, {"vitals": {}})

    facts = await gather_facts(settings, [settings.topic_vitals, settings.topic_alerts])

    (topic,) = facts.topics.values()
    assert topic.rights is not None
    assert topic.rights & READ
    assert topic.rights & WRITE
    assert not facts.group_refused
    assert facts.cluster.brokers == 1
    assert facts.cluster.rights is not None
    assert facts.cluster.rights & CREATE


async def test_what_a_worker_would_create_is_told_and_not_created(settings: Settings) -> None:
    willing = settings.model_copy(update={"create_topics": True, "replication": 1})
    too_many = settings.model_copy(update={"create_topics": True, "replication": 3})

    findings, wide = await found(willing), await found(too_many)

    assert findings["kafka"].severity == "ok"
    assert "not tell" not in findings["kafka: topics"].detail
    assert f"{settings.topic_vitals} (8 partitions)" in findings["kafka: topics"].detail
    assert "brokers: 1" in wide["kafka: topics"].detail
    assert not wide["kafka: topics"].well
    assert not any((await describe(settings, create=False)).partitions.values())
