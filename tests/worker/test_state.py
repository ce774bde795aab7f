"""What one record changes in a patient, against a plain model that keeps every measurement."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.engine import Engine
from schemas.features import CHANNEL, IS_STATIC, STATIC
from schemas.window import CHANNELS, WINDOW_BINS, Rows, bin_of, rows
from tests.worker.records import HOUR, MINUTE, T0, LocalPath, observation, record
from worker.normalise import Measurement
from worker.patient import RECENT_EVENTS, RECENT_VALUES, Patient
from worker.plan import Plan, Standing
from worker.state import Applied, apply, plan_score

HR, AGE, LACTATE = CHANNEL["heart_rate"], CHANNEL["age"], CHANNEL["lactate"]
SCORED = frozenset(range(CHANNELS))


def m(value: float, time_ms: int, channel: int = HR, status: str = "final") -> Measurement:
    return Measurement("$.observations[0]", channel, value, time_ms, status)


def put(patient: Patient, event_id: str, *measurements: Measurement) -> Applied:
    return apply(patient, event_id, measurements, SCORED, Plan(1))


def shown(patient: Patient, time_ms: int, channel: int = HR) -> float | None:
    """The value that the window shows in the bin of a time."""
    slot = bin_of(time_ms) % WINDOW_BINS
    return float(patient.cells.values[slot, channel]) if patient.cells.counts[slot, channel] else None


class Reference:
    """A stay as a dictionary: the window's rows by definition, slowly."""

    def __init__(self) -> None:
        self.series: list[tuple[int, str, int, int, float]] = []
        self.statics: dict[int, tuple[int, str, float]] = {}
        self.open = -1

    def put(self, event_id: str, measurements: Sequence[Measurement]) -> None:
        for position, one in enumerate(measurements):
            if IS_STATIC[one.channel]:
                entry = (one.time_ms, event_id, one.value)
                if one.channel not in self.statics or entry[:2] >= self.statics[one.channel][:2]:
                    self.statics[one.channel] = entry
            elif self.open < 0 or bin_of(one.time_ms) > self.open - WINDOW_BINS:
                self.series.append((one.time_ms, event_id, position, one.channel, one.value))
                self.open = max(self.open, bin_of(one.time_ms))

    def rows(self) -> Rows:
        first = self.open - WINDOW_BINS + 1
        kept = sorted(entry for entry in self.series if bin_of(entry[0]) >= first)
        start = bin_of(kept[0][0])
        values = np.zeros((self.open - start + 1, CHANNELS), dtype=np.float32)
        counts = np.zeros_like(values)
        for time_ms, _, _, channel, value in kept:
            values[bin_of(time_ms) - start, channel] = value
            counts[bin_of(time_ms) - start, channel] += 1
        statics = np.array([self.statics.get(c, (0, "", np.nan))[2] for c in STATIC], dtype=np.float32)
        return rows(values, counts, statics)


_measurement = st.builds(
    m,
    st.integers(40, 160).map(float),
    st.one_of(st.integers(0, 6), st.integers(0, 70 * 4)).map(lambda n: T0 + n * 15 * MINUTE),
    st.sampled_from([HR, LACTATE, AGE]),
)
_events = st.lists(st.lists(_measurement, min_size=1, max_size=4), min_size=1, max_size=25)


@given(_events)
def test_planned_rows_are_those_of_a_dictionary(events: list[list[Measurement]]) -> None:
    patient, reference = Patient("p"), Reference()
    for n, measurements in enumerate(events):
        event_id, plan = f"e{n * 7 % 11}-{n}", Plan(1)
        applied = apply(patient, event_id, measurements, SCORED, plan)
        reference.put(event_id, measurements)
        if not applied.scorable:
            continue
        plan_score(patient, 0, plan, Standing(None, 0))
        expected = reference.rows()
        for got, want in zip(plan.rows, expected, strict=True):
            np.testing.assert_array_equal(got[0], want[-1])
        chain = plan.chains.get(patient)
        if chain is not None and chain.steps[0] is None:
            steps = [s for s in chain.steps if s is not None]
            got_steps = np.concatenate([s.values for s in steps]) if steps else expected.values[:0]
            np.testing.assert_array_equal(got_steps, expected.values[:-1])


@given(_events, st.randoms(use_true_random=False))
def test_arrival_order_changes_no_window(events: list[list[Measurement]], rng: random.Random) -> None:
    """Within the window: what would be too late in one order is left out of all."""
    events = [[one for one in event if one.time_ms < T0 + WINDOW_BINS * HOUR] for event in events]
    named = [(f"e{n}", event) for n, event in enumerate(events) if event]
    shuffled = list(named)
    rng.shuffle(shuffled)
    one, other = Patient("p"), Patient("p")
    for patient, order in ((one, named), (other, shuffled)):
        for event_id, event in order:
            put(patient, event_id, *event)

    assert (one.open, one.start, one.newest_ms) == (other.open, other.start, other.newest_ms)
    np.testing.assert_array_equal(one.cells.counts, other.cells.counts)
    held = one.cells.counts > 0
    np.testing.assert_array_equal(one.cells.values[held], other.cells.values[held])
    np.testing.assert_array_equal(one.cells.times[held], other.cells.times[held])
    np.testing.assert_array_equal(one.statics, other.statics)


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_greatest_event_id_wins_a_tie(order: tuple[str, str]) -> None:
    patient = Patient("p")
    for event_id in order:
        put(patient, event_id, m({"a": 80.0, "b": 90.0}[event_id], T0))

    assert shown(patient, T0) == 90
    put(patient, "z", m(0, T0, status="entered-in-error"))
    assert shown(patient, T0) == 80


def test_later_position_wins_within_a_record() -> None:
    patient = Patient("p")
    put(patient, "e", m(80, T0), m(90, T0))
    assert shown(patient, T0) == 90


def test_late_value_enters_its_bin_and_restarts_the_chain() -> None:
    patient, plan = Patient("p"), Plan(1)
    put(patient, "a", m(80, T0))
    put(patient, "b", m(81, T0 + 3 * HOUR))

    applied = apply(patient, "c", [m(99, T0 + HOUR)], SCORED, plan)

    assert applied.accepted == 1
    chain = plan.chains[patient]
    assert chain.steps[0] is None
    assert chain.length == 1 + 3
    assert shown(patient, T0 + HOUR) == 99
    assert patient.newest_ms == T0 + 3 * HOUR


def test_window_ends_where_48_bins_do() -> None:
    patient = Patient("p")
    put(patient, "a", m(80, T0 + WINDOW_BINS * HOUR))

    assert put(patient, "b", m(81, T0 + HOUR)).accepted == 1
    assert [r.reason for r in put(patient, "c", m(82, T0 + HOUR - 1)).rejections] == ["too-late"]


def test_a_gap_longer_than_the_window_leaves_nothing() -> None:
    patient = Patient("p")
    put(patient, "a", m(80, T0), m(2, T0, LACTATE))
    put(patient, "b", m(90, T0 + 49 * HOUR))

    assert patient.start == patient.open == bin_of(T0 + 49 * HOUR)
    assert patient.cells.counts.sum() == 1
    assert patient.carried.elapsed[LACTATE] == WINDOW_BINS


@pytest.mark.parametrize("status", ["amended", "corrected"])
def test_correction_replaces_the_value_of_its_time(status: str) -> None:
    patient = Patient("p")
    put(patient, "a", m(80, T0))
    put(patient, "b", m(85, T0 + MINUTE))

    assert put(patient, "0", m(70, T0 + MINUTE, status=status)).accepted == 1
    assert shown(patient, T0) == 70
    assert put(patient, "1", m(60, T0, status=status)).accepted == 1
    assert shown(patient, T0) == 70, "an older value of the bin is not the one it shows"
    assert patient.cells.counts.sum() == 2


@pytest.mark.parametrize("status", ["entered-in-error", "cancelled"])
def test_withdrawal_brings_the_value_before_back(status: str) -> None:
    patient = Patient("p")
    put(patient, "a", m(80, T0))
    put(patient, "b", m(85, T0 + MINUTE))

    put(patient, "c", m(0, T0 + MINUTE, status=status))
    assert shown(patient, T0) == 80
    put(patient, "d", m(0, T0, status=status))
    assert shown(patient, T0) is None
    again = put(patient, "e", m(0, T0, status=status))
    assert [r.reason for r in again.rejections] == ["correction-out-of-reach"]


def test_correction_reaches_back_over_recent_values_only() -> None:
    patient = Patient("p")
    for n in range(RECENT_VALUES + 1):
        put(patient, f"e{n}", m(80 + n, T0 + n * MINUTE))

    out = put(patient, "x", m(70, T0, status="corrected"))
    assert [r.reason for r in out.rejections] == ["correction-out-of-reach"]
    assert put(patient, "y", m(70, T0 + MINUTE, status="corrected")).accepted == 1


def test_static_values_follow_the_same_rules() -> None:
    patient = Patient("p")
    put(patient, "b", m(70, T0, AGE))
    put(patient, "a", m(60, T0, AGE))
    put(patient, "c", m(50, T0 - 1, AGE))
    assert patient.statics[0] == 70
    assert put(patient, "a", m(71, T0, AGE, "corrected")).accepted == 1
    assert patient.statics[0] == 71
    late = put(patient, "d", m(72, T0 - 1, AGE, "corrected"))
    assert [r.reason for r in late.rejections] == ["correction-out-of-reach"]
    put(patient, "e", m(0, T0, AGE, "cancelled"))
    assert np.isnan(patient.statics[0])


def test_static_alone_gives_nothing_to_score() -> None:
    assert put(Patient("p"), "a", m(70, T0, AGE)) == Applied(1, [], False)


async def test_event_applied_twice_counts_once(engine: Engine) -> None:
    path = LocalPath(engine)
    first = record(0, "p", T0, observation("heart_rate", 80), event_id="same")

    fates = await path.process([first, first._replace(offset=1), first._replace(offset=2)], chunk=2)

    assert fates == ["scored", "duplicate", "duplicate"]
    assert path.partition.patients["p"].cells.counts.sum() == 1
    assert len(path.outbox.scores) == 1
    assert not path.outbox.dead_letters


async def test_duplicates_are_known_among_recent_events(engine: Engine) -> None:
    path = LocalPath(engine)
    stream = [record(n, "p", T0 + n * 1000, observation("heart_rate", 80)) for n in range(RECENT_EVENTS + 1)]
    await path.process(stream)

    fates = await path.process([stream[1]._replace(offset=100), stream[0]._replace(offset=101)])

    assert fates == ["duplicate", "scored"]


@given(st.randoms(use_true_random=False), st.integers(1, 40))
def test_interleaving_of_patients_changes_nothing(engine: Engine, rng: random.Random, chunk: int) -> None:
    own = {
        patient: [
            record(
                0, patient, T0 + n * 50 * MINUTE, observation("heart_rate", 80 + 7 * n % 60), event_id=f"{n}"
            )
            for n in range(8)
        ]
        for patient in ("p", "q", "r")
    }
    order = [patient for patient, records in own.items() for _ in records]
    rng.shuffle(order)
    waiting = {patient: iter(records) for patient, records in own.items()}
    mixed, apart = LocalPath(engine), LocalPath(engine)

    mixed.process_now([next(waiting[p])._replace(offset=n) for n, p in enumerate(order)], chunk)
    one_after_another = [one for records in own.values() for one in records]
    apart.process_now([one._replace(offset=n) for n, one in enumerate(one_after_another)])

    for patient in own:
        one = [(s.time, s.risk) for s in mixed.outbox.scores if s.patient == patient]
        assert one == [(s.time, s.risk) for s in apart.outbox.scores if s.patient == patient]
        assert len(one) == 8
