"""What a policy's alerts come to: how many, for whom, how right, how early; with 95% intervals.

Shares of patients have Wilson's interval. Ratios of sums over patients, such as alerts per patient-day, have
the percentile interval of a bootstrap over patients, who are drawn whole: their alerts are not independent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.judge import RESAMPLES, interval, wilson
from schemas.model_config import AlertPolicy
from worker.backtest import NOT_YET, TRANSITIONS, Scores, Tally
from worker.backtest_source import DAY_MS, Outcome

HOUR_MS = 3_600_000

FIGURES = {
    "alerts_per_patient_day": "raised and escalated, what would page, for each day between a patient's first "
    "and last record, without the silences after which the patient started anew",
    "raised_per_patient_day": "episodes opened for each such day",
    "updates_per_patient_day": "updated, of an open episode, for each such day",
    "patients_alerted": "share of the patients who have one alert or more",
    "recall": "share of the patients with the event who have an alert, before it where its time is exact",
    "survivors_alerted": "share of the patients without the event who ever have an alert",
    "ppv_patients": "share of patients with the event among those with an alert",
    "ppv_episodes": "share of episodes whose patient has the event; those opened after it are left out where "
    "its time is exact",
    "time_in_alert": "share of that time with an open episode",
    "hours_in_alert": "hours with an open episode for each patient",
    "hours_to_record_end": "of patients with the event who have an alert, from the first one to their last "
    "record: median and quartiles",
    "hours_to_outcome": "of the same, from the first alert to the event where its time is known: median and "
    "quartiles",
    "levels": "recall, survivors_alerted and ppv_patients of each severity: alerts at it or a higher one",
    "intervals": "95%: of shares of patients Wilson's, else of a bootstrap over patients",
}
"""What the figures of `figures` mean."""

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Cohort:
    """Who was there and what became of them; arrays of one row a patient.

    days: float64, from the first record to the last, without silences after which the patient starts anew.
    until: int64, ms, time of the last.
    event: float64, 1 or 0, NaN where nobody knows. event_ms: float64, NaN where unknown.
    exact: bool, the event's time is exact.
    """

    days: F64
    until: NDArray[np.int64]
    event: F64
    event_ms: F64
    exact: NDArray[np.bool_]

    @property
    def judged(self) -> bool:
        """Whether there are patients with the event and patients without."""
        return bool((self.event == 1).any() and (self.event == 0).any())

    @cached_property
    def draws(self) -> F64:
        """How often each patient is drawn, float64[resamples, patients]; the same for every policy."""
        patients = len(self.days)
        rng = np.random.default_rng(0)
        drawn = rng.integers(0, patients, (RESAMPLES, patients))
        drawn += np.arange(RESAMPLES)[:, None] * patients
        counted = np.bincount(drawn.ravel(), minlength=RESAMPLES * patients)
        return counted.reshape(RESAMPLES, patients).astype(np.float64)


def cohort(
    names: Sequence[str], patients: Sequence[Scores], outcomes: Mapping[str, Outcome] | None
) -> Cohort:
    """The patients of some tracks, with their outcomes where they are known."""
    found = [(outcomes or {}).get(name) for name in names]
    return Cohort(
        np.array([patient.watched_ms / DAY_MS for patient in patients]),
        np.array([patient.until for patient in patients], dtype=np.int64),
        np.array([np.nan if each is None else float(each.event) for each in found]),
        np.array([np.nan if each is None or each.time_ms is None else float(each.time_ms) for each in found]),
        # A survivor's time is no event: alerts after it, on a discharge for one, are false all the same.
        np.array([each is not None and each.event and each.exact for each in found], dtype=np.bool_),
    )


def described(cohort: Cohort) -> dict[str, Any]:
    """The patients in a report."""
    return {
        "patients": len(cohort.days),
        "patient_days": round(float(cohort.days.sum()), 2),
        "events": int((cohort.event == 1).sum()),
        "without_event": int((cohort.event == 0).sum()),
        "unknown": int(np.isnan(cohort.event).sum()),
    }


def figures(policy: AlertPolicy, tally: Tally, cohort: Cohort) -> dict[str, Any]:
    """The figures of `FIGURES`; None where the data cannot tell.

    Args:
        policy: the one tried. tally: what it did. cohort: to whom.
    """
    raised, escalated, updated = tally.transitions[:, :3].T.astype(np.float64)
    days, time_days = cohort.days, tally.open_ms / DAY_MS
    known = ~np.isnan(cohort.event)
    alerted = in_time(tally.first[:, 0], cohort)
    found: dict[str, Any] = {
        "alerts": dict(zip(TRANSITIONS, tally.transitions.sum(axis=0).tolist(), strict=True)),
        "intervals": {},
    }
    _ratio(found, "alerts_per_patient_day", raised + escalated, days, cohort)
    _ratio(found, "raised_per_patient_day", raised, days, cohort)
    _ratio(found, "updates_per_patient_day", updated, days, cohort)
    _share(found, "patients_alerted", tally.first[:, 0] != NOT_YET)
    _ratio(found, "time_in_alert", time_days, days, cohort)
    _ratio(found, "hours_in_alert", 24 * time_days, np.ones_like(days), cohort)
    _shares(found, alerted, cohort)
    event, early = np.where(known, cohort.event, 0.0), _raised_in_time(tally, cohort)
    _ratio(found, "ppv_episodes", early * event, np.where(known, early, 0.0), cohort)
    warned = np.flatnonzero((cohort.event == 1) & alerted)
    first = tally.first[warned, 0]
    found["hours_to_record_end"] = _quartiles((cohort.until[warned] - first) / HOUR_MS)
    found["hours_to_outcome"] = _quartiles((cohort.event_ms[warned] - first) / HOUR_MS)
    found["levels"] = {}
    for number, level in enumerate(policy.levels):
        at_level: dict[str, Any] = {"intervals": {}}
        _shares(at_level, in_time(tally.first[:, number], cohort), cohort)
        found["levels"][level.severity] = at_level
    return found


def in_time(first: NDArray[np.int64], cohort: Cohort) -> NDArray[np.bool_]:
    """Who has an alert; where the event's time is exact, one that came before it."""
    late = cohort.exact & (first > np.nan_to_num(cohort.event_ms, nan=np.inf))
    return np.asarray((first != NOT_YET) & ~late)


def _raised_in_time(tally: Tally, cohort: Cohort) -> F64:
    """Episodes of each patient; where the event's time is exact, those that were opened before it."""
    last = np.where(cohort.exact, np.nan_to_num(cohort.event_ms, nan=np.inf), np.inf)
    return np.array(
        [sum(at <= end for at in times) for times, end in zip(tally.raised, last, strict=True)], float
    )


def _shares(found: dict[str, Any], alerted: NDArray[np.bool_], cohort: Cohort) -> None:
    """Of those whose outcome is known."""
    _share(found, "recall", alerted[cohort.event == 1])
    _share(found, "survivors_alerted", alerted[cohort.event == 0])
    _share(found, "ppv_patients", (cohort.event == 1)[alerted & ~np.isnan(cohort.event)])


def _share(found: dict[str, Any], name: str, cases: NDArray[np.bool_]) -> None:
    found[name] = None
    if len(cases):
        share = float(np.mean(cases))
        found[name] = round(share, 4)
        found["intervals"][name] = wilson(share, len(cases))


def _ratio(found: dict[str, Any], name: str, over: F64, under: F64, cohort: Cohort) -> None:
    found[name] = None
    total = float(under.sum())
    if total > 0:
        figure = float(over.sum()) / total
        unders = cohort.draws @ under
        replicates = (cohort.draws @ over)[unders > 0] / unders[unders > 0]
        found[name] = round(figure, 4)
        found["intervals"][name] = interval(figure, replicates)


def _quartiles(hours: F64) -> dict[str, Any] | None:
    """Median and quartiles with the number of cases; None where there is no case."""
    hours = hours[~np.isnan(hours)]
    if not len(hours):
        return None
    low, median, high = (round(float(value), 2) for value in np.quantile(hours, (0.25, 0.5, 0.75)))
    return {"n": len(hours), "median": median, "quartiles": [low, high]}
