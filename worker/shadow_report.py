"""What `riskstream shadow` finds: a served model's scores and alerts beside those of its shadow.

Topics are read once each, from end to end, without a consumer group. Kept are the risks (`shadow_scores`),
the episodes (`shadow_alerts`) and two times for each patient; nothing of a patient is in what comes out.
"""

import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from engines import repository
from engines.errors import RepositoryError
from engines.evaluate import reproduction
from schemas.messages import Source, Time
from schemas.model_config import NEWS2, Policy
from worker import shadow_content as content
from worker import shadow_scores
from worker.cluster import Cluster, describe
from worker.config import Settings
from worker.decode import milliseconds
from worker.errors import FatalError
from worker.history import History, Log, Progress, Span, first_at
from worker.published import Range
from worker.shadow_alerts import AlertHead, Alerts
from worker.shadow_content import PatientTime
from worker.shadow_scores import MAX_SCORES, Risks


class ScoreHead(Struct, frozen=True):
    """What of a score is compared; fields as in `Score`."""

    patient: str
    time: Time
    risk: float
    model: str
    model_version: int
    source: Source


class Order(NamedTuple):
    """What to compare: the shadow's version, None for the only one there is, and when input records came."""

    version: int | None = None
    within: Range = Range()


@dataclass
class _Side:
    """What the scores topic of one side holds of the input in the period.

    versions: of the model, with the number of scores of each. elsewhere: scores of other inputs or models.
    """

    risks: Risks = field(default_factory=Risks)
    versions: Counter[int] = field(default_factory=Counter)
    elsewhere: int = 0


async def compared(
    settings: Settings, order: Order, progress: Progress = lambda what, done, of: None
) -> dict[str, Any]:
    """The report's content.

    Args:
        settings: the served workers'.
        order: what to compare.
        progress: told of the records read.

    Raises:
        RetryError: Kafka does not answer.
        FatalError: topics are missing, hold nothing of the period, or have no record in common.
    """
    cluster, shadows = await _clusters(settings)
    async with History(settings) as log:
        period = await _period(log, settings, cluster, order.within)
        return await Comparison(log, settings, cluster, shadows, period, progress).compare(order)


async def _clusters(settings: Settings) -> tuple[Cluster, Cluster]:
    """The served topics and the shadow's, those that must be there present."""
    served = settings.model_copy(update={"publish_scores": True})
    mine = {"topic_alerts": settings.topic_shadow_alerts, "topic_scores": settings.topic_shadow_scores}
    cluster = await describe(served, create=False)
    shadows = await describe(served.model_copy(update=mine), create=False)
    for name in (settings.topic_vitals, settings.topic_alerts):
        if not cluster.partitions.get(name):
            raise FatalError(f"topic {name} does not exist in cluster {cluster.id}; the settings name it")
    for name in mine.values():
        if not shadows.partitions.get(name):
            raise FatalError(
                f"topic {name} does not exist in cluster {cluster.id}: no shadow has run there. "
                "`riskstream run --shadow VERSION` writes to it, and creates it with "
                "RISKSTREAM_CREATE_TOPICS=true"
            )
    return cluster, shadows


async def _period(log: Log, settings: Settings, cluster: Cluster, within: Range) -> dict[int, Span]:
    """By partition of the input, the offsets of the records that came in the period."""
    found = {}
    for partition in range(cluster.partitions[settings.topic_vitals]):
        first, end = 0, sys.maxsize
        if within.since is not None:
            first = await first_at(log, settings.topic_vitals, partition, within.since)
        if within.until is not None:
            end = await first_at(log, settings.topic_vitals, partition, within.until)
        found[partition] = Span(first, end)
    return found


_Head = TypeVar("_Head", ScoreHead, AlertHead)


class Comparison:
    """A comparison under way."""

    def __init__(
        self,
        log: Log,
        settings: Settings,
        cluster: Cluster,
        shadows: Cluster,
        period: Mapping[int, Span],
        progress: Progress,
    ) -> None:
        self._log = log
        self._settings = settings
        self._cluster = cluster
        self._partitions = cluster.partitions | shadows.partitions
        self._period = period
        self._progress = progress
        self._time = PatientTime()
        self._unreadable = 0

    async def compare(self, order: Order) -> dict[str, Any]:
        """Read all that there is, and compare."""
        s = self._settings
        served, shadow = _Side(), _Side()
        await self._read_served(served)
        await self._read_shadow(shadow, served.risks.spans(), order.version)
        version = self._chosen(order, shadow)
        joined = shadow_scores.join(served.risks, shadow.risks)
        if served.risks.count and not len(joined.served):
            raise FatalError(_nothing_in_common(served, shadow))
        spans = joined.spans if served.risks.count else shadow.risks.spans()
        ours = await self._alerts(s.topic_alerts, spans, None)
        theirs = await self._alerts(s.topic_shadow_alerts, spans, version)
        notes = self._notes(served, shadow, version)
        policies = self._policies(served, version, notes)
        return {
            "report": "shadow",
            "model": s.model,
            "input": {
                "cluster": self._cluster.id,
                "topic": s.topic_vitals,
                "from": _iso(order.within.since),
                "to": _iso(order.within.until),
            },
            "served": content.side(served.versions, served.elsewhere, ours),
            "shadow": {
                "version": version,
                **content.side(shadow.versions, shadow.elsewhere, theirs),
            },
            "scores": content.scores(joined, policies) if served.risks.count else None,
            "alerts": content.alerts(ours, theirs, self._time),
            "unreadable": self._unreadable,
            "notes": notes,
            "figures": content.FIGURES,
            "reproduce": reproduction(_command(order, version), ("numpy",)),
        }

    async def _read_served(self, side: _Side) -> None:
        async for score in self._heads(self._settings.topic_scores, ScoreHead):
            if self._takes(score, side):
                side.versions[score.model_version] += 1
                _keep(score, side)

    async def _read_shadow(self, side: _Side, reached: Mapping[int, Span], wanted: int | None) -> None:
        """Keep the risks of one version, the wanted or the first; watch patients while both sides score."""
        async for score in self._heads(self._settings.topic_shadow_scores, ScoreHead):
            if not self._takes(score, side):
                continue
            wanted = score.model_version if wanted is None else wanted
            side.versions[score.model_version] += 1
            if score.model_version != wanted:
                continue
            _keep(score, side)
            if not reached or _holds(reached.get(score.source.partition), score.source.offset):
                self._time.add(score.patient, milliseconds(score.time))

    async def _alerts(self, topic: str, spans: Mapping[int, Span], version: int | None) -> Alerts:
        alerts = Alerts(spans, self._settings.model)
        async for alert in self._heads(topic, AlertHead):
            of_version = version in (None, alert.model.version) or alert.model.name == NEWS2
            if of_version and self._is_of_input(alert.source):
                try:
                    alerts.add(alert)
                except ValueError:  # its episode names no offset
                    self._unreadable += 1
        return alerts

    async def _heads(self, topic: str, kind: type[_Head]) -> AsyncIterator[_Head]:
        """What a topic holds, partition by partition; what cannot be read is counted."""
        decoder = msgspec.json.Decoder(kind)
        for partition in range(self._partitions.get(topic, 0)):
            span = await self._log.span(topic, partition)
            async for records in self._log.read(topic, partition, *span):
                for record in records:
                    try:
                        yield decoder.decode(record.value or b"")
                    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                        self._unreadable += 1
                done = records[-1].offset + 1 - span.first
                self._progress(f"{topic}, partition {partition}", done, span.end - span.first)

    def _takes(self, score: ScoreHead, side: _Side) -> bool:
        """Whether a score is of the input, the model and the period."""
        if score.model != self._settings.model or not self._is_of_input(score.source):
            side.elsewhere += 1
            return False
        return _holds(self._period.get(score.source.partition), score.source.offset)

    def _is_of_input(self, source: Source) -> bool:
        return source.cluster == self._cluster.id and source.topic == self._settings.topic_vitals

    def _chosen(self, order: Order, shadow: _Side) -> int:
        """The version that is compared."""
        s, versions = self._settings, sorted(shadow.versions)
        if order.version is None and len(versions) > 1:
            raise FatalError(
                f"topic {s.topic_shadow_scores} holds scores of the versions "
                f"{', '.join(map(str, versions))}; name one with --version"
            )
        if not shadow.risks.count:
            whose = s.model if order.version is None else f"version {order.version} of {s.model}"
            others = f"; it holds the versions {', '.join(map(str, versions))}" if versions else ""
            raise FatalError(
                f"topic {s.topic_shadow_scores} holds no score of {whose} and of the input in that "
                f"time{others}; {shadow.elsewhere} are of other models or inputs"
            )
        return versions[0] if order.version is None else order.version

    def _notes(self, served: _Side, shadow: _Side, version: int) -> list[str]:
        """What a reader should know before the figures."""
        s, notes = self._settings, []
        if not served.risks.count:
            notes.append(
                f"topic {s.topic_scores} holds no score of {s.model} and of the input in that time: alerts "
                "alone are compared, from the shadow's first score to its last. Workers publish scores with "
                "RISKSTREAM_PUBLISH_SCORES=true"
            )
        if version in served.versions:
            notes.append(
                f"version {version} was served too: {served.versions[version]} served scores are its own"
            )
        if self._unreadable:
            notes.append(f"{self._unreadable} records could not be read, and are left out")
        return notes

    def _policies(self, served: _Side, version: int, notes: list[str]) -> dict[str, Policy]:
        """The shipped policies of both sides, the version that served most for the served one."""
        found = {}
        most = max(served.versions, key=lambda known: served.versions[known], default=None)
        for whose, number in (("served", most), ("shadow", version)):
            try:
                config = repository.read_config(self._settings.model_repository, self._settings.model, number)
                found[whose] = config.policy
            except RepositoryError as error:
                notes.append(f"the levels of the {whose} policy are not known: {error}")
        return found


def _keep(score: ScoreHead, side: _Side) -> None:
    if side.risks.count >= MAX_SCORES:
        raise FatalError(f"over {MAX_SCORES:,} scores; bound the time with --from and --to")
    side.risks.add(score.source.partition, score.source.offset, score.risk)


def _holds(span: Span | None, offset: int) -> bool:
    return span is not None and span.first <= offset < span.end


def _nothing_in_common(served: _Side, shadow: _Side) -> str:
    ours, theirs = (
        "; ".join(
            f"{at}: {span.first} to {span.end - 1}" for at, span in sorted(side.risks.spans().items())[:4]
        )
        for side in (served, shadow)
    )
    return (
        f"no input record has both a served score and a shadow's; served are offsets of partition {ours}, "
        f"the shadow's are of {theirs}. Wait until the shadow has reached what is served now"
    )


def _command(order: Order, version: int) -> str:
    since, until = (_iso(bound) for bound in order.within)
    bounds = (f" --from {since}" if since else "") + (f" --to {until}" if until else "")
    return f"riskstream shadow --version {version}{bounds}"


def _iso(time_ms: int | None) -> str | None:
    return None if time_ms is None else datetime.fromtimestamp(time_ms / 1000, UTC).isoformat()
