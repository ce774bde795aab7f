"""Kafka through Faust, a chunk of raw records at a time. The home of Faust.

Faust's cost is per message, so its consumer is made to hand the agent one message per partition and
fetch, whose value is the list of raw records. Only partitions with room are asked for, so everything is
bounded and one slow partition holds up no other. Faust neither commits nor seeks: where reading starts
and what is committed is decided by `restore.py` and `checkpoint.py`.

Names used of Faust 0.15 and aiokafka 0.14 beyond their documented API: `ConsumerThread._consumer`,
`Consumer._getmany`, `Consumer._thread`, `TableManager._update_channels`,
`GroupCoordinator.fetch_committed_offsets`.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import aiokafka
import faust
from aiokafka import AIOKafkaConsumer, OffsetAndMetadata
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from faust.tables.manager import TableManager
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from faust.transport.drivers.aiokafka import Consumer as FaustConsumer
from faust.transport.drivers.aiokafka import Producer as FaustProducer
from faust.transport.drivers.aiokafka import Transport as FaustTransport
from faust.types import TP
from faust.types.tuples import ConsumerMessage
from yarl import URL

from worker.config import Settings
from worker.errors import RetryError
from worker.partition import Place

FETCH_WAIT_MS = 100
"""How long the broker may hold a fetch for more data; Faust's own 1,500 ms would delay lone partitions."""

HEARTBEAT_S = 0.3
"""Between two heartbeats. Only their answers tell a worker that the group rebalances, and nobody gets a
partition before all workers have come: this is most of what a partition waits for."""

IDLE_POLL_S = 0.5
"""Longest wait for records while every partition has room."""

BUSY_POLL_S = 0.02
"""Longest wait while some partition has none: when it has room again it must not wait for the others."""


class Intake(Protocol):
    """Who takes the chunks."""

    def wanting(self) -> set[TP]:
        """Partitions that have room for a chunk."""
        ...

    def full(self) -> bool:
        """Whether a partition has no room."""
        ...

    def put(self, tp: TP, chunk: "Chunk") -> None:
        """Take a chunk, or drop it and seek again when it does not follow what came before."""
        ...

    def assign(self, partitions: set[TP]) -> None:
        """Take over what the group has assigned, all of it."""
        ...

    async def revoke(self, partitions: set[TP], seconds: float) -> None:
        """Touch partitions no more, within a deadline, until the group has assigned anew."""
        ...


class Chunk(NamedTuple):
    """What one fetch brought of a partition.

    start: the offset sought to, or the end of the fetch before. When it is not where the taker stands,
        something in between was lost on the way: Faust drops what it holds when flow stops.
    records: raw records, in order of offset.
    """

    start: int
    records: Sequence[Any]

    @property
    def end(self) -> int:
        """The offset after the last record."""
        return int(self.records[-1].offset) + 1


class Subscription(NamedTuple):
    """What one group reads, and how much at once.

    group: the consumer group.
    topic: the topic that it reads.
    fetch_bytes: of a partition at once; a single larger record comes all the same.
    records: of a partition at once, at most.
    """

    group: str
    topic: str
    fetch_bytes: int
    records: int


class Committed(NamedTuple):
    """A committed offset and the metadata that was committed with it."""

    offset: int
    metadata: str


class ChunkThread(AIOKafkaConsumerThread):  # type: ignore[misc]
    """Faust's consumer thread around an aiokafka consumer with our settings.

    It notes where each fetch begins, in the one thread in which partitions are sought and fetched.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._starts: dict[TP, int] = {}

    def seek_to(self, tp: TP, offset: int) -> None:
        """Seek, in this thread."""
        self._ensure_consumer().seek(aiokafka.TopicPartition(*tp), offset)
        self._starts[tp] = offset

    async def _fetch_records(self, *arguments: Any, **options: Any) -> dict[TP, Chunk]:
        chunks: dict[TP, Chunk] = {}
        for found, records in (await super()._fetch_records(*arguments, **options)).items():
            tp = TP(*found)
            chunks[tp] = Chunk(self._starts.get(tp, -1), records)
            self._starts[tp] = chunks[tp].end
        return chunks

    def _create_worker_consumer(self, transport: Any) -> AIOKafkaConsumer:
        settings: Settings = transport.settings
        subscription: Subscription = transport.subscription

        class Assignor(StickyPartitionAssignor):  # type: ignore[misc]
            """Moves few partitions. A class of its own: what it remembers is its class's."""

        # Faust asks for it; without tables nothing else uses it.
        self._assignor = Assignor
        return AIOKafkaConsumer(
            **settings.kafka_client(),
            client_id=f"riskstream-{settings.instance}",
            group_id=subscription.group,
            partition_assignment_strategy=[Assignor],
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=subscription.fetch_bytes,
            fetch_max_wait_ms=FETCH_WAIT_MS,
            max_poll_records=subscription.records,
            max_poll_interval_ms=int(settings.max_poll_interval_s * 1000),
            session_timeout_ms=int(settings.session_timeout_s * 1000),
            heartbeat_interval_ms=int(min(HEARTBEAT_S, settings.session_timeout_s / 4) * 1000),
            rebalance_timeout_ms=int(settings.rebalance_timeout_s * 1000),
        )


class ChunkConsumer(FaustConsumer):  # type: ignore[misc]
    """Delivers chunks; commits and seeks only when told to."""

    def _new_consumer_thread(self) -> ChunkThread:
        return ChunkThread(self, loop=self.loop, beacon=self.beacon)

    @property
    def intake(self) -> Intake:
        """Who takes the chunks."""
        intake: Intake = self.transport.intake
        return intake

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, ConsumerMessage]]:
        """One message for each partition that has room and records."""
        if not self.flow_active:
            await self.wait(self.can_resume_flow)
        wanted = self.intake.wanting()
        if not wanted:
            await asyncio.sleep(BUSY_POLL_S)
            return
        poll = BUSY_POLL_S if self.intake.full() else IDLE_POLL_S
        fetched: Mapping[TP, Chunk] = await self._getmany(active_partitions=wanted, timeout=poll)
        for tp, chunk in fetched.items():
            # Faust would drop what lies before the last offset it saw, as everything does after a rewind.
            self._read_offset[tp] = None
            yield tp, self._message(tp, chunk)

    def _message(self, tp: TP, chunk: Chunk) -> ConsumerMessage:
        first = chunk.records[0]
        return ConsumerMessage(
            tp.topic,
            tp.partition,
            first.offset,
            first.timestamp / 1000,
            first.timestamp_type,
            headers=None,
            key=None,
            value=chunk,
            checksum=None,
            tp=tp,
            generation_id=self.app.consumer_generation_id,
        )

    async def perform_seek(self) -> None:
        """Leave positions alone: each partition is sought once its state is restored."""

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Commit nothing: Faust's own commits could pass a chunk that is not finished."""
        return False

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Leave stall detection to `/health/live`, which looks at lag and progress."""

    async def seek_offset(self, place: Place, offset: int) -> None:
        """Read on from `offset`."""
        await self._call(self._thread.seek_to, TP(place.topic, place.partition), offset)

    async def commit_offset(self, place: Place, offset: int, metadata: str) -> bool:
        """Commit; False when the group no longer lets this worker.

        Raises:
            RetryError: the broker did not answer.
        """
        offsets = {aiokafka.TopicPartition(place.topic, place.partition): OffsetAndMetadata(offset, metadata)}
        try:
            await self._call(self._aiokafka.commit, offsets)
        except (CommitFailedError, IllegalStateError):
            return False
        return True

    async def committed_offset(self, place: Place) -> Committed | None:
        """The group's committed offset, with its metadata."""
        tp = aiokafka.TopicPartition(place.topic, place.partition)
        found = await self._call(self._aiokafka._coordinator.fetch_committed_offsets, [tp])
        stored = found.get(tp)
        return (
            None if stored is None or stored.offset < 0 else Committed(stored.offset, stored.metadata or "")
        )

    async def log_range(self, place: Place, known: int) -> tuple[int, int]:
        """First offset in the log and the one after the last.

        Args:
            place: the partition.
            known: an offset that the log once reached. When the brokers answer less, a fetch decides:
                Tansu reports the start of its last batch.
        """
        tp = aiokafka.TopicPartition(place.topic, place.partition)
        first = (await self._call(self._aiokafka.beginning_offsets, [tp]))[tp]
        end = (await self._call(self._aiokafka.end_offsets, [tp]))[tp]
        return first, end if end >= known else max(end, await self._fetched_end(tp, first))

    async def _fetched_end(self, tp: aiokafka.TopicPartition, first: int) -> int:
        settings: Settings = self.transport.settings
        consumer = AIOKafkaConsumer(
            **settings.kafka_client(), max_partition_fetch_bytes=1, enable_auto_commit=False
        )
        try:
            await consumer.start()
            consumer.assign([tp])
            consumer.seek(tp, first)
            await consumer.getmany(tp, timeout_ms=2000, max_records=1)
            highwater = consumer.highwater(tp)
            if highwater is None:
                raise RetryError("Kafka: a fetch was not answered")
            return int(highwater)
        except (KafkaError, OSError, TimeoutError) as error:
            raise RetryError(f"Kafka: {type(error).__name__}") from None
        finally:
            await consumer.stop()

    async def offset_at(self, place: Place, timestamp_ms: int) -> int | None:
        """First offset whose record is not older than a time; None when all are older."""
        tp = aiokafka.TopicPartition(place.topic, place.partition)
        found = await self._call(self._aiokafka.offsets_for_times, {tp: timestamp_ms})
        return None if found.get(tp) is None else int(found[tp].offset)

    def log_end(self, place: Place) -> int | None:
        """The offset after the last record, as of the last fetch."""
        highwater = self._aiokafka.highwater(aiokafka.TopicPartition(place.topic, place.partition))
        return None if highwater is None else int(highwater)

    @property
    def _aiokafka(self) -> AIOKafkaConsumer:
        return self._thread._ensure_consumer()

    async def _call(self, function: Any, *arguments: Any) -> Any:
        """Call in the consumer's thread, with a deadline.

        Not by Faust's method queue: its two workers may both be waiting for a rebalance to end, which
        waits for the commit that would be queued behind them.
        """

        async def call() -> Any:
            result = function(*arguments)
            return await result if inspect.isawaitable(result) else result

        seconds = self.transport.settings.request_timeout_s
        future = asyncio.run_coroutine_threadsafe(call(), self._thread.thread_loop)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), seconds)
        except (CommitFailedError, IllegalStateError):
            raise
        except (KafkaError, TimeoutError) as error:
            raise RetryError(f"Kafka: {type(error).__name__}") from None


class SilentProducer(FaustProducer):  # type: ignore[misc]
    """Faust asks for a producer; publishing is `publish.py`'s, so this one never connects."""

    async def on_start(self) -> None:
        """Connect nothing."""

    async def on_stop(self) -> None:
        """Nothing to disconnect."""

    async def flush(self) -> None:
        """Nothing to flush."""


class NoTables(TableManager):  # type: ignore[misc]
    """Faust's table manager, without the second for which it waits for tables: there are none."""

    async def on_start(self) -> None:
        """Say at once that all tables are there, which is what the subscription waits for."""
        await self._update_channels()
        await self.recovery.start()


class ChunkTransport(FaustTransport):  # type: ignore[misc]
    """A Faust transport that delivers chunks to `intake`."""

    Consumer = ChunkConsumer
    Producer = SilentProducer

    def __init__(
        self, urls: Any, app: Any, settings: Settings, intake: Intake, subscription: Subscription
    ) -> None:
        super().__init__(urls, app)
        self.settings = settings
        self.subscription = subscription
        self.intake = intake


def vitals_subscription(settings: Settings) -> Subscription:
    """What the vitals role reads."""
    return Subscription(
        settings.group, settings.topic_vitals, settings.fetch_max_bytes, settings.chunk_records
    )


def chunk_app(settings: Settings, intake: Intake, folder: str, subscription: Subscription) -> Any:
    """A Faust app, not yet started, whose one agent hands the chunks of a topic to `intake`.

    Faust wants a folder for tables, which there are none of; it is the caller's to remove.
    """
    urls = [URL(f"kafka://{server}") for server in settings.bootstrap_servers]
    app = faust.App(
        subscription.group,
        broker=urls,
        autodiscover=False,
        web_enabled=False,
        datadir=folder,
        topic_allow_declare=False,
        topic_disable_leader=True,
        stream_wait_empty=False,
        TableManager=NoTables,
        # Faust's own commit handler finds nothing to commit; once an hour is as good as never.
        broker_commit_interval=3600.0,
        broker_session_timeout=settings.session_timeout_s,
        broker_request_timeout=settings.request_timeout_s,
        broker_rebalance_timeout=settings.rebalance_timeout_s,
        broker_max_poll_interval=settings.max_poll_interval_s,
        stream_buffer_maxsize=64,
    )
    app.transport = app.producer_transport = ChunkTransport(urls, app, settings, intake, subscription)
    topic = app.topic(subscription.topic, key_type=bytes, value_type=bytes, value_serializer="raw")

    async def chunks(stream: Any) -> None:
        async for event in stream.noack().events():
            intake.put(event.message.tp, event.message.value)

    app.agent(topic, name=subscription.topic)(chunks)
    app.on_partitions_assigned.connect(lambda _, assigned, **__: intake.assign(set(assigned)), weak=False)

    async def revoke(_: Any, revoked: set[TP], **__: Any) -> None:
        await intake.revoke(set(revoked), settings.rebalance_timeout_s / 2)

    app.on_partitions_revoked.connect(revoke, weak=False)
    app.finalize()
    return app
