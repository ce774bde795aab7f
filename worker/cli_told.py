"""What the `riskstream model` commands share: options, failures told in one line, progress on long work."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from engines.errors import EngineError

MODELS, PLANS = "RISKSTREAM_MODEL_REPOSITORY", "RISKSTREAM_PLANS"
"""Settings of a worker that these commands take as well, so that both mean the same folders."""

Repository = Annotated[
    Path,
    typer.Option(
        "--repository",
        envvar=MODELS,
        help="Folder of model folders.",
        metavar="DIR",
        show_default="the shipped models",
    ),
]
Changed = Annotated[
    Path,
    typer.Option(
        "--repository", envvar=MODELS, help="Folder of model folders; it is written to.", metavar="DIR"
    ),
]
Plans = Annotated[
    Path | None,
    typer.Option(
        "--plans", envvar=PLANS, help="Folder to keep plans in; beside the model unless given.", metavar="DIR"
    ),
]
Version = Annotated[
    int | None, typer.Option("--version", min=1, help="Of the model; the served one unless given.")
]


@contextmanager
def told() -> Iterator[None]:
    """Turn an expected failure into one line and exit code 1."""
    try:
        yield
    except (EngineError, OSError) as error:
        words = (
            f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else error
        )
        Console(stderr=True).print(
            f"error: {words}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        raise typer.Exit(1) from None


def bar(*, still: bool = False) -> Progress:
    """A progress bar on standard error; nothing where that is not a terminal.

    Args:
        still: draw only when told of progress, so that no drawing disturbs what is timed in between.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    return Progress(
        *columns,
        console=console,
        transient=True,
        auto_refresh=not still,
        disable=not console.is_terminal,
    )


def shown(progress: Progress) -> Callable[[str, int, int], None]:
    """A function (what, done, of) that moves the bar; one line for each `what`."""
    tasks: dict[str, Any] = {}

    def show(what: str, done: int, of: int) -> None:
        if what not in tasks:
            tasks[what] = progress.add_task(what)
        still = not progress.live.auto_refresh
        progress.update(tasks[what], completed=done, total=of or None, refresh=still)

    return show
