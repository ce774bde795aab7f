"""`riskstream bench ...`: the project's own measurements, as CPU time for each event."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(help="Measure the path, transport, contributions and pictures.", no_args_is_help=True)

Report = Annotated[Path | None, typer.Option(help="Write the figures as JSON.")]


@app.command()
def transport(
    events: Annotated[int, typer.Option(min=3_000, help="Events in the topic.")] = 200_000,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; figures are medians.")] = 3,
    broker: Annotated[
        str | None, typer.Option(help="Broker; an embedded one unless given.", metavar="HOST:PORT")
    ] = None,
    report: Report = None,
) -> None:
    """The chunk transport inside a Faust agent, beside aiokafka, plain Faust and confluent-kafka."""
    from worker.bench import transport as bench

    with _told() as show:
        content = bench.run(events, rounds, broker, on_progress=show)
        _write(content, report)
    table = Table(
        "peer", "CPU µs per event", "wall µs per event", title=f"{events:,} events, {rounds} rounds"
    )
    for peer, cpu in content["cpu_us_per_event"].items():
        table.add_row(peer, f"{cpu:.2f}", f"{content['wall_us_per_event'][peer]:.2f}")
    Console().print(table)
    for name, target in content["targets"].items():
        bound = f"at most {target['at_most']}" if target["at_most"] else f"at least {target['at_least']}"
        verdict = "met" if target["met"] else "MISSED"
        Console().print(f"{name} {content['ratios'][name]:.2f}, target {bound}: {verdict}", highlight=False)
    for peer, why in content["skipped"].items():
        Console().print(f"{peer} left out: {why}", highlight=False, markup=False)


@app.command()
def pipeline(
    patients: Annotated[int, typer.Option(min=1, help="Patients of the source.")] = 300,
    events: Annotated[int | None, typer.Option(min=1, help="At most so many records.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; figures are medians.")] = 3,
    source: Annotated[
        str, typer.Option(help="simulate, physionet2012:DIR or a recorded file.", metavar="SOURCE")
    ] = "simulate",
    report: Report = None,
) -> None:
    """The path by stage, without Kafka and Redis, and bytes for each patient."""
    from worker import config, recording
    from worker.bench import pipeline as bench

    with _told() as show:
        show("preparing patients")
        chosen = recording.read(source, recording.Choice(patients))
        content = bench.run(source, chosen, events, rounds, config.load(), on_progress=show)
        _write(content, report)
    title = f"{content['records']:,} records of {content['patients']:,} patients"
    table = Table("stage", "CPU µs per event", title=title)
    for stage, cpu in content["cpu_us_per_event"].items():
        table.add_row(stage, f"{cpu:.2f}", end_section=stage == "checkpoint")
    Console().print(table)
    sizes = Table("bytes per patient", "median", "p99", "max")
    stored = dict(content["bytes_per_patient"])
    sizes.add_row("memory (mean)", f"{stored.pop('memory'):,}", "", "")
    for name, spread in stored.items():
        sizes.add_row(name.replace("_", " "), *(f"{value:,}" for value in spread.values()))
    Console().print(sizes)


@app.command()
def explain(
    patients: Annotated[int, typer.Option(min=1, help="Patients of the source.")] = 300,
    alerts: Annotated[int, typer.Option(min=1, help="Alerts on which the slow ways are tried.")] = 50,
    source: Annotated[
        str, typer.Option(help="simulate, physionet2012:DIR or a recorded file.", metavar="SOURCE")
    ] = "simulate",
    report: Report = None,
) -> None:
    """The contributions in alerts: their cost, and how far cheaper and slower ways agree."""
    from worker import config, recording
    from worker.bench import explain as bench

    with _told() as show:
        show("preparing patients")
        chosen = recording.read(source, recording.Choice(patients))
        content = bench.run(source, chosen, alerts, config.load(), on_progress=show)
        _write(content, report)
    title = f"{content['compared']} of {content['alerts']:,} alerts of {content['records']:,} records"
    columns = ("cpu_ms_per_alert", "top_3", "rank", "same_sign", "largest_difference")
    table = Table("way", *(column.replace("_", " ") for column in columns), title=title)
    for way, figures in content["ways"].items():
        table.add_row(way, *(f"{figures[column]:g}" if column in figures else "" for column in columns))
    Console().print(table)
    Console().print(f"served: {content['served_cpu_us_per_record']} µs of CPU for each record of the path")


@app.command()
def imaging(
    pictures: Annotated[int, typer.Option(min=1, help="Pictures in a round.")] = 200,
    side: Annotated[int, typer.Option(min=32, max=4096, help="Pixels of each side of a PNG.")] = 512,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; rates are medians.")] = 3,
    rate: Annotated[float, typer.Option(min=1, help="Vitals records a second.")] = 50.0,
    seconds: Annotated[
        float, typer.Option(min=1, help="Seconds of each phase beside a PACS that hangs.")
    ] = 10.0,
    broker: Annotated[
        str | None,
        typer.Option(
            help="Broker for vitals beside a PACS; an embedded one unless given.", metavar="HOST:PORT"
        ),
    ] = None,
    report: Report = None,
) -> None:
    """Pictures together against one by one, and vitals beside a PACS that never answers."""
    from worker.bench import imaging as bench

    with _told() as show:
        content = bench.run(pictures, side, rounds, rate, seconds, broker, on_progress=show)
        _write(content, report)
    found = content["throughput"]
    title = f"{found['pictures']} PNG of {found['side']} x {found['side']}, {found['decoders']} decoders"
    table = Table("pictures", "rows per second", title=title)
    for way, rows in found["rows_per_s"].items():
        table.add_row(way.replace("_", " "), f"{rows:,}")
    Console().print(table)
    Console().print(f"together over one by one: {found['together_over_one_by_one']}", highlight=False)
    beside = content["isolation"]
    latency = Table(
        "vitals", "records", "p50 ms", "p99 ms", title=f"{beside['records_per_s']:g} records a second"
    )
    for phase, spread in beside["latency_ms"].items():
        latency.add_row(phase.replace("_", " "), *(f"{value:g}" for value in spread.values()))
    Console().print(latency)


@contextmanager
def _told() -> Iterator[Callable[[str], None]]:
    """Say what goes on; turn an expected failure into one line and exit code 1."""
    from engines.errors import EngineError
    from worker.bench.transport import BenchError
    from worker.config import ConfigError
    from worker.embedded import EmbeddedError
    from worker.recording import SourceError

    console = Console(stderr=True)
    try:
        with console.status("") as status:
            yield status.update
    except (BenchError, ConfigError, EmbeddedError, EngineError, SourceError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None


def _write(content: dict[str, Any], file: Path | None) -> None:
    if file is not None:
        from worker.bench import report

        report.write(content, file)
