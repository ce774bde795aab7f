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

UNLABELLED = -1
"""The class of a picture whose source does not tell it."""

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
    labels: int64[images], index into the classes, or `UNLABELLED`.
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
        """The same pictures, their labels counted as a model counts its classes; see `_numbers`.

        Raises:
            DatasetError: a picture is of a class that is not among them.
        """
        if not self.classes:
            most = int(self.labels.max(initial=0))
            if most >= len(classes):
                raise DatasetError(f"the data has a class number {most}; the classes are {list(classes)}")
            return replace(self, classes=tuple(classes))
        present = [self.classes[label] for label in np.unique(self.labels) if label != UNLABELLED]
        numbers = _numbers(present, classes)
        unknown = sorted(set(present) - set(numbers))
        if unknown:
            raise DatasetError(f"labels {unknown} are not among the classes {list(classes)}")
        to = np.array([numbers.get(name, UNLABELLED) for name in self.classes] + [UNLABELLED])
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


def _numbers(labels: Sequence[str], classes: Sequence[str]) -> dict[str, int]:
    """The class that each label means, of those that mean one.

    A label is a class's name; or that in other capitals, where no two classes differ by capitals alone; or,
    where all labels are numbers and no class is called by one, the class's number, from 0.
    """
    folded = {name.casefold(): number for number, name in enumerate(classes)}
    if len(folded) < len(classes):
        folded = {}
    exact = {name: number for number, name in enumerate(classes)}
    found = {label: exact.get(label, folded.get(label.casefold())) for label in labels}
    if not any(name.isdecimal() for name in classes) and all(label.isdecimal() for label in labels):
        found = {label: int(label) if int(label) < len(classes) else None for label in labels}
    return {label: number for label, number in found.items() if number is not None}
