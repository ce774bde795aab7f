"""The feedback topic -> the vitals topic, into the partition where the alert's patient lives.

Those who page people write what was said of an alert to the feedback topic. It counts only once it stands
among the patient's records: then the log alone says what it keeps quiet. A record that is no feedback, or is
about no alert of this input, is dead-lettered. What is carried twice is recognised by its event id.
"""

import asyncio
from collections.abc import Callable

import msgspec
import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError

from schemas.messages import Rejection
from worker import metrics
from worker.cluster import Cluster
from worker.config import Settings
from worker.decode import FEEDBACK_TYPE, Record, Refusal, decode_feedback
from worker.feedback import place_of
from worker.messages import Author
from worker.partition import Place
from worker.pipeline import Publish
from worker.publish import Outgoing

RETRY_S = 5.0
"""Wait before a topic that could not be read is read again."""

AT_ONCE = 500
"""Records carried before each commit."""

log = structlog.get_logger("riskstream.feedback")


class Carrier:
    """Carries feedback in a consumer group of its own, beside the worker's.

    Args:
        settings: broker, topics, group.
        cluster: its id, and the number of partitions of the vitals topic.
        publish: returns when all is confirmed.
        author: gives the writer of dead letters of a partition.
    """

    def __init__(
        self,
        settings: Settings,
        cluster: Cluster,
        publish: Publish,
        author: Callable[[Place], Author],
    ) -> None:
        self._settings = settings
        self._cluster = cluster
        self._publish = publish
        self._author = author

    async def run(self) -> None:
        """Carry what comes, for ever."""
        while True:
            try:
                await self._carry()
            except (KafkaError, OSError, TimeoutError) as error:
                log.warning("the feedback topic cannot be read now", why=type(error).__name__)
                await asyncio.sleep(RETRY_S)

    async def _carry(self) -> None:
        settings = self._settings
        consumer = AIOKafkaConsumer(
            settings.topic_feedback,
            **settings.kafka_client(),
            group_id=f"{settings.group}-feedback",
            client_id=f"riskstream-{settings.instance}",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=int(settings.session_timeout_s * 1000),
            max_poll_interval_ms=int(settings.max_poll_interval_s * 1000),
        )
        try:
            await consumer.start()
            while True:
                fetched = await consumer.getmany(timeout_ms=1000, max_records=AT_ONCE)
                carried = [
                    self.carried(record, tp.partition)
                    for tp, records in fetched.items()
                    for record in records
                ]
                if carried:
                    await self._publish(carried)
                    await consumer.commit()
        finally:
            await consumer.stop()

    def carried(self, record: Record, partition: int) -> Outgoing:
        """A record as it goes on: to the vitals topic, or to the dead letters with its reason."""
        refusal = self._refusal(record)
        if isinstance(refusal, Outgoing):
            return refusal
        metrics.rejections.labels("feedback", refusal.reason).inc()
        place = Place(self._cluster.id, self._settings.topic_feedback, partition)
        return self._author(place).dead_letter(record, [Rejection(refusal.reason, refusal.path)], 0)

    def _refusal(self, record: Record) -> Outgoing | Refusal:
        settings = self._settings
        event = decode_feedback(record, settings.max_record_bytes)
        if isinstance(event, Refusal):
            return event
        found = place_of(event.said.alert)
        if found is None or found[0][:2] != (self._cluster.id, settings.topic_vitals):
            return Refusal("unknown-alert", "$.alert.episode")
        partition = found[0].partition
        if partition >= self._cluster.partitions[settings.topic_vitals]:
            return Refusal("unknown-alert", "$.alert.episode")
        headers = (("content-type", FEEDBACK_TYPE),)
        # Only the fields that count: a record that filled a message of this topic would not fit there, with
        # its header, and a producer that is refused stops the worker.
        value = msgspec.json.encode(event.said)
        return Outgoing(settings.topic_vitals, record.key, value, headers, partition)
