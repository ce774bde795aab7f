"""A chunk's steps in lockstep give what one step after the other gives."""

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.engine import F32, Engine
from engines.steps import SeriesModel
from schemas.window import Rows, rows
from tests.worker.records import HOUR, MINUTE, T0, LocalPath, Record, observation, record, worsening
from worker.patient import Patient


def stepwise(engine: Engine, patient: Patient) -> float:
    """The risk of a patient's window, from zeros, one row and one step at a time."""
    model = SeriesModel(engine.config)
    slots = np.arange(patient.start, patient.open + 1) % 48
    steps = rows(patient.cells.values[slots], patient.cells.counts[slots].astype(np.float32), patient.statics)
    state: F32 = np.zeros((1, model.width), dtype=np.float32)
    outputs: Mapping[str, F32] = {}
    for n in range(len(slots)):
        row = Rows(*(np.ascontiguousarray(array[n : n + 1, model.columns]) for array in steps))
        outputs = engine.run(model.inputs(row, state))
        state = model.states(outputs)
    return float(outputs["risk"][0])


def irregular(seed: int, patient: str, hours: int) -> list[Record]:
    """Gaps, late values and a static that comes late."""
    rng = np.random.default_rng(seed)
    made = []
    for n in range(hours):
        now = T0 + n * HOUR + int(rng.integers(0, HOUR))
        late = int(rng.choice([0, 0, 0, 1, 4])) * HOUR
        values = [observation("heart_rate", float(rng.integers(50, 150)))]
        if rng.random() < 0.3:
            values.append(observation("lactate", float(rng.integers(1, 12))))
        if n == hours // 2:
            values.append(observation("age", 80))
        if rng.random() < 0.8:
            made.append(
                record(n, patient, now - late, *values, event_id=f"{patient}-{n}")._replace(timestamp=now)
            )
    return made


@pytest.mark.parametrize("hours", [1, 5, 47, 49, 60])
def test_a_window_step_by_step(engine: Engine, hours: int) -> None:
    path = LocalPath(engine)
    records = [
        r._replace(offset=n) for n, r in enumerate(irregular(hours, "p", hours) or worsening("p", 0, 1))
    ]
    path.process_now(records)

    assert path.outbox.scores[-1].risk == round(stepwise(engine, path.partition.patients["p"]), 6)


@given(st.integers(0, 1000), st.integers(1, 200))
def test_chunks_change_no_byte(engine: Engine, seed: int, chunk: int) -> None:
    records = sorted(
        (one for n, patient in enumerate("abc") for one in irregular(seed + n, patient, 20)),
        key=lambda one: one.timestamp,
    )
    records = [one._replace(offset=n) for n, one in enumerate(records)]
    whole, cut = LocalPath(engine), LocalPath(engine)

    whole.process_now(records)
    cut.process_now(records, chunk)

    assert cut.outbox.of("risk-scores") == whole.outbox.of("risk-scores")
    assert cut.outbox.by_voice() == whole.outbox.by_voice()
    for key, patient in whole.partition.patients.items():
        hidden = cut.partition.patients[key].hidden
        assert (hidden is None) == (patient.hidden is None)
        assert patient.hidden is None or patient.hidden.tobytes() == (
            hidden.tobytes() if hidden is not None else b""
        )


def test_row_that_fails_is_dead_lettered(engine: Engine) -> None:
    """The engine gives NaN for one row: that record alone has no score."""

    class HalfBlind(LocalPath):
        async def run(self, inputs: Mapping[str, F32]) -> dict[str, F32]:
            outputs = await super().run(inputs)
            outputs["risk"][(inputs["values"] == np.float32(99)).any(axis=1)] = np.nan
            return outputs

    path = HalfBlind(engine)
    records = [
        record(n, f"p{n}", T0 + n * MINUTE, observation("heart_rate", value))
        for n, value in enumerate((80, 99, 81))
    ]

    assert path.process_now(records) == ["scored", "dead_lettered", "scored"]
    (letter,) = path.outbox.dead_letters
    assert (letter.reason, letter.source.offset) == ("inference-failed", 1)
    assert [score.source.offset for score in path.outbox.scores] == [0, 2]
