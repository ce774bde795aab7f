"""MedMNIST files, as `medmnist:FILE`: an .npz with images and labels of one, two or three splits.

    {train,val,test}_images  uint8[images, height, width] or uint8[images, height, width, 3]
    {train,val,test}_labels  integers[images, 1] or [images], class numbers from 0

Yang J et al., "MedMNIST v2: a large-scale lightweight benchmark for 2D and 3D biomedical image
classification", Scientific Data 2023;10:41.
"""

import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.engine import F32
from engines.errors import DatasetError
from engines.images import from_bytes
from engines.labelled import MOST_CLASSES, SPLITS, UNLABELLED, LabelledImages
from schemas.model_config import ImageInput

PREFIX = "medmnist:"

CLASSES = {"pneumoniamnist": ("normal", "pneumonia")}
"""Class names by the start of the file's name: the files themselves have numbers only."""

SOURCES = {
    "pneumoniamnist": "PneumoniaMNIST of MedMNIST v2 (Yang J et al., Scientific Data 2023;10:41), from chest "
    "radiographs of children (Kermany D et al., Cell 2018;172:1122-1131), CC BY 4.0"
}
"""Where the pictures come from, and on what terms, by the start of the file's name."""

U8 = NDArray[np.uint8]


def read(path: Path, *, labelled: bool = True) -> LabelledImages:
    """All splits of a file that have labels; all that have images, unless labels are needed.

    Raises:
        DatasetError: the file is absent, damaged, or not in this format.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except TypeError as error:
        raise DatasetError(f"{path} is one array, an .npy file: MedMNIST's .npz files name theirs") from error
    except FileNotFoundError as error:
        raise DatasetError(f"no such file: {path}") from error
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, KeyError, AttributeError) as error:
        raise DatasetError(f"{path} is not a readable .npz file: fetch it again") from error
    needed = ("images", "labels") if labelled else ("images",)
    splits = [split for split in SPLITS if all(f"{split}_{name}" in arrays for name in needed)]
    if not splits:
        raise DatasetError(
            f"{path} has no train, val or test {' and '.join(needed)}, as MedMNIST's files have; "
            f"it has {sorted(arrays)[:8]}"
        )
    parts = [arrays[f"{split}_images"] for split in splits]
    labels = [
        arrays.get(f"{split}_labels", np.full(part.shape[:1], UNLABELLED))
        for split, part in zip(splits, parts, strict=True)
    ]
    for split, part, numbers in zip(splits, parts, labels, strict=True):
        _check(path, split, part, numbers, known=f"{split}_labels" in arrays)
    if len({part.shape[1:] for part in parts}) > 1:
        raise DatasetError(f"{path}: the splits' images differ in size")
    return _labelled(path, splits, parts, [numbers.reshape(-1) for numbers in labels])


def _labelled(
    path: Path, splits: list[str], parts: list[U8], labels: list[NDArray[np.integer]]
) -> LabelledImages:
    pixels = np.concatenate(parts)
    height, width = pixels.shape[1:3]
    kind = next((start for start in SOURCES if path.stem.lower().startswith(start)), "")

    def picture(place: int, _: ImageInput) -> F32:
        return from_bytes(pixels[place])

    return LabelledImages(
        source=f"{SOURCES.get(kind, 'MedMNIST file')}; {height} x {width} pixels, "
        f"{'grey' if pixels.ndim == 3 else 'colour'}",
        classes=CLASSES.get(kind, ()),
        labels=np.concatenate(labels).astype(np.int64),
        names=tuple(str(number) for part in parts for number in range(len(part))),
        splits=tuple(split for split, part in zip(splits, parts, strict=True) for _ in range(len(part))),
        groups=(),
        height=height,
        width=width,
        read=picture,
        places=np.arange(len(pixels)),
    )


def _check(
    path: Path, split: str, images: NDArray[np.generic], labels: NDArray[np.generic], known: bool
) -> None:
    if not images.shape or not len(images):
        raise DatasetError(f"{path}: {split}_images holds no images")
    flat = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)
    if images.dtype != np.uint8 or not flat or not images.size:
        raise DatasetError(
            f"{path}: {split}_images must be uint8[images, height, width] or [..., 3], "
            f"came {images.dtype}{list(images.shape)}; volumes are not taken"
        )
    if not known:
        return
    if labels.dtype.kind not in "iu" or labels.shape not in ((len(images),), (len(images), 1)):
        raise DatasetError(
            f"{path}: {split}_labels must be one class number for each of {len(images)} images, "
            f"came {labels.dtype}{list(labels.shape)}; several labels for one image are not taken"
        )
    numbers = labels.astype(np.int64)
    if int(numbers.min()) < 0 or int(numbers.max()) >= MOST_CLASSES:
        raise DatasetError(f"{path}: {split}_labels must be class numbers from 0 to {MOST_CLASSES - 1}")
