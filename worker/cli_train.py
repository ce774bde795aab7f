"""`riskstream model train`."""

import dataclasses
import re
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, cast

import typer
from rich.console import Console

from engines import evaluate_images, physionet2012, staging
from engines.errors import EngineError, ExtraError, KindError
from engines.labelled import LabelledImages
from schemas.model_config import ImageInput
from worker.cli_evaluate import Data, Show, print_figures
from worker.cli_told import bar, shown, told

if TYPE_CHECKING:
    from engines.train.imaging import Plan, Subject

SERIES, IMAGING = ("vitals", "bedside"), "imaging"
TRAINABLE = (*SERIES, IMAGING)

HEALTHY = ("normal", "healthy", "negative", "none")
"""Names of a class that is no finding, wherever it stands."""

SIZE = 224
"""Pixels of a side, where the data do not say: what networks for radiographs are usually given."""

OUT = Path("models")
"""Not the shipped repository. Workers may serve this one: a model that is there stays the served one."""

NEEDED = ("jinja2", "matplotlib", "onnx", "onnxscript", "sklearn", "torch")
"""Modules of the extra `train`; some of them are in other extras too, which are not enough."""

PANEL = "For imaging"


def option(text: str, **limits: Any) -> Any:
    """An option that only imaging has."""
    return typer.Option(help=text, rich_help_panel=PANEL, **limits)


class Asked(NamedTuple):
    """What was asked of an image model; None where nothing was."""

    name: str | None
    size: int | None
    channels: int | None
    fit: str | None
    classes: str | None
    findings: str | None
    epochs: int | None
    members: int | None
    compare: bool | None


def train(
    what: Annotated[str, typer.Argument(help=f"what to train: {', '.join(TRAINABLE)}", metavar="WHAT")],
    data: Data,
    out: Annotated[
        Path,
        typer.Option(
            help="Repository to write to, made where there is none. A model of that name is given another "
            "version, which `model serve` serves.",
            metavar="DIR",
        ),
    ] = OUT,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Put it in place of the model of that name, which has one version."),
    ] = False,
    threads: Annotated[
        int, typer.Option(min=1, help="Processor cores; they change nothing but the time.")
    ] = 2,
    folds: Annotated[
        Path | None,
        typer.Option(help="Folder for the models of the cross-validation; `backtest --folds` reads it."),
    ] = None,
    name: Annotated[str | None, option("name of the model; its finding by default")] = None,
    size: Annotated[int | None, option("pixels of a side; the file's, or 224", min=8, max=1024)] = None,
    channels: Annotated[int | None, option("1 for grey (default), 3 for colour", min=1, max=3)] = None,
    fit: Annotated[str | None, option("of other shapes: pad (default), crop or stretch")] = None,
    classes: Annotated[str | None, option("their names in order, between commas")] = None,
    findings: Annotated[str | None, option("the classes that are the outcome; all but normal")] = None,
    epochs: Annotated[int | None, option("of each member", min=1)] = None,
    members: Annotated[int | None, option("networks in the model, and parts of the data", min=2)] = None,
    compare: Annotated[bool | None, option("train a member with mixup too, for the report")] = None,
) -> None:
    """Train a model by cross-validation and write its folder: graph, config, golden data, card, figures.

    vitals and bedside take --data physionet2012:DIR; imaging takes medmnist:FILE or images:DIR.
    """
    asked = Asked(name, size, channels, fit, classes, findings, epochs, members, compare)
    with told(), bar() as progress:
        if what not in TRAINABLE:
            raise EngineError(f"there is no training for {what!r}; there is for {', '.join(TRAINABLE)}")
        if what == IMAGING and folds is not None:
            raise KindError(f"--folds is for {' and '.join(SERIES)}; {IMAGING} does without")
        run = partial(_imaging, replace) if what == IMAGING else partial(_series, what, folds, replace)
        title, figures = run(data, out, threads, asked, shown(progress))
    print_figures(f"{title}, cross-validation", figures)
    Console().print(
        _written(title, out, figures["model"]["version"]),
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _written(name: str, out: Path, version: int) -> str:
    """What was written, and what to do with it."""
    if version == staging.FIRST:
        return f"wrote {out / name}; riskstream model check {name} --repository {out}"
    asked = f"{name} --version {version} --repository {out}"
    return (
        f"wrote {out / name / str(version)}, which is not served: riskstream model check {asked}, then "
        f"riskstream model serve {asked}"
    )


def _check_extra() -> None:
    """Find what is not installed before the work begins.

    Raises:
        ExtraError: the extra `train` is not there, or not whole.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ExtraError(f"training needs {', '.join(missing)}: pip install 'riskstream[train]'")


def _series(
    what: str, folds: Path | None, replace: bool, data: str, out: Path, threads: int, asked: Asked, show: Show
) -> tuple[str, dict[str, Any]]:
    given = [f"--{name}" for name, value in asked._asdict().items() if value is not None]
    if given:
        raise KindError(f"{', '.join(given)} is for imaging; {what} does without")
    source = physionet2012.parse_source(data)
    _check_extra()
    from engines.train import vitals

    return what, vitals.train(source, out, show, vitals.Plan(processes=threads), what, folds, replace=replace)


def _imaging(
    replace: bool, data: str, out: Path, threads: int, asked: Asked, show: Show
) -> tuple[str, dict[str, Any]]:
    images = evaluate_images.open_source(data)
    _check_extra()
    from engines.train import imaging

    subject = _subject(images, asked)
    plan = _plan(asked, threads)
    command = f"riskstream model train imaging --data {data.partition(':')[0]}:PATH{_repeated(asked)}"
    return subject.name, imaging.train(images, out, subject, plan, show, command, replace=replace)


def _subject(images: LabelledImages, asked: Asked) -> "Subject":
    """What to make of the pictures.

    Raises:
        EngineError: an option contradicts the data, or cannot be used.
    """
    from engines.train.imaging import Subject

    classes = _names(asked.classes) or images.classes
    if not classes:
        classes = tuple(str(number) for number in range(int(images.labels.max()) + 1))
    healthy = [each for each in classes if each.lower() in HEALTHY] or [classes[0]]
    findings = _names(asked.findings) or tuple(each for each in classes if each not in healthy)
    if len(set(classes)) < 2 or not set(findings) < set(classes):
        raise EngineError(
            f"an image model needs two classes or more, and findings among them that are not all; "
            f"came the classes {list(classes)} and the findings {list(findings)}"
        )
    if asked.channels == 2:
        raise EngineError("--channels must be 1 or 3")
    if asked.fit not in (None, "pad", "crop", "stretch"):
        raise EngineError("--fit must be pad, crop or stretch")
    height, width = (asked.size, asked.size) if asked.size else (images.height or SIZE, images.width or SIZE)
    picture = ImageInput(
        height=height,
        width=width,
        channels=cast(Literal[1, 3], asked.channels or 1),
        fit=cast(Literal["stretch", "pad", "crop"], asked.fit or "pad"),
    )
    return Subject(_model_name(asked.name, findings), picture, classes, findings)


def _model_name(asked: str | None, findings: tuple[str, ...]) -> str:
    """The name asked for, else the only finding's, where it can be the name of a folder."""
    if asked is not None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", asked):
            raise EngineError("--name must be small letters, digits, - and _, at most 64")
        return asked
    only = findings[0].lower() if len(findings) == 1 else ""
    return only if re.fullmatch(r"[a-z][a-z0-9_-]{0,63}", only) else IMAGING


def _plan(asked: Asked, threads: int) -> "Plan":
    from engines.train import imaging

    recipe = (
        imaging.RECIPE if asked.epochs is None else dataclasses.replace(imaging.RECIPE, epochs=asked.epochs)
    )
    return imaging.Plan(
        recipe=recipe,
        members=asked.members or imaging.MEMBERS,
        processes=threads,
        compared=imaging.variations(recipe) if asked.compare else (),
    )


def _repeated(asked: Asked) -> str:
    """The options as they were given."""
    return "".join(
        f" --{name}" + ("" if value is True else f" {value}")
        for name, value in asked._asdict().items()
        if value not in (None, False)
    )


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())
