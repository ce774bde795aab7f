"""Which alerts to verify, with which models: an order in, a report out.

Alerts are verified partition by partition and model by model, each model's in one reading of the records.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

from engines import repository
from engines.engine import Engine
from engines.errors import EngineError, RepositoryError
from engines.steps import require_series
from schemas.messages import Alert
from schemas.model_config import NEWS2, ModelConfig
from worker.audit import Auditor, Finding
from worker.cluster import Cluster, describe
from worker.config import Settings
from worker.errors import FatalError
from worker.history import History, Log, Progress, Span
from worker.policies import imaging_config
from worker.policy_source import in_force
from worker.published import Found, Keep, Published, Range, find, named
from worker.rerun import Rerun


class Order(NamedTuple):
    """What to verify.

    ids: of alerts; empty for every alert.
    patient: whose alone; None for everybody's.
    partitions: of the alert topic; empty for all.
    within: times of publishing.
    """

    ids: tuple[str, ...] = ()
    patient: str | None = None
    partitions: tuple[int, ...] = ()
    within: Range = Range()

    def keep(self) -> Keep:
        """Whether a record of the alert topic may be one that is asked for."""
        key = None if self.patient is None else self.patient.encode()
        holds = named(self.ids) if self.ids else lambda record: True
        return lambda record: (key is None or record.key == key) and holds(record)


class Result(NamedTuple):
    """What was found out.

    alerts: looked at. verified: of these, the same when computed again; where ids were asked for, also among
        `findings`, else only those that are not verified are.
    findings: in order of partition and offset.
    episodes: of alerts asked for by id, the other alerts of their episodes, by episode and model.
    unreadable: (partition, offset) of records that are no alerts.
    absent: ids asked for that were not found. spans, oldest_ms: what was looked through.
    seconds: that it took.
    """

    cluster: str
    alerts: int
    verified: int
    findings: list[Finding]
    episodes: dict[tuple[str, str], list[Alert]]
    unreadable: list[tuple[int, int]]
    absent: list[str]
    spans: dict[int, Span]
    oldest_ms: int | None
    seconds: float

    @property
    def well(self) -> bool:
        """Whether all that was asked for was found and verified."""
        return self.verified == self.alerts and not self.unreadable and not self.absent


async def audit(settings: Settings, order: Order, progress: Progress = lambda what, done, of: None) -> Result:
    """Find alerts and verify them.

    Raises:
        WorkerError: Kafka does not answer, or the settings do not fit it.
        EngineError: a model is there and cannot be loaded.
        PolicyError: a policy cannot be used.
    """
    began = time.perf_counter()
    cluster = await describe(settings, create=False)
    partitions = chosen_partitions(cluster, settings.topic_alerts, order.partitions)
    chosen_partitions(cluster, settings.topic_vitals, ())
    async with History(settings) as log:
        models = _Models(settings, log, cluster, progress)
        try:
            result = await _audit(log, settings, order, partitions, models, progress)
        finally:
            await models.close()
    return result._replace(seconds=time.perf_counter() - began)


def chosen_partitions(cluster: Cluster, topic: str, chosen: Sequence[int]) -> Sequence[int]:
    """The partitions of a topic that are asked for, all of them if none is named.

    Raises:
        FatalError: the topic or a partition is not there.
    """
    count = cluster.partitions.get(topic, 0)
    if not count:
        raise FatalError(f"topic {topic} does not exist in cluster {cluster.id}; the settings name it")
    for partition in chosen:
        if not 0 <= partition < count:
            raise FatalError(f"topic {topic} has partitions 0 to {count - 1}, not {partition}")
    return chosen or range(count)


async def _audit(
    log: Log,
    settings: Settings,
    order: Order,
    partitions: Sequence[int],
    models: "_Models",
    progress: Progress,
) -> Result:
    result = Result(models.cluster.id, 0, 0, [], {}, [], [], {}, None, 0.0)
    seen: set[str] = set()
    for partition in partitions:
        found = await find(log, settings.topic_alerts, [partition], order.keep(), order.within, progress)
        if order.ids:
            found.alerts = [published for published in found.alerts if published.alert.id in order.ids]
        seen |= {published.alert.id for published in found.alerts}
        findings = await models.verify(found.alerts)
        if order.ids and found.alerts:
            result.episodes.update(await _episodes(log, settings.topic_alerts, partition, found.alerts))
        result = _with(result, found, findings, keep_verified=bool(order.ids))
    return result._replace(absent=[identifier for identifier in order.ids if identifier not in seen])


def _with(result: Result, found: Found, findings: list[Finding], *, keep_verified: bool) -> Result:
    oldest = [ms for ms in (result.oldest_ms, found.oldest_ms) if ms is not None]
    return result._replace(
        alerts=result.alerts + len(findings),
        verified=result.verified + sum(finding.verified for finding in findings),
        findings=result.findings + [f for f in findings if keep_verified or not f.verified],
        unreadable=result.unreadable + found.unreadable,
        spans=result.spans | found.spans,
        oldest_ms=min(oldest, default=None),
    )


async def _episodes(
    log: Log, topic: str, partition: int, asked: Sequence[Published]
) -> dict[tuple[str, str], list[Alert]]:
    """Every alert of the episodes of some alerts, each once, in order."""
    keys = {published.key for published in asked}
    wanted = {episode_of(published.alert) for published in asked}
    found = await find(log, topic, [partition], lambda record: record.key in keys)
    episodes: dict[tuple[str, str], dict[str, Alert]] = {}
    for published in found.alerts:
        name = episode_of(published.alert)
        if name in wanted:
            episodes.setdefault(name, {}).setdefault(published.alert.id, published.alert)
    return {
        name: sorted(alerts.values(), key=lambda alert: alert.sequence) for name, alerts in episodes.items()
    }


def episode_of(alert: Alert) -> tuple[str, str]:
    """An episode's name and its model's; two models may open one at the same record."""
    return alert.episode, alert.model.name


class _Models:
    """The models that are at hand, each loaded once."""

    def __init__(self, settings: Settings, log: Log, cluster: Cluster, progress: Progress) -> None:
        self.cluster = cluster
        self._settings = settings
        self._log = log
        self._progress = progress
        imaging = imaging_config(settings)
        self._imaging = "" if imaging is None else imaging.name
        self._loaded: dict[tuple[str, int], tuple[Engine, Rerun]] = {}

    async def verify(self, alerts: Sequence[Published]) -> list[Finding]:
        """Findings of one partition's alerts, in order.

        NEWS2's own and the imaging model's are computed beside the first model.
        """
        found: dict[int, Finding] = {}
        groups: dict[tuple[str, int], dict[int, Published]] = {}
        own: dict[int, Published] = {}
        for i, published in enumerate(alerts):
            model = published.alert.model
            beside = model.name in (NEWS2, self._imaging)
            (own if beside else groups.setdefault((model.name, model.version), {}))[i] = published
        for name, group in groups.items():
            missing = self._missing(*name, group.values())
            found |= {
                i: _without_model(group[i], note) for i, note in zip(group, missing, strict=True) if note
            }
            left = {i: published for i, published in group.items() if i not in found}
            if left:
                found |= await self._verify(name, left | own)
                own = {}
        if own:
            served = repository.read_config(self._settings.model_repository, self._settings.model)
            found |= await self._verify((served.name, served.version), own)
        return [found[i] for i in range(len(alerts))]

    async def _verify(self, name: tuple[str, int], alerts: dict[int, Published]) -> dict[int, Finding]:
        if name not in self._loaded:
            self._loaded[name] = await self._load(*name)
        _, rerun = self._loaded[name]
        auditor = Auditor(self._log, rerun, self._settings, self.cluster.id, self._progress)
        return dict(zip(alerts, await auditor.verify(list(alerts.values())), strict=True))

    async def _load(self, name: str, version: int) -> tuple[Engine, Rerun]:
        settings = self._settings
        require_series(repository.read_config(settings.model_repository, name, version))
        engine = await asyncio.to_thread(
            repository.load,
            settings.model_repository,
            name,
            settings.backend,
            settings.plans,
            version,
            precision=settings.precision,
        )
        return engine, Rerun(engine, await in_force(settings, self.cluster, engine.config), settings)

    def _missing(self, name: str, version: int, alerts: Iterable[Published]) -> list[str]:
        """For each alert, why its model is not at hand; empty where it is."""
        models = self._settings.model_repository
        try:
            config = repository.read_config(models, name)
            with suppress(RepositoryError):
                config = repository.read_config(models, name, version)
        except RepositoryError as error:
            return [f"its model is not in the repository: {error}"] * len(list(alerts))
        if config.kind == "image":
            note = (
                f"its model reads images: name it with RISKSTREAM_IMAGING_MODEL={name} to verify its alerts"
            )
            return [note] * len(list(alerts))
        return [_unlike(published.alert, config) for published in alerts]

    async def close(self) -> None:
        """Let go of the engines."""
        for engine, rerun in self._loaded.values():
            await rerun.close()
            with suppress(EngineError):
                engine.close()


def _unlike(alert: Alert, config: ModelConfig) -> str:
    needed = alert.model
    if (needed.version, needed.digest) == (config.version, config.digest):
        return ""
    return (
        f"it needs {needed.name} version {needed.version} with digest {needed.digest}; the repository holds "
        f"version {config.version} with digest {config.digest}: name another with --model-repository"
    )


def _without_model(published: Published, note: str) -> Finding:
    return Finding(published, "other-model", notes=(note,))
