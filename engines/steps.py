"""A step engine over the rows of many stays, hour by hour, with the state carried along."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from engines.engine import F32, Engine
from schemas.features import CHANNEL
from schemas.model_config import ModelConfig
from schemas.window import Rows


def columns(config: ModelConfig) -> NDArray[np.intp]:
    """Channel numbers of the model's features, in its order: `rows.values[:, columns]` is its input."""
    return np.array([CHANNEL[name] for name in config.features], dtype=np.intp)


def zero_state(config: ModelConfig, rows: int) -> dict[str, F32]:
    """The state before the first step, by input name: float32[rows, *dims] of zeros."""
    return {pair.input: np.zeros((rows, *pair.dims), dtype=np.float32) for pair in config.state}


def run_steps(engine: Engine, stays: Rows, on_batch: Callable[[int], None] | None = None) -> F32:
    """Risk after every step of every stay.

    Args:
        engine: a step model.
        stays: float32[stays, steps, channels], of all channels.
        on_batch: told how many stays were just finished.

    Returns:
        float32[stays, steps].
    """
    size = engine.config.dynamic_batching.max_batch_size
    risks = np.empty(stays.values.shape[:2], dtype=np.float32)
    for start in range(0, len(risks), size):
        part = slice(start, start + size)
        risks[part] = _run_batch(engine, Rows(*(array[part] for array in stays)))
        if on_batch is not None:
            on_batch(len(risks[part]))
    return risks


def _run_batch(engine: Engine, stays: Rows) -> F32:
    chosen = columns(engine.config)
    state = zero_state(engine.config, len(stays.values))
    number, steps, _ = stays.values.shape
    risks = np.empty((number, steps), dtype=np.float32)
    for step in range(steps):
        row = [array[:, step][:, chosen] for array in stays]
        outputs = engine.run(dict(zip(Rows._fields, row, strict=True)) | state)
        state = {pair.input: outputs[pair.output] for pair in engine.config.state}
        risks[:, step] = outputs["risk"]
    return risks
