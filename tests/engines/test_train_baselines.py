"""Fitting the learned baselines: what is written gives what scikit-learn gives, out of fold, reproducibly."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="training needs the extra `train`")

from sklearn.linear_model import LogisticRegression

from engines import baselines, metrics, repository
from engines.baselines import F32
from engines.train import baselines as fitting
from schemas.features import CHANNEL
from schemas.window import Rows
from tests.engines.test_baselines import SOME, made_outcomes, made_rows

STAYS = made_rows(150)
DIED = made_outcomes(STAYS)


@pytest.fixture(scope="module")
def learnt() -> tuple[F32, np.ndarray]:
    """The columns and outcomes that the fit sees."""
    columns = baselines.summaries(STAYS, SOME)[:, np.array(fitting.HOURS) - 1]
    return columns.reshape(-1, columns.shape[-1]), np.repeat(DIED.astype(np.int64), len(fitting.HOURS))


def test_trees_without_scikit_learn_give_its_probabilities(learnt: tuple[F32, np.ndarray]) -> None:
    columns, outcome = learnt
    model = fitting.boosting(columns, outcome)
    filled = ~np.all(np.isnan(columns), axis=0)
    assert not filled.all()
    trees = fitting.trees_of(model, columns)
    for seed in (1, 7):
        fresh = baselines.summaries(made_rows(40, seed), SOME).reshape(-1, columns.shape[-1])
        risk = 1 / (1 + np.exp(-baselines.tree_logits(trees, fresh)))
        np.testing.assert_allclose(risk, model.predict_proba(fresh[:, filled])[:, 1], atol=1e-6, rtol=0)


def test_values_on_a_threshold_go_where_scikit_learn_sends_them(learnt: tuple[F32, np.ndarray]) -> None:
    columns, outcome = learnt
    model = fitting.boosting(columns, outcome)
    trees = fitting.trees_of(model, columns)
    filled = ~np.all(np.isnan(columns), axis=0)
    on_edge = np.full((len(trees.column), columns.shape[1]), np.nan, np.float32)
    for node, (column, threshold) in enumerate(zip(trees.column, trees.threshold, strict=True)):
        on_edge[node, max(column, 0)] = threshold
    above = np.nextafter(on_edge, np.float32(np.inf))
    for rows in (on_edge, above):
        risk = 1 / (1 + np.exp(-baselines.tree_logits(trees, rows)))
        np.testing.assert_allclose(risk, model.predict_proba(rows[:, filled])[:, 1], atol=1e-6, rtol=0)


def test_the_regression_without_scikit_learn_gives_its_probabilities(learnt: tuple[F32, np.ndarray]) -> None:
    columns, outcome = learnt
    found = fitting.regression(columns, outcome, baselines.column_names(SOME))
    z = baselines.standardised(found, columns)
    assert np.abs(z).max() <= fitting.BOUND
    model = LogisticRegression(C=fitting.PENALTY, max_iter=500).fit(z, outcome)
    risk = 1 / (1 + np.exp(-baselines.logistic_logits(found, columns)))
    np.testing.assert_allclose(risk, model.predict_proba(z)[:, 1], atol=1e-6, rtol=0)


def test_the_same_stays_give_the_same_file(tmp_path: Path) -> None:
    first, again = (fitting.final(STAYS, DIED, SOME) for _ in range(2))
    assert first == again
    (tmp_path / repository.BASELINES).write_bytes(first)
    fitted = baselines.load(tmp_path / repository.BASELINES)
    assert fitted.features == SOME
    risks = baselines.learned(fitted, STAYS)
    assert {name: (risk.shape, risk.dtype.name) for name, risk in risks.items()} == dict.fromkeys(
        ("boosting", "logistic"), ((150, 48), "float32")
    )
    assert all(metrics.auroc(DIED, risk[:, -1]) > 0.7 for risk in risks.values())


def test_risks_out_of_fold_know_nothing_of_their_fold() -> None:
    folds = np.arange(len(DIED)) % 3
    told: list[tuple[int, int]] = []
    risks = fitting.cross_validated(STAYS, DIED, folds, SOME, lambda what, done, of: told.append((done, of)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    changed = np.where(folds == 1, 1 - DIED, DIED)
    again = fitting.cross_validated(STAYS, changed, folds, SOME, lambda *_: None)
    for name in ("boosting", "logistic"):
        np.testing.assert_array_equal(risks[name][folds == 1], again[name][folds == 1])
        assert not np.array_equal(risks[name][folds != 1], again[name][folds != 1])


def test_only_the_named_features_are_read() -> None:
    fitted = fitting.fit(STAYS, DIED, ("heart_rate", "gcs"))
    kept = [CHANNEL[name] for name in ("heart_rate", "gcs")]
    others = np.ones(STAYS.values.shape[-1], bool)
    others[kept] = False
    disturbed = Rows(*(array.copy() for array in STAYS))
    disturbed.values[..., others] += 1
    for name, risk in baselines.learned(fitted, STAYS).items():
        np.testing.assert_array_equal(baselines.learned(fitted, disturbed)[name], risk)
