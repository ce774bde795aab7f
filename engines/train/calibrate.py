"""What turns averaged logits into probabilities and probabilities into an alert policy."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.model_config import Level, Policy
from schemas.window import HOUR_MS

F64 = NDArray[np.float64]

HOUR_S = HOUR_MS // 1000

FIRST_HOUR = 6
"""Hours before this are not calibrated on: little is known of a stay, and nobody is judged there."""

SURVIVORS_ALERTED = 0.33
"""Share of survivors that the first level may ever alert on, out of fold."""

PERSISTENCE_H = 5
"""Hours that the first level holds before it alerts: the fewest with which four of five deaths are found at
`SURVIVORS_ALERTED` (docs/backtest.md). The second level is there for those who cannot wait."""

HIGH_PRECISION = 0.5
"""Share of deaths among the stays that the second level alerts on, out of fold."""


class Platt(NamedTuple):
    """probability = sigmoid(slope * logit + intercept)"""

    slope: float
    intercept: float

    def __call__(self, logits: NDArray[np.floating]) -> F64:
        """Probabilities of the logits' shape."""
        return np.asarray(1 / (1 + np.exp(-(self.slope * logits.astype(np.float64) + self.intercept))))


def platt(logits: NDArray[np.floating], died: NDArray[np.floating]) -> Platt:
    """Maximum likelihood over hours from `FIRST_HOUR`, by Newton's method.

    Args:
        logits: [stays, hours], out of fold.
        died: [stays], 0 or 1.
    """
    x = logits[:, FIRST_HOUR - 1 :].astype(np.float64)
    y = np.broadcast_to(died[:, None], x.shape)
    design = np.stack([x.ravel(), np.ones(x.size)], axis=1)
    theta = np.array([1.0, 0.0])
    for _ in range(25):
        p = 1 / (1 + np.exp(-design @ theta))
        hessian = (design * (p * (1 - p))[:, None]).T @ design
        theta = theta - np.linalg.solve(hessian, design.T @ (p - y.ravel()))
    return Platt(float(theta[0]), float(theta[1]))


def ever_alerted(risks: F64, enter: float, hours: int) -> NDArray[np.bool_]:
    """Stays whose risk is at or above `enter` at the end of `hours` consecutive hours or more.

    Args:
        risks: [stays, hours] at the end of each hour.
        enter: threshold.
        hours: 1 for persistence under an hour, 2 for an hour.
    """
    above = risks >= enter
    held = above[:, hours - 1 :].copy()
    for back in range(1, hours):
        held &= above[:, hours - 1 - back : above.shape[1] - back]
    return np.asarray(held.any(axis=1))


class Operating(NamedTuple):
    """How a level does out of fold, over whole stays."""

    enter: float
    recall: float
    precision: float
    survivors_alerted: float


def operating(risks: F64, died: NDArray[np.floating], enter: float, hours: int) -> Operating:
    """The operating point of a threshold."""
    alerted = ever_alerted(risks, enter, hours)
    dead = died == 1
    precision = float(np.mean(dead[alerted])) if alerted.any() else 0.0
    return Operating(enter, float(np.mean(alerted[dead])), precision, float(np.mean(alerted[~dead])))


def choose_policy(risks: F64, died: NDArray[np.floating]) -> tuple[Policy, tuple[Operating, Operating]]:
    """A model's first policy, from risks out of fold at the end of each hour.

    The first level enters at the lowest half percent at which at most `SURVIVORS_ALERTED` of the survivors
    are ever alerted on, the second at the lowest one above it at which `HIGH_PRECISION` of those alerted on
    die. Between the ends of hours risks may rise and fall unseen: `riskstream backtest --ship`, which follows
    the same rule record by record, puts the policy in its place that is served.
    """
    grid = [round(0.005 * step, 3) for step in range(10, 180)]
    points = [operating(risks, died, enter, hours=PERSISTENCE_H + 1) for enter in grid]
    elevated = next(p for p in points if p.survivors_alerted <= SURVIVORS_ALERTED)
    above = [operating(risks, died, enter, hours=1) for enter in grid if enter > elevated.enter]
    high = next((p for p in above if p.precision >= HIGH_PRECISION), above[-1])
    policy = Policy(
        version="1",
        levels=(
            Level("elevated", elevated.enter, persistence_s=float(PERSISTENCE_H * HOUR_S)),
            Level("high", high.enter, persistence_s=HOUR_S / 2),
        ),
        exit=round(0.7 * elevated.enter, 4),
        resolve_s=2.0 * HOUR_S,
        refractory_s=4.0 * HOUR_S,
        update_delta=0.15,
        expiry_s=12.0 * HOUR_S,
    )
    return policy, (elevated, high)
