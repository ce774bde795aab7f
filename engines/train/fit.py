"""Training of one member: loss at every hour, closed and partly filled, with early stopping."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engines import metrics
from engines.train.data import HOURS, Batch, Material
from engines.train.network import Dense, Inputs, Member, Read, Recurrent, Scaled, Target
from schemas.features import FEATURES, Feature
from schemas.window import NEVER, Rows

JUDGED_HOURS = (12, 24, 48)
"""Hours at which early stopping judges a member."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a member is trained.

    kind: `recurrent`, a GRU; `dense`, a network over the row and the running summary.
    hidden: units of the GRU, or of the first of two layers.
    epochs, patience: at most so many epochs, and so many without a better one.
    batch: stays. hours: hours of each stay that a batch learns from, drawn at random.
    rate, weight_decay: of AdamW.
    channel_dropout: mean share of features that are as if never observed, for a whole stay.
    dropout: of units before the output, and between layers.
    noise: on the inputs, in standard deviations.
    averaging: share of the old weights in the running average that is judged and kept.
    forecast: weight of the forecast's loss beside the risk's.
    """

    kind: Literal["recurrent", "dense"] = "recurrent"
    hidden: int = 32
    epochs: int = 24
    patience: int = 8
    batch: int = 64
    hours: int = HOURS
    rate: float = 3e-3
    weight_decay: float = 0.02
    channel_dropout: float = 0.2
    dropout: float = 0.2
    noise: float = 0.1
    averaging: float = 0.99
    forecast: float = 0.1


class Split(NamedTuple):
    """Indices of stays, which do not overlap."""

    learn: NDArray[np.intp]
    stop: NDArray[np.intp]


class Shape(NamedTuple):
    """What all members of an ensemble share: the features, in order, and how they are read.

    series: int64[series], which features are summarised. target: what is forecast.
    """

    inputs: Inputs
    series: Tensor
    target: Target


def shape(aligned: Rows, stays: NDArray[np.intp], features: Sequence[str], forecasts: Sequence[str]) -> Shape:
    """Learnt from the values observed in these stays: mean, spread, and usual change from hour to hour.

    Args:
        aligned: rows with these features alone.
        stays: those that may be looked at.
        features: names, in order.
        forecasts: names of those that are forecast.
    """
    known = {feature.name: feature for feature in FEATURES}
    table = [known[name] for name in features]
    part = Rows(*(array[stays] for array in aligned))
    series = [place for place, feature in enumerate(table) if feature.kind == "series"]
    places = [features.index(name) for name in forecasts]
    return Shape(_normalisation(part), torch.tensor(series), _target(part, table, places))


def _normalisation(stays: Rows) -> Inputs:
    """Mean and spread of the values observed, logged where they are skewed."""
    found = []
    for channel in range(stays.values.shape[-1]):
        column = stays.values[..., channel][stays.elapsed[..., channel] == 0].astype(np.float64)
        log = len(column) > 0 and _skewness(column) > 1
        column = np.log1p(column) if log else column
        mean = column.mean() if len(column) else 0.0
        scale = max(column.std(), 1e-3) if len(column) else 1.0
        found.append((mean, scale, float(log)))
    return Inputs(*torch.tensor(found, dtype=torch.float32).T.contiguous())


def _target(stays: Rows, table: list[Feature], places: list[int]) -> Target:
    values, fresh, known = _next(stays, places)
    size = np.abs(values - stays.values[:, :-1, places])
    judged = fresh & known
    usual = [size[..., k][judged[..., k]].mean() if judged[..., k].any() else 1.0 for k in range(len(places))]
    bounds = [(table[place].low, table[place].high) for place in places]
    low, high = torch.tensor(bounds, dtype=torch.float32).reshape(-1, 2).T.contiguous()
    change = torch.tensor(usual, dtype=torch.float32).clamp(min=1e-3)
    return Target(torch.tensor(places), change, low, high)


def _next(stays: Rows, places: list[int]) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
    """The next hour's value of some features, whether it was measured, and whether one was known before."""
    after, before = np.s_[:, 1:, places], np.s_[:, :-1, places]
    return stays.values[after], stays.counts[after] > 0, stays.elapsed[before] < NEVER


def build(recipe: Recipe, form: Shape) -> Member:
    """A member with random weights, from torch's generator."""
    features, forecasts = len(form.inputs.mean), len(form.target.feature)
    if recipe.kind == "recurrent":
        return Recurrent(features, forecasts, recipe.hidden, recipe.dropout, recipe.noise)
    return Dense(features, form.series, forecasts, recipe.hidden, recipe.dropout, recipe.noise)


def fit(
    recipe: Recipe,
    material: Material,
    split: Split,
    form: Shape,
    *,
    seed: int,
    on_epoch: Callable[[], None],
) -> Member:
    """Train a member, keeping the epoch that is best on the stays it is stopped by.

    Args:
        recipe: hyperparameters.
        material: all stays; an epoch uses one of its alignments.
        split: which stays are learnt from and which decide when to stop.
        form: normalisation of the inputs, and what is forecast.
        seed: of weights, order, dropout and noise.
        on_epoch: called after each epoch, for a progress bar.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    member = build(recipe, form)
    average = deepcopy(member).requires_grad_(False).eval()
    best: Member = deepcopy(average)
    best_score, since = -1.0, 0
    optimiser = torch.optim.AdamW(member.parameters(), lr=recipe.rate, weight_decay=recipe.weight_decay)
    parts = max(1, len(split.learn) // recipe.batch)
    steps = recipe.epochs * parts
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, total_steps=steps, pct_start=0.15)
    for epoch in range(recipe.epochs):
        batch = material.batches[(epoch + seed) % len(material.batches)]
        for part in np.array_split(rng.permutation(split.learn), parts):
            hours = np.sort(rng.choice(HOURS, min(recipe.hours, HOURS), replace=False))
            loss = _loss(member, recipe, form, Drawn(batch, part, hours), material.died[part])
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(member.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            _average(average, member, recipe.averaging)
        on_epoch()
        score = _judge(average, material, form, split.stop)
        if score > best_score:
            best, best_score, since = deepcopy(average), score, 0
        elif (since := since + 1) >= recipe.patience:
            break
    return best


class Found(NamedTuple):
    """What a member says after each complete hour: float32[stays, steps] and [stays, steps, forecasts]."""

    logits: NDArray[np.float32]
    changes: NDArray[np.float32]


def found(member: Member, form: Shape, closed: Rows, stays: NDArray[np.intp]) -> Found:
    """What a trained member says of whole stays."""
    parts = []
    with torch.no_grad():
        for part in np.array_split(stays, max(1, len(stays) // 256)):
            read, _ = member.over(form.inputs(*_tensors(closed, part)))
            parts.append((read.logit[..., 0].numpy(), read.changes.numpy()))
    return Found(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


class Drawn(NamedTuple):
    """What a step of training sees: some stays of a batch, at some hours."""

    batch: Batch
    stays: NDArray[np.intp]
    hours: NDArray[np.intp]


def _loss(member: Member, recipe: Recipe, form: Shape, drawn: Drawn, died: NDArray[np.float32]) -> Tensor:
    batch, stays, hours = drawn
    rows = [Rows(*(array[stays] for array in made)) for made in (batch.closed, batch.opened)]
    keep = _kept(recipe, len(stays), len(form.inputs.mean))
    closed, opened = (_dropped(form.inputs(*map(torch.from_numpy, made)), keep) for made in rows)
    target = torch.from_numpy(died)[:, None].expand(-1, len(hours))
    weight = torch.from_numpy(batch.weight[stays][:, hours])
    total = torch.zeros(())
    for read, made in zip(member.learn(closed, opened, hours), rows, strict=True):
        each = nn.functional.binary_cross_entropy_with_logits(read.logit[..., 0], target, reduction="none")
        total = total + (each * weight).sum() / weight.sum()
        if len(form.target.feature):
            total = total + recipe.forecast * _forecast_loss(read, made, rows[0], form.target, hours)
    return total / 2


def _forecast_loss(read: Read, made: Rows, closed: Rows, target: Target, hours: NDArray[np.intp]) -> Tensor:
    """Mean absolute error of the changes, in their unit: all features count alike."""
    places = target.feature.tolist()
    inside = hours < closed.values.shape[1] - 1
    at = hours[inside]
    values, measured, _ = _next(closed, places)
    last, known = made.values[:, at][..., places], made.elapsed[:, at][..., places] < NEVER
    judged = torch.from_numpy(measured[:, at] & known).float()
    change = torch.from_numpy(values[:, at] - last) / target.change
    error = torch.abs(read.changes[:, torch.from_numpy(inside)] - change) * judged
    return error.sum() / judged.sum().clamp(min=1)


def _kept(recipe: Recipe, stays: int, features: int) -> Tensor:
    """float32[stays, 1, features]: 0 for a feature that is as if never observed throughout a stay, else 1."""
    share = recipe.channel_dropout * torch.rand(stays, 1, 1) * 2
    return (torch.rand(stays, 1, features) >= share).float()


def _dropped(rows: Scaled, keep: Tensor) -> Scaled:
    # Where all else is 0, `elapsed` makes no difference.
    return Scaled(rows.z * keep, rows.elapsed, rows.fresh * keep, rows.recency * keep, rows.counts * keep)


def _average(average: Member, member: Member, share: float) -> None:
    with torch.no_grad():
        for kept, new in zip(average.parameters(), member.parameters(), strict=True):
            kept.lerp_(new, 1 - share)


def _judge(member: Member, material: Material, form: Shape, stays: NDArray[np.intp]) -> float:
    risk = found(member, form, material.aligned, stays).logits
    died = material.died[stays]
    at = [metrics.auroc(died, risk[:, hour - 1]) for hour in JUDGED_HOURS]
    return float(np.mean(at)) + 0.5 * metrics.auprc(died, risk[:, -1])


def _tensors(arrays: Rows, stays: NDArray[np.intp]) -> list[Tensor]:
    return [torch.from_numpy(array[stays]) for array in arrays]


def _skewness(column: NDArray[np.float64]) -> float:
    centred = column - column.mean()
    spread = float(np.sqrt(np.mean(centred**2)))
    return float(np.mean(centred**3)) / spread**3 if spread > 0 else 0.0
