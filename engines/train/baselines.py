"""Fits the learned baselines with scikit-learn; `engines.baselines` evaluates them without it."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from engines import baselines
from engines.baselines import F32, Fitted, Logistic, Trees
from schemas.window import Rows

HOURS = (3, 6, 9, 12, 16, 20, 24, 30, 36, 42, 48)
"""Hours after admission that are learnt from: a stay is a row at each of them."""

SEED = 2012

BOUND = 4.0
"""Z-scores are bounded by this: a few outliers would otherwise hold the regression's weights down."""

PENALTY = 0.002
"""Inverse strength of the ridge penalty, for columns of unit spread."""

Progress = Callable[[str, int, int], None]
"""Told (what, done, of)."""


def cross_validated(
    rows: Rows, died: NDArray[np.floating], folds: NDArray[np.integer], features: Sequence[str], on: Progress
) -> dict[str, F32]:
    """Risks of the learned baselines out of fold, float32[stays, hours], by name.

    Args:
        rows: each float32[stays, 48, channels] of all channels, stays begun on the hour.
        died: [stays], 0 or 1.
        folds: [stays], the fold of each stay: its risks come from a fit on the other folds.
        features: names of the features that may be used.
        on: told of each fold.
    """
    found: dict[str, F32] = {}
    numbers = np.unique(folds)
    for done, fold in enumerate(numbers):
        inside = folds == fold
        fitted = fit(_of(rows, ~inside), died[~inside], features)
        for name, risks in baselines.learned(fitted, _of(rows, inside)).items():
            found.setdefault(name, np.empty(rows.values.shape[:2], np.float32))[inside] = risks
        on("fitting baselines", done + 1, len(numbers))
    return found


def final(rows: Rows, died: NDArray[np.floating], features: Sequence[str]) -> bytes:
    """The content of `baselines.npz`, fitted on all these stays; the same bytes on one machine."""
    return baselines.to_bytes(fit(rows, died, features))


def fit(rows: Rows, died: NDArray[np.floating], features: Sequence[str]) -> Fitted:
    """Fit both models on these stays at `HOURS`; arguments as in `cross_validated`."""
    columns = np.concatenate(
        [
            baselines.summaries(_of(rows, slice(start, start + baselines.BLOCK)), features)[:, _STEPS]
            for start in range(0, len(died), baselines.BLOCK)
        ]
    )
    flat = columns.reshape(-1, columns.shape[-1])
    outcome = np.repeat(died.astype(np.int64), len(HOURS))
    names = baselines.column_names(features)
    return Fitted(tuple(features), regression(flat, outcome, names), trees_of(boosting(flat, outcome), flat))


_STEPS = np.array(HOURS) - 1


def _of(rows: Rows, stays: NDArray[np.bool_] | slice) -> Rows:
    return Rows(*(array[stays] for array in rows))


def boosting(columns: F32, outcome: NDArray[np.integer]) -> HistGradientBoostingClassifier:
    """Boosted trees fitted on the columns that hold any value."""
    model = HistGradientBoostingClassifier(
        learning_rate=0.05,
        max_iter=200,
        max_leaf_nodes=12,
        min_samples_leaf=200,
        l2_regularization=50.0,
        max_features=0.1,
        early_stopping=False,
        random_state=SEED,
    )
    return model.fit(columns[:, _filled(columns)], outcome)


def _filled(columns: F32) -> NDArray[np.intp]:
    """Numbers of the columns that hold any value: scikit-learn refuses one that is NaN throughout."""
    return np.flatnonzero(~np.all(np.isnan(columns), axis=0))


def trees_of(model: HistGradientBoostingClassifier, columns: F32) -> Trees:
    """The fitted trees as flat arrays.

    A threshold is rounded down to float32: x <= threshold is the same for every float32 x.
    """
    filled = _filled(columns)
    nodes = [predictor.nodes for (predictor,) in model._predictors]
    sizes = np.array([len(tree) for tree in nodes])
    roots = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    flat = np.concatenate(nodes)
    shift = np.repeat(roots, sizes)
    leaf = flat["is_leaf"].astype(bool)
    threshold = flat["num_threshold"].astype(np.float32)
    above = threshold.astype(np.float64) > flat["num_threshold"]
    threshold[above] = np.nextafter(threshold[above], np.float32(-np.inf))
    return Trees(
        roots=roots.astype(np.int32),
        column=np.where(leaf, -1, filled[flat["feature_idx"]]).astype(np.int32),
        threshold=np.where(leaf, np.float32(0), threshold),
        left=np.where(leaf, 0, flat["left"] + shift).astype(np.int32),
        right=np.where(leaf, 0, flat["right"] + shift).astype(np.int32),
        missing_left=flat["missing_go_to_left"].astype(bool) & ~leaf,
        value=np.where(leaf, flat["value"], 0.0),
        intercept=np.array(float(model._baseline_prediction.ravel()[0])),
    )


def regression(columns: F32, outcome: NDArray[np.integer], names: list[str]) -> Logistic:
    """The fitted regression and the standardisation that it reads."""
    model = _scaled(columns, names)
    found = LogisticRegression(C=PENALTY, max_iter=500).fit(baselines.standardised(model, columns), outcome)
    return model._replace(weights=found.coef_[0], intercept=np.array(float(found.intercept_[0])))


def _scaled(columns: F32, names: list[str]) -> Logistic:
    """The standardisation, with no weights yet."""
    filled = ~np.all(np.isnan(columns), axis=0)
    x = np.where(filled, columns, 0).astype(np.float64)
    least = np.nanmin(x, axis=0)
    logged = np.array([not name.endswith("change") for name in names]) & (least >= 0) & (_skewness(x) > 1)
    x[:, logged] = np.log1p(x[:, logged])
    scale = np.nanstd(x, axis=0)
    return Logistic(
        logged=logged,
        mean=np.nanmean(x, axis=0),
        scale=np.where(scale > 0, scale, 1.0),
        bound=np.full(len(names), BOUND),
        weights=np.zeros(len(names)),
        intercept=np.array(0.0),
    )


def _skewness(x: NDArray[np.float64]) -> NDArray[np.float64]:
    centred = x - np.nanmean(x, axis=0)
    spread = np.sqrt(np.nanmean(centred**2, axis=0))
    return np.asarray(np.nanmean(centred**3, axis=0) / np.maximum(spread, 1e-12) ** 3)
