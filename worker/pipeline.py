"""The path of a chunk of records, from bytes to confirmed alerts.

    decode -> normalise -> state      `_apply`: changes the patients in memory, plans what to compute
    batch -> infer                    `infer`: calibrated risks, one for each record that changed a patient
    decide                            `_decide`: alert transitions; pure but for the latch it replaces
    explain                           `_explain`: what each input adds to the risk, for scores that alert
    publish                           `_write`, then the broker has confirmed every message when it returns

What comes out depends only on the records, their order within each patient and the state before: not on
chunk borders, batches, timing or restarts. The checkpoint (`checkpoint.py`) follows in its own time.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from engines.steps import Prediction, SeriesModel
from schemas.messages import Rejection
from schemas.model_config import Policy
from schemas.window import NEVER
from worker import metrics
from worker.decide import Step, decide, expire
from worker.decode import Event, Record, Refusal, decode
from worker.errors import RetryError
from worker.explain import explain
from worker.infer import Run, infer
from worker.messages import Author, Basis, basis, finite, uncertainty
from worker.normalise import normalise
from worker.partition import Partition
from worker.patient import FORGET_MS, Patient
from worker.plan import Plan
from worker.publish import Outgoing
from worker.state import apply, event_digest, plan_score, remember_event

F32 = NDArray[np.float32]
T = TypeVar("T")

Fate = Literal["scored", "stored", "duplicate", "dead_lettered", "skipped"]
"""`skipped` is a record that an earlier owner has already given its fate."""


class Publish(Protocol):
    """Publishes messages; returns when all are confirmed."""

    async def __call__(self, messages: Sequence[Outgoing]) -> None: ...


class Limits:
    """What the path accepts; times in ms, sizes in bytes."""

    def __init__(self, record_bytes: int, past_ms: int, future_ms: int) -> None:
        self.record_bytes = record_bytes
        self.past_ms = past_ms
        self.future_ms = future_ms


class Change:
    """What a chunk did to the patients: a plan to compute, and every record's fate so far.

    steps: by number of the score in the plan, the transitions it caused.
    lapsed: (patient id, expiry) of patients that start anew.
    """

    def __init__(self, chunk: Sequence[Record], *, keeps_windows: bool) -> None:
        self.plan = Plan(len(chunk), keeps_windows=keeps_windows)
        self.fates: list[Fate] = ["dead_lettered"] * len(chunk)
        self.rejections: dict[int, list[Rejection]] = {}
        self.accepted: list[int] = [0] * len(chunk)
        self.steps: dict[int, list[Step]] = {}
        self.lapsed: list[tuple[str, Step]] = []


class Pipeline:
    """The path for one model.

    Args:
        model: layout of the served model.
        run: the batcher's `infer`.
        publish: the publisher's `publish`.
        author: gives the writer of a partition's messages.
        limits: what is accepted.
        publish_scores: whether every score is published too.
    """

    def __init__(
        self,
        model: SeriesModel,
        run: Run,
        publish: Publish,
        author: Callable[[Partition], Author],
        limits: Limits,
        *,
        publish_scores: bool,
    ) -> None:
        self.model = model
        self._run = run
        self._publish = publish
        self._author = author
        self._limits = limits
        self._publish_scores = publish_scores

    async def process(self, partition: Partition, chunk: Sequence[Record]) -> Change:
        """Take a partition's next records from bytes to confirmed messages; then move its position on.

        While the partition replays, state is rebuilt and nothing is published.
        """
        partition.whole = False
        with _timed("apply"):
            change = self._apply(partition, chunk)
        with _timed("infer"):
            prediction = await self._infer(change.plan)
        with _timed("decide"):
            self._decide(chunk, change, prediction.risk)
        if not partition.replaying:
            with _timed("explain"):
                contributions = await self._explain(change, prediction.risk)
            with _timed("write"):
                messages = self._write(partition, chunk, change, prediction, contributions)
            with _timed("publish"):
                await self._publish(messages)
            _count(partition, change, self.model.config.policy)
            _observe(chunk, change, prediction.risk, self.model)
        else:
            metrics.replayed.inc(len(chunk))
        partition.position = chunk[-1].offset + 1
        partition.whole = True
        return change

    async def expire_silent(self, partition: Partition, now_ms: int) -> None:
        """Publish `expired` for episodes whose patients are silent, before a record of theirs brings it out.

        The latch stays: the patient's next record, if it comes, publishes the same alert with the same id.
        """
        lapsed = []
        for patient in partition.quiet():
            if patient.id not in partition.expired_early:
                _, step = expire(self.model.config.policy, patient.latch, now_ms)
                if step is not None:
                    lapsed.append((patient.id, step))
        if lapsed:
            author = self._author(partition)
            await self._publish([author.alert(step, key, Basis()) for key, step in lapsed])
            partition.expired_early |= {key for key, _ in lapsed}

    def _apply(self, partition: Partition, chunk: Sequence[Record]) -> Change:
        change = Change(chunk, keeps_windows=self.model.whole or not partition.replaying)
        for index, record in enumerate(chunk):
            event = decode(record, self._limits.record_bytes)
            if isinstance(event, Refusal):
                change.rejections[index] = [Rejection(event.reason, event.path)]
            else:
                change.fates[index] = self._apply_event(partition, record, event, index, change)
        return change

    def _apply_event(
        self, partition: Partition, record: Record, event: Event, index: int, change: Change
    ) -> Fate:
        limits = self._limits
        measurements, rejections = normalise(event, record.timestamp, limits.past_ms, limits.future_ms)
        change.rejections[index] = rejections
        if not measurements:
            return "dead_lettered"
        patient = partition.patient(event.patient, record.timestamp)
        if record.offset < patient.applied:
            change.rejections[index] = []
            return "skipped"
        digest = event_digest(event.event_id)
        if digest in patient.event_ids:
            change.rejections[index] = []
            return "duplicate"
        applied = apply(patient, event.event_id, measurements, self.model.channels, change.plan)
        rejections.extend(applied.rejections)
        if not applied.accepted:
            return "dead_lettered"
        self._enter(partition, patient, change)
        change.accepted[index] = applied.accepted
        remember_event(patient, digest)
        patient.touched_ms = max(patient.touched_ms, record.timestamp)
        partition.seen_s[patient.id] = time.perf_counter()
        partition.dirty.add(patient.id)
        partition.expired_early.discard(patient.id)
        if not applied.scorable:
            return "stored"
        plan_score(patient, index, change.plan)
        return "scored"

    def _enter(self, partition: Partition, patient: Patient, change: Change) -> None:
        """Enter the patient; what is left of an earlier one under its id, an open episode, has expired."""
        before = partition.patients.get(patient.id)
        partition.patients[patient.id] = patient
        if before is not None and before is not patient and before.latch.trace is not None:
            _, step = expire(self.model.config.policy, before.latch, before.latch.trace.time + FORGET_MS + 1)
            if step is not None:
                change.lapsed.append((patient.id, step))

    async def _infer(self, plan: Plan) -> Prediction:
        return await _answered(lambda: infer(plan, self.model, self._run))

    def _decide(self, chunk: Sequence[Record], change: Change, risks: F32) -> None:
        policy = self.model.config.policy
        for i, scored in enumerate(change.plan.scored):
            patient, risk = scored.patient, round(float(risks[i]), 6)
            if not 0.0 <= risk <= 1.0:
                change.fates[scored.at] = "dead_lettered"
                change.rejections[scored.at].append(Rejection("inference-failed"))
                continue
            offset = chunk[scored.at].offset
            patient.latch, steps = decide(policy, patient.latch, scored.time_ms, risk, offset)
            if steps:
                change.steps[i] = steps

    async def _explain(self, change: Change, risks: F32) -> dict[int, F32]:
        """Contributions, float32[features], by number of the score, of every score that an alert rests on."""
        alerting = [i for i, steps in change.steps.items() if any(s.transition != "expired" for s in steps)]
        if not alerting:
            return {}
        found = await _answered(lambda: explain(change.plan, alerting, risks, self.model, self._run))
        return dict(zip(alerting, found, strict=True))

    def _write(
        self,
        partition: Partition,
        chunk: Sequence[Record],
        change: Change,
        prediction: Prediction,
        contributions: Mapping[int, F32],
    ) -> list[Outgoing]:
        author, plan, model = self._author(partition), change.plan, self.model
        messages = [author.alert(lapse, patient_id, Basis()) for patient_id, lapse in change.lapsed]
        for i, scored in enumerate(plan.scored):
            for step in change.steps.get(i, ()):
                because = Basis()
                if step.transition != "expired":
                    because = basis(plan, i, model, prediction, [finite(c) for c in contributions[i]])
                messages.append(author.alert(step, scored.patient.id, because))
            if self._publish_scores and change.fates[scored.at] == "scored":
                risk, offset = round(float(prediction.risk[i]), 6), chunk[scored.at].offset
                spread = uncertainty(prediction, i)
                messages.append(author.score(scored.patient.id, scored.time_ms, risk, spread, offset))
        for index, rejections in change.rejections.items():
            if rejections:
                messages.append(author.dead_letter(chunk[index], rejections, change.accepted[index]))
        return messages


async def _answered(ask: Callable[[], Awaitable[T]]) -> T:
    """What the engine answers, asked again until it does."""
    delay = 0.1
    while True:
        try:
            return await ask()
        except RetryError as error:
            metrics.engine_failures.labels(error.reason).inc()
        await asyncio.sleep(delay)
        delay = min(2 * delay, 5.0)


@contextmanager
def _timed(stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    metrics.stage_duration.labels(stage).observe(time.perf_counter() - started)


def _count(partition: Partition, change: Change, policy: Policy) -> None:
    """Count fates, refusals and alerts; the one place where records are accounted for."""
    topic = partition.place.topic
    for fate in ("scored", "stored", "duplicate", "dead_lettered"):
        number = change.fates.count(fate)
        if number:
            metrics.records.labels(topic, fate).inc(number)
    for steps in change.steps.values():
        for step in steps:
            severity = policy.levels[step.episode.level].severity
            metrics.alerts.labels(step.transition, severity).inc()
    accepted = sum(change.accepted)
    metrics.observations.labels("accepted").inc(accepted)
    for rejections in change.rejections.values():
        for rejection in rejections:
            stage = "observation" if rejection.path.startswith("$.observations[") else "record"
            metrics.rejections.labels(stage, rejection.reason).inc()
            if stage == "observation":
                metrics.observations.labels("rejected").inc()


def _observe(chunk: Sequence[Record], change: Change, risks: F32, model: SeriesModel) -> None:
    """Ages, risks and missing features of a chunk's scores, once published."""
    now_ms = time.time_ns() // 1_000_000
    scored = change.plan.scored
    for i, score in enumerate(scored):
        metrics.event_age.observe(max(now_ms - score.time_ms, 0) / 1000)
        if not np.isnan(risks[i]):
            metrics.risk.observe(float(risks[i]))
    for index in {scored[i].at for i in change.steps}:
        metrics.end_to_end.observe(max(now_ms - chunk[index].timestamp, 0) / 1000)
    missing = (change.plan.rows.elapsed[: len(scored), model.columns] >= NEVER).sum(axis=0)
    for name, count in zip(model.config.features, missing, strict=True):
        if count:
            metrics.feature_missing.labels(name).inc(int(count))
