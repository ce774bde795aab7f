"""One run of the imaging role on the embedded broker: its topics, what is sent, what comes out."""

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.structs import ConsumerRecord

from schemas.messages import DeadLetter, Finding
from tests.killing import Site
from tests.worker.records import Record

PARTITIONS = 2


@dataclass
class Came:
    """What a run has published.

    findings: by id, as first published. times: findings by id, how often each came.
    """

    findings: dict[str, Finding] = field(default_factory=dict)
    times: Counter[str] = field(default_factory=Counter)
    letters: list[DeadLetter] = field(default_factory=list)

    @property
    def patients(self) -> list[str]:
        return sorted(finding.patient for finding in self.findings.values())


class ImagingSite(Site):
    """Servers and names of one run.

    partitions: of every topic.
    """

    partitions = PARTITIONS

    def __init__(self, broker: str, redis: str, role: str = "imaging", **more: str) -> None:
        super().__init__(broker, redis, False, f"img-{uuid.uuid4().hex[:6]}", "g", role)
        self._more = more

    @property
    def topics(self) -> tuple[str, str, str]:
        """Input, findings, dead letters."""
        return f"{self.run}-imaging", f"{self.run}-findings", f"{self.run}-g-dead"

    def environment(self, **more: str) -> dict[str, str]:
        imaging, findings, _ = self.topics
        own = {
            "RISKSTREAM_TOPIC_IMAGING": imaging,
            "RISKSTREAM_TOPIC_FINDINGS": findings,
            "RISKSTREAM_IMAGING_GROUP": f"{self.run}-g-imaging",
            "RISKSTREAM_IMAGING_DECODERS": "1",
            "RISKSTREAM_IMAGING_BACKOFF_S": "0.1",
            "RISKSTREAM_IMAGING_BACKOFF_MAX_S": "0.2",
            "RISKSTREAM_IMAGING_CONNECT_TIMEOUT_S": "1",
            "RISKSTREAM_PARTITIONS": str(self.partitions),
            "RISKSTREAM_CHECKPOINT_INTERVAL_S": "0.2",
        }
        return super().environment(**(own | self._more | more))

    async def create(self) -> None:
        """Make the topics."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.broker)
        await admin.start()
        try:
            await admin.create_topics([NewTopic(name, self.partitions, 1) for name in self.topics])
        finally:
            await admin.close()

    async def send(self, records: Sequence[Record], pause_s: float = 0.0) -> dict[int, int]:
        """Send records in order; the end of each partition's log afterwards."""
        return {partition: offset + 1 for partition, offset in await self.placed(records, pause_s)}

    async def placed(self, records: Sequence[Record], pause_s: float = 0.0) -> list[tuple[int, int]]:
        """Send records in order; partition and offset of each."""
        producer = AIOKafkaProducer(bootstrap_servers=self.broker, acks="all", max_request_size=16 << 20)
        await producer.start()
        places = []
        try:
            for record in records:
                sent = await producer.send_and_wait(
                    self.topics[0], record.value, record.key, timestamp_ms=record.timestamp
                )
                places.append((sent.partition, sent.offset))
                await asyncio.sleep(pause_s)
            return places
        finally:
            await producer.stop()

    async def committed(self, ends: dict[int, int], seconds: float = 40.0) -> None:
        """Wait until the imaging group has committed the end of every partition."""
        await self.committed_by(f"{self.run}-g-imaging", self.topics[0], ends, seconds)

    async def committed_by(self, group: str, topic: str, ends: dict[int, int], seconds: float) -> None:
        """Wait until a group has committed these ends of a topic's partitions."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self.broker, group_id=group, enable_auto_commit=False)
        await consumer.start()
        try:
            tps = [TopicPartition(topic, partition) for partition in ends]
            consumer.assign(tps)
            deadline = time.perf_counter() + seconds
            while True:
                offsets = {tp.partition: await consumer.committed(tp) or 0 for tp in tps}
                if offsets == ends:
                    return
                assert time.perf_counter() < deadline, f"committed {offsets}, log ends {ends}"
                await asyncio.sleep(0.1)
        finally:
            await consumer.stop()

    async def ends(self, topic: str) -> dict[int, int]:
        """The end of each partition's log; on Apache Kafka alone, Tansu's answer lags behind."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self.broker)
        await consumer.start()
        try:
            ends = await consumer.end_offsets([TopicPartition(topic, p) for p in range(self.partitions)])
            return {tp.partition: end for tp, end in ends.items()}
        finally:
            await consumer.stop()

    async def came(self) -> Came:
        """All findings and dead letters so far; two findings of one id must be the same bytes."""
        came, seen = Came(), dict[str, bytes]()
        for value in await self._values(self.topics[1]):
            finding = msgspec.json.decode(value, type=Finding)
            kept = seen.setdefault(finding.id, value)
            if kept != value:
                # Of several records of one image either may be scored: only their places may differ.
                first = msgspec.json.decode(kept, type=Finding)
                assert msgspec.structs.replace(finding, source=first.source) == first
            came.findings.setdefault(finding.id, finding)
            came.times[finding.id] += 1
        came.letters = [
            msgspec.json.decode(value, type=DeadLetter) for value in await self._values(self.topics[2])
        ]
        return came

    async def until(self, findings: int, seconds: float = 30.0) -> Came:
        """Wait for a number of different findings."""
        deadline = time.perf_counter() + seconds
        while True:
            came = await self.came()
            if len(came.findings) >= findings:
                return came
            assert time.perf_counter() < deadline, f"{len(came.findings)} findings of {findings}"
            await asyncio.sleep(0.2)

    async def _values(self, topic: str) -> list[bytes]:
        return [record.value for record in await self.records(topic)]

    async def records(self, topic: str) -> list[ConsumerRecord]:
        """All records of a topic so far; of each partition in order."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self.broker, auto_offset_reset="earliest")
        await consumer.start()
        found: list[ConsumerRecord] = []
        try:
            tps = [TopicPartition(topic, partition) for partition in range(self.partitions)]
            consumer.assign(tps)
            await consumer.seek_to_beginning(*tps)
            while True:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found += records
                highs = {tp: consumer.highwater(tp) for tp in tps}
                if all(
                    [high is not None and await consumer.position(tp) >= high for tp, high in highs.items()]
                ):
                    return found
        finally:
            await consumer.stop()
