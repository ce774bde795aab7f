"""The patient window as it stands in Redis: one value for each bin, and one, the hot part, for the rest.

Both are MessagePack arrays whose first element is the layout's version. Arrays inside are packed,
little-endian.
"""

from typing import NamedTuple

from msgspec import Struct

from schemas.latch import Episode, Quiet, Trace

LAYOUT = 5
"""Raise it when a layout, the feature table's order or the meaning of a field changes."""


class StoredBin(Struct, frozen=True, array_like=True):
    """One hour of a window: only the n channels that were measured in it.

    channels: uint8[n]. counts: uint8[n], measurements. values: float32[n], the last of each, canonical units.
    times: uint32[n], ms from the bin's start to the last value.
    ids: event ids of the last values, each once. id_of: uint16[n], position in `ids`.
    """

    layout: int
    channels: bytes
    counts: bytes
    values: bytes
    times: bytes
    ids: list[str]
    id_of: bytes


class Speaker(NamedTuple):
    """The model that made a finding, as it stood then: `digest` of its graph, `backend` that computed it."""

    name: str
    version: int
    digest: str
    backend: str
    outcome: str


class KeptFinding(NamedTuple):
    """The newest finding of one model, as far as a patient's state holds it; fields as in `Finding`.

    time_ms: when the picture was taken. risk: to six decimals.
    classes: name and probability of the most probable of those that are the outcome.
    """

    id: str
    by: Speaker
    time_ms: int
    risk: float
    classes: tuple[tuple[str, float], ...]
    modality: str
    body_part: str
    view: str
    quality: tuple[str, ...]


class StoredPatient(Struct, frozen=True, array_like=True):
    """Everything of a patient but the bins.

    applied: offset after the last record that is in the state.
    touched_ms, newest_ms: time of the last record; newest event time.
    start, open: first non-empty bin of the window, bin in progress; hours since the epoch, -1 for none.
    statics: float32[static features], NaN where unknown. static_order: (event time in ms, event id) of each.
    hidden: float32[width], recurrent state before the open bin; null for zeros.
    recent: channel and its recent values, 8 bytes each: uint32 ms before `newest_ms`, float32 value.
    event_ids: uint64[m], digests of recent event ids, oldest first.
    trace, episode, quiet: the model's latch. news2_trace, news2_episode, news2_quiet: NEWS2's. imaging_trace,
        imaging_episode, imaging_quiet: the imaging model's, and imaging_by what made the finding it rests on.
    findings: the newest of each model, by the model's name.
    care_unit, care_unit_ms: where the patient lies, and the event time of what said so.
    model: fingerprint of the model that `hidden` belongs to (`engines/steps.py`).
    """

    layout: int
    id: str
    applied: int
    touched_ms: int
    newest_ms: int
    start: int
    open: int
    statics: bytes
    static_order: list[tuple[int, str]]
    hidden: bytes | None
    recent: list[tuple[int, bytes]]
    event_ids: bytes
    trace: Trace | None
    episode: Episode | None
    quiet: Quiet | None
    news2_trace: Trace | None
    news2_episode: Episode | None
    news2_quiet: Quiet | None
    imaging_trace: Trace | None
    imaging_episode: Episode | None
    imaging_quiet: Quiet | None
    imaging_by: Speaker | None
    findings: tuple[KeptFinding, ...]
    care_unit: str | None
    care_unit_ms: int
    model: str
