"""`riskstream model evaluate` and `riskstream model report`."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from engines import evaluate as evaluation
from engines import evaluate_images, evaluate_stays, physionet2012, repository
from engines.engine import Engine
from engines.errors import DatasetError, KindError, RepositoryError
from engines.labelled import UNLABELLED
from engines.repository import EVALUATION
from worker.cli_files import check_writable
from worker.cli_told import Repository, Version, bar, shown, told

Name = Annotated[str, typer.Argument(help="Model in the repository.", metavar="NAME")]
SOURCES = "physionet2012:DIR, medmnist:FILE or images:DIR"
Data = Annotated[str, typer.Option(help=f"Data set: {SOURCES}.", metavar="SOURCE")]
Html = Annotated[Path | None, typer.Option(help="Write a page to read; needs the extra `report`.")]

Show = Callable[[str, int, int], None]
Content = dict[str, Any]


def evaluate(
    name: Name,
    data: Data,
    model_repository: Repository = repository.SHIPPED,
    version: Version = None,
    split: Annotated[str | None, typer.Option(help="Of pictures: test, val or train.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write the figures as JSON.")] = None,
    html: Html = None,
    predictions: Annotated[Path | None, typer.Option(help="Write the risks as CSV.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Judge a model, as it is served, on data with known outcomes.

    A model of series is judged at 6, 12, 24 and 48 hours after admission, beside the baselines that come with
    it; a model of pictures at its threshold. Data without outcomes give --predictions alone.
    """
    with told(), bar() as progress:
        _prepare(report, html, predictions)
        engine = repository.load(model_repository, name, version=version)
        scored = _pictures if engine.config.kind == "image" else _stays
        kept = report is not None or html is not None or as_json
        content = scored(engine, model_repository, data, split, predictions, kept, shown(progress))
        if content is None:
            Console().print(
                f"wrote {predictions}; no figures: they need cases with the outcome, and cases without",
                soft_wrap=True,
                highlight=False,
                markup=False,
            )
            return
        content["reproduce"] = evaluation.reproduction(
            f"riskstream model evaluate {name} --data {data.partition(':')[0]}:PATH"
            + (f" --version {version}" if version is not None else "")
        )
        if report is not None:
            evaluation.write_report(content, report)
        if html is not None:
            _write_page(content, html, repository.companions(model_repository, engine.config))
    if as_json:
        sys.stdout.write(msgspec.json.encode(content).decode() + "\n")
    else:
        print_figures(f"{name} on {content['data']['judged']:,} cases", content)


def report(
    name: Name,
    html: Annotated[Path, typer.Option(help="Page to write.")],
    model_repository: Repository = repository.SHIPPED,
) -> None:
    """Draw the page of a model's own evaluation.json: how good it was found to be when it was made."""
    with told():
        _prepare(None, html, None)
        folder = repository.companions(model_repository, repository.read_config(model_repository, name))
        file = folder / EVALUATION
        try:
            content = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
        except (OSError, msgspec.MsgspecError) as error:
            raise RepositoryError(f"cannot read {file}: {error}") from error
        try:
            _write_page(content, html, folder)
        except (KeyError, TypeError) as error:
            raise RepositoryError(
                f"{file} lacks {error}: another version wrote it; evaluate again"
            ) from error


def _prepare(report: Path | None, html: Path | None, predictions: Path | None) -> None:
    """Find what cannot be written, or drawn, before the work rather than after it."""
    for file in (report, html, predictions):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
    check_writable(report, html, predictions)
    if html is not None:
        from engines import report as _  # noqa: F401  # says which extra is missing


def _write_page(content: Content, html: Path, folder: Path) -> None:
    from engines import report as pages

    pages.write_page(content, html, folder)


def _stays(
    engine: Engine,
    model_repository: Path,
    data: str,
    split: str | None,
    predictions: Path | None,
    kept: bool,
    show: Show,
) -> Content | None:
    """The report on stays; None where outcomes do not differ and risks were all that was asked for.

    Where no report is kept, channels are not withheld: what is printed does not tell of it.
    """
    if evaluate_images.is_source(data):
        raise KindError(f"{engine.config.name} reads patients' series: give it --data physionet2012:DIR")
    path = physionet2012.parse_source(data)
    if split is not None:
        raise DatasetError("physionet2012 has no splits; leave out --split")
    show("reading stays", 0, 0)
    stays = physionet2012.read(path)
    made = evaluate_stays.rows_of(stays, show)
    predicted = evaluate_stays.served(engine, made, show)
    if predictions is not None:
        evaluate_stays.write_predictions(stays, predicted.risk, predictions)
    outcomes = {stay.outcome for stay in stays} - {None}
    if predictions is not None and not kept and len(outcomes) < 2:
        return None
    return evaluate_stays.report(engine, model_repository, stays, made, predicted, show, probed=kept)


def _pictures(
    engine: Engine,
    model_repository: Path,
    data: str,
    split: str | None,
    predictions: Path | None,
    kept: bool,
    show: Show,
) -> Content | None:
    """The report on pictures of known class; None where risks were all that was asked for, and all of those
    pictures, or none, have a finding."""
    if physionet2012.is_source(data):
        raise KindError(
            f"{engine.config.name} reads images: give it --data medmnist:FILE or --data images:DIR"
        )
    alone = predictions is not None and not kept
    images = evaluate_images.read_source(data, split, labelled=not alone).named(engine.config.classes)
    done = 0

    def on_batch(number: int) -> None:
        nonlocal done
        done += number
        show("scoring pictures", done, len(images))

    probability = evaluate_images.predict(engine, images, on_batch)
    if predictions is not None:
        evaluate_images.write_predictions(images, probability, engine.config, predictions)
    known = np.flatnonzero(images.labels != UNLABELLED)
    images, probability = images.subset(known), probability[known]
    if alone and len(set(evaluate_images.is_finding(engine.config, images).tolist())) < 2:
        return None
    return evaluate_images.assess_served(engine, images, probability, show)


def print_figures(title: str, content: Content) -> None:
    """The main figures as a table, and the verdict."""
    columns = ("auroc", "auprc", "event1", "accuracy", "brier", "ece")
    judged = content.get("hours") or {"all": content["judged"]}
    table = Table("hour" if "hours" in content else "", *columns, title=title)
    for name, figures in judged.items():
        table.add_row(name, *(f"{figures[column]:.3f}" for column in columns))
    console = Console()
    console.print(table)
    for sentence in content.get("verdict", ()):
        console.print(f"- {sentence}", markup=False, highlight=False)
