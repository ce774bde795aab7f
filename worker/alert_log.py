"""The alert topic as a log: the last episode of each patient, for a rebuild.

Alerts are published to the partition with the input partition's number, so one partition is read, from
its first record: an open episode may be as old as the topic.
"""

from collections.abc import AsyncIterator, Mapping
from typing import NamedTuple

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from schemas.latch import Episode, Which
from schemas.messages import Alert
from worker import metrics
from worker.config import Settings
from worker.decode import milliseconds
from worker.errors import RetryError
from worker.messages import Voice
from worker.partition import Place

SILENT_S = 30
"""Seconds without an answer after which reading is given up, to be tried again."""


class LastAlert(NamedTuple):
    """A patient's last episode before a given offset, and when it expired, if it did."""

    episode: Episode
    expired_ms: int | None


LastAlerts = dict[Which, dict[str, LastAlert]]
"""By latch, then by patient id."""


def no_alerts() -> LastAlerts:
    """An empty log."""
    return {"risk": {}, "news2": {}}


async def last_alerts(
    settings: Settings, place: Place, voices: Mapping[Which, Voice], before: int
) -> LastAlerts:
    """Each patient's last alert, of the model and of NEWS2, that a record before offset `before` caused.

    Raises:
        RetryError: Kafka did not answer.
    """
    consumer = AIOKafkaConsumer(
        **settings.kafka_client(), enable_auto_commit=False, auto_offset_reset="earliest"
    )
    tp = TopicPartition(settings.topic_alerts, place.partition)
    found = no_alerts()
    decoder = msgspec.json.Decoder(Alert)
    try:
        await consumer.start()
        consumer.assign([tp])
        await consumer.seek_to_beginning(tp)
        async for value in _values(consumer, tp):
            try:
                enter(found, decoder.decode(value), place, voices, before)
            except msgspec.MsgspecError:
                metrics.rejections.labels("alert-log", "invalid-message").inc()
    except (KafkaError, OSError, TimeoutError) as error:
        raise RetryError(f"alert log: {type(error).__name__}") from None
    finally:
        await consumer.stop()
    return found


async def _values(consumer: AIOKafkaConsumer, tp: TopicPartition) -> AsyncIterator[bytes]:
    """The partition's values up to its end, as of now; raises TimeoutError when nothing comes for long."""
    silent = 0
    # The high-water mark comes with every fetch; Tansu's answer to "latest offset" lags behind it.
    while (end := consumer.highwater(tp)) is None or await consumer.position(tp) < end:
        records = (await consumer.getmany(tp, timeout_ms=1000)).get(tp, [])
        silent = 0 if records else silent + 1
        if silent > SILENT_S:
            raise TimeoutError
        for record in records:
            yield record.value or b""


def enter(logged: LastAlerts, alert: Alert, place: Place, voices: Mapping[Which, Voice], before: int) -> None:
    """Take the next alert of the log, unless it is another partition's, another model's or too new."""
    source = alert.source
    if (source.cluster, source.topic, source.partition) != place or source.offset >= before:
        return
    which = next((which for which, voice in voices.items() if voice.model.name == alert.model.name), None)
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
        alert.level or 0,
        alert.sequence,
        milliseconds(alert.raised_at),
        milliseconds(alert.time),
        (alert.risk if alert.points is None else alert.points) or 0.0,
        alert.transition != "resolved",
    )
    found[alert.patient] = LastAlert(episode, expired)
