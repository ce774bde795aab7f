"""Whether a file can be written is found without a trace."""

import os
from pathlib import Path

import pytest

from worker.cli_files import check_writable


def test_files_stay_as_they_are(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("kept")

    check_writable(old, new, None, Path(os.devnull))

    assert old.read_text() == "kept"
    assert not new.exists()


@pytest.mark.parametrize("name", ["none/file", "."])
def test_what_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises((FileNotFoundError, IsADirectoryError)) as caught:
        check_writable(tmp_path / name)
    assert caught.value.filename == str(tmp_path / name)
