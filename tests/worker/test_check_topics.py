"""Each thing that can be wrong with a topic is found, with what to do."""

from typing import Any

import pytest

from worker import config
from worker.check_topics import check_creation, check_topics, role_names
from worker.cluster_facts import CREATE, ClusterFacts, _ClusterRequest, _ClusterResponse, cluster_facts
from worker.finding import Finding
from worker.topic_facts import READ, WRITE, Facts, TopicFacts

DAY = 86_400_000
GOOD = {
    "cleanup.policy": "delete",
    "retention.ms": str(60 * DAY),
    "retention.bytes": "-1",
    "min.insync.replicas": "2",
    "max.message.bytes": "1048588",
    "message.timestamp.type": "CreateTime",
    "message.timestamp.after.max.ms": "3600000",
}
SETTINGS = config.load(publish_scores=True)
THREE_BROKERS = ClusterFacts(3, CREATE)


def found(
    name: str, replicas: int = 3, rights: int | None = READ | WRITE, **configs: object
) -> list[Finding]:
    """Findings of one topic that differs from a good one."""
    changed = GOOD | {key.replace("_", "."): str(value) for key, value in configs.items()}
    topic = TopicFacts(name, 8, replicas, changed, rights)
    return check_topics(SETTINGS, Facts({name: topic}, group_refused=False, cluster=THREE_BROKERS))


@pytest.mark.parametrize("name", [name for name in role_names(SETTINGS) if name != "policies"])
def test_a_good_topic_is_well(name: str) -> None:
    (finding,) = found(name)

    assert finding == Finding(f"topic {name}", True, "8 partitions, 3 replicas", "ok")


def test_a_good_policies_topic_is_compacted() -> None:
    (finding,) = found("policies", cleanup_policy="compact")

    assert finding.severity == "ok"


@pytest.mark.parametrize(
    ("name", "configs", "severity", "subject", "told"),
    [
        ("vitals", {"retention_ms": 4 * DAY}, "failed", "retention", "keeps 4 days, rebuild_horizon_h is 5"),
        ("vitals", {"retention_bytes": 1 << 30}, "warning", "retention", "retention.bytes is 1073741824"),
        ("vitals", {"cleanup_policy": "compact,delete"}, "failed", "cleanup", "compact,delete"),
        (
            "vitals",
            {"message_timestamp_after_max_ms": 2**63 - 1},
            "warning",
            "timestamps",
            "more than a day ahead",
        ),
        ("vitals", {"rights": READ}, "failed", "rights", "lacks WRITE"),
        ("risk-alerts", {"retention_ms": 4 * DAY}, "failed", "retention", "rebuild_horizon_h is 5"),
        ("risk-alerts", {"retention_ms": 10 * DAY}, "warning", "retention", "keeps 10 days"),
        ("risk-alerts", {"cleanup_policy": "compact"}, "failed", "cleanup", "compact"),
        ("risk-alerts", {"rights": 0}, "failed", "rights", "lacks READ and WRITE"),
        ("dead-letters", {"max_message_bytes": 100_000}, "failed", "size", "is 100000"),
        ("risk-scores", {"rights": READ}, "failed", "rights", "lacks WRITE"),
        ("risk-scores", {"replicas": 1, "min_insync_replicas": 1}, "warning", "replicas", "1 replicas"),
        ("risk-scores", {"replicas": 2}, "warning", "replicas", "2 replicas"),
        ("risk-scores", {"replicas": 1}, "failed", "replicas", "min.insync.replicas is 2"),
        ("policies", {}, "failed", "cleanup", "cleanup.policy is delete"),
        ("alert-feedback", {"cleanup_policy": "compact"}, "failed", "cleanup", "compact"),
    ],
)
def test_what_is_wrong_is_found(
    name: str, configs: dict[str, int], severity: str, subject: str, told: str
) -> None:
    (finding,) = found(name, **configs)

    assert finding.severity == severity
    assert finding.well == (severity != "failed")
    assert finding.subject == f"topic {name}: {subject}"
    assert told in finding.detail
    assert finding.advice


def test_timestamps_of_the_broker_need_no_limit() -> None:
    (finding,) = found(
        "vitals", message_timestamp_type="LogAppendTime", message_timestamp_after_max_ms=2**63 - 1
    )

    assert finding.severity == "ok"


def test_endless_retention_is_long_enough() -> None:
    assert [f.severity for f in found("vitals", retention_ms=-1)] == ["ok"]


def test_what_the_brokers_do_not_tell_is_said() -> None:
    topic = TopicFacts("vitals", 8, 3, None, None)

    (finding,) = check_topics(SETTINGS, Facts({"vitals": topic}, group_refused=False, cluster=THREE_BROKERS))

    assert finding.severity == "warning"
    assert "DESCRIBE_CONFIGS" in finding.advice


def test_a_user_who_may_not_join_the_group_is_told() -> None:
    (finding,) = check_topics(SETTINGS, Facts({}, group_refused=True, cluster=THREE_BROKERS))

    assert (finding.subject, finding.severity) == ("group riskstream-vitals", "failed")


@pytest.mark.parametrize(
    ("cluster", "severity", "told"),
    [
        (ClusterFacts(1, CREATE), "ok", "with replication 1: vitals (12 partitions), policies (1 partition)"),
        (ClusterFacts(1, None), "ok", "the brokers do not tell whether this user may"),
        (ClusterFacts(1, 1 << 8), "warning", "this user lacks CREATE on the cluster"),
        (ClusterFacts(0, CREATE), "failed", "brokers: 0"),
    ],
)
def test_what_a_worker_creates_at_its_start_is_told(cluster: ClusterFacts, severity: str, told: str) -> None:
    settings = config.load(replication=1)

    (finding,) = check_creation(settings, {"vitals": 12, "policies": 1}, cluster, "kafka: topics")

    assert (finding.severity, told in finding.detail) == (severity, True), finding


@pytest.mark.parametrize(
    ("error", "operations", "rights"),
    [(0, 0, None), (0, -(2**31), None), (31, CREATE, None), (0, CREATE, CREATE), (0, 1 << 8, 1 << 8)],
)
async def test_a_user_who_may_not_describe_the_cluster_is_not_said_to_lack_more(
    error: int, operations: int, rights: int | None
) -> None:
    class Client:
        def get_random_node(self) -> int:
            return 1

        async def send(self, node: int, request: _ClusterRequest) -> _ClusterResponse:
            answer = _ClusterResponse(0, error, None, "c", 1, [(1, "a", 9092, None, {})], operations, {})
            told: _ClusterResponse = _ClusterResponse.decode(answer.encode())
            return told

    class Admin:
        _client = Client()

        async def describe_cluster(self) -> dict[str, Any]:
            return {"brokers": [1]}

    assert await cluster_facts(Admin()) == ClusterFacts(1, rights)


def test_where_nothing_is_to_be_created_nothing_is_told() -> None:
    assert check_creation(SETTINGS, {}, THREE_BROKERS, "kafka: topics") == []
