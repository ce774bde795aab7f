"""Judging held to slow references, and to what must hold of any risks."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from engines import judge, metrics
from engines.judge import _draws, _Sorted

F64 = NDArray[np.float64]


@st.composite
def cases(draw: st.DrawFn, most: int = 40) -> tuple[F64, F64]:
    """Outcomes with both present, and risks in [0, 1] with ties."""
    number = draw(st.integers(2, most))
    truth = np.array(draw(st.lists(st.integers(0, 1), min_size=number, max_size=number)), dtype=float)
    truth[0], truth[1] = 0, 1
    risk = np.array(draw(st.lists(st.integers(0, 20), min_size=number, max_size=number))) / 20
    return truth, risk


def slow(truth: F64, risk: F64, threshold: float) -> dict[str, float]:
    """Every figure by its definition."""
    pairs = list(product(risk[truth == 1], risk[truth == 0]))
    found = {"auroc": float(np.mean([(dead > alive) + 0.5 * (dead == alive) for dead, alive in pairs]))}
    recall_before = found["auprc"] = 0.0
    for at in sorted(set(risk.tolist()), reverse=True):
        above = truth[risk >= at]
        recall = above.sum() / truth.sum()
        found["auprc"] += (recall - recall_before) * above.mean()
        recall_before = recall
    hits = int(np.sum((risk >= threshold) & (truth == 1)))
    alerted = int(np.sum(risk >= threshold))
    found["sensitivity"] = hits / truth.sum()
    found["specificity"] = float(np.sum((risk < threshold) & (truth == 0)) / np.sum(truth == 0))
    found["positive_predictivity"] = hits / alerted if alerted else 0.0
    found["event1"] = min(found["sensitivity"], found["positive_predictivity"])
    found["accuracy"] = (hits + int(np.sum((risk < threshold) & (truth == 0)))) / len(truth)
    found["brier"] = sum((r - t) ** 2 for r, t in zip(risk, truth, strict=True)) / len(truth)
    groups = np.array_split(np.argsort(risk, kind="stable"), metrics.BINS)
    gaps = [abs(risk[group].mean() - truth[group].mean()) * len(group) for group in groups if len(group)]
    found["ece"] = sum(gaps) / len(truth)
    found["calibration_in_the_large"] = float(risk.mean() - truth.mean())
    return found


@given(cases(), st.integers(0, 20))
def test_figures_are_those_of_their_definitions(drawn: tuple[F64, F64], twentieth: int) -> None:
    truth, risk = drawn
    expected = slow(truth, risk, twentieth / 20)
    assert judge.figures_of(truth, risk, twentieth / 20) == pytest.approx(expected)


@given(cases(), st.integers(0, 20), st.integers(0, 5))
def test_resampled_figures_are_those_of_the_resample(
    drawn: tuple[F64, F64], twentieth: int, seed: int
) -> None:
    truth, risk = drawn
    threshold = twentieth / 20
    sample = _Sorted(truth, risk, threshold)
    strata = [np.flatnonzero(truth == outcome) for outcome in (0, 1)]
    (weights,) = _draws(strata, 3, seed)
    found = sample.ranking(weights) | sample.calibration(weights)
    for number, row in enumerate(weights.astype(int)):
        repeated = np.repeat(np.arange(len(truth)), row)
        expected = slow(truth[repeated], risk[repeated], threshold)
        if len(set(risk.tolist())) < len(risk):
            expected.pop("ece")  # which of two tied cases stands in which group is not defined
        for name, figure in expected.items():
            assert found[name][number] == pytest.approx(figure), name


@given(cases())
def test_draws_keep_the_outcomes(drawn: tuple[F64, F64]) -> None:
    truth, _ = drawn
    strata = [np.flatnonzero(truth == outcome) for outcome in (0, 1)]
    for weights in _draws(strata, 20, seed=1):
        assert (weights @ truth == truth.sum()).all()
        assert (weights.sum(axis=1) == len(truth)).all()


@given(cases())
def test_ranking_is_blind_to_monotone_changes(drawn: tuple[F64, F64]) -> None:
    truth, risk = drawn
    one, other = (
        judge.judged(truth, score, None, probability=False, resamples=20) for score in (risk, risk**3 * 5 - 1)
    )
    assert one == other
    assert "brier" not in one
    assert "calibration" not in one["curves"]


@given(cases(), st.integers(1, 19))
def test_intervals_hold_their_figure(drawn: tuple[F64, F64], twentieth: int) -> None:
    found = judge.judged(*drawn, twentieth / 20, resamples=30)
    for name, (low, high) in found["intervals"].items():
        assert low <= found[name] + 1e-9, name
        assert high >= found[name] - 1e-9, name


@given(cases())
def test_curves_end_where_they_must(drawn: tuple[F64, F64]) -> None:
    truth, risk = drawn
    curves = judge.curves_of(truth, risk)
    assert curves["roc"][0] == [0, 0]
    assert curves["roc"][-1] == [1, 1]
    assert (np.diff(np.array(curves["roc"]), axis=0) >= 0).all()
    assert curves["precision_recall"][-1] == pytest.approx([1, truth.mean()], abs=1e-4)
    assert sum(group[2] for group in curves["calibration"]) == len(truth)
    for at, model, everyone in curves["decision"]:
        share = truth.mean()
        assert everyone == pytest.approx(share - (1 - share) * at / (1 - at), abs=1e-5)
        assert model <= share + 1e-5


def test_the_area_under_the_drawn_curve_is_the_auroc() -> None:
    truth, risk = many()
    points = np.array(judge.curves_of(truth, risk)["roc"])
    assert len(points) == judge.CURVE_POINTS
    area = float(np.sum(np.diff(points[:, 0]) * (points[1:, 1] + points[:-1, 1]) / 2))
    assert area == pytest.approx(metrics.auroc(truth, risk), abs=2e-3)


def test_the_same_seed_gives_the_same_judgement() -> None:
    truth, risk = many()
    one, again, other = (judge.judged(truth, risk, 0.3, resamples=50, seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert one["intervals"] != other["intervals"]


def test_intervals_are_as_wide_as_theory_has_them() -> None:
    """A share's standard error is known: accuracy, and the mean risk less the share of positives."""
    truth, risk = many()
    found = judge.judged(truth, risk, 0.3, resamples=2000)
    for name, spread in (
        ("sensitivity", np.sqrt(found["sensitivity"] * (1 - found["sensitivity"]) / truth.sum())),
        ("calibration_in_the_large", np.std(risk - truth) / np.sqrt(len(truth))),
    ):
        low, high = found["intervals"][name]
        assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.08), name


def test_the_error_of_calibrated_risks_has_an_interval_near_nought() -> None:
    rng = np.random.default_rng(0)
    risk = rng.uniform(0.02, 0.6, 2000)
    found = judge.judged((rng.random(2000) < risk).astype(float), risk, 0.3)
    assert found["intervals"]["ece"][0] < 0.012
    assert found["ece"] < found["intervals"]["ece"][1] < 0.05


def test_differences_are_paired() -> None:
    """Of a model and itself with a little noise: far narrower than the intervals of either."""
    truth, risk = many()
    noisy = risk + np.random.default_rng(1).normal(0, 0.01, len(risk))
    ours, theirs = (judge.replicated(truth, score, None, probability=False) for score in (risk, noisy))
    figure, other = metrics.auroc(truth, risk), metrics.auroc(truth, noisy)
    gap, low, high = judge.difference(ours, theirs, figure, other, "auroc")
    assert gap == pytest.approx(figure - other, abs=1e-4)
    alone = judge.interval(figure, ours["auroc"])
    assert high - low < 0.3 * (alone[1] - alone[0])


@pytest.mark.parametrize(
    ("truth", "risk"),
    [([0, 0], [0.1, 0.2]), ([1, 1], [0.1, 0.2]), ([0, 1], [0.1]), ([0, 1], [0.1, np.nan]), ([0, 2], [0, 1])],
)
def test_what_cannot_be_judged(truth: list[int], risk: list[float]) -> None:
    with pytest.raises(ValueError, match="judging needs"):
        judge.judged(np.array(truth), np.array(risk), 0.5)


def many(number: int = 1500) -> tuple[F64, F64]:
    rng = np.random.default_rng(7)
    truth = (rng.random(number) < 0.2).astype(float)
    return truth, 1 / (1 + np.exp(-rng.normal(2 * truth - 2, 1)))


def test_a_share_that_resampling_cannot_move_has_an_interval_all_the_same() -> None:
    truth = np.repeat([0.0, 1.0], [135, 40])
    risk = np.where(truth == 1, 0.9, 0.1)
    found = judge.judged(truth, risk, 0.5)
    assert found["specificity"] == 1.0
    assert found["intervals"]["specificity"] == [0.9723, 1.0]
    assert found["intervals"]["sensitivity"] == [0.9124, 1.0]
    assert found["intervals"]["accuracy"][0] < found["accuracy"]


@given(st.integers(1, 200), st.data())
def test_wilsons_interval_solves_its_equation(cases: int, data: st.DataObject) -> None:
    share = data.draw(st.integers(0, cases)) / cases
    low, high = judge.wilson(share, cases)
    assert 0 <= low <= round(share, 4) + 1e-4
    assert round(share, 4) - 1e-4 <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert abs(share - end) == pytest.approx(1.96 * (end * (1 - end) / cases) ** 0.5, abs=2e-4)
