"""Patient-hours: the last scored row of each patient in each hour, counted once the hour is over.

`HourTally` holds the newest row of each patient, and hands it out when the patient's next one is of another
hour, or when the patient has been silent. `DriftWatch` counts what it hands out by the bins of the model's
reference. Windows and indices are Prometheus's (`deploy/prometheus/recording.yml`): counts add up over
replicas and restarts, an index does not.
"""

import hashlib
import time
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray

from engines import drift, drift_reference
from engines.drift import Reference
from engines.errors import RepositoryError
from engines.steps import SeriesModel
from schemas.model_config import ModelConfig
from worker import metrics
from worker.plan import Plan

log = structlog.get_logger("riskstream.drift")

F32 = NDArray[np.float32]

SILENT_S = 3600.0
"""The hour of a patient of whom this process took no score for so long is over."""

SWEEP_S = 300.0
"""Between two looks for silent patients."""

COUNT_S = 5.0
"""Hours that are over are counted together, so long after the last time, or `COUNT_HOURS` of them: to count
one costs as much as to count hundreds."""

COUNT_HOURS = 1024


class Newest(NamedTuple):
    """A patient's last scored row.

    hour: its bin.
    values: float32[features + 1] as in `engines.drift.Hours`.
    taken_s: when it was taken, `perf_counter` seconds.
    """

    hour: int
    values: F32
    taken_s: float


class Closed(NamedTuple):
    """Hours that are over.

    patients: their ids.
    values: float32[hours, features + 1] as in `engines.drift.Hours`.
    """

    patients: list[str]
    values: F32


class HourTally:
    """The newest row of each patient; some 400 bytes each, of those scored within the hour."""

    def __init__(self, model: SeriesModel, reference: Reference) -> None:
        self._columns = model.columns
        self._absent_h = reference.absent_h
        self._newest: dict[str, Newest] = {}

    def __len__(self) -> int:
        return len(self._newest)

    def take(self, plan: Plan, risks: F32) -> Closed:
        """Take a chunk's scores, but for those without a risk; gives the hours that they end.

        Args:
            plan: of the chunk.
            risks: float32[scored].
        """
        known = (~np.isnan(risks)).tolist()
        hours = {(score.patient.id, score.open): i for i, score in enumerate(plan.scored) if known[i]}
        now_s, over = time.perf_counter(), []
        for (patient, hour), values in zip(hours, self._read(plan, list(hours.values()), risks), strict=True):
            before = self._newest.get(patient)
            if before is not None and before.hour != hour:
                over.append((patient, before.values))
            self._newest[patient] = Newest(hour, values.copy(), now_s)  # a view would keep the whole array
        return self._closed(over)

    def silent(self, before_s: float = np.inf) -> Closed:
        """Let go of patients not scored since a time, of `perf_counter`; of all unless it is given."""
        gone = [patient for patient, newest in self._newest.items() if newest.taken_s < before_s]
        return self._closed([(patient, self._newest.pop(patient).values) for patient in gone])

    def _read(self, plan: Plan, chosen: list[int], risks: F32) -> F32:
        at = np.ix_(np.array(chosen, dtype=np.intp), self._columns)
        return drift.joined(plan.rows.values[at], plan.rows.elapsed[at], risks[chosen], self._absent_h)

    def _closed(self, over: list[tuple[str, F32]]) -> Closed:
        blank = np.empty((0, len(self._columns) + 1), dtype=np.float32)
        values = np.stack([values for _, values in over]) if over else blank
        return Closed([patient for patient, _ in over], values)


class DriftWatch:
    """Counts patient-hours by bins of the reference, for Prometheus; every series is there from the start.

    Args:
        model: the served one.
        reference: of it.
    """

    def __init__(self, model: SeriesModel, reference: Reference) -> None:
        self._tally = HourTally(model, reference)
        self._swept_s = self._counted_s = time.perf_counter()
        self._waiting: list[F32] = []
        self._hours_waiting = 0
        self._distributions = list(reference.distributions().values())
        name = label(reference)
        self._counters = []
        for feature, expected in reference.distributions().items():
            self._counters.append(
                [metrics.hourly_rows.labels(name, feature, place) for place in expected.names()]
            )
            for place, share in zip(expected.names(), expected.shares, strict=True):
                metrics.reference_share.labels(name, feature, place).set(share)
            # Of one patient-hour: Prometheus knows how many hours it has, not of how many patients.
            hours_of_a_stay = reference.hours / reference.stays
            metrics.reference_noise.labels(name, feature).set(expected.noise * hours_of_a_stay)

    def observe(self, plan: Plan, risks: F32) -> None:
        """Take a chunk's scores.

        Args:
            plan: of the chunk.
            risks: float32[scored].
        """
        self._wait(self._tally.take(plan, risks))
        now_s = time.perf_counter()
        if now_s - self._swept_s > SWEEP_S:
            self._swept_s = now_s
            self._wait(self._tally.silent(now_s - SILENT_S))
        if now_s - self._counted_s > COUNT_S or self._hours_waiting >= COUNT_HOURS:
            self._counted_s = now_s
            self.count()

    def _wait(self, closed: Closed) -> None:
        if closed.patients:
            self._waiting.append(closed.values)
            self._hours_waiting += len(closed.patients)

    def end(self) -> None:
        """Count all hours as they stand: the model is replaced, and its rows are asked for no more."""
        self._wait(self._tally.silent())
        self.count()

    def count(self) -> None:
        """Count the hours that are over and wait."""
        if not self._waiting:
            return
        values = np.concatenate(self._waiting)
        self._waiting, self._hours_waiting = [], 0
        for column, (expected, counters) in enumerate(zip(self._distributions, self._counters, strict=True)):
            counts = expected.count(values[:, column])
            for code in np.flatnonzero(counts):
                counters[code].inc(int(counts[code]))


def label(reference: Reference) -> str:
    """What a reference is called in metrics: another one, even of the same model, is counted apart."""
    return hashlib.sha256(msgspec.json.encode(reference)).hexdigest()[:8]


def watch(repository: Path, config: ModelConfig) -> DriftWatch | None:
    """The watch of a model; None, with a warning, where its reference is missing or does not fit.

    To alert matters more than to watch for drift, so that a worker starts without.
    """
    try:
        return DriftWatch(SeriesModel(config), drift_reference.read(repository, config))
    except RepositoryError as error:
        log.warning("drift is not watched", why=str(error))
        return None
