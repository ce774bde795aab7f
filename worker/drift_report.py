"""What `riskstream drift` finds: records taken through the path, their patient-hours beside the reference."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import msgspec
import numpy as np

from engines import drift, evaluate, outcomes
from engines.drift import F32, Hours, Reference
from engines.engine import Engine
from engines.errors import DatasetError
from engines.steps import SeriesModel
from worker.bench.pipeline import records_of
from worker.change import Change
from worker.config import Settings
from worker.decode import Record
from worker.drift import Closed, HourTally
from worker.partition import Partition, Place
from worker.policies import shipped
from worker.recording import Recording
from worker.rerun import Rerun

PLACE = Place("drift", "vitals", 0)


class Observed(NamedTuple):
    """What the path made of records.

    hours: of all patients.
    risks: by patient, the last risk within so many hours of the first.
    records: how many came.
    """

    hours: Hours
    risks: dict[str, float]
    records: int


class _Gathered:
    """Patient-hours and risks, chunk by chunk."""

    def __init__(self, model: SeriesModel, reference: Reference, within_ms: int) -> None:
        self.tally = HourTally(model, reference)
        self.risks: dict[str, float] = {}
        self._within_ms = within_ms
        self._first_ms: dict[str, int] = {}
        self._numbers: dict[str, int] = {}
        self._patients: list[int] = []
        self._values: list[F32] = []

    def take(self, change: Change) -> None:
        if not len(change.risks):
            return
        self.keep(self.tally.take(change.plan, change.risks))
        for score, risk in zip(change.plan.scored, change.risks.tolist(), strict=True):
            patient = score.patient.id
            if score.time_ms - self._first_ms.setdefault(patient, score.time_ms) <= self._within_ms:
                self.risks[patient] = risk

    def keep(self, closed: Closed) -> None:
        self._patients += [self._numbers.setdefault(p, len(self._numbers)) for p in closed.patients]
        self._values.append(closed.values)

    def hours(self) -> Hours:
        return Hours(np.array(self._patients, dtype=np.int64), np.concatenate(self._values))


async def observed(
    recording: Recording,
    engine: Engine,
    reference: Reference,
    settings: Settings,
    within_h: float,
    progress: Callable[[str, int, int], None],
) -> Observed:
    """Take a recording through the path, as a worker with these settings would.

    Every patient of it is kept in memory to the end, some 75 KB each.

    Args:
        recording: in the order of event time.
        engine, reference: of the model.
        settings: limits, chunk size, NEWS2's policy.
        within_h: hours after a patient's first score up to which the risk that is judged is taken.
        progress: told (what, done, of).
    """
    rerun = Rerun(engine, shipped(settings, engine.config), settings)
    gathered = _Gathered(SeriesModel(engine.config), reference, round(within_h * 3_600_000))
    partition, done = Partition(PLACE, 0, 0), 0
    try:
        for records in _batches(records_of(recording, None), settings.chunk_records):
            changes, _ = await rerun.process(partition, records)
            for change in changes:
                gathered.take(change)
            done += len(records)
            progress("scoring records", done, recording.count)
    finally:
        await rerun.close()
    gathered.keep(gathered.tally.silent())
    return Observed(gathered.hours(), gathered.risks, done)


def _batches(records: Iterable[Record], size: int) -> Iterator[list[Record]]:
    left = iter(records)
    while batch := list(islice(left, size)):
        yield batch


def report(
    reference: Reference,
    found: Observed,
    source: str,
    known: Mapping[str, int] | None,
    within_h: float,
) -> dict[str, Any]:
    """The report's content.

    Args:
        reference: of the model.
        found: from `observed`.
        source: names the records.
        known: outcomes by patient, where any are known.
        within_h: as given to `observed`.

    Raises:
        DatasetError: no record was scored, or none of the patients with an outcome was.
    """
    shifts = drift.compare(reference, found.hours)
    content: dict[str, Any] = {
        "report": "drift",
        "model": {"name": reference.model, "digest": reference.digest},
        "source": source,
        "records": found.records,
        "patients": len(found.risks),
        "patient_hours": len(found.hours.patients),
        "reference": {
            name: getattr(reference, name) for name in ("data", "data_digest", "stays", "hours", "risks")
        },
        "bands": {"moderate": drift.MODERATE, "large": drift.LARGE, "too_few": drift.TELLABLE},
        "shifts": [msgspec.to_builtins(shift) for shift in shifts],
    }
    if known is not None:
        content["outcomes"] = _outcomes(found.risks, known, within_h)
    return content | {
        "reproduce": evaluate.reproduction(f"riskstream drift --data {source} --model {reference.model}")
    }


def _outcomes(risks: Mapping[str, float], known: Mapping[str, int], within_h: float) -> dict[str, Any]:
    judged = sorted(risks.keys() & known.keys())
    if not judged:
        raise DatasetError(
            f"of {len(known)} patients with an outcome none is among the {len(risks)} that were scored; "
            "are they named as in the records?"
        )
    return {
        "hours": within_h,
        "without_outcome": len(risks.keys() - known.keys()),
        "without_score": len(known.keys() - risks.keys()),
        **outcomes.beside([risks[p] for p in judged], [known[p] for p in judged]),
    }


def exceeded(content: Mapping[str, Any], above: float) -> list[str]:
    """Names of the features whose index, less what chance gives, is above a value."""
    return [
        shift["feature"]
        for shift in content["shifts"]
        if shift["psi"] is not None and shift["psi"] - shift["chance"] > above
    ]
