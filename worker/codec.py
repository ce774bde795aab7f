"""A patient's state <-> bytes for Redis.

The layouts are in `schemas/stored.py`. Four bytes of CRC-32 end each value: what is damaged or of another
layout reads as if nothing were stored, and the state is rebuilt.
"""

import struct
import zlib
from typing import Any

import msgspec
import numpy as np

from schemas.features import STATIC
from schemas.latch import Latch
from schemas.stored import LAYOUT, StoredBin, StoredPatient
from schemas.window import CHANNELS, HOUR_MS, WINDOW_BINS
from worker.patient import Patient, Recent

_WINDOW_MS = WINDOW_BINS * HOUR_MS

_encode = msgspec.msgpack.Encoder().encode

_recent_pair = struct.Struct("<If").pack
"""Age in ms and value. Channels hold few values, so numpy's cost per array would be most of a checkpoint."""


_hot = msgspec.msgpack.Decoder(StoredPatient)
_bin = msgspec.msgpack.Decoder(StoredBin)


class LayoutError(ValueError):
    """Stored state is of another layout, or damaged; rebuild it."""


def encode_hot(patient: Patient, model: str) -> bytes:
    """The hot part; `model` is the fingerprint of the model that the recurrent state belongs to."""
    return _sealed(
        StoredPatient(
            LAYOUT,
            patient.id,
            patient.applied,
            patient.touched_ms,
            patient.newest_ms,
            patient.start,
            patient.open,
            patient.statics.tobytes(),
            patient.static_order,
            None if patient.hidden is None else patient.hidden.tobytes(),
            _pack_recent(patient),
            np.array(list(patient.event_ids), dtype="<u8").tobytes(),
            *patient.latches["risk"],
            *patient.latches["news2"],
            *patient.latches["imaging"],
            patient.imaging_by,
            patient.findings,
            patient.care_unit,
            patient.care_unit_ms,
            # A state that is of no use belongs to no model: it is computed anew when it is loaded.
            "" if patient.failed else model,
        )
    )


def encode_bin(patient: Patient, hour: int) -> bytes:
    """One bin of the window."""
    cells, slot = patient.cells, hour % WINDOW_BINS
    channels = np.flatnonzero(cells.counts[slot])
    names = cells.ids[slot] or [""] * CHANNELS
    ids = sorted({names[c] for c in channels})
    index = {name: i for i, name in enumerate(ids)}
    return _sealed(
        StoredBin(
            LAYOUT,
            channels.astype("u1").tobytes(),
            cells.counts[slot, channels].tobytes(),
            cells.values[slot, channels].astype("<f4").tobytes(),
            cells.times[slot, channels].astype("<u4").tobytes(),
            ids,
            np.array([index[names[c]] for c in channels], dtype="<u2").tobytes(),
        )
    )


def decode(hot: bytes, bins: dict[int, bytes], model: str) -> Patient:
    """A patient from its stored values; a recurrent state of another fingerprint than `model` is outdated.

    Raises:
        LayoutError: the values are of another layout or damaged.
    """
    try:
        stored = _hot.decode(_opened(hot))
        if stored.layout != LAYOUT:
            raise LayoutError(f"stored state has layout {stored.layout}, this program writes {LAYOUT}")
        patient = Patient(stored.id)
        _restore_hot(patient, stored)
        for hour, value in bins.items():
            patient.stored_bins.add(hour)
            if stored.open - WINDOW_BINS < hour <= stored.open:
                _restore_bin(patient, hour, _bin.decode(_opened(value)))
    except LayoutError:
        raise
    except (msgspec.MsgspecError, ValueError, IndexError, TypeError) as error:
        raise LayoutError(f"stored state cannot be read: {type(error).__name__}") from None
    if patient.open >= 0:
        patient.carry_over()
    if stored.model != model:
        patient.outdate()
    return patient


def _sealed(value: StoredPatient | StoredBin) -> bytes:
    packed = _encode(value)
    return packed + zlib.crc32(packed).to_bytes(4, "little")


def _opened(value: bytes) -> bytes:
    packed = value[:-4]
    if zlib.crc32(packed).to_bytes(4, "little") != value[-4:]:
        raise LayoutError("stored state is damaged")
    return packed


def _restore_hot(patient: Patient, stored: StoredPatient) -> None:
    patient.applied = stored.applied
    patient.touched_ms = stored.touched_ms
    patient.newest_ms = stored.newest_ms
    patient.start, patient.open = stored.start, stored.open
    patient.statics = np.frombuffer(stored.statics, dtype="<f4").astype(np.float32)
    if len(patient.statics) != len(STATIC):
        raise LayoutError("another feature table")
    patient.static_order = [(time, event) for time, event in stored.static_order]
    patient.hidden = (
        None if stored.hidden is None else np.frombuffer(stored.hidden, dtype="<f4").astype(np.float32)
    )
    for channel, packed in stored.recent:
        pairs = np.frombuffer(packed, dtype=[("age", "<u4"), ("value", "<f4")])
        patient.recent[channel] = [Recent(stored.newest_ms - int(p["age"]), float(p["value"])) for p in pairs]
    patient.event_ids = dict.fromkeys(np.frombuffer(stored.event_ids, dtype="<u8").tolist())
    patient.latches["risk"] = Latch(stored.trace, stored.episode, stored.quiet)
    patient.latches["news2"] = Latch(stored.news2_trace, stored.news2_episode, stored.news2_quiet)
    patient.latches["imaging"] = Latch(stored.imaging_trace, stored.imaging_episode, stored.imaging_quiet)
    patient.imaging_by, patient.findings = stored.imaging_by, stored.findings
    patient.care_unit, patient.care_unit_ms = stored.care_unit, stored.care_unit_ms


def _restore_bin(patient: Patient, hour: int, stored: StoredBin) -> None:
    cells, slot = patient.cells, hour % WINDOW_BINS
    channels = np.frombuffer(stored.channels, dtype="u1")
    cells.counts[slot, channels] = np.frombuffer(stored.counts, dtype="u1")
    cells.values[slot, channels] = np.frombuffer(stored.values, dtype="<f4")
    cells.times[slot, channels] = np.frombuffer(stored.times, dtype="<u4")
    ids: list[Any] = [""] * CHANNELS
    for channel, i in zip(channels, np.frombuffer(stored.id_of, dtype="<u2"), strict=True):
        ids[channel] = stored.ids[i]
    if len(channels):
        cells.ids[slot] = ids


def _pack_recent(patient: Patient) -> list[tuple[int, bytes]]:
    packed = []
    for channel in sorted(patient.recent):
        # Values that have left the window can no longer be corrected.
        pairs = [
            _recent_pair(patient.newest_ms - value.time_ms, value.value)
            for value in patient.recent[channel]
            if patient.newest_ms - value.time_ms <= _WINDOW_MS
        ]
        if pairs:
            packed.append((channel, b"".join(pairs)))
    return packed
