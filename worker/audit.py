"""Published alerts, computed again from the input log and compared byte for byte.

    alert -> its record -> the patient's records before it -> the path -> the alert again -> a verdict

An alert rests on its patient's records alone (`worker/stretch.py` says why), so only theirs are read. State
is rebuilt from the rebuild horizon before the oldest of the alerts; what does not agree then is tried once
more from the log's first record, for a worker that never lost its state may know of older things.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from schemas.latch import Which
from schemas.messages import Alert
from worker.config import Settings
from worker.history import Log, Progress, Span
from worker.messages import Voice
from worker.partition import Place
from worker.publish import Outgoing
from worker.published import Published
from worker.rerun import Rerun
from worker.stretch import Part, Patients, Stretch, horizon_start, run_again

Verdict = Literal["verified", "differs", "not-reproduced", "incomplete-history", "other-model", "other-log"]
"""verified: computed again, it is the same in every byte.
differs: computed again, it has other contents.
not-reproduced: computed again, its record causes no such alert.
incomplete-history: the same was not computed, but the log no longer holds all that it rests on.
other-model: a model raised it that is not at hand.
other-log: it names a record that this log does not have."""

Reach = Literal["whole", "horizon", "incomplete", "none"]
"""What was read before an alert's record: the log from offset 0, the rebuild horizon, less, or nothing."""


class Difference(NamedTuple):
    """A field in which what was published and what was computed again differ; None where it is absent."""

    field: str
    published: Any
    computed: Any


class RecordPlace(NamedTuple):
    """The input record that an alert names: its Kafka timestamp, ms, and whether its key is the patient's."""

    timestamp: int
    same_key: bool


class Finding(NamedTuple):
    """What is to be said of one published alert.

    record: its input record, if it was read.
    notes: in words, what may explain the verdict.
    """

    published: Published
    verdict: Verdict
    reach: Reach = "none"
    differences: tuple[Difference, ...] = ()
    notes: tuple[str, ...] = ()
    record: RecordPlace | None = None

    @property
    def verified(self) -> bool:
        """Whether computing it again gave the same bytes."""
        return self.verdict == "verified"


class _Computed(NamedTuple):
    alert: Alert
    message: Outgoing


class _Pass(NamedTuple):
    """What one reading of the log gave: alerts by id and by what they rest on, and places of records.

    first_ms: timestamp of the first record. truncated: whether older ones were deleted from the log.
    """

    by_id: dict[str, list[_Computed]]
    by_basis: dict[tuple[str, int, str], list[_Computed]]
    records: dict[int, tuple[int, bytes | None]]
    first_ms: int | None
    whole: bool
    truncated: bool


class Auditor:
    """Verifies alerts of one model, and with them NEWS2's and the imaging model's.

    Args:
        log: holds the input topic and the alert topic.
        rerun: the path, with the model that raised the alerts.
        settings: those of the workers: topic names, limits, horizon.
        cluster: the cluster's id.
        progress: told of the records read.
    """

    def __init__(
        self,
        log: Log,
        rerun: Rerun,
        settings: Settings,
        cluster: str,
        progress: Progress = lambda what, done, of: None,
    ) -> None:
        self._log = log
        self._rerun = rerun
        self._settings = settings
        self._cluster = cluster
        self._progress = progress

    async def verify(self, alerts: Sequence[Published]) -> list[Finding]:
        """A finding for each alert, in order; their input partitions are read one after the other.

        Raises:
            RetryError: Kafka did not answer.
            FatalError: the engine does not answer.
        """
        found: dict[int, Finding] = {}
        by_partition: dict[int, dict[int, Published]] = {}
        for i, alert in enumerate(alerts):
            by_partition.setdefault(alert.alert.source.partition, {})[i] = alert
        for partition, chosen in sorted(by_partition.items()):
            found |= await self._verify(partition, chosen)
        return [found[i] for i in range(len(alerts))]

    async def _verify(self, partition: int, alerts: Mapping[int, Published]) -> dict[int, Finding]:
        place = Place(self._cluster, self._settings.topic_vitals, partition)
        found = {i: self._refused(alert, place) for i, alert in alerts.items()}
        left = {i: alert for i, alert in alerts.items() if found[i] is None}
        if left:
            span = await self._log.span(place.topic, partition)
            found |= {i: _outside(alert, span) for i, alert in left.items()}
            left = {i: alert for i, alert in left.items() if found[i] is None}
        if left:
            found |= await self._verify_within(place, span, left)
        return {i: finding for i, finding in found.items() if finding is not None}

    async def _verify_within(
        self, place: Place, span: Span, alerts: Mapping[int, Published]
    ) -> dict[int, Finding]:
        oldest, last = _oldest(alerts), max(alert.alert.source.offset for alert in alerts.values())
        start = await horizon_start(self._log, self._settings, place, span, oldest)
        found = await self._judged(Stretch(place, start, 0 if start == 0 else oldest, last + 1), alerts, span)
        # Once more from the first record, those whose history is in the log: with the others left out,
        # the episodes of older alerts can be taken from the alert topic. To the end, because an expiry can
        # rest on the policy in force at the patient's next record.
        left = {i: alerts[i] for i, f in found.items() if not f.verified and f.reach != "incomplete"}
        ended = any(alert.alert.transition == "expired" for alert in left.values())
        if left and (ended or start > span.first or (start > 0 and _oldest(left) > oldest)):
            live_from = 0 if span.first == 0 else _oldest(left)
            found |= await self._judged(Stretch(place, span.first, live_from, span.end), left, span)
        return found

    async def _judged(
        self, stretch: Stretch, alerts: Mapping[int, Published], span: Span
    ) -> dict[int, Finding]:
        truncated = stretch.start == span.first > 0
        computed = (await self._compute(stretch, list(alerts.values())))._replace(truncated=truncated)
        return {i: self._judge(alert, computed) for i, alert in alerts.items()}

    async def _compute(self, stretch: Stretch, alerts: Sequence[Published]) -> _Pass:
        """What the patients of some alerts are alerted of in a stretch."""
        keys = {alert.alert.patient.encode() for alert in alerts} | {a.key for a in alerts if a.key}
        ended = [alert.alert for alert in alerts if alert.alert.transition == "expired"]
        patients = Patients(keys)
        wanted = {alert.alert.source.offset for alert in alerts}
        ids = {alert.alert.id for alert in alerts}
        found = _Pass({}, {}, {}, None, stretch.whole, truncated=False)
        async for part in run_again(
            self._log,
            self._rerun,
            self._settings,
            stretch,
            patients,
            cuts={alert.source.offset for alert in ended},
            progress=self._progress,
        ):
            found.records.update({r.offset: (r.timestamp, r.key) for r in part.records if r.offset in wanted})
            for message in (*part.messages, *self._expiries(part, ended)):
                self._keep(found, message, ids, wanted)
        return found._replace(first_ms=patients.first_ms)

    def _expiries(self, part: Part, ended: Sequence[Alert]) -> Iterator[Outgoing]:
        """What ends the episodes of which the last score is the part's last record."""
        last = part.records[-1].offset
        for alert in ended:
            if alert.source.offset == last:
                message = self._rerun.expiry(part.partition, alert.patient, self._which(alert))
                if message is not None:
                    yield message

    def _keep(self, found: _Pass, message: Outgoing, ids: set[str], wanted: set[int]) -> None:
        if message.topic != self._settings.topic_alerts:
            return
        alert = msgspec.json.decode(message.value, type=Alert)
        if alert.id in ids or alert.source.offset in wanted:
            computed = _Computed(alert, message)
            found.by_id.setdefault(alert.id, []).append(computed)
            found.by_basis.setdefault(_basis(alert), []).append(computed)

    def _refused(self, published: Published, place: Place) -> Finding | None:
        """Why an alert cannot be computed here at all, if so."""
        alert = published.alert
        source = alert.source
        if (source.cluster, source.topic) != (place.cluster, place.topic):
            note = (
                f"it names the topic {source.topic} of the cluster {source.cluster}; "
                f"the settings name {place.topic}, and the cluster is {place.cluster}"
            )
            return Finding(published, "other-log", notes=(note,))
        voice = self._voice(alert)
        if voice is not None and alert.model != voice.model:
            needed, there = alert.model, voice.model
            note = (
                f"it needs {needed.name} version {needed.version} with digest {needed.digest}; at hand is "
                f"{there.name} version {there.version} with digest {there.digest}"
            )
            return Finding(published, "other-model", notes=(note,))
        return None

    def _which(self, alert: Alert) -> Which:
        names = self._rerun.pipeline.policies.names
        return next((which for which, name in names.items() if name == alert.model.name), "risk")

    def _voice(self, alert: Alert) -> Voice | None:
        """Who raises such alerts here; None where the patient's findings say so, whatever is at hand."""
        return self._rerun.voices.get(self._which(alert))

    def _judge(self, published: Published, computed: _Pass) -> Finding:
        alert = published.alert
        ways = computed.by_id.get(alert.id) or computed.by_basis.get(_basis(alert)) or []
        again = next((way for way in ways if way.message.value == published.value), ways[0] if ways else None)
        place = computed.records.get(alert.source.offset)
        record = None if place is None else RecordPlace(place[0], place[1] == alert.patient.encode())
        reach = self._reach(computed, record)
        differences = () if again is None else tuple(_differences(published, again.message))
        verdict: Verdict = "verified"
        if again is None or differences:
            verdict = "not-reproduced" if again is None else "differs"
        if verdict != "verified" and reach == "incomplete":
            verdict = "incomplete-history"
        notes = () if verdict == "verified" else tuple(self._notes(published, record, reach))
        return Finding(published, verdict, reach, differences, notes, record)

    def _reach(self, computed: _Pass, record: RecordPlace | None) -> Reach:
        if computed.whole:
            return "whole"
        if not computed.truncated:
            return "horizon"
        if record is None or computed.first_ms is None:
            return "incomplete"
        horizon_ms = round(self._settings.rebuild_horizon_h * 3_600_000)
        return "horizon" if computed.first_ms <= record.timestamp - horizon_ms else "incomplete"

    def _notes(self, published: Published, record: RecordPlace | None, reach: Reach) -> Iterator[str]:
        alert, which = published.alert, self._which(published.alert)
        voice = self._voice(alert)
        if record is None or not record.same_key:
            yield "the record that it names is not of its patient, or is no longer in the log"
        if record is not None:
            policies = self._rerun.pipeline.policies
            place = (alert.patient, alert.care_unit, record.timestamp)
            imaged = which == "imaging"
            there = policies.imaging(alert.model, *place) if imaged else policies.of(which, *place)
            if alert.transition != "expired" and there.version != alert.policy_version:
                named, known = alert.policy_version, there.version
                yield f"it names policy version {named}; at its record {known} was in force"
        if voice is not None and alert.backend != voice.backend:
            yield f"{alert.backend} computed it; here computes {voice.backend}"
        if reach == "incomplete":
            yield (
                "the input topic no longer reaches "
                f"{self._settings.rebuild_horizon_h:g} h back from its record; raise the topic's retention"
            )


def _basis(alert: Alert) -> tuple[str, int, str]:
    return alert.model.name, alert.source.offset, alert.transition


def _oldest(alerts: Mapping[int, Published]) -> int:
    return min(alert.alert.source.offset for alert in alerts.values())


def _outside(published: Published, span: Span) -> Finding | None:
    """Of an alert whose record is not in the log."""
    offset = published.alert.source.offset
    if offset >= span.end:
        note = f"its record has offset {offset}; the log ends at {span.end}"
        return Finding(published, "other-log", notes=(note,))
    if offset < span.first:
        note = f"its record, offset {offset}, is deleted; the log begins at {span.first}"
        return Finding(published, "incomplete-history", notes=(note,))
    return None


def _differences(published: Published, computed: Outgoing) -> Iterator[Difference]:
    """Field by field, in the order in which alerts state them."""
    if published.key != computed.key:
        yield Difference("(record key)", _text(published.key), _text(computed.key))
    if published.partition != computed.partition:
        yield Difference("(record partition)", published.partition, computed.partition)
    if published.value == computed.value:
        return
    ours, theirs = (dict(_flat(json.loads(value))) for value in (published.value, computed.value))
    fields = [name for name in dict.fromkeys((*ours, *theirs)) if ours.get(name) != theirs.get(name)]
    for name in fields:
        yield Difference(name, ours.get(name), theirs.get(name))
    if not fields:
        yield Difference("(bytes)", "the same values, written otherwise", None)


def _text(key: bytes | None) -> str | None:
    return None if key is None else key.decode(errors="replace")


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, leaf) of every leaf of a JSON value; what has a name stands under it, not under its number."""
    if isinstance(value, dict) and value:
        for name, below in value.items():
            yield from _flat(below, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and value:
        for i, below in enumerate(value):
            named = below if isinstance(below, dict) else {}
            yield from _flat(below, f"{path}[{named.get('feature', named.get('parameter', i))}]")
    else:
        yield path, value
