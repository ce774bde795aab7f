"""The message types accept what they promise, refuse the rest, and keep reading old messages."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from schemas.messages import (
    MAX_ACTIVATION_BYTES,
    MAX_OBSERVATIONS,
    Alert,
    AlertReference,
    BasisFinding,
    BasisInput,
    ClassProbability,
    DeadLetter,
    FeedbackAction,
    FeedbackRecord,
    Finding,
    ForecastPoint,
    ModelName,
    ModelReference,
    Observation,
    Rejection,
    Score,
    Source,
    TrendPoint,
    VitalsRecord,
)

FIXTURES = Path(__file__).parent / "fixtures"

OBSERVATION: dict[str, Any] = {"code": "8867-4", "value": 80}
RECORD: dict[str, Any] = {
    "event_id": "e-1",
    "patient": "p-1",
    "time": "2026-01-02T03:04:05Z",
    "observations": [OBSERVATION],
}
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
SOURCE = Source(cluster="c", topic="vitals", partition=3, offset=41)


def record(**changes: Any) -> bytes:
    return msgspec.json.encode({**RECORD, **changes})


def observation(**changes: Any) -> bytes:
    return record(observations=[{**OBSERVATION, **changes}])


def without(field: str) -> bytes:
    return msgspec.json.encode({key: value for key, value in RECORD.items() if key != field})


def test_a_minimal_record_gets_its_defaults() -> None:
    assert msgspec.json.decode(record(), type=VitalsRecord) == VitalsRecord(
        event_id="e-1",
        patient="p-1",
        time=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        observations=(
            Observation(code="8867-4", value=80.0, unit="", system="http://loinc.org", status="final"),
        ),
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "Input data was truncated"),
        (b"{", "Input data was truncated"),
        (b"\xff\xfe", "JSON is malformed: invalid character (byte 0)"),
        (record()[:-1], "Input data was truncated"),
        (record() + b"x", "JSON is malformed: trailing characters (byte 111)"),
        (b"[]", "Expected `object`, got `array`"),
        (b"null", "Expected `object`, got `null`"),
        (without("event_id"), "Object missing required field `event_id`"),
        (without("patient"), "Object missing required field `patient`"),
        (without("time"), "Object missing required field `time`"),
        (without("observations"), "Object missing required field `observations`"),
        (record(event_id=""), "Expected `str` of length >= 1 - at `$.event_id`"),
        (record(event_id="e" * 129), "Expected `str` of length <= 128 - at `$.event_id`"),
        (record(patient=7), "Expected `str`, got `int` - at `$.patient`"),
        (record(patient=None), "Expected `str`, got `null` - at `$.patient`"),
        (
            record(time="2026-01-02T03:04:05"),
            "Expected `datetime` with a timezone component - at `$.time`",
        ),
        (record(time="yesterday"), "Invalid RFC3339 encoded datetime - at `$.time`"),
        (record(time="2026-02-30T00:00:00Z"), "Invalid RFC3339 encoded datetime - at `$.time`"),
        (record(time=1767322800), "Expected `datetime`, got `int` - at `$.time`"),
        (record(observations=[]), "Expected `array` of length >= 1 - at `$.observations`"),
        (
            record(observations=[OBSERVATION] * (MAX_OBSERVATIONS + 1)),
            f"Expected `array` of length <= {MAX_OBSERVATIONS} - at `$.observations`",
        ),
        (record(observations={}), "Expected `array`, got `object` - at `$.observations`"),
        (observation(value="80"), "Expected `float`, got `str` - at `$.observations[0].value`"),
        (observation(value=None), "Expected `float`, got `null` - at `$.observations[0].value`"),
        (observation(code="x" * 65), "Expected `str` of length <= 64 - at `$.observations[0].code`"),
        (observation(unit="x" * 65), "Expected `str` of length <= 64 - at `$.observations[0].unit`"),
        (observation(system="x" * 129), "Expected `str` of length <= 128 - at `$.observations[0].system`"),
        (observation(status="draft"), "Invalid enum value 'draft' - at `$.observations[0].status`"),
        (
            observation(time="2026-01-02"),
            "Invalid RFC3339 encoded datetime - at `$.observations[0].time`",
        ),
        (record().replace(b"80", b"NaN"), "JSON is malformed: invalid character (byte 105)"),
        (record().replace(b"80", b"1e999"), "Number out of range - at `$.observations[0].value`"),
    ],
)
def test_a_bad_record_is_refused(value: bytes, message: str) -> None:
    with pytest.raises(msgspec.MsgspecError) as raised:
        msgspec.json.decode(value, type=VitalsRecord)
    assert str(raised.value) == message


def test_messages_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        SOURCE.offset = 1  # type: ignore[misc]


@pytest.mark.parametrize("kind", [VitalsRecord, Alert, Score, DeadLetter, FeedbackRecord, Finding])
@pytest.mark.parametrize("age", ["minimal", "full", "newer"])
def test_messages_of_every_age_decode(kind: type[msgspec.Struct], age: str) -> None:
    """`minimal` has only what version 1 required, `full` every field of it, `newer` also unknown fields."""
    decoded = msgspec.json.decode((FIXTURES / f"{kind.__name__}-v1-{age}.json").read_bytes(), type=kind)
    assert decoded == EXPECTED[kind][age]


FULL_RECORD = VitalsRecord(
    event_id="0198a2c4-7d1e-7c3a-9f50-1f2e3d4c5b6a",
    patient="p-1",
    time=NOON,
    observations=(
        Observation("8867-4", 96.0, "/min"),
        Observation("150456", 91.0, "%", "urn:iso:std:iso:11073:10101", NOON, "corrected"),
    ),
)
FULL_SCORE = Score(patient="p-1", time=NOON, risk=0.25, model="vitals", model_version=1, source=SOURCE)
MINIMAL_LETTER = DeadLetter(
    id="5f9c2b1e-0c7e-5d0a-8f38-9b0d6f6d7a10",
    reason="unknown-code",
    rejections=(Rejection("unknown-code"),),
    source=SOURCE,
    timestamp=NOON,
    size=3,
    sha256="ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    value=b"abc",
)
FULL_LETTER = msgspec.structs.replace(
    MINIMAL_LETTER,
    rejections=(Rejection("unknown-code", "$.observations[1].code"),),
    key=b"p-1",
    headers=(("content-type", b"application/json"),),
    accepted=1,
)


def alert(name: str) -> Alert:
    """The alert of a fixture, its values built here rather than read."""
    minimal = Alert(
        id="d0a0f7ef-64a3-5a55-9a5c-2f8f3a8b8f10",
        episode="c/vitals/3/41",
        sequence=0,
        transition="raised",
        patient="p-1",
        severity="high",
        time=NOON,
        raised_at=NOON,
        expires_at=datetime(2026, 1, 3, 0, tzinfo=UTC),
        risk=0.62,
        threshold=0.5,
        outcome="death in hospital",
        policy_version="1",
        model=ModelReference("vitals", 1, "0" * 64),
        backend="onnxruntime",
        source=SOURCE,
    )
    if name == "minimal":
        return minimal
    return msgspec.structs.replace(
        minimal,
        inputs=(
            BasisInput("heart_rate", "8867-4", 96.0, "/min", NOON, 0.0),
            BasisInput("age", "30525-0", 67.0, "a"),
        ),
        missing=("lactate",),
        trend=(TrendPoint(datetime(2026, 1, 2, 11, tzinfo=UTC), 0.4), TrendPoint(NOON, 0.62)),
    )


EXPLAINED = {
    Alert: msgspec.structs.replace(
        alert("full"),
        inputs=(
            BasisInput("heart_rate", "8867-4", 96.0, "/min", NOON, 0.0, 0.0425),
            BasisInput("age", "30525-0", 67.0, "a", contribution=-0.01),
        ),
        uncertainty=0.031,
        forecast=(ForecastPoint("heart_rate", 99.5, "/min", 3600.0, 96.0),),
    ),
    Score: msgspec.structs.replace(FULL_SCORE, uncertainty=0.031),
}


@pytest.mark.parametrize("kind", [Alert, Score])
def test_explained_messages_decode(kind: type[msgspec.Struct]) -> None:
    decoded = msgspec.json.decode((FIXTURES / f"{kind.__name__}-v1-explained.json").read_bytes(), type=kind)
    assert decoded == EXPLAINED[kind]


PICTURED = msgspec.structs.replace(
    alert("minimal"),
    risk=0.95,
    threshold=0.9,
    outcome="pneumonia",
    model=ModelReference("pneumonia", 2, "1" * 64),
    findings=(
        BasisFinding(
            "f-1",
            ModelReference("pneumonia", 2, "1" * 64),
            "pneumonia",
            NOON - timedelta(minutes=30),
            1800.0,
            0.95,
            (ClassProbability("pneumonia", 0.95),),
            "DX",
            "CHEST",
            "PA",
            ("low-contrast",),
        ),
    ),
)


def test_an_alert_of_a_picture_decodes() -> None:
    decoded = msgspec.json.decode((FIXTURES / "Alert-v1-pictured.json").read_bytes(), type=Alert)
    assert decoded == PICTURED


def feedback(action: FeedbackAction, **more: Any) -> FeedbackRecord:
    identifier = "5f0d0f6a-0000-5000-8000-000000000000"
    about = AlertReference(identifier, "c/vitals/3/41", 2, "escalated", NOON, ModelName("vitals"))
    return FeedbackRecord("f-1", "p-1", NOON + timedelta(minutes=5), about, action, **more)


DISMISSED = feedback("dismissed", reason="known-baseline", role="nurse")

MINIMAL_FINDING = Finding(
    id="0b9e6b0e-7f0b-5d58-8a27-5b1f0f3d9c11",
    patient="p-1",
    time=NOON,
    outcome="pneumonia",
    risk=0.75,
    classes=(ClassProbability("normal", 0.25), ClassProbability("pneumonia", 0.75)),
    findings=("pneumonia",),
    model=ModelReference("pneumonia", 1, "0" * 64),
    backend="onnxruntime",
    source=Source("c", "imaging", 3, 41),
    image_sha256="ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
)
FULL_FINDING = msgspec.structs.replace(
    MINIMAL_FINDING,
    modality="DX",
    body_part="CHEST",
    view="PA",
    quality=("low-contrast",),
    activation_png=b"\x89PNG\r\n\x1a\n",
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"risk": 1.5}, "Expected `float` <= 1.0 - at `$.risk`"),
        ({"classes": []}, "Expected `array` of length >= 1 - at `$.classes`"),
        (
            {"classes": [{"name": "", "probability": 1}]},
            "Expected `str` of length >= 1 - at `$.classes[0].name`",
        ),
        (
            {"classes": [{"name": "a", "probability": -0.1}]},
            "Expected `float` >= 0.0 - at `$.classes[0].probability`",
        ),
        ({"findings": ["a"] * 65}, "Expected `array` of length <= 64 - at `$.findings`"),
        ({"time": "2026-01-02T03:04:05"}, "Expected `datetime` with a timezone component - at `$.time`"),
        ({"image_sha256": "A" * 64}, "Expected `str` matching regex '^[0-9a-f]{64}$' - at `$.image_sha256`"),
        ({"quality": ["a"] * 33}, "Expected `array` of length <= 32 - at `$.quality`"),
        (
            {"activation_png": "A" * ((MAX_ACTIVATION_BYTES // 3 + 1) * 4)},
            f"Expected `bytes` of length <= {MAX_ACTIVATION_BYTES} - at `$.activation_png`",
        ),
        ({"activation_png": "%"}, "Invalid base64 encoded string - at `$.activation_png`"),
    ],
)
def test_a_bad_finding_is_refused(changes: dict[str, Any], message: str) -> None:
    told = msgspec.to_builtins(MINIMAL_FINDING) | changes
    with pytest.raises(msgspec.MsgspecError) as raised:
        msgspec.json.decode(msgspec.json.encode(told), type=Finding)
    assert str(raised.value) == message


EXPECTED: dict[type[msgspec.Struct], dict[str, msgspec.Struct]] = {
    VitalsRecord: {
        "minimal": msgspec.json.decode(record(time="2026-01-02T12:00:00Z"), type=VitalsRecord),
        "full": FULL_RECORD,
        "newer": FULL_RECORD,
    },
    Alert: {"minimal": alert("minimal"), "full": alert("full"), "newer": alert("full")},
    Score: dict.fromkeys(("minimal", "full", "newer"), FULL_SCORE),
    DeadLetter: {"minimal": MINIMAL_LETTER, "full": FULL_LETTER, "newer": FULL_LETTER},
    FeedbackRecord: {"minimal": feedback("acknowledged"), "full": DISMISSED, "newer": DISMISSED},
    Finding: {"minimal": MINIMAL_FINDING, "full": FULL_FINDING, "newer": FULL_FINDING},
}
