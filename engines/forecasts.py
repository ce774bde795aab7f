"""How good forecasts of the next values are, beside the last value carried forward."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines import judge
from engines.metrics import Vector
from schemas.features import CHANNEL, FEATURES
from schemas.window import HOUR_MS, NEVER, Rows


class Forecasts(NamedTuple):
    """Forecasts made at the end of each hour.

    features: names, in the order of the last axis.
    values: float32[stays, 48, features], canonical units; NaN where none was made.
    horizon_s: how far ahead, seconds; a whole number of hours.
    """

    features: tuple[str, ...]
    values: NDArray[np.floating]
    horizon_s: float = 3600.0


def forecast_errors(
    stays: Rows, forecasts: Forecasts, resamples: int = judge.RESAMPLES, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Mean absolute errors by feature.

    A forecast is judged where the feature was measured in the hour that it is meant for and had been
    measured before; truth is that hour's last value. The interval is over resamples of whole stays.

    Args:
        stays: rows of all channels, float32[stays, 48, channels].
        forecasts: of the same stays.
        resamples, seed: of the bootstrap.

    Returns:
        {feature: {"unit", "horizon_s", "n", "mae", "carried_forward_mae", "difference": [mae less that of
        the value carried forward, low, high]}}; a feature that is never measured twice has n 0 and no more.
    """
    ahead = round(forecasts.horizon_s * 1000 / HOUR_MS)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(stays.values), np.full(len(stays.values), 1 / len(stays.values)), resamples)
    found = {}
    for place, name in enumerate(forecasts.features):
        channel = CHANNEL[name]
        truth = stays.values[:, ahead:, channel].astype(np.float64)
        carried = stays.values[:, :-ahead, channel]
        made = forecasts.values[:, :-ahead, place]
        judged = (stays.counts[:, ahead:, channel] > 0) & (stays.elapsed[:, :-ahead, channel] < NEVER)
        judged &= np.isfinite(made)
        number = judged.sum(axis=1).astype(np.float64)
        errors = [np.where(judged, np.abs(guess - truth), 0.0).sum(axis=1) for guess in (made, carried)]
        content = {"unit": FEATURES[channel].unit, "horizon_s": forecasts.horizon_s, "n": int(number.sum())}
        found[name] = content | (_errors(errors, number, drawn) if number.any() else {})
    return found


def _errors(errors: list[Vector], number: Vector, drawn: NDArray[np.int64]) -> dict[str, Any]:
    ours, carried = (float(error.sum() / number.sum()) for error in errors)
    resampled = (drawn @ (errors[0] - errors[1])) / np.maximum(drawn @ number, 1.0)
    return {
        "mae": round(ours, 4),
        "carried_forward_mae": round(carried, 4),
        "difference": [round(ours - carried, 4), *judge.interval(ours - carried, resampled)],
    }
