"""What the figures say in words: where the model is better, where a simpler one is, where neither is."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

FIGURES = {"auroc": "AUROC", "auprc": "AUPRC", "event1": "event 1"}
"""The figures that sentences compare, higher being better."""


MOST = 3
"""Comparisons that one sentence gives the numbers of; the report's tables have them all."""


class Comparison(NamedTuple):
    """One figure at one hour; low and high bound `ours - theirs`."""

    hour: str
    figure: str
    ours: float
    theirs: float
    low: float
    high: float

    @property
    def words(self) -> str:
        """The numbers."""
        return (
            f"{FIGURES[self.figure]} at {self.hour} h ({self.theirs:.3f} against {self.ours:.3f}, difference "
            f"{self.theirs - self.ours:+.3f}, {-self.high:+.3f} to {-self.low:+.3f})"
        )


def verdict(hours: Mapping[str, Any], baselines: Mapping[str, Any]) -> list[str]:
    """Sentences from the numbers of `evaluate.assess`.

    Args:
        hours: judged figures of the model by hour.
        baselines: those of the baselines, each with "title" and "hours".
    """
    compared = {name: _comparisons(baseline) for name, baseline in baselines.items()}
    titles = {name: str(baseline["title"]) for name, baseline in baselines.items()}
    sentences = [_headline(*list(hours.items())[-1])]
    beaten: list[str] = []
    for name, found in compared.items():
        words = _beside(found)
        if words:
            sentences.append(f"{_capital(titles[name])}: {'; '.join(words)}.")
        elif found:
            beaten.append(titles[name])
    if beaten:
        sentences.append(
            f"The model is better than {_and(beaten)} in every figure compared, at every hour that has both."
        )
    if compared and not any(one.ours < one.theirs for found in compared.values() for one in found):
        sentences.append("No simpler model is ahead of it in any figure compared.")
    return sentences + _calibration(hours, baselines, titles)


def _headline(hour: str, judged: Mapping[str, Any]) -> str:
    low, high = judged["intervals"]["auroc"]
    return (
        f"At {hour} h the model has AUROC {judged['auroc']:.3f} ({low:.3f} to {high:.3f}), "
        f"AUPRC {judged['auprc']:.3f}, event 1 {judged['event1']:.3f} and ECE {judged['ece']:.3f}, "
        f"on {judged['n']:,} stays with {judged['positives']:,} deaths."
    )


def _comparisons(baseline: Mapping[str, Any]) -> list[Comparison]:
    found = []
    for hour, judged in baseline["hours"].items():
        for figure, (gap, low, high) in judged["difference"].items():
            if figure in FIGURES:
                found.append(Comparison(hour, figure, judged[figure] + gap, judged[figure], low, high))
    return found


def _beside(found: Sequence[Comparison]) -> list[str]:
    """How a baseline stands beside the model; nothing where it is clearly worse in all."""
    better = [one for one in found if one.high < 0]
    ahead = [one for one in found if one.ours < one.theirs and one.high >= 0]
    level = [one for one in found if one.ours >= one.theirs and one.low <= 0]
    words = []
    if better:
        words.append(f"better than the model in {_listed(better)}")
    if ahead:
        words.append(f"ahead, but within the uncertainty, in {_listed(ahead)}")
    if level:
        words.append(f"not told apart from the model, which is ahead, in {_named(level)}")
    if words and len(better) + len(ahead) + len(level) < len(found):
        words.append("the model is better in all else")
    return words


def _calibration(
    hours: Mapping[str, Any], baselines: Mapping[str, Any], titles: Mapping[str, str]
) -> list[str]:
    sentences = []
    for name, baseline in baselines.items():
        better = [
            f"at {hour} h {judged['ece']:.3f} against {hours[hour]['ece']:.3f}"
            for hour, judged in baseline["hours"].items()
            if "ece" in judged and judged["ece"] < hours[hour]["ece"]
        ]
        if better:
            sentences.append(f"{_capital(titles[name])}: smaller calibration error (ECE) {_and(better)}.")
    return sentences


def _listed(comparisons: Sequence[Comparison]) -> str:
    """With their numbers; of more than `MOST`, those of the greatest difference."""
    if len(comparisons) <= MOST:
        return _and([one.words for one in comparisons])
    greatest = max(comparisons, key=lambda one: one.theirs - one.ours)
    return f"{_named(comparisons)}, by most in {greatest.words}"


def _named(comparisons: Sequence[Comparison]) -> str:
    """Figures and hours without the numbers."""
    figures = dict.fromkeys(one.figure for one in comparisons)
    return _and(
        [
            f"{FIGURES[figure]} at {_and([one.hour for one in comparisons if one.figure == figure])} h"
            for figure in figures
        ]
    )


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
