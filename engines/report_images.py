"""The parts of a page that are about an image model: one threshold, classes, disturbances, maps."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from engines import report_stays
from engines.report_parts import (
    FIGURES,
    Chart,
    Picture,
    Section,
    Table,
    bounds,
    chart_words,
    curves,
    number,
    with_interval,
)

Content = Mapping[str, Any]

MAIN = ("auroc", "auprc", "accuracy", "sensitivity", "specificity", "positive_predictivity", "brier", "ece")


def sections(evaluation: Content, draw: ModuleType) -> list[Section | None]:
    """Every part that the evaluation has something for.

    Args:
        evaluation: of `evaluate_images.assess_images`.
        draw: `engines.report_charts`, handed in so that this module imports without its extra.
    """
    judged = evaluation["judged"]
    return [
        _figures(evaluation),
        _discrimination(judged, draw),
        _calibration(judged, draw),
        report_stays.decision(judged, draw, "of the pictures", "findings", "pictures without a finding"),
        _classes(evaluation),
        report_stays.subgroups(evaluation, draw),
        _robustness(evaluation, draw),
        _maps(evaluation),
        _drift(evaluation),
        _recipes(evaluation),
    ]


def _figures(evaluation: Content) -> Section:
    judged = evaluation["judged"]
    findings = ", ".join(evaluation.get("findings", ())) or "a finding"
    validation = evaluation.get("validation")
    sets = {"cross-validation": judged, "validation": validation} if validation else {"value": judged}
    rows = [
        [FIGURES[name], *(with_interval(figures, name) for figures in sets.values())]
        for name in MAIN
        if name in judged
    ]
    text = [
        f"{judged['n']:,} pictures, {judged['positives']:,} with {findings}. The threshold "
        f"{evaluation['threshold']:g} was fixed beforehand."
    ]
    if "validation" in sets:
        text.append(
            f"Validation is {sets['validation']['n']:,} pictures from which nothing was learnt or "
            "chosen, judged with the model that is served."
        )
    return Section("figures", "Figures", text, tables=[Table("95% intervals", ("figure", *sets), rows)])


def _discrimination(judged: Content, draw: ModuleType) -> Section:
    share = judged["positives"] / judged["n"]
    words = chart_words(judged, "All pictures")
    roc = draw.roc("roc", {f"AUROC {judged['auroc']:.3f}": curves(judged, "roc")}, f"ROC curve. {words}")
    recall = draw.precision_recall(
        "pr",
        {f"average precision {judged['auprc']:.3f}": curves(judged, "precision_recall")},
        share,
        f"Precision-recall curve. {words}",
    )
    charts = [
        Chart(roc, "ROC curve"),
        Chart(recall, f"Precision-recall curve; the grey line is the share of findings, {share:.3f}"),
    ]
    return Section("discrimination", "Discrimination", charts=charts)


def _calibration(judged: Content, draw: ModuleType) -> Section:
    alt = f"Calibration: ECE {with_interval(judged, 'ece')}."
    chart = draw.calibration("calibration", {"groups": curves(judged, "calibration")}, alt)
    text = [
        "The mean risk less the share of findings is "
        f"{with_interval(judged, 'calibration_in_the_large')}; the calibration error (ECE) is "
        f"{with_interval(judged, 'ece')}."
    ]
    caption = "Share of findings over mean risk in ten groups of equal size (Wilson's intervals)"
    return Section("calibration", "Calibration", text, [Chart(chart, caption)])


def _classes(evaluation: Content) -> Section | None:
    confusion = evaluation.get("confusion")
    if not confusion:
        return None
    names = list(confusion)
    tables = [
        Table(
            "Pictures by their class (row) and the most probable class (column)",
            ("class", *names),
            [[name, *(f"{confusion[name][other]:,}" for other in names)] for name in names],
        )
    ]
    columns = ("auroc", "auprc", "sensitivity", "specificity", "ece")
    rows = [
        [name, *(with_interval(judged, column) for column in columns)]
        if judged
        else [name, "not judged", *("–" for _ in columns[1:])]
        for name, judged in evaluation.get("classes", {}).items()
    ]
    tables.append(
        Table("Each class against the others, at 0.5", ("class", *(FIGURES[name] for name in columns)), rows)
    )
    text = []
    if "class_accuracy" in evaluation:
        text.append(
            f"The most probable class is the picture's own for {evaluation['class_accuracy']:.1%} of them."
        )
    return Section("classes", "Classes", text, tables=tables)


def _robustness(evaluation: Content, draw: ModuleType) -> Section | None:
    content = evaluation.get("robustness")
    if not content:
        return None
    rows = [(one["disturbance"], bounds(one["judged"], "auroc")) for one in content]
    whole = evaluation["judged"]["auroc"]
    alt = "AUROC with the pictures disturbed in each way, as in the table."
    chart = draw.forest("robustness", rows, "AUROC", alt, at=whole)
    columns = ("auroc", "accuracy", "sensitivity", "specificity", "ece")
    cells = [
        [one["disturbance"], *(with_interval(one["judged"], name) for name in columns)] for one in content
    ]
    text = [f"{content[0]['judged']['n']:,} of the pictures, each disturbed in one way at a time."]
    headings = ("disturbance", *(FIGURES[name] for name in columns))
    return Section(
        "robustness",
        "Robustness",
        text,
        [Chart(chart, f"AUROC; dashed: undisturbed, {number(whole)}")],
        [Table("Disturbances", headings, cells)],
    )


def _maps(evaluation: Content) -> Section | None:
    check, examples = evaluation.get("activation"), evaluation.get("examples", ())
    if not check and not examples:
        return None
    pictures = [Picture(example["png"], example["caption"]) for example in examples]
    text = [
        "Class-activation maps come out of the graph with each prediction; here they are held to occlusion: "
        "a patch slid over the picture, and how far the log odds of the risk fall under it.",
        "Rank correlation is Spearman's, between a patch's evidence in the map and that fall, its mean over "
        "the pictures with a 95% interval. Pointing is the share of pictures whose patch of most evidence is "
        "among the tenth that matter most by occlusion. The costs are milliseconds a picture.",
    ]
    return Section("maps", "Where the model looks", text, pictures=pictures, details=check)


def _drift(evaluation: Content) -> Section | None:
    """How far the pictures that were held out lie from those that were learnt from."""
    if not evaluation.get("drift"):
        return None
    text = [
        "Distances of the held-out pictures from those learnt from; ks is that of Kolmogorov and Smirnov."
    ]
    return Section("drift", "Drift between the sets", text, details=evaluation["drift"])


def _recipes(evaluation: Content) -> Section | None:
    """Other recipes beside the one that is served, one network each."""
    tried = [one for one in evaluation.get("tried") or () if isinstance(one, Mapping) and "recipe" in one]
    if not tried:
        return None
    columns = ("auroc", "accuracy", "ece")
    rows = [
        [
            one["recipe"],
            *(
                f"{number(one['this'][column])} / {number(one['served'][column])}"
                if column in one["served"]
                else "–"
                for column in columns
            ),
        ]
        for one in tried
    ]
    text = [
        "One network of each recipe beside one of the recipe that is served, on the same part of the data."
    ]
    headings = ("recipe", *(FIGURES[column] for column in columns))
    return Section(
        "recipes", "Other recipes", text, tables=[Table("This recipe / the one served", headings, rows)]
    )
