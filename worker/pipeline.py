"""The path of a chunk of records, from bytes to confirmed alerts.

    decode -> normalise -> state      `_apply`: changes the patients in memory, plans what to compute
    NEWS2                             `_warn`: its own alerts, confirmed before the model is asked
    batch -> infer                    `infer`: calibrated risks, one for each record that changed a patient
    decide                            `_decide`: alert transitions; pure but for the latch it replaces
    explain                           `_explain`: what each input adds to the risk, for scores that alert
    publish                           `_write`, then the broker has confirmed every message when it returns

What comes out depends only on the records, their order within each patient and the state before: not on
chunk borders, batches, timing or restarts. The checkpoint (`checkpoint.py`) follows in its own time.

When the engine does not answer, NEWS2 answers alone: the partition notes where (`unanswered`), and from there
on chunks are applied and warned of only. That memory is never stored. Once the engine answers, the lane drops
it and reads again from its checkpoint, so that the model's alerts are those of an undisturbed run.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engines.steps import Prediction, SeriesModel
from schemas.latch import Which
from schemas.messages import Rejection
from schemas.model_config import AlertPolicy
from schemas.news2_policy import News2Policy
from worker import early_warning, metrics
from worker.accounting import count, count_warnings, observe
from worker.change import Change, Fate, Lapse
from worker.decide import Step, decide, expire
from worker.decode import Event, Record, Refusal, decode
from worker.early_warning import Warned
from worker.errors import EngineDownError
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


class Publish(Protocol):
    """Publishes messages; returns when all are confirmed."""

    async def __call__(self, messages: Sequence[Outgoing]) -> None: ...


class Limits:
    """What the path accepts; times in ms, sizes in bytes."""

    def __init__(self, record_bytes: int, past_ms: int, future_ms: int) -> None:
        self.record_bytes = record_bytes
        self.past_ms = past_ms
        self.future_ms = future_ms


class Pipeline:
    """The path for one model, NEWS2 beside it.

    Args:
        model: layout of the served model.
        news2: NEWS2's policy.
        run: the batcher's `infer`.
        publish: the publisher's `publish`.
        author: gives the writer of a partition's messages.
        limits: what is accepted.
        publish_scores: whether every score is published too.
    """

    def __init__(
        self,
        model: SeriesModel,
        news2: News2Policy,
        run: Run,
        publish: Publish,
        author: Callable[[Partition], Author],
        limits: Limits,
        *,
        publish_scores: bool,
    ) -> None:
        self.model = model
        self.policies: dict[Which, AlertPolicy] = {"risk": model.config.policy, "news2": news2}
        self._news2 = news2
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
        await self._warn(partition, chunk, change)
        if partition.unanswered is None:
            try:
                await self._answer(partition, chunk, change)
                partition.whole = True
            except EngineDownError as error:
                metrics.engine_failures.labels(error.reason).inc()
                partition.unanswered = partition.position
        partition.position = chunk[-1].offset + 1
        return change

    async def _warn(self, partition: Partition, chunk: Sequence[Record], change: Change) -> None:
        """NEWS2's part of a chunk."""
        with _timed("news2"):
            warned = early_warning.decide_all(self._news2, chunk, (change.plan, change.beside))
        if partition.replaying:
            return
        # What was confirmed before the engine came back and records were read again is not said twice.
        change.warned = [w for w in warned if chunk[w.plan.scored[w.i].at].offset >= partition.warned]
        lapsed = [lapse for lapse in change.lapsed["news2"] if chunk[lapse.at].offset >= partition.warned]
        if change.warned or lapsed:
            with _timed("warn"):
                await self._publish(self._write_warnings(partition, change.warned, lapsed))
            count_warnings(chunk, change, self._news2)

    async def _answer(self, partition: Partition, chunk: Sequence[Record], change: Change) -> None:
        """The model's part of a chunk."""
        with _timed("infer"):
            prediction = await self._infer(change.plan)
        with _timed("decide"):
            self._decide(chunk, change, prediction.risk)
        if partition.replaying:
            metrics.replayed.inc(len(chunk))
            return
        with _timed("explain"):
            contributions = await self._explain(change, prediction.risk)
        with _timed("write"):
            messages = self._write(partition, chunk, change, prediction, contributions)
        with _timed("publish"):
            await self._publish(messages)
        count(partition.place.topic, change, self.model.config)
        observe(chunk, change, prediction.risk, self.model)

    async def expire_silent(self, partition: Partition, now_ms: int) -> None:
        """Publish `expired` for episodes whose patients are silent, before a record of theirs brings it out.

        The latch stays: the patient's next record, if it comes, publishes the same alert with the same id.
        While the model does not answer, its latches stand still, and say nothing of who is silent.
        """
        told: list[tuple[str, Which, Step]] = []
        for patient in partition.quiet():
            for which, latch in patient.latches.items():
                if (patient.id, which) in partition.expired_early:
                    continue
                if which == "risk" and partition.unanswered is not None:
                    continue
                _, step = expire(self.policies[which], latch, now_ms)
                if step is not None:
                    told.append((patient.id, which, step))
        if told:
            author = self._author(partition)
            await self._publish([author.alert(which, step, key, Basis()) for key, which, step in told])
            partition.expired_early |= {(key, which) for key, which, _ in told}

    def _apply(self, partition: Partition, chunk: Sequence[Record]) -> Change:
        answers = partition.unanswered is None
        change = Change(chunk, keeps_windows=answers and (self.model.whole or not partition.replaying))
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
        self._enter(partition, patient, index, change)
        change.accepted[index] = applied.accepted
        remember_event(patient, digest)
        patient.touched_ms = max(patient.touched_ms, record.timestamp)
        partition.seen_s[patient.id] = time.perf_counter()
        partition.dirty.add(patient.id)
        partition.came(patient.id)
        if not applied.scorable:
            if patient.open >= 0:
                plan_score(patient, index, change.beside)
            return "stored"
        plan_score(patient, index, change.plan)
        return "scored"

    def _enter(self, partition: Partition, patient: Patient, index: int, change: Change) -> None:
        """Enter the patient; what is left of an earlier one under its id, an open episode, has expired."""
        before = partition.patients.get(patient.id)
        partition.patients[patient.id] = patient
        if before is None or before is patient:
            return
        for which, latch in before.latches.items():
            if latch.trace is not None:
                _, step = expire(self.policies[which], latch, latch.trace.time + FORGET_MS + 1)
                if step is not None:
                    change.lapsed[which].append(Lapse(index, patient.id, step))

    async def _infer(self, plan: Plan) -> Prediction:
        return await infer(plan, self.model, self._run)

    def _decide(self, chunk: Sequence[Record], change: Change, risks: F32) -> None:
        policy = self.model.config.policy
        change.risks = risks
        for i, scored in enumerate(change.plan.scored):
            patient, risk = scored.patient, round(float(risks[i]), 6)
            if not 0.0 <= risk <= 1.0:
                change.fates[scored.at] = "dead_lettered"
                change.rejections[scored.at].append(Rejection("inference-failed"))
                continue
            offset = chunk[scored.at].offset
            latch = patient.latches["risk"]
            patient.latches["risk"], steps = decide(policy, latch, scored.time_ms, risk, offset)
            if steps:
                change.steps[i] = steps

    async def _explain(self, change: Change, risks: F32) -> dict[int, F32]:
        """Contributions, float32[features], by number of the score, of every score that an alert rests on."""
        alerting = [i for i, steps in change.steps.items() if any(s.transition != "expired" for s in steps)]
        if not alerting:
            return {}
        found = await explain(change.plan, alerting, risks, self.model, self._run)
        return dict(zip(alerting, found, strict=True))

    def _write_warnings(
        self, partition: Partition, warned: Sequence[Warned], lapsed: Sequence[Lapse]
    ) -> list[Outgoing]:
        author = self._author(partition)
        messages = [author.alert("news2", lapse.step, lapse.patient_id, Basis()) for lapse in lapsed]
        for step, plan, i in warned:
            because = Basis()
            if step.transition != "expired":
                because = early_warning.assess(self._news2, plan, i).basis()
            messages.append(author.alert("news2", step, plan.scored[i].patient.id, because))
        return messages

    def _write(
        self,
        partition: Partition,
        chunk: Sequence[Record],
        change: Change,
        prediction: Prediction,
        contributions: Mapping[int, F32],
    ) -> list[Outgoing]:
        author, plan, model = self._author(partition), change.plan, self.model
        lapsed = change.lapsed["risk"]
        messages = [author.alert("risk", lapse.step, lapse.patient_id, Basis()) for lapse in lapsed]
        for i, scored in enumerate(plan.scored):
            for step in change.steps.get(i, ()):
                because = Basis()
                if step.transition != "expired":
                    because = basis(plan, i, model, prediction, [finite(c) for c in contributions[i]])
                    because = early_warning.assess(self._news2, plan, i).beside(because)
                messages.append(author.alert("risk", step, scored.patient.id, because))
            if self._publish_scores and change.fates[scored.at] == "scored":
                risk, offset = round(float(prediction.risk[i]), 6), chunk[scored.at].offset
                because = early_warning.assess(self._news2, plan, i).basis()
                because = because._replace(uncertainty=uncertainty(prediction, i))
                messages.append(author.score(scored.patient.id, scored.time_ms, risk, because, offset))
        for index, rejections in change.rejections.items():
            if rejections:
                messages.append(author.dead_letter(chunk[index], rejections, change.accepted[index]))
        return messages


@contextmanager
def _timed(stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    metrics.stage_duration.labels(stage).observe(time.perf_counter() - started)
