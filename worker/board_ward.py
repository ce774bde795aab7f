"""The ward in memory: each patient's newest risk, NEWS2, bedside signs, trend and open episodes.

Scores, alerts and findings may come twice, and from their topics in any order. A score counts when it is
newer than the one that is held. An alert counts when it begins a later episode of its model or has a greater
`sequence` in the same one, so a second alert with an id changes nothing; nor does a second finding.
Everything is bounded: patients by number and by how long nothing has come, trends by points, episodes by one
for each model.

Not thread-safe: one event loop owns a ward.
"""

import itertools
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

from schemas.messages import Alert, BasisInput, EarlyWarning, FeedbackAction, FeedbackRecord, Finding, Score
from worker.board_imaging import Findings, Pictures
from worker.board_rows import Closed, Detail, Open, Reason, Row, Vital
from worker.decode import milliseconds
from worker.early_warning import INPUTS

TREND_STEPS = 48
"""Points of a trend line: half an hour each in a day, and about as many as a small picture can show."""

KEPT_CLOSED = 8
"""Ended episodes of a patient that the details list."""

KEPT_MODELS = 8
"""Models whose newest alert is held for a patient; who serves more must look at the topic."""

KEPT_GONE = 4096
"""Departures that are remembered; a page that missed more is sent the whole ward."""

KEPT_SAID = 10_000
"""Alerts of which it is remembered what people said, the last ones."""

KEPT_REASONS = 4
"""Inputs that a line names; the details name all."""

ENDS = frozenset({"resolved", "expired"})

RANKS = {
    **dict.fromkeys(("low", "info", "minor"), 1),
    **dict.fromkeys(("low-medium", "medium", "moderate", "elevated", "warning"), 2),
    **dict.fromkeys(("high", "severe", "major"), 3),
    **dict.fromkeys(("critical", "emergency"), 4),
}
"""How grave a severity is, by its name in the policy. A name that is not here ranks with `high`: an unknown
word must not hide a patient."""

_UNKNOWN_RANK = 3


def rank(severity: str) -> int:
    """A severity's place, 1 to 4; 4 is the gravest."""
    return RANKS.get(severity.lower(), _UNKNOWN_RANK)


class Bounds(NamedTuple):
    """What a ward holds.

    history_ms: a patient without an open episode leaves when the feed has gone on for so long without them;
        also the length of a trend. alerts_ms: the same for a patient with one.
    patients: how many at most. Those without an open episode go first, of these who was heard of longest ago.
    """

    history_ms: int
    alerts_ms: int
    patients: int


class Changes(NamedTuple):
    """What is new since a version: rows as JSON, and keys of patients who left."""

    version: int
    rows: list[bytes]
    gone: list[int]


class _Patient:
    """What is held of one patient."""

    def __init__(self, key: int, name: str) -> None:
        self.key = key
        self.name = name
        self.version = 0
        self.heard_ms = 0  # newest Kafka timestamp
        self.seen = 0  # newest event time
        self.score: tuple[int, int] = (-1, -1)  # event time and offset of the newest score
        self.risk: float | None = None
        self.risk_at: int | None = None
        self.uncertainty: float | None = None
        self.news2: EarlyWarning | None = None
        self.news2_at: int | None = None
        self.care_unit: str | None = None
        self.vitals: list[Vital] = []
        self.observed_at = 0
        self.trend: deque[tuple[int, float]] = deque(maxlen=TREND_STEPS + 1)
        self.newest: dict[str, Alert] = {}  # by model, ended ones too
        self.closed: deque[Closed] = deque(maxlen=KEPT_CLOSED)
        self.findings = Findings()
        self.encoded: bytes | None = None

    def open(self) -> list[Alert]:
        """The newest alert of each open episode, gravest first."""
        alerts = [alert for alert in self.newest.values() if alert.transition not in ENDS]
        return sorted(alerts, key=lambda a: (-rank(a.severity), a.model.name))


class Ward:
    """Patients by identifier, and what changed when."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._patients: OrderedDict[str, _Patient] = OrderedDict()  # last changed last
        self._by_key: dict[int, _Patient] = {}
        self._keys = itertools.count(1)
        self._gone: deque[tuple[int, int]] = deque(maxlen=KEPT_GONE)
        self._said: OrderedDict[str, FeedbackAction] = OrderedDict()  # by alert id
        self._pictures = Pictures()
        self._reached_ms: int | None = None  # newest Kafka timestamp of anything
        self._newest: list[tuple[int, int, int]] = []  # of two patients: event time, Kafka timestamp, key
        self.version = 0
        self.full = False
        self.last_ms: int | None = None  # newest Kafka timestamp of a score or an alert

    def __len__(self) -> int:
        return len(self._patients)

    @property
    def event(self) -> tuple[int, int] | None:
        """The feed's newest event time and when it was published: the second newest patient's.

        One device whose clock is ahead would make everybody else's values look old.
        """
        return self._newest[-1][:2] if self._newest else None

    def score(self, score: Score, timestamp: int) -> None:
        """Take a score; `timestamp` is its record's, in milliseconds."""
        patient = self._patient(score.patient)
        at = milliseconds(score.time)
        if (at, score.source.offset) > patient.score:
            patient.score = (at, score.source.offset)
            patient.risk, patient.risk_at, patient.uncertainty = score.risk, at, score.uncertainty
            if score.news2 is not None:
                patient.news2, patient.news2_at = score.news2, at
            self._observe(patient, at, score.care_unit, score.inputs)
            self._draw(patient, at, score.risk)
        self._heard(patient, timestamp, at)

    def alert(self, alert: Alert, timestamp: int) -> None:
        """Take an alert; `timestamp` is its record's, in milliseconds."""
        patient = self._patient(alert.patient)
        # An expiry tells when a patient was not heard of; a picture's risk is another than the line draws.
        pictured = any(finding.model == alert.model for finding in alert.findings)
        measured = alert.transition != "expired" and not pictured
        if _is_news(patient.newest.get(alert.model.name), alert):
            self._supersede(patient, alert)
            if measured:
                self._learn(patient, alert)
        self._heard(patient, timestamp, milliseconds(alert.time) if measured else None)

    def feedback(self, record: FeedbackRecord) -> None:
        """Take what somebody said of an alert, whether or not the alert has come yet."""
        self._said[record.alert.id] = record.action
        self._said.move_to_end(record.alert.id)
        if len(self._said) > KEPT_SAID:
            self._said.popitem(last=False)
        patient = self._patients.get(record.patient)
        if patient is not None:
            self._change(patient)

    def finding(self, finding: Finding, timestamp: int) -> None:
        """Take a finding; `timestamp` is its record's, in milliseconds.

        It is no sign that the patient is measured, nor that scores still come: it makes neither newer.
        """
        patient = self._patient(finding.patient)
        patient.findings.add(finding, self._pictures)
        self._reach(patient, timestamp)
        self._change(patient)

    def sweep(self, *, loading: bool = False) -> None:
        """Let patients leave who were not heard of for long, and those above the greatest number.

        Args:
            loading: the past is being read: a topic that is behind may tell yet that a patient is here, so
                nobody leaves for having been silent.
        """
        if self._reached_ms is None:
            return
        for patient in [] if loading else list(self._patients.values()):
            keep_ms = self._bounds.alerts_ms if patient.open() else self._bounds.history_ms
            if self._reached_ms - patient.heard_ms > keep_ms:
                self._leave(patient)
        excess = len(self._patients) - self._bounds.patients
        # Who was left out comes back with the next record, in the place of somebody else.
        self.full = excess > 0 or (self.full and excess == 0)
        if excess > 0:
            by_need = sorted(self._patients.values(), key=lambda p: (bool(p.open()), p.heard_ms))
            for patient in by_need[:excess]:
                self._leave(patient)

    def rows(self) -> list[bytes]:
        """Everybody's row as JSON."""
        return [self._encoded(patient) for patient in self._patients.values()]

    def since(self, version: int) -> Changes | None:
        """What changed after `version`; None where that is too long ago to tell."""
        if len(self._gone) == KEPT_GONE and version < self._gone[0][0]:
            return None
        rows = [self._encoded(patient) for patient in self._changed(version)]
        return Changes(self.version, rows, [key for at, key in self._gone if at > version])

    def detail(self, key: int) -> Detail | None:
        """All that is known of a patient; None where the key is nobody's."""
        patient = self._by_key.get(key)
        return (
            None
            if patient is None
            else Detail(
                _row(patient, self._said),
                patient.open(),
                list(patient.closed),
                patient.findings.told(self._pictures),
            )
        )

    def picture(self, key: int, number: int) -> bytes | None:
        """The PNG of a patient's finding; None where there is no such patient, finding or picture."""
        patient = self._by_key.get(key)
        return self._pictures.get(number) if patient and patient.findings.has(number) else None

    def _encoded(self, patient: _Patient) -> bytes:
        """A row as JSON, made once for all pages."""
        if patient.encoded is None:
            patient.encoded = msgspec.json.encode(_row(patient, self._said))
        return patient.encoded

    def _changed(self, version: int) -> Iterator[_Patient]:
        """Patients that changed after `version`, the last one first."""
        return itertools.takewhile(lambda p: p.version > version, reversed(self._patients.values()))

    def _patient(self, name: str) -> _Patient:
        patient = self._patients.get(name)
        if patient is None:
            patient = self._patients[name] = _Patient(next(self._keys), name)
            self._by_key[patient.key] = patient
        return patient

    def _heard(self, patient: _Patient, timestamp: int, at: int | None) -> None:
        """Note that something of a patient came, and number the change."""
        self._reach(patient, timestamp)
        self.last_ms = max(self.last_ms or 0, timestamp)
        if at is not None and at >= patient.seen:
            patient.seen = at
            others = [entry for entry in self._newest if entry[2] != patient.key]
            self._newest = sorted([*others, (at, timestamp, patient.key)], reverse=True)[:2]
        self._change(patient)

    def _reach(self, patient: _Patient, timestamp: int) -> None:
        patient.heard_ms = max(patient.heard_ms, timestamp)
        self._reached_ms = max(self._reached_ms or 0, timestamp)

    def _change(self, patient: _Patient) -> None:
        """Number a change of a patient."""
        self.version += 1
        patient.version, patient.encoded = self.version, None
        self._patients.move_to_end(patient.name)

    def _leave(self, patient: _Patient) -> None:
        del self._patients[patient.name], self._by_key[patient.key]
        patient.findings.clear(self._pictures)
        self._newest = [entry for entry in self._newest if entry[2] != patient.key]
        self.version += 1
        self._gone.append((self.version, patient.key))

    def _supersede(self, patient: _Patient, alert: Alert) -> None:
        """Put an alert in the place of its model's last one."""
        patient.newest.pop(alert.model.name, None)
        patient.newest[alert.model.name] = alert
        while len(patient.newest) > KEPT_MODELS:
            del patient.newest[next(iter(patient.newest))]
        if alert.transition in ENDS:
            raised, at = milliseconds(alert.raised_at), milliseconds(alert.time)
            patient.closed.appendleft(Closed(alert.model.name, alert.severity, alert.transition, raised, at))

    def _learn(self, patient: _Patient, alert: Alert) -> None:
        """What an alert says of the patient beside the alert, where no later score has said it."""
        at = milliseconds(alert.time)
        self._observe(patient, at, alert.care_unit, alert.inputs)
        if alert.news2 is not None and at >= (patient.news2_at or 0):
            patient.news2, patient.news2_at = alert.news2, at
        if alert.risk is None or at <= (patient.risk_at or 0):
            return
        patient.risk, patient.risk_at, patient.uncertainty = alert.risk, at, alert.uncertainty
        for point in alert.trend:
            self._draw(patient, milliseconds(point.hour), point.risk)
        self._draw(patient, at, alert.risk)

    def _draw(self, patient: _Patient, at: int, risk: float) -> None:
        """Add a point: of each step of time the highest is kept, so that a line never hides a peak."""
        trend, step = patient.trend, self._bounds.history_ms // TREND_STEPS
        if trend and at < trend[-1][0]:
            return
        if trend and trend[-1][0] // step == at // step:
            trend[-1] = (at, max(risk, trend[-1][1]))
        else:
            trend.append((at, risk))
        while trend[0][0] < at - self._bounds.history_ms:
            trend.popleft()

    @staticmethod
    def _observe(patient: _Patient, at: int, care_unit: str | None, inputs: tuple[BasisInput, ...]) -> None:
        """Take unit and bedside signs of a message that is not older than the one that told them last.

        They are taken whole: a value that was taken back since must not stand.
        """
        if at >= patient.observed_at:
            patient.observed_at, patient.care_unit = at, care_unit
            patient.vitals = [_vital(one) for one in inputs if one.feature in INPUTS]


def _vital(one: BasisInput) -> Vital:
    return Vital(one.feature, one.value, one.unit, None if one.time is None else milliseconds(one.time))


def _is_news(last: Alert | None, alert: Alert) -> bool:
    """Whether an alert says more than the last one of its model."""
    if last is None:
        return True
    if alert.episode == last.episode:
        # An expiry may have the sequence of the alert before it; nothing of its episode follows.
        return last.transition != "expired" and (
            alert.sequence > last.sequence or (alert.transition == "expired" and last.transition not in ENDS)
        )
    return (alert.raised_at, alert.time) > (last.raised_at, last.time)


def _row(patient: _Patient, said: Mapping[str, FeedbackAction]) -> Row:
    episodes = [_opened(alert, said.get(alert.id)) for alert in patient.open()]
    trend = list(patient.trend)
    if patient.risk is not None and patient.risk_at is not None:
        trend.append((patient.risk_at, patient.risk))
    return Row(
        key=patient.key,
        patient=patient.name,
        care_unit=patient.care_unit,
        rank=max((episode.rank for episode in episodes), default=0),
        episodes=episodes,
        risk=patient.risk,
        risk_at=patient.risk_at,
        uncertainty=patient.uncertainty,
        news2=patient.news2,
        news2_at=patient.news2_at,
        trend=trend,
        vitals=patient.vitals,
        seen=patient.seen,
        imaging=patient.findings.newest(),
    )


def _opened(alert: Alert, said: FeedbackAction | None) -> Open:
    return Open(
        id=alert.episode,
        by=alert.model.name,
        severity=alert.severity,
        rank=rank(alert.severity),
        transition=alert.transition,
        sequence=alert.sequence,
        raised_at=milliseconds(alert.raised_at),
        at=milliseconds(alert.time),
        level=(alert.risk if alert.points is None else alert.points) or 0.0,
        threshold=alert.threshold,
        why=_reasons(alert),
        said=said,
    )


def _reasons(alert: Alert) -> list[Reason]:
    """What weighs most: inputs by how much they change the risk, or parameters by their points."""
    if alert.risk is None:
        parts = alert.news2.parts if alert.news2 is not None else ()
        found = [Reason(part.parameter, None, "", part.low) for part in parts if part.low]
    else:
        found = [Reason(i.feature, i.value, i.unit, i.contribution) for i in alert.inputs if i.contribution]
    return sorted(found, key=lambda reason: -abs(reason.adds))[:KEPT_REASONS]
