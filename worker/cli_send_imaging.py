"""`riskstream send imaging`."""

from datetime import UTC, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import typer

if TYPE_CHECKING:
    from worker.config import Settings
    from worker.imaging_source import Choice

TOLD = 10
"""Pictures left out of which it is said why."""


def imaging(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder or file of DICOM, PNG or JPEG pictures, dicomweb:URL, medmnist:FILE, or simulate.",
            metavar="SOURCE",
        ),
    ],
    *,
    patient: Annotated[
        str | None, typer.Option(help="Whose the pictures are, where they do not say.", metavar="ID")
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="When they were taken, where they do not say.", metavar="ISO-8601")
    ] = None,
    timezone: Annotated[str, typer.Option(help="Zone of times that state none.", metavar="NAME")] = "UTC",
    inline: Annotated[
        bool | None,
        typer.Option(
            "--inline/--by-reference",
            help="Send pictures in their events, or paths of files; small ones inline unless stated.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="How many, the first ones.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Seed of simulated patients.", min=0)] = 1,
    settings_file: Annotated[
        Path | None,
        typer.Option("--settings", help="TOML file of settings; RISKSTREAM_* variables override it."),
    ] = None,
) -> None:
    """Publish imaging events to the imaging topic, one for each picture.

    DICOM files say whose they are and of when. For other pictures say it by --patient and --time, or by a
    file events.csv in the folder: columns file, patient, time, and modality, body_part, view if known. The
    worker must be allowed to open what goes by reference: RISKSTREAM_IMAGING_ROOTS, RISKSTREAM_IMAGING_HOSTS.

    A picture of a folder or a service that cannot be sent is left out; the others are sent, and the command
    ends with 1. What is sent has its picture's time for its record's: a topic that deletes by age forgets old
    pictures at once, unless its retention.ms is -1.
    """
    import asyncio

    from worker import config
    from worker.imaging_source import Carry, Choice, time_of
    from worker.recording import SourceError
    from worker.send import SendError

    zone = _zone(timezone)
    taken = time_of(time, zone) if time is not None else None
    if time is not None and taken is None:
        raise typer.BadParameter(f"--time is written 2026-01-31T08:30:00Z, not {time!r}")
    carry: Carry = "auto" if inline is None else "inline" if inline else "reference"
    try:
        settings = config.load(settings_file)
        asyncio.run(_send(settings, source, Choice(patient, taken, zone, carry, limit, seed)))
    except (config.ConfigError, SourceError, SendError) as error:
        raise SystemExit(f"riskstream send imaging: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


async def _send(settings: "Settings", source: str, choice: "Choice") -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from worker import dicomweb_query, imaging_source
    from worker.recording import SourceError
    from worker.send import Sender

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("sending"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )
    bar.disable = not console.is_terminal
    stored = None if source.startswith(imaging_source.DICOMWEB) else imaging_source.read(source, choice)
    left_out: list[str] = stored.left_out if stored is not None else []
    with bar:
        task = bar.add_task("sending", total=None)
        async with Sender(settings, lambda _: bar.advance(task), topic=settings.topic_imaging) as sender:
            if stored is None:
                url = source.removeprefix(imaging_source.DICOMWEB)
                async for event in dicomweb_query.events(url, settings, choice, left_out):
                    await sender.send(event)
            else:
                bar.update(task, total=stored.count)
                for event in stored.open():
                    await sender.send(event)
            await sender.finish()
    skipped = stored.skipped if stored is not None else 0
    told = f", {skipped:,} files that are no pictures left out" if skipped else ""
    console.print(f"sent {sender.confirmed:,} imaging events to {settings.topic_imaging}{told}")
    if left_out:
        for why in left_out[:TOLD]:
            console.print(why, markup=False, soft_wrap=True)
        raise SourceError(f"{len(left_out):,} pictures could not be sent")


def _zone(name: str) -> tzinfo:
    if name.upper() == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise typer.BadParameter(f"no time zone {name!r}; write one such as Europe/Berlin") from None
