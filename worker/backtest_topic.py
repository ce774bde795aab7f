"""A recorded topic as a source: every partition of it, between two times, without a consumer group.

Nothing is committed and nothing changed; workers that read the topic meanwhile do not notice.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from hashlib import sha256
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from worker import cluster
from worker.backtest_source import Log, Source
from worker.config import Settings
from worker.decode import Record
from worker.errors import WorkerError
from worker.partition import Place
from worker.recording import SourceError

PREFIX = "kafka:"
"""How a topic is named in commands: `kafka:TOPIC`."""

SILENT_S = 30
"""Seconds without an answer after which reading is given up."""


class Span(NamedTuple):
    """Offsets of a partition: the first that is read, the first that counts, and the end."""

    begin: int
    live_from: int
    end: int


async def read(topic: str, settings: Settings, since: datetime | None, until: datetime | None) -> Source:
    """The topic of the configured broker.

    Records from the rebuild horizon before `since` on are read, to build up the patients' state as a worker
    that starts there does.

    Args:
        topic: its name. settings: the broker, and the horizon.
        since: record timestamp from which alerts count; from the beginning of the topic if None.
        until: record timestamp before which the last record lies; to the end, as of now, if None.

    Raises:
        SourceError: the broker does not answer, or has no such topic, or nothing is in it.
    """
    settings = settings.model_copy(update={"topic_vitals": topic})
    try:
        known = await cluster.describe(settings, create=False)
        tps = [TopicPartition(topic, number) for number in range(known.partitions[topic])]
        if not tps:
            raise SourceError(f"the broker has no topic {topic}")
        async with _consumer(settings) as consumer:
            spans = await _spans(consumer, tps, settings, since, until)
    except (WorkerError, KafkaError, OSError, TimeoutError) as error:
        told = str(error) if isinstance(error, WorkerError) else f"Kafka: {type(error).__name__}"
        raise SourceError(f"cannot read {topic}: {told}") from None
    records = sum(span.end - span.begin for span in spans.values())
    if not records:
        raise SourceError(f"topic {topic} holds no record in that time")
    logs = [
        Log(Place(known.id, topic, tp.partition), partial(_chunks, settings, tp, span), span.live_from)
        for tp, span in spans.items()
    ]
    # A log does not change, but for deletion at its beginning: its ends name its content.
    ends = f"{known.id}/{known.vitals_id}/{sorted((tp.partition, *span) for tp, span in spans.items())}"
    return Source(
        f"{PREFIX}{topic}",
        sha256(ends.encode()).hexdigest(),
        logs,
        records,
        policy_partitions=known.partitions.get(settings.topic_policies, 0),
    )


@asynccontextmanager
async def _consumer(settings: Settings) -> AsyncIterator[Any]:
    consumer = AIOKafkaConsumer(
        **settings.kafka_client(),
        client_id="riskstream-backtest",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_max_bytes=settings.fetch_max_bytes,
    )
    try:
        await consumer.start()
        yield consumer
    finally:
        await consumer.stop()


async def _spans(
    consumer: Any,
    tps: Sequence[TopicPartition],
    settings: Settings,
    since: datetime | None,
    until: datetime | None,
) -> dict[TopicPartition, Span]:
    consumer.assign(tps)
    first: Mapping[TopicPartition, int] = await consumer.beginning_offsets(tps)
    last = {tp: await _end(consumer, tp, first[tp]) for tp in tps}
    horizon_ms = round(settings.rebuild_horizon_h * 3_600_000)
    begin, live, end = first, first, last
    if since is not None:
        live = await _at(consumer, tps, _ms(since), last)
        begin = await _at(consumer, tps, max(_ms(since) - horizon_ms, 0), last)
    if until is not None:
        end = await _at(consumer, tps, _ms(until), last)
    return {tp: Span(min(begin[tp], end[tp]), live[tp], end[tp]) for tp in tps}


async def _end(consumer: Any, tp: TopicPartition, first: int) -> int:
    """The end of the log as of now. It comes with a fetch: Tansu's answer to "latest offset" lags behind."""
    consumer.seek(tp, first)
    silent = 0
    while (end := consumer.highwater(tp)) is None:
        await consumer.getmany(tp, timeout_ms=1000, max_records=1)
        silent += 1
        if silent > SILENT_S:
            raise TimeoutError
    return int(end)


async def _at(
    consumer: Any, tps: Sequence[TopicPartition], time_ms: int, last: Mapping[TopicPartition, int]
) -> dict[TopicPartition, int]:
    """Offset of each partition's first record from a time on; its end where there is none."""
    found = await consumer.offsets_for_times(dict.fromkeys(tps, time_ms))
    return {tp: last[tp] if found.get(tp) is None else found[tp].offset for tp in tps}


def _ms(time: datetime) -> int:
    return round(time.timestamp() * 1000)


async def _chunks(settings: Settings, tp: TopicPartition, span: Span) -> AsyncIterator[Sequence[Record]]:
    """A partition's records.

    Raises:
        SourceError: the broker stopped answering.
    """
    if span.begin == span.end:
        return
    try:
        async with _consumer(settings) as consumer:
            consumer.assign([tp])
            consumer.seek(tp, span.begin)
            silent = 0
            while await consumer.position(tp) < span.end:
                came = await consumer.getmany(tp, timeout_ms=1000, max_records=settings.chunk_records)
                records = [record for record in came.get(tp, []) if record.offset < span.end]
                silent = 0 if came else silent + 1
                if silent > SILENT_S:
                    raise TimeoutError
                if records:
                    yield records
    except (KafkaError, OSError, TimeoutError) as error:
        raise SourceError(f"reading {tp.topic} stopped: {type(error).__name__}") from None
