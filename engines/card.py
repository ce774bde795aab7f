"""The model card, for machines and for people: `model_card.json` and `MODEL_CARD.md` of a model folder.

    write(folder, config, evaluation, facts)

Figures come from the evaluation, what the model reads from its config; `Facts` holds what neither can know.
What does not exist is said to be absent.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engines import card_text
from engines.card_facts import Facts
from engines.evaluate import pretty
from engines.repository import CARD, MODEL_CARD
from schemas.model_card import (
    ATTRIBUTES,
    VARIABLES,
    Figure,
    Group,
    ModelCard,
    SourceAttribute,
    VariableUse,
)
from schemas.model_config import ModelConfig

WARNING = "Not for clinical use without local validation. No hospital has tried this model."

NAMES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "event1": "event 1",
    "accuracy": "accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "positive_predictivity": "positive predictivity",
    "brier": "Brier score",
    "ece": "ECE",
}
"""Figures of the card, in words."""

GROUP_FIGURES = ("auroc", "sensitivity", "specificity", "ece")
"""Figures in which groups are compared: ranking, who is found, who is alarmed in vain, calibration."""

USES = {
    "sex": ("(A)(10)", "an input, male or female as recorded"),
    "age": ("(A)(11)", "an input as age in years; the date itself is not"),
    "gcs": ("(A)(13)", "of these, the Glasgow Coma Scale alone: the level of consciousness as last assessed"),
}
"""Input feature -> the variable of the rule that it comes from, and how it is used."""


def write(folder: Path, config: ModelConfig, evaluation: Mapping[str, Any], facts: Facts) -> None:
    """Write both cards into a model's folder.

    Args:
        folder: of the model.
        config: as in its config.json.
        evaluation: the content of its evaluation.json.
        facts: the rest.
    """
    card = model_card(config, evaluation, facts)
    (folder / MODEL_CARD).write_bytes(pretty(card))
    (folder / CARD).write_text(card_text.markdown(card, config, evaluation, facts))


def model_card(config: ModelConfig, evaluation: Mapping[str, Any], facts: Facts) -> ModelCard:
    """The card for machines; arguments as in `write`."""
    performance, fairness = tuple(_performance(evaluation)), tuple(_fairness(evaluation))
    variables = tuple(_variables(config))
    known = _present(config, evaluation, facts, performance, fairness, variables) | _absent(fairness)
    return ModelCard(
        model=config.name,
        version=config.version,
        digest=config.digest,
        kind=config.kind,
        outcome=config.outcome,
        warning=WARNING,
        source_attributes=tuple(
            SourceAttribute(number, category, name, *known[number])
            for category, names in ATTRIBUTES.items()
            for number, name in names.items()
        ),
        variables=variables,
        performance=performance,
        fairness=fairness,
        informed_by=facts.informed_by,
        tried=facts.tried,
        attribution=facts.attribution,
    )


Answer = tuple[bool, str]
"""Whether there is anything to report, and the text."""


def _present(
    config: ModelConfig,
    evaluation: Mapping[str, Any],
    facts: Facts,
    performance: tuple[Figure, ...],
    fairness: tuple[Group, ...],
    variables: tuple[VariableUse, ...],
) -> dict[str, Answer]:
    """Attributes that there is something to say of, by number."""
    uses = "; ".join(f"{use.variable}: {use.text}" for use in variables)
    texts = {
        "(1)(i)": facts.developer,
        "(1)(iii)": " ".join(filter(None, (facts.output_value, _forecasts(config)))),
        "(1)(iv)": facts.output_type,
        "(2)(i)": facts.intended_use,
        "(2)(ii)": facts.intended_population,
        "(2)(iii)": facts.intended_users,
        "(2)(iv)": facts.decision_role,
        "(3)(i)": _sentences(facts.cautioned),
        "(3)(ii)": _sentences(facts.limits),
        "(4)(i)": facts.criteria,
        "(4)(ii)": f"{uses}. All inputs: {_inputs(config)}",
        "(4)(iii)": " ".join(filter(None, (facts.representativeness, _counts(fairness)))),
        "(4)(iv)": facts.relevance,
        "(5)(i)": facts.fairness,
        "(5)(ii)": facts.bias,
        "(7)(i)": f"{_listed(performance)}. How judged: {evaluation['method'].rstrip('.')}.",
        "(9)(i)": facts.updating,
        "(9)(ii)": facts.correcting,
    }
    return {number: (True, text) for number, text in texts.items()}


def _absent(fairness: tuple[Group, ...]) -> dict[str, Answer]:
    """Attributes that nobody has anything to report on yet, with what a hospital can do about it."""
    local = (
        "The developer has no local data. `riskstream model evaluate` judges the model on a hospital's own "
        "cases, with intervals, calibration and groups, and is meant to be run before any use"
    )
    monitoring = (
        "The developer monitors no deployment: there is none known. The worker counts and times what it "
        "scores; a hospital must judge the model on its own outcomes again, at an interval that it sets"
    )
    absent = {
        "(1)(ii)": "No funding source is recorded",
        "(6)(i)": "None: the model has not been validated on any other source than that of its training data",
        "(6)(ii)": "None: there has been no external testing",
        "(6)(iii)": "None: there are no external data",
        "(6)(iv)": "None: there has been no external validation",
        "(7)(iii)": "Not available: there are no external data",
        "(7)(iv)": "Not available: there are no external data",
        "(7)(v)": "None: use of the model has not been evaluated on outcomes",
        "(8)(i)": monitoring,
        "(8)(ii)": local,
        "(8)(iii)": monitoring,
        "(8)(iv)": local,
    }
    found: dict[str, Answer] = {number: (False, text) for number, text in absent.items()}
    judged = [group for group in fairness if group.figures]
    if judged:
        found["(7)(ii)"] = True, f"{_by_group(judged)}. Groups with too few cases to judge are counted alone"
    else:
        found["(7)(ii)"] = False, "Not available: the data tell no groups of patients apart"
    return found


def _performance(evaluation: Mapping[str, Any]) -> Iterator[Figure]:
    """Figures of a series model by hour, of an image model at its threshold."""
    if "hours" in evaluation:
        for hour, judged in evaluation["hours"].items():
            yield from _figures(judged, f"{hour} h", NAMES)
    else:
        at = f"threshold {evaluation['threshold']:g}"
        yield from _figures(evaluation["judged"], at, NAMES)
        if "validation" in evaluation:
            yield from _figures(evaluation["validation"], f"{at}, {card_text.HELD_OUT}", NAMES)


def _fairness(evaluation: Mapping[str, Any]) -> Iterator[Group]:
    at = f"{list(evaluation['hours'])[-1]} h" if "hours" in evaluation else "all"
    for group in evaluation.get("subgroups", ()):
        judged = group["judged"]
        figures = tuple(_figures(judged, at, GROUP_FIGURES)) if judged else ()
        yield Group(group["by"], group["group"], group["n"], group["positives"], figures)


def _figures(judged: Mapping[str, Any], at: str, names: Any) -> Iterator[Figure]:
    intervals = judged.get("intervals", {})
    for name in names:
        if name in judged:
            yield Figure(name, at, judged[name], *intervals.get(name, (None, None)))


def _variables(config: ModelConfig) -> Iterator[VariableUse]:
    used = dict(USES[name] for name in config.features if name in USES)
    for number, variable in VARIABLES.items():
        yield VariableUse(number, variable, number in used, used.get(number, "not an input"))


def _forecasts(config: ModelConfig) -> str:
    if config.forecast is None:
        return ""
    names = ", ".join(name.replace("_", " ") for name in config.forecast.features)
    return f"Beside it, forecasts {config.forecast.horizon_s / 3600:g} h ahead, without alerts: {names}."


def _inputs(config: ModelConfig) -> str:
    if config.image is not None:
        colours = "grey" if config.image.channels == 1 else "red, green and blue"
        return f"one picture of {config.image.width} x {config.image.height} pixels, {colours}"
    return ", ".join(config.features)


def _counts(groups: tuple[Group, ...]) -> str:
    """How many cases are in each group."""
    by: dict[str, list[str]] = {}
    for group in groups:
        by.setdefault(group.by, []).append(f"{group.group} {group.n:,}")
    return " ".join(f"By {name}: {', '.join(found)}." for name, found in by.items())


def _by_group(groups: list[Group]) -> str:
    return "; ".join(
        f"{group.by} {group.group} (n {group.n:,}): {_listed(group.figures)}" for group in groups
    )


def _listed(figures: tuple[Figure, ...]) -> str:
    """Figures in words, such as `at 48 h AUROC 0.850 (0.833 to 0.866), ...`."""
    by: dict[str, list[str]] = {}
    for figure in figures:
        by.setdefault(figure.at, []).append(f"{NAMES[figure.figure]} {card_text.ranged(figure)}")
    return "; ".join(f"at {at} {', '.join(found)}" for at, found in by.items())


def _sentences(items: tuple[str, ...]) -> str:
    return " ".join(item if item.endswith(".") else f"{item}." for item in items)
