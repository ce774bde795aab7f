"""Small pictures for tests: blobs of light, as arrays and as PNG, JPEG and DICOM files."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from engines.engine import F32

U8 = NDArray[np.uint8]


def blob(side: int, row: float, column: float, rng: np.random.Generator) -> U8:
    """A bright blob at a place (shares of the side) over dim noise, uint8[side, side]."""
    y, x = np.mgrid[0:side, 0:side] / side
    light = 0.7 * np.exp(-(((y - row) ** 2 + (x - column) ** 2) / 0.015))
    return np.asarray((np.clip(light + 0.15 + 0.05 * rng.random((side, side)), 0, 1) * 255), dtype=np.uint8)


def empty(side: int, rng: np.random.Generator) -> U8:
    """Dim noise, uint8[side, side]."""
    return np.asarray((0.15 + 0.05 * rng.random((side, side))) * 255, dtype=np.uint8)


def of_class(label: int, side: int, rng: np.random.Generator) -> U8:
    """Class 0 is empty, 1 has a blob above, 2 one below."""
    if label == 0:
        return empty(side, rng)
    row = 0.25 if label == 1 else 0.75
    return blob(side, row + rng.uniform(-0.08, 0.08), rng.uniform(0.3, 0.7), rng)


def encoded(pixels: NDArray[Any], kind: str = "PNG", **options: Any) -> bytes:
    """A PNG or JPEG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def dicom(pixels: NDArray[Any], syntax: UID = ExplicitVRLittleEndian, **attributes: Any) -> bytes:
    """A DICOM file of one grey or colour picture; attributes are set as given."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["test"])
    order = {"is_implicit_VR": syntax.is_implicit_VR, "is_little_endian": syntax.is_little_endian}
    dataset = FileDataset("", Dataset(), file_meta=meta, preamble=b"\0" * 128, **order)
    bits = pixels.dtype.itemsize * 8
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.PixelData = pixels.tobytes()
    for name, value in attributes.items():
        setattr(dataset, name, value)
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def folder(path: Path, classes: dict[str, int], each: int, side: int, **columns: list[str]) -> Path:
    """A folder of `each` pictures of every class, PNG, JPEG and DICOM in turn, with its labels.csv.

    Args:
        path: where.
        classes: the pictures' class (see `of_class`) by label.
        each: pictures of a class.
        side: pixels.
        columns: further columns of labels.csv, one value a row.
    """
    path.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(each * len(classes)):
        label = list(classes)[number % len(classes)]
        pixels = of_class(classes[label], side, rng)
        kind = ("png", "jpg", "dcm")[number // len(classes) % 3]
        name = f"{number}.{kind}"
        (path / name).write_bytes(
            dicom(pixels, WindowCenter=128, WindowWidth=256)
            if kind == "dcm"
            else encoded(pixels, {"png": "PNG", "jpg": "JPEG"}[kind])
        )
        rows.append([name, label, *(values[number] for values in columns.values())])
    with (path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "label", *columns], *rows])
    return path


def medmnist_file(path: Path, splits: dict[str, int], side: int = 28, classes: int = 2, **extra: Any) -> Path:
    """An .npz as MedMNIST's, with so many pictures in each split."""
    rng = np.random.default_rng(1)
    arrays: dict[str, Any] = dict(extra)
    for split, count in splits.items():
        labels = np.arange(count) % classes
        arrays[f"{split}_images"] = np.stack([of_class(int(label), side, rng) for label in labels])
        arrays[f"{split}_labels"] = labels[:, None].astype(np.uint8)
    np.savez(path, allow_pickle=False, **arrays)
    return path


def tensors(count: int, side: int, classes: int = 2, seed: int = 5) -> tuple[F32, NDArray[np.int64]]:
    """Pictures float32[count, 1, side, side] and their classes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    made = [of_class(int(label), side, rng) for label in labels]
    return (np.stack(made)[:, None] / np.float32(255)).astype(np.float32), labels.astype(np.int64)
