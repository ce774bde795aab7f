"""What cross-validation leaves behind is read, or refused in words."""

from pathlib import Path

import pytest

from engines import drift_reference, folds, repository
from engines.engine import Engine
from engines.errors import RepositoryError


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, r"cannot read .*; `model train NAME --data DIR --folds .*` writes it"),
        (b"{", "folds.json: Input data was truncated"),
        (b'{"model": "vitals", "data": "d", "folds": {}}', "must name one stay or more"),
        (b'{"model": "vitals", "data": "d", "folds": {"1": -1}}', "with folds from 0"),
        (b'{"model": "vitals", "data": "d", "folds": {"1": "a"}}', "Expected `int`, got `str`"),
    ],
)
def test_what_is_none_is_refused(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    if content is not None:
        (tmp_path / folds.FOLDS).write_bytes(content)
    with pytest.raises(RepositoryError, match=complaint):
        folds.read(tmp_path)


def test_names_are_those_of_the_folders(tmp_path: Path) -> None:
    (tmp_path / folds.FOLDS).write_bytes(b'{"model": "m", "data": "d", "folds": {"1": 0, "2": 2}}')

    assert folds.read(tmp_path).names() == ["m-fold-0", "m-fold-1", "m-fold-2"]


STAY = """Time,Parameter,Value
00:00,RecordID,1
00:00,Age,70
01:00,HR,80
"""


def test_folds_of_another_model_or_of_other_stays_make_no_reference(tmp_path: Path) -> None:
    engine: Engine = repository.load(repository.SHIPPED, "bedside")
    data, kept = tmp_path / "data", tmp_path / "kept"
    data.mkdir()
    kept.mkdir()
    (data / "1.txt").write_text(STAY)
    for content in (
        b'{"model": "vitals", "data": "d", "folds": {"1": 0}}',
        b'{"model": "bedside", "data": "d", "folds": {"2": 0}}',
    ):
        (kept / folds.FOLDS).write_bytes(content)
        with pytest.raises(RepositoryError, match="'bedside' needs its own"):
            drift_reference.of_stays(engine, data, lambda *_: None, kept)
    engine.close()
