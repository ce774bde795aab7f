"""Where an image model saw its findings, and how that agrees with a slower way to ask.

The map is the graph's own output `activation`, which costs nothing more. The slower way is occlusion: a
patch is slid over the picture, and the fall of the risk's log odds says what the patch was worth.
"""

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.engine import F32
from schemas.model_config import ModelConfig

PATCH = 4
"""The patch's side is the picture's divided by this, and it moves by half its side: 49 patches a picture.

Smaller ones cover too little to change a risk; greater ones cannot tell places apart."""

Run = Callable[[F32], Mapping[str, F32]]
"""Outputs `probability` and `activation` for float32[n, channels, height, width]."""


def evidence(config: ModelConfig, probability: F32, activation: F32) -> F32:
    """What speaks for a finding at each place: maps of the findings less maps of the other classes.

    Each side's maps are weighed by the classes' shares of that side's probability, which is how the log odds
    of the risk answer to the classes' logits.

    Args:
        config: of an image model.
        probability: float32[..., classes].
        activation: float32[..., classes, map height, map width].

    Returns:
        float32[..., map height, map width]; above 0 for a finding, below 0 against.
    """
    inside = np.isin(config.classes, config.findings)
    shares = np.maximum(probability.astype(np.float64), 1e-12)
    weights = np.where(inside, 1.0, -1.0) * shares
    for side in (inside, ~inside):
        weights[..., side] /= shares[..., side].sum(axis=-1, keepdims=True)
    return np.asarray((activation * weights[..., None, None]).sum(axis=-3), dtype=np.float32)


def check_activation(
    config: ModelConfig,
    run: Run,
    tensors: F32,
    on_step: Callable[[str, int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Compare the map with occlusion on some pictures.

    Args:
        config: of an image model with an activation output.
        run: computes the graph's outputs.
        tensors: float32[n, channels, height, width], as prepared.
        on_step: told (what, done, of).

    Returns:
        "images", "patches"; "rank_correlation": mean over pictures of Spearman's between a patch's mean
        evidence and its occlusion drop, with "rank_correlation_interval" [low, high] (95%, of the mean);
        "pointing": share of pictures whose patch of most evidence is among the tenth that matter most by
        occlusion, and "pointing_by_chance"; "map_ms" and "occlusion_ms", the cost of each a picture.
    """
    boxes = _boxes(*tensors.shape[2:])
    top = max(1, round(len(boxes) / 10))
    correlations, hits, seconds = [], [], [0.0, 0.0]
    for done, tensor in enumerate(tensors, start=1):
        start = perf_counter()
        outputs = run(tensor[None])
        seen = evidence(config, outputs["probability"][0], outputs["activation"][0])
        by_patch = _patch_means(seen, boxes, tensor.shape)
        middle = perf_counter()
        drop = occlusion(config, run, tensor, boxes)
        seconds = [seconds[0] + middle - start, seconds[1] + perf_counter() - middle]
        correlations.append(_spearman(by_patch, drop))
        hits.append(int(np.argmax(by_patch)) in np.argsort(-drop, kind="stable")[:top])
        on_step("occluding pictures", done, len(tensors))
    draws = np.random.default_rng(0).choice(correlations, (500, len(correlations))).mean(axis=1)
    return {
        "images": len(tensors),
        "patches": len(boxes),
        "rank_correlation": round(float(np.mean(correlations)), 3),
        "rank_correlation_interval": [round(float(q), 3) for q in np.percentile(draws, (2.5, 97.5))],
        "pointing": round(float(np.mean(hits)), 3),
        "pointing_by_chance": round(top / len(boxes), 3),
        "map_ms": round(1000 * seconds[0] / len(tensors), 2),
        "occlusion_ms": round(1000 * seconds[1] / len(tensors), 2),
    }


Box = tuple[int, int, int, int]
"""Top, bottom, left, right in pixels."""


def occlusion(config: ModelConfig, run: Run, tensor: F32, boxes: list[Box] | None = None) -> F32:
    """How much the log odds of the risk fall when each patch is painted in the picture's mean.

    Args:
        config: of an image model.
        run: computes the graph's outputs.
        tensor: float32[channels, height, width].
        boxes: the patches; a grid of them where none are given.

    Returns:
        float32[patches].
    """
    boxes = _boxes(*tensor.shape[1:]) if boxes is None else boxes
    painted = np.repeat(tensor[None], len(boxes) + 1, axis=0)
    mean = tensor.mean(axis=(1, 2), keepdims=True)
    for number, (top, bottom, left, right) in enumerate(boxes):
        painted[number, :, top:bottom, left:right] = mean
    odds = _log_odds(config, run(painted)["probability"])
    return np.asarray(odds[-1] - odds[:-1], dtype=np.float32)


def _log_odds(config: ModelConfig, probability: F32) -> NDArray[np.float64]:
    inside = np.isin(config.classes, config.findings)
    shares = np.maximum(probability.astype(np.float64), 1e-12)
    return np.asarray(np.log(shares[:, inside].sum(axis=1)) - np.log(shares[:, ~inside].sum(axis=1)))


def _boxes(height: int, width: int) -> list[Box]:
    rows, columns = (_starts(side) for side in (height, width))
    return [(top, top + height // PATCH, left, left + width // PATCH) for top in rows for left in columns]


def _starts(side: int) -> list[int]:
    patch = side // PATCH
    return [int(start) for start in np.linspace(0, side - patch, 2 * PATCH - 1).round()]


def _patch_means(found: F32, boxes: list[Box], dims: tuple[int, ...]) -> F32:
    """Mean of the map under each patch, the map's cells being squares of the picture."""
    _, height, width = dims
    rows = np.arange(height) * found.shape[0] // height
    columns = np.arange(width) * found.shape[1] // width
    wide = found[rows][:, columns]
    means = [wide[top:bottom, left:right].mean() for top, bottom, left, right in boxes]
    return np.array(means, dtype=np.float32)


def _spearman(one: F32, other: F32) -> float:
    """Rank correlation; 0 where one of them is the same everywhere."""
    first, second = (np.unique(array, return_inverse=True)[1] for array in (one, other))
    a, b = (_mean_ranks(places) for places in (first, second))
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / size if size > 0 else 0.0


def _mean_ranks(places: NDArray[np.intp]) -> NDArray[np.float64]:
    sizes = np.bincount(places)
    return np.asarray((np.cumsum(sizes) - (sizes - 1) / 2)[places], dtype=np.float64)
