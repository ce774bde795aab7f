"""NEWS2 beside the model: from the rows of a chunk's plan to points, decisions, and what alerts say of them.

Each record that changes a patient is judged, whether or not the model reads what it brings: on the newest
value of each parameter in the window, with its age at the patient's newest event time. All records of a chunk
are scored at once, over arrays; alerts say the same in words, by `schemas.news2`. No engine is needed.
"""

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas import model_config, news2
from schemas.features import CHANNEL, FEATURES
from schemas.latch import Which
from schemas.messages import BasisFinding, BasisInput, BedsideScore, EarlyWarning, ModelReference
from schemas.model_config import ModelConfig
from schemas.news2_policy import News2Policy
from schemas.window import NEVER
from worker.decide import Step, decide
from worker.decode import Record
from worker.feedback import Hearing, Said
from worker.messages import Basis, Voice, model_voice, moment, short, told_findings
from worker.plan import Plan, Scored, input_times

OUTCOME = "deterioration, by the National Early Warning Score 2"

BACKEND = "charts"
"""What computes NEWS2, in its alerts."""

VERSION = 1

INPUTS = (
    "respiratory_rate",
    "oxygen_saturation",
    "fio2",
    "systolic_pressure",
    "systolic_pressure_invasive",
    "heart_rate",
    "gcs",
    "temperature",
)
"""Features that NEWS2, qSOFA and MEWS read."""

COLUMNS = np.array([CHANNEL[name] for name in INPUTS], dtype=np.intp)

_OF = {
    "systolic_pressure_invasive": "systolic_pressure",
    "fio2": "supplemental_oxygen",
    "gcs": "consciousness",
}
"""Feature -> NEWS2 parameter, where they are called differently."""

_OXYGEN = news2.Bands((news2.ROOM_AIR + 1,), (0, news2.OXYGEN))

F64 = NDArray[np.float64]


PolicyOf = Callable[[Scored], News2Policy]
"""Gives the policy under which a row is judged."""


class Points(NamedTuple):
    """NEWS2 of n records, float64[n] each.

    alerting: what alerts are decided on. holding: what must be below the exit for an episode to resolve.
    """

    alerting: F64
    holding: F64


class Charted(NamedTuple):
    """What the charts give for n records, whatever calls for an alert: arrays of n.

    low, held: float64, points of the low end, of fresh values and of values of any age.
    single, held_single: bool, whether one parameter scores 3 in them.
    """

    low: F64
    held: F64
    single: NDArray[np.bool_]
    held_single: NDArray[np.bool_]


class Warned(NamedTuple):
    """A transition of NEWS2's own: the step, and the row that it rests on, number `i` of a plan's."""

    step: Step
    plan: Plan
    i: int


def voices(config: ModelConfig, backend: str) -> dict[Which, Voice]:
    """Who raises alerts: the model, computed by a backend, and NEWS2."""
    charts = (
        news2.RESPIRATION, news2.SPO2_SCALE_1, news2.SPO2_SCALE_2_AIR, news2.SPO2_SCALE_2_OXYGEN,
        news2.SYSTOLIC, news2.PULSE, news2.TEMPERATURE, news2.ROOM_AIR, news2.OXYGEN, news2.CVPU,
    )  # fmt: skip
    digest = sha256(msgspec.json.encode(charts)).hexdigest()
    reference = ModelReference(model_config.NEWS2, VERSION, digest)
    return {"risk": model_voice(config, backend), "news2": Voice(reference, BACKEND, OUTCOME)}


def decide_all(
    policy_of: PolicyOf,
    before_of: PolicyOf,
    chunk: Sequence[Record],
    plans: Iterable[Plan],
    said: Iterable[Said],
) -> list[Warned]:
    """NEWS2's transitions of a chunk, in the order of its records; replaces the patients' NEWS2 latches.

    Args:
        policy_of: gives NEWS2's policy for a row. before_of: the one at the patient's record before.
        chunk: the records.
        plans: each record that changed a patient has a row in one of them.
        said: the chunk's feedback.
    """
    rows: list[tuple[int, Plan, int, News2Policy, float, float]] = []
    for plan in plans:
        policies = [policy_of(scored) for scored in plan.scored]
        alerting, holding = (array.tolist() for array in points_under(policies, plan))
        for i, scored in enumerate(plan.scored):
            rows.append((scored.at, plan, i, policies[i], alerting[i], holding[i]))
    rows.sort(key=lambda row: row[0])
    found: list[Warned] = []
    hearing = Hearing(said, "news2")
    for at, plan, i, policy, alerting_points, holding_points in rows:
        hearing.until(at)
        scored = plan.scored[i]
        latches = scored.patient.latches
        latches["news2"], steps = decide(
            policy,
            latches["news2"],
            scored.time_ms,
            alerting_points,
            chunk[at].offset,
            holding_points,
            before=before_of(scored),
        )
        found += [Warned(step, plan, i) for step in steps]
    hearing.until(None)
    return found


def points_under(policies: Sequence[News2Policy], plan: Plan) -> Points:
    """The points of every row of a plan, each under its own policy.

    Of a policy only some fields bear on points, so that hundreds of patients' own policies are few here.
    """
    found = Points(np.zeros(len(policies)), np.zeros(len(policies)))
    rows_of: dict[tuple[int, float, int], list[int]] = {}
    for i, policy in enumerate(policies):
        rows_of.setdefault((policy.scale, policy.fresh_s, policy.single_enter), []).append(i)
    if len(rows_of) == 1:
        return points(policies[0], plan)
    for rows in rows_of.values():
        policy = policies[rows[0]]
        for target, array in zip(found, points(policy, plan), strict=True):
            target[rows] = array[rows]
    return found


def points(policy: News2Policy, plan: Plan) -> Points:
    """The points of every row of a plan; what `schemas.news2` gives for its low end, over arrays."""
    low, held, single, held_single = charted(policy, plan)
    return Points(raised(low, single, policy.single_enter), raised(held, held_single, policy.single_enter))


def raised(low: F64, single: NDArray[np.bool_], single_enter: int) -> F64:
    """Points that alerts are decided on: 3 points in one parameter count as `single_enter` at least."""
    return np.where(single, np.maximum(low, single_enter), low)


def charted(policy: News2Policy, plan: Plan) -> Charted:
    """What the charts give for every row of a plan, by the policy's scale and freshness alone."""
    rows, n = plan.rows, len(plan.scored)
    values = rows.values[:n, COLUMNS].astype(np.float64)
    known = rows.elapsed[:n, COLUMNS] < NEVER
    now = np.array([scored.time_ms for scored in plan.scored], dtype=np.int64)
    ages = now[:, None] - input_times(plan, COLUMNS)
    fresh = known & (ages <= round(policy.fresh_s * 1000))
    low, single = _charted(
        np.concatenate([np.where(chosen, values, np.nan) for chosen in (fresh, known)]),
        np.concatenate([ages, ages]),
        policy.scale,
    )
    return Charted(low[:n], low[n:], single[:n], single[n:])


def _charted(values: F64, ages: NDArray[np.int64], scale: news2.Scale) -> tuple[F64, NDArray[np.bool_]]:
    """(low end, whether one parameter scores 3) of each row.

    Args:
        values: float64[n, len(INPUTS)], NaN where unknown. ages: int64, ms, of the same shape.
        scale: SpO2 scale.
    """
    respiration, saturation, fio2, cuff, line, pulse, gcs, temperature = values.T
    newer_line = ~np.isnan(line) & (np.isnan(cuff) | (ages[:, 4] <= ages[:, 3]))
    oxygen = news2.points_of(_OXYGEN, fio2)
    spo2 = news2.points_of(news2.SPO2_SCALE_1 if scale == 1 else news2.SPO2_SCALE_2_AIR, saturation)
    if scale == 2:
        spo2 = np.where(oxygen > 0, news2.points_of(news2.SPO2_SCALE_2_OXYGEN, saturation), spo2)
    parts = np.stack([
        news2.points_of(news2.RESPIRATION, respiration),
        spo2,
        oxygen,
        news2.points_of(news2.SYSTOLIC, np.where(newer_line, line, cuff)),
        news2.points_of(news2.PULSE, pulse),
        np.where(gcs < 15, np.float32(news2.CVPU), np.float32(0)),
        news2.points_of(news2.TEMPERATURE, temperature),
    ])  # fmt: skip
    return parts.sum(axis=0, dtype=np.float64), (parts == 3).any(axis=0)


class Assessment(NamedTuple):
    """NEWS2, qSOFA and MEWS at one record, as alerts hold them, what they rest on, and findings."""

    news2: EarlyWarning
    qsofa: BedsideScore
    mews: BedsideScore
    inputs: tuple[BasisInput, ...]
    missing: tuple[str, ...]
    findings: tuple[BasisFinding, ...]

    def basis(self, care_unit: str | None) -> Basis:
        """Of an alert of NEWS2's own."""
        return Basis(
            self.inputs,
            self.missing,
            news2=self.news2,
            qsofa=self.qsofa,
            mews=self.mews,
            care_unit=care_unit,
            findings=self.findings,
        )

    def beside(self, basis: Basis) -> Basis:
        """The basis of a model's alert, with these scores and findings beside it."""
        news2, qsofa, mews = self.news2, self.qsofa, self.mews
        return basis._replace(news2=news2, qsofa=qsofa, mews=mews, findings=self.findings)


def assess(policy: News2Policy, plan: Plan, i: int) -> Assessment:
    """What row i of a plan says; `missing` are features that the window does not hold."""
    scored, row = plan.scored[i], plan.rows
    times = input_times(plan, COLUMNS, i)[0].tolist()
    newest: dict[str, tuple[float, float]] = {}
    inputs: list[BasisInput] = []
    for name, channel, time_ms in zip(INPUTS, COLUMNS.tolist(), times, strict=True):
        if row.elapsed[i, channel] < NEVER:
            feature, age_s = FEATURES[channel], (scored.time_ms - time_ms) / 1000
            newest[name] = (float(row.values[i, channel]), age_s)
            value = short(row.values[i, channel])
            inputs.append(BasisInput(name, feature.loinc[0], value, feature.unit, moment(time_ms), age_s))
    seen = news2.observed(newest, policy.fresh_s)
    total = news2.news2(seen, policy.scale)
    known = {_OF.get(name, name) for name in newest}
    warning = EarlyWarning(
        low=total.low,
        high=total.high,
        complete=total.complete,
        response=news2.response(total),
        scale=policy.scale,
        single=total.single,
        parts=total.parts,
        missing=tuple(name for name in total.missing if name not in known),
        stale=tuple(name for name in total.missing if name in known),
    )
    qsofa, mews = (BedsideScore(t.low, t.high, t.missing) for t in (news2.qsofa(seen), news2.mews(seen)))
    missing = tuple(name for name in INPUTS if name not in newest)
    findings = told_findings(scored.findings, scored.time_ms)
    return Assessment(warning, qsofa, mews, tuple(inputs), missing, findings)
