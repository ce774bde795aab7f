"""`riskstream model versions`, `serve` and `rollback`: which version of a model is served."""

import sys
from collections.abc import Mapping
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from engines import repository
from engines import versions as served
from schemas.model_config import ModelConfig
from worker.cli_told import Changed, Repository, told

Name = Annotated[str, typer.Argument(help="Model in the repository.", metavar="NAME")]


def versions(
    name: Name,
    model_repository: Repository = repository.SHIPPED,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List a model's versions: which is served and since when, and their digests."""
    with told():
        configs = [
            repository.read_config(model_repository, name, version)
            for version in repository.versions(model_repository, name)
        ]
        now = served.history(model_repository, name)[-1]
    rows = [
        {
            "version": config.version,
            "served": config.version == now.version,
            "since": now.when if config.version == now.version else None,
            "digest": config.digest,
            "policy": config.policy.version,
        }
        for config in configs
    ]
    if as_json:
        sys.stdout.write(msgspec.json.encode(rows).decode() + "\n")
        return
    table = Table("version", "served", "digest", "policy")
    for row in rows:
        table.add_row(str(row["version"]), _served(row), str(row["digest"])[:12], str(row["policy"]))
    Console().print(table)


def serve(
    name: Name,
    version: Annotated[int, typer.Option(min=1, help="To serve from now on.")],
    model_repository: Changed,
) -> None:
    """Serve a version of a model, after proving that it loads and computes its golden data.

    The version that is served already is proved as any other; exit 1 says that it fails.
    """
    with told():
        before = repository.read_config(model_repository, name)
        now = served.serve(model_repository, name, version)
    _tell(before, now, f"; riskstream model rollback {name} --repository {model_repository} takes it back")


def rollback(name: Name, model_repository: Changed) -> None:
    """Serve the version that was served before; again, and it goes back one further."""
    with told():
        before = repository.read_config(model_repository, name)
        now = served.rollback(model_repository, name)
    _tell(before, now, "")


def _served(row: Mapping[str, object]) -> str:
    if not row["served"]:
        return ""
    return f"since {row['since']:%Y-%m-%d %H:%M:%S} UTC" if row["since"] else "yes"


def _tell(before: ModelConfig, now: ModelConfig, remedy: str) -> None:
    words = f"{now.name} serves version {now.version} (digest {now.digest[:12]}, policy {now.policy.version})"
    if before.version == now.version:
        words += " already; it loads and computes its golden data here"
    else:
        words += f", no longer version {before.version}{remedy}"
    Console().print(words, soft_wrap=True, highlight=False, markup=False)
