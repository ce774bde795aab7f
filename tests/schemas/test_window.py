"""The window's arithmetic: `open_row` after `carry` is the last row of `rows`, whatever the history."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from hypothesis.strategies import SearchStrategy

from schemas.features import CHANNEL, STATIC
from schemas.window import (
    CHANNELS,
    F32,
    FILL,
    HOUR_MS,
    NEVER,
    WINDOW_BINS,
    Rows,
    bin_of,
    carry,
    open_row,
    rows,
    whole,
)

HEART_RATE = CHANNEL["heart_rate"]
AGE = CHANNEL["age"]
UNKNOWN: F32 = np.full(len(STATIC), np.nan, dtype=np.float32)


def blank(n: int) -> tuple[F32, F32]:
    return np.zeros((n, CHANNELS), dtype=np.float32), np.zeros((n, CHANNELS), dtype=np.float32)


def empty_rows(n: int) -> Rows:
    return Rows(*(np.full((n, CHANNELS), np.nan, dtype=np.float32) for _ in range(3)))


@st.composite
def windows(draw: st.DrawFn) -> tuple[F32, F32, F32]:
    """values, counts, statics of 1 to 48 bins."""
    n = draw(st.integers(1, WINDOW_BINS))
    reading = st.floats(0, 300, width=32)
    values = draw(hnp.arrays(np.float32, (n, CHANNELS), elements=reading, fill=st.just(np.float32(7))))
    seen: SearchStrategy[int] = st.sampled_from([0, 0, 0, 1, 2, 60])
    counts = draw(hnp.arrays(np.float32, (n, CHANNELS), elements=seen, fill=st.nothing()))
    counts[:, list(STATIC)] = 0
    known = st.one_of(st.just(np.nan), st.floats(0, 100, width=32))
    statics = draw(hnp.arrays(np.float32, len(STATIC), elements=known, fill=st.nothing()))
    return values, counts, statics


@given(windows())
def test_the_open_row_equals_the_last_of_the_whole_window(window: tuple[F32, F32, F32]) -> None:
    values, counts, statics = window
    whole = rows(values, counts, statics)
    carried = carry(rows(values[:-1], counts[:-1], statics))
    out = empty_rows(1)
    open_row(carried, values[-1], counts[-1], statics, out, 0)
    for one, all_ in zip(out, whole, strict=True):
        np.testing.assert_array_equal(one[0], all_[-1])


@given(windows(), st.integers(0, WINDOW_BINS))
def test_a_row_does_not_look_ahead(window: tuple[F32, F32, F32], cut: int) -> None:
    values, counts, statics = window
    whole = rows(values, counts, statics)
    start = rows(values[:cut], counts[:cut], statics)
    for part, all_ in zip(start, whole, strict=True):
        np.testing.assert_array_equal(part, all_[:cut])


@given(windows())
def test_rows_are_finite_and_bounded(window: tuple[F32, F32, F32]) -> None:
    whole = rows(*window)
    assert all(array.dtype == np.float32 for array in whole)
    assert all(np.isfinite(array).all() for array in whole)
    assert whole.elapsed.min() >= 0
    assert whole.elapsed.max() <= NEVER


def test_rows_follow_one_channel_hour_by_hour() -> None:
    values, counts = blank(5)
    values[1, HEART_RATE], counts[1, HEART_RATE] = 100, 2
    values[3, HEART_RATE], counts[3, HEART_RATE] = 110, 1
    out = rows(values, counts, UNKNOWN)
    fill = FILL[HEART_RATE]
    assert out.values[:, HEART_RATE].tolist() == [fill, 100, 100, 110, 110]
    assert out.elapsed[:, HEART_RATE].tolist() == [48, 0, 1, 0, 1]
    assert out.counts[:, HEART_RATE].tolist() == [0, 2, 0, 1, 0]


def test_a_value_whose_count_is_zero_is_not_read() -> None:
    values, counts = blank(2)
    values[:] = np.nan
    out = rows(values, counts, UNKNOWN)
    np.testing.assert_array_equal(out.values, np.stack([FILL, FILL]))


def test_static_features_stand_in_every_row_once_known() -> None:
    statics = UNKNOWN.copy()
    statics[STATIC.index(AGE)] = 42
    out = rows(*blank(3), statics)
    assert out.values[:, AGE].tolist() == [42, 42, 42]
    assert out.elapsed[:, AGE].tolist() == [0, 0, 0]
    sex = CHANNEL["sex"]
    assert out.values[:, sex].tolist() == [FILL[sex]] * 3
    assert out.elapsed[:, sex].tolist() == [48, 48, 48]


def test_nothing_is_carried_where_no_bin_is_closed() -> None:
    carried = carry(rows(*blank(0), UNKNOWN))
    np.testing.assert_array_equal(carried.values, FILL)
    np.testing.assert_array_equal(carried.elapsed, np.full(CHANNELS, NEVER, dtype=np.float32))


def test_carry_copies_what_it_hands_on() -> None:
    closed = rows(*blank(2), UNKNOWN)
    carried = carry(closed)
    closed.values[:] = -1
    np.testing.assert_array_equal(carried.values, FILL)


@pytest.mark.parametrize(
    ("time_ms", "expected"),
    [(0, 0), (HOUR_MS - 1, 0), (HOUR_MS, 1), (-1, -1), (1_700_000_000_000, 472_222)],
)
def test_bins_are_utc_hours(time_ms: int, expected: int) -> None:
    assert bin_of(time_ms) == expected


@given(windows())
def test_a_whole_window_is_its_rows_after_hours_in_which_nothing_was_measured(
    window: tuple[F32, F32, F32],
) -> None:
    values, counts, statics = window
    made = whole(rows(values, counts, statics))

    before = WINDOW_BINS - len(values)
    blank = np.zeros((before, CHANNELS), dtype=np.float32)
    longer = rows(np.concatenate([blank, values]), np.concatenate([blank, counts]), statics)
    for came, expected in zip(made, longer, strict=True):
        assert came.dtype == np.float32
        assert came.tobytes() == expected.tobytes()


def test_whole_windows_of_many_patients_at_once() -> None:
    made = [rows(*blank(5), UNKNOWN), rows(*blank(5), np.array([70, 1, np.nan, 3], dtype=np.float32))]
    together = whole(Rows(*(np.stack(arrays) for arrays in zip(*made, strict=True))))
    for i, one in enumerate(made):
        assert [array[i].tobytes() for array in together] == [array.tobytes() for array in whole(one)]
    assert together.values[1, 0, AGE] == 70
    assert together.elapsed[0, 0, AGE] == NEVER
