"""Decisions and refusals -> the messages that carry them. Same input, same bytes."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import NamedTuple
from uuid import uuid5

import msgspec
import numpy as np

from engines.steps import Prediction, SeriesModel
from schemas.features import CHANNEL, FEATURES, IS_STATIC
from schemas.latch import Which
from schemas.messages import (
    NAMESPACE,
    Alert,
    BasisFinding,
    BasisInput,
    BedsideScore,
    ClassProbability,
    DeadLetter,
    EarlyWarning,
    ForecastPoint,
    ModelReference,
    Rejection,
    Score,
    Source,
    TrendPoint,
    alert_id,
)
from schemas.model_config import ModelConfig
from schemas.stored import KeptFinding
from schemas.window import HOUR_MS, NEVER
from worker.decide import Step, told_level
from worker.decode import Record
from worker.partition import Place
from worker.plan import Plan
from worker.publish import Headers, Outgoing, cloud_event

KEPT_BYTES = 256 * 1024
"""Bytes of an original that a dead letter keeps."""

KEPT_HEADERS = 32
"""Headers of an original that a dead letter keeps, each up to 1 KiB and under a name of up to 128 characters.
What is kept must fit `max.message.bytes`, or one record would stop the worker for good."""

_EARLIEST_MS = -62_135_596_800_000
_LATEST_MS = 253_402_300_799_000
"""Of the years 1 to 9999."""

_encode = msgspec.json.Encoder().encode


class Basis(NamedTuple):
    """What an alert's risk rests on; fields as in `Alert`. An expiry rests on no score, so on nothing."""

    inputs: tuple[BasisInput, ...] = ()
    missing: tuple[str, ...] = ()
    uncertainty: float | None = None
    forecast: tuple[ForecastPoint, ...] = ()
    news2: EarlyWarning | None = None
    qsofa: BedsideScore | None = None
    mews: BedsideScore | None = None
    care_unit: str | None = None
    findings: tuple[BasisFinding, ...] = ()


class Voice(NamedTuple):
    """Who raises an alert; fields as in `Alert`."""

    model: ModelReference
    backend: str
    outcome: str


def model_voice(config: ModelConfig, backend: str) -> Voice:
    """The voice of a model that a backend computes."""
    reference = ModelReference(config.name, config.version, config.digest)
    return Voice(reference, backend, config.outcome)


class Author:
    """Writes the messages of one partition.

    Args:
        place: the input partition.
        voices: the model's, and NEWS2's.
        topics: names of the alert, score and dead-letter topics.
        shadow: version of the model that scores as a shadow; None in a worker that serves. Headers tell,
            bodies do not: a body says what the version would say if it served, under the same id.
    """

    def __init__(
        self,
        place: Place,
        voices: Mapping[Which, Voice],
        topics: tuple[str, str, str],
        shadow: int | None = None,
    ) -> None:
        self._place = place
        self._voices = voices
        self._alerts, self._scores, self._dead_letters = topics
        self._kind = "" if shadow is None else "shadow."
        root = "/riskstream" if shadow is None else f"/riskstream/shadow-{shadow}"
        self._uri = f"{root}/{place.cluster}/{place.topic}/{place.partition}"

    def _event(self, kind: str, identifier: str) -> Headers:
        return cloud_event(f"{self._kind}{kind}", identifier, self._uri)

    def alert(
        self, which: Which, step: Step, patient_id: str, basis: Basis, voice: Voice | None = None
    ) -> Outgoing:
        """An alert transition; `basis` is that of the record that it rests on.

        Args:
            which: of the patient's latches.
            step: the transition.
            patient_id: whose.
            basis: nothing, for an expiry.
            voice: who raises it, of the imaging latch: what made the finding.

        An expiry rests on no score. It says only what the alert log and the records' times say, so that
        it is the same after a rebuild that began in the middle of its patient's window.
        """
        (model, backend, outcome), policy = voice or self._voices[which], step.policy
        episode, trace = step.episode, step.trace
        cluster, topic, partition = self._place
        name = f"{cluster}/{topic}/{partition}/{episode.opened}"
        identifier = alert_id(name, model.name, step.transition, episode.sequence)
        trend = tuple(TrendPoint(moment(hour * HOUR_MS), risk) for hour, risk in trace.trend)
        if step.transition == "expired":
            trend = ()
        number = told_level(policy, episode)
        alert = Alert(
            id=identifier,
            episode=name,
            sequence=episode.sequence,
            transition=step.transition,
            patient=patient_id,
            severity=episode.severity,
            time=moment(step.time),
            raised_at=moment(episode.raised),
            expires_at=moment(trace.time + round(policy.expiry_s * 1000)),
            risk=episode.alerted_risk if which != "news2" else None,
            threshold=episode.threshold if which != "news2" else round(episode.threshold),
            outcome=outcome,
            policy_version=policy.version,
            model=model,
            backend=backend,
            source=Source(cluster, topic, partition, trace.offset),
            inputs=basis.inputs,
            missing=basis.missing,
            trend=trend,
            uncertainty=basis.uncertainty,
            forecast=basis.forecast,
            points=episode.alerted_risk if which == "news2" else None,
            news2=basis.news2,
            qsofa=basis.qsofa,
            mews=basis.mews,
            level=number if number >= 0 else None,
            care_unit=basis.care_unit,
            findings=basis.findings,
        )
        headers = self._event(f"alert.{step.transition}", identifier)
        return Outgoing(self._alerts, patient_id.encode(), _encode(alert), headers, partition)

    def score(self, patient_id: str, time_ms: int, risk: float, basis: Basis, offset: int) -> Outgoing:
        """One score; of the basis it says the uncertainty, NEWS2 and the inputs."""
        cluster, topic, partition = self._place
        model = self._voices["risk"].model
        score = Score(
            patient_id,
            moment(time_ms),
            risk,
            model.name,
            model.version,
            Source(cluster, topic, partition, offset),
            basis.uncertainty,
            basis.news2,
            basis.inputs,
            basis.care_unit,
        )
        identifier = f"{cluster}/{topic}/{partition}/{offset}"
        return Outgoing(self._scores, patient_id.encode(), _encode(score), self._event("score", identifier))

    def dead_letter(self, record: Record, rejections: Sequence[Rejection], accepted: int) -> Outgoing:
        """A record that was refused, in whole or in part."""
        cluster, topic, partition = self._place
        name = f"{cluster}/{topic}/{partition}/{record.offset}"
        identifier = str(uuid5(NAMESPACE, f"{name}|dead-letter"))
        value = record.value or b""
        letter = DeadLetter(
            id=identifier,
            reason=rejections[0].reason,
            rejections=tuple(rejections[:64]),
            source=Source(cluster, topic, partition, record.offset),
            timestamp=moment(record.timestamp),
            size=len(value),
            sha256=sha256(value).hexdigest(),
            value=value[:KEPT_BYTES],
            key=record.key[:1024] if record.key is not None else None,
            headers=tuple(
                (name[:128], (content or b"")[:1024]) for name, content in record.headers[:KEPT_HEADERS]
            ),
            accepted=accepted,
        )
        headers = self._event(f"dead-letter.{letter.reason}", identifier)
        return Outgoing(self._dead_letters, name.encode(), _encode(letter), headers)


def basis(
    plan: Plan, i: int, model: SeriesModel, prediction: Prediction, contributions: Sequence[float | None]
) -> Basis:
    """What score i of a plan rests on: inputs with their times, ages and contributions, and what is missing.

    Args:
        plan: of the chunk.
        i: number of the score.
        model: the served model.
        prediction: of the plan's scores.
        contributions: one for each of the model's features.
    """
    inputs: list[BasisInput] = []
    missing: list[str] = []
    scored = plan.scored[i]
    for name, channel, part in zip(model.config.features, model.columns, contributions, strict=True):
        feature, value = FEATURES[channel], short(plan.rows.values[i, channel])
        elapsed = plan.rows.elapsed[i, channel]
        if elapsed >= NEVER:
            missing.append(name)
            continue
        time, age = None, None
        if not IS_STATIC[channel]:
            time_ms = int(scored.carried_times[channel])
            if elapsed == 0:
                time_ms = scored.open * HOUR_MS + int(plan.times[i, channel])
            time, age = moment(time_ms), (scored.time_ms - time_ms) / 1000
        inputs.append(BasisInput(name, feature.loinc[0], value, feature.unit, time, age, part))
    forecast = _forecast(plan, i, model, prediction)
    spread = uncertainty(prediction, i)
    return Basis(tuple(inputs), tuple(missing), spread, forecast, care_unit=scored.care_unit)


def uncertainty(prediction: Prediction, i: int) -> float | None:
    """The spread of score i, to six decimals; None where the model gives none."""
    return finite(prediction.spread[i]) if prediction.spread is not None else None


def finite(value: float | np.floating) -> float | None:
    """A number to six decimals, as risks are rounded; None in the place of what is no number."""
    return round(float(value), 6) + 0.0 if np.isfinite(value) else None  # + 0.0 makes -0.0 plain 0.0


def _forecast(plan: Plan, i: int, model: SeriesModel, prediction: Prediction) -> tuple[ForecastPoint, ...]:
    """Of the features that the window holds: what was never measured has no course to forecast."""
    ahead = model.config.forecast
    if ahead is None or prediction.forecast is None:
        return ()
    points = []
    for name, value in zip(ahead.features, prediction.forecast[i], strict=True):
        channel = CHANNEL[name]
        if plan.rows.elapsed[i, channel] < NEVER and np.isfinite(value):
            last, unit = short(plan.rows.values[i, channel]), FEATURES[channel].unit
            points.append(ForecastPoint(name, round(float(value), 3), unit, ahead.horizon_s, last))
    return tuple(points)


def told_findings(findings: Sequence[KeptFinding], at_ms: int) -> tuple[BasisFinding, ...]:
    """Findings as alerts hold them, with their ages at `at_ms`."""
    return tuple(
        BasisFinding(
            f.id,
            ModelReference(f.by.name, f.by.version, f.by.digest),
            f.by.outcome,
            moment(f.time_ms),
            max(at_ms - f.time_ms, 0) / 1000,
            f.risk,
            tuple(ClassProbability(*one) for one in f.classes),
            f.modality,
            f.body_part,
            f.view,
            f.quality,
        )
        for f in findings
    )


def moment(time_ms: int) -> datetime:
    """An aware UTC time from milliseconds since the epoch; the nearest one that a datetime can hold.

    A producer that counts in microseconds stamps its records with years that no datetime holds.
    """
    return datetime.fromtimestamp(min(max(time_ms, _EARLIEST_MS), _LATEST_MS) / 1000, UTC)


def short(value: np.float32) -> float:
    """A float32 as the shortest decimal that gives it again."""
    return float(np.format_float_positional(value, unique=True, trim="0"))
