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

Which engine serves may change between chunks, and in the middle of one when it fails: then the next rung of
the ladder (`serving.py`) is asked instead, and alerts name the one that gave the risk.

When none answers, NEWS2 answers alone: the partition notes where (`unanswered`), and from there on chunks are
applied and warned of only. That memory is never stored. Once the engine answers, the lane drops it and reads
again from its checkpoint, so that the model's alerts are those of an undisturbed run.
"""

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from engines.steps import Prediction, SeriesModel
from schemas.latch import Which
from schemas.messages import Rejection
from schemas.model_config import Policy
from schemas.news2_policy import News2Policy
from worker import early_warning, metrics, tracing
from worker.accounting import count, count_feedback, count_imaged, count_warnings, observe
from worker.change import Change, Lapse
from worker.decide import decide, expire
from worker.decode import Decoded, Found, Record, decode
from worker.errors import EngineDownError, EngineHungError
from worker.explain import explain
from worker.feedback import Hearing
from worker.findings import voice_of
from worker.infer import infer
from worker.intake import Limits, take_in
from worker.messages import Author, Basis, basis, finite, uncertainty
from worker.partition import Partition
from worker.patient import FORGET_MS
from worker.plan import Plan, Scored
from worker.policies import Policies
from worker.publish import Outgoing
from worker.served import Served, Serving

F32 = NDArray[np.float32]
T = TypeVar("T")


class Publish(Protocol):
    """Publishes messages; returns when all are confirmed."""

    async def __call__(self, messages: Sequence[Outgoing]) -> None: ...


class Pipeline:
    """The path for one model, NEWS2 beside it.

    Args:
        serving: says which version of the model serves, on which engine.
        policies: in force, of the model and of NEWS2.
        publish: the publisher's `publish`.
        topics: names of the alert, score and dead-letter topics.
        limits: what is accepted.
        publish_scores: whether every score is published too.
        shadow: version of the model that scores as a shadow; None where it serves.
    """

    def __init__(
        self,
        serving: Serving,
        policies: Policies,
        publish: Publish,
        topics: tuple[str, str, str],
        limits: Limits,
        *,
        publish_scores: bool,
        shadow: int | None = None,
    ) -> None:
        self.serving = serving
        self.policies = policies
        self._publish = publish
        self._topics = topics
        self._limits = limits
        self._publish_scores = publish_scores
        self._shadow = shadow

    async def process(self, partition: Partition, chunk: Sequence[Record]) -> Change:
        """Take a partition's next records from bytes to confirmed messages; then move its position on.

        While the partition replays, state is rebuilt and nothing is published.
        """
        if partition.replaying:
            return await self._process(partition, chunk)
        with tracing.chunk(partition.place, chunk):
            return await self._process(partition, chunk)

    async def _process(self, partition: Partition, chunk: Sequence[Record]) -> Change:
        with _timed("decode"):
            events = self._decode(chunk)
        await self.policies.seek(event.finding.model for event in events if isinstance(event, Found))
        partition.whole = False
        with ExitStack() as held:
            served = held.enter_context(self.serving.current.held())
            partition.belong(served.fingerprint)
            with _timed("apply"):
                change = self._apply(partition, chunk, events, served.model)
            await self._warn(partition, chunk, change, served)
            if partition.unanswered is None:
                try:
                    await self._answer(partition, chunk, change, served, held)
                    partition.whole = True
                except EngineDownError:
                    partition.unanswered = partition.position
        partition.position = chunk[-1].offset + 1
        return change

    async def _warn(
        self, partition: Partition, chunk: Sequence[Record], change: Change, served: Served
    ) -> None:
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
                author = self._author(partition, served)
                await self._publish(self._write_warnings(author, chunk, change, lapsed))
            count_warnings(chunk, change, self.policies.severities("news2"))
            count_imaged(chunk, change, self.policies.severities("imaging"))

    async def _answer(
        self,
        partition: Partition,
        chunk: Sequence[Record],
        change: Change,
        served: Served,
        held: ExitStack,
    ) -> None:
        """The model's part of a chunk; `held` keeps until its end whatever computes it."""
        with _timed("infer"):
            served, prediction = await self._asked(served, held, partial(self._infer, change.plan))
        with _timed("decide"):
            self._decide(chunk, change, prediction.risk, served.config.policy)
        if partition.replaying:
            metrics.replayed.inc(len(chunk))
            return
        with _timed("explain"):
            explain_them = partial(self._explain, change, prediction.risk)
            _, contributions = await self._asked(served, held, explain_them)
        with _timed("write"):
            messages = self._write(partition, chunk, change, served, prediction, contributions)
        with _timed("publish"):
            await self._publish(messages)
        count(partition.place.topic, change, served.config.name, self.policies.severities("risk"))
        count_feedback(change.said)
        observe(chunk, change, prediction.risk, served.model)
        if served.watch is not None:
            served.watch.observe(change.plan, prediction.risk)

    async def _asked(
        self, served: Served, held: ExitStack, ask: Callable[[Served], Awaitable[T]]
    ) -> tuple[Served, T]:
        """Ask the engine; the next rung of the ladder if it does not answer. Who answered, and the answer.

        Raises:
            EngineDownError: nothing answers for this version now.
            EngineHungError: what serves hangs for good, and nothing stands in for it.
        """
        while True:
            try:
                return served, await ask(served)
            except (EngineDownError, EngineHungError) as error:
                metrics.engine_failures.labels(served.config.name, error.reason).inc()
                instead = await self.serving.instead(served, error.reason)
                if instead is not None:
                    served = held.enter_context(instead.held())
                elif isinstance(error, EngineHungError) and self.serving.current is not served:
                    # Another version serves by now; what hangs is none of its engines.
                    raise EngineDownError("the version that began the chunk hangs") from error
                else:
                    raise

    async def expire_silent(self, partition: Partition, now_ms: int) -> None:
        """Publish `expired` for episodes whose patients are silent, before a record of theirs brings it out.

        The latch stays: the patient's next record, if it comes, publishes the same alert with the same id.
        While the model does not answer, its latches stand still, and say nothing of who is silent.
        """
        author = self._author(partition, self.serving.current)
        told, messages = set[tuple[str, Which]](), list[Outgoing]()
        for patient in partition.quiet():
            for which, latch in patient.latches.items():
                if (patient.id, which) in partition.expired_early:
                    continue
                if which == "risk" and partition.unanswered is not None:
                    continue
                policy = self.policies.last(which, patient)
                _, step = expire(policy, latch, now_ms)
                if step is not None:
                    told.add((patient.id, which))
                    messages.append(author.alert(which, step, patient.id, Basis(), voice_of(patient, which)))
        if messages:
            await self._publish(messages)
            partition.expired_early |= told

    def _decode(self, chunk: Sequence[Record]) -> list[Decoded]:
        return [decode(record, self._limits.record_bytes) for record in chunk]

    def _apply(
        self, partition: Partition, chunk: Sequence[Record], events: Sequence[Decoded], model: SeriesModel
    ) -> Change:
        return take_in(partition, chunk, events, model, self.policies, self._limits)

    def _lapsed(self, change: Change, which: Which, base: Policy | None = None) -> list[Lapse]:
        """What is left of patients that start anew: an open episode has expired; `base` as of `Policies.of`.

        To be asked once the chunk is decided: their last records may be in it.
        """
        found = []
        for index, before in change.renewed:
            latch = before.latches[which]
            if latch.trace is not None:
                policy = self.policies.last(which, before, base)
                _, step = expire(policy, latch, latch.trace.time + FORGET_MS + 1)
                if step is not None:
                    found.append(Lapse(index, before.id, step, voice_of(before, which)))
        return found

    def _decide(self, chunk: Sequence[Record], change: Change, risks: F32, base: Policy) -> None:
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
            policy = self.policies.risk(patient.id, scored.care_unit, record.timestamp, base)
            before = self.policies.of("risk", patient.id, *scored.before, base)
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

    def _write_warnings(
        self,
        author: Author,
        chunk: Sequence[Record],
        change: Change,
        lapsed: Mapping[Which, Sequence[Lapse]],
    ) -> list[Outgoing]:
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
        served: Served,
        prediction: Prediction,
        contributions: Mapping[int, F32],
    ) -> list[Outgoing]:
        author, plan, model = self._author(partition, served), change.plan, served.model
        lapsed = self._lapsed(change, "risk", served.config.policy)
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

    async def _infer(self, plan: Plan, served: Served) -> Prediction:
        return await infer(plan, served.model, served.run)

    async def _explain(self, change: Change, risks: F32, served: Served) -> dict[int, F32]:
        """Contributions, float32[features], by number of the score, of every score that an alert rests on."""
        alerting = [i for i, steps in change.steps.items() if any(s.transition != "expired" for s in steps)]
        if not alerting:
            return {}
        found = await explain(change.plan, alerting, risks, served.model, served.run)
        return dict(zip(alerting, found, strict=True))

    def _author(self, partition: Partition, served: Served) -> Author:
        return Author(partition.place, served.voices, self._topics, self._shadow)


def _in_turn(found: list[tuple[int, Outgoing]]) -> list[Outgoing]:
    """Messages in the order of the records, by position, that caused them."""
    return [message for _, message in sorted(found, key=lambda one: one[0])]


@contextmanager
def _timed(stage: str) -> Iterator[None]:
    started = time.perf_counter()
    with tracing.stage(stage):
        yield
    metrics.stage_duration.labels(stage).observe(time.perf_counter() - started)
