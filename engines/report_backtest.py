"""A backtest's report as one HTML page, and its trade-off as a picture. Needs the extra `report`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engines import report, report_charts
from engines.report_charts import Marked
from engines.report_parts import Chart, Section, Table, number

Content = Mapping[str, Any]

COSTS = {
    "survivors_alerted": "survivors ever alerted",
    "alerts_per_patient_day": "alerts per patient-day",
}
"""What recall is drawn over."""

COLUMNS = {
    "recall": "recall",
    "survivors_alerted": "survivors alerted",
    "ppv_patients": "PPV by patient",
    "ppv_episodes": "PPV by episode",
    "patients_alerted": "patients alerted",
    "alerts_per_patient_day": "alerts per patient-day",
    "updates_per_patient_day": "updates per patient-day",
    "time_in_alert": "time in alert",
    "hours_in_alert": "hours in alert",
}

LEADS = {"hours_to_outcome": "first alert to outcome, h", "hours_to_record_end": "to last record, h"}


def write_page(content: Content, file: Path) -> None:
    """Write the page.

    Args:
        content: of `worker.backtest_content.made`.
        file: .html.
    """
    file.write_text(page(content), encoding="utf-8")


def page(content: Content) -> str:
    """The page, which needs no network and no script."""
    model, cohort = content["model"], content["cohort"]
    facts = [
        ("data", f"{content['source']['name']}, {content['source']['records']:,} records"),
        ("patients", f"{cohort['patients']:,}, {cohort['patient_days']:,.1f} patient-days"),
        ("outcome", _outcome(content)),
        ("risks", content["risks"]["words"]),
        ("made by", content["reproduce"]["command"]),
    ]
    title = f"Alert policies of {model['name']}, version {model['version']}: backtest"
    return report.rendered(title, facts, _verdict(content), [*_charts(content), *_tables(content)])


def write_plot(content: Content, file: Path) -> None:
    """Draw recall over each cost, side by side; without outcomes there is nothing to draw.

    Raises:
        DatasetError: the content has no outcomes.
    """
    if content["outcome"] is None:
        from engines.errors import DatasetError

        raise DatasetError("the trade-off needs outcomes of both kinds; give --outcomes, or leave out --plot")
    panels = [(words, *_points(content, cost)) for cost, words in COSTS.items()]
    model, cohort = content["model"], content["cohort"]
    report_charts.trade_offs(
        file,
        panels,
        f"{model['name']}/{model['version']} on {content['source']['name']}: "
        f"{cohort['patients']:,} patients, {cohort['events']:,} with the outcome",
    )


def _outcome(content: Content) -> str:
    if content["outcome"] is None:
        return "not known for patients of both kinds: figures that need it are left out"
    cohort = content["cohort"]
    return (
        f"{content['outcome']}: {cohort['events']:,} with, {cohort['without_event']:,} without, "
        f"{cohort['unknown']:,} unknown"
    )


def _verdict(content: Content) -> list[str]:
    said = []
    if content["risks"]["unseen"] is False:
        said.append(content["risks"]["words"])
    if content["chosen"] is not None:
        said.append(f"{content['rule']}: {_told(content['policies'][content['chosen']])}".capitalize())
    elif content["rule"] is not None:
        said.append(f"{content['rule']}: no policy that was tried".capitalize())
    if (held_out := content["held_out"]) is not None:
        told = _told(held_out, named=False)
        said.append(f"Chosen on all folds but one and judged on that one: {told}")
    if content["outcome"] is not None:
        said.append(f"As shipped: {_told(content['policies'][0])}")
        said += [f"{policy['name']}: {_told(policy, named=False)}" for policy in content["news2"]]
    return said


def _told(policy: Content, *, named: bool = True) -> str:
    told = f"{policy['name']}: " if named else ""
    return (
        f"{told}recall {policy['recall']:.3f}, survivors ever alerted {policy['survivors_alerted']:.3f}, "
        f"{policy['alerts_per_patient_day']:.2f} alerts per patient-day"
    )


def _charts(content: Content) -> list[Section]:
    if content["outcome"] is None:
        return []
    charts = []
    for cost, words in COSTS.items():
        tried, front, marked = _points(content, cost)
        alt = f"Recall over {words} of {len(content['policies'])} policies, NEWS2 beside them"
        svg = report_charts.trade_off(cost.replace("_", "-"), tried, front, marked, words, alt)
        charts.append(Chart(svg, f"Recall over {words}. Up and to the left is better."))
    return [Section("trade-off", "Trade-off", charts=charts)]


def _points(content: Content, cost: str) -> tuple[list[Marked], list[list[float]], list[Marked]]:
    """What was tried by persistence of its first level, the best of it, and what stands out."""
    by_persistence: dict[float, list[list[float]]] = {}
    for policy in content["policies"]:
        held = policy["policy"]["levels"][0]["persistence_s"]
        by_persistence.setdefault(held, []).append([policy[cost], policy["recall"]])
    tried = [Marked(f"held for {held / 3600:g} h", points) for held, points in sorted(by_persistence.items())]
    shipped = content["policies"][0]
    marked = [
        Marked("as shipped", [[shipped[cost], shipped["recall"]]]),
        Marked(
            "NEWS2",
            [[policy[cost], policy["recall"]] for policy in content["news2"]],
            ["at 5", "at 7", "its policy"],
        ),
    ]
    if content["chosen"] is not None:
        chosen = content["policies"][content["chosen"]]
        marked.append(Marked("chosen", [[chosen[cost], chosen["recall"]]]))
    return tried, _best(content["policies"], cost), marked


def _best(policies: Sequence[Content], cost: str) -> list[list[float]]:
    """Points that no other beats in recall at the same cost or less."""
    points = sorted([policy[cost], policy["recall"]] for policy in policies)
    best: list[list[float]] = []
    for point in sorted(points, key=lambda at: (at[0], -at[1])):
        if not best or point[1] > best[-1][1]:
            best.append(point)
    return best


def _tables(content: Content) -> list[Section]:
    policies = [*content["policies"], *content["news2"]]
    headings = ("policy", *COLUMNS.values(), *LEADS.values())
    rows = [
        [
            _name(content, at, policy),
            *(_figure(policy, column) for column in COLUMNS),
            *(_quartiles(policy[lead]) for lead in LEADS),
        ]
        for at, policy in enumerate(policies)
    ]
    levels = [
        [f"{_name(content, at, policy)}: {severity}", *(_figure(level, name) for name in list(COLUMNS)[:3])]
        for at, policy in enumerate(policies)
        for severity, level in policy["levels"].items()
    ]
    columns = ("level", *list(COLUMNS.values())[:3])
    return [
        Section("policies", "Policies", tables=[Table("Figures with 95% intervals", headings, rows)]),
        Section("levels", "Levels", tables=[Table("Alerts at the level or above", columns, levels)]),
        Section("meaning", "What the figures mean", details=content["figures"]),
    ]


def _name(content: Content, at: int, policy: Content) -> str:
    if at == content["chosen"]:
        return f"chosen: {policy['name']}"
    return f"as shipped: {policy['name']}" if policy["role"] == "shipped" else policy["name"]


def _figure(policy: Content, name: str) -> str:
    if policy[name] is None:
        return number(None)
    low, high = policy["intervals"][name]
    return f"{policy[name]:.3f} ({low:.3f}–{high:.3f})"


def _quartiles(hours: Mapping[str, Any] | None) -> str:
    if hours is None:
        return number(None)
    low, high = hours["quartiles"]
    return f"{hours['median']:.1f} ({low:.1f}–{high:.1f})"
