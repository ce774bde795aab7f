"""Training of one image member: classes weigh the same, light augmentation, averaged weights."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engines.engine import F32
from engines.train.image_network import Member

FEWEST_STEPS = 8
"""Of an epoch: a few dozen pictures are learnt from in smaller batches, of at least four."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a member is trained.

    shift: greatest shift, share of the side.
    turn: greatest rotation, degrees.
    zoom: greatest change of scale, as a share.
    light: greatest change of brightness and of contrast, as a share of the range.
    noise: greatest standard deviation of noise on each pixel, as a share of the range.
    averaging: share of the old weights kept at each step in the weights that are served.
    mixup: parameter of the beta distribution by which pairs of pictures are mixed; 0 for none.
    """

    epochs: int = 16
    batch: int = 64
    rate: float = 3e-3
    weight_decay: float = 0.02
    smoothing: float = 0.05
    shift: float = 0.07
    turn: float = 8.0
    zoom: float = 0.08
    light: float = 0.15
    noise: float = 0.02
    averaging: float = 0.99
    mixup: float = 0.0


def fit(
    recipe: Recipe,
    images: F32,
    labels: NDArray[np.int64],
    classes: int,
    *,
    seed: int,
    on_epoch: Callable[[], None],
) -> Member:
    """Train a member for a fixed number of epochs: nothing of the held-out pictures decides anything.

    Args:
        recipe: hyperparameters.
        images: float32[images, channels, height, width] in [0, 1].
        labels: int64[images], the class of each; every class occurs.
        classes: number of classes.
        seed: of weights, order and augmentation.
        on_epoch: called after each epoch, for a progress bar.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    channels, height, width = images.shape[1:]
    member = Member(channels, height, width, classes, normalisation(images))
    member.train().to(memory_format=torch.channels_last)
    average: Member = deepcopy(member).requires_grad_(False)
    share = np.bincount(labels, minlength=classes)
    weight = _float(len(labels) / (classes * np.maximum(share, 1)))
    optimiser = torch.optim.AdamW(member.parameters(), lr=recipe.rate, weight_decay=recipe.weight_decay)
    parts = max(len(labels) // recipe.batch, min(FEWEST_STEPS, len(labels) // 4), 1)
    steps = recipe.epochs * parts
    total = max(steps, 10)  # a schedule of fewer has no rise
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, total_steps=total, pct_start=0.2)
    done = 0
    for _ in range(recipe.epochs):
        for part in np.array_split(rng.permutation(len(labels)), parts):
            batch = augmented(torch.from_numpy(images[part]), recipe)
            loss = _loss(member, batch, torch.from_numpy(labels[part]), weight, recipe)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(member.parameters(), 2.0)
            optimiser.step()
            schedule.step()
            done += 1
            _average(average, member, min(recipe.averaging, done / (done + 9)))
        on_epoch()
    average.eval()
    return average


def normalisation(images: F32) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel's pixels, float32[channels] each."""
    mean = images.mean(axis=(0, 2, 3), dtype=np.float64)
    spread = images.std(axis=(0, 2, 3), dtype=np.float64)
    return _float(mean), _float(np.maximum(spread, 1e-3))


def logits(member: Member, images: F32) -> NDArray[np.float32]:
    """float32[images, classes] of float32[images, channels, height, width]."""
    parts = np.array_split(images, max(1, len(images) // 128))
    with torch.no_grad():
        found = [member(torch.from_numpy(part)).numpy() for part in parts]
    return np.concatenate(found).astype(np.float32)


def augmented(batch: Tensor, recipe: Recipe) -> Tensor:
    """Pictures shifted, turned, scaled and lit a little differently, each by its own draw."""
    count = len(batch)
    turn = _draw(count) * np.deg2rad(recipe.turn)
    scale = 1 + _draw(count) * recipe.zoom
    cos, sin = torch.cos(turn) * scale, torch.sin(turn) * scale
    across, down = _draw(count) * 2 * recipe.shift, _draw(count) * 2 * recipe.shift
    theta = torch.stack([cos, -sin, across, sin, cos, down], dim=1).view(-1, 2, 3)
    grid = nn.functional.affine_grid(theta, list(batch.shape), align_corners=False)
    moved = nn.functional.grid_sample(batch, grid, padding_mode="border", align_corners=False)
    contrast = 1 + _draw(count) * recipe.light * 1.5
    middle = moved.mean(dim=(1, 2, 3), keepdim=True)
    lit = (moved - middle) * contrast[:, None, None, None] + middle
    noise = torch.rand(count, 1, 1, 1) * recipe.noise * torch.randn_like(batch)
    return lit + (_draw(count) * recipe.light)[:, None, None, None] + noise


def _draw(count: int) -> Tensor:
    return torch.rand(count) * 2 - 1


def _loss(member: Member, batch: Tensor, labels: Tensor, weight: Tensor, recipe: Recipe) -> Tensor:
    cross = nn.CrossEntropyLoss(weight, label_smoothing=recipe.smoothing)
    if not recipe.mixup:
        return cross(member(batch), labels)
    share = float(torch.distributions.Beta(recipe.mixup, recipe.mixup).sample())
    order = torch.randperm(len(batch))
    found = member(share * batch + (1 - share) * batch[order])
    return share * cross(found, labels) + (1 - share) * cross(found, labels[order])


def _average(average: Member, member: Member, share: float) -> None:
    with torch.no_grad():
        for kept, new in zip(average.state_dict().values(), member.state_dict().values(), strict=True):
            if kept.is_floating_point():
                kept.lerp_(new, 1 - share)
            else:
                kept.copy_(new)


def _float(array: NDArray[np.floating]) -> Tensor:
    return torch.tensor(np.asarray(array), dtype=torch.float32)
