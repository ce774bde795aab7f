"""What the sources give: whole, in order, the same every time; and what they refuse."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from schemas.messages import VitalsRecord
from worker import recording
from worker.recording import Choice, Recording, SourceError

SET = """Time,Parameter,Value
00:00,RecordID,{record}
00:00,Age,61
00:00,Weight,-1
00:07,HR,88
00:07,Temp,36.6
01:37,HR,91
01:37,HR,92
"""

encode = msgspec.json.Encoder().encode


@pytest.fixture
def challenge(tmp_path: Path) -> str:
    """A data set of three stays."""
    for record in (140503, 132539, 140501):
        (tmp_path / f"{record}.txt").write_text(SET.format(record=record))
    return f"physionet2012:{tmp_path}"


def written(path: Path, records: Iterator[VitalsRecord]) -> Path:
    path.write_bytes(b"\n".join(encode(record) for record in records))
    return path


def check(found: Recording) -> None:
    """What every recording promises."""
    records = list(found.open())
    assert records == list(found.open())
    assert len(records) == found.count
    assert len({record.patient for record in records}) == found.patients
    assert len({record.event_id for record in records}) == found.count
    times = [record.time for record in records]
    assert times == sorted(times)
    assert (times[0], times[-1]) == (found.begins, found.ends)


def test_simulated_patients() -> None:
    found = recording.read("simulate", Choice(patients=5, hours=6))
    check(found)
    assert found.patients == 5
    assert recording.read("simulate", Choice(hours=1)).patients == recording.PATIENTS


def test_a_stay_gives_one_record_a_time_in_file_order(challenge: str) -> None:
    found = recording.read(challenge, Choice())
    check(found)
    assert found.count == 9
    first, second, third = (r for r in found.open() if r.patient == "stay-132539")
    assert [(o.code, o.value, o.unit) for o in first.observations] == [("30525-0", 61.0, "a")]
    assert [o.value for o in second.observations] == [88.0, 36.6]
    assert [o.value for o in third.observations] == [91.0, 92.0]
    assert second.time - first.time == timedelta(minutes=7)
    assert third.time - first.time == timedelta(minutes=97)


def test_the_first_stays_are_those_with_the_least_records(challenge: str) -> None:
    found = recording.read(challenge, Choice(patients=2))
    assert {record.patient for record in found.open()} == {"stay-132539", "stay-140501"}


def test_a_file_gives_what_was_written_to_it(tmp_path: Path) -> None:
    made = recording.read("simulate", Choice(patients=3, hours=4))
    found = recording.read(str(written(tmp_path / "r.jsonl", made.open())), Choice())
    check(found)
    assert list(found.open()) == list(made.open())


def test_speed_fits_the_recording_into_a_time() -> None:
    found = recording.read("simulate", Choice(patients=3, hours=4))
    seconds = (found.ends - found.begins).total_seconds()
    assert found.speed_to_fit(10) == seconds / 10


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"event_id": "secret"}', "line 2: not a vitals record"),
        (b"\xff\xfe secret", "line 2: not a vitals record"),
        (b'{"event_id":"secret","patient":"p","time":"2026-01-01T00:00:00","observations":[]}', "line 2"),
        (
            b'{"event_id":"secret","patient":"p","time":"1969-01-01T00:00:00Z","observations":'
            b'[{"code":"8867-4","value":80}]}',
            "line 2: its time is before 1970",
        ),
    ],
)
def test_a_bad_line_is_named_and_not_quoted(tmp_path: Path, line: bytes, message: str) -> None:
    good = encode(next(recording.read("simulate", Choice(patients=1)).open()))
    (tmp_path / "r.jsonl").write_bytes(good + b"\n" + line + b"\n")
    with pytest.raises(SourceError, match=message) as raised:
        recording.read(str(tmp_path / "r.jsonl"), Choice())
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("physionet2012:/nowhere", "no such folder or archive"),
        ("physionet2012:", "for example"),
        ("/nowhere.jsonl", "a source is simulate, physionet2012:DIR or a file"),
    ],
)
def test_a_source_that_is_not_there(source: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        recording.read(source, Choice())


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_bytes(b"\n")
    with pytest.raises(SourceError, match="holds no record"):
        recording.read(str(tmp_path / "r.jsonl"), Choice())
