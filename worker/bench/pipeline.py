"""`riskstream bench pipeline`: CPU time for each event by stage of the path, and bytes for each patient.

The path is `worker/pipeline.py` itself, in one process, with the shipped model; there is no Kafka and no
Redis: messages go nowhere, and checkpoints are encoded but not written. Decoding and normalising are timed
over all records on their own, because within the path they alternate record by record; `state` is the rest
of what the path does before it infers. `news2` is all of NEWS2, its alerts included; `write` is the model's
alerts with their basis, `publish` the counting of fates and the metrics.
"""

import asyncio
import gc
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any, NamedTuple

import msgspec
import numpy as np

from engines import repository
from engines.engine import F32, Engine
from engines.steps import Prediction, SeriesModel, fingerprint
from schemas.model_config import Policy
from schemas.window import WINDOW_BINS
from worker import tracing
from worker.batch import Batcher
from worker.bench import report
from worker.change import Change
from worker.codec import encode_bin, encode_hot
from worker.config import Settings
from worker.decode import Decoded, Event, Record, decode
from worker.drift import watch
from worker.intake import limits_of
from worker.normalise import normalise
from worker.partition import Partition, Place
from worker.pipeline import Pipeline
from worker.plan import Plan
from worker.policies import shipped
from worker.publish import Outgoing
from worker.recording import Recording
from worker.served import Alone, Served

STAGES = (
    "decode",
    "normalise",
    "state",
    "news2",
    "infer",
    "decide",
    "explain",
    "write",
    "publish",
    "checkpoint",
)

CHECKPOINT_EVERY = 1024
"""Records between checkpoints. With more, a checkpoint costs less per event: a patient is written once."""

PACKAGES = ("msgspec", "numpy", "onnxruntime")

PLACE = Place("bench", "vitals", 0)


class BenchRecord(NamedTuple):
    """A record as it would come from Kafka."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


class Clock:
    """CPU seconds of the process by stage."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("path", "apply", *STAGES), 0.0)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count what is inside."""
        started = time.process_time()
        yield
        self.seconds[stage] += time.process_time() - started


class TimedPipeline(Pipeline):
    """The path, each stage on the clock."""

    clock: Clock

    def _decode(self, chunk: Sequence[Record]) -> list[Decoded]:
        with self.clock.timed("decode"):
            return super()._decode(chunk)

    def _apply(
        self, partition: Partition, chunk: Sequence[Record], events: Sequence[Decoded], model: SeriesModel
    ) -> Change:
        with self.clock.timed("apply"):
            return super()._apply(partition, chunk, events, model)

    async def _warn(
        self, partition: Partition, chunk: Sequence[Record], change: Change, served: Served
    ) -> None:
        with self.clock.timed("news2"):
            await super()._warn(partition, chunk, change, served)

    async def _infer(self, plan: Plan, served: Served) -> Prediction:
        with self.clock.timed("infer"):
            return await super()._infer(plan, served)

    def _decide(self, chunk: Sequence[Record], change: Change, risks: F32, base: Policy) -> None:
        with self.clock.timed("decide"):
            super()._decide(chunk, change, risks, base)

    async def _explain(self, change: Change, risks: F32, served: Served) -> dict[int, F32]:
        with self.clock.timed("explain"):
            return await super()._explain(change, risks, served)

    def _write(
        self,
        partition: Partition,
        chunk: Sequence[Record],
        change: Change,
        served: Served,
        prediction: Prediction,
        contributions: Mapping[int, F32],
    ) -> list[Outgoing]:
        with self.clock.timed("write"):
            return super()._write(partition, chunk, change, served, prediction, contributions)


def run(
    source: str,
    recording: Recording,
    events: int | None,
    rounds: int,
    settings: Settings,
    *,
    on_progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure, and give the report.

    Args:
        source: names the recording in the report.
        recording: what to run through the path.
        events: at most so many records of it.
        rounds: the figures are medians over them, after one that warms up.
        settings: model, limits and chunk size; traces, with which every record comes with one of its own.
        on_progress: told what goes on, in a few words.
    """
    engine = repository.load(
        settings.model_repository,
        settings.model,
        settings.backend,
        settings.plans,
        precision=settings.precision,
    )
    on_progress("reading the recording")
    records = list(records_of(recording, events))
    if settings.traces != "off":
        records = [record._replace(headers=_traced(record.offset)) for record in records]
    tracing.start(settings)
    clocks = []
    for number in range(rounds + 1):
        on_progress(f"round {number} of {rounds}" if number else "warming up")
        clock = Clock()
        asyncio.run(_path(records, engine, settings, clock))
        _normalise(records, settings, clock)
        clocks.append(clock)
    tracing.stop()
    on_progress("weighing patients")
    partition, memory = _weighed(records, engine, settings)
    engine.close()
    return {
        "benchmark": "pipeline",
        **report.circumstances(PACKAGES),
        "source": source,
        "model": {"name": engine.config.name, "version": engine.config.version, "backend": engine.backend},
        "records": len(records),
        "patients": len(partition.patients),
        "chunk_records": settings.chunk_records,
        "checkpoint_every": CHECKPOINT_EVERY,
        "rounds": rounds,
        "traces": settings.traces,
        "cpu_us_per_event": summary([clock.seconds for clock in clocks[1:]], len(records)),
        "bytes_per_patient": {"memory": round(memory), **_stored(partition, fingerprint(engine.config))},
    }


def summary(rounds: Sequence[dict[str, float]], records: int) -> dict[str, float]:
    """Microseconds for each event and stage, medians over rounds; `total` is the sum of the stages.

    Args:
        rounds: CPU seconds by stage, where `path` is all but the checkpoint, `apply` is normalise and state
            together.
        records: in a round.
    """
    taken = {stage: median(seconds[stage] for seconds in rounds) for stage in rounds[0]}
    timed = ("decode", "apply", "news2", "infer", "decide", "explain", "write")
    taken["publish"] = max(taken["path"] - sum(taken[stage] for stage in timed), 0.0)
    taken["state"] = max(taken["apply"] - taken["normalise"], 0.0)
    figures = {stage: 1e6 * taken[stage] / records for stage in STAGES}
    return {stage: round(us, 3) for stage, us in {**figures, "total": sum(figures.values())}.items()}


def records_of(recording: Recording, events: int | None) -> Iterator[BenchRecord]:
    """A recording's records as they would come from Kafka, at most `events` of them."""
    encode = msgspec.json.Encoder().encode
    for offset, record in enumerate(recording.open()):
        if offset == events:
            return
        timestamp = round(record.time.timestamp() * 1000)
        yield BenchRecord(offset, timestamp, record.patient.encode(), encode(record), ())


def _traced(offset: int) -> tuple[tuple[str, bytes], ...]:
    """Headers of a record that comes with a trace of its own, sampled."""
    return ((tracing.HEADER, f"00-{offset + 1:032x}-{offset + 1:016x}-01".encode()),)


async def _path(records: Sequence[Record], engine: Engine, settings: Settings, clock: Clock) -> Partition:
    batcher = Batcher(engine, lambda: None, settings.infer_timeout_s, settings.engine_patience_s)
    policies = shipped(settings, engine.config)
    counts = watch(settings.model_repository, engine.config)
    served = Served(engine.config, engine.backend, batcher.infer, counts)

    async def nowhere(messages: Sequence[Outgoing]) -> None:
        return

    pipeline = TimedPipeline(
        Alone(served),
        policies,
        nowhere,
        settings.output_topics,
        limits_of(settings),
        publish_scores=settings.publish_scores,
    )
    pipeline.clock = clock
    partition, due = Partition(PLACE, 0, 0), CHECKPOINT_EVERY
    for at in range(0, len(records), settings.chunk_records):
        with clock.timed("path"):
            await pipeline.process(partition, records[at : at + settings.chunk_records])
        if partition.position >= due or partition.position == len(records):
            due += CHECKPOINT_EVERY
            with clock.timed("checkpoint"):
                _encode_changes(partition, fingerprint(engine.config))
    await batcher.close()
    return partition


def _encode_changes(partition: Partition, model: str) -> None:
    """What a checkpoint encodes: each changed patient's hot part and its changed bins."""
    for key in partition.dirty:
        patient = partition.patients[key]
        patient.applied = partition.position
        encode_hot(patient, model)
        for hour in patient.dirty_bins:
            if patient.open - WINDOW_BINS < hour:
                encode_bin(patient, hour)
        patient.dirty_bins.clear()
    partition.dirty.clear()


def _normalise(records: Sequence[Record], settings: Settings, clock: Clock) -> None:
    """Time the stage over all records, chunk by chunk."""
    limits = limits_of(settings)
    for at in range(0, len(records), settings.chunk_records):
        chunk = records[at : at + settings.chunk_records]
        decoded = [decode(record, limits.record_bytes) for record in chunk]
        with clock.timed("normalise"):
            for record, event in zip(chunk, decoded, strict=True):
                if isinstance(event, Event):
                    normalise(event, record.timestamp, limits.past_ms, limits.future_ms)


def _weighed(records: Sequence[Record], engine: Engine, settings: Settings) -> tuple[Partition, float]:
    """The partition after all records, and the bytes of memory that each of its patients takes."""
    tracemalloc.start()
    try:
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        partition = asyncio.run(_path(records, engine, settings, Clock()))
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return partition, (after - before) / max(len(partition.patients), 1)


def _stored(partition: Partition, model: str) -> dict[str, dict[str, float]]:
    """Bytes of the values in Redis, keys and overhead not counted."""
    patients = partition.patients.values()
    return {
        "redis_hot": _spread([len(encode_hot(patient, model)) for patient in patients]),
        "redis_bins": _spread(
            [sum(len(encode_bin(patient, hour)) for hour in patient.filled_bins()) for patient in patients]
        ),
        "redis_one_bin": _spread(
            [len(encode_bin(patient, hour)) for patient in patients for hour in patient.filled_bins()]
        ),
    }


def _spread(sizes: list[int]) -> dict[str, float]:
    values = np.array(sizes or [0])
    return {
        "median": round(float(np.median(values))),
        "p99": round(float(np.percentile(values, 99))),
        "max": int(values.max()),
    }
