"""`riskstream model ...`: train, evaluate and list models."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from engines import evaluate as evaluation
from engines import physionet2012, repository
from engines.errors import EngineError, ExtraError
from worker.cli_files import check_writable

app = typer.Typer(help="Train, evaluate and list models.", no_args_is_help=True)

TRAINABLE = ("vitals",)

Name = Annotated[str, typer.Argument(help="model in the repository", metavar="NAME")]
Repository = Annotated[Path, typer.Option("--repository", help="folder of model folders")]
Data = Annotated[str, typer.Option(help="data set: physionet2012:DIR", metavar="SOURCE")]


@app.command()
def train(
    name: Annotated[str, typer.Argument(help=f"what to train: {', '.join(TRAINABLE)}", metavar="NAME")],
    data: Data,
    out: Annotated[
        Path, typer.Option(help="repository to write to; an existing model is replaced")
    ] = repository.SHIPPED,
    threads: Annotated[int, typer.Option(min=1, help="threads; changes the last bits of the weights")] = 2,
) -> None:
    """Train a model by cross-validation and write its folder: graph, config, golden data, card, figures."""
    with _told(), _bar() as progress:
        if name not in TRAINABLE:
            raise EngineError(f"there is no training for {name!r}; there is for {', '.join(TRAINABLE)}")
        source = physionet2012.parse_source(data)
        try:
            from engines.train import vitals
        except ModuleNotFoundError as error:
            raise ExtraError(f"training needs {error.name}: pip install 'riskstream[train]'") from error
        figures = vitals.train(source, out, _shown(progress), vitals.Plan(threads=threads))
    _print_figures(f"{name}, cross-validation", figures)
    Console().print(f"wrote {out / name}")


@app.command()
def evaluate(
    name: Name,
    data: Data,
    model_repository: Annotated[
        Path, typer.Option("--repository", help="folder of model folders")
    ] = repository.SHIPPED,
    report: Annotated[Path | None, typer.Option(help="write the figures as JSON")] = None,
    predictions: Annotated[Path | None, typer.Option(help="write stay, hour, risk as CSV")] = None,
) -> None:
    """Judge a model, as it is served, at 6, 12, 24 and 48 hours after admission."""
    with _told(), _bar() as progress:
        for file in (report, predictions):
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
        check_writable(report, predictions)
        engine = repository.load(model_repository, name)
        path = physionet2012.parse_source(data)
        show = _shown(progress)
        show("reading stays", 0, 0)
        stays = physionet2012.read(path)
        done = 0

        def on_stays(number: int) -> None:
            nonlocal done
            done += number
            show("scoring stays", done, len(stays))

        risks = evaluation.served_risks(engine, stays, on_stays)
        if predictions is not None:
            evaluation.write_predictions(stays, risks, predictions)
        if report is None and predictions is not None and all(stay.outcome is None for stay in stays):
            return
        threshold = evaluation.event1_threshold(model_repository, name)
        content = evaluation.report(engine, stays, risks, threshold)
        if report is not None:
            evaluation.write_report(content, report)
    _print_figures(f"{name} on {content['data']['judged']:,} stays", content)


@app.command(name="list")
def list_(
    model_repository: Annotated[
        Path, typer.Option("--repository", help="folder of model folders")
    ] = repository.SHIPPED,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """List the models of a repository."""
    with _told():
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


@contextmanager
def _told() -> Iterator[None]:
    """Turn an expected failure into one line and exit code 1."""
    try:
        yield
    except (EngineError, OSError) as error:
        Console(stderr=True).print(
            f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        raise typer.Exit(1) from None


def _bar() -> Progress:
    """A progress bar on standard error; nothing where that is not a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _shown(progress: Progress) -> Callable[[str, int, int], None]:
    tasks: dict[str, Any] = {}

    def show(what: str, done: int, of: int) -> None:
        if what not in tasks:
            tasks[what] = progress.add_task(what)
        progress.update(tasks[what], completed=done, total=of or None)

    return show


def _print_figures(title: str, content: dict[str, Any]) -> None:
    columns = ("auroc", "auprc", "event1", "brier", "ece")
    table = Table("hour", *columns, title=title)
    for hour, figures in content["hours"].items():
        table.add_row(hour, *(f"{figures[column]:.3f}" for column in columns))
    Console().print(table)
