"""The assessment of a risk model on stays with known outcomes: what goes into evaluation.json.

One function, `assess`, for risks out of fold at the end of training and for the risks of a served model.
"""

import platform
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from engines import judge, metrics
from engines.baselines import Baseline
from engines.errors import DatasetError, RepositoryError
from engines.forecasts import Forecasts, forecast_errors
from engines.metrics import Vector
from engines.repository import EVALUATION, companions
from engines.robustness import Probe, Progress, robustness
from engines.subgroups import subgroups
from engines.verdict import verdict
from schemas.model_config import ModelConfig
from schemas.window import WINDOW_BINS, Rows

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


def shipped(repository: Path, config: ModelConfig) -> dict[str, Any]:
    """The model's own evaluation.json; empty where it has none, as a model brought from elsewhere.

    One that names another graph's digest is of an earlier version, and says nothing of this one: empty too.

    Raises:
        RepositoryError: it cannot be read, or is no JSON object.
    """
    path = companions(repository, config) / EVALUATION
    if not path.exists():
        return {}
    try:
        found = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError) as error:
        raise RepositoryError(f"{path} must be a JSON object: {error}") from error
    model = found.get("model")
    known = model.get("digest", config.digest) if isinstance(model, dict) else config.digest
    return found if known == config.digest else {}


def event1_threshold(repository: Path, config: ModelConfig) -> tuple[float, str]:
    """The threshold fixed when the model was made, and where it is from.

    A model without an evaluation.json of its own is judged at its policy's first level.

    Raises:
        RepositoryError: the model's evaluation.json cannot be read or names none.
    """
    found = shipped(repository, config)
    if not found:
        return config.policy.levels[0].enter, "the alert policy's first level"
    threshold = found.get("event1_threshold")
    if not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        path = companions(repository, config) / EVALUATION
        raise RepositoryError(f"{path} must have a number from 0 to 1 as event1_threshold")
    return float(threshold), f"the model's {EVALUATION}"


def reproduction(command: str, packages: Sequence[str] = ("numpy", "onnxruntime")) -> dict[str, Any]:
    """How a report came about: the command and the versions that computed it.

    Args:
        command: as one would type it.
        packages: whose versions matter beside riskstream's and Python's.
    """
    found = {"python": platform.python_version()}
    for package in ("riskstream", *packages):
        found[package] = metadata.version(package)
    return {"command": command, "versions": found, "machine": platform.machine()}


def pretty(content: object) -> bytes:
    """Indented JSON, with each list of numbers on one line."""
    indented = msgspec.json.format(msgspec.json.encode(content), indent=2).decode()
    return _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", indented).encode() + b"\n"


_NUMBERS = re.compile(r"\[(\n[-+.,\deE\s]*\n\s*)\]")
"""A list of numbers over several lines; a line break never stands inside a JSON string."""


def write_report(content: dict[str, Any], path: Path) -> None:
    """Write a report as indented JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pretty(content))
