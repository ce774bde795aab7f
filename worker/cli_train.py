"""`riskstream model train`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from engines import physionet2012, repository
from engines.errors import EngineError, ExtraError
from worker.cli_evaluate import Data, print_figures
from worker.cli_told import bar, shown, told

TRAINABLE = ("vitals",)


def train(
    name: Annotated[str, typer.Argument(help=f"what to train: {', '.join(TRAINABLE)}", metavar="NAME")],
    data: Data,
    out: Annotated[
        Path, typer.Option(help="repository to write to; an existing model is replaced")
    ] = repository.SHIPPED,
    threads: Annotated[int, typer.Option(min=1, help="threads; changes the last bits of the weights")] = 2,
) -> None:
    """Train a model by cross-validation and write its folder: graph, config, golden data, card, figures."""
    with told(), bar() as progress:
        if name not in TRAINABLE:
            raise EngineError(f"there is no training for {name!r}; there is for {', '.join(TRAINABLE)}")
        source = physionet2012.parse_source(data)
        try:
            from engines.train import vitals
        except ModuleNotFoundError as error:
            raise ExtraError(f"training needs {error.name}: pip install 'riskstream[train]'") from error
        figures = vitals.train(source, out, shown(progress), vitals.Plan(threads=threads))
    print_figures(f"{name}, cross-validation", figures)
    Console().print(f"wrote {out / name}")
