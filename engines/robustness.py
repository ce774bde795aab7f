"""What a risk is worth when channels are missing: a sensor off, no laboratory, half of what was charted."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines import judge
from engines.metrics import Vector
from schemas.features import CHANNEL, FEATURES, IS_STATIC, STATIC
from schemas.window import FILL, NEVER, Rows, rows

Progress = Callable[[str, int, int], None]
"""Told (what, done, of)."""

VITALS = (
    "heart_rate",
    "respiratory_rate",
    "oxygen_saturation",
    "temperature",
    "systolic_pressure",
    "diastolic_pressure",
    "mean_pressure",
    "systolic_pressure_invasive",
    "diastolic_pressure_invasive",
    "mean_pressure_invasive",
    "gcs",
    "fio2",
    "mechanical_ventilation",
    "urine_output",
)
"""Bedside channels, each withheld in turn."""

CUFF = ("systolic_pressure", "diastolic_pressure", "mean_pressure")
INVASIVE = tuple(f"{name}_invasive" for name in CUFF)
LABORATORY = tuple(
    feature.name
    for feature in FEATURES
    if feature.kind == "series" and feature.name not in (*VITALS, "weight")
)

GROUPS: dict[str, tuple[str, ...]] = {
    "all pressures by cuff": CUFF,
    "all invasive pressures": INVASIVE,
    "all pressures": (*CUFF, *INVASIVE),
    "GCS and urine output": ("gcs", "urine_output"),
    "all laboratory values": LABORATORY,
    "age, sex, height and type of unit": tuple(FEATURES[channel].name for channel in STATIC),
}
"""Channels withheld together."""

_WORDS = {"gcs": "GCS", "fio2": "FiO2"}

HALVED = "half of all observations, at random"
SEED = 48


class Probe(NamedTuple):
    """How stays are scored again with channels withheld.

    risk_of: rows of the stays, float32[n, 48, channels] of all channels, to risks float[n, 48]; each stay
        must be scored as it was for the risks that are judged: out of fold, in training.
    stays: numbers of the stays that it scores, in this order; robustness is judged on these alone.
    note: what these stays are, for the report.
    """

    risk_of: Callable[[Rows], NDArray[np.floating]]
    stays: NDArray[np.intp]
    note: str


def robustness(
    stays: Rows,
    died: Vector,
    features: Sequence[str],
    probe: Probe,
    progress: Progress | None = None,
    resamples: int = judge.RESAMPLES,
) -> dict[str, Any]:
    """Figures at 48 hours with channels withheld, each scored anew.

    Args:
        stays: rows of all stays and channels, float32[stays, 48, channels].
        died: float64[stays], 0 or 1, with both present among the probe's.
        features: what the model reads; what it does not read is not withheld.
        probe: how to score.
        progress: told (what, done, of).
        resamples: of the bootstrap.

    Returns:
        {"n", "positives", "note", "withheld": [{"withheld": words, "channels": names, "auroc", "auprc",
        "auroc_difference", "auprc_difference": [with them withheld - with all, low, high] (paired),
        "mean_change", "mean_absolute_change": of the risk over all hours}]}; nothing withheld comes first.
    """
    chosen = Rows(*(array[probe.stays] for array in stays))
    truth = died[probe.stays]
    plan = scenarios(features)
    full = np.asarray(probe.risk_of(chosen), dtype=np.float64)
    found = [_judged("nothing", (), truth, full, full, resamples)]
    for done, (words, names) in enumerate(plan, start=1):
        changed = halved(chosen) if words == HALVED else withheld(chosen, names)
        risks = np.asarray(probe.risk_of(changed), dtype=np.float64)
        found.append(_judged(words, names, truth, risks, full, resamples))
        if progress is not None:
            progress("withholding channels", done, len(plan))
    return {"n": len(truth), "positives": int(truth.sum()), "note": probe.note, "withheld": found}


def scenarios(features: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """What is withheld from a model that reads `features`: (words, channel names)."""
    found: list[tuple[str, tuple[str, ...]]] = []
    found += [(_WORDS.get(name, name.replace("_", " ")), (name,)) for name in VITALS if name in features]
    for words, names in GROUPS.items():
        read = tuple(name for name in names if name in features)
        if len(read) > 1:
            found.append((words, read))
    return [*found, (HALVED, ())]


def withheld(stays: Rows, names: Sequence[str]) -> Rows:
    """The rows as they would be had these channels never been measured."""
    channels = [CHANNEL[name] for name in names]
    out = Rows(*(array.copy() for array in stays))
    out.values[..., channels] = FILL[channels]
    out.elapsed[..., channels] = NEVER
    out.counts[..., channels] = 0
    return out


def halved(stays: Rows, seed: int = SEED) -> Rows:
    """The rows had each hour's measurements of each channel been lost with probability 1/2; statics stay."""
    rng = np.random.default_rng(seed)
    series = ~np.array(IS_STATIC)
    out = Rows(*(array.copy() for array in stays))
    for number in range(len(stays.values)):
        counts = stays.counts[number] * (rng.random(stays.counts.shape[1:]) < 0.5)
        made = rows(stays.values[number], counts, np.full(len(STATIC), np.nan, np.float32))
        for array, new in zip(out, made, strict=True):
            array[number][:, series] = new[:, series]
    return out


def _judged(
    words: str, names: Sequence[str], truth: Vector, risks: Vector, full: Vector, resamples: int
) -> dict[str, Any]:
    last, whole = risks[:, -1], full[:, -1]
    ours = judge.replicated(truth, last, None, probability=False, resamples=resamples)
    theirs = judge.replicated(truth, whole, None, probability=False, resamples=resamples)
    figures = judge.figures_of(truth, last, None, probability=False)
    before = judge.figures_of(truth, whole, None, probability=False)
    change = risks - full
    found: dict[str, Any] = {"withheld": words, "channels": list(names)}
    found |= {name: round(figure, 4) for name, figure in figures.items()}
    found |= {
        f"{name}_difference": judge.difference(ours, theirs, figure, before[name], name)
        for name, figure in figures.items()
    }
    return found | {
        "mean_change": round(float(change.mean()), 4),
        "mean_absolute_change": round(float(np.abs(change).mean()), 4),
    }
