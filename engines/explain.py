"""What each input adds to a risk: the definition, and the slow reference of the worker's explanations.

A contribution is the risk less the risk of the same window in which one feature was never measured.
"""

import numpy as np
from numpy.typing import NDArray

from engines.engine import F32, Engine
from engines.steps import SeriesModel, run_steps
from schemas.window import FILL, NEVER, Rows


def without(rows: Rows, left_out: NDArray[np.intp], model: SeriesModel) -> Rows:
    """Copies of rows in which one feature each was never measured.

    Args:
        rows: float32[n, ..., features], of the model's features.
        left_out: [n], the feature that row n does without, as a position among the model's features.
        model: the model's layout.
    """
    fill = FILL[model.columns][left_out]
    made = Rows(*(array.copy() for array in rows))
    n = np.arange(len(left_out))
    made.values[n, ..., left_out] = fill.reshape(-1, *(1,) * (rows.values.ndim - 2))
    made.elapsed[n, ..., left_out] = NEVER
    made.counts[n, ..., left_out] = 0
    return made


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
        changed = Rows(*(array.copy() for array in window))
        changed.values[:, channel] = FILL[channel]
        changed.elapsed[:, channel] = NEVER
        changed.counts[:, channel] = 0
        out[feature] = risk - _last_risk(engine, changed)
    return out


def _last_risk(engine: Engine, window: Rows) -> np.float32:
    return np.float32(run_steps(engine, Rows(*(array[None] for array in window)))[0, -1])
