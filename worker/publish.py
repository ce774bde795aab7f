"""Alerts, scores and dead letters -> confirmed Kafka records.

A publish counts only when the broker has confirmed it with all in-sync replicas; until then it is sent
again, with the same id and the same bytes.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, RecordTooLargeError

from worker import metrics
from worker.config import Settings
from worker.errors import FatalError, PublishError

Headers = tuple[tuple[str, bytes], ...]


STOP_S = 5.0
"""How long a producer may take to flush and disconnect; what is not confirmed is published again anyway."""

RENEW_AFTER = 4
"""Rounds of failed sends after which a fresh producer is tried; a broker's restart takes fewer."""

log = structlog.get_logger("riskstream.publish")


class Outgoing(NamedTuple):
    """One record to publish; `partition` None lets the key choose, `timestamp_ms` None means now."""

    topic: str
    key: bytes | None
    value: bytes
    headers: Headers
    partition: int | None = None
    timestamp_ms: int | None = None


class Publisher:
    """Publishes through an own producer: acks=all, idempotent where the broker can."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer: Any = None
        self._renewing = asyncio.Lock()
        self._why = ""

    async def start(self) -> None:
        """Connect.

        Raises:
            PublishError: no broker answers.
        """
        producer = AIOKafkaProducer(
            **self._settings.kafka_client(),
            client_id=f"riskstream-{self._settings.instance}",
            acks="all",
            enable_idempotence=self._settings.kafka_idempotence,
            linger_ms=2,
            max_request_size=4 << 20,
        )
        try:
            await producer.start()
        except (KafkaError, OSError) as error:
            await producer.stop()
            raise PublishError(f"no Kafka producer: {type(error).__name__}") from error
        self._producer = producer

    async def stop(self) -> None:
        """Flush and disconnect, within a deadline."""
        producer, self._producer = self._producer, None
        if producer is not None:
            try:
                await asyncio.wait_for(producer.stop(), STOP_S)
            except (KafkaError, OSError, TimeoutError) as error:
                log.warning("the producer did not stop cleanly", error=error)

    async def publish(self, messages: Sequence[Outgoing]) -> None:
        """Send and wait until the broker has confirmed every message; tries again until it has.

        Raises:
            FatalError: the broker will never take a message as it is; the settings are at fault.
        """
        waiting = list(messages)
        delay, rounds = 0.1, 0
        while waiting:
            waiting = await self._send(waiting)
            if waiting:
                rounds += 1
                if rounds == 1:
                    log.warning("not confirmed, sent again until it is", messages=len(waiting), why=self._why)
                for message in waiting:
                    metrics.publish_failures.labels(message.topic).inc()
                await asyncio.sleep(delay)
                delay = min(2 * delay, 5.0)
                if rounds % RENEW_AFTER == 0:
                    await self._renew(self._producer)

    async def _renew(self, failing: Any) -> None:
        """Put a fresh producer in the place of one that fails: some errors of a producer are for good."""
        async with self._renewing:
            if self._producer is failing:
                log.warning("publishing goes on failing; a fresh producer is tried")
                await self.stop()
                try:
                    await self.start()
                except PublishError:
                    self._producer = failing

    async def _send(self, messages: Sequence[Outgoing]) -> list[Outgoing]:
        """Send once; returns what was not confirmed."""
        sends = [asyncio.create_task(self._confirmed(message)) for message in messages]
        try:
            await asyncio.wait(sends, timeout=self._settings.publish_timeout_s)
        finally:
            for send in sends:
                send.cancel()
        results = await asyncio.gather(*sends, return_exceptions=True)
        self._why = next(
            (type(result).__name__ for result in results if isinstance(result, BaseException)), ""
        )
        return [message for message, send in zip(messages, sends, strict=True) if not _succeeded(send)]

    async def _confirmed(self, message: Outgoing) -> None:
        producer = self._producer
        if producer is None:
            raise PublishError("the producer is being renewed")
        confirmation = await producer.send(
            message.topic,
            value=message.value,
            key=message.key,
            partition=message.partition,
            timestamp_ms=message.timestamp_ms,
            headers=list(message.headers),
        )
        await confirmation


def _succeeded(send: "asyncio.Task[None]") -> bool:
    if send.cancelled():
        return False
    error = send.exception()
    if isinstance(error, MessageSizeTooLargeError | RecordTooLargeError):
        raise FatalError("a record exceeds max.message.bytes of its topic; raise that to 2 MiB") from None
    if error is not None and not isinstance(error, KafkaError | PublishError | OSError | TimeoutError):
        raise error
    return error is None


def cloud_event(kind: str, identifier: str, source: str) -> Headers:
    """CloudEvents attributes in Kafka's binary mode; none of them names a patient."""
    return (
        ("content-type", b"application/json"),
        ("ce_specversion", b"1.0"),
        ("ce_type", f"riskstream.{kind}".encode()),
        ("ce_id", identifier.encode()),
        ("ce_source", source.encode()),
    )
