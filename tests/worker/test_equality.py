"""What is published depends on the log alone, and what is served is what was trained.

Over 200 recorded stays where the data are at hand (`RISKSTREAM_TEST_DATA`), else over simulated ones.
"""

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

import msgspec
import numpy as np
import pytest

from engines import repository, steps
from engines.engine import Engine
from schemas import news2_policy
from schemas.messages import VitalsRecord
from schemas.window import HOUR_MS, WINDOW_BINS, Rows, rows
from tests import killing
from worker.batch import Batcher
from worker.decode import Event, decode
from worker.intake import Limits
from worker.normalise import normalise
from worker.partition import Partition, Place
from worker.pipeline import Pipeline
from worker.policies import Policies
from worker.publish import Outgoing
from worker.served import Alone, Served

STAYS = 200
YEAR_MS = 366 * 24 * HOUR_MS
LIMITS = Limits(1 << 20, YEAR_MS, HOUR_MS)
NEWS2 = news2_policy.load()


class Record(NamedTuple):
    """A record at a place of the log."""

    offset: int
    timestamp: int
    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass
class Run:
    """One pass of records through the real path, with the publishes collected."""

    partition: Partition
    published: list[Outgoing]

    @property
    def alerts(self) -> dict[str, bytes]:
        """id -> bytes of the alert and its key."""
        found = {}
        for message in self.published:
            if message.topic == "alerts":
                identifier = dict(message.headers)["ce_id"].decode()
                assert identifier not in found
                found[identifier] = (message.key or b"") + message.value
        return found


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    loaded = repository.load(repository.SHIPPED, "vitals")
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def log() -> list[list[Record]]:
    """Each stay's records, at fixed places of one log."""
    made: list[list[Record]] = []
    offset = 0
    for stay in killing.stays(STAYS)[1]:
        made.append([_record(record, offset + i) for i, record in enumerate(stay)])
        offset += len(stay)
    return made


def _record(record: VitalsRecord, offset: int) -> Record:
    timestamp = round(record.time.timestamp() * 1000)
    return Record(offset, timestamp, record.patient.encode(), msgspec.json.encode(record))


def run(engine: Engine, chunks: Sequence[Sequence[Record]]) -> Run:
    async def process() -> Run:
        batcher = Batcher(engine, lambda: None, 60.0, 30.0)
        published: list[Outgoing] = []

        async def publish(messages: Sequence[Outgoing]) -> None:
            published.extend(messages)

        policies = Policies(engine.config.name, engine.config.policy, NEWS2)
        serving = Alone(Served(engine.config, engine.backend, batcher.infer))
        topics = ("alerts", "scores", "dead")
        pipeline = Pipeline(serving, policies, publish, topics, LIMITS, publish_scores=True)
        partition = Partition(Place("cluster", "vitals", 0), 0, 0)
        for chunk in chunks:
            await pipeline.process(partition, chunk)
        await batcher.close()
        return Run(partition, published)

    return asyncio.run(process())


@pytest.fixture(scope="module")
def whole_stays(engine: Engine, log: list[list[Record]]) -> Run:
    """One stay after the other, in large chunks: what the other orders are compared with."""
    return run(engine, chunked([record for stay in log for record in stay], 512))


def chunked(records: Sequence[Record], size: int) -> list[Sequence[Record]]:
    return [records[at : at + size] for at in range(0, len(records), size)]


def interleaved(log: list[list[Record]], rng: random.Random) -> list[Record]:
    """Every stay in its own order, the stays mixed at random."""
    turns = [i for i, stay in enumerate(log) for _ in stay]
    rng.shuffle(turns)
    following = [iter(stay) for stay in log]
    return [next(following[turn]) for turn in turns]


def final_risks(run: Run) -> dict[str, float]:
    latches = {key: patient.latches["risk"].trace for key, patient in run.partition.patients.items()}
    return {key: trace.risk for key, trace in latches.items() if trace is not None}


def test_interleaving_and_chunk_sizes_change_no_byte(
    engine: Engine, log: list[list[Record]], whole_stays: Run
) -> None:
    assert len(whole_stays.alerts) > 20
    rng = random.Random(1)
    by_time = sorted((record for stay in log for record in stay), key=lambda record: record.timestamp)
    for records, size in ((by_time, 97), (interleaved(log, rng), 1000), (interleaved(log, rng), 7)):
        assert run(engine, chunked(records, size)).alerts == whole_stays.alerts


def test_one_record_at_a_time_changes_no_byte(engine: Engine, log: list[list[Record]]) -> None:
    some = log[:20]
    together = run(engine, chunked([record for stay in some for record in stay], 4096))
    alone = run(engine, chunked(interleaved(some, random.Random(2)), 1))
    assert alone.alerts == together.alerts
    assert sorted(m.value for m in alone.published) == sorted(m.value for m in together.published)


def test_a_patients_own_records_shuffled_give_the_same_final_risk(
    engine: Engine, log: list[list[Record]], whole_stays: Run
) -> None:
    rng = random.Random(3)
    shuffled = [rng.sample(stay, len(stay)) for stay in log]
    # Patients mixed: each late record has hours computed again, which a batch of many patients shares.
    mixed = run(engine, chunked(interleaved(shuffled, rng), 512))
    expected, got = final_risks(whole_stays), final_risks(mixed)
    newest_scored = {
        key for key, patient in mixed.partition.patients.items()
        if patient.latches["risk"].trace is not None and key in expected
    }  # fmt: skip
    assert len(newest_scored) > 0.95 * len(log)
    assert max(abs(expected[key] - got[key]) for key in newest_scored) <= 1e-5


def test_streaming_equals_the_training_path(
    engine: Engine, log: list[list[Record]], whole_stays: Run
) -> None:
    risks = final_risks(whole_stays)
    windows = {key: trained_window(stay) for key, stay in by_patient(log).items() if key in risks}
    longest = max(len(window.values) for window in windows.values())
    assert longest == WINDOW_BINS
    for key, window in windows.items():
        stacked = Rows(*(array[None] for array in window))
        offline = steps.run_steps(engine, stacked)[0, -1]
        assert abs(float(offline) - risks[key]) <= 1e-5


def test_a_stay_longer_than_the_window_equals_encoding_it_anew(
    engine: Engine, log: list[list[Record]]
) -> None:
    """Three stays one after the other make one patient of six days, scored at every record."""
    long = [
        _record(
            msgspec.structs.replace(
                msgspec.json.decode(record.value, type=VitalsRecord),
                patient="long",
                time=msgspec.json.decode(record.value, type=VitalsRecord).time + timedelta(days=2 * part),
            ),
            1000 * part + i,
        )
        for part in range(3)
        for i, record in enumerate(sorted(log[0], key=lambda record: record.timestamp))
    ]
    upto = [len(long) // 2, len(long) - 30, len(long)]
    for end in upto:
        risks = final_risks(run(engine, chunked(long[:end], 50)))
        window = trained_window(long[:end])
        anew = steps.run_steps(engine, Rows(*(array[None] for array in window)))[0, -1]
        assert len(window.values) == WINDOW_BINS
        assert abs(float(anew) - risks["long"]) <= 1e-5


def by_patient(log: list[list[Record]]) -> dict[str, list[Record]]:
    return {stay[0].key.decode(): stay for stay in log}


def trained_window(records: Sequence[Record]) -> Rows:
    """The last 48 bins as training makes them: from the accepted values in order of time, no state kept."""
    values = []
    for record in records:
        event = decode(record, LIMITS.record_bytes)
        assert isinstance(event, Event)
        accepted, _ = normalise(event, record.timestamp, LIMITS.past_ms, LIMITS.future_ms)
        values += [(m.time_ms, event.event_id, i, m.channel, m.value) for i, m in enumerate(accepted)]
    values.sort()
    from schemas.features import IS_STATIC, STATIC

    newest = max(time for time, _, _, channel, _ in values if not IS_STATIC[channel]) // HOUR_MS
    first = newest - WINDOW_BINS + 1
    bins = np.zeros((2, WINDOW_BINS, len(IS_STATIC)), dtype=np.float32)
    statics = np.full(len(STATIC), np.nan, dtype=np.float32)
    for time, _, _, channel, value in values:
        if IS_STATIC[channel]:
            statics[STATIC.index(channel)] = value
        elif time // HOUR_MS >= first:
            bins[0, time // HOUR_MS - first, channel] = value
            bins[1, time // HOUR_MS - first, channel] += 1
    begin = int(np.flatnonzero(bins[1].any(axis=1))[0])
    return rows(bins[0, begin:], bins[1, begin:], statics)
