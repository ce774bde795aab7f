"""A log at hand, in the place of Kafka's: topics as lists of records, whose beginnings can be deleted."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from engines.engine import Engine
from tests.worker.records import HOUR, PLACE, TOPICS, LocalPath, Record, observation, record
from worker.history import Span
from worker.policies import Policies

ALERTS = TOPICS[0]


class Shelf:
    """One partition of the vitals topic and of the alert topic."""

    def __init__(self, vitals: Sequence[Record]) -> None:
        self.topics: dict[str, list[Record]] = {PLACE.topic: list(vitals), ALERTS: []}
        self.read_from: list[int] = []

    def put(self, key: bytes | None, value: bytes) -> None:
        """Append to the alert topic."""
        alerts = self.topics[ALERTS]
        alerts.append(Record(len(alerts), 0, key, value))

    def delete_before(self, offset: int) -> None:
        """Delete the beginning of the vitals topic."""
        self.topics[PLACE.topic] = [r for r in self.topics[PLACE.topic] if r.offset >= offset]

    async def span(self, topic: str, partition: int) -> Span:
        records = self.topics[topic] if partition == PLACE.partition else []
        return Span(records[0].offset, records[-1].offset + 1) if records else Span(0, 0)

    async def offset_at(self, topic: str, partition: int, time_ms: int) -> int | None:
        return next((r.offset for r in self.topics[topic] if r.timestamp >= time_ms), None)

    async def read(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[Sequence[Any]]:
        if topic == PLACE.topic and end - start > 1:
            self.read_from.append(start)
        found = [r for r in self.topics[topic] if start <= r.offset < end]
        for at in range(0, len(found), 50):
            yield found[at : at + 50]


def course(
    patient: str,
    first: int,
    start_ms: int,
    grades: Sequence[float],
    *,
    step_h: int = 1,
    aged_once: bool = False,
) -> list[Record]:
    """Records `step_h` apart at offsets from `first`: 0 is well, 1 very ill; the age in each or the first."""
    made = []
    for hour, grade in enumerate(grades):
        statics = [observation("age", 88)] if hour == 0 or not aged_once else []
        made.append(
            record(
                first + hour,
                patient,
                start_ms + hour * step_h * HOUR,
                *statics,
                observation("heart_rate", 75 + 65 * grade),
                observation("respiratory_rate", 14 + 26 * grade),
                observation("oxygen_saturation", 98 - 10 * grade),
                observation("temperature", 37),
                observation("systolic_pressure", 125 - 60 * grade),
                observation("mean_pressure", 85 - 45 * grade),
                observation("gcs", 15 - round(12 * grade)),
                observation("lactate", 1 + 13 * grade),
                observation("arterial_ph", 7.4 - 0.35 * grade),
                observation("urea_nitrogen", 15 + 95 * grade),
                observation("urine_output", 60 * (1 - grade)),
            )
        )
    return made


def mixed(*courses: Sequence[Record]) -> list[Record]:
    """Courses side by side in the order of time, numbered anew."""
    records = sorted((r for each in courses for r in each), key=lambda r: r.timestamp)
    return [r._replace(offset=offset) for offset, r in enumerate(records)]


async def published(
    engine: Engine, vitals: Sequence[Record], policies: Policies | None = None
) -> tuple[Shelf, LocalPath]:
    """What a worker publishes of some records, on a shelf, and the worker's path."""
    path, shelf = LocalPath(engine), Shelf(vitals)
    path.pipeline.policies = policies or path.pipeline.policies
    await path.process(vitals, 64)
    for message in path.outbox.of(ALERTS):
        shelf.put(message.key, message.value)
    return shelf, path
