"""Where changes of policies come from: a file that is read again when it changes, and the policies topic.

A change that cannot be used is left out, counted and logged; those before it stay in force. The topic is read
without a group, by every worker, from its first record.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from engines.errors import EngineError
from schemas import policy_change
from schemas.errors import PolicyError
from schemas.model_config import ModelConfig
from schemas.policy_change import PolicyChange
from worker import metrics
from worker.cluster import Cluster, describe
from worker.config import Settings
from worker.errors import FatalError, RetryError
from worker.history import SILENT_S
from worker.policies import Policies, shipped
from worker.threads import in_thread

POLL_S = 1.0
"""Between two looks at the file."""

FOLLOW_POLL_MS = 1000
"""Longest wait for records of the topic."""

LOAD_POLL_MS = 50
"""The same until its end is reached: a fetch that brings no record shows an empty topic's end, and a worker
that starts waits for it."""

LOOK_S = 2.0
"""Between two looks at the repository."""

RETRY_S = 5.0
"""Wait before a topic that could not be read is read again."""

log = structlog.get_logger("riskstream.policies")


class PolicyFile:
    """Changes in a file."""

    def __init__(self, path: Path, policies: Policies) -> None:
        self._path = path
        self._policies = policies
        self._content: bytes | None = None
        self._complaint = ""

    def load(self) -> None:
        """Read it.

        Raises:
            PolicyError: it cannot be read, or a change in it cannot be used.
        """
        content = self._read()
        changes = policy_change.read(content, str(self._path))
        self._content = content
        for complaint in self._policies.replace("file", changes):
            raise PolicyError(f"{self._path}: {complaint}")
        _count("file", len(changes), 0)

    async def follow(self) -> None:
        """Read it again whenever it changes, for ever; what cannot be used changes nothing."""
        while True:
            await asyncio.sleep(POLL_S)
            content = None
            try:
                content = await in_thread(self._read)
                if content == self._content:
                    continue
                self._content, self._complaint = content, ""
                changes = policy_change.read(content, str(self._path))
            except PolicyError as error:
                self._content = content  # None: a file that is back is read, whatever it held before
                if str(error) != self._complaint:
                    self._complaint = str(error)
                    log.error("the file of policies cannot be used; what was in force stays", why=str(error))
                metrics.policy_refusals.labels("file").set(1)
                continue
            refused = self._policies.replace("file", changes)
            for complaint in refused:
                log.error("a change of policy cannot be used", source="file", why=complaint)
            _count("file", len(changes), len(refused))
            log.info("policies read", source="file", changes=len(changes) - len(refused))

    def _read(self) -> bytes:
        try:
            return self._path.read_bytes()
        except OSError as error:
            raise PolicyError(f"cannot read {self._path}: {error.strerror}") from None


class PolicyTopic:
    """Changes on the policies topic.

    Args:
        settings: broker and topic.
        partitions: of the topic.
        policies: given what is read, if any.
    """

    def __init__(self, settings: Settings, partitions: int, policies: Policies | None) -> None:
        self._settings = settings
        self._partitions = [TopicPartition(settings.topic_policies, n) for n in range(partitions)]
        self._policies = policies
        self._held: dict[bytes, PolicyChange | str] = {}
        self._consumer: AIOKafkaConsumer | None = None

    async def load(self) -> None:
        """Read to the topic's end.

        Raises:
            RetryError: Kafka did not answer.
        """
        await self.close()
        try:
            self._consumer = consumer = await self._open()
            heard = time.perf_counter()
            while not await self._at_end(consumer):
                if await self._take(consumer, LOAD_POLL_MS):
                    heard = time.perf_counter()
                elif time.perf_counter() - heard > SILENT_S:
                    raise TimeoutError
        except (KafkaError, OSError, TimeoutError) as error:
            raise RetryError(f"policies topic: {type(error).__name__}") from None
        self._tell()

    async def follow(self) -> None:
        """Take what comes, for ever; after a failure the topic is read anew."""
        try:
            while True:
                await self._follow_once()
        finally:
            await self.close()

    async def _follow_once(self) -> None:
        try:
            if self._consumer is None:
                await self.load()
            elif await self._take(self._consumer, FOLLOW_POLL_MS):
                self._tell()
        except (KafkaError, OSError, RetryError) as error:
            log.warning("the policies topic cannot be read now", why=type(error).__name__)
            await self.close()
            await asyncio.sleep(RETRY_S)

    async def close(self) -> None:
        """Disconnect."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.stop()

    async def _open(self) -> AIOKafkaConsumer:
        consumer = AIOKafkaConsumer(
            **self._settings.kafka_client(), enable_auto_commit=False, auto_offset_reset="earliest"
        )
        try:
            await consumer.start()
            consumer.assign(self._partitions)
            await consumer.seek_to_beginning(*self._partitions)
        except BaseException:
            await consumer.stop()
            raise
        return consumer

    async def _at_end(self, consumer: AIOKafkaConsumer) -> bool:
        # The high-water mark comes with every fetch; Tansu's answer to "latest offset" lags behind it.
        for tp in self._partitions:
            end = consumer.highwater(tp)
            if end is None or await consumer.position(tp) < end:
                return False
        return True

    async def _take(self, consumer: AIOKafkaConsumer, poll_ms: int) -> int:
        """Enter what comes within some time; returns how many records."""
        fetched = await consumer.getmany(timeout_ms=poll_ms)
        records = [record for records in fetched.values() for record in records]
        for record in records:
            self._enter(record)
        return len(records)

    def _enter(self, record: Any) -> None:
        key = record.key or b""
        if record.value is None:
            self._held.pop(_scope(key), None)
            return
        try:
            change = policy_change.decode(record.value)
            if _scope(key) != change.key:
                raise PolicyError("its key is not [model, care_unit, patient, version]")
            self._held[change.key] = change
        except PolicyError as error:
            self._held[_scope(key)] = f"offset {record.offset}: {error}"

    def changes(self) -> dict[bytes, PolicyChange]:
        """What was read and can be used, by key."""
        return {key: change for key, change in self._held.items() if isinstance(change, PolicyChange)}

    def refused(self) -> list[str]:
        """Why what was read and cannot be used is left out."""
        return [why for why in self._held.values() if isinstance(why, str)]

    def _tell(self) -> None:
        if self._policies is None:
            return
        refused = self.refused()
        refused += self._policies.replace("topic", self.changes().values())
        for complaint in refused:
            log.error("a change of policy cannot be used", source="topic", why=complaint)
        _count("topic", len(self._held), len(refused))
        log.info("policies read", source="topic", changes=len(self._held) - len(refused))


async def follow_imaging(policies: Policies, served: Callable[[], Awaitable[ModelConfig]]) -> None:
    """Keep up with the policy of the image model's served version, for ever.

    Args:
        policies: with the policy of the version that was served at start.
        served: the config of the served version; raises EngineError while it cannot be used.
    """
    complaint = ""
    while True:
        await asyncio.sleep(LOOK_S)
        try:
            config = await served()
        except EngineError as error:
            if str(error) != complaint:
                complaint = str(error)
                log.error("the image model's config cannot be used; its policy stays", why=complaint)
            continue
        complaint = ""
        if policies.versions is not None:
            await policies.versions.look()
        if config.policy != policies.shipped["imaging"]:
            for why in policies.ship(config.policy, "imaging"):
                log.warning("a change of policy does not fit the new version and is left out", why=why)
            log.info("the image model's policy", version=config.version, policy=config.policy.version)


async def in_force(settings: Settings, cluster: Cluster, model: ModelConfig) -> Policies:
    """The policies that a worker with these settings has now: the shipped ones under file and topic.

    What cannot be used is left out, as a worker leaves it out.

    Raises:
        PolicyError: NEWS2's policy or the file cannot be used.
        RetryError: Kafka did not answer.
    """
    policies = shipped(settings, model)
    if settings.policies is not None:
        PolicyFile(settings.policies, policies).load()
    partitions = cluster.partitions.get(settings.topic_policies, 0)
    if partitions:
        topic = PolicyTopic(settings, partitions, None)
        try:
            await topic.load()
        finally:
            await topic.close()
        policies.replace("topic", topic.changes().values())
    return policies


class PublishedChanges(NamedTuple):
    """What the policies topic holds: changes by key, and why others are left out."""

    changes: dict[bytes, PolicyChange]
    refused: list[str]


async def published_changes(settings: Settings) -> PublishedChanges:
    """What the policies topic holds.

    Raises:
        RetryError: Kafka did not answer.
        FatalError: there is no such topic.
    """
    cluster = await describe(settings, create=settings.create_topics)
    partitions = cluster.partitions.get(settings.topic_policies, 0)
    if not partitions:
        raise FatalError(
            f"topic {settings.topic_policies or 'for policies'} does not exist; create it with "
            "cleanup.policy=compact, or set RISKSTREAM_CREATE_TOPICS=true"
        )
    topic = PolicyTopic(settings, partitions, None)
    try:
        await topic.load()
    finally:
        await topic.close()
    return PublishedChanges(topic.changes(), topic.refused())


def _scope(key: bytes) -> bytes:
    """A key as `PolicyChange.key` writes it, where it is JSON at all."""
    try:
        return msgspec.json.encode(msgspec.json.decode(key))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return key


def _count(source: str, changes: int, refused: int) -> None:
    metrics.policy_changes.labels(source).set(changes - refused)
    metrics.policy_refusals.labels(source).set(refused)
