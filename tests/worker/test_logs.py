"""Log lines are JSON, one an event, above the level asked for; libraries speak from WARNING on."""

import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from worker import logs


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Undo what `configure` changes."""
    root = logging.getLogger()
    handlers, level, hook = root.handlers[:], root.level, sys.excepthook
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    sys.excepthook = hook
    structlog.reset_defaults()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


@pytest.mark.parametrize(("level", "own"), [("DEBUG", 3), ("INFO", 2), ("WARNING", 1), ("ERROR", 0)])
def test_levels(capsys: pytest.CaptureFixture[str], level: str, own: int) -> None:
    logs.configure(level, "worker-1")
    logger = structlog.get_logger("riskstream")
    logger.debug("one")
    logger.info("two", partition=3)
    logger.warning("three")

    written = lines(capsys)
    assert [line["event"] for line in written] == ["one", "two", "three"][3 - own :]
    assert all(line["partition"] == 3 for line in written if line["event"] == "two")


@pytest.mark.parametrize("level", ["DEBUG", "INFO", "WARNING"])
def test_libraries_speak_from_warning_on(capsys: pytest.CaptureFixture[str], level: str) -> None:
    logs.configure(level, "worker-1")
    library = logging.getLogger("aiokafka.cluster")
    library.info("not %s", "this")
    library.warning("topic %s is not there", "secret")

    (line,) = lines(capsys)
    assert line["event"] == "topic %s is not there"
    assert (line["level"], line["logger"], line["instance"]) == ("warning", "aiokafka.cluster", "worker-1")


def test_what_a_load_passes_over_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("WARNING", "worker-1")
    logging.getLogger("riskstream.plans").warning("a plan is passed over: %s", "models/small/1/plans/a.plan")

    (line,) = lines(capsys)
    assert line["event"] == "a plan is passed over: models/small/1/plans/a.plan"


def test_objects_as_messages_are_withheld(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("INFO", "worker-1")
    logging.getLogger("library").error(ValueError("secret"))

    (line,) = lines(capsys)
    assert line["event"] == "(message withheld)"
