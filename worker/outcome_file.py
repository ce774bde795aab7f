"""Outcomes of patients: a CSV file or JSON lines with a patient, 0 or 1, and the time where it is known."""

import csv
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import msgspec
from msgspec import Struct

from engines.errors import DatasetError
from schemas.messages import Time


class Outcome(Struct, frozen=True):
    """One line; what else it holds is passed over. `time` is when the outcome came, with a zone."""

    patient: str
    outcome: int
    time: Time | None = None


def read(path: Path) -> dict[str, int]:
    """Outcomes by patient, as 0 or 1; the rest is as in `timed`."""
    return {patient: outcome.outcome for patient, outcome in timed(path).items()}


def timed(path: Path) -> dict[str, Outcome]:
    """Outcomes by patient.

    A file whose first character is `{` holds JSON objects, one a line; any other is CSV with a header.

    Raises:
        DatasetError: it cannot be read, a line is none of these, or a patient has both outcomes. No message
            holds what a line says.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not text in UTF-8"
        raise DatasetError(f"cannot read {path}: {why}") from None
    found: dict[str, Outcome] = {}
    for number, outcome in _json(path, text) if text.lstrip().startswith("{") else _csv(path, text):
        if outcome.outcome not in (0, 1):
            raise DatasetError(f"{path}, line {number}: outcome must be 0 or 1")
        if found.setdefault(outcome.patient, outcome) != outcome:
            raise DatasetError(
                f"{path}, line {number}: the patient has the other outcome in an earlier line, or its time"
            )
    if not found:
        raise DatasetError(f"{path} holds no outcome; a line is patient,outcome")
    return found


def _json(path: Path, text: str) -> Iterator[tuple[int, Outcome]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield number, msgspec.json.decode(line, type=Outcome)
            except msgspec.MsgspecError:
                # The decoder's own message can quote the line, which names a patient.
                raise DatasetError(
                    f'{path}, line {number}: not {{"patient": text, "outcome": 0 or 1}}'
                ) from None


def _csv(path: Path, text: str) -> Iterator[tuple[int, Outcome]]:
    reader = csv.DictReader(text.splitlines())
    if not {"patient", "outcome"} <= set(reader.fieldnames or ()):
        raise DatasetError(f"{path}: a CSV of outcomes must have the columns patient and outcome")
    try:
        for row in reader:
            patient, outcome = row["patient"], row["outcome"]
            if not patient or outcome not in ("0", "1"):
                raise DatasetError(f"{path}, line {reader.line_num}: a line is a patient and 0 or 1")
            yield reader.line_num, Outcome(patient, int(outcome), _time(path, reader.line_num, row))
    except csv.Error:
        raise DatasetError(f"{path}, line {reader.line_num}: not CSV") from None


def _time(path: Path, number: int, row: dict[str, str]) -> datetime | None:
    text = row.get("time")
    try:
        return msgspec.convert(text, Time) if text else None
    except msgspec.ValidationError:
        raise DatasetError(f"{path}, line {number}: a time is RFC 3339 with its zone") from None
