"""Files that commands write at their end: found unwritable before the work, not after it."""

from pathlib import Path


def check_writable(*files: Path | None) -> None:
    """Try to open each file for writing, and leave everything as it is; None and devices are passed over.

    Raises:
        OSError: one cannot be written; it names the file.
    """
    for file in files:
        if file is None or (file.exists() and not file.is_file() and not file.is_dir()):
            continue
        known = file.exists()
        file.open("ab").close()
        if not known:
            file.unlink()


def complaint(error: OSError) -> str:
    """The error in words for a terminal."""
    return f"cannot write {error.filename}: {error.strerror}" if error.filename else str(error)
