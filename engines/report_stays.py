"""The parts of a page that are about a series model: hours, baselines, subgroups, missing channels."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from engines.report_parts import (
    FIGURES,
    Chart,
    Section,
    Table,
    bounds,
    chart_words,
    curves,
    difference,
    number,
    signed,
    with_interval,
)

Content = Mapping[str, Any]

MAIN = ("auroc", "auprc", "event1", "sensitivity", "positive_predictivity", "brier", "ece")


def sections(evaluation: Content, draw: ModuleType) -> list[Section | None]:
    """Every part that the evaluation has something for.

    Args:
        evaluation: of `evaluate.assess`.
        draw: `engines.report_charts`, handed in so that this module imports without its extra.
    """
    return [
        _figures(evaluation),
        _discrimination(evaluation, draw),
        _calibration(evaluation, draw),
        _over_time(evaluation, draw),
        _decision(evaluation, draw),
        _baselines(evaluation, draw),
        subgroups(evaluation, draw),
        _robustness(evaluation, draw),
        _forecast(evaluation),
        _policy(evaluation),
    ]


def _last(evaluation: Content) -> tuple[str, Content]:
    """The latest hour that was judged."""
    hour, judged = list(evaluation["hours"].items())[-1]
    return hour, judged


def _figures(evaluation: Content) -> Section:
    rows = [
        [f"{hour} h", *(with_interval(judged, figure) for figure in MAIN)]
        for hour, judged in evaluation["hours"].items()
    ]
    tables = [Table("Figures with 95% intervals", ("hour", *(FIGURES[name] for name in MAIN)), rows)]
    expected = evaluation.get("expected")
    if expected:
        names = ("auroc", "auprc", "event1", "ece")
        beside = [
            [f"{hour} h", *(f"{number(judged[name])} / {number(expected[hour].get(name))}" for name in names)]
            for hour, judged in evaluation["hours"].items()
            if hour in expected
        ]
        headings = ("hour", *(FIGURES[name] for name in names))
        tables.append(Table("Here / when the model was made", headings, beside))
    text = [
        "Hour h is the risk from what was measured in the first h hours of the stay. Event 1 is the smaller "
        f"of sensitivity and positive predictivity at the threshold {evaluation['event1_threshold']:g}, "
        "fixed beforehand. ECE is the mean distance of predicted and observed risk over ten groups."
    ]
    return Section("figures", "Figures by hour", text, tables=tables)


def _discrimination(evaluation: Content, draw: ModuleType) -> Section:
    hours = evaluation["hours"]
    _, last = _last(evaluation)
    words = " ".join(chart_words(judged, f"{hour} h") for hour, judged in hours.items())
    roc = {f"{hour} h: {judged['auroc']:.3f}": curves(judged, "roc") for hour, judged in hours.items()}
    recall = {
        f"{hour} h: {judged['auprc']:.3f}": curves(judged, "precision_recall")
        for hour, judged in hours.items()
    }
    share = last["positives"] / last["n"]
    charts = [
        Chart(draw.roc("roc", roc, f"ROC curves. {words}"), "ROC curves, with the area under each"),
        Chart(
            draw.precision_recall("pr", recall, share, f"Precision-recall curves. {words}"),
            f"Precision-recall curves, with average precision; grey: the share of deaths, {share:.3f}",
        ),
    ]
    return Section("discrimination", "Discrimination", charts=charts)


def _calibration(evaluation: Content, draw: ModuleType) -> Section:
    hour, last = _last(evaluation)
    charts = []
    for at, judged in evaluation["hours"].items():
        if at not in ("12", hour):
            continue
        alt = f"Calibration at {at} h: ECE {with_interval(judged, 'ece')}."
        made = draw.calibration(f"calibration-{at}", {f"{at} h": curves(judged, "calibration")}, alt)
        charts.append(
            Chart(
                made,
                f"{at} h: share of deaths over mean risk in ten groups of equal size (Wilson's intervals)",
            )
        )
    text = [
        f"At {hour} h the mean risk less the share of deaths is "
        f"{with_interval(last, 'calibration_in_the_large')}; the calibration error (ECE) is "
        f"{with_interval(last, 'ece')}."
    ]
    return Section("calibration", "Calibration", text, charts)


def _over_time(evaluation: Content, draw: ModuleType) -> Section | None:
    content = evaluation.get("trajectories")
    if not content:
        return None
    died, survived = content["deaths"]["median"], content["survivors"]["median"]
    alt = (
        f"The median risk of those who died goes from {died[0]:.2f} to {died[-1]:.2f}, "
        f"that of survivors from {survived[0]:.2f} to {survived[-1]:.2f}."
    )
    chart = Chart(
        draw.trajectories("time", content, alt), "Median risk at the end of each hour, with quartiles"
    )
    return Section("time", "Risk over time by outcome", [alt], [chart])


def _decision(evaluation: Content, draw: ModuleType) -> Section:
    hour, judged = _last(evaluation)
    return decision(judged, draw, f"at {hour} h", "deaths", "survivors")


def decision(judged: Content, draw: ModuleType, when: str, positives: str, negatives: str) -> Section:
    """The decision curve of one set of risks."""
    points = curves(judged, "decision")
    better = [at for at, model, everyone in points if model > max(everyone, 0.0) + 1e-9]
    where = "At no threshold is the model of more use than treating all or none."
    if better:
        within = sum(min(better) <= at <= max(better) for at, *_ in points)
        every = "" if len(better) == within else f"{len(better)} of the {within} "
        where = (
            f"The model is of more use than treating all and treating none at {every}thresholds from "
            f"{min(better):.2f} to {max(better):.2f}."
        )
    alt = f"Decision curve {when}. {where}"
    caption = (
        f"Net benefit {when}: true positives less false ones, weighted by the odds of the threshold, per case"
    )
    text = [
        f"A threshold says how many {negatives} one may alert on for one of the {positives}: "
        "0.20 allows four. " + where
    ]
    return Section(
        "decision", "Decision curve", text, [Chart(draw.decision("decision", points, alt), caption)]
    )


def _baselines(evaluation: Content, draw: ModuleType) -> Section | None:
    baselines = evaluation.get("baselines")
    if not baselines:
        return None
    hours = evaluation["hours"]
    charts = []
    for figure in ("auroc", "auprc"):
        series = {"model": {f"{hour} h": bounds(judged, figure) for hour, judged in hours.items()}}
        for baseline in baselines.values():
            found = {f"{hour} h": bounds(judged, figure) for hour, judged in baseline["hours"].items()}
            if found:
                series[baseline["title"]] = found
        alt = f"{FIGURES[figure]} of the model and the baselines by hour, as in the table."
        made = draw.over_hours(f"baselines-{figure}", series, FIGURES[figure], alt)
        charts.append(Chart(made, f"{FIGURES[figure]} by hour, with 95% intervals"))
    columns = ("auroc", "auprc", "event1", "ece")
    tables = []
    for hour, judged in hours.items():
        rows = [["model", *(with_interval(judged, name) for name in columns), "–", "–"]]
        for baseline in baselines.values():
            other = baseline["hours"].get(hour)
            if other:
                cells = [with_interval(other, name) for name in columns]
                gaps = [difference(other["difference"][name]) for name in ("auroc", "auprc")]
                rows.append([baseline["title"], *cells, *gaps])
        headings = ("", *(FIGURES[name] for name in columns), "AUROC, model less it", "AUPRC, model less it")
        tables.append(Table(f"At {hour} h", headings, rows))
    text = [
        "Each baseline is judged on the same stays; differences are paired. Point scores are no "
        "probabilities: they have no calibration error, and their event 1 is at a threshold of their own, "
        "fixed beforehand."
    ]
    return Section("baselines", "Baselines side by side", text, charts, tables)


SHOWN = ("auroc", "auprc", "sensitivity", "positive_predictivity", "calibration_in_the_large")


def subgroups(evaluation: Content, draw: ModuleType) -> Section | None:
    """Groups with intervals: a forest of AUROCs, one of calibration, and a table."""
    groups = evaluation.get("subgroups")
    if not groups:
        return None
    whole = evaluation.get("judged") or _last(evaluation)[1]
    words = [f"{group['by']}: {group['group']}" for group in groups]
    charts = []
    for figure, at in (("auroc", whole["auroc"]), ("calibration_in_the_large", 0.0)):
        rows = [
            (text, bounds(group["judged"], figure) if group["judged"] else None)
            for text, group in zip(words, groups, strict=True)
        ]
        alt = f"{FIGURES[figure]} of each subgroup with its interval, as in the table."
        what = "of all" if at else "neither too high nor too low"
        caption = f"{FIGURES[figure].capitalize() if at == 0 else FIGURES[figure]}; dashed: {what}"
        charts.append(Chart(draw.forest(f"groups-{figure}", rows, FIGURES[figure], alt, at=at), caption))
    cells = [
        [text, f"{group['n']:,}", f"{group['positives']:,}", *_group_cells(group["judged"])]
        for text, group in zip(words, groups, strict=True)
    ]
    headings = ("group", "n", "positive", *(FIGURES[name] for name in SHOWN))
    text = [
        "Sensitivity and positive predictivity are at the one threshold of the whole; calibration in the "
        "large is mean risk less the share of positives. Where fewer than ten are positive, or negative, "
        "nothing is said."
    ]
    return Section(
        "subgroups", "Subgroups", text, charts, [Table("Subgroups, 95% intervals", headings, cells)]
    )


def _group_cells(judged: Content | None) -> list[str]:
    if judged is None:
        return ["too few", *("–" for _ in SHOWN[1:])]
    return [with_interval(judged, name) for name in SHOWN]


def _robustness(evaluation: Content, draw: ModuleType) -> Section | None:
    content = evaluation.get("robustness")
    if not content:
        return None
    whole, *rest = content["withheld"]
    charts = []
    for figure in ("auroc", "auprc"):
        rows = [(one["withheld"], one[f"{figure}_difference"]) for one in rest]
        words = FIGURES[figure]
        alt = f"Change of {words} with each channel or group of channels withheld, as in the table."
        made = draw.forest(f"robustness-{figure}", rows, f"change of {words} at 48 h", alt, at=0.0)
        charts.append(Chart(made, f"Change of {words}, paired, with 95% intervals"))
    cells = [
        [
            one["withheld"],
            number(one["auroc"]),
            difference(one["auroc_difference"]) if one is not whole else "–",
            number(one["auprc"]),
            difference(one["auprc_difference"]) if one is not whole else "–",
            signed(one["mean_change"]),
            number(one["mean_absolute_change"]),
        ]
        for one in content["withheld"]
    ]
    headings = ("withheld", "AUROC", "change", "AUPRC", "change", "mean change of risk", "mean size of it")
    text = [
        f"Each row scores {content['n']:,} stays ({content['note']}) again as if these channels had never "
        "been measured; nothing else is changed. AUROC and AUPRC are at 48 h, changes of risk over all hours."
    ]
    return Section(
        "robustness",
        "Robustness to missing channels",
        text,
        charts,
        [Table("Channels withheld", headings, cells)],
    )


def _forecast(evaluation: Content) -> Section | None:
    content = {name: found for name, found in evaluation.get("forecast", {}).items() if found.get("n")}
    if not content:
        return None
    rows = [
        [
            name.replace("_", " "),
            found["unit"],
            f"{found['n']:,}",
            number(found["mae"]),
            number(found["carried_forward_mae"]),
            difference(found["difference"]),
        ]
        for name, found in content.items()
    ]
    better = [name.replace("_", " ") for name, found in content.items() if found["difference"][2] < 0]
    text = [
        "Mean absolute error of the next hour's last value, where the feature was measured then and before.",
        f"Better than the last value carried forward, the interval excluding no difference: "
        f"{', '.join(better) or 'none'} ({len(better)} of {len(content)}).",
    ]
    headings = ("feature", "unit", "n", "forecast", "last value carried forward", "difference")
    return Section("forecast", "Forecast of the next hour", text, tables=[Table("Errors", headings, rows)])


def _policy(evaluation: Content) -> Section | None:
    policy = evaluation.get("policy")
    if not policy:
        return None
    if not all(isinstance(level, Mapping) and "enter" in level for level in policy.values()):
        return Section("policy", "Alert policy", details=policy)
    rows = [
        [
            severity,
            *(number(level.get(name)) for name in ("enter", "recall", "precision", "survivors_alerted")),
        ]
        for severity, level in policy.items()
    ]
    headings = ("level", "enters at", "of the deaths", "died, of those", "of the survivors")
    text = [evaluation["policy_basis"]] if "policy_basis" in evaluation else []
    return Section("policy", "Alert policy", text, tables=[Table("Stays ever alerted on", headings, rows)])
