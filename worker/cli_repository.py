"""`riskstream model list`."""

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from engines import repository
from worker.cli_told import told


def list_(
    model_repository: Annotated[
        Path, typer.Option("--repository", help="folder of model folders")
    ] = repository.SHIPPED,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
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
        table.add_row(*(str(row[field])[:12] if field == "digest" else str(row[field]) for field in fields))
    Console().print(table)
