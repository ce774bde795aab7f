"""What is remembered of one patient."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.features import STATIC
from schemas.latch import Latch, Which
from schemas.stored import KeptFinding, Speaker
from schemas.window import CHANNELS, HOUR_MS, WINDOW_BINS, Carried, Rows, carry, rows

RECENT_EVENTS = 64
"""Event ids a patient remembers; a record sent again after more than these counts as new."""

RECENT_VALUES = 4
"""Values a channel remembers; a correction of an older one is refused. Bounds the hot state's size."""

FORGET_MS = WINDOW_BINS * HOUR_MS
"""A patient without a record for this long, in record time, starts anew: nothing in the window is left."""

F32 = NDArray[np.float32]


class Recent(NamedTuple):
    """A recent value of a channel."""

    time_ms: int
    value: float


class Cells:
    """The bins' cells, in rings of `WINDOW_BINS` slots; bin b is in slot b % WINDOW_BINS.

    values: float32[slots, channels], last value by (event time, event id).
    counts: uint8[slots, channels], accepted observations, at most 255.
    times: uint32[slots, channels], ms from the bin's start to its last value.
    ids: per slot, None or the event id of each channel's last value.
    """

    __slots__ = ("counts", "ids", "times", "values")

    def __init__(self) -> None:
        self.values: F32 = np.zeros((WINDOW_BINS, CHANNELS), dtype=np.float32)
        self.counts: NDArray[np.uint8] = np.zeros((WINDOW_BINS, CHANNELS), dtype=np.uint8)
        self.times: NDArray[np.uint32] = np.zeros((WINDOW_BINS, CHANNELS), dtype=np.uint32)
        self.ids: list[list[str] | None] = [None] * WINDOW_BINS

    def clear(self, hour: int) -> None:
        """Empty one bin."""
        slot = hour % WINDOW_BINS
        self.counts[slot] = 0
        self.ids[slot] = None

    def empty(self, hour: int) -> bool:
        """Whether nothing was measured in a bin."""
        return self.ids[hour % WINDOW_BINS] is None


class Patient:
    """One patient's state.

    applied: offset after the last record applied and confirmed; earlier records are skipped.
    touched_ms: timestamp of the last record.
    newest_ms: newest event time of a series value; the patient's clock.
    start, open: first non-empty bin of the window, and the bin in progress; -1 before any.
    hidden: recurrent state before the open bin, float32[...]; None for zeros.
    failed: the state, another model's or one that the engine failed on, must be computed anew.
    carried: what the closed bins hand to the open one.
    carried_times: event time in ms of each carried value, int64[channels]; never changed in place.
    latches: what deciding remembers, of the model's risks, of NEWS2 and of the imaging model's findings.
    imaging_by: what made the finding that the imaging latch rests on; None where there is none.
    findings: the newest of each model, by the model's name; never changed in place.
    care_unit, care_unit_ms: where the patient lies, and the event time of what said so.
    dirty_bins, stored_bins: bins changed since they were last stored; bins that the store holds.
    """

    __slots__ = (
        "applied",
        "care_unit",
        "care_unit_ms",
        "carried",
        "carried_times",
        "cells",
        "dirty_bins",
        "event_ids",
        "failed",
        "findings",
        "hidden",
        "id",
        "imaging_by",
        "latches",
        "newest_ms",
        "open",
        "recent",
        "start",
        "static_order",
        "statics",
        "stored_bins",
        "touched_ms",
    )

    def __init__(self, patient_id: str) -> None:
        self.id = patient_id
        self.applied = 0
        self.touched_ms = 0
        self.newest_ms = 0
        self.start = -1
        self.open = -1
        self.cells = Cells()
        self.statics: F32 = np.full(len(STATIC), np.nan, dtype=np.float32)
        self.static_order: list[tuple[int, str]] = [(0, "")] * len(STATIC)
        self.hidden: F32 | None = None
        self.failed = False
        self.carried: Carried = carry(Rows(*(np.zeros((0, CHANNELS), dtype=np.float32),) * 3))
        self.carried_times: NDArray[np.int64] = np.zeros(CHANNELS, dtype=np.int64)
        self.recent: dict[int, list[Recent]] = {}
        self.event_ids: dict[int, None] = {}
        self.latches: dict[Which, Latch] = {"risk": Latch(), "news2": Latch(), "imaging": Latch()}
        self.imaging_by: Speaker | None = None
        self.findings: tuple[KeptFinding, ...] = ()
        self.care_unit: str | None = None
        self.care_unit_ms = 0
        self.dirty_bins: set[int] = set()
        self.stored_bins: set[int] = set()

    def outdate(self) -> None:
        """Have the recurrent state computed anew at the next record."""
        self.hidden, self.failed = None, True

    def window(self) -> tuple[F32, F32]:
        """(values, counts), each float32[n, channels], of the closed bins from `start` on."""
        slots = np.arange(self.start, self.open) % WINDOW_BINS
        return self.cells.values[slots], self.cells.counts[slots].astype(np.float32)

    def filled_bins(self) -> set[int]:
        """Bins of the window in which something was measured."""
        if self.open < 0:
            return set()
        return {h for h in range(self.open - WINDOW_BINS + 1, self.open + 1) if not self.cells.empty(h)}

    def carry_over(self) -> Rows:
        """Refresh what the closed bins hand to the open one; returns their rows."""
        steps = rows(*self.window(), self.statics)
        self.carried = carry(steps)
        hours = self.open - self.carried.elapsed.astype(np.int64)
        within = self.cells.times[hours % WINDOW_BINS, np.arange(CHANNELS)]
        self.carried_times = hours * HOUR_MS + within
        return steps
