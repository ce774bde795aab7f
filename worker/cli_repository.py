"""`riskstream model list`, `check` and `add`: model folders."""

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engines import acceptance, repository
from engines.precision import Precision
from worker.cli_told import Changed, Plans, Repository, Version, told


def list_(
    model_repository: Repository = repository.SHIPPED,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the models of a repository."""
    with told():
        models = repository.list_models(model_repository)
    fields = ("name", "kind", "version", "digest", "outcome")
    listed = [{field: getattr(model, field) for field in fields} for model in models]
    if as_json:
        sys.stdout.write(msgspec.json.encode(listed).decode() + "\n")
        return
    table = Table(*fields)
    for row in listed:
        cells = (str(row[field])[: 12 if field == "digest" else None] for field in fields)
        table.add_row(*(Text(cell) for cell in cells))
    Console().print(table)


def check(
    name: Annotated[str, typer.Argument(help="Model in the repository.", metavar="NAME")],
    model_repository: Repository = repository.SHIPPED,
    version: Version = None,
    backend: Annotated[
        str, typer.Option(help=f"that computes it: {', '.join(repository.BACKENDS)}")
    ] = repository.REFERENCE_BACKEND,
    precision: Annotated[
        Precision, typer.Option(help="Of the plan, for tensorrt and tensorrt-rtx.")
    ] = "fp32",
    plan_folder: Plans = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Try whether a model is fit to be served: files, golden data, outputs, batches; exit 0 or 1."""
    findings = acceptance.check(
        model_repository, name, backend, version, precision=precision, plans=plan_folder
    )
    well = all(finding.well for finding in findings)
    if as_json:
        shown = {"well": well, "findings": [finding._asdict() for finding in findings]}
        sys.stdout.write(msgspec.json.encode(shown).decode() + "\n")
    else:
        table = Table("check", "", "detail")
        for finding in findings:
            table.add_row(
                finding.subject, "[green]ok" if finding.well else "[red]FAILED", Text(finding.detail)
            )
        Console().print(table)
    raise typer.Exit(0 if well else 1)


def add(
    graph: Annotated[Path, typer.Argument(help="ONNX file.", metavar="GRAPH")],
    config: Annotated[Path, typer.Option(help="config.json of the model; its digest may be missing.")],
    model_repository: Changed,
) -> None:
    """Make a model folder of an ONNX file and its config: writes the digest and golden data.

    Where the model is there already, the version comes beside those that it has and is not served yet.
    """
    with told():
        added = acceptance.add(model_repository, graph.read_bytes(), config)
        served = repository.read_config(model_repository, added.name).version
    which = f"{added.name} --repository {model_repository}"
    if served != added.version:
        which += f" --version {added.version}"
    told_next = f"; version {served} is served until riskstream model serve {which}"
    Console().print(
        f"added {added.name} version {added.version} to {model_repository}; riskstream model check {which}"
        f"{told_next if served != added.version else ''}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
