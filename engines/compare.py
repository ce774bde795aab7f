"""How far one engine's answers lie from another's, and how many decisions that changes.

A decision is whether a risk stands at or above a threshold of the model's alert policy. A relative difference
is measured against the greater of the two magnitudes, so that it is at most 2, and against a thousandth of
the output's greatest magnitude where both are smaller: a rounding error beside a zero is none of note.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines import evaluate_images, physionet2012, repository, tensorrt_module
from engines.engine import F32, Engine
from engines.errors import BackendError, DatasetError, InputError
from engines.evaluate_stays import rows_of
from engines.physionet2012 import Stay
from engines.precision import Precision, to_fp16
from engines.steps import run_stays
from schemas.model_config import ModelConfig

Progress = Callable[[str, int, int], None]
"""Told (what, done, of)."""

Content = dict[str, Any]

SMALL = 1e-3
"""Share of an output's greatest magnitude below which relative differences are those to this much."""


class Side(NamedTuple):
    """What computes on one side of a comparison; in fp16 a plan of fp16, or the converted graph."""

    backend: str = repository.REFERENCE_BACKEND
    precision: Precision = "fp32"

    def __str__(self) -> str:
        return f"{self.backend} in {self.precision}"


class Pair(NamedTuple):
    """Two engines of one model."""

    reference: Engine
    other: Engine

    def close(self) -> None:
        """Close both."""
        self.reference.close()
        self.other.close()


def fp16_pair(models: Path, name: str) -> Pair:
    """A model's graph and what fp16 makes of it, both on ONNX Runtime.

    It computes in fp32 where it has no fp16 kernel for this CPU, on values and weights that were
    rounded to fp16: the drift is that of the types, not of a GPU's arithmetic.

    Raises:
        EngineError: the model cannot be loaded or converted.
    """
    return pair_of(models, name, Side(precision="fp16"), Side())


def pair_of(
    models: Path,
    name: str,
    looked_at: Side,
    reference: Side,
    plans: Path | None = None,
    version: int | None = None,
) -> Pair:
    """A model on two sides, both opened before either computes; neither held to the golden data.

    Args:
        models: the repository.
        name: of the model.
        looked_at: one side.
        reference: what it is compared with.
        plans: folder to keep plans in; beside the model unless given.
        version: of the model; the served one unless given.

    Raises:
        InputError: both are the same.
        EngineError: the model cannot be loaded or converted, or one of the backends cannot run here.
    """
    if looked_at == reference:
        raise InputError(
            f"{looked_at} against itself shows nothing; there is {', '.join(repository.BACKENDS)}, in fp32 "
            "and fp16"
        )
    config = repository.read_config(models, name, version)
    other = _opened(models, config, looked_at, plans)
    try:
        return Pair(_opened(models, config, reference, plans), other)
    except BaseException:
        other.close()
        raise


def _opened(models: Path, config: ModelConfig, side: Side, plans: Path | None) -> Engine:
    if side.precision == "fp16" and side.backend not in tensorrt_module.BACKENDS:
        graph = to_fp16(repository.read_graph(models, config))
        return repository.open_engine(config, graph, side.backend)
    return repository.load_unproved(models, config, side.backend, plans, precision=side.precision)


def on_golden(pair: Pair, models: Path) -> Content:
    """`difference` of every output and state on the model's golden inputs, by name."""
    config = pair.reference.config
    golden = repository.golden_of(models, config)
    inputs = {key.removeprefix("in/"): array for key, array in golden.items() if key.startswith("in/")}
    expected, came = pair.reference.run(inputs), pair.other.run(inputs)
    found = {name: difference(array, came[name], name) for name, array in expected.items()}
    return {"rows": len(next(iter(inputs.values()))), "outputs": found}


def on_stays(pair: Pair, stays: list[Stay], source: str, progress: Progress) -> Content:
    """Differences of the outputs at the end of each of 48 hours; each engine carries its own states."""
    made = rows_of(stays, progress)
    predictions = []
    for what, engine in zip(("reference", "compared"), pair, strict=True):
        done = 0

        def on_batch(number: int, what: str = what) -> None:
            nonlocal done
            done += number
            progress(f"scoring stays, {what}", done, len(stays))

        predictions.append(run_stays(engine, made, on_batch))
    reference, other = predictions
    outputs = {
        name: difference(array, getattr(other, name), name)
        for name, array in reference._asdict().items()
        if array is not None
    }
    hours = {
        str(hour): difference(reference.risk[:, hour - 1], other.risk[:, hour - 1], "risk")
        for hour in range(1, reference.risk.shape[1] + 1)
    }
    content = risk_drift(pair.reference.config, reference.risk, other.risk)
    return {"source": source, "stays": len(stays), **content, "outputs": outputs, "hours": hours}


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
    found = [evaluate_images.predict(engine, images) for engine in pair]
    risks = [evaluate_images.risk_of(config, probability) for probability in found]
    outputs = {"probability": difference(found[0], found[1], "probability")}
    return {"source": named, "images": len(images), **risk_drift(config, *risks), "outputs": outputs}


def risk_drift(
    config: ModelConfig, reference: F32 | NDArray[np.float64], other: F32 | NDArray[np.float64]
) -> Content:
    """Differences of risks, any shape, and the decisions that they change at each level of the policy.

    Returns:
        "risk": their `difference`; "decisions": [{"severity", "enter", "changed", "of"}].

    Raises:
        BackendError: a risk is not finite.
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
    return {"risk": difference(reference, other, "risk"), "decisions": decisions}


def difference(
    reference: F32 | NDArray[np.float64], other: F32 | NDArray[np.float64], name: str
) -> dict[str, Any]:
    """How far apart two arrays of one shape are.

    Returns:
        "max", "mean" and "p99" of the absolute differences, and "relative", the same of the relative ones:
        |reference - other| over the greatest of |reference|, |other| and `SMALL` of the greatest
        |reference|; 0 where all of these are.

    Raises:
        BackendError: a value is not finite.
    """
    first, second = reference.astype(np.float64), other.astype(np.float64)
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise BackendError(f"{name} is not finite everywhere: nothing to compare")
    apart, magnitude = np.abs(first - second), np.abs(first)
    scale = np.maximum(np.maximum(magnitude, np.abs(second)), SMALL * magnitude.max(initial=0.0))
    relative = np.divide(apart, scale, out=np.zeros_like(apart), where=scale > 0)
    return _spread(apart) | {"relative": _spread(relative)}


def _spread(apart: NDArray[np.float64]) -> dict[str, float]:
    return {"max": float(apart.max()), "mean": float(apart.mean()), "p99": float(np.percentile(apart, 99))}
