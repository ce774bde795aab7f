"""Which policies are tried, and which of them is chosen."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from schemas.model_config import Level, Policy, policy_complaints
from schemas.news2_policy import News2Policy, PointsLevel

MOST = 2000
"""Policies tried at once, at most: one takes some two seconds for 4,000 stays."""

ENTER = "0.1:0.4:0.02"
PERSISTENCE = "3600,7200,14400,21600"
EXIT_RATIO = "0.7"
"""The grid unless stated: 64 policies."""

Role = Literal["shipped", "grid", "file", "news2"]


class GridError(ValueError):
    """The grid, a file of policies or the rule cannot be used."""


class Candidate(NamedTuple):
    """A policy to try.

    name: in tables. role: where it comes from: the model's own, the grid, a file, or NEWS2.
    """

    name: str
    role: Role
    policy: Policy


class Axes(NamedTuple):
    """Values that the grid takes in turn; an empty one leaves what the shipped policy says.

    enter, persistence_s: of the first level. high, high_persistence_s: of the last level.
    exit_ratio: the exit as a share of the first level's enter.
    """

    enter: Sequence[float]
    persistence_s: Sequence[float]
    exit_ratio: Sequence[float]
    high: Sequence[float] = ()
    high_persistence_s: Sequence[float] = ()


def numbers(text: str, what: str, low: float, high: float) -> list[float]:
    """`0.1:0.4:0.02` (both ends included) or `0,1800,3600` as numbers.

    Raises:
        GridError: it is neither, or a number is out of bounds.
    """
    try:
        if ":" in text:
            first, last, step = (float(part) for part in text.split(":"))
            if not (step > 0 and last >= first and (last - first) / step <= MOST):
                raise ValueError
            found = [round(first + number * step, 6) for number in range(round((last - first) / step) + 1)]
            found = [value for value in found if value <= last + 1e-9]
        else:
            found = [float(part) for part in text.split(",")]
    except ValueError:
        raise GridError(
            f"{what} is written FROM:TO:STEP, with FROM not above TO and a STEP above 0, or N,N,..., "
            f"not {text!r}"
        ) from None
    if not all(low <= value <= high for value in found):
        raise GridError(f"{what} must lie between {low:g} and {high:g}, came {text!r}")
    return sorted(set(found))


def grid(base: Policy, axes: Axes) -> list[Candidate]:
    """Every combination of the axes' values; those that contradict themselves are left out.

    A level whose enter is not above the first one's is dropped.

    Raises:
        GridError: there are too many, or none is left.
    """
    whole = [values or (None,) for values in axes]
    if np.prod([len(values) for values in whole]) > MOST:
        raise GridError(f"the grid has more than {MOST:,} policies; make it coarser")
    found: dict[Policy, Candidate] = {}
    for values in itertools.product(*whole):
        policy = varied(base, *values)
        if policy is not None:
            found.setdefault(policy, Candidate(name_of(policy), "grid", policy))
    if not found:
        raise GridError("no policy of the grid agrees with itself; the exit must be below the first enter")
    return list(found.values())


def varied(
    base: Policy,
    enter: float | None,
    persistence_s: float | None,
    exit_ratio: float | None,
    high: float | None,
    high_persistence_s: float | None,
) -> Policy | None:
    """A policy with other first and last levels and another exit; None if it contradicts itself."""
    first, *upper = base.levels
    first = _level(first, enter, persistence_s)
    if upper:
        upper[-1] = _level(upper[-1], high, high_persistence_s)
    ratio = base.exit / base.levels[0].enter if exit_ratio is None else exit_ratio
    levels = (first, *(level for level in upper if level.enter > first.enter))
    policy = msgspec.structs.replace(base, levels=levels, exit=round(ratio * first.enter, 4))
    return None if policy_complaints(policy) else policy


def _level(level: Level, enter: float | None, persistence_s: float | None) -> Level:
    return Level(
        level.severity,
        level.enter if enter is None else enter,
        level.persistence_s if persistence_s is None else persistence_s,
    )


def name_of(policy: Policy) -> str:
    """A policy in short: each level's enter and persistence, such as `0.17/4h, 0.5/0.5h, exit 0.119`."""
    levels = (f"{level.enter:g}/{level.persistence_s / 3600:.3g}h" for level in policy.levels)
    return ", ".join((*levels, f"exit {policy.exit:g}"))


def from_file(file: Path) -> list[Candidate]:
    """Policies of a file: a JSON array of objects as `policy` in a model's config.json.

    Raises:
        GridError: it cannot be read, is not such JSON, or a policy contradicts itself.
    """
    try:
        policies = msgspec.json.decode(file.read_bytes(), type=list[Policy])
    except OSError as error:
        raise GridError(f"cannot read {file}: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise GridError(f"{file}: {error}; it must be a JSON array of policies") from error
    if not 0 < len(policies) <= MOST:
        raise GridError(f"{file}: between 1 and {MOST:,} policies can be tried, came {len(policies):,}")
    for number, policy in enumerate(policies):
        for complaint in policy_complaints(policy):
            raise GridError(f"{file}, policy {number}: {complaint}")
    return [
        Candidate(f"{number}: {name_of(policy)}", "file", policy) for number, policy in enumerate(policies)
    ]


def beside(shipped: News2Policy) -> list[tuple[str, News2Policy]]:
    """NEWS2 to compare with: each of its usual thresholds alone, and its own policy.

    At a threshold alone it alerts at once and ends when the points are below it, for the policy's
    `resolve_s`: what its charts ask for.
    """
    alone = [
        (
            f"NEWS2 at {points}",
            msgspec.structs.replace(
                shipped,
                single=None,
                levels=(PointsLevel("alert", points),),
                exit=points,
            ),
        )
        for points in (5, 7)
    ]
    return [*alone, (f"NEWS2's policy, version {shipped.version}", shipped)]


Figures = Mapping[str, Any]


class Rule(NamedTuple):
    """What is asked of the chosen policy; one of the three.

    recall: at least this, with the least survivors ever alerted. survivors: at most this share of survivors
    ever alerted, with the highest recall. alerts_per_day: at most so many alerts per patient-day, with the
    highest recall.
    """

    recall: float | None = None
    survivors: float | None = None
    alerts_per_day: float | None = None

    def words(self) -> str:
        """The rule in words."""
        if self.recall is not None:
            return f"the fewest survivors ever alerted at a recall of {self.recall:g} or more"
        if self.survivors is not None:
            return f"the highest recall with at most {self.survivors:.0%} of survivors ever alerted"
        return f"the highest recall with at most {self.alerts_per_day:g} alerts per patient-day"


def choose(rule: Rule, found: Sequence[Figures]) -> int | None:
    """Number of the chosen one; None where none keeps to the rule.

    Of equals the one with fewer alerts per patient-day, then the first.
    """
    tests: dict[str, tuple[float | None, Callable[[Figures], float], Callable[[Figures], float]]] = {
        "recall": (rule.recall, lambda f: -f["recall"], lambda f: f["survivors_alerted"]),
        "survivors": (rule.survivors, lambda f: f["survivors_alerted"], lambda f: -f["recall"]),
        "alerts": (rule.alerts_per_day, lambda f: f["alerts_per_patient_day"], lambda f: -f["recall"]),
    }
    bound, measure, wanted = next(test for test in tests.values() if test[0] is not None)
    limit = -bound if rule.recall is not None and bound is not None else bound
    assert limit is not None
    kept = [number for number, figures in enumerate(found) if measure(figures) <= limit]
    if not kept:
        return None
    return min(kept, key=lambda n: (wanted(found[n]), found[n]["alerts_per_patient_day"], n))


def front(found: Sequence[Figures]) -> list[int]:
    """Numbers of those that no other beats in recall without alerting more survivors, by recall."""
    order = sorted(range(len(found)), key=lambda n: (found[n]["survivors_alerted"], -found[n]["recall"]))
    kept: list[int] = []
    for number in order:
        if not kept or found[number]["recall"] > found[kept[-1]]["recall"]:
            kept.append(number)
    return kept
