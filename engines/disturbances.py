"""Pictures made a little worse in one way at a time, as another device or another hand would."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from engines.engine import F32

SEED = 28

Disturbance = Callable[[F32], F32]
"""float32[images, channels, height, width] in [0, 1] to the same."""


def noisy(spread: float) -> Disturbance:
    """Normal noise of this standard deviation on each pixel."""

    def apply(tensors: F32) -> F32:
        draws = np.random.default_rng(SEED).standard_normal(tensors.shape, dtype=np.float32)
        return np.asarray(np.clip(tensors + np.float32(spread) * draws, 0, 1))

    return apply


def contrasted(factor: float) -> Disturbance:
    """Distances from the picture's mean multiplied."""

    def apply(tensors: F32) -> F32:
        mean = tensors.mean(axis=(1, 2, 3), keepdims=True)
        return np.asarray(np.clip((tensors - mean) * np.float32(factor) + mean, 0, 1))

    return apply


def brightened(step: float) -> Disturbance:
    """A constant added to every pixel."""

    def apply(tensors: F32) -> F32:
        return np.asarray(np.clip(tensors + np.float32(step), 0, 1))

    return apply


def shifted(share: float) -> Disturbance:
    """Moved to the right and down by this share of the sides; the border is repeated."""

    def apply(tensors: F32) -> F32:
        _, _, height, width = tensors.shape
        down, across = round(share * height), round(share * width)
        rows = np.clip(np.arange(height) - down, 0, height - 1)
        columns = np.clip(np.arange(width) - across, 0, width - 1)
        return tensors[:, :, rows][:, :, :, columns]

    return apply


def turned(degrees: float) -> Disturbance:
    """Rotated about the middle, bilinear; the border is repeated."""

    def apply(tensors: F32) -> F32:
        _, _, height, width = tensors.shape
        y, x = np.meshgrid(
            np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij"
        )
        cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        return _sampled(tensors, cos * y - sin * x + (height - 1) / 2, sin * y + cos * x + (width - 1) / 2)

    return apply


DISTURBANCES: dict[str, Disturbance] = {
    "as they are": lambda tensors: tensors,
    "noise, standard deviation 0.03": noisy(0.03),
    "noise, standard deviation 0.10": noisy(0.10),
    "contrast x 0.7": contrasted(0.7),
    "contrast x 1.3": contrasted(1.3),
    "darker by 0.1": brightened(-0.1),
    "brighter by 0.1": brightened(0.1),
    "shifted by 7% of the sides": shifted(0.07),
    "turned by 7 degrees": turned(7.0),
    "turned by -7 degrees": turned(-7.0),
}
"""By name, in the report's order; shares are of the range from black to white."""


def _sampled(tensors: F32, y: NDArray[np.float64], x: NDArray[np.float64]) -> F32:
    """Bilinear values at the places y, x (in pixels, [height, width] each)."""
    _, _, height, width = tensors.shape
    y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    top, left = np.floor(y).astype(np.intp), np.floor(x).astype(np.intp)
    bottom, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    down, across = (y - top).astype(np.float32), (x - left).astype(np.float32)
    upper = tensors[:, :, top, left] * (1 - across) + tensors[:, :, top, right] * across
    lower = tensors[:, :, bottom, left] * (1 - across) + tensors[:, :, bottom, right] * across
    return np.asarray(upper * (1 - down) + lower * down, dtype=np.float32)
