"""A folder of pictures, as `images:DIR`: PNG, JPEG or DICOM files and `labels.csv`.

    file,label[,split][,group]

`file` is a path inside the folder. `label` is the name of a class; who asks for risks alone may leave it
out. `split` is train, val or test.
`group` is whatever must stay together, such as a patient. Messages name a row by its number in
labels.csv, the header being row 1: the name of a file may be a patient's.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from engines import images, limits
from engines.engine import F32
from engines.errors import DatasetError, ImageError
from engines.labelled import MOST_CLASSES, SPLITS, UNLABELLED, LabelledImages
from schemas.model_config import ImageInput

PREFIX = "images:"
LABELS = "labels.csv"
NEEDED, OPTIONAL = ("file", "label"), ("split", "group")
COLUMNS = (*NEEDED, *OPTIONAL)


class Row(NamedTuple):
    """A row of labels.csv; a field is empty where there is no such column."""

    number: int
    file: str
    label: str
    split: str
    group: str


def read(folder: Path, *, labelled: bool = True) -> LabelledImages:
    """What labels.csv lists; the pictures themselves are read when they are asked for.

    Args:
        folder: with labels.csv.
        labelled: whether every picture must have a label.

    Raises:
        DatasetError: the folder, the list or a file is not there, or a row cannot be used.
    """
    rows = _rows(folder / LABELS, labelled)
    _check_files(folder, rows)
    _check_groups(rows)
    classes = tuple(sorted({row.label for row in rows} - {""}))
    if len(classes) > MOST_CLASSES:
        raise DatasetError(f"{LABELS} has {len(classes)} different labels; at most {MOST_CLASSES} are taken")

    def picture(place: int, accepted: ImageInput) -> F32:
        row = rows[place]
        try:
            with (folder / row.file).open("rb") as file:
                return images.decode(file.read(limits.MAX_BYTES + 1), accepted)
        except ImageError as error:
            raise DatasetError(f"row {row.number} of {LABELS}: {error}") from error
        except OSError as error:
            raise DatasetError(f"row {row.number} of {LABELS}: cannot be read: {error.strerror}") from error

    return LabelledImages(
        source="folder of pictures",
        classes=classes,
        labels=np.array(
            [classes.index(row.label) if row.label else UNLABELLED for row in rows], dtype=np.int64
        ),
        names=tuple(str(row.number) for row in rows),
        splits=tuple(row.split for row in rows) if rows[0].split else (),
        groups=tuple(row.group for row in rows) if any(row.group for row in rows) else (),
        height=0,
        width=0,
        read=picture,
        places=np.arange(len(rows)),
    )


def _rows(path: Path, labelled: bool) -> list[Row]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(_parsed(csv.DictReader(file, restval="", strict=True), labelled))
    except FileNotFoundError as error:
        raise DatasetError(f"no {LABELS} in {path.parent}: list the pictures there, as file,label") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path} cannot be read as CSV in UTF-8 ({type(error).__name__})") from error
    if not rows:
        raise DatasetError(f"{path} lists no pictures")
    return rows


def _parsed(reader: "csv.DictReader[str]", labelled: bool) -> Iterator[Row]:
    names = {(name or "").strip().lower(): name for name in reader.fieldnames or ()}
    if not set(NEEDED if labelled else NEEDED[:1]) <= set(names):
        raise DatasetError(
            f"{LABELS} must have the columns {', '.join(NEEDED)}, and may have {', '.join(OPTIONAL)}; "
            f"they are not all in its first row, between commas"
        )
    seen: set[str] = set()
    for number, fields in enumerate(reader, start=2):
        row = Row(number, *((fields.get(names.get(column, "")) or "").strip() for column in COLUMNS))
        row = row._replace(split=row.split.lower())
        for complaint in _complaints(row, seen, "split" in names, labelled):
            raise DatasetError(f"row {number} of {LABELS}: {complaint}")
        seen.add(row.file)
        yield row


def _complaints(row: Row, seen: set[str], divided: bool, labelled: bool) -> Iterator[str]:
    if not row.file:
        yield "no file"
    if (labelled and not row.label) or len(row.label) > 64:
        yield "a label must have 1 to 64 characters"
    if row.file in seen:
        yield "the file stands in an earlier row too: keep one of them"
    if divided and row.split not in SPLITS:
        yield f"split must be one of {', '.join(SPLITS)}"
    if Path(row.file).is_absolute() or ".." in Path(row.file).parts:
        yield "the file must lie in the folder: write its path from there"


def _check_files(folder: Path, rows: list[Row]) -> None:
    missing = [row.number for row in rows if not (folder / row.file).is_file()]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        shown = ", ".join(map(str, missing[:5]))
        word = "row" if len(missing) == 1 else "rows"
        raise DatasetError(
            f"{word} {shown}{more} of {LABELS}: no such file in {folder}: put it there, or drop the row"
        )


def _check_groups(rows: list[Row]) -> None:
    """A patient in two splits would be learnt by heart and then asked for."""
    first: dict[str, Row] = {}
    for row in rows:
        other = first.setdefault(row.group, row) if row.group else row
        if other.split != row.split:
            raise DatasetError(
                f"rows {other.number} and {row.number} of {LABELS} are of one group and in the splits "
                f"{other.split} and {row.split}: a group must be in one split"
            )
