"""The feature table is consistent with itself."""

import re
from collections import Counter
from itertools import chain

import pytest

from schemas.features import BY_LOINC, BY_MDC, CHANNEL, FEATURES, STATIC, Feature
from schemas.units import conversion

each = pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)


def loinc_check_digit(number: str) -> int:
    """LOINC's check digit: modulus 10, doubling every second digit from the right."""
    doubled = [int(digit) * (2 if place % 2 == 0 else 1) for place, digit in enumerate(reversed(number))]
    return -sum(d // 10 + d % 10 for d in doubled) % 10


def test_names_and_codes_are_unique() -> None:
    for codes in (
        [feature.name for feature in FEATURES],
        list(chain.from_iterable(feature.loinc for feature in FEATURES)),
        list(chain.from_iterable(feature.mdc for feature in FEATURES)),
    ):
        assert [code for code, count in Counter(codes).items() if count > 1] == []


def test_the_look_ups_hold_every_code() -> None:
    assert all(BY_LOINC[code] == CHANNEL[feature.name] for feature in FEATURES for code in feature.loinc)
    assert all(BY_MDC[code] == CHANNEL[feature.name] for feature in FEATURES for code in feature.mdc)


def test_static_channels_stay_the_ones_that_stored_windows_hold() -> None:
    assert [FEATURES[channel].name for channel in STATIC] == ["age", "sex", "height", "icu_type"]


@each
def test_the_fill_is_plausible(feature: Feature) -> None:
    assert feature.low < feature.high
    assert feature.low <= feature.fill <= feature.high


@each
def test_the_unit_is_ucum(feature: Feature) -> None:
    for other in FEATURES:
        if other.unit == feature.unit:
            assert conversion(CHANNEL[other.name], feature.unit) == (1.0, 0.0)
    assert re.fullmatch(r"[\x21-\x7e]+", feature.unit)


@each
def test_loinc_codes_bear_a_right_check_digit(feature: Feature) -> None:
    assert feature.loinc
    for code in feature.loinc:
        if code.startswith("riskstream-"):
            continue
        number, digit = code.split("-")
        assert loinc_check_digit(number) == int(digit), code


@each
def test_mdc_codes_are_reference_numbers_of_partitions_in_use(feature: Feature) -> None:
    # Context-free code = partition * 65536 + term; 2 is SCADA (measurements), where all of these live.
    assert all(int(code) >> 16 == 2 for code in feature.mdc)
