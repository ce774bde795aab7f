"""Folders of pictures: the list is read whole or refused by row, never by a file's name."""

from pathlib import Path

import numpy as np
import pytest

from engines import image_folder
from engines.errors import DatasetError
from engines.labelled import UNLABELLED
from schemas.model_config import ImageInput
from tests.engines.pictures import dicom, empty, encoded, folder

SMALL = ImageInput(height=16, width=16)
SECRET = "DOE_JOHN.png"


def test_files_of_every_kind(tmp_path: Path) -> None:
    images = image_folder.read(folder(tmp_path, {"tumour": 1, "normal": 0}, 3, 32))
    assert images.classes == ("normal", "tumour")
    assert images.labels.tolist() == [1, 0] * 3
    assert images.names == ("2", "3", "4", "5", "6", "7")
    assert (images.splits, images.groups) == ((), ())
    tensors = images.tensors(SMALL)
    assert tensors.shape == (6, 1, 16, 16)
    bright = tensors.reshape(6, -1).max(axis=1)
    assert bright[[0, 2, 4]].min() > 0.6
    assert images.to_judge() is images


def test_splits_and_groups(tmp_path: Path) -> None:
    splits = ["train", "train", "val", "test"]
    images = image_folder.read(
        folder(tmp_path, {"a": 0, "b": 1}, 2, 16, split=splits, group=["p", "p", "", "q"])
    )
    assert images.of_split("train").groups == ("p", "p")
    assert images.to_judge().names == ("5",)


def write(path: Path, text: str) -> Path:
    (path / SECRET).write_bytes(encoded(empty(16, np.random.default_rng(0))))
    (path / "other.png").write_bytes((path / SECRET).read_bytes())
    (path / "labels.csv").write_text(text)
    return path


def test_a_list_from_a_spreadsheet(tmp_path: Path) -> None:
    text = "\ufefflabel;x,Label,File ,note,SPLIT\r\nq, sick ,other.png,n,Test\r\n\r\n"
    images = image_folder.read(write(tmp_path, text))
    assert images.classes == ("sick",)
    assert images.names == ("2",)
    assert images.splits == ("test",)


@pytest.mark.parametrize("text", [f"file\nother.png\n{SECRET}\n", f"file,label\nother.png,\n{SECRET},\n"])
def test_pictures_without_labels_are_read_where_none_are_needed(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(DatasetError):
        image_folder.read(path)
    images = image_folder.read(path, labelled=False)
    assert images.named(("a", "b")).labels.tolist() == [UNLABELLED] * 2
    assert len(images.tensors(SMALL)) == 2


def test_some_labels_where_none_are_needed(tmp_path: Path) -> None:
    images = image_folder.read(write(tmp_path, f"file,label\nother.png,b\n{SECRET},\n"), labelled=False)
    assert images.named(("a", "b")).labels.tolist() == [1, UNLABELLED]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must have the columns file, label"),
        ("file,class\nother.png,a\n", "must have the columns"),
        ("file,label\n", "lists no pictures"),
        ("file,label\nother.png,a\nlost.png,b\n", "^row 3 of labels.csv: no such file"),
        ("file,label\n,a\n", "row 2 of labels.csv: no file"),
        (f"file,label\n{SECRET}\n", "row 2 of labels.csv: a label must have"),
        (f"file,label\n{SECRET},{'x' * 65}\n", "a label must have 1 to 64"),
        (f"file,label\n{SECRET},a\n{SECRET},b\n", "row 3 of labels.csv: the file stands in an earlier row"),
        (f"file,label,split\n{SECRET},a,dev\n", "split must be one of train, val, test"),
        (f"file,label\n../{SECRET},a\n", "must lie in the folder"),
        (f"file,label\n/{SECRET},a\n", "must lie in the folder"),
        (
            f"file,label,split,group\n{SECRET},a,train,doe\nother.png,a,test,doe\n",
            "rows 2 and 3 of labels.csv are of one group and in the splits train and test",
        ),
    ],
)
def test_lists_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        image_folder.read(write(tmp_path, text))
    assert "DOE" not in str(caught.value).upper().replace(str(tmp_path).upper(), "")


def test_absent_and_unreadable_lists(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="list the pictures there, as file,label"):
        image_folder.read(tmp_path)
    (tmp_path / "labels.csv").write_bytes(b"file,label\n\xff\xfe,a\n")
    with pytest.raises(DatasetError, match="CSV in UTF-8"):
        image_folder.read(tmp_path)
    (tmp_path / "labels.csv").write_text("file,label\n" + "".join(f"{n}.png,a\n" for n in range(9)))
    with pytest.raises(DatasetError, match=r"rows 2, 3, 4, 5, 6 and 4 more"):
        image_folder.read(tmp_path)


@pytest.mark.parametrize("content", [b"noise", b"", dicom(np.zeros((4, 4), np.uint8), NumberOfFrames=3)])
def test_broken_pictures_are_named_by_their_row(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path, f"file,label\nother.png,a\n{SECRET},b\n")
    (path / SECRET).write_bytes(content)
    images = image_folder.read(path)
    with pytest.raises(DatasetError, match=r"row 3 of labels.csv: ") as caught:
        images.tensors(SMALL)
    assert "DOE" not in str(caught.value)


def test_labels_in_a_models_order(tmp_path: Path) -> None:
    images = image_folder.read(write(tmp_path, f"file,label\nother.png,b\n{SECRET},a\n"))
    assert images.named(("b", "c", "a")).labels.tolist() == [0, 2]
    with pytest.raises(DatasetError, match=r"labels \['a'\] are not among the classes"):
        images.named(("b", "c"))


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        (("SICK", "Normal"), ("normal", "sick"), [1, 0]),
        (("a", "A"), ("a", "A"), [0, 1]),
        (("1", "0"), ("normal", "sick"), [1, 0]),
        (("1", "0"), ("1", "0"), [0, 1]),
        (("2", "0"), ("normal", "sick"), None),
        (("1", "sick"), ("normal", "sick"), None),
        (("Ab", "aB"), ("ab", "AB"), None),
    ],
)
def test_labels_in_other_capitals_and_as_numbers(
    tmp_path: Path, labels: tuple[str, str], classes: tuple[str, str], expected: list[int] | None
) -> None:
    images = image_folder.read(write(tmp_path, f"file,label\nother.png,{labels[0]}\n{SECRET},{labels[1]}\n"))
    if expected is None:
        with pytest.raises(DatasetError, match="are not among the classes"):
            images.named(classes)
    else:
        assert images.named(classes).labels.tolist() == expected
