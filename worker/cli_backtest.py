"""`riskstream backtest`."""

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engines.errors import EngineError
from schemas.errors import SchemaError
from worker.backtest_grid import ENTER, EXIT_RATIO, PERSISTENCE, Axes, GridError, Rule, numbers
from worker.cli_files import complaint
from worker.cli_told import bar, shown
from worker.errors import WorkerError
from worker.recording import Choice, SourceError
from worker.tracks import TracksError

GRID, CHOOSING, RECORDS, OUTPUT = "Policies", "Choosing", "Records", "Output"

LONGEST_S = 172_800.0
"""No level need hold longer than the patient's window is."""


def file(text: str, panel: str) -> Any:
    """An option that names a file."""
    return typer.Option(help=text, metavar="FILE", show_default=False, rich_help_panel=panel)


def axis(text: str) -> Any:
    """An option that spans an axis of the grid."""
    return typer.Option(help=text, metavar="FROM:TO:STEP|N,N", rich_help_panel=GRID)


def bound(text: str, most: float = 1.0) -> Any:
    """An option that says what the chosen policy must keep to."""
    return typer.Option(
        help=text, min=0.0, max=most, metavar="N", show_default=False, rich_help_panel=CHOOSING
    )


def records(text: str, metavar: str | None = None, *names: str, **limits: Any) -> Any:
    """An option that says which records are read, and who answers for them."""
    return typer.Option(*names, help=text, metavar=metavar, rich_help_panel=RECORDS, **limits)


def backtest(
    source: Annotated[
        str,
        typer.Argument(
            help="simulate, physionet2012:DIR, a file that 'send --record' wrote, or kafka:TOPIC.",
            metavar="SOURCE",
        ),
    ],
    *,
    enter: Annotated[str, axis("Risks at which the first level enters.")] = ENTER,
    persistence: Annotated[str, axis("Seconds for which the first level holds.")] = PERSISTENCE,
    exit_ratio: Annotated[str, axis("Exits, as shares of the first level's enter.")] = EXIT_RATIO,
    high: Annotated[str | None, axis("Risks at which the last level enters; as shipped.")] = None,
    high_persistence: Annotated[
        str | None, axis("Seconds for which the last level holds; as shipped.")
    ] = None,
    policies: Annotated[
        Path | None, file("Try these policies, a JSON array, instead of the grid.", GRID)
    ] = None,
    recall: Annotated[
        float | None, bound("Choose the fewest survivors ever alerted at this recall or more.")
    ] = None,
    survivors: Annotated[
        float | None, bound("Choose the highest recall with at most this share of survivors ever alerted.")
    ] = None,
    alerts_per_day: Annotated[
        float | None,
        bound("Choose the highest recall with at most so many alerts per patient-day.", most=1000.0),
    ] = None,
    write: Annotated[
        Path | None, file("Write the chosen policy as a change that a worker takes up.", CHOOSING)
    ] = None,
    ship: Annotated[
        bool,
        typer.Option(
            "--ship",
            help="Put the chosen policy into the model's folder, with its figures.",
            rich_help_panel=CHOOSING,
        ),
    ] = False,
    patients: Annotated[
        int | None, records("How many patients: 40 simulated ones, all of a data set unless stated.", min=1)
    ] = None,
    seed: Annotated[int, records("Seed of the simulated patients.", min=0)] = 1,
    hours: Annotated[float, records("Hours of each simulated patient's stay.", min=1, max=720)] = 48.0,
    since: Annotated[
        str | None, records("Of a topic: count alerts from this time on.", "TIME", "--from")
    ] = None,
    until: Annotated[str | None, records("Of a topic: stop before this time.", "TIME", "--to")] = None,
    outcomes: Annotated[
        Path | None,
        file("What became of the patients: CSV or JSON lines of patient, outcome, time.", RECORDS),
    ] = None,
    folds: Annotated[
        Path | None,
        records("Let models answer that have not seen the patient: what 'model train --folds' wrote.", "DIR"),
    ] = None,
    tracks: Annotated[
        Path | None, file("Keep the risks here, or take them from here if they fit. Names patients.", RECORDS)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model to test.", metavar="NAME", show_default=False)
    ] = None,
    model_repository: Annotated[
        Path | None, typer.Option(help="Folder of model folders.", metavar="DIR", show_default=False)
    ] = None,
    settings_file: Annotated[
        Path | None,
        typer.Option("--settings", help="TOML file of settings; RISKSTREAM_* variables override it."),
    ] = None,
    alerts: Annotated[
        Path | None, file("Write every alert that a worker would publish, one a line.", OUTPUT)
    ] = None,
    report: Annotated[Path | None, file("Write all figures as JSON.", OUTPUT)] = None,
    html: Annotated[Path | None, file("Write a page to read; needs the extra `report`.", OUTPUT)] = None,
    plot: Annotated[
        Path | None, file("Draw the trade-off as .svg or .png; needs the extra `report`.", OUTPUT)
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all figures as JSON.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Try alert policies on recorded patients: alerts, recall, precision and lead time, beside NEWS2.

    The records go once through the path that a worker runs; then each policy decides on the risks that came
    out. Nothing is published. Recall and precision need outcomes: physionet2012 has them, for other sources
    give --outcomes.

    Exit status: 0, or 1 on failure and where no policy keeps to --recall, --survivors or --alerts-per-day.
    """
    from worker import backtest_run, config
    from worker.config import ConfigError

    bounds = Rule(recall, survivors, alerts_per_day)
    _check(bounds, writes=write is not None or ship)
    try:
        overrides = {"model": model, "model_repository": model_repository}
        settings = config.load(settings_file, **{k: v for k, v in overrides.items() if v is not None})
        axes = Axes(
            numbers(enter, "--enter", 0.0, 1.0),
            numbers(persistence, "--persistence", 0.0, LONGEST_S),
            numbers(exit_ratio, "--exit-ratio", 0.0, 1.0),
            numbers(high, "--high", 0.0, 1.0) if high else (),
            numbers(high_persistence, "--high-persistence", 0.0, LONGEST_S) if high_persistence else (),
        )
        order = backtest_run.Order(
            source=source,
            choice=Choice(patients, seed, hours),
            since=_time("--from", since),
            until=_time("--to", until),
            outcomes=outcomes,
            folds=folds,
            tracks=tracks,
            policies=policies,
            axes=axes,
            said=(enter, persistence, exit_ratio, high, high_persistence),
            rule=None if bounds == Rule() else bounds,
        )
        outputs = backtest_run.Outputs(write, ship, alerts, report, html, plot)
        backtest_run.check(order, outputs)
        with bar() as progress:
            content = backtest_run.run(order, outputs, settings, shown(progress))
    except (ConfigError, EngineError, GridError, SchemaError, SourceError, TracksError, WorkerError) as error:
        raise SystemExit(f"riskstream backtest: {error}") from None
    except OSError as error:
        raise SystemExit(f"riskstream backtest: {complaint(error)}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    if as_json:
        sys.stdout.write(json.dumps(content) + "\n")
        sys.stdout.flush()
    _show(content, Console(stderr=as_json))
    raise typer.Exit(1 if content["rule"] is not None and content["chosen"] is None else 0)


def _check(rule: Rule, *, writes: bool) -> None:
    given = [value for value in rule if value is not None]
    if len(given) > 1:
        raise typer.BadParameter("give one of --recall, --survivors and --alerts-per-day")
    if writes and not given:
        raise typer.BadParameter("--write and --ship need one of --recall, --survivors and --alerts-per-day")


def _time(option: str, text: str | None) -> datetime | None:
    """An aware time.

    Raises:
        SourceError: it is none.
    """
    if text is None:
        return None
    try:
        time: datetime | None = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise SourceError(f"{option} is a time with its offset from UTC, such as 2026-01-31T12:00:00Z")
    return time


COLUMNS = {
    "recall": "recall",
    "survivors_alerted": "survivors",
    "ppv_patients": "PPV",
    "alerts_per_patient_day": "alerts/day",
    "time_in_alert": "in alert",
}
"""Of the table, which must fit a terminal; the report has more."""

SHOWN = 12
"""Policies of the front in the table, at most; the report has all."""

Rows = list[tuple[str, dict[str, Any]]]

MEANING = (
    "survivors: share ever alerted; alerts/day: raised and escalated for each patient-day; in alert: share "
    "of the time; lead: median from the first alert to the outcome, or to the last record if its time is "
    "unknown"
)


def _show(content: dict[str, Any], console: Console) -> None:
    """The table of the policies that matter, and the sentences that belong to it."""
    from worker.backtest_content import marked

    cohort, model = content["cohort"], content["model"]
    told = f"{cohort['patients']:,} patients, {cohort['patient_days']:,.0f} patient-days"
    if content["outcome"] is not None:
        told += f", {cohort['events']:,} with the outcome ({content['outcome'] or 'as given'})"
    title = f"{model['name']}/{model['version']} on {content['source']['name']}: {told}"
    table = Table("", "policy", *COLUMNS.values(), "lead", title=title, box=SIMPLE, padding=(0, 1, 0, 0))
    for what, policy in _thinned(marked(content)):
        cells = (_cell(policy[name]) for name in COLUMNS)
        table.add_row(what, policy["name"].split(", exit")[0], *cells, _lead(policy))
    console.print(table)
    loud = "bold red" if content["risks"]["unseen"] is False else ""
    said = [Text(MEANING), Text(content["risks"]["words"], style=loud)]
    absent = content.get("without_records", {"patients": 0})
    if absent["patients"]:
        names = (
            f"{absent['patients']:,} patients of the outcomes, {absent['events']:,} of them with the event"
        )
        said.append(Text(f"{names}, have no record that counts: are they named as in the records?"))
    if content["outcome"] is None:
        said.append(Text("recall, survivors, PPV and lead time need outcomes of both kinds: --outcomes FILE"))
    if content["rule"] is not None:
        chosen = content["chosen"]
        found = "no policy that was tried" if chosen is None else content["policies"][chosen]["name"]
        said.append(Text(f"{content['rule']}: {found}"))
    if (held_out := content["held_out"]) is not None:
        said.append(
            Text(
                f"chosen on all folds but one and judged on that one: recall {held_out['recall']:.3f}, "
                f"survivors {held_out['survivors_alerted']:.3f}, "
                f"{held_out['alerts_per_patient_day']:.3f} alerts/day"
            )
        )
    for sentence in said:
        console.print(sentence, soft_wrap=True)


def _thinned(rows: Rows) -> Rows:
    """Every policy that stands out, and of the others some, evenly."""
    others = [number for number, (what, _) in enumerate(rows) if what in ("front", "")]
    if len(others) <= SHOWN:
        return rows
    kept = {others[round(at * (len(others) - 1) / (SHOWN - 1))] for at in range(SHOWN)}
    return [row for number, row in enumerate(rows) if number in kept or number not in others]


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _lead(policy: dict[str, Any]) -> str:
    hours = policy["hours_to_outcome"] or policy["hours_to_record_end"]
    return "" if hours is None else f"{hours['median']:.0f} h"
