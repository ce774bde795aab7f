"""The patient window and the arithmetic that turns it into model inputs.

A patient's series are kept in 48 hourly bins aligned to UTC hours. Risk is a pure function of these
bins and the static features: training builds its inputs with `rows` over whole stays, the worker with
the same `rows` when it re-encodes and with `open_row` for the hour in progress.

A row, the input of one recurrent step, is three `float32[channels]` vectors:

    values   last known value in the canonical unit; the feature's fill where none is in the window
    elapsed  hours since that value's bin: 0 in its own bin, up to 47; 48 where none is in the window
    counts   number of measurements in this bin

Static features stand in every row with elapsed 0 once known (48 and the fill value before), count 0.

A model that reads the whole window at once gets `whole`: always 48 rows, the newest last.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.features import FEATURES, STATIC

HOUR_MS = 3_600_000
"""Milliseconds in a bin."""

WINDOW_BINS = 48
"""Bins in the window: the risk at any time depends on this many hours, the open one included."""

NEVER = float(WINDOW_BINS)
"""`elapsed` where no value is in the window, hours."""

CHANNELS = len(FEATURES)

FILL: NDArray[np.float32] = np.array([feature.fill for feature in FEATURES], dtype=np.float32)
"""float32[channels], canonical units."""

_STATIC = np.array(STATIC, dtype=np.intp)
_STATIC_FILL = FILL[_STATIC]
_ZERO, _NEVER = np.float32(0), np.float32(NEVER)

F32 = NDArray[np.float32]


class Rows(NamedTuple):
    """Model inputs for n steps, each array float32[n, channels]."""

    values: F32
    elapsed: F32
    counts: F32


class Carried(NamedTuple):
    """What the closed bins hand to the open one.

    values: float32[channels], last value before the open bin, fill where none is in the window.
    elapsed: float32[channels], hours from that value's bin to the open bin, 48 where none.
    """

    values: F32
    elapsed: F32


def bin_of(time_ms: int) -> int:
    """Number of the UTC hour that holds a time in milliseconds since the epoch."""
    return time_ms // HOUR_MS


def rows(values: F32, counts: F32, statics: F32) -> Rows:
    """Rows of consecutive bins, the first of which starts the window.

    Args:
        values: float32[n, channels], last value in each bin; read only where `counts` is above 0.
        counts: float32[n, channels], measurements in each bin; static channels are 0.
        statics: float32[len(STATIC)], static values, NaN where unknown.

    Returns:
        Rows of n steps.
    """
    n = len(values)
    step = np.arange(n, dtype=np.int32)[:, None]
    seen = np.maximum.accumulate(np.where(counts > 0, step, -1), axis=0)
    known = seen >= 0
    carried = np.take_along_axis(values, np.maximum(seen, 0), axis=0)
    out = Rows(
        np.where(known, carried, FILL).astype(np.float32),
        np.where(known, step - seen, NEVER).astype(np.float32),
        counts.astype(np.float32),
    )
    known_static = ~np.isnan(statics)
    out.values[:, _STATIC] = np.where(known_static, statics, FILL[_STATIC])
    out.elapsed[:, _STATIC] = np.where(known_static, 0.0, NEVER)
    return out


def whole(steps: Rows) -> Rows:
    """Rows of a window of 1 to 48 steps as exactly 48 rows, the newest last.

    The hours before the first step are rows in which nothing was ever measured: fill, elapsed 48, count 0.
    Static features stand in them as in the newest row.

    Args:
        steps: float32[..., n, channels], oldest first.

    Returns:
        float32[..., 48, channels].
    """
    *lead, n, channels = steps.values.shape
    shape = (*lead, WINDOW_BINS - n, channels)
    blank = Rows(
        np.broadcast_to(FILL, shape).copy(),
        np.full(shape, NEVER, dtype=np.float32),
        np.zeros(shape, dtype=np.float32),
    )
    for before, rows_of in ((blank.values, steps.values), (blank.elapsed, steps.elapsed)):
        before[..., _STATIC] = rows_of[..., -1:, _STATIC]
    return Rows(*(np.concatenate(pair, axis=-2) for pair in zip(blank, steps, strict=True)))


def carry(closed: Rows) -> Carried:
    """What `open_row` needs of the closed bins' rows: the last row, one hour older.

    Args:
        closed: rows of the window's closed bins, oldest first; may have no steps.
    """
    if not len(closed.values):
        return Carried(FILL.copy(), np.full(CHANNELS, NEVER, dtype=np.float32))
    elapsed = np.where(closed.elapsed[-1] < NEVER, closed.elapsed[-1] + 1, NEVER).astype(np.float32)
    return Carried(closed.values[-1].copy(), elapsed)


def open_row(carried: Carried, values: F32, counts: F32, statics: F32, out: Rows, i: int) -> None:
    """Write the open bin's row into position i of `out`; equal to the last of `rows` over the window.

    Args:
        carried: from `carry` over the closed bins.
        values: float32[channels], last value in the open bin; read only where `counts` is above 0.
        counts: float32[channels], measurements in the open bin.
        statics: float32[len(STATIC)], NaN where unknown.
        out: rows to write to.
        i: row number.
    """
    observed = counts > 0
    out.values[i] = np.where(observed, values, carried.values)
    out.elapsed[i] = np.where(observed, _ZERO, carried.elapsed)
    out.counts[i] = counts
    unknown = np.isnan(statics)
    out.values[i, _STATIC] = np.where(unknown, _STATIC_FILL, statics)
    out.elapsed[i, _STATIC] = np.where(unknown, _NEVER, _ZERO)
