"""What an evaluation says beyond figures: groups, missing channels, forecasts, sentences."""

import numpy as np
import pytest
from numpy.typing import NDArray

from engines import evaluate, judge
from engines.baselines import Baseline
from engines.errors import DatasetError
from engines.forecasts import Forecasts, forecast_errors
from engines.robustness import HALVED, LABORATORY, VITALS, Probe, halved, scenarios, withheld
from engines.subgroups import FEWEST, subgroups
from engines.verdict import verdict
from schemas.features import CHANNEL, FEATURES, STATIC
from schemas.window import NEVER, WINDOW_BINS, Rows, rows

STAYS = 200
NAMES = tuple(feature.name for feature in FEATURES)
F64 = NDArray[np.float64]


@pytest.fixture(scope="module")
def stays() -> Rows:
    return made_rows(STAYS)


@pytest.fixture(scope="module")
def died() -> F64:
    return (np.random.default_rng(1).random(STAYS) < 0.25).astype(float)


def made_rows(number: int) -> Rows:
    rng = np.random.default_rng(0)
    shape = (WINDOW_BINS, len(FEATURES))
    made = []
    for _ in range(number):
        counts = rng.poisson(0.3, shape).astype(np.float32)
        counts[:, list(STATIC)] = 0
        values = rng.normal(50, 10, shape).astype(np.float32)
        statics = np.array([rng.integers(20, 95), rng.integers(0, 2), np.nan, rng.integers(1, 5)], np.float32)
        made.append(rows(values, counts, statics))
    return Rows(*(np.stack(arrays) for arrays in zip(*made, strict=True)))


def risks_of(died: F64, skill: float, seed: int) -> F64:
    """Float64[stays, 48], better with every hour."""
    noise = np.random.default_rng(seed).normal(0, 1, (len(died), WINDOW_BINS))
    logit = skill * (2 * died[:, None] - 1) * np.linspace(0.2, 1, WINDOW_BINS) - 1 + noise
    return np.asarray(1 / (1 + np.exp(-logit)))


def test_an_assessment_has_every_part(stays: Rows, died: F64) -> None:
    risks = risks_of(died, 1.0, seed=2)
    score = np.full((STAYS, WINDOW_BINS), np.nan, np.float32)
    score[:150, -1] = np.round(10 * risks_of(died, 0.3, seed=3)[:150, -1])
    baselines = {
        "boosting": Baseline(risks_of(died, 2.0, seed=4).astype(np.float32), probability=True),
        "saps1": Baseline(score, probability=False),
    }
    told: list[tuple[str, int, int]] = []
    content = evaluate.assess(
        stays,
        died,
        risks,
        0.4,
        features=NAMES,
        baselines=baselines,
        thresholds={"boosting": 0.5},
        forecasts=Forecasts(("heart_rate",), stays.values[..., [CHANNEL["heart_rate"]]]),
        probe=Probe(
            lambda changed: changed.values[..., 5] / 200, np.arange(0, STAYS, 2), "every second stay"
        ),
        progress=lambda *step: told.append(step),
        resamples=50,
    )
    assert list(content["hours"]) == ["6", "12", "24", "48"]
    assert content["hours"]["48"] == judge.judged(died, risks[:, -1], 0.4, resamples=50)
    boosting, saps = (content["baselines"][name] for name in ("boosting", "saps1"))
    gap, low, high = boosting["hours"]["48"]["difference"]["auroc"]
    assert gap == pytest.approx(
        content["hours"]["48"]["auroc"] - boosting["hours"]["48"]["auroc"], abs=1.1e-4
    )
    assert low <= gap <= high < 0
    assert list(saps["hours"]) == ["48"]
    assert saps["hours"]["48"]["n"] == 150
    assert not {"brier", "ece", "event1", "threshold"} & saps["hours"]["48"].keys()
    assert any(s.startswith("Gradient-boosted trees: better than the model in") for s in content["verdict"])
    assert content["robustness"]["n"] == STAYS / 2
    assert content["robustness"]["withheld"][0]["mean_change"] == 0
    assert content["forecast"]["heart_rate"]["difference"] == [0, 0, 0]
    assert ("judging", 4, 4) in told
    assert told[-1][0] == "withholding channels"


def test_outcomes_must_differ(stays: Rows) -> None:
    with pytest.raises(DatasetError, match="deaths and survivors"):
        evaluate.assess(stays, np.zeros(STAYS), np.zeros((STAYS, WINDOW_BINS)), 0.5, features=NAMES)


def test_thresholds_are_those_of_the_best_event1(died: F64) -> None:
    risk = np.full((STAYS, WINDOW_BINS), np.nan, np.float32)
    risk[:, -1] = np.where(died == 1, 7, 3)
    assert evaluate.best_thresholds(died, {"news2": Baseline(risk, probability=False)}) == {"news2": 7.0}


def test_trajectories_are_quartiles_by_outcome(died: F64) -> None:
    risks = risks_of(died, 1.0, seed=2)
    found = evaluate.trajectories(died, risks)
    assert found["deaths"]["n"] + found["survivors"]["n"] == STAYS
    assert found["deaths"]["median"][11] == pytest.approx(np.median(risks[died == 1, 11]), abs=1e-4)
    for group in (found["deaths"], found["survivors"]):
        assert all(a <= b <= c for a, b, c in zip(group["low"], group["median"], group["high"], strict=True))


def test_groups_divide_the_stays(stays: Rows, died: F64) -> None:
    found = subgroups(stays, died, risks_of(died, 1.0, seed=2)[:, -1], 0.4, resamples=20)
    for by in ("age", "sex", "unit"):
        groups = [group for group in found if group["by"] == by]
        assert sum(group["n"] for group in groups) == STAYS
        assert sum(group["positives"] for group in groups) == died.sum()
    for group in found:
        enough = FEWEST <= group["positives"] <= group["n"] - FEWEST
        assert (group["judged"] is not None) == enough
    assert {group["judged"] is None for group in found} == {True, False}


def test_unknown_statics_are_a_group_of_their_own(stays: Rows, died: F64) -> None:
    unknown = withheld(stays, ["age"])
    found = subgroups(unknown, died, risks_of(died, 1.0, seed=2)[:, -1], 0.4, resamples=20)
    assert [group["group"] for group in found if group["by"] == "age"] == ["not recorded"]


def test_withheld_rows_are_those_of_channels_never_measured() -> None:
    rng = np.random.default_rng(3)
    shape = (WINDOW_BINS, len(FEATURES))
    counts = rng.poisson(0.5, shape).astype(np.float32)
    counts[:, list(STATIC)] = 0
    values = rng.normal(50, 10, shape).astype(np.float32)
    statics = np.array([50, 1, np.nan, 2], np.float32)
    names = ["gcs", "lactate", "age"]
    full = Rows(*(array[None] for array in rows(values, counts, statics)))
    counts[:, [CHANNEL["gcs"], CHANNEL["lactate"]]] = 0
    statics[0] = np.nan
    for came, expected in zip(withheld(full, names), rows(values, counts, statics), strict=True):
        np.testing.assert_array_equal(came[0], expected)


def test_half_of_the_observations_are_lost_at_random(stays: Rows) -> None:
    found = halved(stays)
    kept = np.sum(found.counts > 0) / np.sum(stays.counts > 0)
    assert kept == pytest.approx(0.5, abs=0.01)
    seen = found.counts > 0
    np.testing.assert_array_equal(found.values[seen], stays.values[seen])
    assert (found.elapsed >= stays.elapsed).all()
    np.testing.assert_array_equal(found.values[..., STATIC], stays.values[..., STATIC])
    assert all((a == b).all() for a, b in zip(found, halved(stays), strict=True))


def test_only_what_a_model_reads_is_withheld() -> None:
    every = dict(scenarios(NAMES))
    assert len(every) == len(VITALS) + 7
    assert set(every["all laboratory values"]) == set(LABORATORY)
    assert [words for words, _ in scenarios(("heart_rate", "lactate"))] == ["heart rate", HALVED]


def test_forecasts_are_judged_where_both_values_are_known() -> None:
    """One stay, worked by hand: measured in hours 1, 2 and 4."""
    channel = CHANNEL["heart_rate"]
    shape = (WINDOW_BINS, len(FEATURES))
    values, counts = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for hour, value in ((0, 80), (1, 90), (3, 70)):
        values[hour, channel], counts[hour, channel] = value, 1
    one = Rows(*(array[None] for array in rows(values, counts, np.full(4, np.nan, np.float32))))
    made = np.full((1, WINDOW_BINS, 1), 85, np.float32)
    found = forecast_errors(one, Forecasts(("heart_rate",), made))["heart_rate"]
    assert found["n"] == 2
    assert found["mae"] == pytest.approx((5 + 15) / 2)
    assert found["carried_forward_mae"] == pytest.approx((10 + 20) / 2)
    assert found["unit"] == "/min"
    assert (one.elapsed[0, 4:, channel] < NEVER).all()


def test_a_feature_never_measured_is_not_judged(stays: Rows) -> None:
    never = withheld(stays, ["heart_rate"])
    made = np.zeros((STAYS, WINDOW_BINS, 1), np.float32)
    found = forecast_errors(never, Forecasts(("heart_rate",), made))["heart_rate"]
    assert found == {"unit": "/min", "horizon_s": 3600.0, "n": 0}


@pytest.mark.parametrize(
    ("difference", "sentence"),
    [
        (
            [-0.02, -0.03, -0.01],
            "Logistic regression: better than the model in AUROC at 48 h (0.820 against 0.800, difference "
            "+0.020, +0.010 to +0.030).",
        ),
        ([-0.02, -0.05, 0.01], "Logistic regression: ahead, but within the uncertainty, in AUROC"),
        (
            [0.02, -0.01, 0.05],
            "Logistic regression: not told apart from the model, which is ahead, in AUROC at 48 h.",
        ),
        ([0.02, 0.01, 0.05], "The model is better than logistic regression in every figure compared"),
    ],
)
def test_the_verdict_says_who_is_better(difference: list[float], sentence: str) -> None:
    theirs = 0.8 - difference[0]
    other = {"auroc": theirs, "ece": 0.03, "difference": {"auroc": difference}}
    model = {
        "n": 100, "positives": 20, "auroc": 0.8, "auprc": 0.5, "event1": 0.5, "ece": 0.02,
        "intervals": {"auroc": [0.7, 0.9]},
    }  # fmt: skip
    found = verdict({"48": model}, {"logistic": {"title": "logistic regression", "hours": {"48": other}}})
    assert any(words.startswith(sentence) for words in found), found
    nobody = "No simpler model is ahead of it" in " ".join(found)
    assert nobody == (difference[0] > 0)


def test_the_verdict_names_better_calibration() -> None:
    model = {"n": 9, "positives": 2, **dict.fromkeys(("auroc", "auprc", "event1", "ece"), 0.5)}
    other = {"ece": 0.01, "difference": {}}
    found = verdict(
        {"48": model | {"intervals": {"auroc": [0, 1]}}},
        {"logistic": {"title": "logistic regression", "hours": {"48": other}}},
    )
    assert found[-1] == "Logistic regression: smaller calibration error (ECE) at 48 h 0.010 against 0.500."


def test_lists_of_numbers_stand_on_one_line() -> None:
    content = {"a": [1, 2.5, -3e-5], "b": "[\n 1,\n 2\n]", "c": [], "d": [[1, 2], [3, 4]], "e": ["x"]}
    text = evaluate.pretty(content).decode()
    assert '"a": [1, 2.5, -0.00003]' in text or '"a": [1, 2.5, -3e-5]' in text
    assert r'"b": "[\n 1,\n 2\n]"' in text
    assert "[1, 2]" in text


def test_the_verdict_on_a_baseline_of_mixed_fortune() -> None:
    model = {"n": 9, "positives": 2, **dict.fromkeys(("auroc", "auprc", "event1"), 0.8), "ece": 0.01}
    hours = {str(hour): model | {"intervals": {"auroc": [0, 1]}} for hour in (6, 12, 24)}
    gaps = {"6": [-0.02, -0.03, -0.01], "12": [0.01, -0.01, 0.03], "24": [0.01, -0.01, 0.02]}
    baseline = {
        "title": "boosting",
        "hours": {
            hour: {
                "auroc": 0.8 - gap[0],
                "auprc": 0.7,
                "difference": {"auroc": gap, "auprc": [0.1, 0.05, 0.2]},
            }
            for hour, gap in gaps.items()
        },
    }
    assert verdict(hours, {"boosting": baseline})[1] == (
        "Boosting: better than the model in AUROC at 6 h (0.820 against 0.800, difference +0.020, +0.010 to "
        "+0.030); not told apart from the model, which is ahead, in AUROC at 12 and 24 h; the model is "
        "better in all else."
    )


def test_the_verdict_on_many_figures_gives_the_greatest_numbers() -> None:
    model = {"n": 9, "positives": 2, **dict.fromkeys(("auroc", "auprc", "event1"), 0.5), "ece": 0.01}
    hours = {str(hour): model | {"intervals": {"auroc": [0, 1]}} for hour in (6, 12, 24, 48)}
    theirs = {hour: 0.6 + place / 10 for place, hour in enumerate(hours)}
    baseline = {
        "title": "SOFA",
        "hours": {
            hour: {"auroc": theirs[hour], "difference": {"auroc": [0.5 - theirs[hour], -0.5, -0.01]}}
            for hour in hours
        },
    }
    assert verdict(hours, {"sofa": baseline})[1] == (
        "SOFA: better than the model in AUROC at 6, 12, 24 and 48 h, by most in AUROC at 48 h (0.900 against "
        "0.500, difference +0.400, +0.010 to +0.500)."
    )
