"""`riskstream demo` and `riskstream send`."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from worker.config import Settings
    from worker.recording import Choice, Recording

Seed = Annotated[int, typer.Option(help="Seed of the simulated patients.", min=0)]
Hours = Annotated[float, typer.Option(help="Hours of each simulated patient's stay.", min=1, max=720)]
Pathways = Annotated[
    str | None,
    typer.Option(
        help="Weights of simulated pathways: stable, sepsis, respiratory-failure, haemorrhage, recovery.",
        metavar="NAME=WEIGHT,...",
        show_default=False,
    ),
]
Speed = Annotated[
    float | None, typer.Option(help="Event seconds played in one second.", min=0.001, show_default=False)
]


def demo(
    *,
    seconds: Annotated[
        float,
        typer.Option(
            help="Seconds into which the recording is fitted; with --speed, its end.", min=5, max=3600
        ),
    ] = 45.0,
    patients: Annotated[int, typer.Option(help="How many patients.", min=1, max=100_000)] = 40,
    source: Annotated[
        str, typer.Option(help="simulate, physionet2012:DIR, or a file that 'send --record' wrote.")
    ] = "simulate",
    seed: Seed = 1,
    hours: Hours = 48.0,
    pathways: Pathways = None,
    speed: Speed = None,
    workers: Annotated[int, typer.Option(help="How many workers share the partitions.", min=1, max=8)] = 1,
    broker: Annotated[
        str | None,
        typer.Option(
            help="Kafka to use instead of an embedded broker; the demo makes and deletes topics of its own.",
            metavar="HOST:PORT",
            show_default=False,
        ),
    ] = None,
    redis: Annotated[
        str | None,
        typer.Option(help="Redis to use instead of an embedded one.", metavar="URL", show_default=False),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model to serve.", metavar="NAME", show_default=False)
    ] = None,
    model_repository: Annotated[
        Path | None, typer.Option(help="Folder of model folders.", metavar="DIR", show_default=False)
    ] = None,
    board: Annotated[bool, typer.Option("--board", help="Serve the ward page meanwhile.")] = False,
    board_port: Annotated[
        int | None,
        typer.Option(
            help="Port of the ward page, which it turns on; a free one unless given.", min=1, max=65535
        ),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            help="Pictures of the patients: simulate, medmnist:FILE, or none. Simulated patients have "
            "simulated chest films unless stated.",
            metavar="SOURCE",
            show_default=False,
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write what was counted as JSON.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")] = False,
) -> None:
    """Start a broker, Redis, a worker and patients; show alerts as they come; check that nothing is lost.

    Nothing is kept: broker and Redis hold everything in memory. Ctrl-C stops all.

    Exit status: 0 when every record has its fate, 1 when not or on failure, 130 after Ctrl-C.
    """
    from rich.console import Console

    from worker import cli_files, demo_setup, embedded
    from worker import demo as running
    from worker.config import ConfigError
    from worker.demo_view import summary, view_for
    from worker.embedded import EmbeddedError
    from worker.recording import SIMULATE, SourceError
    from worker.send import SendError

    console = Console(stderr=as_json)
    choice = _choice(patients, seed, hours, pathways)
    if board and board_port is None:
        board_port = embedded.free_port()
    if images is None and source == SIMULATE:
        try:
            images = SIMULATE if demo_setup.scores_pictures(model_repository) else "none"
        except ConfigError as error:
            raise SystemExit(f"riskstream demo: {error}") from None
        if images == "none":
            console.print("no pictures: the repository holds no model for them", highlight=False)
    options = demo_setup.Options(
        seconds,
        source,
        choice,
        speed,
        workers,
        broker,
        redis,
        model,
        model_repository,
        board_port,
        None if images == "none" else images,
    )
    try:
        cli_files.check_writable(report)
    except OSError as error:
        raise SystemExit(f"riskstream demo: --report: {cli_files.complaint(error)}") from None
    if board_port is not None:
        console.print(
            f"ward page: http://{embedded.LOOPBACK}:{board_port}/ while the demo runs", highlight=False
        )
    try:
        result = running.demo(options, view_for(console))
    except (demo_setup.DemoError, EmbeddedError, SourceError, SendError, ConfigError) as error:
        raise SystemExit(f"riskstream demo: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    console.print(summary(result), markup=False, highlight=False, soft_wrap=True)
    if as_json:
        sys.stdout.buffer.write(result.json())
        sys.stdout.flush()
    if report is not None:
        try:
            report.write_bytes(result.json())
        except OSError as error:
            raise SystemExit(f"riskstream demo: --report: {cli_files.complaint(error)}") from None
    raise typer.Exit(1 if result.complaints else 0)


def send(
    source: Annotated[
        str,
        typer.Argument(help="simulate, physionet2012:DIR, or a file that --record wrote.", metavar="SOURCE"),
    ],
    *,
    patients: Annotated[
        int | None,
        typer.Option(help="How many patients: 40 simulated ones, all of a data set unless stated.", min=1),
    ] = None,
    seed: Seed = 1,
    hours: Hours = 48.0,
    pathways: Pathways = None,
    speed: Speed = None,
    seconds: Annotated[
        float | None,
        typer.Option(help="Fit the recording into this time instead.", min=0.1, show_default=False),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(help="Write what is sent, one record a line, to send it again.", show_default=False),
    ] = None,
    settings_file: Annotated[
        Path | None,
        typer.Option("--settings", help="TOML file of settings; RISKSTREAM_* variables override it."),
    ] = None,
) -> None:
    """Publish vitals records to the vitals topic, in the order of event time.

    As fast as the broker takes them unless --speed or --seconds is given. Each record's Kafka timestamp is
    its event time, so the topic should not delete by age (retention.ms=-1).
    """
    import asyncio

    from worker import cli_files, config
    from worker.errors import FatalError
    from worker.recording import SourceError, read
    from worker.send import SendError

    if speed is not None and seconds is not None:
        raise typer.BadParameter("give --speed or --seconds, not both")
    try:
        settings = config.load(settings_file)
        cli_files.check_writable(record)
        recording = read(source, _choice(patients, seed, hours, pathways))
        pace = recording.speed_to_fit(seconds) if seconds is not None else speed
        asyncio.run(_send(settings, recording, pace, record))
    except (config.ConfigError, SourceError, SendError, FatalError) as error:
        raise SystemExit(f"riskstream send: {error}") from None
    except OSError as error:
        raise SystemExit(f"riskstream send: --record: {cli_files.complaint(error)}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


async def _send(
    settings: "Settings", recording: "Recording", speed: float | None, record: Path | None
) -> None:
    from contextlib import nullcontext

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from worker import tracing
    from worker.send import Confirmed, Sender, send

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("sending"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )
    bar.disable = not console.is_terminal
    with bar, record.open("wb") if record is not None else nullcontext() as file:
        task = bar.add_task("sending", total=recording.count)

        def confirmed(_: Confirmed) -> None:
            bar.advance(task)

        tracing.start(settings)
        try:
            async with Sender(settings, confirmed, file) as sender:
                await send(sender, recording, speed)
        finally:
            tracing.stop()
    console.print(
        f"sent {sender.confirmed:,} records of {recording.patients:,} patients to {settings.topic_vitals}"
    )


def _choice(patients: int | None, seed: int, hours: float, pathways: str | None) -> "Choice":
    from worker.recording import Choice

    choice = Choice(patients, seed, hours)
    return choice if pathways is None else choice._replace(mix=_weights(pathways))


def _weights(text: str) -> Mapping[str, float]:
    try:
        return {name.strip(): float(weight) for name, weight in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise typer.BadParameter(f"--pathways is written stable=0.5,sepsis=0.5, not {text!r}") from None
