"""Which pictures are learnt from, and how they are divided: nobody's pictures stand on both sides."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.engine import F32
from engines.errors import DatasetError
from engines.labelled import LabelledImages
from schemas.model_config import ImageInput

Progress = Callable[[str, int, int], None]
"""Told (what, done, of)."""


class Material(NamedTuple):
    """Prepared pictures: what is learnt from, and what is held out as validation (may be empty).

    images, held_out: the pictures' classes, names and groups; tensors are in the same order.
    tensors, held_out_tensors: float32[images, channels, height, width].
    groups: of each picture learnt from; pictures alike to the last bit are of one group.
    dropped: pictures not learnt from because they also stand in validation.
    """

    images: LabelledImages
    tensors: F32
    groups: tuple[str, ...]
    held_out: LabelledImages
    held_out_tensors: F32
    dropped: int


def material(images: LabelledImages, wanted: ImageInput, progress: Progress) -> Material:
    """Read the pictures of train and val; those of test are not opened.

    Raises:
        DatasetError: a picture cannot be decoded, or there is nothing to learn from.
    """
    learn = images.of_split("train") if images.splits else images
    held_out = images.of_split("val") if "val" in images.splits else images.subset(np.arange(0))
    total = len(learn) + len(held_out)
    count = 0

    def on_image() -> None:
        nonlocal count
        count += 1
        progress("reading pictures", count, total)

    tensors = learn.tensors(wanted, on_image)
    held_out_tensors = held_out.tensors(wanted, on_image)
    digests = [_digest(tensor) for tensor in tensors]
    known = {_digest(tensor) for tensor in held_out_tensors}
    keep = np.flatnonzero([digest not in known for digest in digests])
    if not len(keep):
        raise DatasetError("every picture to learn from stands in validation too")
    kept = learn.subset(keep)
    groups = tuple(
        (kept.groups[place] if kept.groups else "") or digests[number] for place, number in enumerate(keep)
    )
    return Material(kept, tensors[keep], groups, held_out, held_out_tensors, len(learn) - len(keep))


def divided(labels: NDArray[np.int64], groups: Sequence[str], parts: int, seed: int) -> NDArray[np.int64]:
    """A part for each picture: groups stay whole, and each class is spread evenly.

    Args:
        labels: int64[images].
        groups: of each picture.
        parts: how many.
        seed: of the order in which groups of one size are placed.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for number, group in enumerate(groups):
        members[group].append(number)
    order = np.random.default_rng(seed).permutation(len(members))
    names = list(members)
    load = np.zeros((parts, int(labels.max()) + 1), dtype=np.int64)
    found = np.empty(len(labels), dtype=np.int64)
    for name in sorted((names[place] for place in order), key=lambda name: -len(members[name])):
        inside = members[name]
        label = Counter(int(labels[number]) for number in inside).most_common(1)[0][0]
        part = int(np.lexsort((load.sum(axis=1), load[:, label]))[0])
        found[inside] = part
        np.add.at(load[part], labels[inside], 1)
    return found


def check_classes(found: Material, parts: int) -> None:
    """See that every part can be learnt from and judged.

    Raises:
        DatasetError: a class has too few pictures, or too few groups.
    """
    for number, name in enumerate(found.images.classes):
        groups = {
            group for group, label in zip(found.groups, found.images.labels, strict=True) if label == number
        }
        if len(groups) < parts:
            raise DatasetError(
                f"class {name!r} has {len(groups)} groups of pictures to learn from (a picture alone, or "
                f"several that are alike, count as one); {parts} members need {parts}: add pictures, or "
                "train fewer members (at least 2)"
            )


def _digest(tensor: F32) -> str:
    return hashlib.sha256(tensor.tobytes()).hexdigest()
