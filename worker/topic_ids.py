"""Kafka's topic ids, which tell a topic from another of its name that was made later; and a user's rights.

aiokafka asks for metadata in versions that do not carry them, so this is version 12 of the request
(KIP-516), built from aiokafka's own protocol types. Source: Apache Kafka's MetadataRequest.json and
MetadataResponse.json.
"""

from io import BytesIO
from typing import Any
from uuid import UUID

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import IncompatibleBrokerVersion, UnknownTopicOrPartitionError, for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.types import (
    AbstractType,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

_VERSION = 12

_NOT_TOLD = -(2**31)


class _Uuid(AbstractType[UUID]):  # type: ignore[misc]
    """16 bytes."""

    @classmethod
    def encode(cls, value: UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: BytesIO) -> UUID:
        return UUID(bytes=data.read(16))


class _MetadataResponse(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = _VERSION
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString()),
                ("port", Int32),
                ("rack", CompactString()),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString()),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", CompactString()),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _MetadataStruct(RequestStruct):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = _VERSION
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(("topic_id", _Uuid), ("name", CompactString()), ("tags", TaggedFields)),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _MetadataRequest(Request[_MetadataStruct]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, topic: str, *, rights: bool = False) -> None:
        self._topic = topic
        self._rights = rights

    def build(self, request_struct_class: type[_MetadataStruct]) -> _MetadataStruct:
        return request_struct_class([(UUID(int=0), self._topic, {})], False, self._rights, {})


async def described(admin: AIOKafkaAdminClient, topics: list[str]) -> list[dict[str, Any]]:
    """What the brokers say of topics. Asked in this way, no broker creates one; asked in aiokafka's, it may.

    Raises:
        KafkaError: no broker answered.
    """
    request = MetadataRequest(topics, allow_auto_topic_creation=False)
    found: list[dict[str, Any]] = (await admin._send_request(request)).to_object()["topics"]
    return found


async def topic_id(admin: AIOKafkaAdminClient, topic: str) -> str:
    """A topic's id, in hex; its name from brokers that know no ids (before Kafka 3.1).

    Raises:
        KafkaError: no broker answered, or not about this topic yet.
    """
    try:
        response: Any = await admin._client.send(admin._client.get_random_node(), _MetadataRequest(topic))
    except (NotImplementedError, IncompatibleBrokerVersion):
        return topic
    for code, name, found, *_ in response.topics:
        if name != topic:
            continue
        if code and for_code(code) is not UnknownTopicOrPartitionError:
            raise for_code(code)
        if found.int:
            return str(found.hex)
    return topic


async def topic_rights(admin: AIOKafkaAdminClient, topic: str) -> int | None:
    """What this user may do with a topic: bit n for Kafka's AclOperation n; None where brokers cannot tell.

    Raises:
        KafkaError: no broker answered.
    """
    request = _MetadataRequest(topic, rights=True)
    try:
        response: Any = await admin._client.send(admin._client.get_random_node(), request)
    except (NotImplementedError, IncompatibleBrokerVersion):
        return None
    for code, name, *_, operations, _ in response.topics:
        if name == topic and not code and operations != _NOT_TOLD:
            return int(operations)
    return None
