"""One quantity is one value, whatever its unit and code; dates are judged by the record's timestamp."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.features import BY_LOINC, BY_MDC, CHANNEL, FEATURES, LOINC, MDC, Feature
from schemas.messages import Observation, Rejection
from tests.worker.records import HOUR, MINUTE, T0
from worker.decode import Event
from worker.messages import moment
from worker.normalise import Measurement, normalise

PAST, FUTURE = 10 * 24 * HOUR, HOUR

ALTERNATES: dict[str, list[tuple[str, float, float]]] = {
    "temperature": [("[degF]", 9 / 5, 32.0), ("K", 1.0, 273.15), ("degC", 1.0, 0.0), ("°F", 9 / 5, 32.0)],
    "height": [("m", 0.01, 0.0), ("[in_i]", 1 / 2.54, 0.0), ("mm", 10.0, 0.0)],
    "weight": [("g", 1000.0, 0.0), ("[lb_av]", 1 / 0.45359237, 0.0)],
    "heart_rate": [("{beats}/min", 1.0, 0.0), ("bpm", 1.0, 0.0), ("/s", 1 / 60, 0.0), ("Hz", 1 / 60, 0.0)],
    "systolic_pressure": [("mmHg", 1.0, 0.0), ("kPa", 0.1333223874, 0.0)],
    "oxygen_saturation": [("1", 0.01, 0.0)],
    "glucose": [("mmol/L", 10 / 180.156, 0.0), ("mg/L", 10.0, 0.0), ("g/L", 0.01, 0.0)],
    "creatinine": [("umol/L", 1e4 / 113.12, 0.0)],
    "potassium": [("meq/L", 1.0, 0.0), ("mEq/L", 1.0, 0.0), ("mg/dL", 3.9098, 0.0)],
    "magnesium": [("meq/L", 2.0, 0.0), ("mg/dL", 2.4305, 0.0)],
    "urea_nitrogen": [("mmol/L", 10 / 28.014, 0.0)],
    "platelets": [("10*9/L", 1.0, 0.0), ("K/uL", 1.0, 0.0), ("/uL", 1000.0, 0.0)],
    "urine_output": [("L", 0.001, 0.0)],
    "troponin_t": [("ng/mL", 1.0, 0.0), ("ng/L", 1000.0, 0.0)],
    "albumin": [("g/L", 10.0, 0.0)],
}
"""Feature -> (unit, a, b): the canonical value x is a * x + b in that unit."""


def one(observation: Observation, time_ms: int = T0, timestamp_ms: int = T0) -> Measurement | Rejection:
    """What becomes of a single observation."""
    event = Event("e", "p", time_ms, [(0, observation)])
    accepted, rejected = normalise(event, timestamp_ms, PAST, FUTURE)
    outcomes: list[Measurement | Rejection] = [*accepted, *rejected]
    assert len(outcomes) == 1
    return outcomes[0]


def value_of(observation: Observation) -> float:
    outcome = one(observation)
    assert isinstance(outcome, Measurement), outcome
    return outcome.value


@given(st.data())
def test_same_quantity_in_two_units_is_one_value(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(ALTERNATES)))
    unit, a, b = data.draw(st.sampled_from(ALTERNATES[name]))
    feature = FEATURES[CHANNEL[name]]
    margin = (feature.high - feature.low) * 1e-6
    x = data.draw(st.floats(feature.low + margin, feature.high - margin))

    converted = value_of(Observation(feature.loinc[0], a * x + b, unit))

    assert math.isclose(converted, value_of(Observation(feature.loinc[0], x, feature.unit)), rel_tol=1e-6)


@pytest.mark.parametrize(("code", "channel"), sorted(BY_LOINC.items()))
def test_every_loinc_code_finds_its_feature(code: str, channel: int) -> None:
    feature = FEATURES[channel]

    assert one(Observation(code, feature.fill, feature.unit, LOINC)) == Measurement(
        "$.observations[0]", channel, feature.fill, T0, "final"
    )


@pytest.mark.parametrize(("code", "channel"), sorted(BY_MDC.items()))
def test_every_mdc_code_finds_its_feature(code: str, channel: int) -> None:
    feature = FEATURES[channel]

    assert value_of(Observation(code, feature.fill, feature.unit, MDC)) == feature.fill
    assert one(Observation(code, feature.fill, feature.unit, LOINC)) == Rejection(
        "unknown-code", "$.observations[0].code"
    )


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
def test_plausible_range_is_inclusive(feature: Feature) -> None:
    for value in (feature.low, feature.high):
        assert value_of(Observation(feature.loinc[0], value, feature.unit)) == value
    for value in (math.nextafter(feature.low, -math.inf), math.nextafter(feature.high, math.inf)):
        outcome = one(Observation(feature.loinc[0], value, feature.unit))
        assert outcome == Rejection("implausible-value", "$.observations[0]")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_value_that_is_no_number(value: float) -> None:
    assert one(Observation("8867-4", value, "/min")) == Rejection("non-finite-value", "$.observations[0]")


@pytest.mark.parametrize(
    ("time_ms", "well"),
    [
        (T0 + FUTURE, True),
        (T0 + FUTURE + 1, False),
        (T0 - PAST, True),
        (T0 - PAST - 1, False),
        (0, False),
        (32_472_144_000_000, False),
    ],
)
def test_dates_are_plausible_against_the_timestamp(time_ms: int, well: bool) -> None:
    observation = Observation("8867-4", 80, "/min")

    for outcome in (one(observation, time_ms), one(Observation("8867-4", 80, "/min", time=moment(time_ms)))):
        if well:
            assert isinstance(outcome, Measurement)
            assert outcome.time_ms == time_ms
        else:
            assert outcome == Rejection("implausible-time", "$.observations[0].time")


def test_a_replay_of_an_old_log_judges_as_it_did_then() -> None:
    observation = Observation("8867-4", 80, "/min")

    assert isinstance(one(observation, MINUTE, MINUTE), Measurement)


def test_a_withdrawal_need_not_be_plausible_but_must_be_understood() -> None:
    """What is taken back may be the very value that was wrong."""
    assert isinstance(one(Observation("8867-4", 9999, "/min", status="entered-in-error")), Measurement)
    assert one(Observation("8867-4", 80, "kg", status="cancelled")) == Rejection(
        "wrong-unit", "$.observations[0]"
    )
    assert one(Observation("8867-4", 9999, "/min", status="corrected")) == Rejection(
        "implausible-value", "$.observations[0]"
    )


def test_half_good_event_keeps_order_and_positions() -> None:
    event = Event(
        "e",
        "p",
        T0,
        [
            (0, Observation("8867-4", 80, "/min")),
            (2, Observation("x", 1)),
            (3, Observation("9279-1", 16, "/min")),
        ],
        (Rejection("invalid-observation", "$.observations[1]"),),
    )

    accepted, rejected = normalise(event, T0, PAST, FUTURE)

    assert [m.path for m in accepted] == ["$.observations[0]", "$.observations[3]"]
    assert [r.path for r in rejected] == ["$.observations[1]", "$.observations[2].code"]
