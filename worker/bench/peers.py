"""One consumer of the transport benchmark, in its own process: `python -m worker.bench.peers PEER ...`.

Every peer reads the same topic and gives each record's value to the same decoder, but for `faust_records`,
which decodes as a Faust program usually does. It prints the CPU time of its process for each event, from
the end of a warm-up to the last event.
"""

import asyncio
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, NamedTuple

import faust
import msgspec
from aiokafka import AIOKafkaConsumer
from faust.types import TP

from schemas.messages import VitalsRecord
from worker.config import Settings
from worker.transport import Chunk, chunk_app, vitals_subscription

WARM_UP = 0.1
"""Share of the events that is read before the clock starts: first fetches, caches, first calls."""

SESSION_S = 6.0
"""Session and rebalance timeout of all peers; Faust's defaults make a new group wait for half a minute."""

STOP_S = 10.0

_decode = msgspec.json.Decoder(VitalsRecord).decode


class Input(NamedTuple):
    """Where the events are, and how many of them to read."""

    broker: str
    topic: str
    group: str
    events: int


class Meter:
    """CPU and wall time for each event after the warm-up, at the granularity in which events are added."""

    def __init__(self, events: int) -> None:
        self.done = asyncio.Event()
        self._events = events
        self._warm_up = int(events * WARM_UP)
        self._seen = 0
        self._first = 0
        self._started: tuple[float, float] | None = None
        self._ended = (0.0, 0.0)

    def add(self, events: int) -> None:
        """Count decoded events."""
        self._seen += events
        if self._started is None and self._seen > self._warm_up:
            self._first, self._started = self._seen, _clocks()
        if self._seen >= self._events and not self.done.is_set():
            self._ended = _clocks()
            self.done.set()

    def figures(self) -> dict[str, float]:
        """Microseconds for each event measured."""
        assert self._started is not None
        measured = self._seen - self._first
        cpu, wall = (
            1e6 * (end - start) / measured for start, end in zip(self._started, self._ended, strict=True)
        )
        return {"cpu_us": cpu, "wall_us": wall, "events": measured}


class _Everything:
    """An intake that decodes a chunk at once, so that every partition always has room."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._owned: set[TP] = set()

    def wanting(self) -> set[TP]:
        return self._owned

    def full(self) -> bool:
        return False

    def put(self, tp: TP, chunk: Chunk) -> None:
        for record in chunk.records:
            _decode(record.value)
        self._meter.add(len(chunk.records))

    def assign(self, partitions: set[TP]) -> None:
        self._owned = partitions

    async def revoke(self, partitions: set[TP], seconds: float) -> None:
        self._owned -= partitions


async def riskstream(source: Input, meter: Meter) -> None:
    """The worker's own transport: the Faust app of `worker/transport.py`, chunks of raw records."""
    settings = Settings(
        broker=source.broker,
        group=source.group,
        topic_vitals=source.topic,
        session_timeout_s=SESSION_S,
        rebalance_timeout_s=SESSION_S,
    )
    with tempfile.TemporaryDirectory(prefix="riskstream-") as folder:
        await _run(chunk_app(settings, _Everything(meter), folder, vitals_subscription(settings)), meter)


async def aiokafka(source: Input, meter: Meter) -> None:
    """aiokafka's `getmany`, without Faust."""
    consumer = AIOKafkaConsumer(
        source.topic,
        bootstrap_servers=source.broker,
        group_id=source.group,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        session_timeout_ms=int(SESSION_S * 1000),
        rebalance_timeout_ms=int(SESSION_S * 1000),
    )
    await consumer.start()
    while not meter.done.is_set():
        for records in (await consumer.getmany(timeout_ms=1000)).values():
            for record in records:
                _decode(record.value)
            meter.add(len(records))
    await consumer.stop()


class ObservationRecord(faust.Record, serializer="json"):  # type: ignore[misc, call-arg]
    """An observation, as a Faust program declares it."""

    code: str
    value: float
    unit: str


class VitalsEventRecord(faust.Record, serializer="json"):  # type: ignore[misc, call-arg]
    """A vitals record, as a Faust program declares it."""

    event_id: str
    patient: str
    time: str
    observations: list[ObservationRecord]


async def faust_records(source: Input, meter: Meter) -> None:
    """An agent on JSON records, one event at a time, Faust's defaults otherwise."""
    app = _plain_app(source)
    topic = app.topic(source.topic, value_type=VitalsEventRecord)

    async def agent(stream: Any) -> None:
        async for _ in stream:
            meter.add(1)

    app.agent(topic)(agent)
    await _run(app, meter)


async def faust_take(source: Input, meter: Meter) -> None:
    """An agent on raw bytes that takes up to 256 events at a time."""
    app = _plain_app(source)
    topic = app.topic(source.topic, value_type=bytes, value_serializer="raw")

    async def agent(stream: Any) -> None:
        async for values in stream.take(256, within=0.2):
            for value in values:
                _decode(value)
            meter.add(len(values))

    app.agent(topic)(agent)
    await _run(app, meter)


async def confluent_kafka(source: Input, meter: Meter) -> None:
    """librdkafka through its Python client: `consume` of up to 1,000 messages."""
    from confluent_kafka import Consumer

    consumer = Consumer(
        {
            "bootstrap.servers": source.broker,
            "group.id": source.group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "session.timeout.ms": int(SESSION_S * 1000),
        }
    )
    consumer.subscribe([source.topic])
    while not meter.done.is_set():
        messages = consumer.consume(min(1000, source.events // 10), timeout=1.0)
        for message in messages:
            _decode(message.value() or b"")
        meter.add(len(messages))
    consumer.close()


def _plain_app(source: Input) -> Any:
    return faust.App(
        source.group,
        broker=f"kafka://{source.broker}",
        datadir=tempfile.mkdtemp(prefix="riskstream-bench-"),
        autodiscover=False,
        web_enabled=False,
        topic_disable_leader=True,
        broker_session_timeout=SESSION_S,
        broker_rebalance_timeout=SESSION_S,
    )


async def _run(app: Any, meter: Meter) -> None:
    app.finalize()
    await app.start()
    await meter.done.wait()
    with suppress(TimeoutError):
        await asyncio.wait_for(app.stop(), STOP_S)


def _clocks() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


Peer = Callable[[Input, Meter], Coroutine[Any, Any, None]]

PEERS: dict[str, Peer] = {
    peer.__name__: peer for peer in (riskstream, aiokafka, faust_records, faust_take, confluent_kafka)
}


def main() -> None:
    """Run one peer and print its figures."""
    name, broker, topic, group, events = sys.argv[1:]
    logging.disable(logging.ERROR)
    meter = Meter(int(events))
    asyncio.run(PEERS[name](Input(broker, topic, group, int(events)), meter))
    sys.stdout.write(json.dumps(meter.figures()) + "\n")


if __name__ == "__main__":
    main()
