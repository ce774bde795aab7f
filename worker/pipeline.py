"""The path of a chunk of records, from bytes to confirmed alerts.

    decode -> normalise -> state      `intake.py`: changes the patients in memory, plans what to compute
    NEWS2                             `_warn`: its own alerts, and those of findings, which the intake has
                                      decided; confirmed before the model is asked
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
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engines.steps import Prediction, SeriesModel
from schemas.latch import Which
from schemas.messages import Rejection
from schemas.news2_policy import News2Policy
from worker import early_warning, metrics, tracing
from worker.accounting import count, count_feedback, count_imaged, count_warnings, observe
from worker.change import Change, Lapse
from worker.decide import decide, expire
from worker.decode import Record
from worker.drift import DriftWatch
from worker.errors import EngineDownError
from worker.explain import explain
from worker.feedback import Hearing
from worker.findings import voice_of
from worker.infer import Run, infer
from worker.intake import Limits, take_in
from worker.messages import Author, Basis, basis, finite, uncertainty
from worker.partition import Partition
from worker.patient import FORGET_MS
from worker.plan import Plan, Scored
from worker.policies import Policies
from worker.publish import Outgoing

F32 = NDArray[np.float32]


class Publish(Protocol):
    """Publishes messages; returns when all are confirmed."""

    async def __call__(self, messages: Sequence[Outgoing]) -> None: ...


class Pipeline:
    """The path for one model, NEWS2 beside it.

    Args:
        model: layout of the served model.
        policies: in force, of the model and of NEWS2.
        run: the batcher's `infer`.
        publish: the publisher's `publish`.
        author: gives the writer of a partition's messages.
        limits: what is accepted.
        publish_scores: whether every score is published too.
        watch: counts what is scored, where the model has a reference to compare it with.
    """

    def __init__(
        self,
        model: SeriesModel,
        policies: Policies,
        run: Run,
        publish: Publish,
        author: Callable[[Partition], Author],
        limits: Limits,
        *,
        publish_scores: bool,
        watch: DriftWatch | None = None,
    ) -> None:
        self.model = model
        self.policies = policies
        self._run = run
        self._publish = publish
        self._author = author
        self._limits = limits
        self._publish_scores = publish_scores
        self._watch = watch

    async def process(self, partition: Partition, chunk: Sequence[Record]) -> Change:
        """Take a partition's next records from bytes to confirmed messages; then move its position on.

        While the partition replays, state is rebuilt and nothing is published.
        """
        if partition.replaying:
            return await self._process(partition, chunk)
        with tracing.chunk(partition.place, chunk):
            return await self._process(partition, chunk)

    async def _process(self, partition: Partition, chunk: Sequence[Record]) -> Change:
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
        """NEWS2's part of a chunk, and that of findings."""
        with _timed("news2"):
            policy_of, before_of = partial(self._news2, chunk), self.policies.news2_before
            plans = change.plan, change.beside
            warned = early_warning.decide_all(policy_of, before_of, chunk, plans, change.said)
        if partition.replaying:
            return
        # What was confirmed before the engine came back and records were read again is not said twice.
        change.warned = [w for w in warned if chunk[w.plan.scored[w.i].at].offset >= partition.warned]
        change.imaged = [one for one in change.imaged if chunk[one.at].offset >= partition.warned]
        lapsed: dict[Which, list[Lapse]] = {
            which: [x for x in self._lapsed(change, which) if chunk[x.at].offset >= partition.warned]
            for which in ("news2", "imaging")
        }
        if change.warned or change.imaged or any(lapsed.values()):
            with _timed("warn"):
                await self._publish(self._write_warnings(partition, chunk, change, lapsed))
            count_warnings(chunk, change, self.policies.severities("news2"))
            count_imaged(chunk, change, self.policies.severities("imaging"))

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
        count(partition.place.topic, change, self.model.config.name, self.policies.severities("risk"))
        count_feedback(change.said)
        observe(chunk, change, prediction.risk, self.model)
        if self._watch is not None:
            self._watch.observe(change.plan, prediction.risk)

    async def expire_silent(self, partition: Partition, now_ms: int) -> None:
        """Publish `expired` for episodes whose patients are silent, before a record of theirs brings it out.

        The latch stays: the patient's next record, if it comes, publishes the same alert with the same id.
        While the model does not answer, its latches stand still, and say nothing of who is silent.
        """
        author, told, messages = self._author(partition), set[tuple[str, Which]](), list[Outgoing]()
        for patient in partition.quiet():
            for which, latch in patient.latches.items():
                if (patient.id, which) in partition.expired_early:
                    continue
                if which == "risk" and partition.unanswered is not None:
                    continue
                policy = self.policies.of(which, patient.id, patient.care_unit, patient.touched_ms)
                _, step = expire(policy, latch, now_ms)
                if step is not None:
                    told.add((patient.id, which))
                    messages.append(author.alert(which, step, patient.id, Basis(), voice_of(patient, which)))
        if messages:
            await self._publish(messages)
            partition.expired_early |= told

    def _apply(self, partition: Partition, chunk: Sequence[Record]) -> Change:
        return take_in(partition, chunk, self.model, self.policies, self._limits)

    def _lapsed(self, change: Change, which: Which) -> list[Lapse]:
        """What is left of patients that start anew: an open episode has expired.

        To be asked once the chunk is decided: their last records may be in it.
        """
        found = []
        for index, before in change.renewed:
            latch = before.latches[which]
            if latch.trace is not None:
                policy = self.policies.of(which, before.id, before.care_unit, before.touched_ms)
                _, step = expire(policy, latch, latch.trace.time + FORGET_MS + 1)
                if step is not None:
                    found.append(Lapse(index, before.id, step, voice_of(before, which)))
        return found

    async def _infer(self, plan: Plan) -> Prediction:
        return await infer(plan, self.model, self._run)

    def _decide(self, chunk: Sequence[Record], change: Change, risks: F32) -> None:
        change.risks = risks
        hearing = Hearing(change.said, "risk")
        for i, scored in enumerate(change.plan.scored):
            hearing.until(scored.at)
            patient, risk = scored.patient, round(float(risks[i]), 6)
            if not 0.0 <= risk <= 1.0:
                change.fates[scored.at] = "dead_lettered"
                change.rejections[scored.at].append(Rejection("inference-failed"))
                continue
            record, latch = chunk[scored.at], patient.latches["risk"]
            policy = self.policies.risk(patient.id, scored.care_unit, record.timestamp)
            before = self.policies.of("risk", patient.id, *scored.before)
            patient.latches["risk"], steps = decide(
                policy, latch, scored.time_ms, risk, record.offset, before=before
            )
            if steps:
                change.steps[i] = steps
        hearing.until(None)

    def _news2(self, chunk: Sequence[Record], scored: Scored) -> News2Policy:
        """NEWS2's policy for a row."""
        return self.policies.news2(scored.patient.id, scored.care_unit, chunk[scored.at].timestamp)

    def _assess(self, chunk: Sequence[Record], plan: Plan, i: int) -> early_warning.Assessment:
        return early_warning.assess(self._news2(chunk, plan.scored[i]), plan, i)

    async def _explain(self, change: Change, risks: F32) -> dict[int, F32]:
        """Contributions, float32[features], by number of the score, of every score that an alert rests on."""
        alerting = [i for i, steps in change.steps.items() if any(s.transition != "expired" for s in steps)]
        if not alerting:
            return {}
        found = await explain(change.plan, alerting, risks, self.model, self._run)
        return dict(zip(alerting, found, strict=True))

    def _write_warnings(
        self,
        partition: Partition,
        chunk: Sequence[Record],
        change: Change,
        lapsed: Mapping[Which, Sequence[Lapse]],
    ) -> list[Outgoing]:
        author = self._author(partition)
        found = [
            (x.at, author.alert(which, x.step, x.patient_id, Basis(), x.voice))
            for which, lapses in lapsed.items()
            for x in lapses
        ]
        for at, patient_id, step, voice, because in change.imaged:
            message = author.alert("imaging", step, patient_id, because, voice)
            found.append((at, tracing.alert(message, chunk[at])))
        for step, plan, i in change.warned:
            because = Basis()
            if step.transition != "expired":
                because = self._assess(chunk, plan, i).basis(plan.scored[i].care_unit)
            scored = plan.scored[i]
            message = author.alert("news2", step, scored.patient.id, because)
            found.append((scored.at, tracing.alert(message, chunk[scored.at])))
        return _in_turn(found)

    def _write(
        self,
        partition: Partition,
        chunk: Sequence[Record],
        change: Change,
        prediction: Prediction,
        contributions: Mapping[int, F32],
    ) -> list[Outgoing]:
        author, plan, model = self._author(partition), change.plan, self.model
        lapsed = self._lapsed(change, "risk")
        found = [(x.at, author.alert("risk", x.step, x.patient_id, Basis())) for x in lapsed]
        for i, scored in enumerate(plan.scored):
            for step in change.steps.get(i, ()):
                because = Basis()
                if step.transition != "expired":
                    because = basis(plan, i, model, prediction, [finite(c) for c in contributions[i]])
                    because = self._assess(chunk, plan, i).beside(because)
                message = author.alert("risk", step, scored.patient.id, because)
                found.append((scored.at, tracing.alert(message, chunk[scored.at])))
            if self._publish_scores and change.fates[scored.at] == "scored":
                risk, offset = round(float(prediction.risk[i]), 6), chunk[scored.at].offset
                because = self._assess(chunk, plan, i).basis(scored.care_unit)
                because = because._replace(uncertainty=uncertainty(prediction, i))
                score = author.score(scored.patient.id, scored.time_ms, risk, because, offset)
                found.append((scored.at, score))
        messages = _in_turn(found)
        for index, rejections in change.rejections.items():
            if rejections:
                messages.append(author.dead_letter(chunk[index], rejections, change.accepted[index]))
        return messages


def _in_turn(found: list[tuple[int, Outgoing]]) -> list[Outgoing]:
    """Messages in the order of the records, by position, that caused them."""
    return [message for _, message in sorted(found, key=lambda one: one[0])]


@contextmanager
def _timed(stage: str) -> Iterator[None]:
    started = time.perf_counter()
    with tracing.stage(stage):
        yield
    metrics.stage_duration.labels(stage).observe(time.perf_counter() - started)
