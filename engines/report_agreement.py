"""A picture of how far two sets of risks of the same records agree."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context

from engines import report_charts
from engines.report_charts import COLOURS, FAINT, INK

MOST_OPAQUE, LEAST_OPAQUE = 1.0, 0.12


def agreement(
    name: str,
    grid: Mapping[str, Any],
    levels: Mapping[str, Sequence[float]],
    alt: str,
) -> str:
    """Records by both risks, darker for more of them on a logarithmic scale.

    Args:
        name: makes the element's ids its own.
        grid: `top` and `counts`, of served risks in rows and the shadow's in columns.
        levels: thresholds of the policies `served` and `shadow`, drawn as lines.
        alt: the picture in words.
    """
    top, counts = grid["top"], np.array(grid["counts"], dtype=np.float64)
    with rc_context(report_charts.STYLE):
        figure, axes = report_charts.new_axes("served risk", "shadow's risk", square=True)
        width = top / len(counts)
        rows, columns = np.nonzero(counts)
        shade = np.log1p(counts[rows, columns]) / np.log1p(counts.max())
        opacity = LEAST_OPAQUE + (MOST_OPAQUE - LEAST_OPAQUE) * shade
        for row, column, alpha in zip(rows, columns, opacity, strict=True):
            axes.bar(row * width, width, width, column * width, align="edge", color=_BLUE, alpha=alpha, lw=0)
        axes.plot([0, top], [0, top], color=FAINT, linewidth=1)
        for at in levels.get("served", ()):
            axes.axvline(at, color=INK, linewidth=0.8, linestyle=report_charts.DASHES[1])
        for at in levels.get("shadow", ()):
            axes.axhline(at, color=INK, linewidth=0.8, linestyle=report_charts.DASHES[2])
        axes.set(xlim=(0, top), ylim=(0, top))
        return report_charts.as_svg(figure, name, alt)


_BLUE = next(iter(COLOURS))
