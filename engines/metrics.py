"""How good risks are, in numpy. `died` is 1 or 0 and `risk` a probability, both of shape [stays].

Every function needs at least one of each outcome unless it says otherwise.
"""

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.floating]

BINS = 10
"""Groups of equal size for the calibration error; more make it noisier on a few hundred stays."""


def auroc(died: Vector, risk: Vector) -> float:
    """Area under the ROC curve: the chance that a death outranks a survivor, ties counting half."""
    _, place, size = np.unique(risk, return_inverse=True, return_counts=True)
    last = np.cumsum(size)
    rank = (last - (size - 1) / 2)[place]  # ranks from 1; tied risks share their mean rank
    deaths = float(np.sum(died))
    survivors = len(died) - deaths
    return float((np.sum(rank[died == 1]) - deaths * (deaths + 1) / 2) / (deaths * survivors))


def auprc(died: Vector, risk: Vector) -> float:
    """Average precision: precision at each threshold, weighted by the recall it adds."""
    precision, recall = _precision_recall(died, risk)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def sensitivity(died: Vector, risk: Vector, threshold: float) -> float:
    """Share of the deaths with a risk at or above the threshold."""
    return float(np.mean(risk[died == 1] >= threshold))


def specificity(died: Vector, risk: Vector, threshold: float) -> float:
    """Share of the survivors with a risk below the threshold."""
    return float(np.mean(risk[died == 0] < threshold))


def accuracy(died: Vector, risk: Vector, threshold: float) -> float:
    """Share of the stays on the right side of the threshold; any outcomes will do."""
    return float(np.mean((risk >= threshold) == (died == 1)))


def positive_predictivity(died: Vector, risk: Vector, threshold: float) -> float:
    """Share of deaths among the stays at or above the threshold; 0 where there is none."""
    above = died[risk >= threshold]
    return float(np.mean(above)) if len(above) else 0.0


def event1(died: Vector, risk: Vector, threshold: float) -> float:
    """The Challenge's first score: the smaller of sensitivity and positive predictivity."""
    return min(sensitivity(died, risk, threshold), positive_predictivity(died, risk, threshold))


def best_event1_threshold(died: Vector, risk: Vector) -> float:
    """The threshold of the best `event1` on these stays; to be fixed before others are judged."""
    precision, recall = _precision_recall(died, risk)
    return float(np.unique(risk)[::-1][int(np.argmax(np.minimum(precision, recall)))])


def brier(died: Vector, risk: Vector) -> float:
    """Mean squared difference of risk and outcome; any outcomes will do."""
    return float(np.mean((risk - died) ** 2))


def calibration_groups(died: Vector, risk: Vector, groups: int = BINS) -> Vector:
    """Mean risk, share of deaths and number of stays in groups of equal size, ordered by risk: [groups, 3].

    Fewer groups where there are fewer stays; any outcomes will do.
    """
    order = np.argsort(risk, kind="stable")
    parts = [part for part in np.array_split(order, groups) if len(part)]
    return np.array([(np.mean(risk[part]), np.mean(died[part]), len(part)) for part in parts])


def expected_calibration_error(died: Vector, risk: Vector, groups: int = BINS) -> float:
    """Mean over groups of equal size, ordered by risk, of |mean risk - share of deaths|."""
    mean_risk, share, size = calibration_groups(died, risk, groups).T
    return float(np.sum(np.abs(mean_risk - share) * size) / len(died))


def net_benefit(died: Vector, risk: Vector, threshold: float) -> float:
    """True positives less false positives, weighted by the odds of the threshold, per stay.

    A threshold of 0.2 says that one death caught is worth four survivors alerted on. Any outcomes will do.
    Vickers and Elkin, Medical Decision Making 2006;26:565-574.

    Args:
        threshold: above 0, below 1; stays at or above it are treated.
    """
    treated = risk >= threshold
    hits, false = np.sum(died[treated] == 1), np.sum(died[treated] == 0)
    return float((hits - false * threshold / (1 - threshold)) / len(died))


def roc_curve(died: Vector, risk: Vector) -> Vector:
    """False and true positive rate at each distinct risk as threshold, from (0, 0) to (1, 1): [points, 2]."""
    hits, count = _above(died, risk)
    rates = np.stack([(count - hits) / (count[-1] - hits[-1]), hits / hits[-1]], axis=1)
    return np.concatenate([np.zeros((1, 2)), rates])


def precision_recall_curve(died: Vector, risk: Vector) -> Vector:
    """Recall and precision at each distinct risk as threshold, to (1, share of deaths): [points, 2]."""
    precision, recall = _precision_recall(died, risk)
    return np.stack([recall, precision], axis=1)


def _precision_recall(died: Vector, risk: Vector) -> tuple[Vector, Vector]:
    """Precision and recall at each distinct risk as threshold, highest first."""
    hits, count = _above(died, risk)
    return hits / count, hits / hits[-1]


def _above(died: Vector, risk: Vector) -> tuple[Vector, Vector]:
    """Deaths and stays at or above each distinct risk, highest first."""
    order = np.argsort(-risk, kind="stable")
    ends = np.flatnonzero(np.diff(risk[order], append=-np.inf) != 0)
    return np.cumsum(died[order], dtype=np.float64)[ends], (ends + 1).astype(np.float64)
