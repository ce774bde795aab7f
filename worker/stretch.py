"""A stretch of an input partition, run through the path again: what audits verify with and replays send.

State is rebuilt in silence first, as a worker rebuilds it (`worker/restore.py`): from a horizon before the
stretch, its episodes from the alert topic. Where the log still begins at offset 0 and is read from there,
nothing needs to be adopted: every latch is what its records made it.
"""

from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from typing import Any, NamedTuple

from worker.alert_log import LastAlerts, read_last
from worker.config import Settings
from worker.history import Log, Progress, Span
from worker.partition import Partition, Place
from worker.publish import Outgoing
from worker.rerun import Rerun
from worker.restore import adopt_episodes


class Stretch(NamedTuple):
    """Offsets of an input partition: state from `start`, publishing from `live_from`, to before `end`."""

    place: Place
    start: int
    live_from: int
    end: int

    @property
    def whole(self) -> bool:
        """Whether it begins where the log began, so that nothing came before."""
        return self.start == 0


class Part(NamedTuple):
    """Some records of a stretch, taken through the path: the memory after them, and what they published."""

    partition: Partition
    records: Sequence[Any]
    messages: Sequence[Outgoing]


class Patients:
    """Which records of a stretch count, and what is noted of all of them.

    A patient's alerts depend on the patient's own records alone: state, latches and the horizon after which
    somebody starts anew are the patient's; stream time, which is everybody's, only times what expires early.

    keys: of the records that count; None for all.
    """

    def __init__(self, keys: Collection[bytes] | None = None) -> None:
        self.keys = keys
        self.first_ms: int | None = None

    def chosen(self, records: Sequence[Any]) -> list[Any]:
        """Those that count."""
        if self.first_ms is None:
            self.first_ms = int(records[0].timestamp)
        return [record for record in records if self.keys is None or record.key in self.keys]


async def horizon_start(log: Log, settings: Settings, place: Place, span: Span, offset: int) -> int:
    """Where to begin reading so that the state at `offset` is that of a worker's rebuild."""
    timestamp = await _timestamp(log, place, span, offset)
    if timestamp is None:
        return span.first
    begin_ms = timestamp - round(settings.rebuild_horizon_h * 3_600_000)
    start = await log.offset_at(place.topic, place.partition, begin_ms)
    return span.first if start is None else max(span.first, min(start, offset))


async def _timestamp(log: Log, place: Place, span: Span, offset: int) -> int | None:
    async for records in log.read(place.topic, place.partition, max(offset, span.first), span.end):
        return int(records[0].timestamp)
    return None


async def run_again(
    log: Log,
    rerun: Rerun,
    settings: Settings,
    stretch: Stretch,
    patients: Patients,
    *,
    cuts: Collection[int] = (),
    progress: Progress = lambda what, done, of: None,
) -> AsyncIterator[Part]:
    """Take a stretch's records through the path, in order.

    Args:
        log: holds the input topic and the alert topic.
        rerun: the path.
        settings: names the alert topic.
        stretch: the offsets.
        patients: whose records count.
        cuts: offsets after which a part ends, whatever follows.
        progress: told of the records read.
    """
    place = stretch.place
    partition = Partition(place, stretch.start, stretch.live_from)
    adopted: LastAlerts | None = None
    if not stretch.whole and stretch.start < stretch.live_from:
        names = rerun.pipeline.policies.names
        adopted = await read_last(log, settings.topic_alerts, place, names, stretch.live_from)
    borders = sorted({*cuts, stretch.live_from - 1})
    async for records in _gathered(log, stretch, patients, settings.chunk_records, progress):
        for piece in pieces(records, borders):
            if adopted is not None and piece[0].offset >= stretch.live_from:
                adopt_episodes(partition, adopted, rerun.pipeline.policies)
                adopted = None
            _, messages = await rerun.process(partition, piece)
            yield Part(partition, piece, messages)


async def _gathered(
    log: Log, stretch: Stretch, patients: Patients, enough: int, progress: Progress
) -> AsyncIterator[Sequence[Any]]:
    """The records that count, at least `enough` at a time, so that batches are worth their cost."""
    place, found = stretch.place, list[Any]()
    what, total = f"records of partition {place.partition}", stretch.end - stretch.start
    async for records in log.read(place.topic, place.partition, stretch.start, stretch.end):
        found += patients.chosen(records)
        if len(found) >= enough:
            yield found
            found = []
        progress(what, int(records[-1].offset) + 1 - stretch.start, total)
    if found:
        yield found


def pieces(records: Sequence[Any], borders: Sequence[int]) -> Iterator[Sequence[Any]]:
    """Records cut so that one piece ends with the last record up to each border, an offset, in order."""
    offsets = [record.offset for record in records]
    at = 0
    for border in borders[bisect_left(borders, offsets[0]) : bisect_right(borders, offsets[-1])]:
        upto = bisect_right(offsets, border)
        if upto > at:
            yield records[at:upto]
            at = upto
    if at < len(records):
        yield records[at:]
