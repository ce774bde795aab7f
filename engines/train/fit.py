"""Training of one member: loss at every hour, closed and partly filled, with early stopping."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engines import metrics
from engines.train.data import Batch, Material
from engines.train.network import Inputs, Member
from schemas.features import FEATURES
from schemas.window import NEVER, Rows

JUDGED_HOURS = (12, 24, 48)
"""Hours at which early stopping judges a member."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a member is trained."""

    hidden: int = 48
    epochs: int = 24
    batch: int = 64
    rate: float = 3e-3
    weight_decay: float = 0.02
    channel_dropout: float = 0.2
    dropout: float = 0.2
    noise: float = 0.1
    averaging: float = 0.99
    patience: int = 8


class Split(NamedTuple):
    """Indices of stays, which do not overlap."""

    learn: NDArray[np.intp]
    stop: NDArray[np.intp]


class Normalisation(NamedTuple):
    """float32[channels] each; see `network.Inputs`."""

    mean: Tensor
    scale: Tensor
    logged: Tensor


def normalisation(closed: Rows, stays: NDArray[np.intp]) -> Normalisation:
    """Mean and spread of the values observed in these stays, logged where they are skewed."""
    values = closed.values[stays].reshape(-1, len(FEATURES))
    fresh = closed.elapsed[stays].reshape(-1, len(FEATURES)) == 0
    mean, scale, logged = [], [], []
    for channel in range(len(FEATURES)):
        column = values[fresh[:, channel], channel].astype(np.float64)
        log = len(column) > 0 and _skewness(column) > 1
        column = np.log1p(column) if log else column
        mean.append(column.mean() if len(column) else 0.0)
        scale.append(max(column.std(), 1e-3) if len(column) else 1.0)
        logged.append(float(log))
    return Normalisation(*(torch.tensor(column, dtype=torch.float32) for column in (mean, scale, logged)))


def fit(
    recipe: Recipe,
    material: Material,
    split: Split,
    norm: Normalisation,
    *,
    seed: int,
    on_epoch: Callable[[], None],
) -> Member:
    """Train a member, keeping the epoch that is best on the stays it is stopped by.

    Args:
        recipe: hyperparameters.
        material: all stays; an epoch uses one of its alignments.
        split: which stays are learnt from and which decide when to stop.
        norm: normalisation of the inputs.
        seed: of weights, order, dropout and noise.
        on_epoch: called after each epoch, for a progress bar.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    member = Member(Inputs(*norm), recipe.hidden)
    average = deepcopy(member).requires_grad_(False)
    best: Member = deepcopy(average)
    best_score, since = -1.0, 0
    optimiser = torch.optim.AdamW(member.parameters(), lr=recipe.rate, weight_decay=recipe.weight_decay)
    parts = max(1, len(split.learn) // recipe.batch)
    steps = recipe.epochs * parts
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, total_steps=steps, pct_start=0.15)
    for epoch in range(recipe.epochs):
        batch = material.batches[(epoch + seed) % len(material.batches)]
        for part in np.array_split(rng.permutation(split.learn), parts):
            loss = _loss(member, recipe, batch, part, material.died)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(member.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            _average(average, member, recipe.averaging)
        on_epoch()
        score = _judge(average, material, split.stop)
        if score > best_score:
            best, best_score, since = deepcopy(average), score, 0
        elif (since := since + 1) >= recipe.patience:
            break
    return best


def logits(member: Member, closed: Rows, stays: NDArray[np.intp]) -> NDArray[np.float32]:
    """float32[stays, steps]: the member's logit after each complete hour."""
    parts = np.array_split(stays, max(1, len(stays) // 512))
    with torch.no_grad():
        found = [member(*_tensors(closed, part))[0].numpy() for part in parts]
    return np.concatenate(found).astype(np.float32)


def _loss(
    member: Member, recipe: Recipe, batch: Batch, part: NDArray[np.intp], died: NDArray[np.float32]
) -> Tensor:
    target = torch.from_numpy(died[part])[:, None].expand(-1, batch.weight.shape[1])
    weight = torch.from_numpy(batch.weight[part])
    dropped = (
        torch.rand(len(part), 1, len(FEATURES)) < recipe.channel_dropout * torch.rand(len(part), 1, 1) * 2
    )
    closed = _disturbed(member, _tensors(batch.closed, part), dropped, recipe.noise)
    opened = _disturbed(member, _tensors(batch.opened, part), dropped, recipe.noise)
    _, states = member(*closed)
    before = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], dim=1)
    _, open_states = member.step(member.inputs(*opened), before)
    total = torch.zeros(())
    for h in (states, open_states):
        logit = member.head(nn.functional.dropout(h, recipe.dropout))[..., 0]
        each = nn.functional.binary_cross_entropy_with_logits(logit, target, reduction="none")
        total = total + (each * weight).sum() / weight.sum()
    return total / 2


def _disturbed(
    member: Member, tensors: list[Tensor], dropped: Tensor, noise: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The rows with some channels as if never observed, and noise on the values of the others."""
    values, elapsed, counts = tensors
    spread = torch.where(member.inputs.logged > 0, values + 1, torch.ones(())) * member.inputs.scale
    values = values + noise * spread * torch.randn_like(values)
    return (
        values,
        torch.where(dropped, torch.full((), NEVER), elapsed),
        torch.where(dropped, torch.zeros(()), counts),
    )


def _average(average: Member, member: Member, share: float) -> None:
    with torch.no_grad():
        for kept, new in zip(average.parameters(), member.parameters(), strict=True):
            kept.lerp_(new, 1 - share)


def _judge(member: Member, material: Material, stays: NDArray[np.intp]) -> float:
    risk = logits(member, material.aligned, stays)
    died = material.died[stays]
    at = [metrics.auroc(died, risk[:, hour - 1]) for hour in JUDGED_HOURS]
    return float(np.mean(at)) + 0.5 * metrics.auprc(died, risk[:, -1])


def _tensors(arrays: Rows, stays: NDArray[np.intp]) -> list[Tensor]:
    return [torch.from_numpy(array[stays]) for array in arrays]


def _skewness(column: NDArray[np.float64]) -> float:
    centred = column - column.mean()
    spread = float(np.sqrt(np.mean(centred**2)))
    return float(np.mean(centred**3)) / spread**3 if spread > 0 else 0.0
