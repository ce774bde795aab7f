"""The baselines: summaries and NEWS2 against slow references, learned ones as they were fitted."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines import baselines, repository
from engines.baselines import F32, SERIES, Fitted, Logistic, Trees
from engines.errors import RepositoryError
from engines.physionet2012 import Stay
from schemas import news2
from schemas.features import CHANNEL, FEATURES, IS_STATIC, STATIC
from schemas.window import NEVER, WINDOW_BINS, Rows, rows

SOME = ("heart_rate", "age", "gcs", "cholesterol", "height", "systolic_pressure", "lactate")


def made_rows(stays: int, seed: int = 1, hours: int = WINDOW_BINS) -> Rows:
    """Rows of stays that never were, with gaps; cholesterol is never measured."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(stays):
        shape = (hours, len(FEATURES))
        counts = rng.poisson(rng.uniform(0, 0.6, len(FEATURES)), shape).astype(np.float32)
        counts[:, [*STATIC, CHANNEL["cholesterol"]]] = 0
        low, high = (np.array([getattr(f, side) for f in FEATURES]) for side in ("low", "high"))
        fill = np.array([feature.fill for feature in FEATURES])
        values = np.clip(fill * rng.normal(1, 0.25, shape), low, high).astype(np.float32)
        statics = np.array([rng.uniform(20, 90), rng.integers(0, 2), np.nan, rng.integers(1, 5)], np.float32)
        statics[rng.random(4) < 0.2] = np.nan
        made.append(rows(values, counts, statics))
    return Rows(*(np.stack(arrays) for arrays in zip(*made, strict=True)))


def made_outcomes(stays: Rows, seed: int = 2) -> F32:
    rng = np.random.default_rng(seed)
    gcs = stays.values[:, -1, CHANNEL["gcs"]] + rng.normal(0, 1, len(stays.values))
    return (gcs < np.quantile(gcs, 0.3)).astype(np.float32)


def summary_of(series: Rows, stay: int, hour: int, channel: int) -> list[float]:
    """What `summaries` says of one series at one hour, by a loop over the hours so far."""
    seen = [h for h in range(hour + 1) if series.counts[stay, h, channel] > 0]
    count = float(series.counts[stay, : hour + 1, channel].sum())
    if not seen:
        return [np.nan, np.nan, np.nan, np.nan, np.nan, count, np.nan]
    values = [float(series.values[stay, h, channel]) for h in seen]
    return [
        values[-1],
        float(hour - seen[-1]),
        min(values),
        max(values),
        sum(values) / len(values),
        count,
        values[-1] - values[0],
    ]


def test_summaries_say_what_a_loop_over_the_hours_says() -> None:
    stays = made_rows(6)
    found = baselines.summaries(stays, SOME)
    names = baselines.column_names(SOME)
    assert found.dtype == np.float32
    assert found.shape == (6, WINDOW_BINS, len(names))
    np.testing.assert_array_equal(found[..., 0], np.tile(np.arange(1.0, 49), (6, 1)))
    for name in SOME:
        channel = CHANNEL[name]
        for stay in range(6):
            for hour in (0, 1, 7, 30, 47):
                if IS_STATIC[channel]:
                    known = stays.elapsed[stay, hour, channel] < NEVER
                    expected = [float(stays.values[stay, hour, channel]) if known else np.nan]
                    columns = [names.index(name)]
                else:
                    expected = summary_of(stays, stay, hour, channel)
                    columns = [names.index(f"{name} {summary}") for summary in SERIES]
                np.testing.assert_allclose(found[stay, hour, columns], expected, rtol=1e-5, atol=1e-4)


def test_a_summary_knows_nothing_of_later_hours() -> None:
    stays = made_rows(3)
    early = baselines.summaries(Rows(*(array[:, :10] for array in stays)), SOME)
    np.testing.assert_array_equal(baselines.summaries(stays, SOME)[:, :10], early)


def test_news2_at_every_hour_is_the_low_end_of_the_score() -> None:
    stays = made_rows(4)
    found = baselines.news2_totals(stays)
    assert found.dtype == np.float32
    assert found.max() > 7
    for stay in range(4):
        for hour in range(WINDOW_BINS):
            newest = {
                feature.name: (
                    float(stays.values[stay, hour, channel]),
                    float(stays.elapsed[stay, hour, channel]),
                )
                for channel, feature in enumerate(FEATURES)
                if stays.elapsed[stay, hour, channel] < NEVER
            }
            assert found[stay, hour] == news2.news2(news2.observed(newest, fresh_s=NEVER)).low


def stay_of(record: str, saps1: int | None, sofa: int | None) -> Stay:
    return Stay(record, (), 0, 0, saps1, sofa)


def test_severity_scores_are_known_at_the_end_alone() -> None:
    stays = [stay_of("1", 6, None), stay_of("2", None, None)]
    learned = {"boosting": np.zeros((2, WINDOW_BINS), np.float32)}
    found = baselines.compared(stays, made_rows(2), learned)
    assert list(found) == ["boosting", "news2", "saps1"]
    assert [found[name].probability for name in found] == [True, False, False]
    saps1 = found["saps1"].risk
    assert np.isnan(saps1[:, :-1]).all()
    np.testing.assert_array_equal(saps1[:, -1], [6, np.nan])


def made_trees() -> Trees:
    """Column 1 <= 80 (NaN right) -> -1, else column 2 <= 0 (NaN left) -> 2 or 3; and a stump of one leaf."""
    return Trees(
        roots=np.array([0, 5], np.int32),
        column=np.array([1, -1, 2, -1, -1, -1], np.int32),
        threshold=np.array([80, 0, 0, 0, 0, 0], np.float32),
        left=np.array([1, 0, 3, 0, 0, 0], np.int32),
        right=np.array([2, 0, 4, 0, 0, 0], np.int32),
        missing_left=np.array([False, False, True, False, False, False]),
        value=np.array([0, -1, 0, 2, 3, 0.25]),
        intercept=np.array(10.0),
    )


def test_trees_by_hand() -> None:
    nan = np.nan
    columns = np.array([[1, 80, 9], [1, 81, 0], [1, 81, 1], [1, nan, nan], [1, nan, 5]], np.float32)
    assert baselines.tree_logits(made_trees(), columns).tolist() == [9.25, 12.25, 13.25, 12.25, 13.25]


def made_fitted() -> Fitted:
    columns = len(baselines.column_names(("heart_rate",)))
    ones = np.ones(columns)
    logistic = Logistic(
        np.zeros(columns, bool), 0 * ones, ones, 4 * ones, np.arange(columns) / 10, np.array(-1.0)
    )
    return Fitted(("heart_rate",), logistic, made_trees())


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / repository.BASELINES
    path.write_bytes(baselines.to_bytes(made_fitted()))
    assert baselines.to_bytes(baselines.load(path)) == path.read_bytes()


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 no archive", b"\x93NUMPY\x01\x00v\x00{'descr': '<f8'}"]
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "b.npz").write_bytes(content)
    with pytest.raises(RepositoryError, match="copy the model folder again"):
        baselines.load(tmp_path / "b.npz")


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("features", ("heart_beat",), "features must be from the feature table, came"),
        ("features", ("heart_rate", "gcs"), "the regression must have 15 columns"),
        ("trees", {"value": np.zeros(3)}, "must have one entry in each array"),
        (
            "trees",
            {"column": np.array([1, -1, 8, -1, -1, -1], np.int32)},
            "must read the regression's columns",
        ),
        ("trees", {"right": np.array([2, 0, 0, 0, 0, 0], np.int32)}, "must lead to later nodes"),
        ("trees", {"right": np.array([2, 0, 6, 0, 0, 0], np.int32)}, "must lead to later nodes"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(
    tmp_path: Path, part: str, change: Any, message: str
) -> None:
    fitted = made_fitted()
    changed: Any = {part: fitted.trees._replace(**change) if part == "trees" else change}
    (tmp_path / "b.npz").write_bytes(baselines.to_bytes(fitted._replace(**changed)))
    with pytest.raises(RepositoryError, match=message):
        baselines.load(tmp_path / "b.npz")


@settings(max_examples=20)
@given(st.integers(1, 7))
def test_a_stay_has_one_risk_in_any_company(stays: int) -> None:
    everyone = made_rows(7)
    together = baselines.learned(made_fitted(), everyone)
    apart = baselines.learned(made_fitted(), Rows(*(array[:stays] for array in everyone)))
    for name in ("boosting", "logistic"):
        np.testing.assert_allclose(apart[name], together[name][:stays], rtol=1e-6)
