"""How good a served model is on stays with known outcomes; numpy and the engine only."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from engines import metrics, physionet2012
from engines.engine import Engine
from engines.errors import DatasetError, RepositoryError
from engines.physionet2012 import Stay
from engines.repository import EVALUATION
from engines.steps import run_steps
from schemas.window import WINDOW_BINS, Rows, rows

HOURS = (6, 12, 24, 48)
"""Hours after admission at which risks are judged; hour h knows what was measured before h:00."""

DEFINITIONS = {
    "auroc": "area under the ROC curve; ties count half",
    "auprc": "average precision: sum over thresholds of precision times the recall added",
    "event1": "smaller of sensitivity and positive predictivity at event1_threshold (risk at or above it)",
    "brier": "mean squared difference of risk and outcome",
    "ece": f"mean |mean risk - share of deaths| over {metrics.BINS} groups of equal size, ordered by risk",
    "hour": "risk from what was measured before this many hours after admission; all stays count",
}

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


def write_report(content: dict[str, Any], path: Path) -> None:
    """Write a report as indented JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")


def write_predictions(stays: list[Stay], risks: NDArray[np.float32], path: Path) -> None:
    """Write a CSV with the columns stay, hour (1 to 48) and risk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("stay", "hour", "risk"))
        for stay, series in zip(stays, risks, strict=True):
            writer.writerows((stay.record, hour, f"{risk:.7g}") for hour, risk in enumerate(series, start=1))
