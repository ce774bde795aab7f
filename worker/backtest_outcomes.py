"""Outcomes of patients from a file: what became of them, and when if that is known.

CSV with the columns patient, outcome (0 or 1) and, if wanted, time (ISO 8601 with its offset from UTC), or
the same as one JSON object a line.
"""

import csv
import io
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from worker.backtest_source import Outcome
from worker.recording import SourceError

NEEDED = ("patient", "outcome")


def read(file: Path) -> dict[str, Outcome]:
    """Outcomes by patient.

    Raises:
        SourceError: the file cannot be read, or a line is not an outcome; the line's number is named, not
            what it holds.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise SourceError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise SourceError(f"{file} is not text in UTF-8") from None
    found: dict[str, Outcome] = {}
    for number, row in _rows(file, text):
        try:
            patient, outcome = _outcome(row)
        except (KeyError, ValueError, TypeError):
            raise SourceError(
                f"{file}, line {number}: an outcome has a patient, an outcome of 0 or 1 and, if known, a "
                "time in ISO 8601 with its offset from UTC"
            ) from None
        if found.setdefault(patient, outcome) != outcome:
            raise SourceError(f"{file}, line {number}: this patient has another outcome further up")
    if not found:
        raise SourceError(f"{file} holds no outcome")
    return found


def _rows(file: Path, text: str) -> Iterator[tuple[int, Any]]:
    if text.lstrip().startswith("{"):
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                try:
                    yield number, msgspec.json.decode(line)
                except msgspec.DecodeError:
                    raise SourceError(f"{file}, line {number}: not JSON") from None
        return
    reader = csv.DictReader(io.StringIO(text))
    if not set(NEEDED) <= set(reader.fieldnames or ()):
        raise SourceError(f"{file} must begin with a line that names the columns patient, outcome and time")
    for row in reader:
        yield reader.line_num, row


def _outcome(row: Any) -> tuple[str, Outcome]:
    patient, event, time = row["patient"], int(row["outcome"]), row.get("time")
    if not isinstance(patient, str) or not patient or event not in (0, 1):
        raise ValueError
    if not time:
        return patient, Outcome(bool(event))
    moment = datetime.fromisoformat(time)
    if moment.tzinfo is None:
        raise ValueError
    return patient, Outcome(bool(event), round(moment.timestamp() * 1000), True)
