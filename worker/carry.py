"""Another topic -> the vitals topic: what concerns one patient joins the patient's records.

What is carried counts only once it stands there: then the log alone says what it changes, and when. A record
that cannot be carried is dead-lettered with its reason. What is carried twice is recognised by its id.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError

from schemas.messages import Rejection
from worker import metrics
from worker.config import Settings
from worker.decode import Record, Refusal
from worker.messages import Author
from worker.partition import Place
from worker.pipeline import Publish
from worker.publish import Outgoing

RETRY_S = 5.0
"""Wait before a topic that could not be read is read again."""

AT_ONCE = 500
"""Records carried before each commit."""

log = structlog.get_logger("riskstream.carry")


class Load(NamedTuple):
    """What a carrier carries.

    name: of the metrics' stage, and the end of the consumer group's name.
    topic: where it comes from.
    onward: a record as it stands in the vitals topic, or why it cannot be carried.
    """

    name: str
    topic: str
    onward: Callable[[Record], Outgoing | Refusal]


class Carrier:
    """Carries one topic in a consumer group of its own, beside the worker's.

    Args:
        load: what to carry.
        settings: broker, group.
        cluster: the cluster's id.
        publish: returns when all is confirmed.
        author: gives the writer of dead letters of a partition.
    """

    def __init__(
        self,
        load: Load,
        settings: Settings,
        cluster: str,
        publish: Publish,
        author: Callable[[Place], Author],
    ) -> None:
        self._load = load
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
                log.warning("a topic cannot be read now", topic=self._load.topic, why=type(error).__name__)
                await asyncio.sleep(RETRY_S)

    async def _carry(self) -> None:
        settings = self._settings
        consumer = AIOKafkaConsumer(
            self._load.topic,
            **settings.kafka_client(),
            group_id=f"{settings.group}-{self._load.name}",
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
        found = self._load.onward(record)
        if isinstance(found, Outgoing):
            return found
        metrics.rejections.labels(self._load.name, found.reason).inc()
        place = Place(self._cluster, self._load.topic, partition)
        return self._author(place).dead_letter(record, [Rejection(found.reason, found.path)], 0)
