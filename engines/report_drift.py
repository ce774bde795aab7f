"""The parts of a page on drift: the features that drifted most, all of them, outcomes."""

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from engines.report_parts import Chart, Section, Table, number, with_interval
from schemas.features import FEATURES

Content = Mapping[str, Any]

_UNIT = {feature.name: feature.unit for feature in FEATURES}

DRAWN = 9
"""Charts on a page: the features that drifted most."""


def facts(content: Content) -> list[tuple[str, str]]:
    """What stands at the top, as (name, words)."""
    reference = content["reference"]
    return [
        ("model", f"{content['model']['name']}, SHA-256 {content['model']['digest'][:16]}…"),
        ("records", f"{content['source']}: {content['records']:,} of {content['patients']:,} patients"),
        ("counted", f"{content['patient_hours']:,} patient-hours, each patient at most once an hour"),
        ("reference", f"{reference['hours']:,} of {reference['stays']:,} stays of {reference['data']}"),
        ("risks of the reference", reference["risks"]),
    ]


def verdict(content: Content) -> list[str]:
    """What was found, in sentences."""
    by_band: dict[str, list[str]] = {}
    for shift in content["shifts"]:
        by_band.setdefault(shift["band"], []).append(shift["feature"].replace("_", " "))
    words = {
        "large": "Another population than the reference, in",
        "moderate": "Moved, and worth a look:",
        "stable": "As in the reference:",
        "too few": "Too few patients to tell:",
    }
    return [f"{text} {', '.join(by_band[band])}." for band, text in words.items() if band in by_band]


def sections(content: Content, charts: ModuleType) -> list[Section]:
    """Every part that the content has something for."""
    shifts = sorted(content["shifts"], key=_worst)
    bands = content["bands"]
    found = [
        Section(
            "most",
            "What drifted most",
            text=(
                "Shares of patient-hours by bins of the reference, which hold about as many hours each. "
                "The last bar is of hours in which it was absent: not measured for two days, or for far "
                "longer than is usual in the reference.",
            ),
            charts=[_chart(place, shift, charts) for place, shift in enumerate(shifts[:DRAWN])],
        ),
        Section(
            "all",
            "Every feature",
            text=(
                "PSI is the population stability index: the sum over the bins of (p - q) ln(p / q). Less "
                f"what chance alone gives, it is moderate above {bands['moderate']:g} and large above "
                f"{bands['large']:g}; where chance gives more than {bands['too_few']:g} nothing is said.",
            ),
            tables=[_table(shifts)],
        ),
    ]
    if "outcomes" in content:
        found.append(_outcomes(content["outcomes"]))
    return [*found, Section("reproduce", "How to reproduce", details=content["reproduce"])]


def _worst(shift: Content) -> tuple[bool, float]:
    return shift["psi"] is None, -((shift["psi"] or 0.0) - shift["chance"])


def _chart(place: int, shift: Content, charts: ModuleType) -> Chart:
    name = shift["feature"].replace("_", " ")
    told = shift["band"] if shift["psi"] is None else f"PSI {shift['psi']:.2f}, {shift['band']}"
    unit = f" in {_UNIT[shift['feature']]}" if _UNIT.get(shift["feature"], "1") != "1" else ""
    words = f"{name}{unit}: {told}"
    svg = charts.shares(
        f"shift{place}", bin_names(shift["edges"]), shift["shares"], shift["reference_shares"], words
    )
    return Chart(svg, words)


def bin_names(edges: Sequence[float]) -> list[str]:
    """What each bar stands for."""
    if not edges:
        return ["any", "absent"]
    return [f"<{edges[0]:.4g}", *(f"{edge:.4g}–" for edge in edges), "absent"]


def _table(shifts: Sequence[Content]) -> Table:
    headings = ("", "PSI", "by chance", "band", "median", "in reference", "absent", "in reference")
    return Table("Worst first", headings, [_row(shift) for shift in shifts])


def _row(shift: Content) -> list[str]:
    return [
        shift["feature"].replace("_", " "),
        number(shift["psi"]),
        number(shift["chance"]),
        shift["band"] if shift["psi"] is not None else f"needs {shift['patients_needed']:,} patients",
        *("–" if value is None else f"{value:.4g}" for value in (shift["median"], shift["reference_median"])),
        *(f"{value:.1%}" for value in (shift["absent"], shift["reference_absent"])),
    ]


def _outcomes(content: Content) -> Section:
    rows = [
        [
            "all" if band is content else f"{band['from']:g} to {band['to']:g}",
            f"{band['patients']:,}",
            f"{band['expected']:.1%}",
            f"{band['observed']:.1%}",
            f"{band['interval'][0]:.1%} to {band['interval'][1]:.1%}",
        ]
        for band in [*content["bands"], content]
    ]
    tables = [Table("By risk", ("risk", "patients", "expected", "observed", "95% interval"), rows)]
    figures = content["figures"]
    if figures is not None:
        names = ("auroc", "ece", "calibration_in_the_large")
        cells = [[with_interval(figures, name) for name in names]]
        tables.append(Table("All", ("AUROC", "ECE", "calibration in the large"), cells))
    text = f"The risk {content['hours']:g} hours after a patient's first score, beside the outcome that came."
    return Section("outcomes", "Outcomes", text=(text,), tables=tables)
