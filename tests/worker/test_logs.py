"""Log lines are JSON, one an event, above the level asked for; libraries speak from WARNING on."""

import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest
import structlog

from worker import logs


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Standard error; logging is as before afterwards."""
    root = logging.getLogger()
    handlers, level, hook = root.handlers[:], root.level, sys.excepthook
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    sys.excepthook = hook
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, str]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize(("level", "own"), [("DEBUG", 3), ("INFO", 2), ("WARNING", 1), ("ERROR", 0)])
def test_levels(stream: io.StringIO, level: str, own: int) -> None:
    logs.configure(level, "worker-1")
    logger = structlog.get_logger("riskstream")
    logger.debug("one")
    logger.info("two", partition=3)
    logger.warning("three")

    assert len(lines(stream)) == own
    if own > 1:
        assert lines(stream)[-2]["partition"] == 3


@pytest.mark.parametrize("level", ["DEBUG", "INFO", "WARNING"])
def test_libraries_speak_from_warning_on(stream: io.StringIO, level: str) -> None:
    logs.configure(level, "worker-1")
    library = logging.getLogger("aiokafka.cluster")
    library.info("not %s", "this")
    library.warning("topic %s is not there", "secret")

    (line,) = lines(stream)
    assert line["event"] == "topic %s is not there"
    assert (line["level"], line["logger"], line["instance"]) == ("warning", "aiokafka.cluster", "worker-1")


def test_objects_as_messages_are_withheld(stream: io.StringIO) -> None:
    logs.configure("INFO", "worker-1")
    logging.getLogger("library").error(ValueError("secret"))

    (line,) = lines(stream)
    assert line["event"] == "(message withheld)"
