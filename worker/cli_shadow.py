"""`riskstream shadow`: a shadow's scores and alerts beside the served ones."""

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from worker.cli_audit import (
    AsJson,
    ReportFile,
    Repository,
    SettingsFile,
    settings_of,
    time_ms,
    told,
)

if TYPE_CHECKING:
    from worker.config import Settings
    from worker.shadow_report import Order

Content = dict[str, Any]


def shadow(
    *,
    version: Annotated[
        int | None,
        typer.Option(
            help="Version that ran as a shadow; the only one in its topics unless given.",
            metavar="VERSION",
            min=1,
            show_default=False,
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Input records from this time on, as 2026-01-01T08:30:00Z.",
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
    html: Annotated[
        Path | None,
        typer.Option(
            help="Write a page to read; needs the extra `report`.", metavar="FILE", show_default=False
        ),
    ] = None,
    settings_file: SettingsFile = None,
) -> None:
    """Compare what a shadow says with what is served: risks, decisions, alerts. `run --shadow` runs one.

    Needs the served workers' settings. Times are the input records' Kafka timestamps. It reads the topics of
    both sides, joins no group, writes nothing and needs no Redis. What it tells are counts: of no patient.

    Exit status: 0, or 1 where there is nothing to compare, or on failure.
    """
    from worker.published import Range
    from worker.shadow_report import Order

    within = Range(
        None if since is None else time_ms("--from", since), None if until is None else time_ms("--to", until)
    )
    with told("shadow"):
        settings = settings_of(settings_file, model_repository)
        _prepare(report, html)
        content = _compared(settings, Order(version or settings.shadow_version, within))
        _write(content, report, html)
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode(content) + b"\n")
        sys.stdout.flush()
    else:
        _print(content)


def _prepare(report: Path | None, html: Path | None) -> None:
    """Find what cannot be written, or drawn, before the work rather than after it."""
    from worker.cli_files import check_writable

    check_writable(report, html)
    if html is not None:
        from engines import report as _  # noqa: F401  # says which extra is missing


def _compared(settings: "Settings", order: "Order") -> Content:
    from worker.cli_told import bar, shown
    from worker.shadow_report import compared

    with bar() as progress:
        return asyncio.run(compared(settings, order, shown(progress)))


def _write(content: Content, report: Path | None, html: Path | None) -> None:
    if report is not None:
        from engines import evaluate

        report.write_bytes(evaluate.pretty(content))
    if html is not None:
        from engines import report_shadow

        html.write_text(report_shadow.page(content), encoding="utf-8")


def _print(content: Content) -> None:
    console = Console()
    served = ", ".join(content["served"]["scores_by_version"]) or "?"
    console.print(
        f"{content['model']}: version {content['shadow']['version']} as a shadow beside the served {served}",
        highlight=False,
        soft_wrap=True,
    )
    for note in content["notes"]:
        console.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if content["scores"] is not None:
        _print_scores(content["scores"], console)
    _print_alerts(content["alerts"], console)


def _print_scores(scores: Content, console: Console) -> None:
    apart = scores["difference"]
    unreached = scores["outside_served"] + scores["outside_shadow"]
    console.print(
        f"{scores['compared']:,} records compared; only served {scores['only_served']:,}, only the shadow "
        f"{scores['only_shadow']:,}; not reached by both {unreached:,}",
        highlight=False,
        soft_wrap=True,
    )
    table = Table("risk, shadow less served", "")
    for name, value in apart.items():
        words = name.replace("_", " ")
        table.add_row(words, f"{value:,}" if isinstance(value, int) else _number(value, 6))
    console.print(table)
    table = Table("reach the level", "enter", "both", "only served", "only shadow", "neither")
    for level in scores["decisions"]:
        counts = (f"{level[name]:,}" for name in ("both", "only_served", "only_shadow", "neither"))
        table.add_row(f"{level['policy']}: {level['severity']}", f"{level['enter']:g}", *counts)
    console.print(table)


def _print_alerts(alerts: Content, console: Console) -> None:
    title = f"alerts of {alerts['patients']:,} patients, {alerts['patient_days']:,.1f} patient-days"
    table = Table("", "model: served", "model: shadow", "NEWS2: served", "NEWS2: shadow", title=title)
    sides = [alerts[voice][side] for voice in ("model", "news2") for side in ("served", "shadow")]
    for transition in ("raised", "escalated", "updated", "resolved", "expired"):
        table.add_row(transition, *(f"{side['transitions'].get(transition, 0):,}" for side in sides))
    table.add_row("per patient-day", *(_number(side["alerts_per_patient_day"], 3) for side in sides))
    console.print(table)
    table = Table("episodes", "both", "only served", "only shadow", "carried over", "shadow earlier by, h")
    for voice, name in (("model", "model"), ("news2", "NEWS2")):
        counts = alerts[voice]["episodes"]
        lead = alerts[voice]["lead_hours"]
        hours = "-" if lead is None else "{} ({} to {})".format(lead["median"], *lead["quartiles"])
        table.add_row(name, *(f"{count:,}" for count in counts.values()), hours)
    console.print(table)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
