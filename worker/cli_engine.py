"""`riskstream model build` and `riskstream model inspect`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from engines import plans, repository
from engines.errors import BuildError, InputError
from engines.plan_inspect import inspect as inspect_plan
from engines.plan_inspect import inspect_file
from engines.plans import Makings
from engines.precision import Precision
from engines.tensorrt_build import Profile
from worker.cli_told import Plans, Repository, Version, told

Name = Annotated[str, typer.Argument(help="Model in the repository.", metavar="NAME")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def build(
    name: Name,
    backend: Annotated[str, typer.Option(help="tensorrt or tensorrt-rtx.")],
    precision: Annotated[Precision, typer.Option(help="What it computes in.")] = "fp32",
    profile: Annotated[
        str | None,
        typer.Option(help="Batch sizes min,opt,max; 1, 32 and the model's greatest unless given."),
    ] = None,
    architecture: Annotated[
        str | None,
        typer.Option(help="ampere-plus, or for tensorrt-rtx compute capabilities such as 75,86."),
    ] = None,
    model_repository: Repository = repository.SHIPPED,
    plan_folder: Plans = None,
    version: Version = None,
    as_json: AsJson = False,
) -> None:
    """Build a model's plan for TensorRT or TensorRT for RTX, unless a current one is there already.

    TensorRT builds for the GPU of this machine; TensorRT for RTX needs no GPU. Building runs nothing. Of the
    plans that a GPU can run, in the precision asked for, a load takes the one built last.
    """
    with told():
        sizes = None if profile is None else Profile.parse(profile)
        found = plans.obtain(
            model_repository, name, backend, precision, sizes, architecture, plan_folder, version
        )
        config = repository.read_config(model_repository, name, version)
        last = plans.last_built(model_repository, config, backend, precision, lambda _: True, plan_folder)
    later = None if last is None or last.path == found.path else str(last.path)
    if as_json:
        _print_json(
            {"how": found.how, "why": found.why, "plan": str(found.path), "later": later}
            | msgspec.to_builtins(found.provenance)
        )
        return
    made = found.provenance
    took = "" if found.how == "cached" else f" in {made.seconds:.1f} s"
    Console().print(f"{found.how}{took}: {found.why}", highlight=False)
    Console().print(f"{found.path}  {made.plan_bytes:,} bytes", markup=False, highlight=False, soft_wrap=True)
    if later is not None:
        told_later = (
            f"{later} was built later and serves where both can run; remove it to have this one served"
        )
        Console().print(told_later, markup=False, highlight=False, soft_wrap=True)


def inspect(
    context: typer.Context,
    plan: Annotated[
        str, typer.Argument(help="A plan's file, or a model for all its plans.", metavar="PLAN|NAME")
    ],
    model_repository: Repository = repository.SHIPPED,
    plan_folder: Plans = None,
    version: Version = None,
    as_json: AsJson = False,
) -> None:
    """Show the tensors, types and profiles of plans, what they were built of and whether they are current.

    Current is what a load takes where the GPU can run it. A plan's file is held against the model that it
    names, as the repository has it.
    """
    with told():
        if Path(plan).suffix == ".plan":
            _refuse_given(context, plan)
            found = [inspect_file(Path(plan), model_repository)]
        else:
            config = repository.read_config(model_repository, plan, version)
            folder = plans.folder_of(model_repository, config, plan_folder)
            makings = Makings(model_repository, config)
            found = [inspect_plan(file, makings) for file in sorted(folder.glob("*.plan"))]
            if not found:
                raise BuildError(f"{plan} has no plans in {folder}; `riskstream model build` makes one")
    if as_json:
        _print_json(found)
        return
    for content in found:
        _print_plan(content)


def _refuse_given(context: typer.Context, plan: str) -> None:
    """Refuse options of where a model's plans are, beside a plan's file; the environment's are none."""
    for name, option in (("plan_folder", "--plans"), ("version", "--version")):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise InputError(
                f"{plan} is a file, which names its model and version itself: leave out {option}"
            )


def _print_plan(content: dict[str, Any]) -> None:
    console = Console()
    state = content["state"]
    if "key" in content:
        console.print(_table(content))
        state += f", built {content['built']}"
    console.print(f"{content['plan']}: {state}", markup=False, highlight=False, soft_wrap=True)
    console.print(content["engine"]["note"], highlight=False, markup=False)


def _table(content: dict[str, Any]) -> Table:
    key = content["key"]
    about = (
        f"{key['model']} {key['version']}, {key['backend']} {key['module_version']}, {key['architecture']}"
    )
    table = Table("tensor", "", "type", "shape", "profile", title=f"{about}, {key['precision']}")
    for tensor in content["tensors"]:
        sizes = ", ".join(str(shape[0]) for shape in tensor["profile"])
        table.add_row(tensor["name"], tensor["mode"], tensor["type"], str(tensor["shape"]), sizes)
    return table


def _print_json(content: object) -> None:
    sys.stdout.write(json.dumps(content, indent=2) + "\n")
