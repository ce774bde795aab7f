"""A set of pictures of known class, whatever its source: `medmnist:FILE` or `images:DIR`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.engine import F32
from engines.errors import DatasetError
from engines.images import prepare, stacked
from schemas.model_config import ImageInput

SPLITS = ("train", "val", "test")
"""What a part of a set is for: learning, choosing, judging once at the end."""

MOST_CLASSES = 64
"""More are a sign of a column that is no label."""

Read = Callable[[int, ImageInput], F32]
"""The picture of an index, decoded: float32[height, width, 1 | 3].

Raises:
    DatasetError: it cannot be decoded; the message names it by its row.
"""


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Pictures in the order of their source; nothing is decoded until it is asked for.

    source: what they come from, in words that hold no path.
    classes: names, sorted; empty where the source numbers them from 0.
    labels: int64[images], index into the classes.
    names: what predictions and messages call each: its number or its row, never a file's name.
    splits: the split of each, one of `SPLITS`; empty where the source does not divide them.
    groups: the patient, or whatever must not be divided, of each; empty where unknown.
    height, width: pixels of every picture; 0 where they differ or are not known before decoding.
    read: decodes one, by its place in the source.
    places: int64[images], place of each in the source.
    """

    source: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    splits: tuple[str, ...]
    groups: tuple[str, ...]
    height: int
    width: int
    read: Read
    places: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: NDArray[np.integer[Any]]) -> "LabelledImages":
        """Some of the pictures, in the order given."""
        pick = [int(number) for number in index]
        return replace(
            self,
            labels=self.labels[pick],
            names=tuple(self.names[number] for number in pick),
            splits=tuple(self.splits[number] for number in pick) if self.splits else (),
            groups=tuple(self.groups[number] for number in pick) if self.groups else (),
            places=self.places[pick],
        )

    def of_split(self, split: str) -> "LabelledImages":
        """The pictures of one split.

        Raises:
            DatasetError: there is none.
        """
        found = np.flatnonzero([name == split for name in self.splits])
        if not len(found):
            have = [name for name in SPLITS if name in self.splits] or "no splits"
            raise DatasetError(f"the data has no pictures in split {split!r}; it has {have}")
        return self.subset(found)

    def to_judge(self, split: str | None = None) -> "LabelledImages":
        """The pictures that a model is judged on: test where there is such a split, else val, else all.

        Raises:
            DatasetError: the split that is asked for is not there.
        """
        if split is not None:
            return self.of_split(split)
        for name in ("test", "val"):
            if name in self.splits:
                return self.of_split(name)
        return self

    def named(self, classes: Sequence[str]) -> "LabelledImages":
        """The same pictures, their labels counted as a model counts its classes.

        Raises:
            DatasetError: a picture is of a class that is not among them.
        """
        if not self.classes:
            most = int(self.labels.max(initial=0))
            if most >= len(classes):
                raise DatasetError(f"the data has a class number {most}; the classes are {list(classes)}")
            return replace(self, classes=tuple(classes))
        unknown = sorted({self.classes[label] for label in np.unique(self.labels)} - set(classes))
        if unknown:
            raise DatasetError(f"labels {unknown} are not among the classes {list(classes)}")
        to = np.array([classes.index(name) if name in classes else 0 for name in self.classes])
        return replace(self, classes=tuple(classes), labels=to[self.labels])

    def tensors(
        self,
        wanted: ImageInput,
        on_image: Callable[[], None] = lambda: None,
        first: int = 0,
        end: int | None = None,
    ) -> F32:
        """Pictures `first` to `end`, prepared: float32[images, channels, height, width].

        Raises:
            DatasetError: one cannot be decoded.
        """
        found = []
        for place in self.places[first:end]:
            found.append(prepare(self.read(int(place), wanted), wanted))
            on_image()
        return stacked(found, wanted)
