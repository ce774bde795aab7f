"""Every case has one fate: decoded, or refused for a known reason; the decoders live on, in bounds."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from engines.errors import IMAGE_REASONS, ImageError
from schemas.model_config import ImageInput
from tests.fuzz.mutate import Files
from worker.decoder import GRACE_S, Decoders

WANTED = ImageInput(height=32, width=32)
DECODED = "decoded"
KEPT = ("decode-crashed", "decode-timeout", "decode-memory")
"""Fates whose cases are worth a look."""


@dataclass
class Outcome:
    """What became of the cases. fates: how many by fate. kept: cases by those fates in `KEPT`."""

    fates: Counter[str] = field(default_factory=Counter)
    kept: dict[str, list[int]] = field(default_factory=dict)
    slowest_s: float = 0.0
    slowest_case: int = 0
    peak_mb: int = 0
    restarts: int = 0
    wall_s: float = 0.0


async def fuzz(
    cases: range,
    seed: int,
    *,
    decoders: int = 2,
    timeout_s: float = 5.0,
    memory_mb: int = 256,
    tell: Callable[[int], None] = lambda done: None,
) -> Outcome:
    """Decode the cases.

    Raises:
        AssertionError: a fate that is none, an image that is none, or a decoder beyond its limits.
    """
    files, found, start = Files(seed), Outcome(), time.perf_counter()
    numbers = iter(cases)
    async with Decoders(decoders, timeout_s, memory_mb) as pool:
        pids = pool.pids
        await asyncio.gather(*(_each(pool, files, numbers, found, timeout_s, tell) for _ in range(decoders)))
        found.restarts = len(set(pids) - set(pool.pids))
        found.peak_mb = pool.peak_bytes >> 20
    found.wall_s = time.perf_counter() - start
    assert sum(found.fates.values()) == len(cases)
    assert found.fates.keys() <= {DECODED, *IMAGE_REASONS}
    assert found.restarts == 0, "a decoder process itself was lost"
    assert found.peak_mb < memory_mb + 128, "a child took more memory than its limit and an idle decoder's"
    return found


async def _each(
    pool: Decoders,
    files: Files,
    numbers: Iterator[int],
    found: Outcome,
    timeout_s: float,
    tell: Callable[[int], None],
) -> None:
    for number in numbers:
        case = files.case(number)
        start = time.perf_counter()
        try:
            fate = await _fate(pool, case.content, case.frame)
        except Exception as error:
            raise AssertionError(f"case {number}, {case.seed} {case.changes}: {error!r}") from error
        took = time.perf_counter() - start
        assert took < timeout_s + GRACE_S, f"case {number} took {took:.1f} s"
        found.fates[fate] += 1
        if fate in KEPT:
            found.kept.setdefault(fate, []).append(number)
        if took > found.slowest_s:
            found.slowest_s, found.slowest_case = took, number
        tell(number)


async def _fate(pool: Decoders, content: bytes, frame: int | None) -> str:
    try:
        made = await pool.decode(content, WANTED, frame=frame)
    except ImageError as error:
        return error.reason
    assert made.image.shape == WANTED.dims
    assert np.isfinite(made.image).all()
    return DECODED
