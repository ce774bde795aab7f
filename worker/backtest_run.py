"""The steps of `riskstream backtest`: read, make tracks, try policies, write what was asked for."""

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from engines import folds as fold_models
from engines import repository, shipping
from engines.engine import Engine
from engines.errors import RepositoryError
from engines.evaluate import pretty, reproduction
from engines.folds import Folds
from engines.repository import BACKTEST, CARD, CONFIG, EVALUATION, PAGE
from schemas import news2_policy
from schemas.model_config import ModelConfig
from schemas.news2_policy import News2Policy
from worker import (
    backtest_change,
    backtest_content,
    backtest_foretell,
    backtest_grid,
    backtest_source,
    backtest_topic,
    outcome_file,
    recording,
    tracks,
)
from worker.backtest_content import Content, Progress, Risks
from worker.backtest_grid import Axes, Candidate, GridError, Rule
from worker.backtest_source import Outcome, Source
from worker.cli_files import check_writable
from worker.config import Settings
from worker.decode import milliseconds
from worker.recording import Choice, SourceError
from worker.tracks import Tracks


class Order(NamedTuple):
    """What is to be tested: the command's options of the same names; `said` are the axes as typed."""

    source: str
    choice: Choice
    since: datetime | None
    until: datetime | None
    outcomes: Path | None
    folds: Path | None
    tracks: Path | None
    policies: Path | None
    axes: Axes
    said: Sequence[str | None]
    rule: Rule | None


class Outputs(NamedTuple):
    """What is to be written: the command's options of the same names."""

    write: Path | None
    ship: bool
    alerts: Path | None
    report: Path | None
    html: Path | None
    plot: Path | None


class Answering(NamedTuple):
    """The models that make the risks: by name, and which of them answers for a patient."""

    engines: Mapping[str, Engine]
    choose: Callable[[str], str]
    folds: Folds | None


def check(order: Order, outputs: Outputs) -> None:
    """Find what cannot be done before the work rather than after it.

    Raises:
        OSError: a file cannot be written.
        EngineError: an extra is missing.
        GridError, SourceError: options contradict each other.
    """
    files = (outputs.write, outputs.alerts, outputs.report, outputs.html, outputs.plot, order.tracks)
    for file in files:
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
    check_writable(*files)
    topic = order.source.startswith(backtest_topic.PREFIX)
    if not topic and (order.since or order.until):
        raise SourceError("--from and --to are for kafka:TOPIC; --hours bounds simulated patients")
    if order.since is not None and order.until is not None and order.since >= order.until:
        raise SourceError("--from must be before --to")
    if outputs.alerts is not None and order.folds is not None:
        raise SourceError("--alerts foretells what the served model raises; leave out --folds")
    if outputs.plot is not None and outputs.plot.suffix not in (".svg", ".png"):
        raise GridError(f"--plot writes .svg or .png, not {outputs.plot.suffix or 'a file without ending'}")
    if outputs.html is not None or outputs.plot is not None:
        from engines import report as _  # noqa: F401  # says which extra is missing


def run(order: Order, outputs: Outputs, settings: Settings, progress: Progress) -> Content:
    """Do it; returns the report's content."""
    config = repository.read_config(settings.model_repository, settings.model)
    news2 = news2_policy.load(settings.news2_policy)
    candidates = _candidates(order, config)
    if outputs.ship:
        folder = settings.model_repository / config.name
        shipping.check(folder, config)
        check_writable(*(folder / name for name in (CONFIG, BACKTEST, EVALUATION, CARD, PAGE)))
    progress("reading", 0, 0)
    source = _source(order, settings)
    outcomes = source.outcomes
    if order.outcomes is not None:
        outcomes = _outcomes(order.outcomes)
    with ExitStack() as stack:
        answering = _answering(order, config, settings, source, stack)
        made = _tracks(order, answering, source, news2, settings, progress)
        _check_outcomes(order, made, outcomes)
        risks = _risks(answering, source, config, settings)
        content = backtest_content.made(
            source,
            config,
            risks,
            made,
            candidates,
            news2,
            outcomes,
            order.rule,
            _folds(answering, made),
            progress,
        )
        if order.outcomes is not None and outcomes is not None:
            content["without_records"] = _without_records(made, outcomes)
        content["reproduce"] = reproduction(_command(order, outputs, config.name))
        if outputs.alerts is not None:
            foretold = _foretell(source, answering.engines[config.name], settings, outputs.alerts, progress)
            content["foretold_alerts"] = asyncio.run(foretold)
        _write(content, candidates, config, settings, outputs)
    return content


def _outcomes(file: Path) -> dict[str, Outcome]:
    """Of a file; the times in it are taken to be exact."""
    found = {}
    for patient, line in outcome_file.timed(file).items():
        time_ms = None if line.time is None else milliseconds(line.time)
        found[patient] = Outcome(bool(line.outcome), time_ms, time_ms is not None)
    return found


def _candidates(order: Order, config: ModelConfig) -> list[Candidate]:
    shipped = Candidate(f"version {config.policy.version}", "shipped", config.policy)
    if order.policies is not None:
        return [shipped, *backtest_grid.from_file(order.policies)]
    return [shipped, *backtest_grid.grid(config.policy, order.axes)]


def _source(order: Order, settings: Settings) -> Source:
    if order.source.startswith(backtest_topic.PREFIX):
        topic = order.source.removeprefix(backtest_topic.PREFIX)
        return asyncio.run(backtest_topic.read(topic, settings, order.since, order.until))
    return backtest_source.read(order.source, order.choice)


def _answering(
    order: Order, config: ModelConfig, settings: Settings, source: Source, stack: ExitStack
) -> Answering:
    """Load the models; the stack closes them."""

    def load(folder: Path, name: str) -> Engine:
        engine = repository.load(folder, name, settings.backend, settings.plans, precision=settings.precision)
        stack.callback(engine.close)
        return engine

    if order.folds is None:
        return Answering({config.name: load(settings.model_repository, config.name)}, str, None)
    folds = fold_models.read(order.folds)
    if folds.model != config.name:
        raise RepositoryError(f"{order.folds} holds folds of {folds.model}, the model is {config.name}")
    if source.data is not None and source.data != folds.data:
        raise RepositoryError(
            f"{order.folds} was made with other data (digest {folds.data[:12]}, here {source.data[:12]})"
        )

    def choose(patient: str) -> str:
        fold = folds.folds.get(patient.removeprefix(recording.STAY))
        if fold is None:
            raise SourceError("a patient is in no fold: --folds is for the stays that the folds were made of")
        return fold_models.fold_name(folds.model, fold)

    return Answering({name: load(order.folds, name) for name in folds.names()}, choose, folds)


def _tracks(
    order: Order,
    answering: Answering,
    source: Source,
    news2: News2Policy,
    settings: Settings,
    progress: Progress,
) -> Tracks:
    models = {name: engine.config.digest for name, engine in answering.engines.items()}
    if answering.folds is not None:
        models["folds"] = answering.folds.data
    backends = sorted({engine.backend for engine in answering.engines.values()})
    identity = tracks.identity(source, models, news2, settings, backends)
    if order.tracks is not None and order.tracks.exists() and order.tracks.stat().st_size:
        found = tracks.load(order.tracks, identity)
        if found is not None:
            return found
    made = asyncio.run(tracks.make(source, answering.engines, answering.choose, news2, settings, progress))
    _check_time(made, source)
    if order.tracks is not None:
        tracks.write(made, order.tracks, identity)
    return made


def _check_time(made: Tracks, source: Source) -> None:
    """Figures are for each patient-day: there must be some time between records."""
    if not made.patients:
        raise SourceError(
            f"none of the {source.count:,} records counts: each is refused, or says nothing that the model "
            "or NEWS2 reads, or lies before --from; `riskstream run` says why in its dead letters"
        )
    if not any(np.ptp(rows.time[rows.live]) for rows in made.rows):
        raise SourceError("no patient has records at two times, so there is no time to count alerts in")


def _check_outcomes(order: Order, made: Tracks, outcomes: Mapping[str, Outcome] | None) -> None:
    known = {outcomes[name].event for name in made.patients if name in outcomes} if outcomes else set()
    if order.outcomes is not None and not known:
        raise SourceError(f"{order.outcomes} names none of the patients")
    if order.rule is not None and len(known) < 2:
        raise GridError("choosing needs patients with the outcome and patients without; give --outcomes")


def _without_records(made: Tracks, outcomes: Mapping[str, Outcome]) -> dict[str, int]:
    """Patients who are in no figure, although an outcome is known."""
    absent = [outcomes[name].event for name in outcomes.keys() - set(made.patients)]
    return {"patients": len(absent), "events": sum(absent)}


def _folds(answering: Answering, made: Tracks) -> NDArray[np.int64] | None:
    """The fold of each patient."""
    if answering.folds is None:
        return None
    known = answering.folds.folds
    return np.array([known[name.removeprefix(recording.STAY)] for name in made.patients], dtype=np.int64)


def _risks(answering: Answering, source: Source, config: ModelConfig, settings: Settings) -> Risks:
    """Whether the model has seen the patients, as far as anyone can tell."""
    if answering.folds is not None:
        return Risks(
            True, "each patient is answered for by the model of the cross-validation that never saw it"
        )
    try:
        file = repository.companions(settings.model_repository, config) / EVALUATION
        evaluation = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
        trained = evaluation["data"]["digest"]
    except (OSError, msgspec.MsgspecError, KeyError, TypeError):
        trained = None
    if source.data is not None and source.data == trained:
        return Risks(
            False,
            "THE MODEL WAS TRAINED ON THESE PATIENTS: every figure of its policies is too good. Give --folds "
            "DIR, which `model train --folds` writes",
        )
    if source.name == recording.SIMULATE:
        return Risks(
            True, "simulated patients: figures say how policies differ, not how they do in a hospital"
        )
    return Risks(None, "nobody knows whether the model was trained on these patients")


async def _foretell(
    source: Source, engine: Engine, settings: Settings, file: Path, progress: Progress
) -> int:
    """Write the alerts to a file; how many there are."""
    count = 0
    with file.open("wb") as lines:
        async for alert in backtest_foretell.alerts(source, engine, settings, progress):
            lines.write(alert + b"\n")
            count += 1
    return count


def _command(order: Order, outputs: Outputs, model: str) -> str:
    """The command without folders and files."""
    parts = [f"riskstream backtest {re.sub(r':.*', ':DIR', order.source)}"]
    if order.source.startswith(backtest_topic.PREFIX):
        parts = ["riskstream backtest kafka:TOPIC"]
        ends = (("from", order.since), ("to", order.until))
        parts += [f"--{name} {time.isoformat()}" for name, time in ends if time is not None]
    if model != Settings.model_fields["model"].default:
        parts.append(f"--model {model}")
    for name, value in order.choice._asdict().items():
        if name in ("patients", "seed", "hours") and value != Choice._field_defaults[name]:
            parts.append(f"--{name} {value:g}")
    for name in ("folds", "outcomes", "policies"):
        if getattr(order, name) is not None:
            parts.append(f"--{name} {'DIR' if name == 'folds' else 'FILE'}")
    if order.policies is None:
        parts += [
            f"--{name} {text}"
            for name, text in zip(
                ("enter", "persistence", "exit-ratio", "high", "high-persistence"), order.said, strict=True
            )
            if text
        ]
    for name, value in (order.rule or Rule())._asdict().items():
        if value is not None:
            parts.append(f"--{name.replace('_', '-')} {value:g}")
    return " ".join([*parts, *(["--ship"] if outputs.ship else [])])


def _write(
    content: Content,
    candidates: list[Candidate],
    config: ModelConfig,
    settings: Settings,
    outputs: Outputs,
) -> None:
    if outputs.report is not None:
        outputs.report.write_bytes(pretty(content))
    if outputs.html is not None or outputs.plot is not None:
        from engines import report_backtest

        if outputs.html is not None:
            report_backtest.write_page(content, outputs.html)
        if outputs.plot is not None:
            report_backtest.write_plot(content, outputs.plot)
    if content["chosen"] is None:
        return
    policy = candidates[content["chosen"]].policy
    if outputs.write is not None:
        backtest_change.add(outputs.write, config.name, policy, content["rule"])
    if outputs.ship:
        shipping.ship(settings.model_repository / config.name, config, policy, content)
