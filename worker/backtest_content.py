"""What a backtest found, as a report: every policy with its figures, NEWS2 beside them, the chosen one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.model_config import ModelConfig
from schemas.news2_policy import News2Policy
from worker import backtest, backtest_figures, backtest_grid, backtest_held_out
from worker.backtest_grid import Candidate, Rule
from worker.backtest_source import Outcome, Source
from worker.tracks import Tracks

Content = dict[str, Any]
Progress = Callable[[str, int, int], None]


class Risks(NamedTuple):
    """Whose risks the tracks hold.

    unseen: whether no model was trained on the patients it answered for; None where nobody knows.
    words: a sentence about it.
    """

    unseen: bool | None
    words: str


def made(
    source: Source,
    config: ModelConfig,
    risks: Risks,
    tracks: Tracks,
    candidates: Sequence[Candidate],
    news2: News2Policy,
    outcomes: Mapping[str, Outcome] | None,
    rule: Rule | None,
    fold: NDArray[np.int64] | None,
    progress: Progress,
) -> Content:
    """The content of a report.

    Args:
        source: of the records. config: of the model. risks: whose they are. tracks: made of them.
        candidates: to try, the model's own policy first.
        news2: NEWS2's own policy.
        outcomes: by patient. rule: by which one is chosen; needs outcomes.
        fold: int64[patients], the fold of each, where the models are those of a cross-validation.
        progress: told of policies.
    """
    beside = backtest_grid.beside(news2)
    of = len(candidates) + len(beside)
    scores = backtest.scores(tracks, "risk")
    cohort = backtest_figures.cohort(tracks.patients, scores, outcomes)
    found, did = [], []
    for number, candidate in enumerate(candidates):
        tally = backtest.tally(candidate.policy, scores)
        figures = backtest_figures.figures(candidate.policy, tally, cohort)
        did.append(backtest_held_out.did(tally, cohort))
        policy = msgspec.to_builtins(candidate.policy)
        found.append({"name": candidate.name, "role": candidate.role, "policy": policy} | figures)
        progress("trying policies", number + 1, of)
    early = []
    for number, (name, policy) in enumerate(beside):
        points = backtest.scores(tracks, "news2", policy.single_enter)
        figures = backtest_figures.figures(policy, backtest.tally(policy, points), cohort)
        early.append({"name": name, "role": "news2", "policy": msgspec.to_builtins(policy)} | figures)
        progress("trying policies", len(candidates) + number + 1, of)
    chosen = backtest_grid.choose(rule, found) if rule is not None else None
    held_out = None
    if rule is not None and fold is not None:
        # What ships may have been chosen on these patients: nobody chooses it anew without some of them.
        anew = [number for number, candidate in enumerate(candidates) if candidate.role != "shipped"]
        names = [candidates[number].name for number in anew]
        held_out = backtest_held_out.judged(rule, names, [did[number] for number in anew], cohort, fold)
    return {
        "source": {"name": source.name, "records": source.count, "data": source.data},
        "model": {"name": config.name, "version": config.version, "digest": config.digest},
        "risks": risks._asdict(),
        "outcome": source.outcome if cohort.judged else None,
        "cohort": backtest_figures.described(cohort),
        "figures": backtest_figures.FIGURES,
        "policies": found,
        "news2": early,
        "front": backtest_grid.front(found) if cohort.judged else [],
        "rule": rule.words() if rule is not None else None,
        "chosen": chosen,
        "held_out": held_out,
    }


def marked(content: Content) -> list[tuple[str, Content]]:
    """The policies that a table shows, with a word for what they are."""
    policies, front, chosen = content["policies"], content["front"], content["chosen"]
    rows = []
    for number, policy in enumerate(policies):
        what = {"shipped": "shipped", "file": "file"}.get(policy["role"], "")
        if number in front and not what:
            what = "front"
        if number == chosen:
            what = f"chosen, {what}" if what == "shipped" else "chosen"
        if what or len(policies) <= len(front) or not front:
            rows.append((what, policy))
    order = {"shipped": 0, "chosen, shipped": 0, "chosen": 1}
    rows.sort(key=lambda row: (order.get(row[0], 2), -(row[1]["recall"] or 0)))
    return [*rows, *(("NEWS2", policy) for policy in content["news2"])]
