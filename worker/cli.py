"""The `riskstream` command."""

import asyncio
import faulthandler
import inspect
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker import (
    cli_audit,
    cli_backtest,
    cli_bench,
    cli_board,
    cli_drift,
    cli_feedback,
    cli_model,
    cli_policy,
    cli_replay,
    cli_send,
    cli_shadow,
    cli_stream,
    config,
)

if TYPE_CHECKING:
    from worker.app import Worker


def _before_each_command() -> None:
    """Keep aiokafka's own log lines off the terminal: what matters comes back as an error."""
    logging.getLogger("aiokafka").addHandler(logging.NullHandler())


app = typer.Typer(
    callback=_before_each_command,
    help="Streaming patient-risk prediction: Kafka vitals in, risk alerts out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
SettingsFile = Annotated[
    Path | None, typer.Option("--settings", help="TOML file of settings; RISKSTREAM_* variables override it.")
]


def run(
    settings_file: SettingsFile = None,
    role: Annotated[
        config.Role,
        typer.Option(help="What this process does: vitals, imaging, or all of it in one process."),
    ] = config.Role.VITALS,
    shadow: Annotated[
        int | None,
        typer.Option(
            help="Score with this version of the model, into the shadow topics alone: docs/shadow.md.",
            metavar="VERSION",
            min=1,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run the worker until SIGTERM or Ctrl-C."""
    from engines.errors import EngineError
    from worker.errors import WorkerError

    settings = _settings(settings_file, role, **({} if shadow is None else {"shadow_version": shadow}))
    from worker import logs
    from worker.app import Worker

    logs.configure(settings.log_level, settings.instance)
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    try:
        asyncio.run(_run(partial(Worker, role=role), settings))
    except (WorkerError, EngineError) as error:
        raise SystemExit(f"riskstream: {error}") from None


async def _run(worker: "Callable[[config.Settings], Worker]", settings: config.Settings) -> None:
    from engines.errors import EngineError
    from worker import threads
    from worker.errors import FatalError

    try:
        await worker(settings).run()
    except (FatalError, EngineError) as error:
        sys.stderr.write(f"riskstream: {error}\n")
        _end(1)
    if threads.hang(1.0) or _engines_hang() or await _tasks_hang():
        _end(0)


def _engines_hang() -> bool:
    """Whether a thread of an engine has not ended, though all were told to."""
    ours = [thread for thread in threading.enumerate() if thread.name.startswith("engine")]
    for thread in ours:
        thread.join(1.0)
    return any(thread.is_alive() for thread in ours)


async def _tasks_hang() -> bool:
    """Whether a task, of Faust's as a rule, goes on though it is cancelled."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    return bool(others) and bool((await asyncio.wait(others, timeout=1.0))[1])


def _end(status: int) -> NoReturn:
    """End the process at once: leaving the ordinary way would wait for what hangs. Its state is safe."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def check(
    settings_file: SettingsFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds each check may take.", min=0.5, max=120)] = 10.0,
    strict: Annotated[bool, typer.Option("--strict", help="Let warnings fail too.")] = False,
    role: Annotated[
        config.Role, typer.Option(help="Check what a worker with this role needs.")
    ] = config.Role.VITALS,
) -> None:
    """Check settings, broker, topics, rights, Redis, model, HTTP port and disk; say what to do.

    Changes nothing. Exit status: 0 when nothing has failed (with --strict: nor is warned of), 1 otherwise.
    docs/runbook.md lists the findings.
    """
    from worker.check import check as run_checks

    settings = _settings(settings_file, role)
    findings = asyncio.run(run_checks(settings, timeout, role))
    well = all(finding.well and not (strict and finding.severity == "warning") for finding in findings)
    if as_json:
        shown = {"well": well, "settings": _shown(settings), "findings": [f._asdict() for f in findings]}
        sys.stdout.write(json.dumps(shown, indent=2) + "\n")
    else:
        styles = {"ok": "[green]ok", "warning": "[yellow]warning", "failed": "[red]FAILED"}
        table = Table("check", "", "detail")
        for finding in findings:
            told = finding.detail + (f"\n-> {finding.advice}" if finding.advice else "")
            table.add_row(Text(finding.subject), styles[finding.severity], Text(told))
        Console().print(table)
    raise typer.Exit(0 if well else 1)


def _flowing(commands: typer.Typer) -> None:
    """Let paragraphs of help flow: only the first one's line breaks are taken out otherwise."""
    for command in commands.registered_commands:
        text = inspect.cleandoc((command.callback and command.callback.__doc__) or "")
        command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    for group in commands.registered_groups:
        if group.typer_instance is not None:
            _flowing(group.typer_instance)


for _command in (
    run,
    check,
    cli_stream.demo,
    cli_board.board,
    cli_feedback.feedback,
    cli_audit.explain,
    cli_replay.replay,
    cli_backtest.backtest,
    cli_shadow.shadow,
):
    app.command()(_command)
app.command(name="drift")(cli_drift.drift_)
app.add_typer(cli_send.app, name="send")
app.add_typer(cli_policy.app, name="policy")
app.add_typer(cli_model.app, name="model", help="Train, judge, add, serve and measure models.")
app.add_typer(cli_bench.app, name="bench", help="Measure the path, transport, contributions and pictures.")
_flowing(app)


def _shown(settings: config.Settings) -> dict[str, object]:
    """The settings with secrets hidden."""
    shown: dict[str, object] = settings.model_dump(mode="json")
    return shown


def _settings(file: Path | None, role: config.Role, **overrides: int) -> config.Settings:
    """The settings of this worker; those of a shadow, where they ask for one."""
    from worker.shadow import shadowed

    try:
        return shadowed(config.load(file, **overrides), role)
    except config.ConfigError as error:
        raise SystemExit(f"riskstream: {error}") from None


def main() -> None:
    """Entry point of the console command."""
    app()


if __name__ == "__main__":
    main()
