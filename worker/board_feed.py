"""Scores, alerts and findings from Kafka, without a consumer group: what the ward page reads.

    risk-scores, risk-alerts, alert-feedback, findings -> take(message) -> ward

Nothing is committed, so any number of pages may run and none disturbs a worker. At start each topic is read
back by record time, then followed. A broker that goes away is waited for; reading resumes where it stood.
"""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec
import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from schemas.messages import Alert, FeedbackRecord, Finding, Score
from worker.board_rows import FeedState, Topic
from worker.board_ward import Ward
from worker.cluster import partition_counts
from worker.config import Settings
from worker.errors import RetryError

log = structlog.get_logger("riskstream.board")

RETRY_S = 2.0
"""Between attempts to reach a broker that does not answer; also how often one that does is asked again."""

ANSWER_S = 5.0
"""A broker that takes longer to describe its topics is taken for away."""

RECORDS = 500
"""Taken at once: some 20 ms of decoding, during which no page is served."""

MAX_BYTES = 1 << 18
"""Largest message that is read; an alert has some 10 KB."""

MAX_FINDING_BYTES = 1 << 19
"""The same for a finding, whose picture of 256 KiB has a third more in base64."""

MAX_NAME = 128
"""Longest patient identifier, as the vitals topic allows."""

_score = msgspec.json.Decoder(Score).decode
_alert = msgspec.json.Decoder(Alert).decode
_feedback = msgspec.json.Decoder(FeedbackRecord).decode
_finding = msgspec.json.Decoder(Finding).decode

Message = Score | Alert | FeedbackRecord | Finding


def now_ms() -> int:
    """The clock of this process in milliseconds since the epoch; nothing is decided by it."""
    return round(datetime.now(UTC).timestamp() * 1000)


class Feed:
    """Reads the topics into a ward for as long as it runs."""

    def __init__(self, settings: Settings, ward: Ward) -> None:
        self._settings = settings
        self._ward = ward
        self._up, self._since = False, now_ms()
        self._partitions: dict[str, int] = {}
        optional = (settings.topic_feedback, settings.topic_findings)
        self._topics = [settings.topic_scores, settings.topic_alerts, *filter(None, optional)]
        self._taken = dict.fromkeys(self._topics, 0)
        self._unreadable = 0
        self._positions: dict[TopicPartition, int] = {}
        self._ends: dict[TopicPartition, int] | None = None  # of the log as first seen; empty once it is read

    @property
    def loading(self) -> bool:
        """Whether the past is still being read."""
        return self._ends is None or bool(self._ends)

    def state(self) -> FeedState:
        """How it stands."""
        event = self._ward.event
        return FeedState(
            now=now_ms(),
            kafka_up=self._up,
            kafka_since=self._since,
            loading=self.loading,
            last=self._ward.last_ms,
            event=event[0] if event else None,
            event_at=event[1] if event else None,
            patients=len(self._ward),
            full=self._ward.full,
            unreadable=self._unreadable,
            scores=self._topic(self._settings.topic_scores),
            alerts=self._topic(self._settings.topic_alerts),
        )

    async def run(self) -> None:
        """Read until cancelled.

        Raises:
            FatalError: the brokers refuse, for example for want of an ACL.
        """
        while True:
            try:
                await self._session()
            except (KafkaError, RetryError, OSError, TimeoutError) as error:
                self._reachable(False, type(error).__name__)
            await asyncio.sleep(RETRY_S)

    def take(self, topic: str, value: bytes | None, timestamp: int) -> None:
        """Take one record; what is no message is counted and left out."""
        self._taken[topic] += 1
        try:
            if value is None or len(value) > self._most(topic):
                raise ValueError
            message = self._decoder(topic)(value)
            if len(message.patient) > MAX_NAME:
                raise ValueError
        except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
            self._unreadable += 1
            return
        # A clock that is ahead would make the feed look fresh after it has stopped.
        at = min(timestamp, now_ms())
        if isinstance(message, Score):
            self._ward.score(message, at)
        elif isinstance(message, Alert):
            self._ward.alert(message, at)
        elif isinstance(message, Finding):
            self._ward.finding(message, at)
        else:
            self._ward.feedback(message)

    def _most(self, topic: str) -> int:
        return MAX_FINDING_BYTES if topic == self._settings.topic_findings else MAX_BYTES

    def _decoder(self, topic: str) -> Callable[[bytes], Message]:
        if topic == self._settings.topic_scores:
            return _score
        if topic == self._settings.topic_findings:
            return _finding
        return _alert if topic == self._settings.topic_alerts else _feedback

    async def _session(self) -> None:
        """Read over one pair of clients until something fails that they do not mend themselves."""
        client = self._settings.kafka_client()
        admin = AIOKafkaAdminClient(**client, client_id="riskstream-board")
        consumer = AIOKafkaConsumer(
            **client,
            client_id="riskstream-board",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=200,
        )
        try:
            async with asyncio.timeout(self._settings.request_timeout_s):
                await admin.start()
                await consumer.start()
            watching = asyncio.ensure_future(self._watch(admin, consumer))
            try:
                while not watching.done():
                    await self._read(consumer)
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
            if not watching.cancelled():
                watching.result()
        finally:
            await admin.close()
            await consumer.stop()

    async def _watch(self, admin: AIOKafkaAdminClient, consumer: AIOKafkaConsumer) -> None:
        """Ask every few seconds whether the broker answers, and take topics and partitions that are new."""
        while True:
            try:
                async with asyncio.timeout(ANSWER_S):
                    # All topics: a broker may create those that it is asked for by name, and this only reads.
                    described = await admin.describe_topics()
            except (KafkaError, OSError, TimeoutError) as error:
                self._reachable(False, type(error).__name__)
                await asyncio.sleep(RETRY_S)
                continue
            counts = partition_counts([topic for topic in described if topic["topic"] in self._topics])
            self._reachable(True)
            if counts != self._partitions or not consumer.assignment():
                self._partitions = counts
                await self._assign(consumer)
            await asyncio.sleep(RETRY_S)

    async def _assign(self, consumer: AIOKafkaConsumer) -> None:
        """Read every partition: from where it stood, or from far enough back."""
        places = [TopicPartition(name, n) for name, count in self._partitions.items() for n in range(count)]
        if not places:
            self._ends = {}
            return
        ends = await consumer.end_offsets(places)
        starts = await consumer.offsets_for_times({place: self._begin(place.topic) for place in places})
        consumer.assign(places)
        for place in places:
            start = starts.get(place)
            first = ends[place] if start is None else start.offset  # no record is as new as that
            consumer.seek(place, self._positions.setdefault(place, first))
        if self._ends is None:
            self._ends = {place: end for place, end in ends.items() if end > self._positions[place]}

    def _begin(self, topic: str) -> int:
        hours = self._settings.board_history_h
        if topic != self._settings.topic_scores:
            hours = max(hours, self._settings.board_alerts_h)
        return now_ms() - round(hours * 3_600_000)

    async def _read(self, consumer: AIOKafkaConsumer) -> None:
        if not consumer.assignment():
            await asyncio.sleep(RETRY_S / 10)
            return
        for place, records in (await consumer.getmany(timeout_ms=200, max_records=RECORDS)).items():
            for record in records:
                self.take(place.topic, record.value, record.timestamp)
            self._positions[place] = records[-1].offset + 1
        if self._ends:
            self._ends = await _unread(self._ends, consumer)
        await asyncio.sleep(0)

    def _reachable(self, up: bool, why: str = "") -> None:
        if up != self._up:
            self._up, self._since = up, now_ms()
            log.info("kafka answers") if up else log.warning("kafka does not answer", error=why)

    def _topic(self, name: str) -> Topic:
        return Topic(name, self._partitions.get(name, 0) > 0, self._taken[name])


async def _unread(ends: dict[TopicPartition, int], consumer: AIOKafkaConsumer) -> dict[TopicPartition, int]:
    """What is not read to its end yet of the partitions that are read.

    The consumer's position counts, not the last record's: the mark that ends a transaction has an offset too.
    """
    read = consumer.assignment()
    return {
        place: end for place, end in ends.items() if place in read and await consumer.position(place) < end
    }


async def every(seconds: float, act: Callable[[], None]) -> None:
    """Call `act` again and again, not sooner than `seconds` after the last call."""
    while True:
        started = time.perf_counter()
        act()
        await asyncio.sleep(max(0.0, seconds - (time.perf_counter() - started)))
