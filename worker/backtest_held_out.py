"""A chosen policy on patients that it was not chosen on: choose on all folds but one, judge on that one.

The figures of a chosen policy are those of the best of many on the same patients, so they flatter; these do
not.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worker.backtest import Tally
from worker.backtest_figures import Cohort, in_time
from worker.backtest_grid import Rule, choose


class Did(NamedTuple):
    """What a policy did to each patient, as far as rules ask.

    alerted: bool[patients]. pages: int64[patients], raised and escalated.
    """

    alerted: NDArray[np.bool_]
    pages: NDArray[np.int64]


def did(tally: Tally, cohort: Cohort) -> Did:
    """The same of a tally."""
    return Did(in_time(tally.first[:, 0], cohort), tally.transitions[:, :2].sum(axis=1))


def judged(
    rule: Rule, names: Sequence[str], found: Sequence[Did], cohort: Cohort, fold: NDArray[np.int64]
) -> dict[str, Any] | None:
    """Figures of the policies that a rule chooses without the patients on whom they are judged.

    Args:
        rule: by which is chosen. names: of the policies. found: what each did.
        cohort: the patients, and fold: int64[patients], the fold of each.

    Returns:
        recall, survivors_alerted, alerts_per_patient_day over all patients, and "chosen", a name for each
        fold; None where the rule finds none for a fold.
    """
    parts = np.unique(fold)
    picked = [choose(rule, [_figures(each, cohort, fold != part) for each in found]) for part in parts]
    chosen = [number for number in picked if number is not None]
    if len(chosen) < len(parts):
        return None
    mixed = Did(np.zeros(len(fold), dtype=np.bool_), np.zeros(len(fold), dtype=np.int64))
    for part, number in zip(parts, chosen, strict=True):
        for target, array in zip(mixed, found[number], strict=True):
            target[fold == part] = array[fold == part]
    figures = _figures(mixed, cohort, np.ones(len(fold), dtype=np.bool_))
    rounded = {name: round(figure, 4) for name, figure in figures.items()}
    return {**rounded, "chosen": [names[number] for number in chosen]}


def _figures(found: Did, cohort: Cohort, among: NDArray[np.bool_]) -> dict[str, float]:
    events, without = among & (cohort.event == 1), among & (cohort.event == 0)
    return {
        "recall": float(np.mean(found.alerted[events])),
        "survivors_alerted": float(np.mean(found.alerted[without])),
        "alerts_per_patient_day": float(found.pages[among].sum() / cohort.days[among].sum()),
    }
