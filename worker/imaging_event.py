"""Bytes of a record of the imaging topic -> an imaging event, or why not. Pure; opens no picture."""

import re

import msgspec

from schemas.imaging import DicomwebImage, ImagingEvent
from worker.decode import Record, Refusal, milliseconds, path_of, repeats_keys
from worker.intake import Limits
from worker.normalise import plausible

_FORMATS = {b"application/json", b"application/vnd.riskstream.imaging+json"}

_KEYS = tuple(
    f'"{name}"'.encode()
    for name in (
        *ImagingEvent.__struct_fields__,
        *("type", "content", "path", "url", "rendered"),
    )
)
"""All keys that are read, of the event and of its image; no two share a name."""

_INSTANCE = re.compile(r"/instances/(?P<instance>[0-9][0-9.]{0,63})(?:/frames/(?P<frame>[1-9][0-9]{0,5}))?$")

_event = msgspec.json.Decoder(ImagingEvent)


def read_event(record: Record, limits: Limits) -> ImagingEvent | Refusal:
    """Decode one record, and check that its key is its patient and its time plausible.

    An inline picture of several megabytes takes milliseconds of CPU time: call it in a thread.
    """
    event = _decoded(record, limits)
    if isinstance(event, Refusal):
        return event
    if record.key != event.patient.encode():
        return Refusal("key-mismatch", "$.patient")
    if not plausible(milliseconds(event.time), record.timestamp, limits.past_ms, limits.future_ms):
        return Refusal("implausible-time", "$.time")
    return event


def _decoded(record: Record, limits: Limits) -> ImagingEvent | Refusal:
    for name, content_type in record.headers:
        form = (content_type or b"").split(b";")[0].strip().lower()
        if name == "content-type" and form and form not in _FORMATS:
            return Refusal("unsupported-content-type")
    if not record.value:
        return Refusal("empty")
    if len(record.value) > limits.record_bytes:
        return Refusal("too-large")
    return _read(record.value)


def _read(value: bytes) -> ImagingEvent | Refusal:
    try:
        event = _event.decode(value)
        if _may_repeat_keys(value) and repeats_keys(value):
            return Refusal("duplicate-key")
        milliseconds(event.time)
    except msgspec.ValidationError as error:
        return Refusal("invalid-message", path_of(error))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Refusal("invalid-json")
    except RecursionError:
        return Refusal("too-deep")
    except (OverflowError, ValueError):
        return Refusal("invalid-message")
    return event


def _may_repeat_keys(value: bytes) -> bool:
    """A quick test that is true for every message in which a key that is read stands twice."""
    return b"\\" in value or any(value.count(key) > 1 for key in _KEYS)


def instance_of(image: DicomwebImage) -> tuple[str, int | None]:
    """SOP instance UID and frame that a WADO-RS URL names; an empty UID where it names none."""
    found = _INSTANCE.search(image.url)
    if found is None:
        return "", None
    frame = found["frame"]
    return found["instance"], int(frame) if frame else None
