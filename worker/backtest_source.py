"""What a backtest reads: records with their places in a log, and what became of the patients.

simulate, physionet2012:DIR, a file    one partition, in the order of event time, as `send` would fill it
kafka:TOPIC                            the topic's own partitions and offsets (`backtest_topic.py`)
"""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from typing import NamedTuple

import msgspec

from engines import physionet2012
from engines.errors import DatasetError
from engines.physionet2012 import Stay
from worker import recording
from worker.decode import Record
from worker.partition import Place
from worker.recording import Choice, Recording, SourceError

CLUSTER = "backtest"
"""Names the log of a source that is in no broker."""

READ_AT_ONCE = 512
"""Records handed on at a time from a source that is in no broker."""

DAY_MS = 86_400_000

_HEADERS = (("content-type", b"application/json"),)

_encode = msgspec.json.Encoder().encode


class Placed(NamedTuple):
    """A record as Kafka would hand it over: `worker.decode.Record`."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


class Outcome(NamedTuple):
    """What became of a patient.

    event: whether the event came. time_ms: when, ms since the epoch; None where nobody knows.
    exact: whether the time is known to the minute; alerts after an exact time are no warning.
    """

    event: bool
    time_ms: int | None = None
    exact: bool = False


Read = Callable[[], AsyncIterator[Sequence[Record]]]
"""Opens a partition: its records from the first, by chunks, in the order of offsets."""


@dataclass(frozen=True, slots=True)
class Log:
    """One partition.

    live_from: records before this offset only build up the patients' state.
    """

    place: Place
    read: Read
    live_from: int = 0


@dataclass(frozen=True, slots=True)
class Source:
    """Records to test on.

    name: as given on the command line, without folders.
    identity: digest that two sources share only if they hold the same records in the same places.
    count: of records. data: digest of the data set, as in evaluation.json, where it is one.
    outcomes: by patient, where the source knows them. outcome: what they are, in words.
    policy_partitions: of the policies topic beside it; 0 where there is none.
    """

    name: str
    identity: str
    logs: Sequence[Log]
    count: int
    data: str | None = None
    outcomes: Mapping[str, Outcome] | None = None
    outcome: str = ""
    policy_partitions: int = 0


def read(source: str, choice: Choice) -> Source:
    """A source that is in no broker.

    Raises:
        SourceError: it cannot be read or made.
    """
    if not physionet2012.is_source(source):
        found = recording.read(source, choice)
        name = source if source == recording.SIMULATE else "a recorded file"
        return Source(name, _identity(found), [_log(found)], found.count)
    try:
        stays = physionet2012.read(physionet2012.parse_source(source))
    except DatasetError as error:
        raise SourceError(str(error)) from error
    found = recording.stays(stays, choice.patients)
    outcomes = {recording.patient_of(stay): outcome_of(stay) for stay in stays if stay.outcome is not None}
    return Source(
        physionet2012.PREFIX.rstrip(":"),
        _identity(found),
        [_log(found)],
        found.count,
        physionet2012.digest(stays),
        outcomes or None,
        physionet2012.OUTCOME,
    )


def outcome_of(stay: Stay) -> Outcome:
    """A stay's outcome. The day of death is in the data, the hour is not."""
    if not stay.outcome or stay.survival_days is None:
        return Outcome(bool(stay.outcome))
    died = recording.begins(stay) + timedelta(days=stay.survival_days)
    return Outcome(True, round(died.timestamp() * 1000))


def _log(found: Recording) -> Log:
    async def chunks() -> AsyncIterator[Sequence[Record]]:
        chunk: list[Record] = []
        for record in placed(found):
            chunk.append(record)
            if len(chunk) == READ_AT_ONCE:
                yield chunk
                chunk = []
        if chunk:
            yield chunk

    return Log(Place(CLUSTER, recording.TOPIC, 0), chunks)


def placed(found: Recording) -> Iterator[Placed]:
    """The records of a recording as `send` puts them into a topic of one partition."""
    for offset, record in enumerate(found.open()):
        timestamp = round(record.time.timestamp() * 1000)
        yield Placed(offset, timestamp, record.patient.encode(), _encode(record), _HEADERS)


def _identity(found: Recording) -> str:
    total = sha256()
    for record in found.open():
        total.update(_encode(record))
    return total.hexdigest()
