"""How far one engine's answers lie from another's, and how many decisions that changes.

A decision is whether a risk stands at or above a threshold of the model's alert policy.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines import evaluate_images, physionet2012, repository
from engines.engine import F32, Engine
from engines.errors import DatasetError
from engines.evaluate_stays import rows_of
from engines.physionet2012 import Stay
from engines.precision import to_fp16
from engines.steps import run_steps
from schemas.model_config import ModelConfig

Progress = Callable[[str, int, int], None]
"""Told (what, done, of)."""

Content = dict[str, Any]


class Pair(NamedTuple):
    """Two engines of one model."""

    reference: Engine
    other: Engine


def fp16_pair(models: Path, name: str) -> Pair:
    """A model as it is served, and its graph converted to fp16, both on ONNX Runtime.

    ONNX Runtime computes in fp32 where it has no fp16 kernel for this CPU, on values and weights that were
    rounded to fp16: the drift is that of the types, not of a GPU's arithmetic.

    Raises:
        EngineError: the model cannot be loaded or converted.
    """
    reference = repository.load(models, name)
    graph = repository.read_graph(models, reference.config)
    return Pair(reference, repository.open_engine(reference.config, to_fp16(graph)))


def on_golden(pair: Pair, models: Path) -> Content:
    """Differences of every output on the model's golden inputs: "max", "mean", "relative" to the largest."""
    config = pair.reference.config
    golden = repository.golden_of(models, config)
    inputs = {key.removeprefix("in/"): array for key, array in golden.items() if key.startswith("in/")}
    expected, came = pair.reference.run(inputs), pair.other.run(inputs)
    found = {}
    for name, array in expected.items():
        apart = np.abs(array.astype(np.float64) - came[name])
        largest = float(np.abs(array).max(initial=0.0))
        found[name] = _spread(apart) | {"relative": float(apart.max()) / largest if largest else 0.0}
    return {"rows": len(next(iter(inputs.values()))), "outputs": found}


def on_stays(pair: Pair, stays: list[Stay], source: str, progress: Progress) -> Content:
    """Differences of the risk at the end of each of 48 hours, carried states and all."""
    made = rows_of(stays, progress)
    risks = []
    for what, engine in zip(("reference", "compared"), pair, strict=True):
        done = 0

        def on_batch(number: int, what: str = what) -> None:
            nonlocal done
            done += number
            progress(f"scoring stays, {what}", done, len(stays))

        risks.append(run_steps(engine, made, on_batch))
    content = risk_drift(pair.reference.config, risks[0], risks[1])
    apart = np.abs(risks[0].astype(np.float64) - risks[1])
    hours = {str(hour): _spread(column) for hour, column in enumerate(apart.T, start=1)}
    return {"source": source, "stays": len(stays), **content, "hours": hours}


def on_data(pair: Pair, source: str, progress: Progress) -> Content:
    """Differences on `physionet2012:DIR`, `medmnist:FILE` or `images:DIR`, as the model's kind asks.

    Raises:
        DatasetError: the data cannot be read, or are of another kind.
    """
    config = pair.reference.config
    if (config.kind == "image") != evaluate_images.is_source(source):
        raise DatasetError(
            f"{config.name} is of kind {config.kind}: {source.partition(':')[0]} does not fit it"
        )
    named = source.partition(":")[0]
    if config.kind != "image":
        return on_stays(pair, physionet2012.read(physionet2012.parse_source(source)), named, progress)
    images = evaluate_images.read_source(source, labelled=False)
    risks = [evaluate_images.risk_of(config, evaluate_images.predict(engine, images)) for engine in pair]
    return {"source": named, "images": len(images), **risk_drift(config, risks[0], risks[1])}


def risk_drift(
    config: ModelConfig, reference: F32 | NDArray[np.float64], other: F32 | NDArray[np.float64]
) -> Content:
    """Differences of risks, any shape, and the decisions that they change at each level of the policy.

    Returns:
        "risk": {"max", "mean"}; "decisions": [{"severity", "enter", "changed", "of"}].
    """
    decisions = [
        {
            "severity": level.severity,
            "enter": level.enter,
            "changed": int(np.sum((reference >= level.enter) != (other >= level.enter))),
            "of": int(reference.size),
        }
        for level in config.policy.levels
    ]
    apart = np.abs(reference.astype(np.float64) - other.astype(np.float64))
    return {"risk": _spread(apart), "decisions": decisions}


def _spread(apart: NDArray[np.float64]) -> dict[str, float]:
    return {"max": float(apart.max()), "mean": float(apart.mean())}
