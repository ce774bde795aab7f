"""`riskstream explain`: alerts, what they rest on, and whether computing them again gives the same."""

import asyncio
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

if TYPE_CHECKING:
    from worker.audit_run import Order, Result
    from worker.config import Settings

SettingsFile = Annotated[
    Path | None, typer.Option("--settings", help="TOML file of settings; RISKSTREAM_* variables override it.")
]
Repository = Annotated[
    Path | None,
    typer.Option(
        help="Folder of model folders, instead of the settings'.", metavar="DIR", show_default=False
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
ReportFile = Annotated[
    Path | None, typer.Option(help="Write the result as JSON.", metavar="FILE", show_default=False)
]


def explain(
    alert_ids: Annotated[
        list[str] | None,
        typer.Argument(help="Ids of alerts; '-' reads them from standard input.", metavar="ALERT_ID"),
    ] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="Verify every alert of the alert topic.")] = False,
    patient: Annotated[
        str | None, typer.Option(help="Look at one patient's alerts alone.", metavar="ID", show_default=False)
    ] = None,
    partition: Annotated[
        list[int] | None,
        typer.Option(
            help="Look at this partition alone; may be given again.", metavar="N", show_default=False
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--from",
            "--since",
            help="Look at alerts published from this time on, as 2026-01-01T08:30:00Z.",
            metavar="TIME",
            show_default=False,
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option("--to", help="And before this time.", metavar="TIME", show_default=False),
    ] = None,
    model_repository: Repository = None,
    as_json: AsJson = False,
    report: ReportFile = None,
    settings_file: SettingsFile = None,
) -> None:
    """Show what alerts rest on, compute them again from the input topic, and compare every byte.

    Needs the workers' settings, the records before each alert (the rebuild horizon, 120 h unless set) and the
    model that raised it. Reads Kafka alone: it joins no group, writes nothing and needs no Redis. It prints
    patients' data.

    Exit status: 0 when every alert asked for was found and verified, 1 when not or on failure.
    """
    from worker.audit_view import as_json as json_of

    order = _order(alert_ids or [], patient, partition or [], since, until, every=every)
    with told("explain"):
        settings = settings_of(settings_file, model_repository)
        check_report(report)
        result = _audit(settings, order)
        if report is not None:
            report.write_bytes(json_of(result, settings))
    if as_json:
        sys.stdout.buffer.write(json_of(result, settings))
        sys.stdout.flush()
    else:
        _print(result, settings)
    raise typer.Exit(0 if result.well else 1)


def _order(
    ids: list[str],
    patient: str | None,
    partitions: list[int],
    since: str | None,
    until: str | None,
    *,
    every: bool,
) -> "Order":
    from worker.audit_run import Order
    from worker.published import Range

    named = "-" in ids or bool(ids)
    if "-" in ids:
        ids = [i for i in ids if i != "-"] + [line.strip() for line in sys.stdin if line.strip()]
        if not ids and not every:
            raise typer.BadParameter("standard input holds no alert id")
    if bool(ids) == every or (named and every):
        raise typer.BadParameter("give the ids of alerts, or --all")
    within = Range(_ms("--from", since), _ms("--to", until))
    canonical = tuple(dict.fromkeys(_uuid(identifier) for identifier in ids))
    return Order(canonical, patient, tuple(dict.fromkeys(partitions)), within)


def _uuid(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        known = "the field `id` of an alert, such as 0d9d2e1c-5b0e-5a53-9f0b-1f7c2f3a4b5c"
        raise typer.BadParameter(f"an alert id is a UUID, {known}; came {text!r}") from None


def _ms(option: str, text: str | None) -> int | None:
    return None if text is None else time_ms(option, text)


def time_ms(option: str, text: str) -> int:
    """A time with a zone in ms since the epoch.

    Raises:
        BadParameter: it is none.
    """
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{option} takes a time such as 2026-01-01T08:30:00Z, not {text!r}"
        ) from None
    if time.tzinfo is None:
        raise typer.BadParameter(f"{option} needs a zone: {text}Z, or {text}+01:00")
    return round(time.astimezone(UTC).timestamp() * 1000)


def settings_of(file: Path | None, model_repository: Path | None) -> "Settings":
    """The settings, with another model repository if one is named."""
    from worker import config

    more = {} if model_repository is None else {"model_repository": model_repository}
    return config.load(file, **more)


def check_report(report: Path | None) -> None:
    """Find out before the work whether the report can be written."""
    from worker.cli_files import check_writable

    check_writable(report)


@contextmanager
def told(command: str) -> Iterator[None]:
    """Turn an expected failure into one line and exit status 1."""
    from engines.errors import EngineError
    from schemas.errors import PolicyError
    from worker.cli_files import complaint
    from worker.config import ConfigError
    from worker.errors import RetryError, WorkerError
    from worker.logs import configure

    # Standard output is the result's. What matters of aiokafka's own log comes back as an error.
    configure("WARNING", command)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    try:
        yield
    except RetryError as error:
        raise SystemExit(f"riskstream {command}: {error}; check RISKSTREAM_BROKER, TLS and ACLs") from None
    except (WorkerError, EngineError, PolicyError, ConfigError) as error:
        raise SystemExit(f"riskstream {command}: {error}") from None
    except OSError as error:
        raise SystemExit(f"riskstream {command}: {complaint(error)}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _audit(settings: "Settings", order: "Order") -> "Result":
    from worker.audit_run import audit
    from worker.cli_told import bar, shown

    with bar() as progress:
        return asyncio.run(audit(settings, order, shown(progress)))


def _print(result: "Result", settings: "Settings") -> None:
    from worker.audit_view import explained, summary, verdict_lines

    for finding in result.findings:
        if result.episodes:
            print(explained(finding, result, settings), end="\n\n")
        else:
            print(finding.published.alert.id, *verdict_lines(finding), sep="\n  ")
    print(summary(result))
