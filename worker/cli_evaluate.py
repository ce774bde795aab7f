"""`riskstream model evaluate`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from engines import evaluate as evaluation
from engines import physionet2012, repository
from worker.cli_files import check_writable
from worker.cli_told import bar, shown, told

Name = Annotated[str, typer.Argument(help="model in the repository", metavar="NAME")]
Data = Annotated[str, typer.Option(help="data set: physionet2012:DIR", metavar="SOURCE")]


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
    with told(), bar() as progress:
        for file in (report, predictions):
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
        check_writable(report, predictions)
        engine = repository.load(model_repository, name)
        path = physionet2012.parse_source(data)
        show = shown(progress)
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
    print_figures(f"{name} on {content['data']['judged']:,} stays", content)


def print_figures(title: str, content: dict[str, Any]) -> None:
    """The figures of each judged hour, as a table."""
    columns = ("auroc", "auprc", "event1", "brier", "ece")
    table = Table("hour", *columns, title=title)
    for hour, figures in content["hours"].items():
        table.add_row(hour, *(f"{figures[column]:.3f}" for column in columns))
    Console().print(table)
