"""How a risk does in groups of patients: by age, sex and type of intensive-care unit."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines import judge
from engines.metrics import Vector
from schemas.features import CHANNEL
from schemas.window import NEVER, Rows

AGES = (0, 45, 65, 75, 85)
"""Where the bands of age begin, years."""

SEXES = {1.0: "men", 0.0: "women"}
UNITS = {1.0: "coronary care", 2.0: "cardiac surgery recovery", 3.0: "medical", 4.0: "surgical"}

FEWEST = 10
"""Deaths, and survivors, without which a group's figures would say nothing."""


def subgroups(
    stays: Rows, died: Vector, risk: Vector, threshold: float, resamples: int = judge.RESAMPLES
) -> list[dict[str, Any]]:
    """Every group with at least one stay.

    Args:
        stays: rows of all channels, float32[stays, steps, channels].
        died: float64[stays], 0 or 1.
        risk: float64[stays], a probability.
        threshold: for event 1, that of the whole.
        resamples: of the bootstrap.

    Returns:
        By age, sex and type of unit: {"by", "group", "n", "positives", "judged": `judge.judged` without
        curves, or None where fewer than `FEWEST` died or survived}.
    """
    found = []
    for by, group, inside in _groups(stays):
        died_here = died[inside]
        positives = int(died_here.sum())
        enough = FEWEST <= positives <= len(died_here) - FEWEST
        found.append(
            {
                "by": by,
                "group": group,
                "n": len(died_here),
                "positives": positives,
                "judged": judge.judged(died_here, risk[inside], threshold, curves=False, resamples=resamples)
                if enough
                else None,
            }
        )
    return found


def _groups(stays: Rows) -> list[tuple[str, str, NDArray[np.bool_]]]:
    age, sex, unit = (_static(stays, name) for name in ("age", "sex", "icu_type"))
    found = [("age", _band(number), _in_band(age, number)) for number in range(len(AGES))]
    found += [("sex", name, sex == code) for code, name in SEXES.items()]
    found += [("unit", name, unit == code) for code, name in UNITS.items()]
    known = {"age": age, "sex": sex, "unit": unit}
    found += [(by, "not recorded", np.isnan(values)) for by, values in known.items()]
    order = list(known)
    kept = [group for group in found if group[2].any()]
    return sorted(kept, key=lambda group: order.index(group[0]))


def _band(number: int) -> str:
    if number == 0:
        return f"under {AGES[1]}"
    return (
        f"{AGES[number]} to {AGES[number + 1] - 1}" if number + 1 < len(AGES) else f"{AGES[number]} or older"
    )


def _in_band(age: Vector, number: int) -> NDArray[np.bool_]:
    last = number + 1 == len(AGES)
    return np.asarray((age >= AGES[number]) & (last or age < AGES[min(number + 1, len(AGES) - 1)]))


def _static(stays: Rows, name: str) -> Vector:
    """float64[stays], NaN where it is not known."""
    channel = CHANNEL[name]
    known = stays.elapsed[:, -1, channel] < NEVER
    return np.where(known, stays.values[:, -1, channel].astype(np.float64), np.nan)
