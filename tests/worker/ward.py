"""Scores, alerts and findings as they would be published, for the tests of the ward page."""

import io
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from PIL import Image

from schemas.messages import (
    Alert,
    BasisInput,
    ClassProbability,
    EarlyWarning,
    Finding,
    ModelReference,
    Score,
    Source,
    Transition,
)
from schemas.news2 import Part

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
HOUR_MS = 3_600_000
NOON_MS = round(NOON.timestamp() * 1000)

PARTS = (Part("heart_rate", 3, 3), Part("temperature", 0, 3, missing=True))
PARTIAL = EarlyWarning(3, 6, False, "low-medium", 1, ("heart_rate",), PARTS, missing=("temperature",))


def at(hours: float) -> datetime:
    """Noon and so many hours."""
    return NOON + timedelta(hours=hours)


def vital(feature: str, value: float, hours: float, contribution: float | None = None) -> BasisInput:
    return BasisInput(feature, "", value, "/min", at(hours), 0.0, contribution)


def score(patient: str, risk: float, hours: float = 0.0, offset: int = 0, **more: Any) -> Score:
    return Score(patient, at(hours), risk, "vitals", 1, Source("c", "vitals", 0, offset), 0.05, **more)


def alert(
    patient: str, transition: Transition = "raised", sequence: int = 0, hours: float = 0.0, **more: Any
) -> Alert:
    """An alert of the model's; of episode 7, raised at noon, unless `more` says otherwise."""
    made = Alert(
        id=f"{patient}-{sequence}-{transition}",
        episode="c/vitals/0/7",
        sequence=sequence,
        transition=transition,
        patient=patient,
        severity="high",
        time=at(hours),
        raised_at=NOON,
        expires_at=at(hours + 12),
        risk=0.61,
        threshold=0.51,
        outcome="in-hospital death",
        policy_version="3",
        model=ModelReference("vitals", 1, "d" * 64),
        backend="onnxruntime-cpu",
        source=Source("c", "vitals", 0, 7),
        inputs=(vital("heart_rate", 131.0, hours, 0.21), vital("lactate", 9.1, hours, -0.4)),
        missing=("troponin_t",),
        uncertainty=0.1,
    )
    return msgspec.structs.replace(made, **more)


def warning(patient: str, transition: Transition = "raised", sequence: int = 0, **more: Any) -> Alert:
    """An alert of NEWS2's own, on an incomplete set."""
    own: dict[str, Any] = {
        "model": ModelReference("news2", 1, "n" * 64),
        "risk": None,
        "points": 5.0,
        "threshold": 5.0,
        "severity": "medium",
        "news2": PARTIAL,
        "uncertainty": None,
        "missing": (),
    }
    return alert(patient, transition, sequence, **(own | more))


def picture(side: int = 64) -> bytes:
    """A PNG: a grey film with a warm spot where a model might have looked."""
    spot = Image.radial_gradient("L").resize((side, side)).point(lambda value: 255 - value)
    film = Image.linear_gradient("L").resize((side, side))
    made = io.BytesIO()
    Image.merge("RGB", (spot, film.point(lambda value: value // 2), film)).save(made, "PNG")
    return made.getvalue()


def finding(patient: str, name: str = "f-1", hours: float = 0.0, **more: Any) -> Finding:
    """A finding of an imaging model on a chest film, taken so many hours after noon."""
    made = Finding(
        id=name,
        patient=patient,
        time=at(hours),
        outcome="pneumonia",
        risk=0.87,
        classes=(ClassProbability("normal", 0.13), ClassProbability("pneumonia", 0.87)),
        findings=("pneumonia",),
        model=ModelReference("pneumonia", 2, "e" * 64),
        backend="onnxruntime-cpu",
        source=Source("c", "imaging", 0, 3),
        image_sha256="a" * 64,
        modality="DX",
        body_part="CHEST",
        view="PA",
    )
    return msgspec.structs.replace(made, **more)
