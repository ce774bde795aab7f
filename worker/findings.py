"""What models make of a patient's pictures: kept in the patient's state, told in alerts, decided on.

A finding is a record of the vitals topic, in the patient's own partition; `findings_topic.py` brings what is
published to the findings topic there. So its place among the patient's records is in the log, and so is what
it changes. The newest finding of each model is kept, for as long as the window reaches back.

Findings of the imaging model that the settings name raise alerts, by the policy of the version that made
them. They are decided on while the records are taken in, one after the other: no engine has a say in them, so
none can hold them up.
"""

from typing import NamedTuple

from schemas.latch import Latch, Which
from schemas.messages import Finding, ModelReference
from schemas.stored import KeptFinding, Speaker
from worker.decide import Step, decide, expire
from worker.decode import Record, milliseconds
from worker.early_warning import assess
from worker.messages import Basis, Voice, told_findings
from worker.patient import FORGET_MS, Patient
from worker.plan import Plan, Standing
from worker.policies import Policies
from worker.state import plan_score

FINDING_IDS = b"finding"
"""Whose event ids findings' are."""

KEPT_MS = FORGET_MS
"""Age, against the patient's newest event time, at which a finding is forgotten, as a window forgets."""

KEPT_MODELS = 4
"""Models of which a patient keeps the newest finding; of more, the oldest go. Bounds the state's size."""

KEPT_CLASSES = 8
"""Classes that are kept of a finding: of those that are the outcome, the most probable. Bounds it too."""


class Imaged(NamedTuple):
    """A transition of the imaging model's, at position `at` of the chunk; `because` is its basis."""

    at: int
    patient_id: str
    step: Step
    voice: Voice
    because: Basis


def kept_of(finding: Finding) -> KeptFinding:
    """What of a finding stays in its patient's state."""
    made, outcome = finding.model, set(finding.findings)
    classes = [(c.name, c.probability) for c in finding.classes if c.name in outcome]
    classes.sort(key=lambda one: -one[1])
    return KeptFinding(
        finding.id,
        Speaker(made.name, made.version, made.digest, finding.backend, finding.outcome),
        milliseconds(finding.time),
        round(finding.risk, 6),
        tuple(classes[:KEPT_CLASSES]),
        finding.modality,
        finding.body_part,
        finding.view,
        finding.quality,
    )


def now_ms(patient: Patient) -> int:
    """The patient's newest event time, that of pictures included."""
    return max((patient.newest_ms, *(finding.time_ms for finding in patient.findings)))


def keep(patient: Patient, finding: KeptFinding) -> bool:
    """Keep a finding unless one of its model is newer, or those of others leave no room; whether it stays."""
    known = next((f for f in patient.findings if f.by.name == finding.by.name), None)
    if known is not None and _order(finding) <= _order(known):
        return False
    others = [f for f in patient.findings if f is not known]
    newest = sorted([*others, finding], key=_order)[-KEPT_MODELS:]
    patient.findings = tuple(sorted(newest, key=lambda f: f.by.name))
    forget_old(patient)
    return finding in patient.findings


def forget_old(patient: Patient) -> None:
    """Drop what is older than the window reaches back."""
    if patient.findings:
        oldest = now_ms(patient) - KEPT_MS
        if any(finding.time_ms < oldest for finding in patient.findings):
            patient.findings = tuple(f for f in patient.findings if f.time_ms >= oldest)


def _order(finding: KeptFinding) -> tuple[int, int, str]:
    """Of two findings on one picture, the later version's is newer."""
    return finding.time_ms, finding.by.version, finding.id


def voice_of(patient: Patient, which: Which) -> Voice | None:
    """Who speaks in the alerts of a patient's latch, where it is no other patient's voice too.

    That is the imaging latch: what made the finding that it rests on.
    """
    by = patient.imaging_by
    return None if by is None or which != "imaging" else _voice(by)


def _voice(by: Speaker) -> Voice:
    return Voice(ModelReference(by.name, by.version, by.digest), by.backend, by.outcome)


def judge(
    patient: Patient, finding: KeptFinding, at: int, record: Record, before: Standing, policies: Policies
) -> list[Imaged]:
    """The transitions that a finding causes; replaces the patient's imaging latch.

    Args:
        patient: keeps the finding already.
        finding: of the imaging model.
        at: position of the record in its chunk.
        record: that brought the finding.
        before: the patient's, at its record before.
        policies: in force.
    """
    time_ms, place = now_ms(patient), (patient.id, patient.care_unit, record.timestamp)
    spoke = voice_of(patient, "imaging")
    if spoke is not None and spoke.model.name != finding.by.name:
        patient.latches["imaging"] = Latch()  # of a model that the settings named before
    patient.latches["imaging"], steps = decide(
        policies.imaging(finding.by, *place),
        patient.latches["imaging"],
        time_ms,
        finding.risk,
        record.offset,
        before=policies.imaging(patient.imaging_by, patient.id, *before),
    )
    patient.imaging_by = finding.by
    if not steps:
        return []
    because = Basis(care_unit=patient.care_unit, findings=told_findings(patient.findings, time_ms))
    if patient.open >= 0:
        plan = Plan(1)
        plan_score(patient, at, plan, before)
        plan.scored[0] = plan.scored[0]._replace(time_ms=time_ms)
        because = assess(policies.news2(*place), plan, 0).beside(because)
    return [
        Imaged(at, patient.id, step, _voice(finding.by), because)
        if step.transition != "expired"
        else Imaged(at, patient.id, step, spoke or _voice(finding.by), Basis())
        for step in steps
    ]


def end(patient: Patient, at: int, before: Standing, policies: Policies) -> list[Imaged]:
    """The expiry of the patient's imaging latch, where a record of any kind brings it out."""
    latch, spoke = patient.latches["imaging"], voice_of(patient, "imaging")
    if latch.trace is None or spoke is None:
        return []
    policy = policies.imaging(patient.imaging_by, patient.id, *before)
    after, step = expire(policy, latch, now_ms(patient))
    if after is not latch:
        patient.latches["imaging"], patient.imaging_by = after, None
    return [] if step is None else [Imaged(at, patient.id, step, spoke, Basis())]
