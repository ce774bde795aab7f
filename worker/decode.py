"""Record bytes -> an event, or the reasons why not. Pure; knows no patient.

The format comes from the record's `content-type` header, native JSON unless stated. An adapter for
another format (FHIR R4, HL7 v2) is a function of the same shape as `_native`, entered in `_FORMATS`.
"""

import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

from schemas.messages import (
    MAX_OBSERVATIONS,
    FeedbackRecord,
    Finding,
    Identifier,
    Observation,
    Rejection,
    Time,
    VitalsRecord,
    alert_id,
)


class Record(Protocol):
    """A Kafka record as the transport hands it over; aiokafka's ConsumerRecord is one."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int:
        """Milliseconds since the epoch."""
        ...

    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...


class Event(NamedTuple):
    """A decoded record: observations that have the right form, and those that have not.

    observations: (position in the message, observation).
    care_unit: where the patient lies, if the message says so.
    """

    event_id: str
    patient: str
    time_ms: int
    observations: Sequence[tuple[int, Observation]]
    rejections: tuple[Rejection, ...] = ()
    care_unit: str | None = None


class Feedback(NamedTuple):
    """A decoded record of what a person says of an alert."""

    event_id: str
    patient: str
    time_ms: int
    said: FeedbackRecord


class Found(NamedTuple):
    """A decoded record of what a model made of a picture."""

    event_id: str
    patient: str
    time_ms: int
    finding: Finding


class Refusal(NamedTuple):
    """Why a whole record was refused."""

    reason: str
    path: str = "$"


class _Envelope(msgspec.Struct, frozen=True):
    """A `VitalsRecord` whose observations are not looked at yet."""

    event_id: Identifier
    patient: Identifier
    time: Time
    observations: list[msgspec.Raw]
    care_unit: Identifier | None = None


_vitals = msgspec.json.Decoder(VitalsRecord)
_envelope = msgspec.json.Decoder(_Envelope)
_observation = msgspec.json.Decoder(Observation)
_feedback_record = msgspec.json.Decoder(FeedbackRecord)
_finding_record = msgspec.json.Decoder(Finding)

_encode = msgspec.json.Encoder().encode

_Read = Callable[[bytes], Event | Feedback | Found | Refusal]
E = TypeVar("E", bound=Event | Feedback | Found)
M = TypeVar("M", FeedbackRecord, Finding)

FEEDBACK_TYPE = b"application/vnd.riskstream.feedback+json"
"""Content type of feedback among the vitals records."""

FINDING_TYPE = b"application/vnd.riskstream.finding+json"
"""Content type of findings among the vitals records."""

_LONGEST_NAME, _LONGEST_DIGEST, _GREATEST_VERSION = 64, 128, 999_999_999
"""Of the model that made a finding: what is kept of it stands in every alert."""

_ENVELOPE_KEYS = (b'"event_id"', b'"patient"', b'"time"', b'"care_unit"')
_OPTIONAL_KEYS = (b'"unit"', b'"system"', b'"time"', b'"status"')

_PATH = re.compile(r" - at `(\$[^`]*)`$")


def milliseconds(time: datetime) -> int:
    """Milliseconds since the epoch of an aware time."""
    return round(time.timestamp() * 1000)


Decoded = Event | Feedback | Found | Refusal
"""What a record of the vitals topic says, or why it says nothing."""


def decode(record: Record, max_bytes: int) -> Decoded:
    """Decode one record and check that its key is its patient.

    Args:
        record: the record.
        max_bytes: larger values are refused unread.
    """
    read: _Read = _native
    for name, content_type in record.headers:
        if name == "content-type" and content_type:
            form = _FORMATS.get(content_type.split(b";")[0].strip().lower())
            if form is None:
                return Refusal("unsupported-content-type")
            read = form
    return _decoded(record, max_bytes, read)


def decode_feedback(record: Record, max_bytes: int) -> Feedback | Refusal:
    """Decode one record of the feedback topic, whatever content type it names."""
    return _decoded(record, max_bytes, _feedback)


def decode_finding(record: Record, max_bytes: int) -> Found | Refusal:
    """Decode one record of the findings topic, whatever content type it names."""
    return _decoded(record, max_bytes, _found)


def _decoded(record: Record, max_bytes: int, read: Callable[[bytes], E | Refusal]) -> E | Refusal:
    value = record.value
    if not value:
        return Refusal("empty")
    if len(value) > max_bytes:
        return Refusal("too-large")
    event = read(value)
    if not isinstance(event, Refusal) and record.key != event.patient.encode():
        return Refusal("key-mismatch", "$.patient")
    return event


def _native(value: bytes) -> Event | Refusal:
    try:
        message = _vitals.decode(value)
        # What encodes to the very same bytes repeats nothing: the quickest proof, for the plainest senders.
        if (
            _encode(message) != value
            and _may_repeat_keys(value, len(message.observations))
            and repeats_keys(value)
        ):
            return Refusal("duplicate-key")
        return Event(
            message.event_id,
            message.patient,
            milliseconds(message.time),
            list(enumerate(message.observations)),
            care_unit=message.care_unit,
        )
    except msgspec.ValidationError as error:
        return _salvage(value, error)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Refusal("invalid-json")
    except RecursionError:
        return Refusal("too-deep")
    except (OverflowError, ValueError):
        return Refusal("invalid-message")


def _salvage(value: bytes, error: msgspec.ValidationError) -> Event | Refusal:
    """The good observations of a message in which something has a wrong type."""
    try:
        envelope = _envelope.decode(value)
        if repeats_keys(value):
            return Refusal("duplicate-key")
        time_ms = milliseconds(envelope.time)
    except (msgspec.DecodeError, RecursionError, OverflowError, ValueError):
        return Refusal("invalid-message", path_of(error))
    if not 0 < len(envelope.observations) <= MAX_OBSERVATIONS:
        return Refusal("invalid-message", "$.observations")
    good: list[tuple[int, Observation]] = []
    bad: list[Rejection] = []
    for position, raw in enumerate(envelope.observations):
        try:
            good.append((position, _observation.decode(raw)))
        except (msgspec.DecodeError, RecursionError, OverflowError, ValueError) as fault:
            place = path_of(fault)[1:]
            bad.append(Rejection("invalid-observation", f"$.observations[{position}]{place}"))
    return Event(envelope.event_id, envelope.patient, time_ms, good, tuple(bad), envelope.care_unit)


def path_of(error: Exception) -> str:
    """The place that msgspec names; the rest of its message may quote the payload."""
    match = _PATH.search(str(error))
    return match.group(1) if match else "$"


def _may_repeat_keys(value: bytes, observations: int) -> bool:
    """A quick test that is true for every message in which a key that is read stands twice in one object."""
    if b"\\" in value:
        return True
    head, _, rest = value.partition(b'"observations"')
    objects = rest.split(b"}")
    # One brace ends each observation and one the message; any more stand in a text or an unknown object.
    if len(objects) != observations + 2:
        return True
    envelope = head + objects[-2]
    return (
        b'"observations"' in rest
        or value.count(b'"value"') > observations
        or value.count(b'"code"') > observations
        or any(envelope.count(key) > 1 for key in _ENVELOPE_KEYS)
        or any(key in rest and any(part.count(key) > 1 for part in objects) for key in _OPTIONAL_KEYS)
    )


def repeats_keys(value: bytes) -> bool:
    """Whether an object of this JSON has a key twice.

    Raises:
        ValueError, RecursionError: it is no JSON, or nested too deep.
    """
    repeated = False

    def pairs(items: list[tuple[str, Any]]) -> None:
        nonlocal repeated
        repeated = repeated or len({key for key, _ in items}) < len(items)

    json.loads(value, object_pairs_hook=pairs)
    return repeated


def _read(decoder: "msgspec.json.Decoder[M]", value: bytes) -> tuple[M, int] | Refusal:
    """A message that is taken whole or not at all, and its time in ms."""
    try:
        message = decoder.decode(value)
        repeats, time_ms = repeats_keys(value), milliseconds(message.time)
    except msgspec.ValidationError as error:
        return Refusal("invalid-message", path_of(error))
    except (msgspec.DecodeError, RecursionError, OverflowError, ValueError):
        return Refusal("invalid-json")
    return Refusal("duplicate-key") if repeats else (message, time_ms)


def _feedback(value: bytes) -> Feedback | Refusal:
    """What a person says of an alert; `id` must be the one that the alert's other fields make."""
    read = _read(_feedback_record, value)
    if isinstance(read, Refusal):
        return read
    message, time_ms = read
    alert = message.alert
    if alert.id != alert_id(alert.episode, alert.model.name, alert.transition, alert.sequence):
        return Refusal("unknown-alert", "$.alert.id")
    if (message.reason is not None) != (message.action == "dismissed"):
        return Refusal("invalid-message", "$.reason")
    return Feedback(message.event_id, message.patient, time_ms, message)


def _found(value: bytes) -> Found | Refusal:
    """What a model made of a picture."""
    read = _read(_finding_record, value)
    if isinstance(read, Refusal):
        return read
    message, time_ms = read
    wrong = _wrong_finding(message)
    return Found(message.id, message.patient, time_ms, message) if wrong is None else wrong


def _wrong_finding(message: Finding) -> Refusal | None:
    """What types do not say: the names of models are bounded where a model is served, not in this message."""
    model = message.model
    if not 0 < len(model.name) <= _LONGEST_NAME:
        return Refusal("invalid-message", "$.model.name")
    if not 0 <= model.version <= _GREATEST_VERSION:
        return Refusal("invalid-message", "$.model.version")
    if len(model.digest) > _LONGEST_DIGEST:
        return Refusal("invalid-message", "$.model.digest")
    if not set(message.findings) <= {one.name for one in message.classes}:
        return Refusal("invalid-message", "$.findings")
    return None


_FORMATS: dict[bytes, _Read] = {
    b"application/json": _native,
    b"application/vnd.riskstream.vitals+json": _native,
    FEEDBACK_TYPE: _feedback,
    FINDING_TYPE: _found,
}
