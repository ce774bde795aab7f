"""The canary: what names a patient appears on the topics, and nowhere else."""

import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest
import structlog
from prometheus_client import generate_latest

from engines.engine import Engine
from schemas.errors import SchemaError
from schemas.units import accept
from tests.worker.bad_input import CANARY, CASES, EVENT, GOOD_FINDING, MARK
from tests.worker.records import LocalPath, Record, worsening
from worker import logs
from worker.codec import LayoutError, decode, encode_hot
from worker.decode import FINDING_TYPE
from worker.patient import Patient
from worker.store import digest


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Standard error, with our logging as the worker configures it and every logger at DEBUG."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    root = logging.getLogger()
    before = (root.handlers[:], root.level, sys.excepthook)
    logs.configure("DEBUG", "test")
    root.setLevel(logging.DEBUG)
    try:
        yield stream
    finally:
        root.handlers[:], sys.excepthook = before[0], before[2]
        root.setLevel(before[1])
        structlog.reset_defaults()


async def test_canary_stays_in_the_messages(
    engine: Engine, logged: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    path = LocalPath(engine)
    records = [one._replace(value=_renamed(one)) for one in worsening(CANARY, 0, 12)]
    headers = (("content-type", FINDING_TYPE),)
    found = Record(50, records[-1].timestamp, CANARY.encode(), GOOD_FINDING, headers)
    bad = [Record(100 + n, c.timestamp, c.key, c.value, c.headers) for n, c in enumerate(CASES)]

    logging.getLogger("asyncio").debug("seen")
    fates = await path.process([*records, found, *bad])

    assert fates.count("scored") > len(records)
    assert path.outbox.alerts
    assert path.outbox.imaged
    assert len(path.outbox.dead_letters) >= len(CASES) - 5
    for message in path.outbox.messages:
        assert MARK not in repr(message.headers)
        if message.topic == "dead-letters":
            assert message.key is not None
            assert MARK not in message.key.decode()
    for letter in path.outbox.dead_letters:
        assert MARK not in letter.reason + repr(letter.rejections) + letter.id + repr(letter.source)
    for alert in (*path.outbox.alerts, *path.outbox.imaged):
        assert MARK not in alert.id + alert.episode
        assert alert.patient == CANARY
    assert '"asyncio"' in logged.getvalue()
    assert MARK not in logged.getvalue() + capsys.readouterr().out
    assert MARK not in generate_latest().decode()
    assert MARK not in digest(CANARY)


def _renamed(record: Record) -> bytes:
    fields = json.loads(record.value or b"")
    return json.dumps({**fields, "event_id": f"{EVENT}-{record.offset}"}).encode()


def test_lines_of_libraries_lose_their_arguments(logged: io.StringIO) -> None:
    library = logging.getLogger("faust.topics")
    library.debug("send: key=%r value=%r", CANARY, EVENT)
    library.warning(f"cannot send {CANARY}")
    library.error("%s", ValueError(CANARY))
    try:
        raise ValueError(CANARY)
    except ValueError:
        library.exception("failed: %s", CANARY)
    logging.getLogger("asyncio").error(
        f"Task exception was never retrieved\nfuture: <Task exception=ValueError('{CANARY}')>"
    )
    structlog.get_logger("riskstream").warning("ours", error=ValueError(CANARY))

    lines = [json.loads(line) for line in logged.getvalue().splitlines()]

    assert MARK not in json.dumps(lines)
    assert [line["event"] for line in lines] == [
        "send: key=%r value=%r",
        "(message withheld)",
        "%s",
        "failed: %s",
        "Task exception was never retrieved",
        "ours",
    ]
    assert lines[3]["exception"] == "ValueError"
    assert lines[5]["error"] == "ValueError"


def test_a_crash_names_the_place_and_not_the_text(logged: io.StringIO) -> None:
    try:
        raise ValueError(CANARY)
    except ValueError as error:
        sys.excepthook(ValueError, error, error.__traceback__)

    line = json.loads(logged.getvalue())

    assert MARK not in json.dumps(line)
    assert (line["event"], line["exception"]) == ("crashed", "ValueError")
    assert "test_privacy.py" in line["frames"][0]


@pytest.mark.parametrize("unit", [MARK, "mm[Hg]", "/min"])
def test_texts_of_unit_errors(unit: str) -> None:
    with pytest.raises(SchemaError) as caught:
        accept(5, 867530.9, unit)
    assert MARK not in str(caught.value)
    assert "867530" not in str(caught.value)


def test_texts_of_layout_errors() -> None:
    patient = Patient(CANARY)
    with pytest.raises(LayoutError) as caught:
        decode(encode_hot(patient, "m")[:-1], {}, "m")
    assert MARK not in str(caught.value)
