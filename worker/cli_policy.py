"""`riskstream policy`: check, publish and list changes of alert policies."""

import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from schemas.policy_change import CHANGED, PolicyChange, cautions
from worker import config

app = typer.Typer(
    help="Check, publish and list changes of alert policies: for everyone, a care unit or a patient.",
    no_args_is_help=True,
)

File = Annotated[
    Path,
    typer.Argument(
        help="JSON array of changes; schemas/json/policy-change.schema.json says how.", metavar="FILE"
    ),
]
SettingsFile = Annotated[
    Path | None, typer.Option("--settings", help="TOML file of settings; RISKSTREAM_* variables override it.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print as JSON.")]


@app.command()
def check(file: File, settings_file: SettingsFile = None, as_json: AsJson = False) -> None:
    """Say whether a worker with these settings could use the changes of a file; exit 0 or 1."""
    with _told():
        changes = _read(file, config.load(settings_file))
        _caution(changes)
        _show(changes, as_json)


@app.command()
def publish(file: File, settings_file: SettingsFile = None) -> None:
    """Publish the changes of a file to the policies topic; workers use them from then on.

    What is there already is left alone. A version cannot be published twice with another content: alerts
    name it. Give `effective_from` some seconds ahead, and a worker that is killed and started again decides
    what it decided before.
    """
    with _told():
        settings = config.load(settings_file)
        changes = _read(file, settings)
        _caution(changes)
        number = asyncio.run(_publish(settings, changes))
        Console().print(f"published {number} of {len(changes)} changes to {settings.topic_policies}")


@app.command("list")
def list_changes(
    patient: Annotated[str | None, typer.Option(help="Show what is in force for a patient.")] = None,
    care_unit: Annotated[str | None, typer.Option(help="Show what is in force in a care unit.")] = None,
    at: Annotated[datetime | None, typer.Option(help="At this time (UTC) rather than now.")] = None,
    settings_file: SettingsFile = None,
    as_json: AsJson = False,
) -> None:
    """List the changes of the policies topic and the file, or with a patient or unit what is in force."""
    with _told():
        settings = config.load(settings_file)
        found = asyncio.run(_found(settings))
        if patient is None and care_unit is None and at is None:
            _show(found.changes(), as_json)
            return
        moment = at.replace(tzinfo=UTC) if at is not None else datetime.now(UTC)
        place = (patient or "", care_unit, round(moment.timestamp() * 1000))
        sys.stdout.buffer.write(
            msgspec.json.format(
                msgspec.json.encode({which: found.of(which, *place) for which in found.names}), indent=2
            )
            + b"\n"
        )


@contextmanager
def _told() -> Iterator[None]:
    """Turn an expected failure into one line and exit code 1."""
    from engines.errors import EngineError
    from schemas.errors import SchemaError
    from worker.errors import WorkerError

    try:
        yield
    except (config.ConfigError, EngineError, SchemaError, WorkerError) as error:
        Console(stderr=True).print(
            f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        raise typer.Exit(1) from None


def _policies(settings: config.Settings) -> Any:
    from engines import repository
    from worker.policies import shipped

    return shipped(settings, repository.read_config(settings.model_repository, settings.model))


def _read(file: Path, settings: config.Settings) -> list[PolicyChange]:
    """The changes of a file, judged as a worker would.

    Raises:
        PolicyError: a change cannot be used.
    """
    from worker.policy_source import PolicyFile

    policies = _policies(settings)
    PolicyFile(file, policies).load()
    found: list[PolicyChange] = policies.changes()
    return found


async def _publish(settings: config.Settings, changes: Sequence[PolicyChange]) -> int:
    from schemas.errors import PolicyError
    from worker.policy_source import published_changes
    from worker.publish import Outgoing, Publisher

    held = (await published_changes(settings)).changes
    for change in changes:
        earlier = [c for c in held.values() if c.scope == change.scope and c.version < change.version]
        if any(c.effective_from >= change.effective_from for c in earlier):
            raise PolicyError(
                f"version {change.version} for {change.model}, {change.layer} would take effect before "
                "an earlier version of its scope; give a later effective_from"
            )
        before = held.get(change.key)
        if before is not None and before != change:
            raise PolicyError(
                f"version {change.version} for {change.model}, {change.layer} is published already with "
                "another content; alerts may name it, so take the next version"
            )
    new = [change for change in changes if change.key not in held]
    publisher = Publisher(settings)
    await publisher.start()
    try:
        headers = (("content-type", b"application/json"),)
        await publisher.publish([
            Outgoing(settings.topic_policies, change.key, msgspec.json.encode(change), headers)
            for change in new
        ])  # fmt: skip
    finally:
        await publisher.stop()
    return len(new)


async def _found(settings: config.Settings) -> Any:
    from worker.policy_source import PolicyFile, published_changes

    policies = _policies(settings)
    if settings.policies is not None:
        PolicyFile(settings.policies, policies).load()
    published = await published_changes(settings)
    for complaint in [*published.refused, *policies.replace("topic", published.changes.values())]:
        Console(stderr=True).print(
            f"cannot be used: {complaint}", style="red", markup=False, highlight=False, soft_wrap=True
        )
    return policies


def _caution(changes: Sequence[PolicyChange]) -> None:
    """Say what deserves a second look."""
    for change in changes:
        for caution in cautions(change):
            Console(stderr=True).print(
                f"look again: {change.model}, {change.layer}, version {change.version}: {caution}",
                style="yellow", markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip


def _show(changes: Sequence[PolicyChange], as_json: bool) -> None:
    if as_json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(list(changes)), indent=2) + b"\n")
        return
    if not changes:
        Console().print("no changes: the policies that ship are in force for everyone", soft_wrap=True)
        return
    # Ids are folded and never cut: without its end it could be another patient's.
    table = Table("model", Column("for", overflow="fold"), "version", "effective from", "changes, reason")
    for change in changes:
        told = [name for name in CHANGED if getattr(change, name) is not msgspec.UNSET]
        table.add_row(
            change.model,
            Text(_whose(change)),
            str(change.version),
            f"{change.effective_from.astimezone(UTC).replace(tzinfo=None).isoformat(' ')}Z",
            Text("\n".join(filter(None, (", ".join(told) or "nothing", change.reason)))),
            end_section=True,
        )
    Console().print(table)


def _whose(change: PolicyChange) -> str:
    if change.patient is not None:
        return f"patient {change.patient}"
    return "everyone" if change.care_unit is None else f"unit {change.care_unit}"
