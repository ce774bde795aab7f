"""Stays as arrays for training: the same rows as in serving, at random alignments to the hour."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.physionet2012 import Accepted, bins
from schemas.features import STATIC
from schemas.window import FILL, NEVER, Rows, rows

HOURS = 49
"""Steps of a training stay: 48 hours touch 49 UTC hours unless they begin on one."""


class Batch(NamedTuple):
    """Whole stays, each array float32[stays, HOURS, features], and where the loss applies.

    closed: rows of complete hours.
    opened: for each hour, its row when only part of the hour has passed.
    weight: float32[stays, HOURS], 0 after a stay's end.
    """

    closed: Rows
    opened: Rows
    weight: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Material:
    """Everything that is made once from the stays.

    died: float32[stays], 1 or 0.
    aligned: rows of stays begun on the hour, each float32[stays, 48, features].
    batches: all stays at several random alignments to the hour.
    """

    died: NDArray[np.float32]
    aligned: Rows
    batches: list[Batch]

    def save(self, folder: Path) -> None:
        """Write every array to a file of its own in an empty folder."""
        np.save(folder / "died.npy", self.died)
        _save(folder / "aligned", self.aligned)
        for number, batch in enumerate(self.batches):
            _save(folder / f"closed{number}", batch.closed)
            _save(folder / f"opened{number}", batch.opened)
            np.save(folder / f"weight{number}.npy", batch.weight)

    @classmethod
    def load(cls, folder: Path) -> "Material":
        """What `save` wrote, mapped rather than read: processes share one copy."""
        numbers = range(len(list(folder.glob("weight*.npy"))))
        batches = [
            Batch(
                _load(folder / f"closed{number}"),
                _load(folder / f"opened{number}"),
                _mapped(folder / f"weight{number}.npy"),
            )
            for number in numbers
        ]
        return cls(_mapped(folder / "died.npy"), _load(folder / "aligned"), batches)


def _save(path: Path, made: Rows) -> None:
    for name, array in made._asdict().items():
        np.save(f"{path}-{name}.npy", array)


def _load(path: Path) -> Rows:
    return Rows(*(_mapped(Path(f"{path}-{name}.npy")) for name in Rows._fields))


def _mapped(path: Path) -> NDArray[np.float32]:
    return np.asarray(np.load(path, mmap_mode="r"))


def training_rows(
    stays: list[Accepted], rng: np.random.Generator, columns: NDArray[np.intp] | slice = slice(None)
) -> Batch:
    """Rows of all stays, each begun at a random minute of its first hour.

    The open rows of a stay show the first `cut` minutes of each hour, `cut` drawn once a stay.

    Args:
        stays: what was accepted of each.
        rng: draws offsets and cuts, as many whatever the columns.
        columns: channels that are kept; all unless stated.
    """
    closed, opened, weights = [], [], []
    for accepted in stays:
        offset, cut = int(rng.integers(0, 60)), int(rng.integers(1, 60))
        full = rows(*bins(accepted, offset, HOURS))
        closed.append(chosen(full, columns))
        opened.append(chosen(_opened(accepted, full, offset, cut), columns))
        weights.append(_weight(offset))
    return Batch(_stack(closed), _stack(opened), np.stack(weights))


def aligned_rows(accepted: list[Accepted], hours: int = 48) -> Rows:
    """Rows of stays begun on the hour, each float32[stays, hours, channels]."""
    return _stack([rows(*bins(stay, 0, hours)) for stay in accepted])


def chosen(made: Rows, columns: NDArray[np.intp] | slice) -> Rows:
    """The rows with these channels alone."""
    return Rows(*(np.ascontiguousarray(array[..., columns]) for array in made))


def _opened(accepted: Accepted, full: Rows, offset: int, cut: int) -> Rows:
    early = (accepted.minute + offset) % 60 < cut
    part = Accepted(
        accepted.minute[early], accepted.channel[early], accepted.value[early], accepted.statics, {}
    )
    values, counts, statics = bins(part, offset, HOURS)
    seen = counts > 0
    out = rows(values, counts, statics)
    before = np.roll(full.values, 1, axis=0)
    before[0] = FILL
    age = np.where(full.elapsed < NEVER, full.elapsed + 1, NEVER).astype(np.float32)
    age = np.roll(age, 1, axis=0)
    age[0] = NEVER
    static = np.isin(np.arange(full.values.shape[1]), STATIC)
    out.values[:] = np.where(static, out.values, np.where(seen, values, before))
    out.elapsed[:] = np.where(static, out.elapsed, np.where(seen, np.float32(0), age))
    return out


def _weight(offset: int) -> NDArray[np.float32]:
    # Later hours count more: there is more to learn from, and early ones are nearly noise.
    weight = np.linspace(0.3, 1.0, HOURS, dtype=np.float32)
    if offset == 0:
        weight[-1] = 0
    return weight


def _stack(stays: list[Rows]) -> Rows:
    return Rows(*(np.stack(arrays) for arrays in zip(*stays, strict=True)))
