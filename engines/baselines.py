"""What a model is compared with: two simple learned models and three bedside scores; numpy only.

    boosting   gradient-boosted trees over summaries of the window, valid at any hour
    logistic   logistic regression over the same summaries
    news2      NEWS2 on SpO2 scale 1, at every hour; what is missing counts 0
    saps1      SAPS-I and SOFA as the data set's outcomes file gives them: known at the end of the
    sofa       first 48 hours only, and no probabilities

The learned two are fitted by `engines.train.baselines` on the stays that the model beside them was trained
on, from the same features, and lie in its folder as `baselines.npz`.
"""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.errors import RepositoryError
from engines.physionet2012 import Stay
from engines.repository import BASELINES
from schemas import news2
from schemas.features import CHANNEL, FEATURES, IS_STATIC
from schemas.window import NEVER, WINDOW_BINS, Rows

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

SERIES = ("last", "elapsed", "least", "greatest", "mean", "count", "change")
"""Summaries of a series feature; a static feature has its value alone."""

BLOCK = 256
"""Stays summarised at a time: some 15 MB for all features."""


class Baseline(NamedTuple):
    """One baseline on some stays.

    risk: float32[stays, 48] at the end of each hour, greater is worse; NaN where it says nothing.
    probability: whether `risk` is a probability, so that its calibration means something.
    """

    risk: F32
    probability: bool


class Logistic(NamedTuple):
    """Logistic regression on standardised columns; a column that is NaN counts as its mean.

    logged: bool[columns], whether log1p is taken first. mean, scale: float64[columns].
    bound: greatest distance from the mean, in scales. weights: float64[columns]. intercept: a number.
    """

    logged: NDArray[np.bool_]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    bound: NDArray[np.float64]
    weights: NDArray[np.float64]
    intercept: NDArray[np.float64]


class Trees(NamedTuple):
    """Gradient-boosted trees, their nodes one after another.

    roots: int32[trees], first node of each. column: int32[nodes], -1 in a leaf.
    threshold: float32[nodes]; left if the column is not above it. left, right: int32[nodes], node numbers.
    missing_left: bool[nodes], where NaN goes. value: float64[nodes], read in leaves.
    intercept: the logit is this and the sum of one leaf of each tree.
    """

    roots: I32
    column: I32
    threshold: F32
    left: I32
    right: I32
    missing_left: NDArray[np.bool_]
    value: NDArray[np.float64]
    intercept: NDArray[np.float64]


class Fitted(NamedTuple):
    """The learned baselines of one model, over the columns of `summaries(..., features)`."""

    features: tuple[str, ...]
    logistic: Logistic
    trees: Trees


def compared(
    stays: Sequence[Stay], rows: Rows, learned: dict[str, F32], hours: int = WINDOW_BINS
) -> dict[str, Baseline]:
    """Every baseline that has something to say of these stays, by name.

    Args:
        stays: as read, for the scores that their outcomes file gives.
        rows: the same stays' rows, each float32[stays, hours, channels] of all channels.
        learned: risks of the learned baselines, from `learned` or from cross-validation.
        hours: number of hours in `rows`.
    """
    found = {name: Baseline(risk, probability=True) for name, risk in learned.items()}
    found["news2"] = Baseline(news2_totals(rows), probability=False)
    for name in ("saps1", "sofa"):
        scores = [getattr(stay, name) for stay in stays]
        if any(score is not None for score in scores):
            risk = np.full((len(stays), hours), np.nan, dtype=np.float32)
            risk[:, -1] = [np.nan if score is None else score for score in scores]
            found[name] = Baseline(risk, probability=False)
    return found


def learned(fitted: Fitted, rows: Rows) -> dict[str, F32]:
    """Risks of the learned baselines at every hour, float32[stays, hours], by name.

    Args:
        fitted: from `load` or from training.
        rows: each float32[stays, hours, channels] of all channels.
    """
    stays, hours = rows.values.shape[:2]
    found = {name: np.empty((stays, hours), np.float32) for name in ("boosting", "logistic")}
    for start in range(0, stays, BLOCK):
        part = slice(start, start + BLOCK)
        columns = summaries(Rows(*(array[part] for array in rows)), fitted.features)
        flat = columns.reshape(-1, columns.shape[-1])
        for name, logits in (
            ("boosting", tree_logits(fitted.trees, flat)),
            ("logistic", logistic_logits(fitted.logistic, flat)),
        ):
            found[name][part] = (1 / (1 + np.exp(-logits))).reshape(-1, hours)
    return found


def news2_totals(rows: Rows) -> F32:
    """NEWS2 at every hour from the last known values, on SpO2 scale 1: float32[stays, hours].

    A parameter that was never measured counts 0, however old the others are; supplemental oxygen is an
    inspired fraction above that of air. The systolic pressure is the newer of cuff and line, the line's
    where both were measured in one hour.

    Args:
        rows: each float32[stays, hours, channels] of all channels.
    """

    def value(name: str) -> F32:
        channel = CHANNEL[name]
        return np.where(rows.elapsed[..., channel] < NEVER, rows.values[..., channel], np.float32(np.nan))

    cuff, line = CHANNEL["systolic_pressure"], CHANNEL["systolic_pressure_invasive"]
    systolic = np.where(
        rows.elapsed[..., line] <= rows.elapsed[..., cuff],
        value("systolic_pressure_invasive"),
        value("systolic_pressure"),
    )
    gcs, fio2 = value("gcs"), value("fio2")
    air = news2.Bands((news2.ROOM_AIR + 1,), (0, news2.OXYGEN))
    return (
        news2.points_of(news2.RESPIRATION, value("respiratory_rate"))
        + news2.points_of(news2.SPO2_SCALE_1, value("oxygen_saturation"))
        + news2.points_of(air, fio2)
        + news2.points_of(news2.SYSTOLIC, systolic)
        + news2.points_of(news2.PULSE, value("heart_rate"))
        + np.where(gcs < 15, np.float32(news2.CVPU), np.float32(0))
        + news2.points_of(news2.TEMPERATURE, value("temperature"))
    )


def column_names(features: Sequence[str]) -> list[str]:
    """What the columns of `summaries` are, such as `heart_rate last`; the first is the hour."""
    names = ["hour"]
    for feature in features:
        static = IS_STATIC[CHANNEL[feature]]
        names += [feature] if static else [f"{feature} {summary}" for summary in SERIES]
    return names


def summaries(rows: Rows, features: Sequence[str]) -> F32:
    """What a model without memory is told at every hour: float32[stays, hours, columns].

    Of a series feature, over the hours so far: the last value; hours since it; least, greatest and mean of
    the hours' last values; number of measurements; last value less the first. All but the count are NaN
    before the first measurement. Static features are NaN where unknown.

    Args:
        rows: each float32[stays, hours, channels] of all channels; at most 48 hours.
        features: names, in the order of the columns.
    """
    stays, hours, _ = rows.values.shape
    chosen = np.array([CHANNEL[name] for name in features], dtype=np.intp)
    static = np.array([IS_STATIC[channel] for channel in chosen], dtype=bool)
    known = np.where(rows.elapsed[..., chosen] < NEVER, rows.values[..., chosen], np.float32(np.nan))
    made = _series(Rows(*(array[..., chosen[~static]] for array in rows)), known[..., ~static])
    columns = [np.broadcast_to(np.arange(1, hours + 1, dtype=np.float32)[:, None], (stays, hours, 1))]
    number = 0
    for place, is_static in enumerate(static):
        columns.append(known[..., place : place + 1] if is_static else made[..., number, :])
        number += not is_static
    return np.concatenate(columns, axis=-1)


def _series(rows: Rows, known: F32) -> F32:
    """float32[stays, hours, features, len(SERIES)]."""
    measured = rows.counts > 0
    here = np.where(measured, rows.values, np.float32(np.nan))
    hours = np.cumsum(measured, axis=1, dtype=np.float32)
    total = np.cumsum(np.where(measured, rows.values, np.float32(0)), axis=1, dtype=np.float64)
    begun = hours > 0
    first = np.take_along_axis(rows.values, np.argmax(measured, axis=1)[:, None], axis=1)
    nothing = np.float32(np.nan)
    return np.stack(
        [
            known,
            np.where(begun, rows.elapsed, nothing),
            np.fmin.accumulate(here, axis=1),
            np.fmax.accumulate(here, axis=1),
            np.where(begun, total / np.maximum(hours, 1), nothing).astype(np.float32),
            np.cumsum(rows.counts, axis=1, dtype=np.float32),
            np.where(begun, known - first, nothing),
        ],
        axis=-1,
    )


def standardised(model: Logistic, columns: F32) -> NDArray[np.float64]:
    """The columns as the regression reads them, float64[rows, columns]: bounded z-scores, 0 where NaN."""
    x = columns.astype(np.float64)
    x[:, model.logged] = np.log1p(x[:, model.logged])
    z = (x - model.mean) / model.scale
    return np.nan_to_num(np.clip(z, -model.bound, model.bound), nan=0.0)


def logistic_logits(model: Logistic, columns: F32) -> NDArray[np.float64]:
    """float64[rows], from float32[rows, columns]."""
    return np.asarray(standardised(model, columns) @ model.weights + model.intercept)


def tree_logits(trees: Trees, columns: F32) -> NDArray[np.float64]:
    """float64[rows], from float32[rows, columns]."""
    by_column = np.ascontiguousarray(columns.T)
    out = np.full(len(columns), float(trees.intercept))
    everyone = np.arange(len(columns), dtype=np.int32)
    for root in trees.roots:
        _descend(trees, int(root), everyone, by_column, out)
    return out


def _descend(trees: Trees, node: int, rows: I32, by_column: F32, out: NDArray[np.float64]) -> None:
    """Add to `out` the leaves that these rows reach from a node."""
    if not len(rows):
        return
    column = trees.column[node]
    if column < 0:
        out[rows] += trees.value[node]
        return
    x = by_column[column, rows]
    goes_left = x <= trees.threshold[node]
    if trees.missing_left[node]:
        goes_left |= np.isnan(x)
    _descend(trees, int(trees.left[node]), rows[goes_left], by_column, out)
    _descend(trees, int(trees.right[node]), rows[~goes_left], by_column, out)


def to_bytes(fitted: Fitted) -> bytes:
    """The content of `baselines.npz`; the same bytes for the same models."""
    arrays = {"features": np.array(fitted.features)}
    for prefix, model in (("logistic", fitted.logistic), ("trees", fitted.trees)):
        arrays |= {f"{prefix}/{name}": array for name, array in model._asdict().items()}
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # its other parameter is a bool
    return file.getvalue()


def load(path: Path) -> Fitted:
    """Read a `baselines.npz`.

    Raises:
        RepositoryError: the file is missing, or is not such a file.
    """
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as arrays:
            fitted = Fitted(
                tuple(str(name) for name in arrays["features"]),
                Logistic(*(arrays[f"logistic/{name}"] for name in Logistic._fields)),
                Trees(*(arrays[f"trees/{name}"] for name in Trees._fields)),
            )
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise RepositoryError(f"{path} is no readable {BASELINES}: copy the model folder again") from error
    for complaint in _complaints(fitted):
        raise RepositoryError(f"{path}: {complaint}")
    return fitted


def _complaints(fitted: Fitted) -> list[str]:
    known = {feature.name for feature in FEATURES}
    unknown = sorted(set(fitted.features) - known)
    if unknown:
        return [f"features must be from the feature table, came {unknown}"]
    columns = len(column_names(fitted.features))
    trees, nodes = fitted.trees, len(fitted.trees.column)
    complaints = []
    if any(array.shape != (columns,) for array in fitted.logistic[:-1]):
        complaints.append(f"the regression must have {columns} columns, as the features ask for")
    if any(array.shape != (nodes,) for array in trees[1:-1]):
        complaints.append("the trees' nodes must have one entry in each array")
    elif np.any(trees.column >= columns) or np.any(trees.roots >= nodes) or np.any(trees.roots < 0):
        complaints.append("the trees must read the regression's columns and start at their nodes")
    elif not np.all(_below(trees)):
        complaints.append("a tree's branches must lead to later nodes")
    return complaints


def _below(trees: Trees) -> NDArray[np.bool_]:
    """For each node, whether it is a leaf or its branches lead to later nodes: so that descending ends."""
    place = np.arange(len(trees.column))
    nearer, farther = np.minimum(trees.left, trees.right), np.maximum(trees.left, trees.right)
    return np.asarray((trees.column < 0) | ((nearer > place) & (farther < len(place))))
