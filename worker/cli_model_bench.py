"""`riskstream model bench`."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from engines import bench as measurement
from engines import repository
from engines.bench import Opened, Order, Progress
from engines.engine import Parts
from engines.errors import ExtraError, InputError
from engines.precision import Precision
from schemas.model_config import ModelConfig
from worker.bench import report as bench_report
from worker.cli_engine import AsJson, Name
from worker.cli_files import check_writable
from worker.cli_told import Plans, Repository, Version, bar, shown, told

LEGEND = (
    "rows in a batch; milliseconds of it: latency, CPU time, copying in, running,\n"
    "copying out; rows per second, and as multiples of batch 1 and of the reference;\n"
    "where an engine takes two batches at once, what multiple that gives"
)

PACKAGES = (
    "riskstream",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
    "pycuda",
    "torch",
)


def bench(
    name: Name,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            help="A backend that must run beside onnxruntime, such as pytorch, which is measured only when "
            "it is named; repeatable; all that serve and can run unless given."
        ),
    ] = None,
    precision: Annotated[
        Literal["fp32", "fp16", "both"],
        typer.Option(
            help="Of the plans of tensorrt and tensorrt-rtx; the others compute model.onnx as it is."
        ),
    ] = "fp32",
    batch: Annotated[
        str | None,
        typer.Option(
            help="Batch sizes such as 1,8,128; powers of two up to the model's largest unless given."
        ),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option(min=0.01, max=600, help="Seconds for each backend and batch size, over all rounds."),
    ] = 2.0,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Rounds; figures are medians.")] = 5,
    model_repository: Repository = repository.SHIPPED,
    plan_folder: Plans = None,
    version: Version = None,
    report: Annotated[Path | None, typer.Option(help="Write the figures as JSON.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw them, as .svg or .png; needs the extra `report`.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure latency and rows per second by batch size, on every backend that can run here.

    Rows are those of the model's golden data, over and over. Engines compute on one thread, as they serve.
    Every figure is a median over rounds, each of which visits every batch size and backend.
    """
    with told(), bar(still=True) as progress:
        check_writable(report, plot)
        _check_plot(plot)
        sizes = measurement.sizes_of(repository.read_config(model_repository, name, version), batch)
        chosen: tuple[Precision, ...] = ("fp32", "fp16") if precision == "both" else (precision,)
        with measurement.opened(model_repository, name, backend, plan_folder, chosen, version) as found:
            content = _content(model_repository, found, Order(sizes, seconds, rounds), shown(progress))
        if report is not None:
            bench_report.write(content, report)
        if plot is not None:
            from engines import report_bench

            report_bench.write_plot(content, plot)
    if as_json:
        sys.stdout.write(json.dumps(content, indent=2) + "\n")
        return
    _print(content)


def _content(models: Path, found: Opened, order: Order, show: Progress) -> dict[str, Any]:
    config = found.engines[repository.REFERENCE_BACKEND].config
    inputs = measurement.golden_inputs(models, config)
    before = _load()
    backends = measurement.measure(found.engines, inputs, order, show)
    return {
        "model": _model(config),
        "inputs": {"from": repository.GOLDEN, "rows": len(next(iter(inputs.values())))},
        "seconds_per_point": order.seconds,
        "rounds": order.rounds,
        "reference": repository.REFERENCE_BACKEND,
        "backends": backends,
        "refused": {
            backend: {"reason": error.reason, "message": str(error)}
            for backend, error in found.refused.items()
        },
        "load_average": {"before": before, "after": _load()},
        **bench_report.circumstances(PACKAGES),
    }


def _model(config: ModelConfig) -> dict[str, Any]:
    return {"name": config.name, "version": config.version, "kind": config.kind, "digest": config.digest}


def _load() -> list[float]:
    """Processes that ran or waited for a CPU, on average over 1, 5 and 15 minutes."""
    return [round(load, 2) for load in os.getloadavg()]


def _check_plot(plot: Path | None) -> None:
    """Refuse, before anything is measured, a picture that could not be drawn after it."""
    if plot is None:
        return
    if plot.suffix not in (".svg", ".png"):
        raise InputError(f"--plot writes .svg or .png, not {plot.suffix or 'a file without ending'}")
    try:
        from engines import report_bench as _  # noqa: F401
    except ExtraError as error:
        raise ExtraError(f"--plot: {error}") from error


def _print(content: dict[str, Any]) -> None:
    console = Console()
    model = content["model"]
    for found in content["backends"].values():
        title = f"{model['name']}/{model['version']} on {found['engine']}, rounds: {content['rounds']}"
        console.print(_table(title, found["points"]))
    console.print(LEGEND, style="italic", highlight=False)
    for backend, why in content["refused"].items():
        console.print(f"{backend} left out: {why['message']}", markup=False, highlight=False)
    machine = content["machine"]
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores, load {content['load_average']['before'][0]} before",
        markup=False,
        highlight=False,
    )


def _table(title: str, points: list[dict[str, Any]]) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, show_edge=False, padding=(0, 0, 0, 1))
    two = any(point["in_flight"] for point in points)
    headings = ("rows", "p50", "p90", "p99", "CPU", "in", "run", "out", "rows/s", "×1", "×ref")
    for heading in (*headings, "×2") if two else headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for point in points:
        parts = point["parts_ms"] or {}
        table.add_row(
            str(point["batch"]),
            *map(_number, point["latency_ms"].values()),
            _number(point["cpu_ms"]),
            *(_number(parts.get(part)) for part in Parts._fields),
            f"{point['rows_per_second']['median']:,.0f}",
            _number(point["to_batch_1"]),
            _number(point["to_reference"]),
            *([_number(point["in_flight"]["to_one"])] if two else ()),
        )
    return table


def _number(value: float | None) -> str:
    """As much as means something and fits; a dash where there is no figure."""
    if value is None:
        return "–"
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.1 else f"{value:.2g}"
