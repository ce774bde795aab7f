"""The assessment of a risk model on stays with known outcomes: what goes into evaluation.json.

One function, `assess`, for risks out of fold at the end of training and for the risks of a served model.
"""

import csv
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from engines import judge, metrics, physionet2012
from engines.baselines import Baseline
from engines.engine import Engine
from engines.errors import DatasetError, RepositoryError
from engines.forecasts import Forecasts, forecast_errors
from engines.metrics import Vector
from engines.physionet2012 import Stay
from engines.repository import EVALUATION
from engines.robustness import Probe, Progress, robustness
from engines.steps import run_steps
from engines.subgroups import subgroups
from engines.verdict import verdict
from schemas.window import WINDOW_BINS, Rows, rows

HOURS = (6, 12, 24, 48)
"""Hours after admission at which risks are judged; hour h knows what was measured before h:00."""

DEFINITIONS = judge.FIGURES | {
    "hour": "risk from what was measured before this many hours after admission; all stays count",
    "difference": "the model's figure less the baseline's on the same stays, with its 95% interval from "
    "paired resamples",
    "mean_change": "mean of the risk with channels withheld less the risk without, over all hours",
    "mae": "mean absolute difference of the forecast and the last value of the hour that it is meant for",
    "carried_forward_mae": "the same for the last value known when the forecast was made",
}


TITLES = {
    "boosting": "gradient-boosted trees",
    "logistic": "logistic regression",
    "news2": "NEWS2",
    "saps1": "SAPS-I",
    "sofa": "SOFA",
}
"""Baselines in words."""


def assess(
    stays: Rows,
    died: NDArray[Any],
    risks: NDArray[np.floating],
    threshold: float,
    *,
    features: Sequence[str],
    baselines: Mapping[str, Baseline] | None = None,
    thresholds: Mapping[str, float] | None = None,
    forecasts: Forecasts | None = None,
    probe: Probe | None = None,
    progress: Progress | None = None,
    resamples: int = judge.RESAMPLES,
) -> dict[str, Any]:
    """Judge risks on stays whose outcomes are known; about 15 s for 4,000 stays, and what `probe` costs.

    Args:
        stays: float32[stays, 48, channels], of all channels, as `schemas.window.rows` makes them.
        died: [stays], 0 or 1, with both present.
        risks: float[stays, 48] at the end of each hour: out of fold in training, else the served model's.
        threshold: for event 1, fixed beforehand.
        features: names of the features that the model reads: robustness withholds no others.
        baselines: simpler scores of the same stays, from `baselines.compared`, in the order of the report.
        thresholds: theirs for event 1, by name, fixed as the model's was (`best_thresholds` in training, the
            shipped evaluation.json after it); a baseline without one has no event 1.
        forecasts: the forecasts made with these risks, where the model makes any.
        probe: how to score rows again for robustness; None leaves it out.
        progress: told (what, done, of).
        resamples: of the bootstrap.

    Returns:
        A part of evaluation.json, to which the caller adds model, data, method and the like:
        "event1_threshold"; "verdict": sentences; "hours": {"6": `judge.judged`, ...};
        "baselines": {name: {"title", "probability", "event1_threshold", "hours": {"48": judged without
        curves, and "difference": {figure: [model - baseline, low, high]}}}};
        "subgroups": `subgroups.subgroups`; "trajectories": `trajectories`;
        "robustness": `robustness.robustness`; "forecast": `forecasts.forecast_errors`;
        "metrics": what the figures mean.

    Raises:
        DatasetError: outcomes are all the same.
    """
    died = np.asarray(died, dtype=np.float64)
    if set(np.unique(died)) != {0.0, 1.0}:
        raise DatasetError(f"judging needs deaths and survivors: of {len(died)} stays {int(died.sum())} died")
    risks = np.asarray(risks, dtype=np.float64)
    compared = baselines or {}
    tell = progress or _untold
    hours: dict[str, Any] = {}
    simpler: dict[str, Any] = {
        name: _introduced(name, baseline, (thresholds or {}).get(name)) for name, baseline in compared.items()
    }
    for done, hour in enumerate(HOURS, start=1):
        risk = risks[:, hour - 1]
        model = _Judged(died, risk, threshold, resamples)
        hours[str(hour)] = model.content
        for name, baseline in compared.items():
            found = _beside(model, baseline, hour, simpler[name]["event1_threshold"])
            if found is not None:
                simpler[name]["hours"][str(hour)] = found
        tell("judging", done, len(HOURS))
    content: dict[str, Any] = {
        "event1_threshold": threshold,
        "verdict": verdict(hours, simpler),
        "hours": hours,
        "baselines": simpler,
        "subgroups": subgroups(stays, died, risks[:, -1], threshold, resamples),
        "trajectories": trajectories(died, risks),
    }
    if probe is not None:
        content["robustness"] = robustness(stays, died, features, probe, tell, resamples)
    if forecasts is not None:
        content["forecast"] = forecast_errors(stays, forecasts, resamples)
    return content | {"metrics": DEFINITIONS}


def best_thresholds(died: NDArray[Any], baselines: Mapping[str, Baseline]) -> dict[str, float]:
    """Each baseline's threshold of the best event 1 at 48 hours on these stays, fixed when the model's is."""
    found = {}
    for name, baseline in baselines.items():
        risk = baseline.risk[:, -1].astype(np.float64)
        known = np.isfinite(risk)
        found[name] = round(
            metrics.best_event1_threshold(np.asarray(died, np.float64)[known], risk[known]), 4
        )
    return found


def trajectories(died: Vector, risks: Vector) -> dict[str, Any]:
    """Risk over time by outcome.

    Returns:
        {"hours": [1 ... 48], "deaths" and "survivors": {"n", "low", "median", "high": quartiles by hour}}.
    """
    found: dict[str, Any] = {"hours": list(range(1, WINDOW_BINS + 1))}
    for name, outcome in (("deaths", 1), ("survivors", 0)):
        inside = risks[died == outcome]
        quartiles = np.quantile(inside, (0.25, 0.5, 0.75), axis=0).round(4).tolist()
        found[name] = {"n": len(inside), **dict(zip(("low", "median", "high"), quartiles, strict=True))}
    return found


class _Judged:
    """The model at one hour, with what paired differences need of it."""

    def __init__(self, died: Vector, risk: Vector, threshold: float, resamples: int) -> None:
        self.died, self.risk, self.threshold, self.resamples = died, risk, threshold, resamples
        self.figures = judge.figures_of(died, risk, threshold)
        self.replicates = judge.replicated(died, risk, threshold, resamples=resamples)
        self.content = judge.judged(died, risk, threshold, replicates=self.replicates)


def _introduced(name: str, baseline: Baseline, threshold: float | None) -> dict[str, Any]:
    return {
        "title": TITLES.get(name, name),
        "probability": baseline.probability,
        "event1_threshold": threshold,
        "hours": {},
    }


def _beside(model: _Judged, baseline: Baseline, hour: int, threshold: float | None) -> dict[str, Any] | None:
    """A baseline at one hour, on the stays for which it exists; None where they are too alike to judge."""
    risk = baseline.risk[:, hour - 1].astype(np.float64)
    known = np.isfinite(risk)
    if len(np.unique(model.died[known])) < 2:
        return None
    ours = model
    if not known.all():
        ours = _Judged(model.died[known], model.risk[known], model.threshold, model.resamples)
    died, risk, likely = ours.died, risk[known], baseline.probability
    replicates = judge.replicated(died, risk, threshold, probability=likely, resamples=model.resamples)
    found = judge.judged(died, risk, threshold, probability=likely, curves=False, replicates=replicates)
    figures = judge.figures_of(died, risk, threshold, probability=likely)
    found["difference"] = {
        name: judge.difference(ours.replicates, replicates, ours.figures[name], figures[name], name)
        for name in ("auroc", "auprc", "event1", "brier")
        if name in figures
    }
    return found


def _untold(what: str, done: int, of: int) -> None:
    """For callers that want no progress."""


def event1_threshold(repository: Path, name: str) -> float:
    """The threshold fixed when the model was made.

    Raises:
        RepositoryError: the model's evaluation.json is missing or names none.
    """
    path = repository / name / EVALUATION
    try:
        threshold = json.loads(path.read_bytes())["event1_threshold"]
        if not 0 <= threshold <= 1:
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RepositoryError(f"{path} must have a number from 0 to 1 as event1_threshold") from error
    return float(threshold)


def pretty(content: object) -> bytes:
    """Indented JSON, with each list of numbers on one line."""
    indented = msgspec.json.format(msgspec.json.encode(content), indent=2).decode()
    return _NUMBERS.sub(lambda found: " ".join(found[0].split()), indented).encode() + b"\n"


_NUMBERS = re.compile(r"\[\n[-+.,\deE\s]*\n\s*\]")
"""A list of numbers over several lines; a line break never stands inside a JSON string."""


def write_report(content: dict[str, Any], path: Path) -> None:
    """Write a report as indented JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pretty(content))


def figures(
    died: NDArray[np.floating], risks: NDArray[np.floating], threshold: float
) -> dict[str, dict[str, float | int]]:
    """Every metric at every judged hour.

    Args:
        died: [stays], 0 or 1, with both present.
        risks: [stays, 48] at the end of each hour.
        threshold: for event 1.
    """
    found = {}
    for hour in HOURS:
        risk = risks[:, hour - 1]
        found[str(hour)] = {
            "stays": len(died),
            "deaths": int(died.sum()),
            "auroc": round(metrics.auroc(died, risk), 4),
            "auprc": round(metrics.auprc(died, risk), 4),
            "event1": round(metrics.event1(died, risk, threshold), 4),
            "sensitivity": round(metrics.sensitivity(died, risk, threshold), 4),
            "positive_predictivity": round(metrics.positive_predictivity(died, risk, threshold), 4),
            "brier": round(metrics.brier(died, risk), 4),
            "ece": round(metrics.expected_calibration_error(died, risk), 4),
        }
    return found


BLOCK = 512
"""Stays made into rows at a time: 48 hours of 41 channels are 24 kB a stay."""


def served_risks(
    engine: Engine, stays: list[Stay], on_stays: Callable[[int], None] | None = None
) -> NDArray[np.float32]:
    """The served model's risk at the end of each hour, float32[stays, 48]."""
    blocks = []
    for start in range(0, len(stays), BLOCK):
        block = stays[start : start + BLOCK]
        made = [rows(*physionet2012.bins(physionet2012.clean(stay), 0, WINDOW_BINS)) for stay in block]
        stacked = Rows(*(np.stack(arrays) for arrays in zip(*made, strict=True)))
        blocks.append(run_steps(engine, stacked))
        if on_stays is not None:
            on_stays(len(block))
    return np.concatenate(blocks)


def report(engine: Engine, stays: list[Stay], risks: NDArray[np.float32], threshold: float) -> dict[str, Any]:
    """The evaluation report.

    Raises:
        DatasetError: no outcomes, or all the same.
    """
    judged = [i for i, stay in enumerate(stays) if stay.outcome is not None]
    died = np.array([stays[i].outcome for i in judged], dtype=np.float64)
    if not judged or died.min() == died.max():
        raise DatasetError(
            f"judging needs deaths and survivors: of {len(stays)} stays {len(judged)} have an outcome, "
            f"{int(died.sum())} of them deaths. Without outcomes, ask for --predictions and no --report"
        )
    config = engine.config
    return {
        "model": {
            "name": config.name,
            "version": config.version,
            "digest": config.digest,
            "outcome": config.outcome,
        },
        "backend": engine.backend,
        "data": physionet2012.described(stays),
        "event1_threshold": threshold,
        "hours": figures(died, risks[judged].astype(np.float64), threshold),
        "metrics": DEFINITIONS,
    }


def write_predictions(stays: list[Stay], risks: NDArray[np.float32], path: Path) -> None:
    """Write a CSV with the columns stay, hour (1 to 48) and risk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("stay", "hour", "risk"))
        for stay, series in zip(stays, risks, strict=True):
            writer.writerows((stay.record, hour, f"{risk:.7g}") for hour, risk in enumerate(series, start=1))
