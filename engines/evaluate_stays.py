"""A served series model judged on stays: numpy and the engine only, with the baselines that it ships."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines import baselines, evaluate, physionet2012
from engines.engine import Engine
from engines.errors import DatasetError
from engines.forecasts import Forecasts
from engines.physionet2012 import Stay
from engines.repository import BASELINES, companions
from engines.robustness import Probe, Progress
from engines.steps import Prediction, run_stays
from schemas.model_config import ModelConfig
from schemas.window import CHANNELS, WINDOW_BINS, Rows, rows

PROBED, PROBED_WINDOWS = 4000, 500
"""Stays that robustness scores again, at most, some twenty times each: of a model that carries a state, and
of one that reads a whole window for every hour, which costs 48 times as much arithmetic."""


SEEN = (
    "The model was trained on this very data: the figures are far better than on other patients. Those of "
    "its cross-validation are beside them."
)


def rows_of(stays: Sequence[Stay], progress: Progress | None = None) -> Rows:
    """The first 48 hours of every stay, float32[stays, 48, channels]: 24 kB a stay."""
    shape = (len(stays), WINDOW_BINS, CHANNELS)
    out = Rows(*(np.empty(shape, dtype=np.float32) for _ in Rows._fields))
    for number, stay in enumerate(stays):
        made = rows(*physionet2012.bins(physionet2012.clean(stay), 0, WINDOW_BINS))
        for array, new in zip(out, made, strict=True):
            array[number] = new
        if progress is not None and number % 100 == 99:
            progress("reading stays", number + 1, len(stays))
    return out


def served(engine: Engine, stays: Rows, progress: Progress | None = None) -> Prediction:
    """What the model says at the end of each hour: arrays of [stays, 48, ...]."""
    done = 0

    def on_batch(number: int) -> None:
        nonlocal done
        done += number
        if progress is not None:
            progress("scoring stays", done, len(stays.values))

    return run_stays(engine, stays, on_batch)


def report(
    engine: Engine,
    repository: Path,
    stays: Sequence[Stay],
    made: Rows,
    predicted: Prediction,
    progress: Progress | None = None,
    *,
    probed: bool = True,
) -> dict[str, Any]:
    """The evaluation of a served model: `evaluate.assess`, with what it was judged on.

    Args:
        engine: the model, of `repository`.
        repository: folder of model folders, where baselines and thresholds lie.
        stays: as read; those without an outcome are not judged.
        made: `rows_of` them.
        predicted: `served` on them.
        progress: told (what, done, of).
        probed: whether channels are withheld in turn, which takes most of the time.

    Raises:
        DatasetError: no outcomes, or all the same.
        RepositoryError: a file of the model's folder is damaged.
    """
    config = engine.config
    judged = np.array([i for i, stay in enumerate(stays) if stay.outcome is not None], dtype=np.intp)
    died = np.array([stays[i].outcome for i in judged], dtype=np.float64)
    if not len(judged) or died.min() == died.max():
        raise DatasetError(
            f"judging needs deaths and survivors: of {len(stays)} stays {len(judged)} have an outcome, "
            f"{int(died.sum())} of them deaths. Without outcomes, ask for --predictions alone"
        )
    known = [stays[i] for i in judged]
    part = Rows(*(array[judged] for array in made))
    threshold, source = evaluate.event1_threshold(repository, config)
    data = physionet2012.described(list(stays))
    shipped = evaluate.shipped(repository, config)
    about: dict[str, Any] = {
        "model": {
            "name": config.name,
            "version": config.version,
            "kind": config.kind,
            "digest": config.digest,
            "outcome": config.outcome,
            "features": list(config.features),
        },
        "backend": engine.backend,
        "data": data,
        "method": "the model as it is served, hour by hour, on every stay of the data that has an outcome",
        "event1_threshold_from": source,
    }
    found = evaluate.assess(
        part,
        died,
        predicted.risk[judged],
        threshold,
        features=config.features,
        baselines=_baselines(companions(repository, config), known, part),
        thresholds=_thresholds(shipped),
        forecasts=_forecasts(config, predicted, judged),
        probe=_probe(engine, len(judged)) if probed else None,
        progress=progress,
    )
    if shipped.get("data", {}).get("digest") == data["digest"]:
        found["verdict"].insert(0, SEEN)
    if config.outcome != physionet2012.OUTCOME:
        found["verdict"].insert(
            0,
            f"The model predicts {config.outcome}; these data record {physionet2012.OUTCOME}. Every figure "
            "is against that, and says nothing of what the model is for.",
        )
    return about | found | {"expected": _expected(shipped)}


def _baselines(folder: Path, stays: list[Stay], made: Rows) -> dict[str, baselines.Baseline]:
    file = folder / BASELINES
    learned = baselines.learned(baselines.load(file), made) if file.is_file() else {}
    return baselines.compared(stays, made, learned)


def _thresholds(shipped: dict[str, Any]) -> dict[str, float]:
    """The baselines' thresholds as they were fixed with the model; none where it ships no evaluation."""
    return {
        name: float(baseline["event1_threshold"])
        for name, baseline in shipped.get("baselines", {}).items()
        if baseline.get("event1_threshold") is not None
    }


def _expected(shipped: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The figures that the model was shipped with, by hour."""
    names = ("auroc", "auprc", "event1", "ece")
    return {
        hour: {name: judged[name] for name in names if name in judged}
        for hour, judged in shipped.get("hours", {}).items()
    }


def _forecasts(config: ModelConfig, predicted: Prediction, judged: NDArray[np.intp]) -> Forecasts | None:
    if config.forecast is None or predicted.forecast is None:
        return None
    return Forecasts(config.forecast.features, predicted.forecast[judged], config.forecast.horizon_s)


def _probe(engine: Engine, number: int) -> Probe:
    """Scores the judged stays again; evenly spread ones where there are too many."""
    most = PROBED if engine.config.state or engine.config.kind == "features" else PROBED_WINDOWS
    chosen = np.unique(np.linspace(0, number - 1, min(number, most)).astype(np.intp))
    note = "all judged stays" if len(chosen) == number else f"{len(chosen):,} of {number:,} judged stays"
    return Probe(lambda changed: run_stays(engine, changed).risk, chosen, note)


def write_predictions(stays: Sequence[Stay], risks: NDArray[np.float32], path: Path) -> None:
    """Write a CSV with the columns stay, hour (1 to 48) and risk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("stay", "hour", "risk"))
        for stay, series in zip(stays, risks, strict=True):
            writer.writerows((stay.record, hour, f"{risk:.7g}") for hour, risk in enumerate(series, start=1))
