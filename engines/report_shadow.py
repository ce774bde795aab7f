"""A shadow's report as one HTML page. Needs the extra `report`."""

from collections.abc import Mapping
from typing import Any

from engines import report
from engines.report_agreement import agreement
from engines.report_parts import Chart, Section, Table, number, signed

Content = Mapping[str, Any]

VOICES = {"model": "the model", "news2": "NEWS2"}


def page(content: Content) -> str:
    """The page, which needs no network and no script.

    Args:
        content: what `riskstream shadow --report` writes.
    """
    sections = [*_scores(content), *_alerts(content["alerts"]), _sides(content)]
    sections += [
        Section("meaning", "What the figures mean", details=content["figures"]),
        Section("reproduce", "How to reproduce", details=content["reproduce"]),
    ]
    title = f"{content['model']}: version {content['shadow']['version']} as a shadow"
    return report.rendered(title, _facts(content), _verdict(content), sections)


def _facts(content: Content) -> list[tuple[str, str]]:
    period = content["input"]
    bounds = [f"{word} {period[word]}" for word in ("from", "to") if period[word]]
    alerts, scores = content["alerts"], content["scores"]
    return [
        ("input", f"{period['topic']}, {' '.join(bounds) or 'all that its topics hold'}"),
        ("served", _versions(content["served"])),
        ("shadow", f"version {content['shadow']['version']}"),
        ("records compared", "none: alerts alone" if scores is None else f"{scores['compared']:,}"),
        ("patients", f"{alerts['patients']:,}, {alerts['patient_days']:,.1f} patient-days"),
    ]


def _versions(side: Content) -> str:
    found = [f"version {version} ({count:,} scores)" for version, count in side["scores_by_version"].items()]
    return ", ".join(found) or ", ".join(f"version {model['version']}" for model in side["models"]) or "–"


def _verdict(content: Content) -> list[str]:
    said = list(content["notes"])
    if content["scores"] is not None:
        apart = content["scores"]["difference"]
        said.append(
            f"The shadow's risks differ from the served ones by {signed(apart['mean'])} on average, half of "
            f"them by less than {apart['p50_absolute']:.3f}, one in a hundred by more than "
            f"{apart['p99_absolute']:.3f}."
        )
    model = content["alerts"]["model"]
    episodes = model["episodes"]
    said.append(
        f"Of the model's episodes {episodes['both']:,} are of both, {episodes['only_served']:,} of the "
        f"served version alone, {episodes['only_shadow']:,} of the shadow alone."
    )
    if model["lead_hours"] is not None:
        lead = model["lead_hours"]
        said.append(
            f"Of those of both, the shadow raised {lead['shadow_earlier']:,} earlier, "
            f"{lead['shadow_later']:,} later and {lead['same']:,} at the same time."
        )
    return said


def _scores(content: Content) -> list[Section]:
    scores = content["scores"]
    if scores is None:
        return []
    levels: dict[str, list[float]] = {}
    for level in scores["decisions"]:
        levels.setdefault(level["policy"], []).append(level["enter"])
    words = (
        f"{scores['compared']:,} records by their served risk and the shadow's, darker for more. Dashed: the "
        "levels of the served policy; dotted: of the shadow's"
    )
    chart = Chart(agreement("agreement", scores["grid"], levels, words), f"{words}.")
    counts = [[f"{scores[name]:,}" for name in _COUNTS]]
    apart = [[name.replace("_", " "), _figure(value)] for name, value in scores["difference"].items()]
    decided = [
        [f"{level['policy']}: {level['severity']}", f"{level['enter']:g}", *(f"{level[n]:,}" for n in _SIDES)]
        for level in scores["decisions"]
    ]
    return [
        Section(
            "risks",
            "Risks",
            charts=[chart],
            tables=[
                Table("Records", tuple(_COUNTS.values()), counts),
                Table("The shadow's risk less the served one", ("", ""), apart),
            ],
        ),
        Section(
            "decisions",
            "Decisions",
            text=(
                "How many records reach a level by the served risk, by the shadow's, by both; before "
                "persistence, refractory time and changes of policies.",
            ),
            tables=[Table("Levels of both policies", ("level", "enter", *_SIDES.values()), decided)],
        ),
    ]


_COUNTS = {
    "compared": "compared",
    "only_served": "only served",
    "only_shadow": "only the shadow",
    "outside_served": "served, not reached by both",
    "outside_shadow": "the shadow's, not reached by both",
}

_SIDES = {
    "both": "both",
    "only_served": "only served",
    "only_shadow": "only the shadow",
    "neither": "neither",
}


def _figure(value: float | None) -> str:
    return f"{value:,}" if isinstance(value, int) else number(value, 6)


def _alerts(alerts: Content) -> list[Section]:
    rows, episodes = [], []
    for voice, name in VOICES.items():
        for side in ("served", "shadow"):
            found = alerts[voice][side]
            counts = (f"{found['transitions'].get(transition, 0):,}" for transition in _TRANSITIONS)
            rates = (number(found[rate]) for rate in ("alerts_per_patient_day", "raised_per_patient_day"))
            rows.append([f"{name}, {side}", *counts, *rates])
        counted = (f"{count:,}" for count in alerts[voice]["episodes"].values())
        episodes.append([name, *counted, *_lead(alerts[voice]["lead_hours"])])
    headings = ("", *_TRANSITIONS, "alerts per patient-day", "raised per patient-day")
    matched = ("", "both", "only served", "only the shadow", "carried over")
    timed = ("shadow earlier", "same", "later", "earlier by, h (quartiles)")
    return [
        Section(
            "alerts",
            "Alerts",
            text=(
                "NEWS2 runs beside both: where its episodes differ, the two did not see the same patients.",
            ),
            tables=[
                Table("Alerts", headings, rows),
                Table("Episodes, matched by patient and time", (*matched, *timed), episodes),
            ],
        )
    ]


_TRANSITIONS = ("raised", "escalated", "updated", "resolved", "expired")


def _lead(lead: Content | None) -> list[str]:
    if lead is None:
        return ["–"] * 4
    low, high = lead["quartiles"]
    hours = f"{signed(lead['median'], 2)} ({signed(low, 2)} to {signed(high, 2)})"
    return [*(f"{lead[name]:,}" for name in ("shadow_earlier", "same", "shadow_later")), hours]


def _sides(content: Content) -> Section:
    rows = []
    for side in ("served", "shadow"):
        found = content[side]
        models = (f"{model['version']}, SHA-256 {model['digest'][:16]}…" for model in found["models"])
        names = (", ".join(found[kind]) or "–" for kind in ("backends", "policy_versions"))
        rows.append([side, _versions(found), "; ".join(models) or "–", *names])
    headings = ("", "scores", "models of its alerts", "backends", "policy versions")
    return Section(
        "sides", "Who spoke", tables=[Table("As scores and alerts name them", headings, rows, True)]
    )
