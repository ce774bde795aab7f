"""What an alert policy would have done: the path's own deciding over tracks, and what came of it.

    tracks + policy --decide--> counts of each patient --figures--> alerts, recall, precision, lead time

Deciding is `worker.decide.decide` itself, score by score: what a policy is found to raise here is what a
worker under it raises. Only scores before the first that reaches the first level are passed over: nothing
can come of them, because no episode is open and none can be raised.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.latch import Latch, Which
from schemas.messages import Transition
from schemas.model_config import AlertPolicy
from worker.decide import Step, decide, expire
from worker.early_warning import raised
from worker.patient import FORGET_MS
from worker.tracks import Rows, Tracks

TRANSITIONS: tuple[Transition, ...] = ("raised", "escalated", "updated", "resolved", "expired")

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

NOT_YET = np.iinfo(np.int64).max
"""The time of an alert that never came."""


class Alert(NamedTuple):
    """A transition of a track's: what names it, its time in ms, and the level of its episode after it."""

    opened: int
    sequence: int
    transition: Transition
    time: int
    level: int


@dataclass(frozen=True, slots=True)
class Tally:
    """What a policy did to each patient of some tracks; arrays of one row a patient.

    transitions: int64[patients, 5], in the order of `TRANSITIONS`.
    first: int64[patients, levels], time of the first alert at each level or above, ms; `NOT_YET` if none.
    open_ms: int64[patients], time with an open episode, within the patient's stretches.
    raised: times, ms, of what was raised, those of each patient.
    """

    transitions: I64
    first: I64
    open_ms: I64
    raised: Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Scores:
    """One patient's scores as Python numbers, for one latch: (offset, time, score, held, anew, live).

    highest: greatest score. ends_anew: the patient starts anew after the last of them, with a record of which
    this latch sees nothing. stretches: first and last live record's time, ms, one pair each time that the
    patient starts anew: nobody watches over whom nothing is recorded.
    """

    rows: Sequence[tuple[int, int, float, float, bool, bool]]
    highest: float
    ends_anew: bool
    stretches: Sequence[tuple[int, int]]

    @property
    def until(self) -> int:
        """Time of the last live record, ms; 0 where there is none."""
        return self.stretches[-1][1] if self.stretches else 0

    @property
    def watched_ms(self) -> int:
        """Length of the stretches together."""
        return sum(until - since for since, until in self.stretches)


def scores(tracks: Tracks, which: Which, single_enter: int = 0) -> list[Scores]:
    """The scores of every patient that one latch sees.

    Args:
        tracks: of the patients. which: the latch.
        single_enter: of NEWS2's, what its policy says that 3 points in one parameter count as at least.
    """
    return [_scores(rows, which, single_enter) for rows in tracks.rows]


def _scores(rows: Rows, which: Which, single_enter: int) -> Scores:
    score, held = rows.risk, rows.risk
    if which == "news2":
        score = raised(rows.low, rows.single, single_enter)
        held = raised(rows.held, rows.held_single, single_enter)
    seen = np.flatnonzero(~np.isnan(score))
    columns = (rows.offset, rows.time, score, held, rows.anew, rows.live)
    made = list(zip(*(column[seen].tolist() for column in columns), strict=True))
    # A patient that starts anew with a record that this latch does not see is new to it all the same.
    places = np.searchsorted(seen, np.flatnonzero(rows.anew))
    for place in places[places < len(seen)].tolist():
        made[place] = (*made[place][:4], True, made[place][5])
    ends_anew = bool((places == len(seen)).any())
    return Scores(made, float(np.max(score[seen], initial=-np.inf)), ends_anew, _stretches(rows))


def _stretches(rows: Rows) -> list[tuple[int, int]]:
    """First and last live time of each stretch between the records with which the patient starts anew."""
    parts = np.cumsum(rows.anew)[rows.live]
    times = rows.time[rows.live]
    return [(int(part[0]), int(part[-1])) for part in (times[parts == n] for n in np.unique(parts))]


def transitions(policy: AlertPolicy, patient: Scores) -> list[tuple[Alert, bool]]:
    """Every transition of one patient's scores, and whether a worker would have published it."""
    found: list[tuple[Alert, bool]] = []
    if patient.highest < policy.levels[0].enter:
        return found
    enter, latch = policy.levels[0].enter, Latch()
    for offset, time, score, held, anew, live in patient.rows:
        if anew:
            found += [(alert, live) for alert in _lapsed(policy, latch)]
            latch = Latch()
        if latch.trace is None and score < enter:
            continue
        latch, steps = decide(policy, latch, time, score, offset, held)
        found += [(_alert(step), live) for step in steps]
    if patient.ends_anew:
        found += [(alert, True) for alert in _lapsed(policy, latch)]
    return found


def _lapsed(policy: AlertPolicy, latch: Latch) -> list[Alert]:
    """The expiry that the path finds when a patient starts anew."""
    if latch.trace is None:
        return []
    _, step = expire(policy, latch, latch.trace.time + FORGET_MS + 1)
    return [] if step is None else [_alert(step)]


def _alert(step: Step) -> Alert:
    episode = step.episode
    return Alert(episode.opened, episode.sequence, step.transition, step.time, episode.level)


def tally(policy: AlertPolicy, patients: Sequence[Scores]) -> Tally:
    """What a policy does to every patient."""
    counts = np.zeros((len(patients), len(TRANSITIONS)), dtype=np.int64)
    first = np.full((len(patients), len(policy.levels)), NOT_YET, dtype=np.int64)
    open_ms = np.zeros(len(patients), dtype=np.int64)
    raised_at: list[list[int]] = [[] for _ in patients]
    for number, patient in enumerate(patients):
        opened: int | None = None
        for alert, live in transitions(policy, patient):
            if alert.transition == "raised":
                opened = alert.time
                raised_at[number] += [opened] if live else []
            elif alert.transition in ("resolved", "expired") and opened is not None:
                open_ms[number] += _within(patient, opened, alert.time)
                opened = None
            if live:
                counts[number, TRANSITIONS.index(alert.transition)] += 1
                if alert.transition in ("raised", "escalated", "updated"):
                    reached = first[number, : alert.level + 1]
                    np.minimum(reached, alert.time, out=reached)
        if opened is not None:
            open_ms[number] += _within(patient, opened, patient.until)
    return Tally(counts, first, open_ms, raised_at)


def _within(patient: Scores, opened: int, closed: int) -> int:
    """Time of an episode within the patient's stretches, ms."""
    overlaps = (min(closed, until) - max(opened, since) for since, until in patient.stretches)
    return sum(max(overlap, 0) for overlap in overlaps)
