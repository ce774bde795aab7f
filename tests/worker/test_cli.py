"""How `run` ends, with one line and status 1, whatever still hangs in the engine; how help reads."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from worker import cli
from worker.embedded import LOOPBACK, free_port

ROOT = Path(cli.__file__).resolve().parent.parent

HANGING = """
import asyncio, time
import numpy as np
from engines import repository
from engines.engine import Engine
from worker import cli, config
from worker.batch import Batcher


class Sleeping(Engine):
    def _execute(self, inputs, rows):
        time.sleep(3600)

    def close(self):
        pass


class Worker:
    def __init__(self, settings):
        self._timeout_s = settings.infer_timeout_s

    async def run(self):
        model = repository.read_config(repository.SHIPPED, "vitals")
        batcher = Batcher(Sleeping(model, "sleeping"), lambda: None, self._timeout_s, self._timeout_s)
        rows = {i.name: np.zeros((1, *i.dims), np.float32) for i in model.input}
        try:
            await batcher.infer(rows)
        finally:
            await batcher.close()


asyncio.run(cli._run(Worker, config.load(infer_timeout_s=0.2)))
"""


def ended(*command: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    """What an own Python process left, which must have ended by itself."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {f"RISKSTREAM_{name}": value for name, value in settings.items()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_an_engine_that_hangs_does_not_keep_the_process_alive() -> None:
    process = ended("-c", HANGING)

    assert process.returncode == 1
    assert process.stderr == "riskstream: an engine call took more than 0.2 s\n"


LEFT_BEHIND = HANGING.replace(
    "await batcher.infer(rows)", "await asyncio.wait_for(asyncio.shield(batcher.infer(rows)), 0.05)"
).replace("finally:", "except TimeoutError:")


def test_a_thread_that_hangs_does_not_keep_a_worker_from_ending_well() -> None:
    process = ended("-c", LEFT_BEHIND)

    assert process.returncode == 0, process.stderr


def test_a_taken_port_is_told_in_one_line() -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = str(taken.getsockname()[1])
        process = ended("-m", "worker.cli", "run", HTTP_PORT=port)

    assert process.returncode == 1
    told = process.stderr.splitlines()
    assert told[-1].startswith(f"riskstream: cannot listen on 127.0.0.1:{port}: ")
    assert "RISKSTREAM_HTTP_PORT" in told[-1]
    assert "Traceback" not in process.stderr


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command and group."""
    yield path
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name))


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("path", [*commands(get_command(cli.app))], ids=" ".join)
def test_paragraphs_of_help_flow(path: tuple[str, ...], columns: int) -> None:
    shown = CliRunner().invoke(cli.app, [*path, "--help"], env={"COLUMNS": str(columns)}).output
    lines = [line.strip() for line in shown.partition("╭")[0].splitlines()][3:]
    for line, following in pairwise(lines):
        if line and following:
            assert len(line) + 1 + len(following.split()[0]) > columns - 2, line


def test_a_broker_that_is_away_is_told_in_one_line() -> None:
    broker = f"{LOOPBACK}:{free_port()}"
    told = ended("-m", "worker.cli", "policy", "list", BROKER=broker).stderr
    assert told == f"error: Kafka at {broker} (RISKSTREAM_BROKER): KafkaConnectionError\n"
