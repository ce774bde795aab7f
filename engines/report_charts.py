"""Charts of a report as SVG: deterministic, without fonts or colours of their own.

Colours are those of Okabe and Ito, told apart by the colour-blind, and each line has its own dashes. In
the SVG they and the ink become CSS variables, so that a page can be light or dark; text stays text. A
chart is at most `WIDTH` wide, so that it can be read on a telephone.
"""

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

WIDTH, HEIGHT = 4.4, 3.5
"""Inches, of which the browser makes what room there is."""

COLOURS = {
    "#0072b2": "--blue",
    "#d55e00": "--vermilion",
    "#009e73": "--green",
    "#cc79a7": "--purple",
    "#e69f00": "--orange",
    "#56b4e9": "--sky",
}
INK, FAINT = "#010203", "#040506"
_VARIABLES = COLOURS | {INK: "--ink", FAINT: "--faint"}

DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (9, 2)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = "osD^vP"

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "riskstream",
    "text.parse_math": False,
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 2.8,
    "lines.linewidth": 1.6,
}

Points = Sequence[Sequence[float]]

RECALL = "recall of patients with the event"


def roc(name: str, curves: Mapping[str, Points], alt: str) -> str:
    """ROC curves by label, of points [false positive rate, true positive rate]."""
    with rc_context(STYLE):
        figure, axes = new_axes("false positive rate (1 - specificity)", "sensitivity", square=True)
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1)
        _lines(axes, curves)
        _unit(axes)
        axes.legend(loc="lower right")
        return as_svg(figure, name, alt)


def precision_recall(name: str, curves: Mapping[str, Points], share: float, alt: str) -> str:
    """Precision-recall curves by label, of points [recall, precision]; `share` of positives as a line."""
    with rc_context(STYLE):
        figure, axes = new_axes("sensitivity (recall)", "positive predictivity (precision)", square=True)
        axes.axhline(share, color=FAINT, linewidth=1)
        _lines(axes, curves)
        _unit(axes)
        axes.legend(loc="upper right" if share < 0.5 else "lower left")
        return as_svg(figure, name, alt)


def calibration(name: str, groups: Mapping[str, Points], alt: str) -> str:
    """Share of positives over mean risk by label, of points [mean risk, share, cases]; Wilson's intervals."""
    with rc_context(STYLE):
        figure, axes = new_axes("mean risk of the group", "share of positives", square=True)
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1)
        greatest = 0.0
        for number, (label, points) in enumerate(groups.items()):
            risk, share, cases = np.array(points, dtype=np.float64).T
            low, high = wilson(share, cases)
            greatest = max(greatest, float(risk.max()), float(high.max()))
            axes.errorbar(
                risk,
                share,
                yerr=[share - low, high - share],
                fmt=MARKERS[number % len(MARKERS)],
                color=_colour(number),
                markersize=4.5,
                capsize=2,
                linewidth=1,
                label=label,
            )
        limit = min(1.0, greatest * 1.05)
        axes.set(xlim=(0, limit), ylim=(0, limit))
        axes.legend(loc="upper left")
        return as_svg(figure, name, alt)


def wilson(share: Any, cases: Any) -> tuple[Any, Any]:
    """Bounds of Wilson's 95% interval of a share of so many cases."""
    z = 1.96
    centre = (share + z**2 / (2 * cases)) / (1 + z**2 / cases)
    half = z / (1 + z**2 / cases) * np.sqrt(share * (1 - share) / cases + z**2 / (4 * cases**2))
    return np.minimum(centre - half, share), np.maximum(centre + half, share)


def decision(name: str, points: Points, alt: str) -> str:
    """Net benefit over the threshold, of points [threshold, model, treat all]."""
    with rc_context(STYLE):
        figure, axes = new_axes("threshold of the risk", "net benefit")
        threshold, model, everyone = np.array(points, dtype=np.float64).T
        axes.plot(threshold, model, color=_colour(0), label="model")
        axes.plot(threshold, everyone, color=_colour(1), linestyle=DASHES[1], label="treat all")
        axes.axhline(0, color=INK, linewidth=1, linestyle=DASHES[2], label="treat none")
        top = float(max(model.max(), everyone.max()))
        useful = threshold[(model > 0.01 * top) | (everyone > 0.01 * top)]
        axes.set(xlim=(0, min(1.0, 1.2 * float(useful.max(initial=0.2)))), ylim=(-0.15 * top, 1.08 * top))
        axes.legend(loc="best")
        return as_svg(figure, name, alt)


def trajectories(name: str, content: Mapping[str, Any], alt: str) -> str:
    """Median and quartiles of risk over time, by outcome."""
    with rc_context(STYLE):
        figure, axes = new_axes("hours after admission", "risk")
        for number, (key, label) in enumerate((("survivors", "survived"), ("deaths", "died"))):
            group, colour = content[key], _colour(number)
            axes.fill_between(content["hours"], group["low"], group["high"], color=colour, alpha=0.2, lw=0)
            text = f"{label} ({group['n']:,})"
            axes.plot(content["hours"], group["median"], color=colour, linestyle=DASHES[number], label=text)
        axes.set(xlim=(1, content["hours"][-1]), xticks=[1, *range(6, content["hours"][-1] + 1, 6)])
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper left")
        return as_svg(figure, name, alt)


def over_hours(name: str, series: Mapping[str, Mapping[str, Sequence[float]]], label: str, alt: str) -> str:
    """A figure of several models at the judged hours: {model: {hour: [figure, low, high]}}."""
    with rc_context(STYLE):
        figure, axes = new_axes("hours after admission", label)
        hours = list(dict.fromkeys(hour for content in series.values() for hour in content))
        for number, (model, content) in enumerate(series.items()):
            beside = 0.11 * (number - (len(series) - 1) / 2)
            place = np.array([hours.index(hour) for hour in content]) + beside
            found = np.array(list(content.values()), dtype=np.float64)
            axes.errorbar(
                place,
                found[:, 0],
                yerr=[found[:, 0] - found[:, 1], found[:, 2] - found[:, 0]],
                fmt=MARKERS[number % len(MARKERS)],
                color=_colour(number),
                markersize=4.5,
                capsize=2,
                linewidth=1,
                label=model,
            )
        axes.set_xticks(range(len(hours)), hours)
        axes.grid(visible=False, axis="x")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
        return as_svg(figure, name, alt)


def shares(
    name: str, bins: Sequence[str], live: Sequence[float], reference: Sequence[float], alt: str
) -> str:
    """Shares of two distributions over the same bins, side by side."""
    with rc_context(STYLE):
        figure, axes = new_axes("", "share of patient-hours")
        place = np.arange(len(bins))
        for number, (label, heights) in enumerate((("now", live), ("reference", reference))):
            beside = place + 0.4 * (number - 0.5)
            hatch = "////" if number else None
            axes.bar(
                beside,
                heights,
                0.4,
                color=_colour(1 - number),
                hatch=hatch,
                edgecolor=INK,
                lw=0.4,
                label=label,
            )
        axes.set_xticks(place, bins, rotation=45, ha="right")
        axes.grid(visible=False, axis="x")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
        return as_svg(figure, name, alt)


def forest(
    name: str, rows: Sequence[tuple[str, Sequence[float] | None]], label: str, alt: str, *, at: float | None
) -> str:
    """Figures with intervals, one under the other: (words, [figure, low, high] or None for too few)."""
    with rc_context(STYLE):
        words = [textwrap.fill(text, 24) for text, _ in rows]
        lines = sum(text.count("\n") for text in words)
        figure = Figure(figsize=(WIDTH, 0.9 + 0.27 * len(rows) + 0.13 * lines), layout="constrained")
        axes = figure.add_subplot()
        if at is not None:
            axes.axvline(at, color=INK, linewidth=1, linestyle=DASHES[1])
        place = _places(words)
        for y, (_, found) in zip(place, rows, strict=True):
            if found is None:
                continue
            axes.errorbar(
                found[0],
                y,
                xerr=[[found[0] - found[1]], [found[2] - found[0]]],
                fmt="o",
                color=_colour(0),
                markersize=4.5,
                capsize=2,
                linewidth=1.2,
            )
        side = axes.get_yaxis_transform()
        for y, (_, found) in zip(place, rows, strict=True):
            if found is None:
                axes.text(0.02, y, "too few", transform=side, va="center", style="italic")
        axes.set_yticks(place, words)
        axes.set_ylim(place[-1] + 0.8, place[0] - 0.8)
        axes.set_xlabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        return as_svg(figure, name, alt)


class Marked(NamedTuple):
    """Points of one kind on a trade-off: [x, recall] each; `words` beside each point, where there are any."""

    label: str
    points: Points
    words: Sequence[str] = ()


def trade_off(
    name: str, tried: Sequence[Marked], front: Points, marked: Sequence[Marked], label: str, alt: str
) -> str:
    """Recall over what it costs: what was tried, the best of it as a line, and points that stand out."""
    with rc_context(STYLE):
        figure, axes = new_axes(label, RECALL)
        _trade_off(axes, tried, front, marked)
        _below(axes)
        return as_svg(figure, name, alt)


def trade_offs(
    file: Path, panels: Sequence[tuple[str, Sequence[Marked], Points, Sequence[Marked]]], title: str
) -> None:
    """The same as a picture of its own, black on white: panels of (label of x, tried, front, marked).

    Args:
        file: .svg or .png.
    """
    with rc_context({**STYLE, "svg.fonttype": "path", "grid.color": "#d5d9de"}):
        figure = Figure(figsize=(WIDTH * len(panels), HEIGHT + 1.0), layout="constrained", dpi=150)
        for number, (label, tried, front, marked) in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), number + 1)
            axes.set(xlabel=label, ylabel=RECALL)
            _trade_off(axes, tried, front, marked)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        figure.suptitle(title, fontsize=10)
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def over_batches(file: Path, panels: Sequence[tuple[str, Mapping[str, Points]]], title: str) -> None:
    """Figures over the batch size as a picture of its own: panels of (label of y, {label: [batch, y]}).

    Args:
        file: .svg or .png.
    """
    with rc_context({**STYLE, "svg.fonttype": "path", "grid.color": "#d5d9de"}):
        figure = Figure(figsize=(WIDTH * len(panels), HEIGHT + 0.4), layout="constrained", dpi=150)
        for number, (label, curves) in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), number + 1)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set(xlabel="rows in a batch", ylabel=label)
            _lines(axes, curves)
            axes.xaxis.set_major_formatter("{x:.0f}")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(lambda y, _: f"{y:,.0f}" if y >= 1 else f"{y:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.legend(loc="upper left")
        figure.suptitle(title, fontsize=10)
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def _trade_off(axes: Axes, tried: Sequence[Marked], front: Points, marked: Sequence[Marked]) -> None:
    for number, kind in enumerate(tried):
        x, y = np.array(kind.points, dtype=np.float64).T
        axes.plot(
            x, y, MARKERS[number % len(MARKERS)], color=_colour(number), markersize=3, alpha=0.7,
            label=kind.label,
        )  # fmt: skip
    x, y = np.array(front, dtype=np.float64).T
    axes.plot(x, y, color=INK, linewidth=1, label="best of these", zorder=1)
    for kind, marker in zip(marked, "*XP", strict=False):
        x, y = np.array(kind.points, dtype=np.float64).T
        size = 14 if marker == "*" else 9
        axes.plot(
            x, y, marker, color=INK, markersize=size, markeredgecolor="white", label=kind.label, zorder=3
        )
        for number, (point, words) in enumerate(zip(kind.points, kind.words, strict=False)):
            # The first one's words stand above it, so that neighbours do not write over each other.
            up = number == 0
            axes.annotate(
                words,
                (point[0], point[1]),
                (0, 6 if up else -7),
                textcoords="offset points",
                fontsize=8,
                va="bottom" if up else "top",
                ha="center",
            )
    axes.margins(x=0.1)
    axes.set(ylim=(None, 1.02))
    axes.set_xlim(left=0)


def _below(axes: Axes) -> None:
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)


def _places(words: Sequence[str]) -> list[float]:
    """Where labels of one or two lines stand, downwards."""
    at, places = 0.0, []
    for text in words:
        extra = 0.25 * text.count("\n")
        places.append(at + extra)
        at += 1 + 2 * extra
    return places


def new_axes(x: str, y: str, *, square: bool = False) -> tuple[Figure, Axes]:
    """A figure with one pair of axes."""
    figure = Figure(figsize=(WIDTH, WIDTH - 0.2 if square else HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=x, ylabel=y)
    if square:
        axes.set_aspect("equal", adjustable="box")
    return figure, axes


def _lines(axes: Axes, curves: Mapping[str, Points]) -> None:
    for number, (label, points) in enumerate(curves.items()):
        x, y = np.array(points, dtype=np.float64).T
        axes.plot(x, y, color=_colour(number), linestyle=DASHES[number % len(DASHES)], label=label)


def _unit(axes: Axes) -> None:
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))


def _colour(number: int) -> str:
    return list(COLOURS)[number % len(COLOURS)]


def as_svg(figure: Figure, name: str, alt: str) -> str:
    """The figure as an element for a page: ids made its own by `name`, colours as CSS variables."""
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    file = io.StringIO()
    FigureCanvasSVG(figure).print_svg(file, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(url\(|href=")#', rf"\g<1>#{name}-", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r'^<svg [^>]*?(viewBox="[^"]+")[^>]*>', _opening(alt), text, count=1)
    return text.strip()


def _opening(alt: str) -> str:
    quoted = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace("\\", r"\\")
    space = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return rf'<svg {space} \1 role="img" aria-label="{quoted}">'
