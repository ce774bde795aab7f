"""`riskstream model compare`."""

import json
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from engines import compare as comparison
from engines import repository
from engines.compare import Pair, Progress, Side
from engines.errors import InputError
from engines.physionet2012 import Sample, Stay
from engines.plans import NEVER_RUN
from engines.precision import Precision
from schemas.features import BY_LOINC
from worker import simulate
from worker.cli_engine import AsJson, Name
from worker.cli_files import check_writable
from worker.cli_told import Plans, Repository, Version, bar, shown, told

HOURS = ("1", "6", "12", "24", "48")
"""Hours of a stay that the table shows; the JSON has all."""

FIGURES = ("max", "p99", "mean")


def compare(
    name: Name,
    backend: Annotated[
        str | None,
        typer.Option(
            help=f"compare this backend ({', '.join(repository.BACKENDS)}); fp16 against fp32, both on "
            "onnxruntime, unless given"
        ),
    ] = None,
    precision: Annotated[
        Precision | None,
        typer.Option(
            help="What --backend computes in: its plan, or model.onnx converted; fp32 unless given; "
            "without --backend fp16."
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="The backend that --backend is compared with; onnxruntime unless given."),
    ] = None,
    against_precision: Annotated[
        Precision, typer.Option(help="What the backend that it is compared with computes in.")
    ] = "fp32",
    data: Annotated[
        str | None,
        typer.Option(
            help="Also on a data set: physionet2012:DIR, medmnist:FILE or images:DIR.", metavar="SOURCE"
        ),
    ] = None,
    patients: Annotated[int, typer.Option(min=1, help="Simulated patients, for a model of series.")] = 200,
    model_repository: Repository = repository.SHIPPED,
    plan_folder: Plans = None,
    version: Version = None,
    report: Annotated[Path | None, typer.Option(help="Write the figures as JSON.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show how far a model's outputs lie apart on two backends, or in fp16 and fp32, and what that decides.

    On the golden inputs, on simulated patients hour by hour, and on a data set if one is named. A backend
    that cannot run here ends the command before anything is computed.
    """
    with told(), bar() as progress:
        check_writable(report)
        if against is not None and backend is None:
            raise InputError("--against is what --backend is compared with: name that too")
        sides = (
            Side(
                backend or repository.REFERENCE_BACKEND, precision or ("fp16" if backend is None else "fp32")
            ),
            Side(against or repository.REFERENCE_BACKEND, against_precision),
        )
        pair = comparison.pair_of(model_repository, name, *sides, plan_folder, version)
        with closing(pair):
            content = _content(pair, model_repository, data, patients, shown(progress))
        for side, what in zip(sides, ("compared", "reference"), strict=True):
            content[what]["precision"] = side.precision
        if report is not None:
            report.write_text(json.dumps(content, indent=2) + "\n")
    if as_json:
        sys.stdout.write(json.dumps(content, indent=2) + "\n")
        return
    _print(content)


def _content(pair: Pair, models: Path, data: str | None, patients: int, show: Progress) -> dict[str, Any]:
    config = pair.reference.config
    golden = comparison.on_golden(pair, models)
    found = []
    if config.kind != "image":
        stays = [_stay(patient) for patient in simulate.patients(patients)]
        found.append(comparison.on_stays(pair, stays, "simulated patients", show))
    if data is not None:
        found.append(comparison.on_data(pair, data, show))
    return {
        "model": {"name": config.name, "version": config.version, "digest": config.digest},
        "reference": {"backend": pair.reference.backend},
        "compared": {"backend": pair.other.backend},
        "golden": golden,
        "data": found,
    }


def _stay(patient: simulate.Patient) -> Stay:
    """A simulated patient's first 48 hours in the data set's terms."""
    samples = tuple(
        Sample(
            int((record.time - patient.admitted).total_seconds() // 60),
            BY_LOINC[seen.code],
            seen.code,
            seen.value,
            seen.unit,
        )
        for record in simulate.chart(patient)
        for seen in record.observations
    )
    return Stay(patient.id, samples, None)


def _print(content: dict[str, Any]) -> None:
    sides = (content["compared"], content["reference"])
    one, other = (f"{side['backend'].removesuffix('-fp16')} {side['precision']}" for side in sides)
    table = Table(
        title=f"{content['model']['name']}: {one} against {other}", box=SIMPLE_HEAD, padding=(0, 0, 0, 1)
    )
    for heading in ("output", "", "max", "p99", "mean", "relative max", "p99", "mean"):
        table.add_column(heading, justify="left" if heading in ("output", "") else "right")
    for row in _rows(content):
        table.add_row(*row)
    console = Console()
    console.print(table)
    for part in content["data"]:
        for level in part["decisions"]:
            console.print(
                f"{part['source']}, {level['severity']} at {level['enter']}: {level['changed']:,} of "
                f"{level['of']:,} decisions changed",
                highlight=False,
                markup=False,
            )
    if content["compared"] == {"backend": content["reference"]["backend"], "precision": "fp16"}:
        console.print(f"Types alone, on ONNX Runtime; plans for a GPU: {NEVER_RUN}.", highlight=False)


def _rows(content: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for tensor, figures in content["golden"]["outputs"].items():
        yield (tensor, "golden", *_numbers(figures))
    for part in content["data"]:
        for tensor, figures in part["outputs"].items():
            yield (tensor, part["source"].split()[0], *_numbers(figures))
        for hour in HOURS:
            if "hours" in part:
                yield ("risk", f"hour {hour}", *_numbers(part["hours"][hour]))


def _numbers(figures: dict[str, Any]) -> list[str]:
    return [f"{side[key]:.1e}" for side in (figures, figures["relative"]) for key in FIGURES]
