"""The parts of a page that every model has: what was judged, the model card, how to make it again."""

from collections.abc import Mapping
from typing import Any

from engines.report_parts import Section, Table

Content = Mapping[str, Any]


def facts(evaluation: Content) -> list[tuple[str, str]]:
    """What stands at the top, as (name, words)."""
    model, data = evaluation.get("model", {}), evaluation.get("data", {})
    found = [
        ("predicts", model.get("outcome")),
        ("model", f"{model.get('name')} {model.get('version')}, SHA-256 {str(model.get('digest'))[:16]}…"),
        ("method", evaluation.get("method")),
        ("data", _data(data)),
        ("computed by", evaluation.get("backend")),
    ]
    return [(name, str(words)) for name, words in found if words]


def _data(data: Content) -> str:
    counts = [
        f"{data[name]:,} {name.replace('_', ' ')}"
        for name in ("stays", "images", "judged", "deaths")
        if name in data
    ]
    digest = f"SHA-256 {str(data['digest'])[:16]}…" if data.get("digest") else ""
    return ", ".join(filter(None, (str(data.get("name") or data.get("source") or ""), *counts, digest)))


def sections(evaluation: Content, card: Content | None) -> list[Section | None]:
    """Every part that the evaluation or the card has something for."""
    return [
        _details("tried", "Tried and rejected", evaluation.get("tried")),
        _details("card", "Model card", card),
        _details("reproduce", "How to reproduce", _reproduce(evaluation)),
        _definitions(evaluation),
    ]


def _details(anchor: str, title: str, content: Any) -> Section | None:
    return Section(anchor, title, details=content) if content else None


def _reproduce(evaluation: Content) -> dict[str, Any]:
    found = dict(evaluation.get("reproduce") or {})
    model, data = evaluation.get("model", {}), evaluation.get("data", {})
    found["digest of the model (SHA-256)"] = model.get("digest")
    found["digest of the data (SHA-256)"] = data.get("digest")
    return {name: value for name, value in found.items() if value}


def _definitions(evaluation: Content) -> Section | None:
    metrics = evaluation.get("metrics")
    if not metrics:
        return None
    rows = [[name.replace("_", " "), str(words)] for name, words in metrics.items()]
    return Section(
        "definitions",
        "What the figures mean",
        tables=[Table("Definitions", ("figure", "meaning"), rows)],
    )
