"""Simulated patients of an intensive care unit, seeded, for demo and tests.

A patient follows a named pathway: what an illness does to each quantity at its height, and the course of
that height over time. A value is the patient's own normal, moved by the illness, by the time of day and by
autocorrelated noise; related quantities are computed from one another (mean from systolic and diastolic
pressure, pH from bicarbonate and carbon dioxide, saturation from oxygen pressure). Sicker patients are
measured more often, as on a ward. It knows nothing of any model. Not for research: no one is like this.
"""

import heapq
import math
import random
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from schemas.features import CHANNEL, FEATURES
from schemas.messages import Observation, VitalsRecord
from worker.pathways import MIX, NORMAL, PATHWAYS

START = datetime(2026, 1, 1, tzinfo=UTC)
"""Fixed, so that the same seed gives the same bytes on any day."""

ADMISSIONS_H = 6.0
"""Patients are admitted evenly over this time after `START`."""

ILL = 0.25
"""Level of illness from which a patient is watched more closely and has blood gases taken."""

LUNGS = {"respiratory-failure": 1.1, "sepsis": 0.6}
"""How white the lungs are on a chest film at a pathway's full level."""

_EVENTS = uuid.UUID("5b4ce0d7-7f0c-5f0e-9a34-3f6b1f1f6a11")


class SimulationError(ValueError):
    """Patients of this kind cannot be made; the message names the argument."""


_DECIMALS: dict[str, int] = {
    "temperature": 1,
    "arterial_ph": 2,
    "potassium": 1,
    "magnesium": 2,
    "lactate": 1,
    "creatinine": 2,
    "bilirubin": 1,
    "albumin": 1,
    "leukocytes": 1,
    "hematocrit": 1,
    "weight": 1,
    "height": 1,
}


class _Round(NamedTuple):
    """Features charted together, every so many hours when well and when ill; None is never."""

    features: tuple[str, ...]
    well_h: float | None
    ill_h: float


_ROUNDS: tuple[_Round, ...] = (
    _Round(("heart_rate", "respiratory_rate", "oxygen_saturation"), 0.75, 0.4),  # and pressures
    _Round(("urine_output",), 1.0, 1.0),
    _Round(("temperature",), 3.5, 2.0),
    _Round(("gcs",), 4.0, 4.0),
    _Round(("fio2", "mechanical_ventilation"), None, 4.0),
    _Round(("arterial_ph", "arterial_pco2", "arterial_po2"), None, 5.0),
    _Round(("lactate",), None, 5.0),
    _Round(
        ("sodium", "potassium", "bicarbonate", "urea_nitrogen", "creatinine", "glucose", "magnesium"),
        11.0,
        7.0,
    ),
    _Round(("hematocrit", "leukocytes", "platelets"), 11.5, 8.0),
    _Round(("bilirubin", "ast", "alt", "alkaline_phosphatase", "albumin"), 30.0, 14.0),
    _Round(("weight",), 24.0, 24.0),
)


@dataclass(frozen=True, slots=True)
class Patient:
    """One simulated patient; `chart` gives the records. `seed` and `number` say everything else."""

    id: str
    seed: int
    number: int
    pathway: str
    admitted: datetime


def patients(count: int, seed: int = 1, mix: Mapping[str, float] = MIX) -> list[Patient]:
    """`count` patients; a greater count adds to the same first ones.

    Args:
        count: at least 1.
        seed: the same seed gives the same patients and charts.
        mix: weight of each pathway.

    Raises:
        SimulationError: no patient, an unknown pathway, or weights that cannot be drawn from.
    """
    unknown = sorted(set(mix) - set(PATHWAYS))
    if unknown:
        raise SimulationError(f"unknown pathway {unknown[0]!r}; there are {', '.join(PATHWAYS)}")
    if count < 1 or not all(0 <= weight < math.inf for weight in mix.values()) or sum(mix.values()) <= 0:
        raise SimulationError("needs at least one patient and weights of pathways that are not all zero")
    return [_patient(number, seed, mix) for number in range(count)]


def records(everyone: list[Patient], hours: float = 48.0) -> Iterator[VitalsRecord]:
    """The charts of all patients, merged in the order of time."""
    return heapq.merge(*(chart(patient, hours) for patient in everyone), key=lambda record: record.time)


def chart(patient: Patient, hours: float = 48.0) -> Iterator[VitalsRecord]:
    """The records of a patient's first `hours`, in the order of time; the first is the admission."""
    body = _Body(patient)
    yield _record(patient, 0, 0.0, body.admission())
    due = [(body.wait(charted, 0.0, first=True), i) for i, charted in enumerate(_ROUNDS)]
    heapq.heapify(due)
    count = 1
    while due[0][0] < hours:
        hour, i = due[0]
        observations = body.observe(_ROUNDS[i], hour)
        if observations:
            yield _record(patient, count, hour, observations)
            count += 1
        heapq.heapreplace(due, (hour + body.wait(_ROUNDS[i], hour), i))


def filmed(patient: Patient) -> tuple[datetime, float]:
    """When a patient's chest film is taken, and how white the lungs are on it, from 0 to 1.

    It is taken some hours after admission, of the ill at the height of their illness.
    """
    body = _Body(patient)
    ill = bool(body.severity)
    hour = body.onset_h + body.rise_h if ill else random.Random(f"film/{patient.number}").uniform(2, 12)
    level = LUNGS.get(patient.pathway, 0.0) * body.level(hour)
    return patient.admitted + timedelta(seconds=round(hour * 3600)), min(level, 1.0)


def _patient(number: int, seed: int, mix: Mapping[str, float]) -> Patient:
    rng = random.Random(f"admission/{seed}/{number}")
    pathway = rng.choices(list(mix), list(mix.values()))[0]
    admitted = START + timedelta(seconds=rng.randrange(int(ADMISSIONS_H * 3600)))
    return Patient(f"sim-{seed}-{number:04d}", seed, number, pathway, admitted)


def _record(patient: Patient, count: int, hour: float, observations: list[Observation]) -> VitalsRecord:
    event_id = str(uuid.uuid5(_EVENTS, f"{patient.id}/{count}"))
    time = patient.admitted + timedelta(seconds=round(hour * 3600))
    return VitalsRecord(event_id, patient.id, time, tuple(observations))


class _Body:
    """The patient's physiology. Ask for hours that never fall: the noise remembers."""

    def __init__(self, patient: Patient) -> None:
        self.rng = rng = random.Random(f"body/{patient.seed}/{patient.number}")
        self.pathway = pathway = PATHWAYS[patient.pathway]
        self.clock_h = patient.admitted.hour + patient.admitted.minute / 60
        self.age = min(max(round(rng.gauss(*pathway.age)), 18), 95)
        self.male = rng.random() < 0.56
        self.height = rng.gauss(176 if self.male else 163, 7)
        self.icu = rng.choices((1, 2, 3, 4), pathway.icu)[0]
        self.severity = rng.uniform(*pathway.severity)
        self.onset_h = rng.uniform(*pathway.onset_h)
        self.rise_h = rng.uniform(*pathway.rise_h)
        self.treated_h = self.onset_h + rng.uniform(*pathway.treated_h)
        self.pace = rng.uniform(0.8, 1.2)
        self.arterial_line = self.icu in (2, 4) and rng.random() < 0.6
        self.normal = {name: rng.gauss(n.mean, n.between) for name, n in NORMAL.items()}
        self.noise = {name: (0.0, rng.gauss(0, n.within)) for name, n in NORMAL.items()}
        self.urine_since_h = 0.0

    def admission(self) -> list[Observation]:
        """What is charted on arrival."""
        statics = {
            "age": float(self.age),
            "sex": float(self.male),
            "height": self.height,
            "icu_type": self.icu,
        }
        first = ("weight", "heart_rate", "respiratory_rate", "oxygen_saturation", "temperature", "gcs")
        return [
            *(_observation(name, value) for name, value in statics.items()),
            *(_observation(name, self.feature(name, 0.0)) for name in first),
            *self.pressures(0.0),
        ]

    def wait(self, charted: _Round, hour: float, first: bool = False) -> float:
        """Hours until a round is due again; what only the ill have is asked for every hour."""
        every = charted.ill_h if self.ill(hour) else charted.well_h or 1.0
        jitter = self.rng.uniform(0.1, 0.6) if first else self.rng.uniform(0.8, 1.2)
        return every * jitter * self.pace

    def observe(self, charted: _Round, hour: float) -> list[Observation]:
        """A round's observations; none where it is not made."""
        if charted.well_h is None and not self.ill(hour):
            return []
        if charted.features[0] == "fio2":
            return self.ventilation(hour)
        observed = [_observation(name, self.feature(name, hour)) for name in charted.features]
        return observed + self.pressures(hour) if charted.features[0] == "heart_rate" else observed

    def ventilation(self, hour: float) -> list[Observation]:
        """The ventilator's settings, while there is one."""
        level = self.level(hour)
        if level < self.pathway.ventilated:
            return []
        oxygen = min(100.0, 5 * round((40 + 45 * level) / 5))
        return [_observation("mechanical_ventilation", 1.0), _observation("fio2", oxygen)]

    def pressures(self, hour: float) -> list[Observation]:
        """Blood pressures, by arterial line where there is one."""
        systolic, diastolic = self.value("systolic", hour), self.value("diastolic", hour)
        diastolic = min(diastolic, systolic - 12)
        suffix = "_invasive" if self.arterial_line or self.level(hour) > 0.4 else ""
        return [
            _observation("systolic_pressure" + suffix, systolic),
            _observation("diastolic_pressure" + suffix, diastolic),
            _observation("mean_pressure" + suffix, diastolic + (systolic - diastolic) / 3),
        ]

    def feature(self, name: str, hour: float) -> float:
        """A feature's value: a quantity, or what follows from others."""
        if name == "oxygen_saturation":
            return _saturation(self.oxygen(hour))
        if name == "arterial_po2":
            return self.oxygen(hour)
        if name == "arterial_ph":
            return 6.1 + math.log10(
                self.value("bicarbonate", hour) / (0.0307 * self.value("arterial_pco2", hour))
            )
        if name == "urine_output":
            passed, self.urine_since_h = hour - self.urine_since_h, hour
            return max(0.0, self.value("urine_rate", hour)) * self.normal["weight"] * passed
        return self.value(name, hour)

    def oxygen(self, hour: float) -> float:
        """Arterial oxygen pressure, mm[Hg]; a ventilator mends part of what is lost."""
        helped = 18 if self.level(hour) >= self.pathway.ventilated else 0
        return max(38.0, self.value("oxygen_pressure", hour) + helped)

    def value(self, name: str, hour: float) -> float:
        """A quantity: normal, illness, time of day, noise."""
        normal = NORMAL[name]
        value = self.normal[name] + self.wander(name, hour)
        value += normal.swing * math.cos((self.clock_h + hour - 17) * math.tau / 24)
        effect = self.pathway.effects.get(name)
        if effect is None:
            return value
        level = self.level(hour - effect.delay_h)
        return (value + effect.shift * level) * math.pow(effect.factor, level)

    def wander(self, name: str, hour: float) -> float:
        """Ornstein-Uhlenbeck noise, exact for any time step."""
        normal = NORMAL[name]
        then, noise = self.noise[name]
        kept = math.exp(-max(0.0, hour - then) / normal.memory_h)
        noise = noise * kept + normal.within * math.sqrt(1 - kept * kept) * self.rng.gauss(0, 1)
        self.noise[name] = (hour, noise)
        return noise

    def level(self, hour: float) -> float:
        """How ill at an hour: 0 well, 1 the pathway's full effects; rises smoothly, falls when treated."""
        risen = 1.0 if self.rise_h == 0 else min(max((hour - self.onset_h) / self.rise_h, 0.0), 1.0)
        fallen = math.exp(-max(0.0, hour - self.treated_h) / self.pathway.fall_h)
        return self.severity * risen * risen * (3 - 2 * risen) * fallen

    def ill(self, hour: float) -> bool:
        """Whether the illness shows enough for closer watch."""
        return self.level(hour) >= ILL


def _saturation(oxygen_pressure: float) -> float:
    """Oxygen saturation in % by Severinghaus' equation (1979), pressure in mm[Hg]."""
    cubed = oxygen_pressure**3 + 150 * oxygen_pressure
    return 100 / (1 + 23400 / cubed)


def _observation(name: str, value: float) -> Observation:
    feature = FEATURES[CHANNEL[name]]
    charted = round(min(max(value, feature.low), feature.high), _DECIMALS.get(name, 0))
    return Observation(feature.loinc[0], float(charted), feature.unit)
