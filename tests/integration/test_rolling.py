"""Three workers are replaced one after the other under load, on real Apache Kafka and redis-server.

As Kubernetes does it with `maxSurge: 1, maxUnavailable: 0`: a new worker is started and ready, then an old
one gets SIGTERM. Vitals arrive as from a live feed, and the broker stamps every record when it appends it, so
that the delay of an alert is what a reader of the alert topic sees.
"""

import asyncio
import math
import time
import uuid
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from schemas.messages import Alert, Score
from tests import killing
from tests.integration.servers import KafkaServer, RedisServer
from tests.killing import PARTITIONS, Site, WorkerProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")

STAYS = 140
WORKERS = 3
LATE_S = 2.0
"""No alert may reach its topic later than this after its record reached the input topic."""

WARM_S = 8.0
"""Load before the first replacement, and between two; a rollout waits longer (`minReadySeconds`)."""

RATE = 60.0
"""Records a second."""

LIVE = 5000
"""Records kept for the load; those before have made the patients known, so that partitions have a weight."""

REBALANCE_S = 30.0

DEFAULTS = {
    "RISKSTREAM_SESSION_TIMEOUT_S": "10",
    "RISKSTREAM_REBALANCE_TIMEOUT_S": str(REBALANCE_S),
    "RISKSTREAM_PUBLISH_TIMEOUT_S": "30",
    "RISKSTREAM_CHECKPOINT_INTERVAL_S": "1",
}
"""What a worker runs with unless somebody says otherwise; the kill tests shorten it."""


class Stop(NamedTuple):
    """One worker's end: exit status, and seconds from SIGTERM to it."""

    status: int
    seconds: float


class Delays(NamedTuple):
    """Seconds from the append of an input record to the append of what rests on it."""

    alerts: list[float]
    scores: list[float]


async def test_rolling_restart_delays_no_alert(kafka: KafkaServer, redis_server: RedisServer) -> None:
    address = redis_server.url.removeprefix("redis://").removesuffix("/0")
    site = Site(kafka.bootstrap, address, True, f"rolling-{uuid.uuid4().hex[:6]}", "disturbed")
    await create_topics(site)
    records = overlapping(STAYS)
    known = await produce(site, records[:-LIVE], math.inf, asyncio.Event())
    with ExitStack() as running:
        workers = [running.enter_context(WorkerProcess(site, **DEFAULTS)) for _ in range(WORKERS)]
        await killing.committed_to_the_end(site, known, seconds=150.0)
        enough = asyncio.Event()
        load = asyncio.create_task(produce(site, records[-LIVE:], RATE, enough))
        stops = []
        for old in list(workers):
            await asyncio.sleep(WARM_S)
            new = running.enter_context(WorkerProcess(site, **DEFAULTS))
            workers.append(new)
            await new.ready()
            stops.append(await stop(old))
        await asyncio.sleep(WARM_S)
        enough.set()
        ends = await load
        await killing.committed_to_the_end(site, ends)
        stops += [await stop(worker) for worker in workers[WORKERS:]]
        lines = [line for worker in workers for line in worker.log_lines()]
    disturbed = await killing.outcome(site)
    reference = await killing.undisturbed(site, ends)
    delays = await measure(site, known)
    print(f"{len(delays.scores)} records, {len(delays.alerts)} alerts; worst delay of an alert "
          f"{max(delays.alerts):.2f} s, of a score {max(delays.scores):.2f} s; "
          f"stops took {[round(s.seconds, 2) for s in stops]} s")  # fmt: skip

    assert [s.status for s in stops] == [0] * len(stops)
    assert max(s.seconds for s in stops) < REBALANCE_S / 2
    assert killing.repeated(disturbed) == 0
    differences = killing.differences(disturbed, reference)
    assert not differences, "\n".join(differences)
    assert len(delays.alerts) >= 50
    assert max(delays.alerts) <= LATE_S
    assert max(delays.scores) <= LATE_S
    events = {line["event"] for line in lines}
    assert "partition kept" in events
    assert "partition held without a checkpoint" not in events
    # Libraries name their logger; aiokafka calls it an error that a fresh broker has no coordinator yet.
    assert not [line for line in lines if line["level"] == "error" and "logger" not in line]


def overlapping(count: int) -> list[tuple[bytes, bytes]]:
    """Keys and values of the records of stays that overlap, in order of time; the last event is of now."""
    _, found = killing.stays(count)
    ends = max(record.time for records in found for record in records)
    shift = datetime.now(UTC) - ends
    moved = [
        msgspec.structs.replace(record, time=record.time + shift - timedelta(hours=24 * number / len(found)))
        for number, records in enumerate(found)
        for record in records
    ]
    moved.sort(key=lambda record: record.time)
    return [(record.patient.encode(), msgspec.json.encode(record)) for record in moved]


async def produce(
    site: Site, records: list[tuple[bytes, bytes]], rate: float, enough: asyncio.Event
) -> dict[int, int]:
    """Send at a rate, records a second, until told that it is enough; the end of each partition's log."""
    waiting = []
    async with AIOKafkaProducer(bootstrap_servers=site.broker, acks="all") as producer:
        started = time.perf_counter()
        for i, (key, value) in enumerate(records):
            if enough.is_set():
                break
            waiting.append(await producer.send(f"{site.run}-vitals", value, key))
            await asyncio.sleep(max(0.0, started + i / rate - time.perf_counter()))
        places = await asyncio.gather(*waiting)
    assert len(places) < len(records) or rate == math.inf, (
        "the load ended before the last worker was replaced"
    )
    return {place.partition: place.offset + 1 for place in places}


async def stop(worker: WorkerProcess) -> Stop:
    """SIGTERM, and wait."""
    began = time.perf_counter()
    status = await worker.stop()
    return Stop(status, time.perf_counter() - began)


async def create_topics(site: Site) -> None:
    """The topics of a run, whose records bear the time at which the broker appended them."""
    admin = AIOKafkaAdminClient(bootstrap_servers=site.broker)
    await admin.start()
    configs = {"message.timestamp.type": "LogAppendTime"}
    try:
        kinds = [
            f"{group}-{kind}" for group in (site.group, "reference") for kind in ("alerts", "scores", "dead")
        ]
        await admin.create_topics(
            [
                NewTopic(f"{site.run}-{kind}", PARTITIONS, 1, topic_configs=configs)
                for kind in ("vitals", *kinds)
            ]
        )
    finally:
        await admin.close()


async def measure(site: Site, known: dict[int, int]) -> Delays:
    """What the broker's timestamps say of the records from some offsets on."""
    appended = {
        (record.partition, record.offset): record.timestamp
        for record in await read(site.broker, f"{site.run}-vitals")
        if record.offset >= known.get(record.partition, 0)
    }

    async def seconds(kind: str, of: type[Alert] | type[Score]) -> list[float]:
        found = []
        for record in await read(site.broker, f"{site.run}-{site.group}-{kind}"):
            message = msgspec.json.decode(record.value, type=of)
            began = appended.get((message.source.partition, message.source.offset))
            # An expiry rests on no record: its source is the last one scored before.
            if began is not None and getattr(message, "transition", "") != "expired":
                found.append((record.timestamp - began) / 1000)
        return found

    return Delays(await seconds("alerts", Alert), await seconds("scores", Score))


async def read(broker: str, topic: str) -> list[ConsumerRecord]:
    """Every record of a topic."""
    found: list[ConsumerRecord] = []
    async with AIOKafkaConsumer(bootstrap_servers=broker, auto_offset_reset="earliest") as consumer:
        tps = [TopicPartition(topic, p) for p in range(PARTITIONS)]
        consumer.assign(tps)
        ends = await consumer.end_offsets(tps)
        while any([await consumer.position(tp) < ends[tp] for tp in tps]):
            for records in (await consumer.getmany(timeout_ms=500)).values():
                found += records
    return found
