"""The model card in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from engines.card_facts import Facts
from schemas.model_card import REGULATION, Figure, ModelCard
from schemas.model_config import ModelConfig

HOURLY = {"auroc": "AUROC", "auprc": "AUPRC", "event1": "event 1", "brier": "Brier", "ece": "ECE"}
HELD_OUT = "validation, the served model"
"""How the figures of an image model on its validation pictures are named."""

POLICY = "## Alert policy"

LAST = {"auprc": "AUPRC", "event1": "event 1"}
PICTURES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "accuracy": "accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "brier": "Brier",
    "ece": "ECE",
}
GROUPED = {"auroc": "AUROC", "sensitivity": "sensitivity", "specificity": "specificity", "ece": "ECE"}


def markdown(card: ModelCard, config: ModelConfig, evaluation: Mapping[str, Any], facts: Facts) -> str:
    """The card for people: `card` is made of the other three, which give what it has no room for."""
    parts = [
        f"# {card.model}, version {card.version}: {facts.title}",
        f"**{card.warning}**",
        _table(("", ""), _summary(card, config, facts)),
        "## Intended use",
        _bullets(
            (
                f"For: {facts.intended_use}",
                f"Patients: {facts.intended_population}",
                f"Users: {facts.intended_users}",
                f"Role: {facts.decision_role}",
            )
        ),
        "Not for:",
        _bullets(facts.cautioned),
        "## Data",
        f"{facts.criteria} {facts.relevance}",
        _counted(evaluation),
        _bullets(facts.attribution),
        "## How it was judged",
        f"{evaluation['method'].rstrip('.')}. Figures in brackets are 95% intervals; `evaluation.json` "
        "defines each figure and holds more of them, `evaluation.html` shows them.",
        *facts.judged,
        *(_series(card, evaluation) if "hours" in evaluation else _pictures(card, evaluation)),
        *_groups(card),
        POLICY,
        *policy_parts(config, evaluation),
        "## What the choices rest on",
        _bullets(facts.informed_by),
        *_tried(facts),
        "## Limits",
        _bullets(facts.limits),
        "## Fairness",
        f"{facts.fairness} {facts.bias}",
        "## Reproduction",
        facts.reproduced,
        _command(evaluation),
        "## Source attributes",
        f"`model_card.json` gives the {len(card.source_attributes)} source attributes of {REGULATION} by "
        "number. It claims no certification. Nothing can be reported yet on:",
        _bullets(f"{a.number} {a.name}: {a.text}" for a in card.source_attributes if not a.available),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def ranged(figure: Figure) -> str:
    """A figure with its interval."""
    if figure.low is None or figure.high is None:
        return f"{figure.value:.3f}"
    return f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})"


def _summary(card: ModelCard, config: ModelConfig, facts: Facts) -> list[tuple[str, str]]:
    if config.image is not None:
        reads = f"a picture of {config.image.width} x {config.image.height} pixels"
    else:
        reads = f"{len(config.features)} features, named in `config.json`; any may be missing"
    return [
        ("predicts", next(a.text for a in card.source_attributes if a.number == "(1)(iii)")),
        ("outcome", card.outcome),
        ("reads", reads),
        ("form", facts.form),
        ("inside the graph", facts.inside),
        ("digest", f"`{card.digest}`"),
    ]


def _counted(evaluation: Mapping[str, Any]) -> str:
    judged = list(evaluation["hours"].values())[-1] if "hours" in evaluation else evaluation["judged"]
    return f"Judged on {judged['n']:,} cases, {judged['positives']:,} of them with the outcome."


def _command(evaluation: Mapping[str, Any]) -> str:
    """The command and the versions behind the evaluation, where it tells them."""
    made = evaluation.get("reproduce")
    if not made:
        return ""
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    return f"Made by `{made['command']}` with {versions}, on {made['machine']}."


def _series(card: ModelCard, evaluation: Mapping[str, Any]) -> list[str]:
    hours = list(evaluation["hours"])
    rows = [(hour, *_cells(card.performance, f"{hour} h", HOURLY)) for hour in hours]
    parts = [
        _table(("hour", *HOURLY.values()), rows),
        f"Event 1 is the smaller of sensitivity and positive predictivity at the threshold "
        f"{evaluation['event1_threshold']:g}.",
    ]
    if evaluation.get("baselines"):
        last = (f"{words} at {hours[-1]} h" for words in LAST.values())
        columns = ("", *(f"AUROC at {hour} h" for hour in hours), *last)
        parts += ["### Beside simpler models", _table(columns, _beside(evaluation))]
    parts += [_bullets(evaluation.get("verdict", ()))]
    return [*parts, *_forecast(evaluation)]


def _beside(evaluation: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows = [("this model", evaluation["hours"])]
    rows += [(simpler["title"], simpler["hours"]) for simpler in evaluation["baselines"].values()]
    last = list(evaluation["hours"])[-1]
    return [
        (
            title,
            *(_cell(hours.get(hour, {}), "auroc") for hour in evaluation["hours"]),
            *(_cell(hours.get(last, {}), name) for name in LAST),
        )
        for title, hours in rows
    ]


def _cell(judged: Mapping[str, Any], name: str) -> str:
    return f"{judged[name]:.3f}" if name in judged else ""


def _forecast(evaluation: Mapping[str, Any]) -> list[str]:
    features = evaluation.get("forecast")
    if not features:
        return []
    rows = [
        (
            name.replace("_", " "),
            f"{found['mae']:.3g}",
            f"{found['carried_forward_mae']:.3g}",
            found["unit"],
            f"{found['n']:,}",
        )
        for name, found in features.items()
        if "mae" in found
    ]
    columns = ("feature", "mean absolute error", "last value carried forward", "unit", "hours")
    return ["### Forecast of the next hour", _table(columns, rows)]


def _pictures(card: ModelCard, evaluation: Mapping[str, Any]) -> list[str]:
    at = f"threshold {evaluation['threshold']:g}"
    names = {name: words for name, words in PICTURES.items() if name in evaluation["judged"]}
    sets = {"as said above": at, HELD_OUT: f"{at}, {HELD_OUT}"}
    known = {figure.at for figure in card.performance}
    rows = [(words, *_cells(card.performance, key, names)) for words, key in sets.items() if key in known]
    parts = [_table((at, *names.values()), rows)]
    confusion = evaluation.get("confusion")
    if confusion:
        classes = list(confusion)
        rows = [(name, *(f"{confusion[name][other]:,}" for other in classes)) for name in classes]
        parts.append(_table(("is, down; most probable, across", *classes), rows))
    return parts


def _groups(card: ModelCard) -> list[str]:
    if not card.fairness:
        return []
    rows = []
    for group in card.fairness:
        at = group.figures[0].at if group.figures else ""
        label = group.group if group.group.startswith(group.by) else f"{group.by}: {group.group}"
        rows.append((label, f"{group.n:,}", f"{group.positives:,}", *_cells(group.figures, at, GROUPED)))
    return ["### By group", _table(("group", "cases", "with the outcome", *GROUPED.values()), rows)]


def policy_parts(config: ModelConfig, evaluation: Mapping[str, Any]) -> list[str]:
    """The paragraphs under `POLICY`."""
    policy, found = config.policy, evaluation.get("policy", {})
    shares = {
        "recall": "of those with the outcome, alerted on",
        "precision": "of those alerted on, with the outcome",
        "survivors_alerted": "survivors alerted on",
    }
    shown = {key: words for key, words in shares.items() if any(key in point for point in found.values())}
    rows = [
        (
            level.severity,
            f"{level.enter:g}",
            f"{level.persistence_s / 60:g} min",
            *(_share(found.get(level.severity, {}).get(key)) for key in shown),
        )
        for level in policy.levels
    ]
    return [
        f"Version {policy.version}. An episode resolves below {policy.exit:g} after "
        f"{policy.resolve_s / 3600:g} h; after an alert only a rise in severity alerts again within "
        f"{policy.refractory_s / 3600:g} h.",
        _table(("level", "enters at", "held for", *shown.values()), rows),
        *([f"{basis.rstrip('.')}."] if (basis := evaluation.get("policy_basis")) else []),
    ]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _tried(facts: Facts) -> list[str]:
    if not facts.tried:
        return []
    return ["### Tried and not shipped", _bullets(facts.tried)]


def _cells(figures: Sequence[Figure], at: str, names: Mapping[str, str]) -> list[str]:
    known = {figure.figure: ranged(figure) for figure in figures if figure.at == at}
    return [known.get(name, "") for name in names]


def _bullets(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
