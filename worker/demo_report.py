"""What a demo counts, whether it adds up, and the report it writes.

Fates come from the workers' own counters. They are held against what was seen from outside: the length of
the vitals log, one score for each record said to be scored, one dead letter for each said to be refused.
"""

import time
from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

import msgspec
import numpy as np
from msgspec import Struct, field
from prometheus_client.parser import text_string_to_metric_families

from schemas.messages import Alert, DeadLetter, Finding, Score, Transition
from worker.send import Confirmed

Fate = Literal["scored", "stored", "duplicate", "dead_lettered"]
FATES: tuple[Fate, ...] = get_args(Fate)

REFUSED_LATE = "inference-failed"
"""The one rejection that takes a whole record whose observations were accepted."""

Coordinates = tuple[int, int]
"""Partition and offset of a record on the vitals topic."""


class Counters(NamedTuple):
    """What workers count, since they started: records by fate, and CPU seconds of their processes."""

    fates: Mapping[Fate, int]
    cpu_s: float

    @property
    def total(self) -> int:
        """Records with a fate."""
        return sum(self.fates.values())


def read_counters(pages: list[str], topic: str) -> Counters:
    """The sum over workers of their /metrics pages."""
    fates: dict[Fate, int] = dict.fromkeys(FATES, 0)
    cpu_s = 0.0
    for page in pages:
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                if sample.name == "riskstream_records_total" and sample.labels["topic"] == topic:
                    for fate in FATES:
                        fates[fate] += int(sample.value) if sample.labels["fate"] == fate else 0
                elif sample.name == "process_cpu_seconds_total":
                    cpu_s += sample.value
    return Counters(fates, cpu_s)


class Tally:
    """What is seen from outside, each message once by its id. Times are `perf_counter` seconds."""

    def __init__(self, imaging_model: str = "", imaging_topic: str = "") -> None:
        """Imaging alerts are told by their model's name, and refused pictures by their topic."""
        self._imaging_model = imaging_model
        self._imaging_topic = imaging_topic
        self.findings: set[str] = set()
        self.pictures_refused: set[Coordinates] = set()
        self.imaging_alerts: dict[Transition, int] = dict.fromkeys(get_args(Transition), 0)
        self.handed_over: dict[Coordinates, float] = {}
        self.scored: dict[Coordinates, float] = {}
        self.refused: set[Coordinates] = set()
        self.alerts: dict[Transition, int] = dict.fromkeys(get_args(Transition), 0)
        self.news2_alerts: dict[Transition, int] = dict.fromkeys(get_args(Transition), 0)
        self._alert_ids: set[str] = set()

    def confirmed(self, record: Confirmed) -> None:
        """The broker has a record."""
        self.handed_over[record.partition, record.offset] = record.handed_over

    def log_length(self) -> int:
        """Records in a vitals log that only this demo has written, from the offsets that were confirmed."""
        ends: dict[int, int] = {}
        for partition, offset in self.handed_over:
            ends[partition] = max(ends.get(partition, 0), offset + 1)
        return sum(ends.values())

    def score(self, score: Score) -> None:
        """A score arrived."""
        self.scored.setdefault((score.source.partition, score.source.offset), time.perf_counter())

    def alert(self, alert: Alert) -> bool:
        """An alert arrived; whether it is the first with its id."""
        if alert.id in self._alert_ids:
            return False
        self._alert_ids.add(alert.id)
        counted = self.alerts if alert.points is None else self.news2_alerts
        if alert.model.name == self._imaging_model:
            counted = self.imaging_alerts
        counted[alert.transition] += 1
        return True

    def finding(self, finding: Finding) -> bool:
        """A finding arrived; whether it is the first with its id."""
        known = finding.id in self.findings
        self.findings.add(finding.id)
        return not known

    def dead_letter(self, letter: DeadLetter) -> None:
        """A dead letter arrived; only one for a whole record counts."""
        if letter.source.topic == self._imaging_topic:
            self.pictures_refused.add((letter.source.partition, letter.source.offset))
            return
        if not letter.accepted or any(r.reason == REFUSED_LATE for r in letter.rejections):
            self.refused.add((letter.source.partition, letter.source.offset))

    def latencies_ms(self) -> list[float]:
        """Per score: from handing its record to the producer to receiving it."""
        return [
            1000 * (at - self.handed_over[source])
            for source, at in self.scored.items()
            if source in self.handed_over
        ]


class Records(Struct, frozen=True):
    """Records by fate; `in` is the length of the vitals log."""

    in_: int = field(name="in")
    scored: int = 0
    stored: int = 0
    duplicate: int = 0
    dead_lettered: int = 0


class PicturesReport(Struct, frozen=True):
    """What became of the pictures.

    sent: imaging events. findings: distinct ones received; each is a record of the vitals log too.
    dead_lettered: pictures refused. alerts: transitions that findings raised.
    """

    sent: int
    findings: int
    dead_lettered: int
    alerts: dict[Transition, int]


class Report(Struct, frozen=True):
    """The result of a demo.

    scores: distinct records whose score was received.
    latency_ms: handing a record to the producer until its score was received: two trips over the broker.
    events_per_second: records over the time from the first one sent until all had a fate.
    cpu_us_per_event: CPU time of the worker processes over records.
    lost: records in the log without a fate.
    alerts, news2_alerts: the model's transitions, and NEWS2's own.
    pictures: null where none were sent.
    complaints: what does not add up; empty when all is well.
    """

    records: Records
    scores: int
    alerts: dict[Transition, int]
    news2_alerts: dict[Transition, int]
    latency_ms: dict[str, float | None]
    events_per_second: float
    cpu_us_per_event: float | None
    backend: str
    model: str
    lost: int
    seconds: float
    patients: int
    source: str
    seed: int
    workers: int
    speed: float | None
    pictures: PicturesReport | None
    complaints: tuple[str, ...]

    def json(self) -> bytes:
        """Indented JSON with a line end."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def records_of(counters: Counters, logged: int) -> Records:
    """Fates beside the length of the log."""
    fates = counters.fates
    return Records(logged, fates["scored"], fates["stored"], fates["duplicate"], fates["dead_lettered"])


def percentiles(latencies_ms: list[float]) -> dict[str, float | None]:
    """p50, p95 and p99 in ms; None where nothing was measured."""
    if not latencies_ms:
        return {"p50": None, "p95": None, "p99": None}
    found = np.percentile(latencies_ms, (50, 95, 99))
    return {name: round(float(value), 2) for name, value in zip(("p50", "p95", "p99"), found, strict=True)}


def complaints(
    confirmed: int, pictures: int, logged: int, counters: Counters, tally: Tally
) -> tuple[str, ...]:
    """What does not add up.

    Args:
        confirmed: vitals records that the broker confirmed to the sender.
        pictures: imaging events that it confirmed.
        logged: length of the vitals log.
        counters: the workers'.
        tally: everything received.
    """
    found, unread = len(tally.findings), len(tally.pictures_refused)
    scored, refused = counters.fates["scored"], counters.fates["dead_lettered"]
    checks = {
        f"{confirmed} records were confirmed and {found} findings came, the log holds {logged}": (
            logged == confirmed + found
        ),
        f"{pictures} pictures were sent, {found} findings and {unread} dead letters came": (
            pictures == found + unread
        ),
        f"{logged} records are in the log, {counters.total} have a fate": counters.total == logged,
        f"{scored} records were scored, {len(tally.scored)} scores came": len(tally.scored) == scored,
        f"{refused} records were refused, {len(tally.refused)} dead letters came": len(tally.refused)
        == refused,
    }
    return tuple(text for text, holds in checks.items() if not holds)
