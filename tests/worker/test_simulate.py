"""Simulated patients are reproducible, plausible, and as ill as their pathway says."""

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest

from engines import repository
from engines.engine import F32
from schemas import news2_policy
from schemas.features import BY_LOINC, FEATURES, IS_STATIC
from schemas.messages import Alert, VitalsRecord
from schemas.units import accept
from worker import simulate
from worker.intake import Limits
from worker.partition import Partition, Place
from worker.pathways import PATHWAYS
from worker.pipeline import Pipeline
from worker.policies import Policies
from worker.publish import Outgoing
from worker.served import Alone, Served
from worker.simulate import SimulationError

HOUR = timedelta(hours=1)
encode = msgspec.json.Encoder().encode


def values(pathway: str, feature: str, first_h: float, last_h: float, count: int = 20) -> list[float]:
    """All values of a feature that patients of a pathway show between two hours of their stay."""
    return [
        observation.value
        for patient in simulate.patients(count, 3, {pathway: 1})
        for record in simulate.chart(patient)
        if first_h <= (record.time - patient.admitted) / HOUR < last_h
        for observation in record.observations
        if FEATURES[BY_LOINC[observation.code]].name == feature
    ]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    def made(seed: int) -> list[bytes]:
        return [encode(record) for record in simulate.records(simulate.patients(8, seed))]

    assert made(1) == made(1)
    assert not set(made(1)) & set(made(2))


def test_more_patients_add_to_the_first_ones() -> None:
    assert simulate.patients(9)[:4] == simulate.patients(4)


@pytest.mark.parametrize("pathway", PATHWAYS)
def test_every_observation_is_accepted(pathway: str) -> None:
    for record in simulate.records(simulate.patients(10, 5, {pathway: 1})):
        for observation in record.observations:
            channel = BY_LOINC[observation.code]
            assert accept(channel, observation.value, observation.unit) == observation.value


@pytest.mark.parametrize("pathway", PATHWAYS)
def test_a_chart_is_in_order_and_names_each_event_once(pathway: str) -> None:
    (patient,) = simulate.patients(1, 7, {pathway: 1})
    records = list(simulate.chart(patient))
    assert {record.patient for record in records} == {patient.id}
    assert len({record.event_id for record in records}) == len(records)
    assert [r.time for r in records] == sorted(r.time for r in records)
    assert records[0].time == patient.admitted
    assert records[-1].time < patient.admitted + 48 * HOUR
    assert 100 < len(records) < 500


def test_statics_come_with_the_admission_only() -> None:
    (patient,) = simulate.patients(1)
    first, *others = simulate.chart(patient)
    static = [i for i, o in enumerate(first.observations) if IS_STATIC[BY_LOINC[o.code]]]
    assert len(static) == 4
    assert not any(IS_STATIC[BY_LOINC[o.code]] for record in others for o in record.observations)


def test_records_of_all_patients_are_merged_in_order() -> None:
    everyone = simulate.patients(6)
    records = list(simulate.records(everyone, hours=12))
    assert [r.time for r in records] == sorted(r.time for r in records)
    assert {r.patient for r in records} == {patient.id for patient in everyone}


@pytest.mark.parametrize(
    ("feature", "rises"),
    [
        ("heart_rate", True),
        ("respiratory_rate", True),
        ("temperature", True),
        ("lactate", True),
        ("leukocytes", True),
        ("creatinine", True),
        ("bilirubin", True),
        ("platelets", False),
        ("gcs", False),
        ("urine_output", False),
        ("bicarbonate", False),
    ],
)
def test_sepsis_moves_what_it_moves_in_patients(feature: str, rises: bool) -> None:
    ill = np.median(values("sepsis", feature, 30, 48))
    # Lactate is taken from the ill only: normal is at most 2 mmol/L.
    well = 2.0 if feature == "lactate" else np.median(values("stable", feature, 30, 48))
    assert ill > 1.05 * well if rises else ill < 0.75 * well


def test_stable_patients_are_well_and_the_recovering_become_so() -> None:
    assert set(values("stable", "gcs", 0, 48)) == {15}
    assert max(values("stable", "creatinine", 0, 48)) < 1.5
    assert np.median(values("recovery", "heart_rate", 0, 4)) > 95
    assert np.median(values("recovery", "heart_rate", 40, 48)) < 90


def test_haemorrhage_lowers_the_hematocrit_and_respiratory_failure_the_saturation() -> None:
    assert np.median(values("haemorrhage", "hematocrit", 20, 30)) < 30
    assert np.percentile(values("respiratory-failure", "oxygen_saturation", 15, 48), 10) < 92


def test_related_quantities_agree() -> None:
    for record in simulate.records(simulate.patients(10)):
        named = {FEATURES[BY_LOINC[o.code]].name: o.value for o in record.observations}
        for suffix in ("", "_invasive"):
            if "mean_pressure" + suffix in named:
                assert (
                    named["diastolic_pressure" + suffix]
                    < named["mean_pressure" + suffix]
                    < named["systolic_pressure" + suffix]
                )


def test_a_hundred_patients_take_seconds() -> None:
    started = time.process_time()
    assert sum(1 for _ in simulate.records(simulate.patients(100))) > 10_000
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("count", "mix", "message"),
    [
        (1, {"plague": 1.0}, "unknown pathway 'plague'; there are stable, sepsis"),
        (0, {"stable": 1.0}, "at least one patient"),
        (1, {"stable": 0.0}, "not all zero"),
        (1, {"stable": float("inf")}, "not all zero"),
        (1, {}, "not all zero"),
    ],
)
def test_what_cannot_be_made_is_refused(count: int, mix: dict[str, float], message: str) -> None:
    with pytest.raises(SimulationError, match=message):
        simulate.patients(count, 1, mix)


class Input(NamedTuple):
    """A record as the transport hands it over."""

    offset: int
    timestamp: int
    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()


async def alerted(records: Sequence[VitalsRecord]) -> set[str]:
    """Patients with an alert, under the shipped model and policy."""
    engine = repository.load(repository.SHIPPED, "vitals")
    place = Place("test", "vitals", 0)
    size = engine.config.dynamic_batching.max_batch_size
    published: list[Outgoing] = []

    async def run(inputs: Mapping[str, F32]) -> dict[str, F32]:
        n = len(next(iter(inputs.values())))
        parts = [engine.run({k: v[i : i + size] for k, v in inputs.items()}) for i in range(0, n, size)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    async def publish(messages: Sequence[Outgoing]) -> None:
        published.extend(messages)

    pipeline = Pipeline(
        Alone(Served(engine.config, engine.backend, run)),
        Policies(engine.config.name, engine.config.policy, news2_policy.load()),
        publish,
        ("risk-alerts", "risk-scores", "dead-letters"),
        Limits(1 << 20, 3_600_000, 3_600_000),
        publish_scores=False,
    )
    partition = Partition(place, 0, 0)
    inputs = [
        Input(i, round(r.time.timestamp() * 1000), r.patient.encode(), encode(r))
        for i, r in enumerate(records)
    ]
    for start in range(0, len(inputs), 512):
        await pipeline.process(partition, inputs[start : start + 512])
    engine.close()
    assert {message.topic for message in published} <= {"risk-alerts"}
    alerts = [msgspec.json.decode(message.value, type=Alert) for message in published]
    return {alert.patient for alert in alerts if alert.model.name == "vitals"}


@pytest.mark.skipif(
    not Path(repository.SHIPPED, "vitals", "config.json").exists(), reason="no vitals model is shipped yet"
)
@pytest.mark.parametrize(("pathway", "least", "most"), [("stable", 0.0, 0.05), ("sepsis", 0.8, 1.0)])
async def test_the_shipped_policy_tells_the_stable_from_the_septic(
    pathway: str, least: float, most: float
) -> None:
    everyone = simulate.patients(80, 11, {pathway: 1})
    share = len(await alerted(list(simulate.records(everyone)))) / len(everyone)
    assert least <= share <= most
