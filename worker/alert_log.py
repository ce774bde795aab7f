"""The alert topic as a log: the last episode of each patient, for a rebuild.

Alerts are published to the partition with the input partition's number, so one partition is read, from
its first record: an open episode may be as old as the topic.
"""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from schemas.latch import Episode, Which
from schemas.messages import Alert
from worker import metrics
from worker.config import Settings
from worker.decode import milliseconds
from worker.history import History, Log
from worker.partition import Place


class LastAlert(NamedTuple):
    """A patient's last episode before a given offset, and when it expired, if it did."""

    episode: Episode
    expired_ms: int | None


LastAlerts = dict[Which, dict[str, LastAlert]]
"""By latch, then by patient id."""


def no_alerts() -> LastAlerts:
    """An empty log."""
    return {"risk": {}, "news2": {}, "imaging": {}}


async def last_alerts(
    settings: Settings, place: Place, names: Mapping[Which, str], before: int
) -> LastAlerts:
    """Each patient's last alert, of whoever raises any, that a record before offset `before` caused.

    Raises:
        RetryError: Kafka did not answer.
    """
    async with History(settings) as log:
        return await read_last(log, settings.topic_alerts, place, names, before, settings.shadow_version)


async def read_last(
    log: Log,
    topic: str,
    place: Place,
    names: Mapping[Which, str],
    before: int,
    shadow: int | None = None,
) -> LastAlerts:
    """`last_alerts` of a log that is at hand.

    A served version takes over the episodes of the one before it. Shadows of several versions share a topic
    and nothing else: with `shadow`, a model's alerts count if they are that version's.
    """
    found = no_alerts()
    decoder = msgspec.json.Decoder(Alert)
    span = await log.span(topic, place.partition)
    async for records in log.read(topic, place.partition, *span):
        for record in records:
            try:
                alert = decoder.decode(record.value or b"")
                if shadow in (None, alert.model.version) or alert.model.name != names["risk"]:
                    enter(found, alert, place, names, before)
            except (msgspec.MsgspecError, ValueError, IndexError, RecursionError):
                metrics.rejections.labels("alert-log", "invalid-message").inc()
    return found


def enter(logged: LastAlerts, alert: Alert, place: Place, names: Mapping[Which, str], before: int) -> None:
    """Take the next alert of the log, unless it is another partition's, another model's or too new.

    Args:
        logged: what was found so far; changed.
        alert: the next.
        place: whose alerts count.
        names: of those who raise alerts, by latch.
        before: alerts count that rest on records before this offset.
    """
    source = alert.source
    if (source.cluster, source.topic, source.partition) != place or source.offset >= before:
        return
    which = next((which for which, name in names.items() if name == alert.model.name), None)
    if which is None:
        return
    found = logged[which]
    opened = int(alert.episode.rsplit("/", 1)[1])
    last = found.get(alert.patient)
    if alert.transition == "expired":
        if last is not None and last.episode.opened == opened:
            found[alert.patient] = last._replace(expired_ms=milliseconds(alert.time))
        return
    if last is not None and (last.episode.opened, last.episode.sequence) > (opened, alert.sequence):
        return
    again = last is not None and (last.episode.opened, last.episode.sequence) == (opened, alert.sequence)
    expired = last.expired_ms if last is not None and again else None
    episode = Episode(
        opened,
        -1 if alert.level is None else alert.level,
        alert.sequence,
        milliseconds(alert.raised_at),
        milliseconds(alert.time),
        (alert.risk if alert.points is None else alert.points) or 0.0,
        alert.transition != "resolved",
        alert.severity,
        alert.threshold,
    )
    found[alert.patient] = LastAlert(episode, expired)
