"""Records, streams and a running path for the tests: real parts, an outbox where Kafka would be."""

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from engines import repository
from engines.engine import F32, Engine
from schemas import news2_policy
from schemas.features import FEATURES
from schemas.messages import Alert, DeadLetter, Score
from worker.change import Change
from worker.intake import Limits
from worker.messages import Author, moment
from worker.partition import Partition, Place
from worker.pipeline import Pipeline
from worker.policies import Policies
from worker.publish import Outgoing
from worker.served import Alone, Served

T0 = 1_767_225_600_000
"""2026-01-01T00:00:00Z, ms since the epoch."""

MINUTE, HOUR = 60_000, 3_600_000

PLACE = Place("cluster", "vitals", 3)
TOPICS = ("risk-alerts", "risk-scores", "dead-letters")
NEWS2 = news2_policy.load()
PNEUMONIA = repository.read_config(repository.SHIPPED, "pneumonia")
IMAGING = (PNEUMONIA.name, PNEUMONIA.policy)
LIMITS = Limits(1 << 20, 366 * 24 * HOUR, HOUR)


class Record(NamedTuple):
    """A Kafka record."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


def rfc3339(time_ms: int) -> str:
    """A time in UTC as it stands in messages."""
    return moment(time_ms).isoformat()


def observation(feature: str, value: float, **more: Any) -> dict[str, Any]:
    """One observation of a feature, in its canonical unit unless `unit` is given."""
    found = next(f for f in FEATURES if f.name == feature)
    if isinstance(more.get("time"), int):
        more["time"] = rfc3339(more["time"])
    return {"code": found.loinc[0], "value": value, "unit": found.unit, **more}


def message(patient: str, event_id: str, time_ms: int, *observations: Mapping[str, Any]) -> bytes:
    """A native vitals record's value."""
    return json.dumps(
        {
            "event_id": event_id,
            "patient": patient,
            "time": rfc3339(time_ms),
            "observations": list(observations),
        }
    ).encode()


def record(
    offset: int, patient: str, time_ms: int, *observations: Mapping[str, Any], event_id: str | None = None
) -> Record:
    """A good record, stamped with its event time."""
    value = message(patient, event_id or f"e{offset}", time_ms, *observations)
    return Record(offset, time_ms, patient.encode(), value)


def worsening(patient: str, first_offset: int, hours: int, start_ms: int = T0) -> list[Record]:
    """One record an hour of a patient who declines, then goes on as ill as at the end."""
    made = []
    for hour in range(hours):
        grade = min(hour / 6, 1.0)
        made.append(
            record(
                first_offset + hour,
                patient,
                start_ms + hour * HOUR,
                observation("age", 88),
                observation("heart_rate", 85 + 55 * grade),
                observation("respiratory_rate", 16 + 24 * grade),
                observation("systolic_pressure", 120 - 55 * grade),
                observation("mean_pressure", 80 - 40 * grade),
                observation("gcs", 15 - round(12 * grade)),
                observation("lactate", 1 + 13 * grade),
                observation("arterial_ph", 7.4 - 0.35 * grade),
                observation("urea_nitrogen", 20 + 90 * grade),
                observation("urine_output", 60 * (1 - grade)),
            )
        )
    return made


class Outbox:
    """Keeps what is published, in order."""

    def __init__(self) -> None:
        self.messages: list[Outgoing] = []

    async def __call__(self, messages: Sequence[Outgoing]) -> None:
        self.messages += messages

    def of(self, topic: str) -> list[Outgoing]:
        return [message for message in self.messages if message.topic == topic]

    @property
    def alerts(self) -> list[Alert]:
        """The model's."""
        return [alert for alert in self._alerts() if alert.model.name not in {"news2", PNEUMONIA.name}]

    @property
    def warnings(self) -> list[Alert]:
        """NEWS2's own."""
        return [alert for alert in self._alerts() if alert.model.name == "news2"]

    @property
    def imaged(self) -> list[Alert]:
        """The imaging model's."""
        return [alert for alert in self._alerts() if alert.model.name == PNEUMONIA.name]

    @property
    def scores(self) -> list[Score]:
        return [msgspec.json.decode(m.value, type=Score) for m in self.of("risk-scores")]

    def by_voice(self) -> dict[str, list[Outgoing]]:
        """Alerts by the name of their model: between them the order is free."""
        found: dict[str, list[Outgoing]] = {}
        for message in self.of("risk-alerts"):
            name = msgspec.json.decode(message.value, type=Alert).model.name
            found.setdefault(name, []).append(message)
        return found

    def _alerts(self) -> list[Alert]:
        return [msgspec.json.decode(m.value, type=Alert) for m in self.of("risk-alerts")]

    @property
    def dead_letters(self) -> list[DeadLetter]:
        return [msgspec.json.decode(m.value, type=DeadLetter) for m in self.of("dead-letters")]


class LocalPath:
    """A pipeline over an engine in this thread, one partition, and what it published."""

    def __init__(
        self, engine: Engine, place: Place = PLACE, *, publish_scores: bool = True, shadow: int | None = None
    ) -> None:
        self.engine = engine
        self.outbox = Outbox()
        self.served = Served(engine.config, engine.backend, self.run)
        self.model = self.served.model
        self.voices = self.served.voices
        self.author = Author(place, self.voices, TOPICS)
        self.pipeline = Pipeline(
            Alone(self.served),
            Policies(engine.config.name, engine.config.policy, NEWS2, imaging=IMAGING),
            self.outbox,
            TOPICS,
            LIMITS,
            publish_scores=publish_scores,
            shadow=shadow,
        )
        self.partition = Partition(place, 0, 0)

    async def run(self, inputs: Mapping[str, F32]) -> dict[str, F32]:
        """The engine, in this thread, for any number of rows."""
        rows, most = len(next(iter(inputs.values()))), self.engine.config.dynamic_batching.max_batch_size
        parts = [
            self.engine.run({name: array[at : at + most] for name, array in inputs.items()})
            for at in range(0, rows, most)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    async def process(self, records: Iterable[Record], chunk: int = 512) -> list[str]:
        """Process records in chunks; their fates."""
        fates: list[str] = []
        records = list(records)
        for at in range(0, len(records), chunk):
            change: Change = await self.pipeline.process(self.partition, records[at : at + chunk])
            fates += change.fates
        return fates

    def process_now(self, records: Iterable[Record], chunk: int = 512) -> list[str]:
        """`process`, where no loop runs."""
        return asyncio.run(self.process(records, chunk))
