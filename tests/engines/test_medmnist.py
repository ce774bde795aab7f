"""MedMNIST files: any subset of splits, grey or colour, and what is no such file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import evaluate_images, medmnist
from engines.errors import DatasetError
from engines.labelled import UNLABELLED
from schemas.model_config import ImageInput
from tests.engines.pictures import medmnist_file


def test_splits_labels_and_exact_pixels(tmp_path: Path) -> None:
    path = medmnist_file(tmp_path / "pneumoniamnist.npz", {"train": 6, "val": 4})
    images = medmnist.read(path)
    assert images.classes == ("normal", "pneumonia")
    assert "CC BY 4.0" in images.source
    assert (len(images), images.height, images.width) == (10, 28, 28)
    assert images.names == ("0", "1", "2", "3", "4", "5", "0", "1", "2", "3")
    assert images.labels.tolist() == [0, 1] * 5
    held_out = images.of_split("val").tensors(ImageInput(height=28, width=28))
    with np.load(path) as archive:
        np.testing.assert_array_equal(held_out[:, 0], archive["val_images"] / np.float32(255))


@pytest.mark.parametrize(
    ("splits", "asked", "came"),
    [
        ({"train": 3, "val": 4}, None, "val"),
        ({"train": 3, "val": 4, "test": 5}, None, "test"),
        ({"test": 5}, None, "test"),
        ({"train": 3}, None, "train"),
        ({"train": 3, "val": 4, "test": 5}, "train", "train"),
    ],
)
def test_which_split_is_judged(tmp_path: Path, splits: dict[str, int], asked: str | None, came: str) -> None:
    path = medmnist_file(tmp_path / "any.npz", splits)
    images = evaluate_images.read_source(f"medmnist:{path}", asked)
    assert set(images.splits) == {came}
    assert len(images) == splits[came]
    assert images.classes == ()


def test_colour_and_other_sizes(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 48, 3), dtype=np.uint8)
    np.savez(path, test_images=pixels, test_labels=np.array([0, 2, 1]))
    images = medmnist.read(path)
    assert (images.height, images.width) == (64, 48)
    tensors = images.tensors(ImageInput(height=64, width=48, channels=3))
    np.testing.assert_array_equal(tensors, pixels.transpose(0, 3, 1, 2) / np.float32(255))
    assert images.tensors(ImageInput(height=28, width=28)).shape == (3, 1, 28, 28)


GREY = np.zeros((2, 28, 28), np.uint8)
LABELS = np.zeros((2, 1), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": GREY}, "no train, val or test images"),
        ({"test_images": GREY}, "no train, val or test images"),
        ({"test_images": GREY[:0], "test_labels": LABELS[:0]}, "holds no images"),
        ({"test_images": GREY.astype(float), "test_labels": LABELS}, "must be uint8"),
        (
            {"test_images": np.zeros((2, 28, 28, 28), np.uint8), "test_labels": LABELS},
            "volumes are not taken",
        ),
        ({"test_images": GREY, "test_labels": LABELS[:1]}, "one class number for each of 2"),
        ({"test_images": GREY, "test_labels": np.zeros((2, 14), int)}, "several labels"),
        ({"test_images": GREY, "test_labels": LABELS.astype(float)}, "one class number"),
        ({"test_images": GREY, "test_labels": LABELS.astype(int) - 1}, "from 0 to"),
        (
            {"test_images": GREY, "test_labels": LABELS, "val_images": GREY[:, :8], "val_labels": LABELS},
            "differ in size",
        ),
    ],
)
def test_what_is_no_such_file(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "x.npz", allow_pickle=False, **arrays)
    with pytest.raises(DatasetError, match=message):
        medmnist.read(tmp_path / "x.npz")


def test_absent_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such file"):
        medmnist.read(tmp_path / "x.npz")
    whole = medmnist_file(tmp_path / "y.npz", {"val": 4}).read_bytes()
    for content in (b"", b"noise", whole[:200], whole[:-300]):
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(DatasetError, match="not a readable"):
            medmnist.read(tmp_path / "x.npz")
    with pytest.raises(DatasetError, match="not a readable"):
        medmnist.read(tmp_path)
    with (tmp_path / "x.npz").open("wb") as file:
        np.save(file, GREY)
    with pytest.raises(DatasetError, match=r"an \.npy file"):
        medmnist.read(tmp_path / "x.npz")


def test_pictures_without_labels_are_read_where_none_are_needed(tmp_path: Path) -> None:
    path = medmnist_file(tmp_path / "x.npz", {"val": 4}, test_images=GREY)
    assert set(evaluate_images.read_source(f"medmnist:{path}").splits) == {"val"}
    images = evaluate_images.read_source(f"medmnist:{path}", labelled=False)
    assert images.splits == ("test", "test")
    assert images.named(("a", "b")).labels.tolist() == [UNLABELLED] * 2
    both = evaluate_images.open_source(f"medmnist:{path}", labelled=False).named(("a", "b"))
    assert both.labels.tolist() == [0, 1, 0, 1, UNLABELLED, UNLABELLED]


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    path = medmnist_file(tmp_path / "x.npz", {"train": 2, "val": 2})
    with pytest.raises(DatasetError, match=r"no pictures in split 'test'; it has \['train', 'val'\]"):
        evaluate_images.read_source(f"medmnist:{path}", "test")
    for argument in ("medmnist:", "images:", "x.npz", "physionet2012:x"):
        with pytest.raises(DatasetError, match="medmnist:FILE or images:DIR"):
            evaluate_images.open_source(argument)


def test_labels_beyond_a_models_classes(tmp_path: Path) -> None:
    images = medmnist.read(medmnist_file(tmp_path / "x.npz", {"test": 6}, classes=3))
    assert images.named(("a", "b", "c")).classes == ("a", "b", "c")
    with pytest.raises(DatasetError, match="class number 2"):
        images.named(("a", "b"))
