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
    card = card or {}
    return [
        _details("informed", "What the choices rest on", card.get("informed_by")),
        _details("tried", "Tried and rejected", card.get("tried")),
        _attributes(card),
        _variables(card),
        _details("attribution", "Sources", card.get("attribution")),
        _details("reproduce", "How to reproduce", _reproduce(evaluation)),
        _definitions(evaluation),
    ]


def _details(anchor: str, title: str, content: Any) -> Section | None:
    return Section(anchor, title, details=content) if content else None


def _attributes(card: Content) -> Section | None:
    """The source attributes of `schemas.model_card`, a table for each category."""
    attributes = card.get("source_attributes")
    if not attributes:
        return None
    categories = dict.fromkeys(attribute["category"] for attribute in attributes)
    tables = [
        Table(
            category,
            ("", "attribute", "answer"),
            [
                [attribute["number"], attribute["name"], _answer(attribute)]
                for attribute in attributes
                if attribute["category"] == category
            ],
            prose=True,
        )
        for category in categories
    ]
    text = [
        f"The source attributes that {card.get('regulation', 'the rule')} asks of a predictive decision "
        "support intervention. They are given here; no certification is claimed."
    ]
    return Section("card", "Model card", text, tables=tables)


def _answer(attribute: Content) -> str:
    return str(attribute["text"]) if attribute["available"] else f"Not available. {attribute['text']}"


def _variables(card: Content) -> Section | None:
    variables = card.get("variables")
    if not variables:
        return None
    rows = [
        [use["number"], use["variable"], "yes" if use["used"] else "no", use["text"]] for use in variables
    ]
    headings = ("", "variable", "is an input", "how")
    table = Table("Variables that the rule names", headings, rows, prose=True)
    return Section("variables", "Personal variables as inputs", tables=[table])


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
        tables=[Table("Definitions", ("figure", "meaning"), rows, prose=True)],
    )
