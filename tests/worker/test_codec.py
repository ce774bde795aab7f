"""A stored patient comes back whole, or not at all."""

import random
import zlib

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.engine import Engine
from schemas.features import FEATURES, IS_STATIC
from tests.worker.records import HOUR, T0, LocalPath, Record, observation, record
from worker.codec import LayoutError, decode, encode_bin, encode_hot
from worker.patient import Patient

MODEL = "m" * 64


def stream(rng: random.Random, hours: int, channels: int, per_hour: int = 2) -> list[Record]:
    """Records of one patient: some late, some withdrawn, with static values."""
    names = [f.name for f in FEATURES if not IS_STATIC[FEATURES.index(f)]][:channels]
    made = [record(0, "p", T0, observation("age", 70), observation("sex", 1))]
    for n in range(hours * per_hour):
        time_ms = T0 + n * HOUR // per_hour - rng.choice([0, 0, 0, 5 * HOUR])
        chosen = names if channels > 30 else rng.sample(names, rng.randint(1, len(names)))
        values = [observation(name, _value(name, rng)) for name in chosen]
        made.append(record(n + 1, "p", time_ms, *values)._replace(timestamp=T0 + n * HOUR // per_hour))
    return made


def _value(name: str, rng: random.Random) -> float:
    feature = next(f for f in FEATURES if f.name == name)
    return feature.low + (feature.high - feature.low) * rng.random()


def patient_after(engine: Engine, records: list[Record]) -> Patient:
    path = LocalPath(engine)
    path.process_now(records)
    return path.partition.patients["p"]


def stored(patient: Patient) -> tuple[bytes, dict[int, bytes]]:
    return encode_hot(patient, MODEL), {hour: encode_bin(patient, hour) for hour in patient.filled_bins()}


def plain(patient: Patient) -> dict[str, object]:
    """Every slot as values that compare; unread cells left out."""
    held = patient.cells.counts > 0
    slots: dict[str, object] = {
        name: getattr(patient, name)
        for name in ("id", "applied", "touched_ms", "newest_ms", "start", "open", "static_order", "latches")
    }
    return slots | {
        "statics": patient.statics.tobytes(),
        "hidden": None if patient.hidden is None else patient.hidden.tobytes(),
        "event_ids": list(patient.event_ids),
        "recent": {
            channel: [(v.time_ms, float(np.float32(v.value))) for v in values]
            for channel, values in patient.recent.items()
        },
        "carried": [array.tobytes() for array in patient.carried],
        "carried_times": patient.carried_times[patient.carried.elapsed < 48].tolist(),
        "counts": patient.cells.counts.tobytes(),
        "values": patient.cells.values[held].tobytes(),
        "times": patient.cells.times[held].tobytes(),
        "ids": [
            None if ids is None else [name for name, count in zip(ids, counts, strict=True) if count]
            for ids, counts in zip(patient.cells.ids, patient.cells.counts, strict=True)
        ],
    }


@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 6))
def test_decode_gives_back_what_was_encoded(engine: Engine, seed: int, hours: int, channels: int) -> None:
    patient = patient_after(engine, stream(random.Random(seed), hours, channels, 1))

    again = decode(*stored(patient), MODEL)

    assert not again.failed
    assert plain(again) == plain(patient)
    assert again.stored_bins == patient.filled_bins()
    assert decode(*stored(patient), "another").failed


def test_patient_without_series() -> None:
    patient = Patient("p")
    again = decode(*stored(patient), MODEL)

    assert plain(again) == plain(patient)


def test_hot_part_of_a_busy_patient_is_small(engine: Engine) -> None:
    """37 series in every record, an open episode, 64 recent events, two full trends: beside the state."""
    patient = patient_after(engine, stream(random.Random(1), 60, 37, 4))

    assert len(patient.recent) == 37
    assert len(patient.event_ids) == 64
    assert patient.hidden is not None
    assert len(encode_hot(patient, MODEL)) - patient.hidden.nbytes <= 2432


@pytest.fixture(scope="module")
def values(engine: Engine) -> tuple[bytes, dict[int, bytes]]:
    return stored(patient_after(engine, stream(random.Random(3), 30, 4)))


@given(st.data())
def test_damage_is_a_layout_error(values: tuple[bytes, dict[int, bytes]], data: st.DataObject) -> None:
    hot, bins = values
    hour = data.draw(st.sampled_from([None, *sorted(bins)]))
    whole = hot if hour is None else bins[hour]
    damaged = bytearray(whole)
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged[at : at + data.draw(st.integers(1, 8))] = data.draw(st.binary(max_size=8))
    if bytes(damaged) == whole:
        return
    if hour is None:
        hot = bytes(damaged)
    else:
        bins = {**bins, hour: bytes(damaged)}

    with pytest.raises(LayoutError):
        decode(hot, bins, MODEL)


@given(st.binary(max_size=64))
def test_any_other_bytes_are_a_layout_error(value: bytes) -> None:
    with pytest.raises(LayoutError):
        decode(value, {}, MODEL)


def test_another_layout_is_named() -> None:
    packed = encode_hot(Patient("p"), MODEL)[:-4]
    fields = msgspec.msgpack.decode(packed)
    changed = msgspec.msgpack.encode([fields[0] + 1, *fields[1:]])

    with pytest.raises(LayoutError, match="has layout 6, this program writes 5"):
        decode(changed + zlib.crc32(changed).to_bytes(4, "little"), {}, MODEL)
