"""What a report's page is made of, and how its numbers are written."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

FIGURES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "event1": "event 1",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "positive_predictivity": "positive predictivity",
    "accuracy": "accuracy",
    "brier": "Brier",
    "ece": "ECE",
    "calibration_in_the_large": "calibration in the large",
}
"""Figures of `judge.judged`, as headings."""


class Chart(NamedTuple):
    """An SVG element of our own making, with its caption."""

    svg: str
    caption: str


class Table(NamedTuple):
    """Cells as text; the first column heads its row. Cells of `prose` break over lines."""

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    prose: bool = False


class Picture(NamedTuple):
    """A PNG in base64, with its caption, which is its alternative text too."""

    png: str
    caption: str


class Section(NamedTuple):
    """One part of the page; `details` is any JSON, shown as nested lists."""

    anchor: str
    title: str
    text: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    details: Any = None


def number(value: Any, digits: int = 3) -> str:
    """A figure as text; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def signed(value: float, digits: int = 3) -> str:
    """A difference as text."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def with_interval(judged: Mapping[str, Any], figure: str, digits: int = 3) -> str:
    """A figure with its interval, as `0.857 (0.842–0.871)`; a dash where there is none."""
    if figure not in judged:
        return "–"
    low, high = judged["intervals"][figure]
    if figure == "calibration_in_the_large":
        return f"{signed(judged[figure])} ({signed(low)} to {signed(high)})"
    return f"{judged[figure]:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def difference(found: Sequence[float], digits: int = 3) -> str:
    """A difference with its interval."""
    middle, low, high = (signed(value, digits) for value in found)
    return f"{middle} ({low} to {high})"


def bounds(judged: Mapping[str, Any], figure: str) -> list[float]:
    """[figure, low, high]"""
    return [judged[figure], *judged["intervals"][figure]]


def chart_words(judged: Mapping[str, Any], what: str) -> str:
    """Alternative text of a chart of one set of risks."""
    return (
        f"{what}: AUROC {with_interval(judged, 'auroc')}, "
        f"average precision {with_interval(judged, 'auprc')}, "
        f"{judged['n']:,} cases, {judged['positives']:,} positive."
    )


def curves(judged: Mapping[str, Any], wanted: str) -> list[list[float]]:
    """One of the curves."""
    found: list[list[float]] = judged["curves"][wanted]
    return found
