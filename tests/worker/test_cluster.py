"""What a broker says of each topic: there, missing, not known yet, refused."""

from typing import Any

import pytest
from aiokafka.errors import (
    BrokerResponseError,
    InvalidTopicError,
    KafkaStorageError,
    LeaderNotAvailableError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)

from worker import config
from worker.cluster import Cluster, complaints, partition_counts
from worker.errors import FatalError, RetryError


def answer(topic: str, error_code: int = 0, partitions: int = 0) -> dict[str, Any]:
    """A topic as `describe_topics` gives it."""
    return {
        "topic": topic,
        "error_code": error_code,
        "partitions": [{"partition": p} for p in range(partitions)],
    }


def test_only_an_unknown_topic_is_missing() -> None:
    told = [answer("vitals", partitions=3), answer("risk-alerts", UnknownTopicOrPartitionError.errno)]

    counts = partition_counts(told)

    assert counts == {"vitals": 3, "risk-alerts": 0}
    assert complaints(config.load(), Cluster("c", counts, "id")) == [
        "topic risk-alerts does not exist; create it, or set RISKSTREAM_CREATE_TOPICS=true"
    ]


@pytest.mark.parametrize("error", [LeaderNotAvailableError, KafkaStorageError])
def test_what_the_broker_cannot_tell_yet_is_asked_again(error: type[BrokerResponseError]) -> None:
    with pytest.raises(RetryError, match=f"topic vitals: {error.__name__}"):
        partition_counts([answer("vitals", error.errno)])


@pytest.mark.parametrize(
    ("error", "remedy"),
    [(TopicAuthorizationFailedError, "add an ACL"), (InvalidTopicError, "does not allow this name")],
)
def test_what_the_broker_refuses_ends_the_process(error: type[BrokerResponseError], remedy: str) -> None:
    with pytest.raises(FatalError, match=f"topic vitals: {error.__name__}: .*{remedy}"):
        partition_counts([answer("vitals", error.errno)])
