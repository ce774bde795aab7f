"""The native messages on the topics, as frozen structs: the type is the contract.

JSON on the wire, UTF-8, times in RFC 3339 with a zone. Evolution: a new field always has a default, an
unknown field is ignored, no field changes its meaning; `tests/schemas/fixtures` holds old messages that
must always decode. FHIR R4 and HL7 v2 records become `VitalsRecord` in their own adapters, chosen by
content type in `worker/decode.py`, as feedback on alerts is told from vitals; imaging events are in
`imaging.py`.
"""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID, uuid5

from msgspec import Meta, Struct

from schemas.news2 import Part, Response, Scale

MAX_OBSERVATIONS = 4096
"""Most observations in a record; a day of one-minute vitals fits, a mistake in a loop does not."""

Identifier = Annotated[str, Meta(min_length=1, max_length=128)]
"""An opaque identifier."""

Time = Annotated[datetime, Meta(tz=True)]
"""RFC 3339 with a zone."""

ObservationStatus = Literal["preliminary", "final", "amended", "corrected", "entered-in-error", "cancelled"]
"""FHIR observation status. `amended` and `corrected` replace the value of the same code and time;
`entered-in-error` and `cancelled` take it back."""


class Observation(Struct, frozen=True):
    """One measured value.

    code: LOINC code, or MDC reference number, by `system`.
    value: in `unit`; finite.
    unit: UCUM, for example "mm[Hg]", "/min", "Cel"; empty for a quantity of dimension one.
    system: code system URI, LOINC unless stated.
    time: when it was measured; the record's time unless stated.
    """

    code: Annotated[str, Meta(max_length=64)]
    value: float
    unit: Annotated[str, Meta(max_length=64)] = ""
    system: Annotated[str, Meta(max_length=128)] = "http://loinc.org"
    time: Time | None = None
    status: ObservationStatus = "final"


class VitalsRecord(Struct, frozen=True):
    """One or many observations of one patient; the record's key is `patient`, in UTF-8.

    event_id: names this event; a second record with a patient's recent event id is a duplicate, and
        of two values for one code and time the one with the greatest event id stands.
    time: when the observations were measured, unless one states its own.
    care_unit: where the patient lies, as the hospital calls it; the last known one unless stated. Alert
        policies can differ between units.
    """

    event_id: Identifier
    patient: Identifier
    time: Time
    observations: Annotated[tuple[Observation, ...], Meta(min_length=1, max_length=MAX_OBSERVATIONS)]
    care_unit: Identifier | None = None


class Source(Struct, frozen=True):
    """A record's place in the input log."""

    cluster: str
    topic: str
    partition: int
    offset: int


class ModelReference(Struct, frozen=True):
    """The model that computed a risk, or NEWS2; `digest` is the SHA-256 of its graph, or of its charts."""

    name: str
    version: int
    digest: str


class BasisInput(Struct, frozen=True):
    """One input that a risk rests on: its last value, when it was measured, its age at the alert's time.

    contribution: the risk less the risk had this feature been at its ordinary value (`fill` in the feature
        table) whenever it was measured in the window, all else equal; above 0 where it raises the risk. Each
        feature is judged alone, so contributions do not add up to the risk.
    """

    feature: str
    loinc: str
    value: float
    unit: str
    time: Time | None = None
    age_s: float | None = None
    contribution: float | None = None


class ForecastPoint(Struct, frozen=True):
    """What the model expects a feature to be, `horizon_s` seconds after the alert's time.

    last: its last measured value; the forecast is worth what it says beyond it.
    """

    feature: str
    value: float
    unit: str
    horizon_s: float
    last: float


class TrendPoint(Struct, frozen=True):
    """The last risk computed in one UTC hour; in an alert of NEWS2's own, the last points."""

    hour: Time
    risk: float


class EarlyWarning(Struct, frozen=True):
    """NEWS2 of the window at the record that an alert rests on.

    low, high: the total of the complete set lies between these; equal where it is complete.
    complete: whether all seven parameters were measured recently enough; else nothing here means normal.
    response: the clinical response that the low end calls for; `unknown` for an incomplete set of 0.
    scale: SpO2 scale.
    single: parameters that score 3 by themselves.
    parts: each parameter's points.
    missing: parameters that the window does not hold.
    stale: parameters that were last measured longer ago than the policy's `fresh_s`.
    """

    low: int
    high: int
    complete: bool
    response: Response
    scale: Scale
    single: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    missing: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()


class BedsideScore(Struct, frozen=True):
    """qSOFA or MEWS of the same values; `missing` are parameters not measured recently enough."""

    low: int
    high: int
    missing: tuple[str, ...] = ()


Word = Annotated[str, Meta(max_length=64)]
"""A short word of a fixed vocabulary, such as a DICOM code string; empty where it is not known."""

Probability = Annotated[float, Meta(ge=0.0, le=1.0)]
"""Calibrated."""

ClassName = Annotated[str, Meta(min_length=1, max_length=128)]
"""What a model calls one of its classes."""


class ClassProbability(Struct, frozen=True):
    """How probable one of a model's classes is."""

    name: ClassName
    probability: Probability


class BasisFinding(Struct, frozen=True):
    """What a model made of the patient's newest picture that it saw; fields as in `Finding`.

    age_s: of the picture at the alert's time; 0 where it was taken later than that.
    classes: of those that are the outcome, the most probable first; eight at most.
    """

    id: str
    model: ModelReference
    outcome: str
    time: Time
    age_s: float
    risk: float
    classes: tuple[ClassProbability, ...] = ()
    modality: str = ""
    body_part: str = ""
    view: str = ""
    quality: tuple[str, ...] = ()


Transition = Literal["raised", "escalated", "updated", "resolved", "expired"]
"""What happened to an episode. `raised` opens it; `resolved` and `expired` end it."""


class Alert(Struct, frozen=True):
    """One alert transition, with its basis. Same log, same bytes: it holds event times only.

    id: UUIDv5 of episode, model name and transition; a second alert with an id is the same alert.
    episode: cluster/topic/partition/offset of the record that opened the episode.
    sequence: 0 for the episode's first alert, then counting up; orders an episode's alerts.
    severity: the episode's highest severity so far, a name from the policy that raised or escalated it.
    time: event time of the transition.
    risk: calibrated probability of the model's outcome; for `expired`, that of the last alert. Null in
        an alert of NEWS2's own, whose `model.name` is `news2`.
    threshold: the entry threshold of `severity` in the policy in force, or in the last that had such a
        severity, in the unit of `risk` or `points`.
    expires_at: when the episode expires unless the patient is scored again.
    missing: features the model reads that the window does not hold.
    uncertainty: standard deviation of the risks of the model's members; null where it has none.
    forecast: of features that were measured, where the model forecasts.
    points: of an alert of NEWS2's own, what its policy decided on: the low end, or the level that 3 points in
        one parameter call for, if that is more. Null in a model's alert.
    news2, qsofa, mews: of the window at the same record; null in `expired`, which rests on no record, and
        before the patient's first vital sign.
    source: the record that caused the transition; for `expired`, the last record scored before.
    policy_version: of the policy in force: the shipped one's, then each change's, as in `1+unit.3+patient.2`.
    level: of `severity` in that policy, from 0; where it has none of this name, the highest that `threshold`
        reaches, or null.
    care_unit: where the patient lay, as far as records have said; null in `expired`.
    findings: of pictures of the last 48 hours, the newest of each model, in the order of the models' names;
        none in `expired`. An alert whose `model` made one of them rests on that one, and has no inputs.
    """

    id: str
    episode: str
    sequence: int
    transition: Transition
    patient: str
    severity: str
    time: Time
    raised_at: Time
    expires_at: Time
    risk: float | None
    threshold: float
    outcome: str
    policy_version: str
    model: ModelReference
    backend: str
    source: Source
    inputs: tuple[BasisInput, ...] = ()
    missing: tuple[str, ...] = ()
    trend: tuple[TrendPoint, ...] = ()
    uncertainty: float | None = None
    forecast: tuple[ForecastPoint, ...] = ()
    points: float | None = None
    news2: EarlyWarning | None = None
    qsofa: BedsideScore | None = None
    mews: BedsideScore | None = None
    level: int | None = None
    care_unit: str | None = None
    findings: tuple[BasisFinding, ...] = ()


FeedbackAction = Literal["acknowledged", "dismissed", "confirmed"]
"""What a person says of an alert: it was seen; it was none; it was right."""

DismissalReason = Literal[
    "artefact", "known-baseline", "already-treated", "not-actionable", "wrong-patient", "other"
]
"""Why an alert was dismissed."""


class ModelName(Struct, frozen=True):
    """The name in an alert's `model`."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]


class AlertReference(Struct, frozen=True):
    """What feedback repeats of its alert, under the same names, so that the whole alert may be put there."""

    id: Annotated[str, Meta(max_length=64)]
    episode: Annotated[str, Meta(max_length=512)]
    sequence: Annotated[int, Meta(ge=0, le=999_999_999)]
    transition: Transition
    time: Time
    model: ModelName


class FeedbackRecord(Struct, frozen=True):
    """What a person says of one alert; the record's key is `patient`, in UTF-8.

    An acknowledged alert's episode stays quiet until it worsens; a dismissed one's until its severity rises.

    event_id: names this event; a second record with a patient's recent event id is a duplicate.
    time: when it was said.
    alert: what it is about.
    reason: of a dismissal, which must have one; of nothing else.
    role: who says so: a role, never a name.
    """

    event_id: Identifier
    patient: Identifier
    time: Time
    alert: AlertReference
    action: FeedbackAction
    reason: DismissalReason | None = None
    role: Annotated[str, Meta(max_length=64)] = ""


NAMESPACE = UUID("6f6e6f73-7269-5b73-8000-7374726561d0")
"""Namespace of this program's UUIDv5 identifiers. Changing it gives every alert another id."""


def alert_id(episode: str, model: str, transition: str, sequence: int) -> str:
    """The id of an alert, which its episode, its model and its place in the episode make."""
    return str(uuid5(NAMESPACE, f"{episode}|{model}|{transition}|{sequence}"))


class Score(Struct, frozen=True):
    """One score, for dashboards and audit: one for each record that changed its patient.

    uncertainty: as in an alert.
    news2: of the window at the same record.
    inputs: the newest value of each bedside sign that the window holds, without contributions.
    care_unit: as in an alert.
    """

    patient: str
    time: Time
    risk: float
    model: str
    model_version: int
    source: Source
    uncertainty: float | None = None
    news2: EarlyWarning | None = None
    inputs: tuple[BasisInput, ...] = ()
    care_unit: str | None = None


MAX_ACTIVATION_BYTES = 1 << 18
"""Largest class-activation map; one of 512 by 512 pixels has some 150 KiB."""


class Finding(Struct, frozen=True):
    """What a model made of one picture of a patient; the record's key is `patient`, in UTF-8.

    id: UUIDv5 of the image's identity and the model; a second finding with an id is the same finding.
    time: when the picture was taken, as far as the imaging event says.
    outcome: what `risk` is the probability of.
    risk: the sum of the probabilities of the classes in `findings`.
    classes: all of the model's, in its order.
    findings: names of those classes that are the outcome.
    source: the imaging event's record.
    image_sha256: of the picture's bytes as they were fetched.
    modality, body_part, view: as DICOM calls them, for example DX, CHEST, PA; empty where not known.
    quality: what was doubtful about the picture, one flag word each; empty where nothing was.
    activation_png: the class-activation map laid over the picture, a PNG of at most 256 KiB; null for none.
    """

    id: Annotated[str, Meta(min_length=1, max_length=64)]
    patient: Identifier
    time: Time
    outcome: Annotated[str, Meta(min_length=1, max_length=128)]
    risk: Probability
    classes: Annotated[tuple[ClassProbability, ...], Meta(min_length=1, max_length=64)]
    findings: Annotated[tuple[ClassName, ...], Meta(min_length=1, max_length=64)]
    model: ModelReference
    backend: Word
    source: Source
    image_sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    modality: Word = ""
    body_part: Word = ""
    view: Word = ""
    quality: Annotated[tuple[Word, ...], Meta(max_length=32)] = ()
    activation_png: Annotated[bytes, Meta(max_length=MAX_ACTIVATION_BYTES)] | None = None


class Rejection(Struct, frozen=True):
    """Why one part of a record was refused; `path` is its place, `$` the whole record."""

    reason: str
    path: str = "$"


class DeadLetter(Struct, frozen=True):
    """A refused record, or a record with refused observations: enough to mend it and send it again.

    id: UUIDv5 of the source coordinates; a second one with an id is the same dead letter.
    reason: the first rejection's reason.
    value: the first 256 KiB of the original bytes, base64; size and sha256 are of the whole.
    key: the original key, base64; null where there was none.
    accepted: observations of the record that were accepted all the same.
    """

    id: str
    reason: str
    rejections: tuple[Rejection, ...]
    source: Source
    timestamp: datetime
    size: int
    sha256: str
    value: bytes
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    accepted: int = 0
