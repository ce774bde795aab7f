"""How many brokers there are, and what this user may do with the cluster itself, without changing anything.

aiokafka has no DescribeCluster, so this is version 0 of it (KIP-700, Kafka 2.8), built from aiokafka's own
protocol types. Source: Apache Kafka's DescribeClusterRequest.json and DescribeClusterResponse.json.
"""

from typing import Any, NamedTuple

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import IncompatibleBrokerVersion
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Schema, TaggedFields

CREATE = 1 << 5
"""A bit of Kafka's AclOperation. Source: org.apache.kafka.common.acl.AclOperation."""

_NOT_TOLD = (0, -(2**31))
"""Who may not DESCRIBE the cluster is told 0, whatever else the user may do; the other is the protocol's."""


class ClusterFacts(NamedTuple):
    """What is known of the cluster.

    brokers: that it has now.
    rights: bits of what this user may do with the cluster; None when it is not told them.
    """

    brokers: int
    rights: int | None


class _ClusterResponse(Response):  # type: ignore[misc]
    API_KEY = 60
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("error_message", CompactString()),
        ("cluster_id", CompactString()),
        ("controller_id", Int32),
        (
            "brokers",
            CompactArray(
                ("broker_id", Int32),
                ("host", CompactString()),
                ("port", Int32),
                ("rack", CompactString()),
                ("tags", TaggedFields),
            ),
        ),
        ("authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class _ClusterStruct(RequestStruct):  # type: ignore[misc]
    API_KEY = 60
    API_VERSION = 0
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _ClusterResponse
    SCHEMA = Schema(("include_authorized_operations", Boolean), ("tags", TaggedFields))


class _ClusterRequest(Request[_ClusterStruct]):  # type: ignore[misc]
    API_KEY = 60

    def build(self, request_struct_class: type[_ClusterStruct]) -> _ClusterStruct:
        return request_struct_class(True, {})


async def cluster_facts(admin: AIOKafkaAdminClient) -> ClusterFacts:
    """What the brokers tell of the cluster to this user.

    Raises:
        KafkaError: no broker answered.
    """
    brokers = len((await admin.describe_cluster())["brokers"])
    try:
        response: Any = await admin._client.send(admin._client.get_random_node(), _ClusterRequest())
    except (NotImplementedError, IncompatibleBrokerVersion):
        return ClusterFacts(brokers, None)
    told = not response.error_code and response.authorized_operations not in _NOT_TOLD
    return ClusterFacts(brokers, int(response.authorized_operations) if told else None)
