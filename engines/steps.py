"""A series engine over the rows of many stays, hour by hour, as the worker runs it record by record.

What the three kinds of series model read of a patient's window, whose newest row is the open hour's:

    step graph     every row, one call each, from zeros; the state is carried along
    whole window   all 48 rows in one call (`schemas.window.whole` says how a shorter window stands in them)
    features       the newest row alone
"""

import hashlib
from collections.abc import Callable, Mapping
from math import prod
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from engines.engine import F32, Engine
from engines.errors import InputError, KindError
from schemas.features import CHANNEL, FEATURES
from schemas.model_config import ModelConfig
from schemas.window import WINDOW_BINS, Rows, whole


class Prediction(NamedTuple):
    """What a series model says of each of its rows.

    risk: float32[...], calibrated.
    spread: float32[...], standard deviation of the members' risks; None where the model has none.
    forecast: float32[..., forecast features], in their canonical units; None where the model has none.
    """

    risk: F32
    spread: F32 | None
    forecast: F32 | None


class SeriesModel:
    """How a series model's tensors map to the feature table, and its states to one flat vector.

    columns: channel of each of the model's features.
    width: length of the flat state; 0 where the model carries none.
    stateful: whether it is a step graph.
    whole: whether it reads whole windows.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Read the layout from a config.

        Raises:
            KindError: the model reads images.
        """
        require_series(config)
        self.config = config
        self.columns = columns(config)
        self.channels = frozenset(int(channel) for channel in self.columns)
        self.stateful = bool(config.state)
        self.whole = config.kind == "windowed-series" and not self.stateful
        self._takes = [tensor.name for tensor in config.input if tensor.name in Rows._fields]
        self._pairs: list[tuple[str, str, tuple[int, ...], slice]] = []
        at = 0
        for pair in config.state:
            size = prod(pair.dims)
            self._pairs.append((pair.input, pair.output, pair.dims, slice(at, at + size)))
            at += size
        self.width = at

    def chosen(self, rows: Rows) -> Rows:
        """The model's features, in its order, of rows float32[..., channels]."""
        return Rows(*(np.ascontiguousarray(array[..., self.columns]) for array in rows))

    def inputs(self, rows: Rows, states: F32) -> dict[str, F32]:
        """The graph's inputs.

        Args:
            rows: float32[n, features] each; of a model that reads whole windows float32[n, 48, features].
            states: float32[n, width].
        """
        tensors: dict[str, F32] = {name: getattr(rows, name) for name in self._takes}
        for name, _, dims, part in self._pairs:
            tensors[name] = np.ascontiguousarray(states[:, part]).reshape(-1, *dims)
        return tensors

    def states(self, outputs: Mapping[str, F32]) -> F32:
        """The flat states, float32[n, width], from the graph's outputs."""
        if not self._pairs:
            return np.zeros((len(outputs["risk"]), 0), dtype=np.float32)
        return np.concatenate(
            [outputs[name].reshape(len(outputs[name]), -1) for _, name, _, _ in self._pairs], axis=1
        )


def require_series(config: ModelConfig) -> None:
    """Refuse a model that is no series model.

    Raises:
        KindError: the model reads images.
    """
    if config.kind == "image":
        raise KindError(f"{config.name} reads images; a windowed-series or features model is needed here")


def fingerprint(config: ModelConfig) -> str:
    """What a carried state means, in 32 hex digits: it is of use to configs with the same alone.

    Of the graph, the tensors and state pairs that config.json gives it, and the features in their order with
    unit and fill: whatever may change without the graph and still encode a window into another state.
    """
    table = [FEATURES[channel] for channel in columns(config)]
    features = [(feature.name, feature.unit, feature.fill) for feature in table]
    meaning = (config.digest, config.kind, features, config.input, config.state)
    return hashlib.sha256(msgspec.json.encode(meaning)).hexdigest()[:32]


def columns(config: ModelConfig) -> NDArray[np.intp]:
    """Channel numbers of the model's features, in its order: `rows.values[:, columns]` is its input."""
    return np.array([CHANNEL[name] for name in config.features], dtype=np.intp)


def predicted(outputs: Mapping[str, F32]) -> Prediction:
    """The prediction among a graph's outputs."""
    return Prediction(outputs["risk"], outputs.get("spread"), outputs.get("forecast"))


def run_steps(engine: Engine, stays: Rows, on_batch: Callable[[int], None] | None = None) -> F32:
    """Risk after every step of every stay, float32[stays, steps]; as `run_stays`."""
    return run_stays(engine, stays, on_batch).risk


def run_stays(engine: Engine, stays: Rows, on_batch: Callable[[int], None] | None = None) -> Prediction:
    """What a series model says after every step of every stay.

    Args:
        engine: of any kind of series model.
        stays: float32[stays, steps, channels], of all channels; of a model that reads whole windows at most
            48 steps.
        on_batch: told how many stays were just finished.

    Returns:
        Arrays of [stays, steps, ...].

    Raises:
        KindError: the model reads images.
        InputError: more steps than a window has.
    """
    model = SeriesModel(engine.config)
    number, steps, _ = stays.values.shape
    if model.whole and steps > WINDOW_BINS:
        raise InputError(f"{engine.config.name} reads windows of {WINDOW_BINS} steps, came {steps}")
    size = engine.config.dynamic_batching.max_batch_size
    out = _room(engine, (number, steps))
    for start in range(0, number, size):
        part = slice(start, start + size)
        block = Rows(*(array[part] for array in stays))
        states = np.zeros((len(block.values), model.width), dtype=np.float32)
        for step in range(steps):
            tensors = model.inputs(_read(model, block, step), states)
            outputs = engine.run(tensors)
            states = model.states(outputs)
            for target, came in zip(out, predicted(outputs), strict=True):
                if target is not None and came is not None:
                    target[part, step] = came
        if on_batch is not None:
            on_batch(len(states))
    return out


def _read(model: SeriesModel, stays: Rows, step: int) -> Rows:
    """What the model reads after a step: of whole windows all up to it, else its row."""
    if model.whole:
        return model.chosen(whole(Rows(*(array[:, : step + 1] for array in stays))))
    return model.chosen(Rows(*(array[:, step] for array in stays)))


def _room(engine: Engine, shape: tuple[int, int]) -> Prediction:
    """Arrays for the outputs that the model has."""
    dims = engine.output_dims
    made = {
        name: np.empty((*shape, *dims[name]), dtype=np.float32) for name in Prediction._fields if name in dims
    }
    return predicted(made)
