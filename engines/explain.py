"""What each input adds to a risk: the definition, and the slow reference of the worker's explanations.

A contribution is the risk less the risk of the same window in which one feature was ordinary: its value is
the fill of the feature table whenever it was measured. When and how often it was measured stays as it was. To
leave a feature out as if it had never been measured would credit its value with the habits of charting: whom
nobody counts breaths of is often on a ventilator, so that fast breathing would seem to lower the risk.
"""

import numpy as np
from numpy.typing import NDArray

from engines.engine import F32, Engine
from engines.steps import SeriesModel, run_steps
from schemas.window import FILL, NEVER, Rows


def ordinary(rows: Rows, features: NDArray[np.intp], model: SeriesModel) -> Rows:
    """Rows in which one feature each is ordinary; where it was never measured its value is the fill already.

    Args:
        rows: float32[n, ..., features], of the model's features.
        features: [n], the feature of row n that is made ordinary, as a position among the model's features.
        model: the model's layout.
    """
    values = rows.values.copy()
    fill = FILL[model.columns][features]
    values[np.arange(len(features)), ..., features] = fill.reshape(-1, *(1,) * (values.ndim - 2))
    return rows._replace(values=values)


def contributions(engine: Engine, window: Rows) -> F32:
    """Contributions of the model's features to the risk at the end of a window, one feature at a time.

    Args:
        engine: of any kind of series model.
        window: float32[steps, channels], of all channels, from the window's first bin on.

    Returns:
        float32[features]; NaN where a feature was never measured.
    """
    model = SeriesModel(engine.config)
    risk = _last_risk(engine, window)
    out = np.full(len(model.columns), np.nan, dtype=np.float32)
    for feature, channel in enumerate(model.columns):
        if window.elapsed[-1, channel] >= NEVER:
            continue
        values = window.values.copy()
        values[:, channel] = FILL[channel]
        out[feature] = risk - _last_risk(engine, window._replace(values=values))
    return out


def _last_risk(engine: Engine, window: Rows) -> np.float32:
    return np.float32(run_steps(engine, Rows(*(array[None] for array in window)))[0, -1])


def shapley(engine: Engine, window: Rows, permutations: int, seed: int = 0) -> F32:
    """Shapley values of the measured features, sampled: what each adds on average over orders of all of them.

    Unlike contributions they add up to the risk less the risk in which every feature is ordinary. They take
    `permutations` times the work, and are for judging contributions, not for serving.

    Args:
        engine, window: as in `contributions`.
        permutations: how many orders are drawn; each is taken forwards and backwards.
        seed: of the orders.

    Returns:
        float32[features]; NaN where a feature was never measured.
    """
    model = SeriesModel(engine.config)
    measured = np.flatnonzero(window.elapsed[-1, model.columns] < NEVER)
    rng = np.random.default_rng(seed)
    total = np.zeros(len(model.columns), dtype=np.float64)
    for _ in range(permutations):
        order = rng.permutation(measured)
        for taken in (order, order[::-1]):
            values = np.repeat(window.values[None], len(taken) + 1, axis=0)
            for n, feature in enumerate(taken):
                channel = model.columns[feature]
                values[n + 1 :, :, channel] = FILL[channel]
            others = (np.repeat(array[None], len(taken) + 1, axis=0) for array in window[1:])
            risks = run_steps(engine, Rows(values, *others))[:, -1].astype(np.float64)
            total[taken] += risks[:-1] - risks[1:]
    out = np.full(len(model.columns), np.nan, dtype=np.float32)
    out[measured] = total[measured] / (2 * permutations)
    return out
