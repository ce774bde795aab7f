"""A topic as a log: stretches of one partition, read from offset to offset without a consumer group.

For commands and rebuilds that look back. Nothing is committed, and no worker's group is touched.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from worker.config import Settings
from worker.errors import RetryError

SILENT_S = 30
"""Seconds without an answer after which reading is given up, to be tried again."""

FETCH_WAIT_MS = 50
"""How long the broker may hold a fetch for more data: what is read is there already."""

STOP_S = 1.0
"""How long disconnecting may take."""

FETCH_RECORDS = 2000
"""Records handed over at once, at most."""

Progress = Callable[[str, int, int], None]
"""Told of long work: what, how much is done, of how much."""


class Span(NamedTuple):
    """What a partition's log holds: its first offset, and the one after its last."""

    first: int
    end: int


class Log(Protocol):
    """Partitions of topics, read one stretch after the other."""

    async def span(self, topic: str, partition: int) -> Span: ...
    async def offset_at(self, topic: str, partition: int, time_ms: int) -> int | None: ...
    def read(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[Sequence[Any]]: ...


class History:
    """The log as the brokers hold it. One stretch is read at a time; an async context manager.

    Raises:
        RetryError: from every method, when Kafka does not answer or refuses.
    """

    def __init__(self, settings: Settings) -> None:
        self._consumer = AIOKafkaConsumer(
            **settings.kafka_client(),
            client_id=f"riskstream-{settings.instance}",
            enable_auto_commit=False,
            auto_offset_reset="none",
            max_partition_fetch_bytes=settings.fetch_max_bytes,
            fetch_max_wait_ms=FETCH_WAIT_MS,
        )

    async def __aenter__(self) -> Self:
        try:
            await self._consumer.start()
        except (KafkaError, OSError, TimeoutError) as error:
            await self._stop()
            raise _away(error) from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def span(self, topic: str, partition: int) -> Span:
        """What the partition holds now."""
        tp = TopicPartition(topic, partition)
        try:
            first = int((await self._consumer.beginning_offsets([tp]))[tp])
            self._consumer.assign([tp])  # anew, so that the high-water mark is too
            self._consumer.seek(tp, first)
            for _ in range(10 * SILENT_S):
                # The high-water mark comes with every fetch; Tansu's "latest offset" lags behind it.
                if (end := self._consumer.highwater(tp)) is not None:
                    return Span(first, max(int(end), first))
                await self._consumer.getmany(tp, timeout_ms=100, max_records=1)
        except (KafkaError, OSError, TimeoutError) as error:
            raise _away(error) from None
        raise RetryError("Kafka: a fetch was not answered")

    async def offset_at(self, topic: str, partition: int, time_ms: int) -> int | None:
        """An offset before which every record is older than a time, ms; None when all are older.

        Kafka names the first record that is not older. Tansu may name one before it.
        """
        tp = TopicPartition(topic, partition)
        try:
            found = await self._consumer.offsets_for_times({tp: max(time_ms, 0)})
        except (KafkaError, OSError, TimeoutError) as error:
            raise _away(error) from None
        return None if found.get(tp) is None else int(found[tp].offset)

    async def read(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[Sequence[Any]]:
        """The records from offset `start` to before `end`, some at a time; offsets may have gaps."""
        tp = TopicPartition(topic, partition)
        if start >= end:
            return
        try:
            if self._consumer.assignment() != {tp}:
                self._consumer.assign([tp])
            self._consumer.seek(tp, start)
            silent = 0
            while await self._consumer.position(tp) < end:
                found = await self._consumer.getmany(tp, timeout_ms=1000, max_records=FETCH_RECORDS)
                records = found.get(tp, [])
                silent = 0 if records else silent + 1
                if silent > SILENT_S:
                    raise TimeoutError
                wanted = [record for record in records if record.offset < end]
                if wanted:
                    yield wanted
        except (KafkaError, OSError, TimeoutError) as error:
            raise _away(error) from None

    async def _stop(self) -> None:
        """Disconnect. aiokafka 0.14 can miss being stopped just after an assignment, but not twice."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._consumer.stop(), STOP_S)


def _away(error: Exception) -> RetryError:
    if isinstance(error, OffsetOutOfRangeError):
        return RetryError("Kafka deleted records while they were read; try again")
    return RetryError(f"Kafka: {type(error).__name__}")


async def first_at(log: Log, topic: str, partition: int, time_ms: int) -> int:
    """Offset of the first record that is not older than a time, ms; the log's end when all are older."""
    span = await log.span(topic, partition)
    start = await log.offset_at(topic, partition, time_ms)
    if start is None:
        return span.end
    async for records in log.read(topic, partition, max(start, span.first), span.end):
        for record in records:
            if record.timestamp >= time_ms:
                return int(record.offset)
    return span.end
