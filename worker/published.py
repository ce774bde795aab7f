"""Alerts as they stand in the alert topic: found by id, by patient, by the time of their publishing."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from schemas.messages import Alert
from worker.history import Log, Progress, Span, first_at

Keep = Callable[[Any], bool]
"""Whether a record of the alert topic is looked for."""


class Published(NamedTuple):
    """One record of the alert topic.

    key, value: as they stand there.
    timestamp: when it was published, ms.
    """

    alert: Alert
    key: bytes | None
    value: bytes
    partition: int
    offset: int
    timestamp: int


class Range(NamedTuple):
    """Times of publishing, ms: from `since` to before `until`; None where nothing bounds them."""

    since: int | None = None
    until: int | None = None


@dataclass
class Found:
    """What was found in some partitions.

    alerts: in order of partition and offset.
    unreadable: (partition, offset) of records that are no alerts.
    spans: by partition, what was looked through.
    oldest_ms: timestamp of the oldest record looked at; None where there was none.
    """

    alerts: list[Published] = field(default_factory=list)
    unreadable: list[tuple[int, int]] = field(default_factory=list)
    spans: dict[int, Span] = field(default_factory=dict)
    oldest_ms: int | None = None


_decoder = msgspec.json.Decoder(Alert)


async def find(
    log: Log,
    topic: str,
    partitions: Sequence[int],
    keep: Keep,
    within: Range = Range(),  # noqa: B008 - immutable
    progress: Progress = lambda what, done, of: None,
) -> Found:
    """Look through partitions of the alert topic for records that `keep` accepts.

    Raises:
        RetryError: Kafka did not answer.
    """
    found = Found()
    for partition in partitions:
        span = found.spans[partition] = await _bounded(log, topic, partition, within)
        async for records in log.read(topic, partition, *span):
            oldest = int(records[0].timestamp)
            found.oldest_ms = oldest if found.oldest_ms is None else min(found.oldest_ms, oldest)
            for record in records:
                if keep(record):
                    _enter(found, partition, record)
            progress(f"alerts of partition {partition}", records[-1].offset + 1 - span.first, _length(span))
    return found


async def _bounded(log: Log, topic: str, partition: int, within: Range) -> Span:
    first, end = await log.span(topic, partition)
    if within.since is not None:
        first = max(first, await first_at(log, topic, partition, within.since))
    if within.until is not None:
        end = min(end, await first_at(log, topic, partition, within.until))
    return Span(first, max(first, end))


def _enter(found: Found, partition: int, record: Any) -> None:
    value = record.value or b""
    try:
        alert = _decoder.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        found.unreadable.append((partition, record.offset))
        return
    place = (partition, int(record.offset), int(record.timestamp))
    found.alerts.append(Published(alert, record.key, value, *place))


def _length(span: Span) -> int:
    return span.end - span.first


def named(ids: Collection[str]) -> Keep:
    """Records that hold one of some ids; a cheap test, before anything is decoded."""
    wanted = [identifier.encode() for identifier in ids]
    return lambda record: any(identifier in (record.value or b"") for identifier in wanted)
