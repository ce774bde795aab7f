"""Pathways of simulated patients: what an illness does to the body and when; and what is normal.

Sources: textbook intensive care medicine, in round figures. Quantities are named as features where they
are one; the others (systolic, diastolic, oxygen_pressure, urine_rate) are what features follow from. In
the features' canonical units; urine_rate in mL per kg and hour.
"""

import math
from typing import NamedTuple


class Effect(NamedTuple):
    """At full level a quantity becomes (normal + shift) * factor, `delay_h` after the illness begins."""

    shift: float = 0.0
    factor: float = 1.0
    delay_h: float = 0.0


class Pathway(NamedTuple):
    """One course of illness.

    effects: by quantity.
    age: mean and standard deviation, years.
    icu: weights of coronary care, cardiac surgery recovery, medical, surgical.
    severity: range of the greatest level reached.
    onset_h: range of hours from admission until the illness begins.
    rise_h: range of hours from onset to the greatest level; 0 where it is there at admission.
    treated_h: range of hours from onset until treatment works and the level falls.
    fall_h: time constant of that fall, hours.
    ventilated: level at or above which the lungs are ventilated.
    """

    effects: dict[str, Effect]
    age: tuple[float, float]
    icu: tuple[int, int, int, int]
    severity: tuple[float, float]
    onset_h: tuple[float, float] = (0.0, 0.0)
    rise_h: tuple[float, float] = (0.0, 0.0)
    treated_h: tuple[float, float] = (math.inf, math.inf)
    fall_h: float = 1.0
    ventilated: float = math.inf


_SEPSIS = {
    "heart_rate": Effect(48),
    "respiratory_rate": Effect(16),
    "temperature": Effect(2.1),
    "systolic": Effect(-46, delay_h=1),
    "diastolic": Effect(-26, delay_h=1),
    "oxygen_pressure": Effect(-24, delay_h=1),
    "arterial_pco2": Effect(-7),
    "bicarbonate": Effect(-11, delay_h=1),
    "lactate": Effect(factor=7.0, delay_h=1),
    "urine_rate": Effect(factor=0.1, delay_h=2),
    "gcs": Effect(-8, delay_h=2),
    "leukocytes": Effect(factor=3.0),
    "creatinine": Effect(factor=3.8, delay_h=3),
    "urea_nitrogen": Effect(factor=3.6, delay_h=3),
    "potassium": Effect(1.0, delay_h=3),
    "platelets": Effect(factor=0.28, delay_h=3),
    "bilirubin": Effect(factor=7.0, delay_h=4),
    "ast": Effect(factor=8.0, delay_h=4),
    "alt": Effect(factor=6.0, delay_h=4),
    "alkaline_phosphatase": Effect(factor=1.8, delay_h=4),
    "albumin": Effect(-1.6),
    "hematocrit": Effect(-6, delay_h=2),
    "glucose": Effect(55),
}

_RESPIRATORY = {
    "heart_rate": Effect(32),
    "respiratory_rate": Effect(18),
    "temperature": Effect(1.0),
    "systolic": Effect(-24, delay_h=3),
    "diastolic": Effect(-14, delay_h=3),
    "oxygen_pressure": Effect(-42),
    "arterial_pco2": Effect(22, delay_h=2),
    "bicarbonate": Effect(-2, delay_h=4),
    "lactate": Effect(factor=2.6, delay_h=2),
    "gcs": Effect(-8, delay_h=2),
    "leukocytes": Effect(factor=1.9),
    "urine_rate": Effect(factor=0.4, delay_h=3),
    "creatinine": Effect(factor=1.8, delay_h=4),
    "urea_nitrogen": Effect(factor=2.3, delay_h=4),
    "platelets": Effect(factor=0.6, delay_h=4),
    "albumin": Effect(-1.2),
}

_HAEMORRHAGE = {
    "heart_rate": Effect(44),
    "respiratory_rate": Effect(9),
    "temperature": Effect(-0.9, delay_h=1),
    "systolic": Effect(-48, delay_h=0.5),
    "diastolic": Effect(-24, delay_h=0.5),
    "oxygen_pressure": Effect(-8, delay_h=1),
    "arterial_pco2": Effect(-6),
    "bicarbonate": Effect(-8, delay_h=0.5),
    "lactate": Effect(factor=5.0, delay_h=0.5),
    "urine_rate": Effect(factor=0.2, delay_h=1),
    "gcs": Effect(-6, delay_h=1),
    "hematocrit": Effect(-17, delay_h=1),
    "platelets": Effect(factor=0.5, delay_h=2),
    "creatinine": Effect(factor=1.6, delay_h=4),
    "glucose": Effect(45),
    "albumin": Effect(-1.0, delay_h=2),
}

PATHWAYS: dict[str, Pathway] = {
    "stable": Pathway({}, (50, 9), (3, 5, 0, 2), (0, 0)),
    "sepsis": Pathway(
        _SEPSIS, (74, 8), (1, 0, 8, 2), (0.85, 1.1), onset_h=(2, 10), rise_h=(6, 12), ventilated=0.55
    ),
    "respiratory-failure": Pathway(
        _RESPIRATORY, (73, 9), (1, 0, 8, 1), (0.8, 1.1), onset_h=(3, 16), rise_h=(4, 12), ventilated=0.6
    ),
    "haemorrhage": Pathway(
        _HAEMORRHAGE,
        (62, 13),
        (0, 2, 2, 6),
        (0.7, 1.1),
        onset_h=(3, 20),
        rise_h=(2, 5),
        treated_h=(8, 16),
        fall_h=8.0,
    ),
    "recovery": Pathway(
        _SEPSIS, (62, 11), (0, 1, 5, 4), (0.55, 0.8), treated_h=(2, 6), fall_h=12.0, ventilated=0.5
    ),
}

MIX: dict[str, float] = {
    "stable": 0.45,
    "sepsis": 0.2,
    "respiratory-failure": 0.12,
    "haemorrhage": 0.08,
    "recovery": 0.15,
}
"""Share of each pathway unless stated."""


class Normal(NamedTuple):
    """A quantity in the well.

    mean, between: over people, with standard deviation.
    within: standard deviation of one person's noise, and memory_h, the hours in which it is forgotten.
    swing: half the difference between late afternoon and early morning.
    """

    mean: float
    between: float
    within: float
    memory_h: float
    swing: float = 0.0


NORMAL: dict[str, Normal] = {
    "heart_rate": Normal(76, 7, 4, 1.0, 4),
    "respiratory_rate": Normal(15, 1.2, 1.4, 0.7, 0.6),
    "temperature": Normal(36.8, 0.15, 0.15, 4, 0.25),
    "systolic": Normal(122, 8, 6, 1.0, 4),
    "diastolic": Normal(67, 5, 4, 1.0, 3),
    "oxygen_pressure": Normal(92, 5, 5, 2.0),
    "arterial_pco2": Normal(40, 1.8, 1.5, 3.0),
    "bicarbonate": Normal(24.8, 1.2, 0.6, 8.0),
    "lactate": Normal(1.1, 0.2, 0.15, 4.0),
    "urine_rate": Normal(1.1, 0.2, 0.35, 2.0),
    "gcs": Normal(15, 0, 0, 4.0),
    "hematocrit": Normal(36, 3, 0.8, 12.0),
    "platelets": Normal(225, 45, 8, 12.0),
    "leukocytes": Normal(8.5, 1.5, 0.6, 12.0),
    "creatinine": Normal(0.88, 0.13, 0.05, 12.0),
    "urea_nitrogen": Normal(14, 3, 0.8, 12.0),
    "potassium": Normal(4.1, 0.2, 0.15, 6.0),
    "sodium": Normal(139.5, 1.6, 0.9, 12.0),
    "magnesium": Normal(0.85, 0.06, 0.03, 12.0),
    "glucose": Normal(118, 12, 9, 4.0),
    "bilirubin": Normal(0.6, 0.15, 0.04, 12.0),
    "ast": Normal(27, 6, 2, 12.0),
    "alt": Normal(25, 6, 2, 12.0),
    "alkaline_phosphatase": Normal(72, 12, 3, 12.0),
    "albumin": Normal(3.7, 0.25, 0.06, 24.0),
    "weight": Normal(80, 13, 0.3, 24.0),
}
