"""Records -> their patients' memory: decode, normalise, state.

Each record gets its fate here, but for what an engine may yet refuse. No I/O: what is to be computed stands
in the `Change`. The imaging latch, which waits for nothing to be computed, is decided on at once.
"""

import time
from collections.abc import Sequence

from engines.steps import SeriesModel
from schemas.latch import Which
from schemas.messages import Rejection
from worker import findings
from worker.change import Change, Fate
from worker.config import Settings
from worker.decode import Decoded, Event, Feedback, Found, Record, Refusal
from worker.feedback import FEEDBACK_IDS, Said, hear, quiet_of
from worker.findings import FINDING_IDS, KEPT_MS, kept_of
from worker.normalise import normalise, plausible
from worker.partition import Partition
from worker.patient import Patient
from worker.plan import Standing
from worker.policies import Policies
from worker.state import apply, event_digest, plan_score, remember_event


class Limits:
    """What the path accepts; times in ms, sizes in bytes."""

    def __init__(self, record_bytes: int, past_ms: int, future_ms: int) -> None:
        self.record_bytes = record_bytes
        self.past_ms = past_ms
        self.future_ms = future_ms


def limits_of(settings: Settings, record_bytes: int | None = None) -> Limits:
    """The limits that a worker with these settings has; `record_bytes` of a topic with a limit of its own."""
    return Limits(
        record_bytes or settings.max_record_bytes,
        round(settings.past_tolerance_h * 3_600_000),
        round(settings.future_tolerance_s * 1000),
    )


def take_in(
    partition: Partition,
    chunk: Sequence[Record],
    events: Sequence[Decoded],
    model: SeriesModel,
    policies: Policies,
    limits: Limits,
) -> Change:
    """Take a partition's next records into its patients' memory.

    Args:
        partition: its patients are changed.
        chunk: the records.
        events: what they say, one for each.
        model: layout of the model that is served; what it must step over and score is planned.
        policies: in force; they name who raises alerts.
        limits: what is accepted.
    """
    answers = partition.unanswered is None
    change = Change(chunk, keeps_windows=answers and (model.whole or not partition.replaying))
    intake = _Intake(partition, change, model, policies, limits)
    for index, (record, event) in enumerate(zip(chunk, events, strict=True)):
        if isinstance(event, Refusal):
            change.rejections[index] = [Rejection(event.reason, event.path)]
        elif isinstance(event, Feedback):
            change.fates[index] = intake.feedback(record, event, index)
        elif isinstance(event, Found):
            change.fates[index] = intake.finding(record, event, index)
        else:
            change.fates[index] = intake.event(record, event, index)
    return change


class _Intake:
    """One chunk's way into the memory; each method takes one record, and gives its fate."""

    def __init__(
        self, partition: Partition, change: Change, model: SeriesModel, policies: Policies, limits: Limits
    ) -> None:
        self._partition = partition
        self._change = change
        self._model = model
        self._policies = policies
        self._limits = limits
        self._latches: dict[str, Which] = {name: which for which, name in policies.names.items()}

    def feedback(self, record: Record, event: Feedback, index: int) -> Fate:
        """Note what was said, for the latches to hear in its turn; the patient is otherwise as before."""
        partition, change, limits = self._partition, self._change, self._limits
        rejections = change.rejections[index] = []
        quiet = quiet_of(event.said, partition.place, record.offset)
        which = self._latches.get(event.said.alert.model.name)
        if quiet is None or which is None:
            rejections.append(Rejection("unknown-alert", "$.alert"))
            return "dead_lettered"
        if not plausible(event.time_ms, record.timestamp, limits.past_ms, limits.future_ms):
            rejections.append(Rejection("implausible-time", "$.time"))
            return "dead_lettered"
        # Of a patient who is not known nothing is kept, and the record's time says nothing of a patient's.
        patient = partition.patients.get(event.patient) or Patient(event.patient)
        if record.offset < patient.applied:
            return "skipped"
        # Ids are its sender's own: one that a vitals record has too must not make that a duplicate.
        digest = event_digest(event.event_id, FEEDBACK_IDS)
        if digest in patient.event_ids:
            return "duplicate"
        if patient.id in partition.patients:
            remember_event(patient, digest)
            partition.dirty.add(patient.id)
        said = Said(index, patient, which, quiet, event.said)
        change.said.append(said)
        if which == "imaging":
            hear(said)
        return "stored"

    def finding(self, record: Record, event: Found, index: int) -> Fate:
        """Keep what a model made of a picture, and decide on it if that model raises alerts."""
        partition, change, limits = self._partition, self._change, self._limits
        rejections = change.rejections[index] = []
        if not plausible(event.time_ms, record.timestamp, limits.past_ms, limits.future_ms):
            rejections.append(Rejection("implausible-time", "$.time"))
            return "dead_lettered"
        patient = partition.patient(event.patient, record.timestamp)
        if record.offset < patient.applied:
            return "skipped"
        digest = event_digest(event.event_id, FINDING_IDS)
        if digest in patient.event_ids:
            return "duplicate"
        if event.time_ms < findings.now_ms(patient) - KEPT_MS:
            rejections.append(Rejection("too-late", "$.time"))
            return "dead_lettered"
        before = self._touch(record, patient, digest, index)
        partition.came(patient.id, ("imaging",))
        kept = kept_of(event.finding)
        newest = findings.keep(patient, kept)
        policies = self._policies
        if newest and self._latches.get(kept.by.name) == "imaging":
            change.imaged += findings.judge(patient, kept, index, record, before, policies)
        else:
            change.imaged += findings.end(patient, index, before, policies)
        return "stored"

    def event(self, record: Record, event: Event, index: int) -> Fate:
        """Apply a record's observations."""
        partition, change, limits = self._partition, self._change, self._limits
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
        applied = apply(patient, event.event_id, measurements, self._model.channels, change.plan)
        rejections.extend(applied.rejections)
        if not applied.accepted:
            return "dead_lettered"
        before = self._touch(record, patient, digest, index)
        change.accepted[index] = applied.accepted
        if event.care_unit is not None and event.time_ms >= patient.care_unit_ms:
            patient.care_unit, patient.care_unit_ms = event.care_unit, event.time_ms
        partition.came(patient.id)
        findings.forget_old(patient)
        change.imaged += findings.end(patient, index, before, self._policies)
        if not applied.scorable:
            if patient.open >= 0:
                plan_score(patient, index, change.beside, before)
            return "stored"
        plan_score(patient, index, change.plan, before)
        return "scored"

    def _touch(self, record: Record, patient: Patient, digest: int, index: int) -> Standing:
        """Note that a record of the patient's is applied; where the patient stood before it."""
        partition, stood = self._partition, Standing(patient.care_unit, patient.touched_ms)
        before = partition.patients.get(patient.id)
        partition.patients[patient.id] = patient
        if before is not None and before is not patient:
            self._change.renewed.append((index, before))
        remember_event(patient, digest)
        patient.touched_ms = max(patient.touched_ms, record.timestamp)
        partition.seen_s[patient.id] = time.perf_counter()
        partition.dirty.add(patient.id)
        return stood
