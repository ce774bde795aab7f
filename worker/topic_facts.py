"""What the brokers tell of our topics and of our rights, without changing anything."""

from typing import Any, NamedTuple

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    GroupCoordinatorNotAvailableError,
    IncompatibleBrokerVersion,
    KafkaError,
)

from worker.cluster_facts import ClusterFacts, cluster_facts
from worker.config import Settings
from worker.errors import RetryError
from worker.topic_ids import described, topic_rights

READ, WRITE = 1 << 3, 1 << 4
"""Bits of Kafka's AclOperation. Source: org.apache.kafka.common.acl.AclOperation."""


class TopicFacts(NamedTuple):
    """What is known of a topic.

    configs: its configuration; None when the brokers do not tell it to this user.
    rights: bits of what this user may do; None when the brokers do not tell.
    replicas: of the partition with the fewest.
    """

    name: str
    partitions: int
    replicas: int
    configs: dict[str, str] | None
    rights: int | None


class Facts(NamedTuple):
    """What is known of topics and cluster, and whether this user is refused the consumer group."""

    topics: dict[str, TopicFacts]
    group_refused: bool
    cluster: ClusterFacts


async def gather_facts(settings: Settings, names: list[str]) -> Facts:
    """Ask the brokers about topics; those that do not exist are left out.

    Raises:
        RetryError: no broker answered.
    """
    admin = AIOKafkaAdminClient(**settings.kafka_client(), client_id=f"riskstream-{settings.instance}")
    try:
        await admin.start()
        found: dict[str, TopicFacts] = {}
        for topic in await described(admin, names):
            name, partitions = topic["topic"], topic["partitions"]
            if not topic["error_code"] and partitions:
                replicas = min(len(partition["replicas"]) for partition in partitions)
                configs, rights = await _configs(admin, name), await topic_rights(admin, name)
                found[name] = TopicFacts(name, len(partitions), replicas, configs, rights)
        return Facts(found, await _group_refused(admin, settings.group), await cluster_facts(admin))
    except (KafkaError, OSError, TimeoutError) as error:
        raise RetryError(f"Kafka: {type(error).__name__}") from None
    finally:
        await admin.close()


async def _configs(admin: AIOKafkaAdminClient, topic: str) -> dict[str, str] | None:
    try:
        answers: list[Any] = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    except (NotImplementedError, IncompatibleBrokerVersion):
        return None
    configs: dict[str, str] = {}
    for code, _, _, name, entries in (resource for answer in answers for resource in answer.resources):
        if code or name != topic:
            return None
        configs |= {entry[0]: entry[1] for entry in entries if entry[1] is not None}
    return configs or None


async def _group_refused(admin: AIOKafkaAdminClient, group: str) -> bool:
    """Whether this user may not even see the group; a broker that has no coordinator yet refuses nothing."""
    try:
        answers: list[Any] = await admin.describe_consumer_groups([group])
    except GroupAuthorizationFailedError:
        return True
    except GroupCoordinatorNotAvailableError:
        return False
    codes = [described[0] for answer in answers for described in answer.groups]
    return GroupAuthorizationFailedError.errno in codes
