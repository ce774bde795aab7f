"""`riskstream replay`: a stretch of the input topic through the path again, into another topic.

State before the stretch is rebuilt in silence (`worker/stretch.py`). Ids depend on the input log, the model's
name and the policies alone: a second replay gives the same ones, and so did the workers.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from engines import repository
from engines.errors import RepositoryError
from engines.steps import require_series
from schemas.messages import Alert
from schemas.model_config import ModelConfig
from worker.audit_run import chosen_partitions
from worker.cluster import create_topics, describe
from worker.config import Settings
from worker.errors import FatalError
from worker.history import History, Log, Progress, Span, first_at
from worker.lanes import EXPIRY_SLACK_MS
from worker.partition import Place
from worker.policies import Policies
from worker.policy_source import in_force
from worker.publish import Outgoing, Publisher
from worker.rerun import Rerun
from worker.stretch import Patients, Stretch, horizon_start, run_again


class Bound(NamedTuple):
    """An end of the stretch: an offset of one partition, or a record timestamp, ms; neither for the log's."""

    offset: int | None = None
    time_ms: int | None = None


class ReplayOrder(NamedTuple):
    """What to run again, and where to write it.

    since, until: the stretch, `until` excluded.
    partitions: of the input topic; empty for all.
    alerts, scores: topics to write to; None writes no scores.
    model: another than the settings' model; None for that.
    create: make the topics that are missing. dry: write nothing.
    """

    since: Bound
    until: Bound
    partitions: tuple[int, ...]
    alerts: str
    scores: str | None = None
    model: str | None = None
    create: bool = False
    dry: bool = False

    def refuse_empty(self) -> None:
        """Raise FatalError where the stretch ends before it begins."""
        for first, end in zip(self.since, self.until, strict=True):
            if first is not None and end is not None and first >= end:
                raise FatalError("--from is not before --to: there is nothing between them")


class Replayed(NamedTuple):
    """What a replay gave.

    records: in the stretch. rebuilt: read before it, in silence.
    alerts: by model, then by transition. scores: of records.
    model, policies: what computed them. live: whether it is the settings' model, so that the ids of the
        alerts are those that the workers gave.
    incomplete: partitions whose log does not reach back by the rebuild horizon.
    """

    records: int
    rebuilt: int
    alerts: dict[str, Counter[str]]
    scores: int
    model: ModelConfig
    policies: Policies
    live: bool
    incomplete: tuple[int, ...]


async def replay(
    live: Settings, settings: Settings, order: ReplayOrder, progress: Progress = lambda what, done, of: None
) -> Replayed:
    """Run a stretch again.

    Args:
        live: the workers' settings: what is never written to, and whose model is the live one.
        settings: the same, with the model repository to use.
        order: what to do.
        progress: told of the records read.

    Raises:
        WorkerError: Kafka does not answer, or what is asked for does not fit it.
        EngineError: the model cannot be loaded.
        PolicyError: a policy cannot be used.
    """
    refuse_live(live, order)
    cluster = await describe(settings, create=False)
    partitions = chosen_partitions(cluster, settings.topic_vitals, order.partitions)
    inputs = cluster.partitions[settings.topic_vitals]
    if len(partitions) > 1 and (order.since.offset is not None or order.until.offset is not None):
        raise FatalError("an offset is a place in one partition: name it with --partition, or give times")
    if not order.dry:
        await _prepare(settings, order, inputs)
    name = order.model or settings.model
    require_series(repository.read_config(settings.model_repository, name))
    engine = await asyncio.to_thread(
        repository.load,
        settings.model_repository,
        name,
        settings.backend,
        settings.plans,
        precision=settings.precision,
    )
    policies = await in_force(settings, cluster, engine.config)
    rerun = Rerun(engine, policies, target_settings(settings, order))
    publisher = Publisher(settings)
    try:
        if not order.dry:
            await publisher.start()
        result = Replayed(0, 0, {}, 0, engine.config, policies, _is_live(live, engine.config), ())
        async with History(settings) as log:
            run = _Run(log, rerun, settings, order, None if order.dry else publisher, progress)
            for partition in partitions:
                result = await run.partition(Place(cluster.id, settings.topic_vitals, partition), result)
        return result
    finally:
        await publisher.stop()
        await rerun.close()
        engine.close()


def refuse_live(live: Settings, order: ReplayOrder) -> None:
    """Refuse to write where the workers read or write.

    Raises:
        FatalError: a target is such a topic, or both are one.
    """
    settings = {
        name: value for name, value in live.model_dump().items() if name.startswith("topic_") and value
    }
    for target in (order.alerts, order.scores):
        for setting, topic in settings.items():
            if target == topic:
                raise FatalError(
                    f"{target} is the live topic of RISKSTREAM_{setting.upper()}; replay into another one"
                )
    if order.alerts == order.scores:
        raise FatalError(f"alerts and scores would both go to {order.alerts}; name two topics")


def target_settings(settings: Settings, order: ReplayOrder) -> Settings:
    """Settings of a path that writes to the targets."""
    topics = {"topic_alerts": order.alerts, "publish_scores": order.scores is not None}
    if order.scores is not None:
        topics["topic_scores"] = order.scores
    return settings.model_copy(update=topics)


async def _prepare(settings: Settings, order: ReplayOrder, partitions: int) -> None:
    """Make sure that the targets are there."""
    targets = [order.alerts, *([order.scores] if order.scores else [])]
    if order.create:
        await create_topics(settings, targets, partitions)
    found = (await describe(target_settings(settings, order), create=False)).partitions
    for target in targets:
        if not found[target]:
            raise FatalError(f"topic {target} does not exist; give --create, or create it")
    if found[order.alerts] != partitions:
        raise FatalError(
            f"topic {order.alerts} has {found[order.alerts]} partitions, {settings.topic_vitals} has "
            f"{partitions}; they must be equal, because each partition's alerts go to the same partition"
        )


def _is_live(live: Settings, used: ModelConfig) -> bool:
    try:
        there = repository.read_config(live.model_repository, live.model)
    except RepositoryError:
        return False
    return (there.name, there.digest, there.policy) == (used.name, used.digest, used.policy)


class _Run:
    """A replay under way, one partition after the other. `publisher` is None where nothing is written."""

    def __init__(
        self,
        log: Log,
        rerun: Rerun,
        settings: Settings,
        order: ReplayOrder,
        publisher: Publisher | None,
        progress: Progress,
    ) -> None:
        self._log = log
        self._rerun = rerun
        self._settings = settings
        self._order = order
        self._publisher = publisher
        self._progress = progress

    async def partition(self, place: Place, result: Replayed) -> Replayed:
        """Run one partition's stretch; the result with what it added."""
        span = await self._log.span(place.topic, place.partition)
        begin = await self._offset(place, span, self._order.since, span.first)
        end = await self._offset(place, span, self._order.until, span.end)
        if begin >= end:
            return result
        start = await horizon_start(self._log, self._settings, place, span, begin)
        stretch = Stretch(place, start, begin, end)
        patients = Patients()
        began_ms, last = None, None
        async for last in run_again(
            self._log, self._rerun, self._settings, stretch, patients, progress=self._progress
        ):
            live = [record for record in last.records if record.offset >= begin]
            if live and began_ms is None:
                began_ms = live[0].timestamp
            silent = len(last.records) - len(live)
            result = result._replace(records=result.records + len(live), rebuilt=result.rebuilt + silent)
            result = await self._send(last.messages, result)
        if last is None:
            return result
        # As a worker's timer would by now: whoever is silent has no later record that brings the expiry out.
        now_ms = last.partition.stream_ms() - EXPIRY_SLACK_MS
        result = await self._send(await self._rerun.expire_silent(last.partition, now_ms), result)
        truncated = start == span.first > 0
        if truncated and not self._reaches(patients.first_ms, began_ms):
            result = result._replace(incomplete=(*result.incomplete, place.partition))
        return result

    def _reaches(self, first_ms: int | None, began_ms: int | None) -> bool:
        """Whether the log before the stretch is as long as the rebuild horizon."""
        horizon_ms = round(self._settings.rebuild_horizon_h * 3_600_000)
        return first_ms is not None and began_ms is not None and first_ms <= began_ms - horizon_ms

    async def _offset(self, place: Place, span: Span, bound: Bound, default: int) -> int:
        if bound.offset is not None:
            if not span.first <= bound.offset <= span.end:
                raise FatalError(
                    f"partition {place.partition} of {place.topic} holds the offsets {span.first} to "
                    f"{span.end - 1}, not {bound.offset}"
                )
            return bound.offset
        if bound.time_ms is None:
            return default
        return await first_at(self._log, place.topic, place.partition, bound.time_ms)

    async def _send(self, messages: Sequence[Outgoing], result: Replayed) -> Replayed:
        """Publish what goes to the targets, confirmed, and count it."""
        order = self._order
        mine = [message for message in messages if message.topic in (order.alerts, order.scores)]
        if self._publisher is not None and mine:
            await self._publisher.publish(mine)
        for message in mine:
            if message.topic == order.alerts:
                alert = msgspec.json.decode(message.value, type=Alert)
                result.alerts.setdefault(alert.model.name, Counter())[alert.transition] += 1
        scores = sum(message.topic == order.scores for message in mine)
        return result._replace(scores=result.scores + scores)
