"""Inputs that never were anybody's: for golden data and checks of models of any kind."""

from collections.abc import Mapping

import numpy as np

from engines.engine import F32, Engine
from engines.steps import SeriesModel
from schemas.features import FEATURES, IS_STATIC, STATIC
from schemas.model_config import ModelConfig
from schemas.window import CHANNELS, FILL, NEVER, WINDOW_BINS, Rows, rows, whole

MOST_COUNTED = 255.0
"""Observations of a feature in one hour at which the worker stops counting."""

_LOW = np.array([feature.low for feature in FEATURES], dtype=np.float32)
_HIGH = np.array([feature.high for feature in FEATURES], dtype=np.float32)


def stays(number: int, hours: int = WINDOW_BINS, seed: int = 0) -> Rows:
    """Rows of stays with values around the ordinary, each feature measured often, now and then or never.

    Returns:
        float32[number, hours, channels] each.
    """
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(number):
        shape = (hours, CHANNELS)
        often = rng.choice([0.0, 0.1, 0.5, 2.0], CHANNELS)
        counts = np.where(IS_STATIC, 0, rng.poisson(often, shape)).astype(np.float32)
        values = np.clip(FILL * rng.lognormal(0, 0.3, shape), _LOW, _HIGH).astype(np.float32)
        known = rng.random(len(STATIC)) < 0.8
        statics = np.where(known, rng.uniform(_LOW, _HIGH)[list(STATIC)], np.nan).astype(np.float32)
        made.append(rows(values, counts, statics))
    return Rows(*(np.stack(arrays) for arrays in zip(*made, strict=True)))


def inputs(engine: Engine, number: int, seed: int = 0) -> dict[str, F32]:
    """Inputs of any model: of a step graph with the states of stays in their middle.

    Args:
        engine: says what it takes; runs, where states are needed.
        number: of rows.
        seed: of the random numbers.
    """
    if engine.config.kind == "image":
        return {"image": _pictures(engine.config, number, seed)}
    return after(engine, stays(number, WINDOW_BINS // 2, seed))


def after(engine: Engine, made: Rows) -> dict[str, F32]:
    """Inputs of a series model at the end of stays, float32[stays, hours, channels] each."""
    model = SeriesModel(engine.config)
    number, hours, _ = made.values.shape
    states = np.zeros((number, model.width), dtype=np.float32)
    if model.whole:
        return model.inputs(model.chosen(whole(made)), states)
    hour = [model.chosen(Rows(*(array[:, n] for array in made))) for n in range(hours)]
    if model.stateful:
        for step in hour[:-1]:
            states = model.states(in_batches(engine, model.inputs(step, states)))
    return model.inputs(hour[-1], states)


def in_batches(engine: Engine, tensors: Mapping[str, F32]) -> dict[str, F32]:
    """Outputs for any number of rows, of which the engine gets as many as it takes at once."""
    number, most = len(next(iter(tensors.values()))), engine.config.dynamic_batching.max_batch_size
    parts = [
        engine.run({name: array[at : at + most] for name, array in tensors.items()})
        for at in range(0, number, most)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def hostile(engine: Engine) -> dict[str, F32]:
    """Inputs at the edges of what can come: nothing measured, everything at its least or greatest.

    A step graph has been through a window of such hours.
    """
    if engine.config.kind == "image":
        return {"image": _edges(engine.config)}
    cases = [(FILL, NEVER, 0.0)]
    for edge in (_LOW, _HIGH):
        cases += [(edge, 0.0, 1.0), (edge, 0.0, MOST_COUNTED), (edge, NEVER - 1, 0.0)]
    shape = (WINDOW_BINS, CHANNELS)
    made = [
        Rows(
            np.broadcast_to(values, shape),
            np.full(shape, elapsed, dtype=np.float32),
            np.full(shape, counts, dtype=np.float32),
        )
        for values, elapsed, counts in cases
    ]
    return after(engine, Rows(*(np.stack(arrays) for arrays in zip(*made, strict=True))))


def _pictures(config: ModelConfig, number: int, seed: int) -> F32:
    """Noise over a slope, each from black to white."""
    assert config.image is not None
    rng = np.random.default_rng(seed)
    _, height, width = config.image.dims
    slope = np.linspace(0, 1, height)[:, None] * rng.uniform(-1, 1, (number, 1, 1, 1))
    slope = slope + np.linspace(0, 1, width) * rng.uniform(-1, 1, (number, 1, 1, 1))
    noise = rng.normal(0, 0.1, (number, *config.image.dims))
    return np.clip(0.5 + slope / 2 + noise, 0, 1).astype(np.float32)


def _edges(config: ModelConfig) -> F32:
    """Black, white, and a chessboard."""
    assert config.image is not None
    board = np.indices(config.image.dims).sum(axis=0) % 2
    made = [np.zeros(config.image.dims), np.ones(config.image.dims), board]
    return np.stack(made).astype(np.float32)
