"""Makes the model `vitals`: cross-validation, calibration, policy, and the folder that is shipped.

Each model is an ensemble: `members` networks, each trained on all but one part of its stays, which decides
when to stop. Cross-validation trains a whole ensemble for each fold on the other folds, so a fold's stays
serve its figures for nothing else: not for stopping, not for normalisation. Calibration and policy come
from these risks out of fold; figures after calibration use a calibration fitted on the other folds.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from engines import evaluate, metrics, physionet2012
from engines.errors import DatasetError
from engines.physionet2012 import Stay
from engines.repository import CARD, CONFIG, EVALUATION, GOLDEN, GRAPH
from engines.train import calibrate, card, export
from engines.train.data import Material, aligned_rows, training_rows
from engines.train.fit import Recipe, Split, fit, logits, normalisation
from engines.train.network import Member, Step
from schemas.features import FEATURES
from schemas.model_config import Batching, ModelConfig, Policy, StatePair, Tensor
from schemas.window import FILL, WINDOW_BINS, Rows, rows

NAME, VERSION, OUTCOME = "vitals", 1, "in-hospital death"

ALIGNMENTS = 6
"""Random alignments of the stays that epochs take in turn; each costs some 200 MB for 4,000 stays."""

Progress = Callable[[str, int, int], None]
"""Told (what, done, of)."""


RECIPE = Recipe()


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is trained; `threads` changes the last bits of the weights."""

    recipe: Recipe = RECIPE
    folds: int = 5
    members: int = 4
    alignments: int = ALIGNMENTS
    seed: int = 2012
    threads: int = 2


FULL = Plan()

QUICK = Plan(Recipe(epochs=2, hidden=16), folds=2, members=2, alignments=1, threads=1)
"""Minutes become seconds and the figures worthless: to try the path, not to serve."""


class Result(NamedTuple):
    """What training found.

    out_of_fold: float32[stays, 48], mean logits of ensembles that never saw the stay.
    folds: int64[stays], the fold of each stay.
    """

    members: list[Member]
    out_of_fold: NDArray[np.float32]
    folds: NDArray[np.int64]


def train(source: Path, out: Path, progress: Progress, plan: Plan = FULL) -> dict[str, object]:
    """Train, judge and write the model folder `out`/vitals.

    Returns:
        The content of evaluation.json.

    Raises:
        DatasetError: the data set cannot be read, or a stay has no outcome.
    """
    torch.set_num_threads(plan.threads)
    progress("reading stays", 0, 0)
    stays = physionet2012.read(source)
    _check(stays, plan)
    material = _material(stays, plan, progress)
    result = _cross_validate(material, plan, progress)
    return _write(out / NAME, stays, material.died, result, plan)


def _check(stays: list[Stay], plan: Plan) -> None:
    outcomes = [stay.outcome for stay in stays]
    if None in outcomes:
        raise DatasetError("training needs an Outcomes file that names every stay")
    needed = plan.folds * max(plan.members, plan.folds)  # one in every part of every fold
    if min(outcomes.count(0), outcomes.count(1)) < needed:
        raise DatasetError(
            f"training needs {needed} deaths and {needed} survivors at the least, "
            f"came {outcomes.count(1)} and {outcomes.count(0)}"
        )


def _cross_validate(material: Material, plan: Plan, progress: Progress) -> Result:
    died = material.died
    folds = stratified(died, plan.folds, plan.seed)
    on_epoch = _Counter(progress, (plan.folds + 1) * plan.members * plan.recipe.epochs)
    out_of_fold = np.empty((len(died), WINDOW_BINS), dtype=np.float32)
    for fold in range(plan.folds):
        learn, held_out = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        members = _ensemble(material, learn, plan, plan.seed + 100 * fold, on_epoch)
        out_of_fold[held_out] = _mean_logits(members, material.aligned, held_out)
    everyone = np.arange(len(died))
    members = _ensemble(material, everyone, plan, plan.seed + 100 * plan.folds, on_epoch)
    return Result(members, out_of_fold, folds)


def stratified(died: NDArray[np.floating], parts: int, seed: int) -> NDArray[np.int64]:
    """A part number for each stay, with equal shares of deaths."""
    rng = np.random.default_rng(seed)
    part = np.empty(len(died), dtype=np.int64)
    for outcome in (0, 1):
        index = np.flatnonzero(died == outcome)
        part[rng.permutation(index)] = np.arange(len(index)) % parts
    return part


class _Counter:
    """Counts epochs for the progress bar; epochs saved by early stopping are skipped at a member's end."""

    def __init__(self, progress: Progress, steps: int) -> None:
        self.progress, self.steps, self.done = progress, steps, 0

    def __call__(self) -> None:
        self.done += 1
        self.progress("training", self.done, self.steps)


def _material(stays: list[Stay], plan: Plan, progress: Progress) -> Material:
    accepted = [physionet2012.clean(stay) for stay in stays]
    died = np.array([stay.outcome for stay in stays], dtype=np.float32)
    rng = np.random.default_rng(plan.seed)
    batches = []
    for done in range(plan.alignments):
        batches.append(training_rows(accepted, rng))
        progress("aligning stays", done + 1, plan.alignments)
    return Material(died, aligned_rows(accepted), batches)


def _ensemble(
    material: Material, stays: NDArray[np.intp], plan: Plan, seed: int, on_epoch: _Counter
) -> list[Member]:
    """Members trained on `stays`; each leaves out another part, by which it is stopped."""
    parts = stratified(material.died[stays], max(plan.members, plan.folds), seed)
    norm = normalisation(material.aligned, stays)
    members = []
    for number in range(plan.members):
        split = Split(stays[parts != number], stays[parts == number])
        end = on_epoch.done + plan.recipe.epochs
        members.append(fit(plan.recipe, material, split, norm, seed=seed + number, on_epoch=on_epoch))
        on_epoch.done = end
    return members


def _mean_logits(members: list[Member], aligned: Rows, stays: NDArray[np.intp]) -> NDArray[np.float32]:
    found = [logits(member, aligned, stays) for member in members]
    return np.asarray(np.mean(found, axis=0), dtype=np.float32)


def _write(
    folder: Path, stays: list[Stay], died: NDArray[np.float32], result: Result, plan: Plan
) -> dict[str, object]:
    platt = calibrate.platt(result.out_of_fold, died)
    policy, levels = calibrate.choose_policy(platt(result.out_of_fold), died)
    step = Step(result.members, *platt)
    graph = export.to_onnx(step)
    config = _config(step, hashlib.sha256(graph).hexdigest(), policy)
    risks = _cross_calibrated(result.out_of_fold, died, result.folds)
    threshold = round(metrics.best_event1_threshold(died, risks[:, -1]), 4)
    evaluation: dict[str, object] = {
        "model": {"name": NAME, "version": VERSION, "digest": config.digest},
        "data": physionet2012.described(stays),
        "method": f"{plan.folds}-fold stratified cross-validation (seed {plan.seed}) of the whole procedure: "
        f"each fold is judged by an ensemble of {plan.members} trained on the others",
        "event1_threshold": threshold,
        "hours": evaluate.figures(died, risks, threshold),
        "calibration": platt._asdict(),
        "policy": {
            level.severity: point._asdict() for level, point in zip(policy.levels, levels, strict=True)
        },
        "metrics": evaluate.DEFINITIONS,
    }
    version = folder / str(VERSION)
    version.mkdir(parents=True, exist_ok=True)
    (version / GRAPH).write_bytes(graph)
    (version / GOLDEN).write_bytes(export.golden(step, synthetic_stays(plan.seed)))
    (folder / CONFIG).write_bytes(_pretty(config))
    (folder / EVALUATION).write_bytes(_pretty(evaluation))
    (folder / CARD).write_text(card.text(config, evaluation, plan.members, plan.recipe.hidden))
    return evaluation


def _cross_calibrated(
    out_of_fold: NDArray[np.float32], died: NDArray[np.float32], folds: NDArray[np.int64]
) -> NDArray[np.float64]:
    risks = np.empty(out_of_fold.shape)
    for fold in np.unique(folds):
        inside = folds == fold
        risks[inside] = calibrate.platt(out_of_fold[~inside], died[~inside])(out_of_fold[inside])
    return risks


def _config(step: Step, digest: str, policy: Policy) -> ModelConfig:
    width = (len(FEATURES),)
    state = StatePair("state", "state_out", (step.width,))
    return ModelConfig(
        name=NAME,
        kind="windowed-series",
        version=VERSION,
        outcome=OUTCOME,
        features=tuple(feature.name for feature in FEATURES),
        input=(*(Tensor(name, width) for name in export.INPUTS[:3]), Tensor(state.input, state.dims)),
        output=(Tensor("risk", ()), Tensor(state.output, state.dims)),
        digest=digest,
        policy=policy,
        state=(state,),
        dynamic_batching=Batching(max_batch_size=512),
    )


def synthetic_stays(seed: int, number: int = 4) -> Rows:
    """Rows of stays that never were: golden data must hold nobody's record."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(number):
        shape = (WINDOW_BINS, len(FEATURES))
        counts = rng.poisson(rng.uniform(0, 1.5, len(FEATURES)), shape).astype(np.float32)
        low, high = (np.array([getattr(f, side) for f in FEATURES]) for side in ("low", "high"))
        values = np.clip(FILL * rng.normal(1, 0.2, shape), low, high).astype(np.float32)
        statics = np.array([rng.uniform(20, 90), rng.integers(0, 2), np.nan, rng.integers(1, 5)], np.float32)
        counts[:, [f.kind == "static" for f in FEATURES]] = 0
        made.append(rows(values, counts, statics))
    return Rows(*(np.stack(arrays) for arrays in zip(*made, strict=True)))


def _pretty(content: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"
