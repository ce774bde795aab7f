"""Conversion to canonical units: each feature's own unit, common alternates, and what is refused."""

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import UnitError
from schemas.features import CHANNEL, FEATURES, Feature
from schemas.ucum import MAX_UNIT_LENGTH
from schemas.units import accept, conversion

# One case for each alternate that monitors and laboratories send: feature, value, unit, canonical value.
# Factors: 1 mmHg = 133.322387415 Pa; 1 lb = 453.59237 g; 1 in = 2.54 cm; molar masses from the table.
ALTERNATES = [
    ("age", 804.0, "mo", 67.0),
    ("height", 1.7, "m", 170.0),
    ("height", 67.0, "[in_i]", 170.18),
    ("weight", 80_000.0, "g", 80.0),
    ("weight", 180.0, "[lb_av]", 81.6466266),
    ("heart_rate", 1.5, "/s", 90.0),
    ("heart_rate", 1.5, "Hz", 90.0),
    ("heart_rate", 80.0, "1/min", 80.0),
    ("heart_rate", 80.0, "{beats}/min", 80.0),
    ("heart_rate", 80.0, "bpm", 80.0),
    ("heart_rate", 80.0, "beats/min", 80.0),
    ("respiratory_rate", 18.0, "{breaths}/min", 18.0),
    ("respiratory_rate", 18.0, "breaths/min", 18.0),
    ("oxygen_saturation", 0.97, "1", 97.0),
    ("temperature", 98.6, "[degF]", 37.0),
    ("temperature", 98.6, "degF", 37.0),
    ("temperature", 98.6, "°F", 37.0),
    ("temperature", 310.15, "K", 37.0),
    ("temperature", 37.0, "degC", 37.0),
    ("temperature", 37.0, "°C", 37.0),
    ("systolic_pressure", 120.0, "mmHg", 120.0),
    ("systolic_pressure", 16.0, "kPa", 16_000 / 133.322387415),
    ("mean_pressure_invasive", 0.1, "bar", 10_000 / 133.322387415),
    ("gcs", 15.0, "{score}", 15.0),
    ("gcs", 15.0, "", 15.0),
    ("fio2", 0.5, "1", 50.0),
    ("fio2", 0.5, "", 50.0),
    ("urine_output", 0.08, "L", 80.0),
    ("arterial_ph", 7.38, "[pH]", 7.38),
    ("arterial_ph", 7.38, "pH", 7.38),
    ("arterial_pco2", 5.3, "kPa", 5_300 / 133.322387415),
    ("arterial_po2", 13.3, "kPa", 13_300 / 133.322387415),
    ("hematocrit", 0.3, "1", 30.0),
    ("hematocrit", 0.3, "L/L", 30.0),
    ("potassium", 4.1, "meq/L", 4.1),
    ("potassium", 4.1, "mEq/L", 4.1),
    ("sodium", 139.0, "meq/L", 139.0),
    ("sodium", 139.0, "{Na}meq/L", 139.0),
    ("magnesium", 2.0, "mg/dL", 20 / 24.305),
    ("magnesium", 1.64, "meq/L", 0.82),
    ("magnesium", 1.64, "mEq/L", 0.82),
    ("magnesium", 1.64, "{Mg}meq/L", 0.82),
    ("bicarbonate", 23.0, "meq/L", 23.0),
    ("platelets", 172.0, "10*9/L", 172.0),
    ("platelets", 172_000.0, "/uL", 172.0),
    ("platelets", 172.0, "K/uL", 172.0),
    ("leukocytes", 11.4, "10*9/L", 11.4),
    ("creatinine", 88.4, "umol/L", 88.4 * 113.12 / 10_000),
    ("urea_nitrogen", 7.5, "mmol/L", 7.5 * 28.014 / 10),
    ("glucose", 5.5, "mmol/L", 5.5 * 180.156 / 10),
    ("lactate", 18.0, "mg/dL", 180 / 90.078),
    ("bilirubin", 17.1, "umol/L", 17.1 * 584.66 / 10_000),
    ("ast", 0.72, "ukat/L", 43.2),
    ("alt", 32.0, "[IU]/L", 32.0),
    ("alt", 32.0, "IU/L", 32.0),
    ("albumin", 29.0, "g/L", 2.9),
    ("troponin_t", 20.0, "ng/L", 0.02),
    ("troponin_t", 0.02, "ng/mL", 0.02),
    ("troponin_i", 20.0, "pg/mL", 0.02),
    ("cholesterol", 5.2, "mmol/L", 5.2 * 386.65 / 10),
]


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
def test_the_canonical_unit_leaves_a_value_alone(feature: Feature) -> None:
    channel = CHANNEL[feature.name]
    for value in (feature.low, feature.fill, feature.high):
        assert accept(channel, value, feature.unit) == value


@pytest.mark.parametrize(("name", "value", "unit", "expected"), ALTERNATES)
def test_an_alternate_unit_is_converted(name: str, value: float, unit: str, expected: float) -> None:
    assert accept(CHANNEL[name], value, unit) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "unit", "reason"),
    [
        ("heart_rate", "mg", "wrong-unit"),
        ("temperature", "", "wrong-unit"),
        ("glucose", "%", "wrong-unit"),
        ("urine_output", "mL/h", "wrong-unit"),
        ("creatinine", "meq/L", "wrong-unit"),
        ("ast", "mmol/L", "wrong-unit"),
        ("heart_rate", "(", "unknown-unit"),
        ("heart_rate", "{unclosed", "unknown-unit"),
        ("heart_rate", "furlong", "unknown-unit"),
        ("weight", "KG", "unknown-unit"),
        ("heart_rate", "10*999999", "unknown-unit"),
        ("heart_rate", "m" * (MAX_UNIT_LENGTH + 1), "unknown-unit"),
        ("heart_rate", "\x00", "unknown-unit"),
        ("heart_rate", "/min\n/min", "unknown-unit"),
    ],
)
def test_a_unit_that_cannot_be_converted_is_refused(name: str, unit: str, reason: str) -> None:
    with pytest.raises(UnitError) as raised:
        accept(CHANNEL[name], 1.0, unit)
    assert raised.value.reason == reason


@pytest.mark.parametrize(
    ("value", "unit", "reason"),
    [
        (9.9, "/min", "implausible-value"),
        (300.1, "/min", "implausible-value"),
        (-1.0, "/min", "implausible-value"),
        (80.0, "/s", "implausible-value"),
        (1e308, "/s", "non-finite-value"),
        (math.nan, "/min", "non-finite-value"),
        (math.inf, "/min", "non-finite-value"),
        (-math.inf, "/min", "non-finite-value"),
    ],
)
def test_a_value_that_no_living_patient_shows_is_refused(value: float, unit: str, reason: str) -> None:
    with pytest.raises(UnitError) as raised:
        accept(CHANNEL["heart_rate"], value, unit)
    assert raised.value.reason == reason


@given(st.text(max_size=MAX_UNIT_LENGTH + 4), st.integers(0, len(FEATURES) - 1))
def test_any_text_converts_or_is_refused(unit: str, channel: int) -> None:
    with contextlib.suppress(UnitError):
        scale, offset = conversion(channel, unit)
        assert math.isfinite(scale)
        assert math.isfinite(offset)


def test_a_refusal_does_not_repeat_what_came() -> None:
    with pytest.raises(UnitError) as raised:
        conversion(CHANNEL["heart_rate"], "Doe, Jane")
    assert "Doe" not in str(raised.value)


@given(st.floats(25, 45))
def test_the_same_temperature_in_two_units_is_one_value(celsius: float) -> None:
    channel = CHANNEL["temperature"]
    scale, offset = conversion(channel, "[degF]")
    assert (celsius * 9 / 5 + 32) * scale + offset == pytest.approx(celsius, abs=1e-9)
