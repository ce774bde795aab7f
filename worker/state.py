"""What is remembered of each patient, and what one record changes in it.

A `Patient` holds 48 hourly bins, the recurrent state before the open bin, recent values for corrections,
recent event ids for duplicates, and the latch. `apply` changes it by one record and appends to a `Plan`
what must be computed: closed bins to step the recurrent state over, and one row to score.

No I/O and no clock. One thread.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.features import IS_STATIC, STATIC
from schemas.latch import Latch
from schemas.messages import Rejection
from schemas.window import (
    CHANNELS,
    HOUR_MS,
    WINDOW_BINS,
    Carried,
    Rows,
    bin_of,
    carry,
    open_row,
    rows,
)
from worker.normalise import CORRECTED, WITHDRAWN, Measurement
from worker.plan import Plan, Scored

RECENT_EVENTS = 64
"""Event ids a patient remembers; a record sent again after more than these counts as new."""

RECENT_VALUES = 4
"""Values a channel remembers; a correction of an older one is refused. Bounds the hot state's size."""

FORGET_MS = WINDOW_BINS * HOUR_MS
"""A patient without a record for this long, in record time, starts anew: nothing in the window is left."""

_STATIC_INDEX = {channel: i for i, channel in enumerate(STATIC)}

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
    failed: the engine failed on the state, so it must be computed anew.
    carried: what the closed bins hand to the open one.
    carried_times: event time in ms of each carried value, int64[channels]; never changed in place.
    dirty_bins, stored_bins: bins changed since they were last stored; bins that the store holds.
    """

    __slots__ = (
        "applied",
        "carried",
        "carried_times",
        "cells",
        "dirty_bins",
        "event_ids",
        "failed",
        "hidden",
        "id",
        "latch",
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
        self.latch = Latch()
        self.dirty_bins: set[int] = set()
        self.stored_bins: set[int] = set()

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


class Applied(NamedTuple):
    """What a record did: how many observations counted, whether there is something to score."""

    accepted: int
    rejections: list[Rejection]
    scorable: bool


def event_digest(event_id: str) -> int:
    """64 bits of an event id, by which duplicates are recognised."""
    return int.from_bytes(blake2b(event_id.encode(), digest_size=8).digest(), "big")


def remember_event(patient: Patient, digest: int) -> None:
    """Enter an event among the patient's recent ones; the oldest makes room."""
    patient.event_ids[digest] = None
    if len(patient.event_ids) > RECENT_EVENTS:
        del patient.event_ids[next(iter(patient.event_ids))]


def apply(
    patient: Patient,
    event_id: str,
    measurements: Sequence[Measurement],
    scored_channels: frozenset[int],
    plan: Plan,
) -> Applied:
    """Apply one record's measurements; plan the closed bins that the model must step over.

    Args:
        patient: changed in place.
        event_id: of the record; the greatest wins between two values of one time.
        measurements: in message order; between two of one channel and time the later wins.
        scored_channels: channels that the model reads.
        plan: the chunk's plan; its chain of this patient is extended.
    """
    before_open, before_start = patient.open, patient.start
    oldest_changed = patient.open
    rejections: list[Rejection] = []
    accepted, scorable, restart = 0, False, False
    for m in measurements:
        if IS_STATIC[m.channel]:
            before = patient.statics[_STATIC_INDEX[m.channel]]
            fault = _apply_static(patient, event_id, m)
            after = patient.statics[_STATIC_INDEX[m.channel]]
            # Feeds restate age and sex with every message; only a change makes the window be encoded anew.
            restart = restart or not (before == after or (np.isnan(before) and np.isnan(after)))
        elif patient.open >= 0 and bin_of(m.time_ms) <= patient.open - WINDOW_BINS:
            fault = "too-late"
        elif m.status in CORRECTED or m.status in WITHDRAWN:
            fault = _correct(patient, event_id, m)
        else:
            _insert(patient, event_id, m)
            fault = None
        if fault is not None:
            rejections.append(Rejection(fault, m.path))
            continue
        accepted += 1
        scorable = scorable or m.channel in scored_channels
        if not IS_STATIC[m.channel]:
            oldest_changed = min(oldest_changed, bin_of(m.time_ms)) if before_open >= 0 else before_open
    if accepted and patient.open >= 0:
        late = before_open >= 0 and oldest_changed < before_open
        restart, patient.failed = restart or patient.failed, False
        _plan_steps(patient, before_open, before_start, plan, restart=late or (restart and before_open >= 0))
    return Applied(accepted, rejections, scorable and patient.open >= 0)


def plan_score(patient: Patient, at: int, plan: Plan) -> None:
    """Plan to score the patient as it is now, for the record at position `at` of the chunk."""
    slot = patient.open % WINDOW_BINS
    counts = patient.cells.counts[slot].astype(np.float32)
    i = len(plan.scored)
    open_row(patient.carried, patient.cells.values[slot], counts, patient.statics, plan.rows, i)
    plan.times[i] = patient.cells.times[slot]
    chain = plan.chains.get(patient)
    state = chain.length if chain else 0
    plan.scored.append(Scored(patient, at, state, patient.newest_ms, patient.open, patient.carried_times))


def plan_encoding(patient: Patient, plan: Plan) -> None:
    """Plan to compute the recurrent state anew from the whole window, as after a change of model."""
    _plan_steps(patient, patient.open, patient.start, plan, restart=True)


def _plan_steps(patient: Patient, before_open: int, before_start: int, plan: Plan, *, restart: bool) -> None:
    """Extend the patient's chain from the state before the old open bin to that before the new one."""
    if patient.open == before_open and not restart:
        return  # no closed bin has changed, so the window starts where it did
    patient.start = _first_bin(patient)
    restart = restart or patient.start != before_start
    steps = patient.carry_over()
    chain = plan.chain(patient)
    if restart:
        chain.reset()
        chain.extend(steps)
    else:
        chain.extend(Rows(*(a[before_open - patient.start :] for a in steps)))


def _first_bin(patient: Patient) -> int:
    for hour in range(patient.open - WINDOW_BINS + 1, patient.open):
        if not patient.cells.empty(hour):
            return hour
    return patient.open


def _insert(patient: Patient, event_id: str, m: Measurement) -> None:
    hour, within = divmod(m.time_ms, HOUR_MS)
    if hour > patient.open:
        _roll(patient, hour)
    patient.newest_ms = max(patient.newest_ms, m.time_ms)
    cells, slot, channel = patient.cells, hour % WINDOW_BINS, m.channel
    ids = cells.ids[slot]
    if ids is None:
        ids = cells.ids[slot] = [""] * CHANNELS
    count: int = cells.counts.item(slot, channel)
    last: int = cells.times.item(slot, channel)
    shown = count == 0 or within > last or (within == last and event_id >= ids[channel])
    if shown:
        cells.values[slot, channel] = m.value
        cells.times[slot, channel] = within
        ids[channel] = event_id
    cells.counts[slot, channel] = min(count + 1, 255)
    patient.dirty_bins.add(hour)
    _remember(patient, m, shown=shown)


def _remember(patient: Patient, m: Measurement, *, shown: bool) -> None:
    """Keep the newest values by time; among equal times the one that the bin shows stands last."""
    values = patient.recent.setdefault(m.channel, [])
    at = len(values)
    while at and (values[at - 1].time_ms > m.time_ms or (values[at - 1].time_ms == m.time_ms and not shown)):
        at -= 1
    values.insert(at, Recent(m.time_ms, m.value))
    if len(values) > RECENT_VALUES:
        del values[0]


def _roll(patient: Patient, hour: int) -> None:
    """Open bin `hour`; bins that leave the window or lie between are emptied."""
    first = max(patient.open + 1, hour - WINDOW_BINS + 1) if patient.open >= 0 else hour
    for between in range(first, hour + 1):
        patient.cells.clear(between)
    patient.open = hour


def _apply_static(patient: Patient, event_id: str, m: Measurement) -> str | None:
    i = _STATIC_INDEX[m.channel]
    if m.status in CORRECTED or m.status in WITHDRAWN:
        if m.time_ms != patient.static_order[i][0] or np.isnan(patient.statics[i]):
            return "correction-out-of-reach"
        patient.statics[i] = np.nan if m.status in WITHDRAWN else m.value
        patient.static_order[i] = max(patient.static_order[i], (m.time_ms, event_id))
    elif np.isnan(patient.statics[i]) or (m.time_ms, event_id) >= patient.static_order[i]:
        patient.statics[i] = m.value
        patient.static_order[i] = (m.time_ms, event_id)
    return None


def _correct(patient: Patient, event_id: str, m: Measurement) -> str | None:
    """Replace or take back the value of the same channel and time; refused beyond the recent values."""
    values = patient.recent.get(m.channel, [])
    at = next((i for i in reversed(range(len(values))) if values[i].time_ms == m.time_ms), None)
    if at is None:
        return "correction-out-of-reach"
    hour, within = divmod(m.time_ms, HOUR_MS)
    cells, slot, channel = patient.cells, hour % WINDOW_BINS, m.channel
    ids = cells.ids[slot]
    if ids is None or not cells.counts[slot, channel]:
        return "correction-out-of-reach"
    shown = int(cells.times[slot, channel]) == within
    if m.status in CORRECTED:
        values[at] = Recent(m.time_ms, m.value)
        if shown:
            cells.values[slot, channel] = m.value
            ids[channel] = max(ids[channel], event_id)
    else:
        before = next((v for v in reversed(values[:at]) if bin_of(v.time_ms) == hour), None)
        if shown and cells.counts[slot, channel] > 1:
            if before is None:
                return "correction-out-of-reach"
            cells.values[slot, channel] = before.value
            cells.times[slot, channel] = before.time_ms % HOUR_MS
            ids[channel] = ""
        cells.counts[slot, channel] -= 1
        if not cells.counts[slot].any():
            cells.ids[slot] = None
        del values[at]
    patient.dirty_bins.add(hour)
    return None
