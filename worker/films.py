"""Simulated chest films, seeded, for demo and tests: a thorax in outline, clear or with a consolidation.

Drawn from ellipses: body, two lungs, heart, diaphragm, ribs, spine, then noise. A consolidation is soft white
patches over the lungs. It knows nothing of any model, and no one looks like this: not for research.
"""

import math
import random

import numpy as np

from engines.engine import F32

SIDE = 256
"""Pixels of a film's side."""

_AXIS = (np.arange(SIDE, dtype=np.float32) + 0.5) / SIDE * 2 - 1
_X, _Y = np.meshgrid(_AXIS, _AXIS)


def film(seed: int, number: int, level: float) -> F32:
    """One film.

    Args:
        seed, number: the same give the same film.
        level: of consolidation, from 0 for clear lungs to 1.

    Returns:
        float32[SIDE, SIDE, 1] from 0, black, to 1, white.
    """
    rng = random.Random(f"film/{seed}/{number}")
    lean, size = rng.uniform(-0.04, 0.04), rng.uniform(0.94, 1.06)
    body = np.maximum(
        _soft(_ellipse(lean, 0.6, 0.96 * size, 1.9, 0.0), 0.05),
        _soft(_ellipse(lean, -1.0, 0.3, 0.6, 0.0), 0.08),  # neck
    )
    air = np.maximum(_lung(-1, lean, size, rng), _lung(1, lean, size, rng))
    for middle in (
        _ellipse(lean, 0.0, 0.13, 1.9, 0.0),
        _ellipse(lean + 0.11, 0.36, 0.3 * size, 0.36, -0.5),  # heart
        _ellipse(lean - 0.46, 1.12, 0.6, 0.55, 0.0),  # diaphragm
        _ellipse(lean + 0.46, 1.17, 0.6, 0.55, 0.0),
    ):
        air = air * (1 - _soft(middle, 0.07))
    picture = body * (0.58 + 0.26 * _soft(_ellipse(lean, 0.2, 0.11, 1.4, 0.0), 0.2))
    picture = picture - air * (0.48 - 0.09 * _ribs(rng))
    picture += level * air * (0.16 + 0.4 * _consolidation(rng, lean))
    noise = np.random.default_rng(rng.getrandbits(64)).normal(0.0, 0.012, picture.shape)
    return np.asarray(np.clip(picture + noise, 0, 1)[:, :, None], dtype=np.float32)


def _ellipse(x: float, y: float, wide: float, high: float, turn: float) -> F32:
    """Above 0 inside, below outside; about 1 in the middle."""
    across = (_X - x) * math.cos(turn) + (_Y - y) * math.sin(turn)
    along = -(_X - x) * math.sin(turn) + (_Y - y) * math.cos(turn)
    return np.asarray(1 - np.square(across / wide) - np.square(along / high), dtype=np.float32)


def _soft(inside: F32, edge: float) -> F32:
    return np.asarray(1 / (1 + np.exp(np.clip(-inside / edge, -50, 50))), dtype=np.float32)


def _lung(side: int, lean: float, size: float, rng: random.Random) -> F32:
    centre = lean + side * 0.43 * size
    return _soft(
        _ellipse(centre, rng.uniform(-0.08, 0.0), 0.33 * size, rng.uniform(0.68, 0.76), 0.12 * side), 0.08
    )


def _ribs(rng: random.Random) -> F32:
    pitch, shift = rng.uniform(0.17, 0.2), rng.uniform(0, 1)
    wave = np.cos(2 * np.pi * ((_Y - 0.35 * np.square(_X)) / pitch + shift))
    return np.asarray(np.clip(wave, 0, 1) ** 2, dtype=np.float32)


def _consolidation(rng: random.Random, lean: float) -> F32:
    """Soft patches over both lungs, whiter in one of them."""
    worse = rng.choice((-1, 1))
    cover = np.zeros_like(_X)
    for side, weight in ((worse, 1.0), (-worse, 0.7)):
        for _ in range(3):
            x, y = lean + side * rng.uniform(0.3, 0.5), rng.uniform(-0.3, 0.4)
            patch = _ellipse(x, y, rng.uniform(0.2, 0.4), rng.uniform(0.2, 0.4), rng.uniform(-1, 1))
            cover = np.maximum(cover, weight * _soft(patch, 0.25))
    return np.asarray(cover, dtype=np.float32)
