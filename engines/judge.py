"""One set of risks judged against outcomes: figures, bootstrap intervals, curves.

Intervals are 95% percentile intervals over resamples of the cases with replacement. Figures of ranking and
of a threshold are resampled within each outcome, so that each resample has as many positives as the sample;
figures of calibration over all cases, for there the share of positives is itself uncertain. The draws depend
on the outcomes and the seed alone: two models judged on the same cases are resampled alike, and their
`difference` is paired.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines import metrics
from engines.metrics import Vector

RESAMPLES = 500
"""Enough for intervals to two digits; four times as many would halve their own error."""

CURVE_POINTS = 200
"""At most so many points of a curve are kept: more cannot be seen."""

DECISION_THRESHOLDS = tuple(round(percent / 100, 2) for percent in range(1, 100))

FIGURES = {
    "auroc": "area under the ROC curve; ties count half",
    "auprc": "average precision: sum over thresholds of precision times the recall added",
    "event1": "smaller of sensitivity and positive predictivity at the threshold (risk at or above it)",
    "sensitivity": "share of the positives at or above the threshold",
    "specificity": "share of the negatives below the threshold",
    "positive_predictivity": "share of positives among those at or above the threshold; 0 where none is",
    "accuracy": "share on the right side of the threshold",
    "brier": "mean squared difference of risk and outcome",
    "ece": f"mean |mean risk - share of positives| over {metrics.BINS} groups of equal size, ordered by risk",
    "calibration_in_the_large": "mean risk less the share of positives; above 0 the risks are too high",
    "intervals": "95% percentile intervals over bootstrap resamples, drawn within each outcome except for "
    "brier, ece and calibration_in_the_large; that of ece is moved down by what resampling alone adds; a "
    "share whose resamples are all alike has Wilson's interval instead",
}
"""What the figures of `judged` mean."""

_BLOCK = 1 << 19
"""Cells of a block of resamples: 4 MB an array."""


def judged(
    truth: NDArray[Any],
    risk: NDArray[Any],
    threshold: float | None,
    *,
    probability: bool = True,
    curves: bool = True,
    resamples: int = RESAMPLES,
    seed: int = 0,
    replicates: dict[str, Vector] | None = None,
) -> dict[str, Any]:
    """Figures of one set of risks, rounded to four digits.

    Args:
        truth: [cases], 0 or 1, with both present.
        risk: [cases], finite; a probability, or else any score that rises with the risk.
        threshold: fixed beforehand, for event 1 and its like; None leaves them out.
        probability: False leaves out what only a probability has: brier, ece, calibration, decision curve.
        curves: whether the curves are wanted.
        replicates: from `replicated` with the same arguments, where they are at hand.

    Returns:
        n, positives, threshold; auroc, auprc, event1, sensitivity, specificity, positive_predictivity,
        accuracy, brier, ece, calibration_in_the_large, as far as they apply; "intervals" of each:
        [low, high], which always hold the figure; "curves": `curves_of`.

    Raises:
        ValueError: only one outcome is present, or a risk is not finite.
    """
    truth, risk = _checked(truth, risk)
    if replicates is None:
        replicates = replicated(
            truth, risk, threshold, probability=probability, resamples=resamples, seed=seed
        )
    figures = figures_of(truth, risk, threshold, probability=probability)
    found: dict[str, Any] = {"n": len(truth), "positives": int(truth.sum())}
    if threshold is not None:
        found["threshold"] = float(threshold)
    found |= {name: round(figure, 4) for name, figure in figures.items()}
    found["intervals"] = {
        name: interval(figure, replicates[name], shifted=name == "ece") for name, figure in figures.items()
    }
    for name, cases in _cases_of_shares(truth, risk, threshold).items():
        if np.ptp(replicates[name]) == 0:
            found["intervals"][name] = wilson(figures[name], cases)
    if curves:
        found["curves"] = curves_of(truth, risk, probability=probability)
    return found


def figures_of(
    truth: Vector, risk: Vector, threshold: float | None, *, probability: bool = True
) -> dict[str, float]:
    """The figures themselves, unrounded, without intervals."""
    found = {"auroc": metrics.auroc(truth, risk), "auprc": metrics.auprc(truth, risk)}
    if threshold is not None:
        found |= {
            "event1": metrics.event1(truth, risk, threshold),
            "sensitivity": metrics.sensitivity(truth, risk, threshold),
            "specificity": metrics.specificity(truth, risk, threshold),
            "positive_predictivity": metrics.positive_predictivity(truth, risk, threshold),
            "accuracy": metrics.accuracy(truth, risk, threshold),
        }
    if probability:
        found |= {
            "brier": metrics.brier(truth, risk),
            "ece": metrics.expected_calibration_error(truth, risk),
            "calibration_in_the_large": float(np.mean(risk) - np.mean(truth)),
        }
    return found


def curves_of(truth: Vector, risk: Vector, *, probability: bool = True) -> dict[str, list[list[float]]]:
    """Curves of at most `CURVE_POINTS` points.

    Returns:
        "roc": [false positive rate, true positive rate], from (0, 0) to (1, 1);
        "precision_recall": [recall, precision], ending at (1, share of positives);
        of a probability also "calibration": [mean risk, share of positives, cases] of groups of equal size,
        and "decision": [threshold, net benefit of the model, net benefit of treating all].
    """
    found = {
        "roc": _thinned(metrics.roc_curve(truth, risk)),
        "precision_recall": _thinned(metrics.precision_recall_curve(truth, risk)),
    }
    if probability:
        groups = metrics.calibration_groups(truth, risk)
        found["calibration"] = [[round(x, 4), round(y, 4), int(n)] for x, y, n in groups.tolist()]
        everyone = np.ones_like(risk)
        found["decision"] = [
            [at, *(round(metrics.net_benefit(truth, who, at), 5) for who in (risk, everyone))]
            for at in DECISION_THRESHOLDS
        ]
    return found


def replicated(
    truth: NDArray[Any],
    risk: NDArray[Any],
    threshold: float | None,
    *,
    probability: bool = True,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Vector]:
    """Every figure of every resample: float64[resamples] each; the arguments are those of `judged`.

    Raises:
        ValueError: only one outcome is present, or a risk is not finite.
    """
    truth, risk = _checked(truth, risk)
    sample = _Sorted(truth, risk, threshold)
    within = [np.flatnonzero(truth == outcome) for outcome in (0, 1)]
    blocks = [sample.ranking(weights) for weights in _draws(within, resamples, seed)]
    found = _joined(blocks)
    if probability:
        over_all = [np.arange(len(truth))]
        found |= _joined([sample.calibration(weights) for weights in _draws(over_all, resamples, seed)])
    return found


def interval(figure: float, replicates: Vector, *, shifted: bool = False) -> list[float]:
    """[low, high] of 95%, rounded, widened to hold the figure where it would not.

    Args:
        figure: of the whole sample.
        replicates: of the resamples.
        shifted: the figure is one that resampling alone raises, so that the plain interval would miss it:
            the interval is moved by the difference of the resamples' mean and the figure; never below 0.
    """
    low, high = np.quantile(replicates, (0.025, 0.975))
    if shifted:
        moved = figure - float(np.mean(replicates))
        low, high = max(low + moved, 0.0), max(high + moved, 0.0)
    return [round(min(float(low), figure), 4), round(max(float(high), figure), 4)]


def wilson(share: float, cases: int) -> list[float]:
    """[low, high] of 95% of a share of cases, rounded: Wilson's score interval, which is never a point.

    Resampling cannot tell how sure 135 of 135 are; this can.
    """
    z2 = 1.96**2
    middle, cases = share + z2 / (2 * max(cases, 1)), max(cases, 1)
    reach = 1.96 * (share * (1 - share) / cases + z2 / (4 * cases**2)) ** 0.5
    low, high = ((middle + side * reach) / (1 + z2 / cases) for side in (-1, 1))
    return [round(max(min(low, share), 0.0), 4), round(min(max(high, share), 1.0), 4)]


def difference(
    ours: dict[str, Vector], theirs: dict[str, Vector], figure: float, other: float, name: str
) -> list[float]:
    """[ours - theirs, low, high] of one figure, from paired resamples.

    Args:
        ours, theirs: from `replicated` on the same truth with the same resamples and seed.
        figure, other: of the whole sample, ours and theirs.
        name: the figure's.
    """
    found = figure - other
    return [round(found, 4), *interval(found, ours[name] - theirs[name])]


def _checked(truth: NDArray[Any], risk: NDArray[Any]) -> tuple[Vector, Vector]:
    truth, risk = np.asarray(truth, dtype=np.float64), np.asarray(risk, dtype=np.float64)
    if truth.shape != risk.shape or truth.ndim != 1 or set(np.unique(truth)) != {0.0, 1.0}:
        raise ValueError("judging needs one risk for each case, and cases of both outcomes")
    if not np.isfinite(risk).all():
        raise ValueError("judging needs risks that are finite numbers")
    return truth, risk


def _cases_of_shares(truth: Vector, risk: Vector, threshold: float | None) -> dict[str, int]:
    """Of how many cases each figure at the threshold is the share."""
    if threshold is None:
        return {}
    return {
        "sensitivity": int(truth.sum()),
        "specificity": int(len(truth) - truth.sum()),
        "positive_predictivity": int(np.sum(risk >= threshold)),
        "accuracy": len(truth),
    }


def _joined(blocks: list[dict[str, Vector]]) -> dict[str, Vector]:
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _draws(strata: list[NDArray[np.intp]], resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each case is drawn, float64[block, cases], by blocks of resamples."""
    rng = np.random.default_rng(seed)
    cases = sum(map(len, strata))
    size = max(1, _BLOCK // cases)
    for start in range(0, resamples, size):
        number = min(size, resamples - start)
        weights = np.zeros((number, cases))
        for members in strata:
            drawn = rng.integers(0, len(members), (number, len(members)))
            drawn += np.arange(number)[:, None] * len(members)
            counted = np.bincount(drawn.ravel(), minlength=number * len(members))
            weights[:, members] = counted.reshape(number, len(members))
        yield weights


class _Sorted:
    """A sample in order of risk, whose figures are computed for many weightings at once."""

    def __init__(self, truth: Vector, risk: Vector, threshold: float | None) -> None:
        self.order = np.argsort(risk, kind="stable")
        self.truth, self.risk = truth[self.order], risk[self.order]
        self.threshold = threshold
        self.ends = np.flatnonzero(np.diff(self.risk, append=np.inf) != 0)
        self.positives = float(truth.sum())
        self.negatives = len(truth) - self.positives

    def ranking(self, weights: NDArray[np.float64]) -> dict[str, Vector]:
        """Figures that need no probability.

        Args:
            weights: float64[resamples, cases], as many positives and negatives in each as in the sample.
        """
        weights = weights[:, self.order]
        hits = np.cumsum(weights * self.truth, axis=1)[:, self.ends]
        false = np.cumsum(weights, axis=1)[:, self.ends] - hits  # at or below each distinct risk
        new_hits, new_false = np.diff(hits, prepend=0.0), np.diff(false, prepend=0.0)
        outranked = np.sum(new_hits * (false - new_false / 2), axis=1)
        above = self.positives - hits + new_hits
        drawn = above + self.negatives - false + new_false
        precision = above / np.maximum(drawn, 1.0)  # drawn is 0 only where nothing is added
        found = {
            "auroc": outranked / (self.positives * self.negatives),
            "auprc": np.sum(new_hits * precision, axis=1) / self.positives,
        }
        return found if self.threshold is None else found | self._at_threshold(weights, self.threshold)

    def _at_threshold(self, weights: NDArray[np.float64], threshold: float) -> dict[str, Vector]:
        first = int(np.searchsorted(self.risk, threshold, side="left"))
        hits = weights[:, first:] @ self.truth[first:]
        alerted = weights[:, first:].sum(axis=1)
        false = alerted - hits
        sensitivity = hits / self.positives
        predictivity = hits / np.maximum(alerted, 1.0)
        return {
            "event1": np.minimum(sensitivity, predictivity),
            "sensitivity": sensitivity,
            "specificity": 1 - false / self.negatives,
            "positive_predictivity": predictivity,
            "accuracy": (hits + self.negatives - false) / len(self.truth),
        }

    def calibration(self, weights: NDArray[np.float64]) -> dict[str, Vector]:
        """Figures of a probability.

        Args:
            weights: float64[resamples, cases], as many cases in each as in the sample.
        """
        weights = weights[:, self.order]
        cases = len(self.truth)
        gaps = self.risk - self.truth
        columns = np.tile(np.arange(cases), len(weights))
        drawn = np.repeat(columns, weights.ravel().astype(np.intp)).reshape(len(weights), cases)
        bounds = _group_starts(cases)
        by_group = np.add.reduceat(gaps[drawn], bounds, axis=1)
        return {
            "brier": weights @ gaps**2 / cases,
            "ece": np.sum(np.abs(by_group), axis=1) / cases,
            "calibration_in_the_large": weights @ gaps / cases,
        }


def _group_starts(cases: int) -> NDArray[np.intp]:
    """Where the groups of `metrics.calibration_groups` begin."""
    sizes = [len(part) for part in np.array_split(np.arange(cases), metrics.BINS) if len(part)]
    return np.cumsum([0, *sizes[:-1]])


def _thinned(points: Vector) -> list[list[float]]:
    """Points of a curve at about equal distances along it, both ends included."""
    if len(points) > CURVE_POINTS:
        along = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(points, axis=0)).sum(axis=1))])
        wanted = np.linspace(0, along[-1], CURVE_POINTS)
        points = points[np.unique(np.searchsorted(along, wanted).clip(0, len(points) - 1))]
    return [[round(x, 4), round(y, 4)] for x, y in points.tolist()]
