"""Risks of a served model and of its shadow, joined by the input record that they are of.

Memory: 16 bytes for each score kept of either side, and about as much again while they are joined; an
array a partition, however many patients.
"""

from array import array
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.model_config import Policy
from worker.history import Span

F64 = NDArray[np.float64]

MAX_SCORES = 20_000_000
"""Scores of one side that are kept: 320 MB. At ten records a second that is over three weeks."""

GRID = 25
"""Cells along each side of the grid that the page draws."""


class Column(NamedTuple):
    """Risks of one partition: offsets int64[n], rising, each once; risks float64[n]."""

    offsets: NDArray[np.int64]
    risks: F64


class Risks:
    """The risks of one side by partition and offset of the input record, in any order, with repeats."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[array[int], array[float]]] = {}
        self.count = 0

    def add(self, partition: int, offset: int, risk: float) -> None:
        """Keep one."""
        if partition not in self._kept:
            self._kept[partition] = array("q"), array("d")
        offsets, risks = self._kept[partition]
        offsets.append(offset)
        risks.append(risk)
        self.count += 1

    def spans(self) -> dict[int, Span]:
        """By partition, from the first record that has a risk to behind the last one."""
        offsets = {partition: np.frombuffer(kept, np.int64) for partition, (kept, _) in self._kept.items()}
        return {partition: Span(int(at.min()), int(at.max()) + 1) for partition, at in offsets.items()}

    def column(self, partition: int) -> Column:
        """One partition's, each record once: one that was published again has the same risk."""
        if partition not in self._kept:
            return Column(np.empty(0, np.int64), np.empty(0))
        offsets, risks = self._kept[partition]
        unique, first = np.unique(np.frombuffer(offsets, np.int64), return_index=True)
        return Column(unique, np.frombuffer(risks, np.float64)[first])


class Joined(NamedTuple):
    """Two sides beside each other.

    served, shadow: float64[n], the risks of the n records that both have.
    only_served, only_shadow: records within the common stretch that the other side lacks.
    outside_served, outside_shadow: records before or after it.
    spans: by partition, the common stretch, from the later of both sides' first records to the earlier of
        their last ones: neither a shadow that began later nor one that lags makes a difference there.
    """

    served: F64
    shadow: F64
    only_served: int
    only_shadow: int
    outside_served: int
    outside_shadow: int
    spans: dict[int, Span]


def join(served: Risks, shadow: Risks) -> Joined:
    """Join by partition and offset."""
    ours, theirs = served.spans(), shadow.spans()
    spans = {at: span for at in ours.keys() & theirs.keys() if (span := _overlap(ours[at], theirs[at]))}
    pairs: list[tuple[F64, F64]] = [(np.empty(0), np.empty(0))]
    only, outside = np.zeros(2, np.int64), np.zeros(2, np.int64)
    for partition in sorted(ours.keys() | theirs.keys()):
        whole = served.column(partition), shadow.column(partition)
        a, b = (_cut(column, spans.get(partition)) for column in whole)
        _, i, j = np.intersect1d(a.offsets, b.offsets, assume_unique=True, return_indices=True)
        pairs.append((a.risks[i], b.risks[j]))
        only += len(a.offsets) - len(i), len(b.offsets) - len(j)
        outside += [len(w.offsets) - len(c.offsets) for w, c in zip(whole, (a, b), strict=True)]
    ours_in, theirs_in = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return Joined(ours_in, theirs_in, int(only[0]), int(only[1]), int(outside[0]), int(outside[1]), spans)


def _overlap(one: Span, other: Span) -> Span | None:
    first, end = max(one.first, other.first), min(one.end, other.end)
    return Span(first, end) if first < end else None


def _cut(column: Column, span: Span | None) -> Column:
    if span is None:
        return Column(column.offsets[:0], column.risks[:0])
    first, end = np.searchsorted(column.offsets, span)
    return Column(column.offsets[first:end], column.risks[first:end])


def difference(joined: Joined) -> dict[str, Any] | None:
    """How the shadow's risks differ from the served ones; None where no record has both."""
    if not len(joined.served):
        return None
    apart = joined.shadow - joined.served
    absolute = np.abs(apart)
    p50, p90, p99 = np.quantile(absolute, (0.5, 0.9, 0.99))
    found = {
        "mean": apart.mean(),
        "mean_absolute": absolute.mean(),
        "p50_absolute": p50,
        "p90_absolute": p90,
        "p99_absolute": p99,
        "max_absolute": absolute.max(),
    }
    rounded: dict[str, Any] = {name: round(float(value), 6) for name, value in found.items()}
    return rounded | {"equal": int((apart == 0).sum()), "correlation": _correlation(joined)}


def _correlation(joined: Joined) -> float | None:
    """Pearson's; None where one side says the same of every record."""
    if np.ptp(joined.served) == 0 or np.ptp(joined.shadow) == 0:
        return None
    return round(float(np.corrcoef(joined.served, joined.shadow)[0, 1]), 6)


def decisions(joined: Joined, policies: Mapping[str, Policy]) -> list[dict[str, Any]]:
    """How many records reach each level of some policies by one risk, by the other, by both, by neither.

    Args:
        joined: of both sides.
        policies: by whose they are, `served` and `shadow`; both sides' risks are held to each.
    """
    found = []
    for whose, policy in policies.items():
        for level in policy.levels:
            ours, theirs = joined.served >= level.enter, joined.shadow >= level.enter
            counts = {
                "both": ours & theirs,
                "only_served": ours & ~theirs,
                "only_shadow": ~ours & theirs,
                "neither": ~ours & ~theirs,
            }
            named = {"policy": whose, "severity": level.severity, "enter": level.enter}
            found.append(named | {name: int(which.sum()) for name, which in counts.items()})
    return found


def grid(joined: Joined) -> dict[str, Any]:
    """Records by both risks, as counts: `counts[i][j]` of served risks in cell i and the shadow's in cell j.

    Cells are equally wide, from 0 to `top`, the greatest risk rounded up to 0.05.
    """
    greatest = max(joined.served.max(initial=0.0), joined.shadow.max(initial=0.0))
    top = min(1.0, max(0.05, float(np.ceil(greatest * 20 - 1e-9) / 20)))
    counts, _, _ = np.histogram2d(joined.served, joined.shadow, GRID, ((0.0, top), (0.0, top)))
    return {"top": top, "counts": counts.astype(np.int64).tolist()}
