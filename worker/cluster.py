"""The Kafka cluster's identity and its topics."""

from typing import Any, NamedTuple

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    InvalidTopicError,
    KafkaError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    for_code,
)

from worker.config import Settings
from worker.errors import FatalError, RetryError, WorkerError
from worker.topic_ids import described, topic_id

_REFUSALS: dict[type[KafkaError], str] = {
    ClusterAuthorizationFailedError: "this user may not administer the cluster",
    InvalidTopicError: "the broker does not allow this name",
    TopicAuthorizationFailedError: "this user may not describe or create it; add an ACL",
}
"""What no waiting mends, and what it means."""


class Cluster(NamedTuple):
    """Cluster id, and the number of partitions of each of our topics; 0 where a topic is missing.

    vitals_id: the id of the vitals topic; its name from brokers that know no ids.
    """

    id: str
    partitions: dict[str, int]
    vitals_id: str


class ImagingCluster(NamedTuple):
    """What the imaging role knows of the cluster; fields as in `Cluster`, `topic_id` of the imaging topic."""

    id: str
    partitions: dict[str, int]
    topic_id: str


def topic_names(settings: Settings) -> list[str]:
    """The topics that the worker reads or writes."""
    names = [settings.topic_vitals, settings.topic_alerts, settings.topic_dead_letters]
    return [*names, settings.topic_scores] if settings.publish_scores else names


def optional_topics(settings: Settings) -> list[str]:
    """Topics that the worker reads where they exist."""
    names = (settings.topic_policies, settings.topic_feedback, settings.topic_findings)
    return [name for name in names if name]


async def describe(settings: Settings, *, create: bool) -> Cluster:
    """Ask the brokers; with `create`, make the topics that are missing.

    Raises:
        RetryError: no broker answered, or none that knows the topics well enough now.
        FatalError: the brokers refuse.
    """
    names = topic_names(settings) + optional_topics(settings)
    new = _vitals_topics(settings) if create else []
    identifier, partitions, vitals_id = await _ask(settings, names, settings.topic_vitals, new)
    return Cluster(identifier, partitions, vitals_id)


async def describe_imaging(settings: Settings, *, create: bool) -> ImagingCluster:
    """Ask the brokers what the imaging role needs; with `create`, make the topics that are missing.

    Raises:
        RetryError, FatalError: as `describe`.
    """
    names = imaging_topics(settings)
    new = [_imaging_topic(settings, name) for name in names] if create else []
    return ImagingCluster(*await _ask(settings, names, settings.topic_imaging, new))


def imaging_topics(settings: Settings) -> list[str]:
    """The topics that the imaging role reads or writes."""
    return [settings.topic_imaging, settings.topic_findings, settings.topic_dead_letters]


def imaging_complaints(settings: Settings, cluster: ImagingCluster) -> list[str]:
    """What is wrong with the imaging role's topics, and how to mend it."""
    if not settings.topic_findings:
        return ["topic_findings is empty; the imaging role must have a topic to publish to"]
    return _missing(settings, [name for name, partitions in cluster.partitions.items() if not partitions])


def unreached(settings: Settings, error: Exception) -> RetryError:
    """Whom nobody answers for, and which setting named them."""
    return RetryError(f"Kafka at {settings.broker} (RISKSTREAM_BROKER): {type(error).__name__}")


async def _ask(
    settings: Settings, names: list[str], of: str, new: list[NewTopic]
) -> tuple[str, dict[str, int], str]:
    """Cluster id, partitions of each topic, and the id of one; new topics are made first."""
    admin = AIOKafkaAdminClient(**settings.kafka_client(), client_id=f"riskstream-{settings.instance}")
    try:
        await admin.start()
        if new:
            await _make(admin, new)
        topics = await described(admin, names)
        cluster = await admin.describe_cluster()
        found = await topic_id(admin, of)
    except (KafkaError, OSError, TimeoutError) as error:
        raise unreached(settings, error) from None
    finally:
        await admin.close()
    return cluster["cluster_id"] or "unnamed", partition_counts(topics), found


def to_create(settings: Settings, cluster: Cluster | ImagingCluster) -> dict[str, int]:
    """Missing topics that a worker makes when it starts, with their partitions; none unless it is allowed."""
    if not settings.create_topics:
        return {}
    if isinstance(cluster, ImagingCluster):
        new = [_imaging_topic(settings, name) for name in imaging_topics(settings) if name]
    else:
        new = _vitals_topics(settings)
    return {topic.name: topic.num_partitions for topic in new if not cluster.partitions.get(topic.name)}


def partition_counts(topics: list[dict[str, Any]]) -> dict[str, int]:
    """Partitions of each topic in an answer of `described`; 0 where the broker says there is none.

    Raises:
        RetryError: the broker cannot tell yet, for example while a leader is elected.
        FatalError: the broker refuses to tell.
    """
    counts: dict[str, int] = {}
    for topic in topics:
        error = for_code(topic["error_code"])
        if topic["error_code"] and error is not UnknownTopicOrPartitionError:
            raise _refused(topic["topic"], error) or RetryError(f"topic {topic['topic']}: {error.__name__}")
        counts[topic["topic"]] = 0 if topic["error_code"] else len(topic["partitions"])
    return counts


def complaints(settings: Settings, cluster: Cluster) -> list[str]:
    """What is wrong with the topics, and how to mend it."""
    optional = optional_topics(settings)
    found = _missing(
        settings, [n for n, count in cluster.partitions.items() if not count and n not in optional]
    )
    inputs = cluster.partitions.get(settings.topic_vitals, 0)
    outputs = cluster.partitions.get(settings.topic_alerts, 0)
    if not found and outputs != inputs:
        found.append(
            f"topic {settings.topic_alerts} has {outputs} partitions, {settings.topic_vitals} has {inputs}; "
            "they must be equal, because a rebuild reads the alerts of a partition from the same partition"
        )
    return found


def _missing(settings: Settings, names: list[str]) -> list[str]:
    todo = (
        "the brokers do not show yet what was created"
        if settings.create_topics
        else "create it, or set RISKSTREAM_CREATE_TOPICS=true"
    )
    return [f"topic {name} does not exist; {todo}" for name in names]


async def create_topics(settings: Settings, names: list[str], partitions: int) -> None:
    """Make topics; those that exist stay as they are.

    Raises:
        RetryError: no broker answered.
        FatalError: the brokers refuse.
    """
    admin = AIOKafkaAdminClient(**settings.kafka_client(), client_id=f"riskstream-{settings.instance}")
    try:
        await admin.start()
        await _make(admin, [NewTopic(name, partitions, settings.replication) for name in names])
    except (KafkaError, OSError, TimeoutError) as error:
        raise unreached(settings, error) from None
    finally:
        await admin.close()


def _imaging_topic(settings: Settings, name: str) -> NewTopic:
    """A record with a picture in it is larger than brokers take by default."""
    size = {"max.message.bytes": str(settings.imaging_max_record_bytes)}
    large = size if name == settings.topic_imaging else {}
    return NewTopic(name, settings.partitions, settings.replication, topic_configs=large)


def _vitals_topics(settings: Settings) -> list[NewTopic]:
    names = [*topic_names(settings), *filter(None, (settings.topic_feedback, settings.topic_findings))]
    new = [NewTopic(name, settings.partitions, settings.replication) for name in names]
    if settings.topic_policies:
        compacted = {"cleanup.policy": "compact"}
        new.append(NewTopic(settings.topic_policies, 1, settings.replication, topic_configs=compacted))
    return new


async def _make(admin: AIOKafkaAdminClient, new: list[NewTopic]) -> None:
    response = await admin.create_topics(new)
    for topic, code, *_ in response.topic_errors:
        error = for_code(code)
        if code and error is not TopicAlreadyExistsError:
            raise _refused(topic, error) or _not_created(topic, error)


def _not_created(topic: str, error: type[KafkaError]) -> WorkerError:
    kind = RetryError if error.retriable else FatalError
    return kind(f"topic {topic} cannot be created: {error.__name__}")


def _refused(topic: str, error: type[KafkaError]) -> FatalError | None:
    reason = _REFUSALS.get(error)
    return FatalError(f"topic {topic}: {error.__name__}: {reason}") if reason else None
