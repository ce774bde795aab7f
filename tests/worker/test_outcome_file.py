"""Files of outcomes: CSV and JSON lines; what is wrong is told by line and never quoted."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from engines.errors import DatasetError
from worker import outcome_file


@pytest.mark.parametrize(
    "text",
    [
        "patient,outcome\np-1,1\np-2,0\n",
        "\ufeffward,patient,outcome\r\nA,p-1,1\r\nA,p-2,0\r\n",
        '{"patient": "p-1", "outcome": 1}\n\n{"patient": "p-2", "outcome": 0, "ward": "A"}\n',
        "patient,outcome\np-1,1\np-2,0\np-1,1\n",
    ],
)
def test_outcomes_are_read(tmp_path: Path, text: str) -> None:
    file = tmp_path / "outcomes"
    file.write_text(text)
    assert outcome_file.read(file) == {"p-1": 1, "p-2": 0}


@pytest.mark.parametrize(
    "text",
    [
        "patient,outcome,time\np-1,1,2026-01-03T01:00:00+01:00\np-2,0,\n",
        '{"patient": "p-1", "outcome": 1, "time": "2026-01-03T00:00:00Z"}\n'
        '{"patient": "p-2", "outcome": 0}\n',
    ],
)
def test_times_are_read_where_they_are_known(tmp_path: Path, text: str) -> None:
    file = tmp_path / "outcomes"
    file.write_text(text)
    found = outcome_file.timed(file)
    assert found["p-1"].time == datetime(2026, 1, 3, tzinfo=UTC)
    assert found["p-2"].time is None


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "must have the columns patient and outcome"),
        (b"patient,outcome\n", "holds no outcome"),
        (b"patient,died\nsecret,1\n", "must have the columns patient and outcome"),
        (b"patient,outcome\nsecret,2\n", "line 2: a line is a patient and 0 or 1"),
        (b"patient,outcome\nsecret\n", "line 2: a line is a patient and 0 or 1"),
        (b"patient,outcome\n,1\n", "line 2: a line is a patient and 0 or 1"),
        (b"patient,outcome\nsecret,1\nsecret,0\n", "line 3: the patient has the other outcome"),
        (b'{"patient": "secret", "outcome": 7}', "line 1: outcome must be 0 or 1"),
        (b'{"patient": "secret"}', "line 1: not"),
        (b'{"patient": "secret", "outcome": 1}\nsecret,0', "line 2: not"),
        (b"\xff\xfe\x00secret", "not text in UTF-8"),
        (b"patient,outcome,time\nsecret,1,noon\n", "line 2: a time is RFC 3339 with its zone"),
        (b"patient,outcome,time\nsecret,1,2026-01-03T00:00:00\n", "line 2: a time is RFC 3339"),
        (b'{"patient": "secret", "outcome": 1, "time": "noon"}', "line 1: not"),
    ],
)
def test_a_bad_file_is_refused_without_quoting_it(tmp_path: Path, content: bytes, complaint: str) -> None:
    file = tmp_path / "outcomes"
    file.write_bytes(content)
    with pytest.raises(DatasetError, match=complaint) as caught:
        outcome_file.read(file)
    assert "secret" not in str(caught.value)
