"""Golden event streams: every record's fate and reasons, and the windows that are left."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from engines.engine import Engine
from schemas.features import CHANNEL
from schemas.window import WINDOW_BINS
from tests.worker.records import HOUR, LocalPath, Record
from worker.decode import milliseconds

STREAMS = Path(__file__).parents[1] / "streams"


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (STREAMS / name).read_text().splitlines()]


def as_record(line: dict[str, Any]) -> Record:
    return Record(
        line["offset"], at(line["timestamp"]), line["key"].encode(), json.dumps(line["value"]).encode()
    )


def at(time: str) -> int:
    return milliseconds(datetime.fromisoformat(time))


async def played(engine: Engine, upto: int) -> tuple[LocalPath, list[str], list[dict[str, Any]]]:
    stream = lines("corrections_and_ties.jsonl")[:upto]
    path = LocalPath(engine)
    fates = await path.process([as_record(line) for line in stream], chunk=4)
    return path, fates, stream


def cell(path: LocalPath, patient: str, feature: str, time: str) -> tuple[float, int]:
    """Last value and count of a feature in the hour of a time."""
    cells = path.partition.patients[patient].cells
    slot, channel = at(time) // HOUR % WINDOW_BINS, CHANNEL[feature]
    return round(float(cells.values[slot, channel]), 2), int(cells.counts[slot, channel])


async def test_every_record_has_its_fate_and_reasons(engine: Engine) -> None:
    path, fates, stream = await played(engine, 99)

    assert fates == [line["fate"] for line in stream]
    letters = {letter.source.offset: letter for letter in path.outbox.dead_letters}
    assert {o: [r.reason for r in letter.rejections] for o, letter in letters.items()} == {
        line["offset"]: line["reasons"] for line in stream if line["reasons"]
    }
    assert [score.source.offset for score in path.outbox.scores] == [
        line["offset"] for line in stream if line["fate"] == "scored"
    ]


@pytest.mark.parametrize(
    ("upto", "feature", "time", "expected"),
    [
        (2, "systolic_pressure", "2026-01-01T00:10:00Z", (120.01, 1)),
        (4, "heart_rate", "2026-01-01T00:10:00Z", (88.0, 1)),
        (5, "temperature", "2026-01-01T01:05:00Z", (38.5, 1)),
        (6, "heart_rate", "2026-01-01T01:05:00Z", (95.0, 2)),
        (7, "heart_rate", "2026-01-01T01:05:00Z", (97.0, 3)),
        (8, "lactate", "2026-01-01T00:30:00Z", (2.5, 1)),
        (11, "heart_rate", "2026-01-01T01:05:00Z", (98.0, 3)),
    ],
)
async def test_windows_hold_what_was_sent(
    engine: Engine, upto: int, feature: str, time: str, expected: tuple[float, int]
) -> None:
    path, _, _ = await played(engine, upto)
    assert cell(path, "a", feature, time) == expected


async def test_what_is_taken_back_is_gone_and_old_hours_leave(engine: Engine) -> None:
    path, _, _ = await played(engine, 12)
    assert cell(path, "a", "systolic_pressure", "2026-01-01T00:10:00Z")[1] == 0

    path, _, _ = await played(engine, 99)
    patient = path.partition.patients["a"]
    assert patient.filled_bins() == {at("2026-01-03T03:00:00Z") // HOUR}
