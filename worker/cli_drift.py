"""`riskstream drift` and `riskstream model reference`."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Column, Table

from engines import drift_reference, physionet2012, repository
from worker.cli_files import check_writable
from worker.cli_told import Changed, Version, bar, shown, told

Content = dict[str, Any]

SIMULATED = 200
"""Simulated patients unless their number is given: of fewer than some fifty little can be told."""

_COLOURS = {"stable": "green", "moderate": "yellow", "large": "red", "too few": "dim"}


def reference(
    name: Annotated[str, typer.Argument(help="Series model in the repository.", metavar="NAME")],
    data: Annotated[str, typer.Option(help="Data set: physionet2012:DIR.", metavar="SOURCE")],
    model_repository: Changed,
    version: Version = None,
    folds: Annotated[
        Path | None,
        typer.Option(help="What `model train --folds` wrote: risks of models that have not seen the stay."),
    ] = None,
) -> None:
    """Write reference.json into a model's folder: how its inputs and risks lie in these data.

    `riskstream drift` and a worker's metrics compare with it. It holds counts by bin, of no single patient.
    """
    with told(), bar() as progress:
        source = physionet2012.parse_source(data)
        engine = repository.load(model_repository, name, version=version)
        folder = repository.companions(model_repository, engine.config)
        check_writable(folder / repository.REFERENCE)
        made = drift_reference.of_stays(engine, source, shown(progress), folds)
        engine.close()
        file = drift_reference.write(made, folder)
    Console().print(
        f"wrote {file}: {made.hours:,} patient-hours of {made.stays:,} stays",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def drift_(
    data: Annotated[
        str,
        typer.Option(
            help="Records: simulate, physionet2012:DIR, or a file that 'send --record' wrote.",
            metavar="SOURCE",
        ),
    ],
    *,
    model: Annotated[
        str | None, typer.Option(help="Model; the setting's unless given.", metavar="NAME")
    ] = None,
    model_repository: Annotated[
        Path | None, typer.Option("--repository", help="Folder of model folders; the setting's unless given.")
    ] = None,
    patients: Annotated[
        int | None,
        typer.Option(
            help=f"How many patients: {SIMULATED} simulated ones, all of a data set unless given.", min=1
        ),
    ] = None,
    outcomes: Annotated[
        Path | None,
        typer.Option(help="Outcomes that came: CSV or JSON lines of patient and outcome, 0 or 1."),
    ] = None,
    at_hour: Annotated[
        float, typer.Option(help="Outcomes are judged by the risk so many hours after the first.", min=0)
    ] = 24.0,
    fail_above: Annotated[
        float | None,
        typer.Option(
            help="Exit 1 where an index, less what chance gives, is above this.",
            min=0,
        ),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write what was found as JSON.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page to read; needs the extra `report`.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Compare what a model reads and says of records with its reference: population stability, missingness.

    The records go through the worker's own path. With --outcomes, calibration and order of the risks too.

    Exit status: 0; 1 on failure. With --fail-above, 1 where something has drifted further, 2 where nothing
    can be judged.
    """
    overrides = {"model": model, "model_repository": model_repository}
    with told(), bar() as progress:
        _prepare(report, html)
        content = _found(
            data,
            patients,
            outcomes,
            at_hour,
            {key: value for key, value in overrides.items() if value is not None},
            shown(progress),
        )
        if report is not None:
            report.write_bytes(_pretty(content))
        if html is not None:
            from engines import report as pages

            html.write_text(pages.drift_page(content), encoding="utf-8")
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode(content) + b"\n")
        sys.stdout.flush()
    else:
        _print(content)
    _end(content, fail_above)


def _as_many(data: str) -> int | None:
    from worker.recording import SIMULATE

    return SIMULATED if data == SIMULATE else None


def _found(
    data: str,
    patients: int | None,
    outcomes: Path | None,
    at_hour: float,
    overrides: dict[str, Any],
    show: Any,
) -> Content:
    from engines.errors import DatasetError
    from schemas.errors import PolicyError
    from worker import config, drift_report, outcome_file, recording

    try:
        settings = config.load(**overrides)
        known = outcome_file.read(outcomes) if outcomes is not None else None
        engine = repository.load(
            settings.model_repository,
            settings.model,
            settings.backend,
            settings.plans,
            precision=settings.precision,
        )
        expected = drift_reference.read(settings.model_repository, engine.config)
        show("reading records", 0, 0)
        chosen = recording.read(data, recording.Choice(patients or _as_many(data)))
        found = asyncio.run(drift_report.observed(chosen, engine, expected, settings, at_hour, show))
        engine.close()
    except (config.ConfigError, PolicyError, recording.SourceError) as error:
        raise DatasetError(str(error)) from None
    return drift_report.report(expected, found, data, known, at_hour)


def _prepare(report: Path | None, html: Path | None) -> None:
    """Find what cannot be written, or drawn, before the work rather than after it."""
    for file in (report, html):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
    check_writable(report, html)
    if html is not None:
        from engines import report as _  # noqa: F401  # says which extra is missing


def _pretty(content: Content) -> bytes:
    from engines import evaluate

    return evaluate.pretty(content)


def _end(content: Content, fail_above: float | None) -> None:
    if fail_above is None:
        return
    from worker.drift_report import exceeded

    found = exceeded(content, fail_above)
    unjudged = sum(shift["psi"] is None for shift in content["shifts"])
    if unjudged:
        words = f"{unjudged} of {len(content['shifts'])} cannot be judged: too few patients"
        Console(stderr=True).print(words, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if found:
        words = f"drifted by more than {fail_above:g}: {', '.join(found)}"
        Console(stderr=True).print(words, style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1)
    if unjudged == len(content["shifts"]):
        raise typer.Exit(2)


def _print(content: Content) -> None:
    of, console = content["reference"], Console()
    console.print(
        f"{content['model']['name']} on {content['patient_hours']:,} patient-hours of "
        f"{content['patients']:,} patients, beside {of['hours']:,} of {of['stays']:,} stays of {of['data']}",
        soft_wrap=True,
        highlight=False,
    )
    # Folded and never cut: two pressures differ in their last words alone.
    name = Column("feature", overflow="fold")
    table = Table(name, "PSI", "chance", "", "median (was)", "absent (was)")
    for shift in sorted(content["shifts"], key=_worst):
        table.add_row(
            shift["feature"],
            "-" if shift["psi"] is None else f"{shift['psi']:.3f}",
            f"{shift['chance']:.3f}",
            f"[{_COLOURS[shift['band']]}]{_words(shift)}",
            f"{_number(shift['median'])} ({_number(shift['reference_median'])})",
            f"{shift['absent']:.1%} ({shift['reference_absent']:.1%})",
        )
    console.print(table)
    if "outcomes" in content:
        _print_outcomes(content["outcomes"], console)


def _worst(shift: Content) -> tuple[bool, float]:
    return shift["psi"] is None, -((shift["psi"] or 0.0) - shift["chance"])


def _words(shift: Content) -> str:
    few = shift["band"] == "too few"
    return f"too few: needs {shift['patients_needed']:,} patients" if few else shift["band"]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _print_outcomes(content: Content, console: Console) -> None:
    title = (
        f"{content['patients']:,} patients with an outcome, risk {content['hours']:g} h after the first score"
    )
    table = Table("risk", "patients", "expected", "observed", "95%", title=title)
    for band in [*content["bands"], {**content, "from": None}]:
        name = "all" if band["from"] is None else f"{band['from']:g} to {band['to']:g}"
        low, high = band["interval"]
        table.add_row(
            name,
            f"{band['patients']:,}",
            f"{band['expected']:.1%}",
            f"{band['observed']:.1%}",
            f"{low:.1%} to {high:.1%}",
        )
    console.print(table)
    if content["figures"] is None:
        console.print("All had the same outcome: no AUROC and no calibration error.")
        return
    for name in ("auroc", "ece", "calibration_in_the_large"):
        low, high = content["figures"]["intervals"][name]
        console.print(f"{name}: {content['figures'][name]:.3f} ({low:.3f} to {high:.3f})", highlight=False)
