"""What one record changes in its patient.

`apply` changes a `Patient` by one record and appends to a `Plan` what must be computed: closed bins to step
the recurrent state over, and one row to score. No I/O and no clock. One thread.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from schemas.features import IS_STATIC, STATIC
from schemas.messages import Rejection
from schemas.window import CHANNELS, HOUR_MS, WINDOW_BINS, Rows, bin_of, open_row
from worker.normalise import CORRECTED, WITHDRAWN, Measurement
from worker.patient import RECENT_EVENTS, RECENT_VALUES, Patient, Recent
from worker.plan import Plan, Scored, Standing, Window

_STATIC_INDEX = {channel: i for i, channel in enumerate(STATIC)}


class Applied(NamedTuple):
    """What a record did: how many observations counted, whether there is something to score."""

    accepted: int
    rejections: list[Rejection]
    scorable: bool


def event_digest(event_id: str, whose: bytes = b"") -> int:
    """64 bits of an event id, by which duplicates are recognised; of vitals unless `whose` says else."""
    return int.from_bytes(blake2b(event_id.encode(), digest_size=8, person=whose).digest(), "big")


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


def plan_score(patient: Patient, at: int, plan: Plan, before: Standing) -> None:
    """Plan to score the patient as it is now, for the record at position `at` of the chunk."""
    slot = patient.open % WINDOW_BINS
    counts = patient.cells.counts[slot].astype(np.float32)
    i = len(plan.scored)
    open_row(patient.carried, patient.cells.values[slot], counts, patient.statics, plan.rows, i)
    plan.times[i] = patient.cells.times[slot]
    chain = plan.chains.get(patient)
    state = chain.length if chain else 0
    window = _window(patient) if plan.keeps_windows else None
    plan.scored.append(
        Scored(
            patient,
            at,
            state,
            patient.newest_ms,
            patient.open,
            patient.carried_times,
            window,
            patient.care_unit,
            patient.findings,
            before,
        )
    )


def _window(patient: Patient) -> Window:
    cells = patient.cells
    return Window(
        patient.start, patient.open, cells.values.copy(), cells.counts.copy(), patient.statics.copy()
    )


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
