"""`riskstream send`: a recording -> confirmed records on a topic, at the pace of event time.

A record's Kafka timestamp is its event time: the worker judges dates, and how far back to rebuild, against
record timestamps. A topic that deletes by age therefore deletes old recordings early: give such a topic
`retention.ms=-1`.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import IO, Any, NamedTuple, Protocol

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, UnknownTopicOrPartitionError

from schemas.imaging import MAX_INLINE_BYTES, ImagingEvent
from schemas.messages import VitalsRecord
from worker import tracing
from worker.config import Settings

_HEADERS = (("content-type", b"application/json"),)

MOST_BYTES = 4 * MAX_INLINE_BYTES // 3 + (1 << 16)
"""Of a record: the largest picture inline, in base64."""

TOO_LARGE = "a record is larger than the broker takes: send it --by-reference, or raise max.message.bytes"

_YIELD_EVERY = 64
"""Records handed over before other tasks get a turn, when nothing else makes the sender wait."""

_encode = msgspec.json.Encoder().encode


class SendError(RuntimeError):
    """The broker did not take a record. What was confirmed before stays in the topic."""


class Pace:
    """Event time played at a constant speed; None is as fast as the broker takes it."""

    def __init__(self, begins: datetime, speed: float | None) -> None:
        self._begins = begins
        self._speed = speed
        self._started = time.perf_counter()
        self._passed = 0

    async def until(self, event: datetime) -> None:
        """Wait until it is the turn of an event; let others run from time to time in any case."""
        self._passed += 1
        delay = 0.0
        if self._speed is not None:
            elapsed = (event - self._begins).total_seconds() / self._speed
            delay = self._started + elapsed - time.perf_counter()
        if delay > 0 or self._passed % _YIELD_EVERY == 0:
            await asyncio.sleep(max(delay, 0.0))


class Confirmed(NamedTuple):
    """A record in the log: where, and when it was handed to the producer (`perf_counter` seconds)."""

    partition: int
    offset: int
    handed_over: float


class Played(Protocol):
    """What is sent at the pace of event time."""

    @property
    def begins(self) -> datetime:
        """Where event time starts to run."""
        ...

    @property
    def open(self) -> Callable[[], Iterator[VitalsRecord | ImagingEvent]]:
        """A fresh iterator over the records, in order."""
        ...


class Sender:
    """Sends records in order through an own producer: acks=all, idempotent where the broker can.

    Args:
        settings: broker.
        on_confirmed: called once for each record that the broker has confirmed.
        record_to: where what is sent is written too, one record a line.
        topic: the vitals topic unless stated.
    """

    def __init__(
        self,
        settings: Settings,
        on_confirmed: Callable[[Confirmed], None] | None = None,
        record_to: IO[bytes] | None = None,
        topic: str | None = None,
    ) -> None:
        self.sent = 0
        self.confirmed = 0
        self._topic = topic or settings.topic_vitals
        self._timeout_s = settings.request_timeout_s
        self._on_confirmed = on_confirmed
        self._record_to = record_to
        self._failure: BaseException | None = None
        self._broker = settings.broker
        self._producer: Any = AIOKafkaProducer(
            **settings.kafka_client(),
            client_id="riskstream-send",
            acks="all",
            enable_idempotence=settings.kafka_idempotence,
            max_request_size=MOST_BYTES if topic == settings.topic_imaging else 1 << 20,
        )

    async def __aenter__(self) -> "Sender":
        try:
            await self._producer.start()
        except (KafkaError, OSError) as error:
            await self._producer.stop()
            raise SendError(
                f"cannot connect to the broker at {self._broker} ({type(error).__name__}): see "
                "RISKSTREAM_BROKER"
            ) from error
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._producer.stop()

    async def send(self, record: VitalsRecord | ImagingEvent) -> None:
        """Hand a record over; waits while the producer's buffer is full.

        Raises:
            SendError: this or an earlier record was refused.
        """
        self._check()
        value, at = _encode(record), time.perf_counter()
        try:
            confirmation = await self._producer.send(
                self._topic,
                value=value,
                key=record.patient.encode(),
                timestamp_ms=round(record.time.timestamp() * 1000),
                headers=list(tracing.sent(self._topic, _HEADERS)),
            )
        except MessageSizeTooLargeError:
            raise SendError(TOO_LARGE) from None
        except UnknownTopicOrPartitionError:
            raise SendError(f"the broker has no topic {self._topic}; create it first") from None
        except KafkaError as error:
            raise SendError(f"a record was not sent: {type(error).__name__}") from error
        confirmation.add_done_callback(lambda done: self._done(done, at))
        self.sent += 1
        if self._record_to is not None:
            self._record_to.write(value + b"\n")

    async def finish(self) -> None:
        """Wait until every record is confirmed.

        Raises:
            SendError: one was refused.
        """
        try:
            await asyncio.wait_for(self._producer.flush(), 2 * self._timeout_s)
        except TimeoutError:
            raise SendError(f"the broker has not confirmed within {2 * self._timeout_s:g} s") from None
        await asyncio.sleep(0)  # confirmations run their callbacks in the loop's next turn
        self._check()
        if self.confirmed != self.sent:
            raise SendError(f"{self.sent - self.confirmed} of {self.sent} records are not confirmed")

    def _done(self, confirmation: "asyncio.Future[Any]", at: float) -> None:
        error = asyncio.CancelledError() if confirmation.cancelled() else confirmation.exception()
        if error is not None:
            self._failure = error
            return
        self.confirmed += 1
        if self._on_confirmed is not None:
            place = confirmation.result()
            self._on_confirmed(Confirmed(place.partition, place.offset, at))

    def _check(self) -> None:
        if isinstance(self._failure, MessageSizeTooLargeError):
            raise SendError(TOO_LARGE)
        if self._failure is not None:
            raise SendError(f"the broker refused a record: {type(self._failure).__name__}")


async def send(
    sender: Sender, recording: Played, speed: float | None = None, seconds: float | None = None
) -> None:
    """Send a recording and wait until all of it is confirmed.

    Args:
        sender: started.
        recording: what to send.
        speed: event seconds per second; None for as fast as possible.
        seconds: after which no further record is sent.

    Raises:
        SendError: a record was refused.
        SourceError: the file changed while it was read.
    """
    pace, started = Pace(recording.begins, speed), time.perf_counter()
    for record in recording.open():
        await pace.until(record.time)
        if seconds is not None and time.perf_counter() - started > seconds:
            break
        await sender.send(record)
    await sender.finish()
