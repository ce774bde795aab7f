"""What `riskstream send` and `demo` send: simulated patients, stays of a data set, or a recorded file.

Records of all patients are merged in the order of event time. The same source gives the same bytes.
"""

import heapq
import random
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import msgspec

from engines import physionet2012
from engines.errors import DatasetError
from engines.physionet2012 import Stay
from schemas.messages import MAX_OBSERVATIONS, Observation, VitalsRecord
from worker import simulate
from worker.pathways import MIX
from worker.simulate import SimulationError

SIMULATE = "simulate"
"""The source that needs no data."""

TOPIC = "vitals"
"""Where a recording that was never sent is said to lie."""

STAYS_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
"""Stays of a data set have no dates: they begin within the day after this one."""

STAY = "stay-"
"""Before a stay's record, in its patient's id."""

PATIENTS = 40
"""Simulated patients unless stated."""

_EVENTS = uuid.UUID("d1b4b9a2-6f0e-5d55-8a19-0c1f6c0b8e77")

_decode = msgspec.json.Decoder(VitalsRecord).decode
_time = attrgetter("time")
_minute = attrgetter("minute")


class SourceError(ValueError):
    """A source cannot be read; the message names it and, in a file, the line."""


@dataclass(frozen=True, slots=True)
class Recording:
    """Records to send, in order.

    open: a fresh iterator over the records; may be called again.
    count: of records. patients: of patients.
    begins, ends: least and greatest event time.
    """

    open: Callable[[], Iterator[VitalsRecord]]
    count: int
    patients: int
    begins: datetime
    ends: datetime

    def speed_to_fit(self, seconds: float) -> float | None:
        """Event seconds per second that play it in this time; None where all have one time."""
        return (self.ends - self.begins).total_seconds() / seconds or None


class Choice(NamedTuple):
    """What to take from a source.

    patients: how many, the first ones; all of a data set, and 40 simulated ones, unless stated.
    seed, hours, mix: of simulated patients.
    """

    patients: int | None = None
    seed: int = 1
    hours: float = 48.0
    mix: Mapping[str, float] = MIX


def read(source: str, choice: Choice) -> Recording:
    """The recording named on the command line: `simulate`, `physionet2012:DIR` or a file.

    Raises:
        SourceError: it cannot be read or made.
    """
    try:
        if source == SIMULATE:
            return simulated(choice)
        if physionet2012.is_source(source):
            return stays(physionet2012.read(physionet2012.parse_source(source)), choice.patients)
    except (SimulationError, DatasetError) as error:
        raise SourceError(str(error)) from error
    return recorded(Path(source))


def simulated(choice: Choice) -> Recording:
    """Simulated patients."""
    everyone = simulate.patients(choice.patients or PATIENTS, choice.seed, choice.mix)
    made = list(simulate.records(everyone, choice.hours))
    return Recording(lambda: iter(made), len(made), len(everyone), made[0].time, made[-1].time)


def stays(found: list[Stay], limit: int | None = None) -> Recording:
    """Stays of the Challenge 2012, the first `limit` by record; each time of a stay is one record."""
    chosen = [stay for stay in found if stay.samples][:limit]
    if not chosen:
        raise SourceError("the data set holds no observation")
    minutes = {stay.record: sorted({sample.minute for sample in stay.samples}) for stay in chosen}
    beginnings = {stay.record: begins(stay) for stay in chosen}
    return Recording(
        lambda: heapq.merge(*(_stay_records(stay, beginnings[stay.record]) for stay in chosen), key=_time),
        sum(len(times) for times in minutes.values()),
        len(chosen),
        min(beginnings[record] + timedelta(minutes=times[0]) for record, times in minutes.items()),
        max(beginnings[record] + timedelta(minutes=times[-1]) for record, times in minutes.items()),
    )


def recorded(path: Path) -> Recording:
    """A file with one vitals record a line, as `--record` writes it. It is read through once to check it.

    Raises:
        SourceError: it cannot be read, or a line is no record.
    """
    count, patients = 0, set()
    begins, ends = datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)
    for record in _lines(path):
        count += 1
        patients.add(record.patient)
        begins, ends = min(begins, record.time), max(ends, record.time)
    if not count:
        raise SourceError(f"{path} holds no record")
    return Recording(lambda: _lines(path), count, len(patients), begins, ends)


def begins(stay: Stay) -> datetime:
    """When a stay is admitted, by the seed that its record is."""
    return STAYS_BEGIN + timedelta(minutes=random.Random(f"stay/{stay.record}").randrange(24 * 60))


def patient_of(stay: Stay) -> str:
    """A stay's patient id."""
    return STAY + stay.record


def _stay_records(stay: Stay, admitted: datetime) -> Iterator[VitalsRecord]:
    for minute, samples in groupby(sorted(stay.samples, key=_minute), key=_minute):
        observations = tuple(Observation(sample.code, sample.value, sample.unit) for sample in samples)
        yield VitalsRecord(
            str(uuid.uuid5(_EVENTS, f"{stay.record}/{minute}")),
            patient_of(stay),
            admitted + timedelta(minutes=minute),
            observations[:MAX_OBSERVATIONS],
        )


def _lines(path: Path) -> Iterator[VitalsRecord]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _line(path, number, line)
    except OSError as error:
        known = f"a source is {SIMULATE}, {physionet2012.PREFIX}DIR or a file"
        raise SourceError(f"cannot read {path}: {error.strerror}; {known}") from error


def _line(path: Path, number: int, line: bytes) -> VitalsRecord:
    try:
        record = _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # The decoder's own message can quote the line, which holds a patient's data.
        raise SourceError(f"{path}, line {number}: not a vitals record (see schemas/messages.py)") from None
    if record.time.timestamp() < 0:
        raise SourceError(f"{path}, line {number}: its time is before 1970, which Kafka cannot carry")
    return record
