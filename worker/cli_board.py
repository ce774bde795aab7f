"""`riskstream board`."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer


def board(
    settings_file: Annotated[
        Path | None,
        typer.Option("--settings", help="TOML file of settings; RISKSTREAM_* variables override it."),
    ] = None,
) -> None:
    """Serve the ward page until SIGTERM or Ctrl-C: patients by risk, NEWS2, open alerts with their basis.

    It reads the score and alert topics without a consumer group, and changes nothing. The workers should run
    with RISKSTREAM_PUBLISH_SCORES=true; without scores the page works from alerts alone.

    It listens on 127.0.0.1:8090. RISKSTREAM_BOARD_HOST and RISKSTREAM_BOARD_PORT change that; any address but
    loopback needs RISKSTREAM_BOARD_TOKEN, which readers type once.

    Exit status: 0 when stopped, 1 when it cannot start or the brokers refuse.
    """
    from worker import config
    from worker.errors import WorkerError

    try:
        settings = config.load(settings_file)
    except config.ConfigError as error:
        raise SystemExit(f"riskstream board: {error}") from None
    from worker import board as page
    from worker import logs

    logs.configure(settings.log_level, settings.instance)
    try:
        asyncio.run(page.run(settings, _announce))
    except WorkerError as error:
        raise SystemExit(f"riskstream board: {error}") from None


def _announce(url: str) -> None:
    sys.stdout.write(f"ward page: {url}\n")
    sys.stdout.flush()
