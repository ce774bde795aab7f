"""What the ward page is told, as frozen structs; JSON on the wire.

Times are milliseconds since the epoch, in UTC. A `key` names a patient in a URL in the place of an
identifier; it holds until the process ends.
"""

from msgspec import Struct

from schemas.messages import Alert, EarlyWarning, FeedbackAction, Finding


class Vital(Struct, frozen=True):
    """The newest value of one feature; `at` is when it was measured, None where that is unknown."""

    feature: str
    value: float
    unit: str
    at: int | None


class Reason(Struct, frozen=True):
    """One of the weightiest inputs of an alert, with its value and what it adds to the risk.

    In an alert of NEWS2's own: a parameter without a value, and the points that it has.
    """

    feature: str
    value: float | None
    unit: str
    adds: float


class Open(Struct, frozen=True):
    """An episode that has not ended, as its newest alert tells it.

    id: of the episode. rank: the severity's place, 1 to 4. by: name of the model, or `news2`.
    level: the risk, or the points of an alert of NEWS2's own; threshold is in the same unit.
    why: the weightiest first.
    said: what somebody said of its newest alert; None where nobody has.
    """

    id: str
    by: str
    severity: str
    rank: int
    transition: str
    sequence: int
    raised_at: int
    at: int
    level: float
    threshold: float
    why: list[Reason]
    said: FeedbackAction | None = None


class Closed(Struct, frozen=True):
    """An episode that has ended, and how."""

    by: str
    severity: str
    transition: str
    raised_at: int
    at: int


class Imaging(Struct, frozen=True):
    """The finding of the newest picture, in short; `doubts` is how many quality flags it has."""

    outcome: str
    risk: float
    at: int
    doubts: int
    modality: str
    body_part: str


class Pictured(Struct, frozen=True):
    """A finding without its picture; where `picture` is true, that is served under `number`."""

    number: int
    picture: bool
    finding: Finding


class Row(Struct, frozen=True):
    """One patient's line.

    care_unit: where the patient lies, as the newest message says; None where none has said.
    rank: the greatest of the open episodes' ranks, 0 where there is none.
    risk_at, news2_at: event time of the record that they rest on. seen: the newest of both.
    imaging: None where no finding is known.
    trend: (time, risk), oldest first; of each step of time the highest risk, then the newest point.
    """

    key: int
    patient: str
    care_unit: str | None
    rank: int
    episodes: list[Open]
    risk: float | None
    risk_at: int | None
    uncertainty: float | None
    news2: EarlyWarning | None
    news2_at: int | None
    trend: list[tuple[int, float]]
    vitals: list[Vital]
    seen: int
    imaging: Imaging | None = None


class Detail(Struct, frozen=True):
    """All that is known of one patient: the newest alert of each open episode, with its basis; what ended.

    findings: the newest picture's first.
    """

    row: Row
    alerts: list[Alert]
    closed: list[Closed]
    findings: list[Pictured] = []


class Level(Struct, frozen=True):
    """One severity of the served model's policy; `enter` is a risk."""

    severity: str
    rank: int
    enter: float


class Topic(Struct, frozen=True):
    """One topic that is read: whether it exists, and how many of its records were taken."""

    name: str
    exists: bool
    taken: int


class FeedState(Struct, frozen=True):
    """How what comes from Kafka stands.

    now: this process's clock. kafka_up, kafka_since: whether the broker answers, and since when that holds.
    loading: whether the past is still being read.
    last: when the newest record was published; None before any.
    event, event_at: the feed's newest event time, and when the record that told it was published.
    full: whether patients are left out because there are too many. unreadable: records that were no message.
    """

    now: int
    kafka_up: bool
    kafka_since: int
    loading: bool
    last: int | None
    event: int | None
    event_at: int | None
    patients: int
    full: bool
    unreadable: int
    scores: Topic
    alerts: Topic


class Facts(Struct, frozen=True):
    """What does not change while the process lives.

    boot: names this process. quiet_s: silence of the feed that is worth a notice.
    stale_s: age from which a value is marked. history_s: length of a trend line.
    levels: of the served model's policy, where it is known.
    token: whether readers sign in.
    """

    boot: str
    quiet_s: float
    stale_s: float
    history_s: float
    levels: tuple[Level, ...]
    token: bool
