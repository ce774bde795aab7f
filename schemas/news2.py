"""NEWS2, the National Early Warning Score 2 (Royal College of Physicians, 2017); qSOFA and MEWS beside it.

    Observed            what is known of a patient now; None where missing or too old
      -> news2(scale)   Total: an interval, its parts, what is missing, the clinical response
      -> qsofa, mews    Total

A parameter that is missing counts 0 at the low end of a total and its greatest score at the high end, so the
interval holds every total that the complete set could have. The response follows the low end: nothing is
alerted on that has not been observed. A partial set whose low end is 0 has the response `unknown`: it is
never read as normal. Any other response of the low end stands, whatever is missing: more can only be worse.

A value between two bands is rounded to the chart's resolution, halves upwards, as a monitor displays it:
one degree decimal for temperature, whole numbers for everything else. So a respiration rate of 24.5 counts
as 25 and a temperature of 38.05 as 38.1. Values are rounded in decimal: what a float holds within 0.0001 of a
half of that resolution is the half.

Sources: Royal College of Physicians, "National Early Warning Score (NEWS) 2: standardising the assessment of
acute-illness severity in the NHS", 2017, chart 1; Singer M et al., JAMA 2016;315:801-810 (qSOFA); Subbe CP et
al., QJM 2001;94:521-526 (MEWS). The charts print no score for some values (a MEWS pulse of exactly 40):
they take the neighbouring band that is farther from normal.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

Acvpu = Literal["A", "C", "V", "P", "U"]
"""Alert, new confusion, responds to voice, to pain, unresponsive."""

Scale = Literal[1, 2]
"""SpO2 scale; 2 only where a target of 88 to 92% is prescribed for hypercapnic respiratory failure."""

Response = Literal["none", "low", "low-medium", "medium", "high", "unknown"]
"""NEWS2 of 0; 1 to 4; 3 in one parameter; 5 or 6; 7 or more; 0 so far, of a partial set."""

ROOM_AIR = 21
"""Inspired oxygen of room air, whole %; more is supplemental oxygen."""

CVPU = 3
"""NEWS2 points of new confusion, voice, pain and unresponsive alike."""

OXYGEN = 2
"""NEWS2 points of supplemental oxygen."""

_SLACK = 1e-4


class Bands(NamedTuple):
    """Scores of a quantity's bands, lowest first.

    edges: first displayed value of each band but the lowest, in steps.
    points: one score more than edges.
    steps: displayed steps in a unit: 10 where the chart has one decimal.
    """

    edges: tuple[int, ...]
    points: tuple[int, ...]
    steps: int = 1

    @property
    def greatest(self) -> int:
        """The greatest score."""
        return max(self.points)


RESPIRATION = Bands((9, 12, 21, 25), (3, 1, 0, 2, 3))
SPO2_SCALE_1 = Bands((92, 94, 96), (3, 2, 1, 0))
SPO2_SCALE_2_AIR = Bands((84, 86, 88), (3, 2, 1, 0))
SPO2_SCALE_2_OXYGEN = Bands((84, 86, 88, 93, 95, 97), (3, 2, 1, 0, 1, 2, 3))
SYSTOLIC = Bands((91, 101, 111, 220), (3, 2, 1, 0, 3))
PULSE = Bands((41, 51, 91, 111, 131), (3, 1, 0, 1, 2, 3))
TEMPERATURE = Bands((351, 361, 381, 391), (3, 1, 0, 1, 2), steps=10)

QSOFA_RESPIRATION = Bands((22,), (0, 1))
QSOFA_SYSTOLIC = Bands((101,), (1, 0))

MEWS_SYSTOLIC = Bands((71, 81, 101, 200), (3, 2, 1, 0, 2))
MEWS_PULSE = Bands((41, 51, 101, 111, 130), (2, 1, 0, 1, 2, 3))
MEWS_RESPIRATION = Bands((9, 15, 21, 30), (2, 0, 1, 2, 3))
MEWS_TEMPERATURE = Bands((350, 385), (2, 0, 2), steps=10)
# Subbe knows no new confusion; it is awake, so it counts as the mildest departure from alert.
MEWS_ACVPU: dict[Acvpu, int] = {"A": 0, "C": 1, "V": 1, "P": 2, "U": 3}


class Observed(Struct, frozen=True, kw_only=True):
    """What is known of a patient now; None where never measured or too old.

    respiratory_rate, heart_rate: a minute.
    oxygen_saturation: %.
    supplemental_oxygen: whether the patient breathes more oxygen than air has.
    systolic_pressure: mm[Hg].
    acvpu: level of consciousness as assessed; where it is None, `gcs` is used.
    gcs: Glasgow Coma Scale; 15 is Alert, less is one of CVPU.
    temperature: degrees Celsius.
    """

    respiratory_rate: float | None = None
    oxygen_saturation: float | None = None
    supplemental_oxygen: bool | None = None
    systolic_pressure: float | None = None
    heart_rate: float | None = None
    acvpu: Acvpu | None = None
    gcs: float | None = None
    temperature: float | None = None

    @property
    def alert(self) -> bool | None:
        """Whether the patient is Alert; None where unknown."""
        if self.acvpu is not None:
            return self.acvpu == "A"
        return None if self.gcs is None else self.gcs >= 15


class Part(Struct, frozen=True):
    """One parameter's score: an interval, wide where the parameter is missing."""

    parameter: str
    low: int
    high: int
    missing: bool = False


class Total(Struct, frozen=True):
    """A score over several parameters.

    low, high: the total of the complete set lies between these; equal where nothing is missing.
    parts: one for each parameter, in the chart's order.
    """

    low: int
    high: int
    parts: tuple[Part, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """Parameters that were missing or too old."""
        return tuple(part.parameter for part in self.parts if part.missing)

    @property
    def complete(self) -> bool:
        """Whether nothing was missing."""
        return not any(part.missing for part in self.parts)

    @property
    def single(self) -> tuple[str, ...]:
        """Parameters that score 3 by themselves, for certain."""
        return tuple(part.parameter for part in self.parts if part.low == 3)


def newest_systolic(
    cuff: tuple[float, float] | None, line: tuple[float, float] | None
) -> tuple[float, float] | None:
    """The newer of a cuff's and an arterial line's systolic pressure; the line's where both are as old.

    Args:
        cuff: (mm[Hg], age) of the latest non-invasive pressure, None where there is none.
        line: (mm[Hg], age) of the latest invasive one; ages in one unit.
    """
    if cuff is None or line is None:
        return cuff or line
    return line if line[1] <= cuff[1] else cuff


def observed(newest: Mapping[str, tuple[float, float]], fresh_s: float) -> Observed:
    """What the newest values say, leaving out what is too old.

    Args:
        newest: feature name -> (value in the feature's canonical unit, age in seconds); others are ignored.
        fresh_s: greatest age at which a value still counts.
    """
    fresh = {name: pair for name, pair in newest.items() if pair[1] <= fresh_s and math.isfinite(pair[0])}
    systolic = newest_systolic(fresh.get("systolic_pressure"), fresh.get("systolic_pressure_invasive"))

    def value(name: str) -> float | None:
        return fresh[name][0] if name in fresh else None

    fio2 = value("fio2")
    return Observed(
        respiratory_rate=value("respiratory_rate"),
        oxygen_saturation=value("oxygen_saturation"),
        supplemental_oxygen=None if fio2 is None else displayed(fio2) > ROOM_AIR,
        systolic_pressure=None if systolic is None else systolic[0],
        heart_rate=value("heart_rate"),
        gcs=value("gcs"),
        temperature=value("temperature"),
    )


def news2(seen: Observed, scale: Scale = 1) -> Total:
    """The National Early Warning Score 2.

    Args:
        seen: the observations.
        scale: SpO2 scale; 2 only where it is prescribed for this patient.
    """
    return _total(
        _part("respiratory_rate", RESPIRATION, seen.respiratory_rate),
        _saturation(seen, scale),
        _yes_or_no("supplemental_oxygen", seen.supplemental_oxygen, OXYGEN),
        _part("systolic_pressure", SYSTOLIC, seen.systolic_pressure),
        _part("heart_rate", PULSE, seen.heart_rate),
        _yes_or_no("consciousness", None if seen.alert is None else not seen.alert, CVPU),
        _part("temperature", TEMPERATURE, seen.temperature),
    )


def response(total: Total) -> Response:
    """The clinical response that a NEWS2 total calls for, by its low end."""
    if total.low >= 7:
        return "high"
    if total.low >= 5:
        return "medium"
    if total.single:
        return "low-medium"
    if total.low > 0:
        return "low"
    return "none" if total.complete else "unknown"


def qsofa(seen: Observed) -> Total:
    """Quick SOFA, 0 to 3: respiration of 22 or more, systolic pressure of 100 or less, not Alert."""
    return _total(
        _part("respiratory_rate", QSOFA_RESPIRATION, seen.respiratory_rate),
        _part("systolic_pressure", QSOFA_SYSTOLIC, seen.systolic_pressure),
        _yes_or_no("consciousness", None if seen.alert is None else not seen.alert, 1),
    )


def mews(seen: Observed) -> Total:
    """The Modified Early Warning Score of Subbe, 0 to 14.

    A GCS below 15 says that the patient is not Alert but not how far: 1 to 3 points.
    """
    return _total(
        _part("systolic_pressure", MEWS_SYSTOLIC, seen.systolic_pressure),
        _part("heart_rate", MEWS_PULSE, seen.heart_rate),
        _part("respiratory_rate", MEWS_RESPIRATION, seen.respiratory_rate),
        _part("temperature", MEWS_TEMPERATURE, seen.temperature),
        _mews_consciousness(seen),
    )


def displayed(value: float, steps: int = 1) -> int:
    """The value in steps as a monitor displays it: the nearest whole number, halves upwards."""
    return math.floor(value * steps + 0.5 + _SLACK)


def points(bands: Bands, value: float) -> int:
    """The score of one finite value."""
    return bands.points[bisect_right(bands.edges, displayed(value, bands.steps))]


def points_of(bands: Bands, values: NDArray[np.floating]) -> NDArray[np.float32]:
    """The score of each value, 0 where it is NaN: float32 of the values' shape; `points` over arrays."""
    shown = np.floor(values.astype(np.float64) * bands.steps + 0.5 + _SLACK)
    scored = np.array(bands.points, np.float32)[np.searchsorted(bands.edges, shown, side="right")]
    return np.where(np.isnan(values), np.float32(0), scored)


def _saturation(seen: Observed, scale: Scale) -> Part:
    name, value = "oxygen_saturation", seen.oxygen_saturation
    if scale == 1:
        return _part(name, SPO2_SCALE_1, value)
    if seen.supplemental_oxygen is not None:
        return _part(name, SPO2_SCALE_2_OXYGEN if seen.supplemental_oxygen else SPO2_SCALE_2_AIR, value)
    air, oxygen = _part(name, SPO2_SCALE_2_AIR, value), _part(name, SPO2_SCALE_2_OXYGEN, value)
    return Part(name, air.low, oxygen.high, air.missing)


def _mews_consciousness(seen: Observed) -> Part:
    if seen.acvpu is not None:
        exact = MEWS_ACVPU[seen.acvpu]
        return Part("consciousness", exact, exact)
    if seen.alert is None:
        return Part("consciousness", 0, 3, missing=True)
    return Part("consciousness", 0, 0) if seen.alert else Part("consciousness", 1, 3)


def _part(parameter: str, bands: Bands, value: float | None) -> Part:
    if value is None or not math.isfinite(value):
        return Part(parameter, 0, bands.greatest, missing=True)
    exact = points(bands, value)
    return Part(parameter, exact, exact)


def _yes_or_no(parameter: str, present: bool | None, score: int) -> Part:
    if present is None:
        return Part(parameter, 0, score, missing=True)
    return Part(parameter, score * present, score * present)


def _total(*parts: Part) -> Total:
    return Total(sum(part.low for part in parts), sum(part.high for part in parts), parts)
