"""Alerts are verified when computing them again gives their bytes, and never otherwise."""

from collections.abc import Sequence

import msgspec
import pytest

from engines.engine import Engine
from schemas.messages import Alert
from schemas.policy_change import PolicyChange
from tests.worker import test_feedback
from tests.worker.records import HOUR, NEWS2, PLACE, T0, LocalPath, Record
from tests.worker.shelf import ALERTS, Shelf, course, mixed, published
from worker import config
from worker.audit import Auditor, Finding
from worker.history import first_at
from worker.messages import moment
from worker.policies import Policies
from worker.published import Published, find
from worker.rerun import Rerun
from worker.stretch import pieces

UP_AND_DOWN = [min(h / 6, 1.0) for h in range(12)] + [max(1 - h / 6, 0.0) for h in range(20)]
SETTINGS = config.load(topic_vitals=PLACE.topic)


def policies_of(engine: Engine, *changes: PolicyChange) -> Policies:
    policies = Policies(engine.config.name, engine.config.policy, NEWS2)
    assert policies.replace("file", changes) == []
    return policies


async def alerts_of(shelf: Shelf) -> list[Published]:
    return (await find(shelf, ALERTS, [PLACE.partition], lambda record: True)).alerts


async def verify(
    engine: Engine,
    shelf: Shelf,
    alerts: Sequence[Published] | None = None,
    cluster: str = PLACE.cluster,
    policies: Policies | None = None,
) -> list[Finding]:
    rerun = Rerun(engine, policies or policies_of(engine), SETTINGS)
    try:
        auditor = Auditor(shelf, rerun, SETTINGS, cluster)
        return await auditor.verify(await alerts_of(shelf) if alerts is None else alerts)
    finally:
        await rerun.close()


def verdicts(findings: Sequence[Finding]) -> list[str]:
    return [finding.verdict for finding in findings]


def transitions(alerts: Sequence[Published]) -> set[tuple[str, str]]:
    return {(p.alert.model.name, p.alert.transition) for p in alerts}


def rewritten(published: Published, value: bytes) -> Published:
    """The record with another value, decoded as it stands."""
    return published._replace(alert=msgspec.json.decode(value, type=Alert), value=value)


def changed(published: Published, **fields: object) -> Published:
    return rewritten(published, msgspec.json.encode(msgspec.structs.replace(published.alert, **fields)))


async def a_stay(engine: Engine) -> tuple[Shelf, LocalPath]:
    """Two patients whose courses are the same, and one who is well, at different hours."""
    return await published(
        engine,
        mixed(
            course("p-1", 0, T0, UP_AND_DOWN),
            course("p-2", 0, T0 + HOUR // 2, UP_AND_DOWN),
            course("p-3", 0, T0 + HOUR // 3, [0.0] * 30),
        ),
    )


async def test_every_alert_of_the_model_and_of_news2_verifies(engine: Engine) -> None:
    shelf, _ = await a_stay(engine)
    alerts = await alerts_of(shelf)
    ways = {(name, transition) for name in ("vitals", "news2") for transition in ("raised", "resolved")}
    assert transitions(alerts) >= ways | {("vitals", "escalated"), ("news2", "updated")}

    findings = await verify(engine, shelf)

    assert verdicts(findings) == ["verified"] * len(alerts)
    assert {finding.reach for finding in findings} == {"whole"}
    assert all(finding.record is not None and finding.record.same_key for finding in findings)


async def test_each_alert_verifies_by_itself_as_among_all(engine: Engine) -> None:
    shelf, _ = await a_stay(engine)
    for alert in await alerts_of(shelf):
        (finding,) = await verify(engine, shelf, [alert])
        assert finding.verified


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"risk": 0.5}, "risk"),
        ({"severity": "low"}, "severity"),
        ({"threshold": 0.01}, "threshold"),
        ({"policy_version": "9"}, "policy_version"),
        ({"backend": "abacus"}, "backend"),
        ({"trend": ()}, "trend"),
        ({"patient": "p-2"}, "patient"),
    ],
)
async def test_a_changed_field_is_named(engine: Engine, fields: dict[str, object], named: str) -> None:
    shelf, _ = await a_stay(engine)
    alerts = await alerts_of(shelf)
    victim = next(a for a in alerts if a.alert.model.name == "vitals" and a.alert.patient == "p-1")
    honest = [alert for alert in alerts if alert is not victim]

    found, *others = await verify(engine, shelf, [changed(victim, **fields), *honest])

    assert found.verdict == "differs"
    assert any(difference.field.startswith(named) for difference in found.differences)
    assert verdicts(others) == ["verified"] * len(honest)


async def test_a_changed_input_is_named_with_both_values(engine: Engine) -> None:
    shelf, _ = await a_stay(engine)
    victim = (await alerts_of(shelf))[0]
    inputs = list(victim.alert.inputs)
    inputs[0] = msgspec.structs.replace(inputs[0], value=1.5)

    (finding,) = await verify(engine, shelf, [changed(victim, inputs=tuple(inputs))])

    (difference,) = finding.differences
    assert difference.field == f"inputs[{inputs[0].feature}].value"
    assert (difference.published, difference.computed) == (1.5, victim.alert.inputs[0].value)


async def test_other_bytes_of_the_same_values_do_not_verify(engine: Engine) -> None:
    shelf, _ = await a_stay(engine)
    victim = (await alerts_of(shelf))[0]

    (finding,) = await verify(engine, shelf, [rewritten(victim, victim.value.replace(b":", b": ", 1))])

    assert (finding.verdict, finding.differences[0].field) == ("differs", "(bytes)")


async def test_another_key_does_not_verify(engine: Engine) -> None:
    shelf, _ = await a_stay(engine)
    victim = (await alerts_of(shelf))[0]

    (finding,) = await verify(engine, shelf, [victim._replace(key=b"p-9")])

    assert finding.differences[0].field == "(record key)"


async def test_an_invented_alert_is_not_reproduced(engine: Engine) -> None:
    shelf, _ = await a_stay(engine)
    victim = next(a for a in await alerts_of(shelf) if a.alert.transition == "raised")
    source = msgspec.structs.replace(victim.alert.source, offset=1)
    lie = changed(victim, source=source, id="0d9d2e1c-5b0e-5a53-9f0b-1f7c2f3a4b5c")

    (finding,) = await verify(engine, shelf, [lie])

    assert finding.verdict == "not-reproduced"


async def test_another_model_is_named_with_what_is_there(engine: Engine) -> None:
    shelf, _ = await a_stay(engine)
    victim = next(a for a in await alerts_of(shelf) if a.alert.model.name == "vitals")
    model = msgspec.structs.replace(victim.alert.model, digest="0" * 64)

    (finding,) = await verify(engine, shelf, [changed(victim, model=model)])

    assert finding.verdict == "other-model"
    assert "0" * 64 in finding.notes[0]
    assert engine.config.digest in finding.notes[0]


async def test_another_cluster_and_a_record_past_the_end_are_other_logs(engine: Engine) -> None:
    shelf, _ = await a_stay(engine)
    alert = (await alerts_of(shelf))[0]
    source = msgspec.structs.replace(alert.alert.source, offset=10_000)

    (there,) = await verify(engine, shelf, [alert], cluster="another")
    (beyond,) = await verify(engine, shelf, [changed(alert, source=source)])

    assert verdicts([there, beyond]) == ["other-log", "other-log"]
    assert "10000" in beyond.notes[0]


async def expired(path: LocalPath, shelf: Shelf) -> None:
    """What a timer publishes once everybody has been silent for long."""
    before = len(path.outbox.messages)
    path.partition.seen_s.clear()
    path.partition.began_s = float("-inf")
    await path.pipeline.expire_silent(path.partition, path.partition.stream_ms() + 100 * HOUR)
    for message in path.outbox.messages[before:]:
        shelf.put(message.key, message.value)


@pytest.mark.parametrize("silent_h", [None, 20, 60], ids=["timer", "later record", "starts anew"])
async def test_expired_alerts_verify(engine: Engine, silent_h: int | None) -> None:
    ill = course("p-1", 0, T0, UP_AND_DOWN[:12])
    later = [] if silent_h is None else course("p-1", 500, T0 + (11 + silent_h) * HOUR, [0.0])
    other = course("p-2", 0, T0 + 9 * HOUR, [0.0] * 20)
    shelf, path = await published(engine, mixed(ill, other, later))
    if silent_h is None:
        await expired(path, shelf)
    alerts = await alerts_of(shelf)
    assert transitions(alerts) >= {("vitals", "expired"), ("news2", "expired")}

    assert verdicts(await verify(engine, shelf)) == ["verified"] * len(alerts)
    forged = [changed(a, severity="low") for a in alerts if a.alert.transition == "expired"]
    assert verdicts(await verify(engine, shelf, forged)) == ["differs"] * len(forged)


async def test_an_expiry_under_the_policy_of_the_last_record_verifies(engine: Engine) -> None:
    """A policy changes while a patient is silent: the old one ends the episode, in a timer's words too."""
    ill, back = course("p-1", 0, T0, UP_AND_DOWN[:12]), course("p-1", 500, T0 + 40 * HOUR, [0.0])
    vitals = mixed(ill, back)
    change = PolicyChange("vitals", 2, moment(T0 + 30 * HOUR), update_delta=0.5, reason="test")
    policies = policies_of(engine, change)
    path, shelf = LocalPath(engine), Shelf(vitals)
    path.pipeline.policies = policies
    await path.process(vitals)
    for message in path.outbox.of(ALERTS):
        shelf.put(message.key, message.value)
    (ended,) = [
        a for a in await alerts_of(shelf) if a.alert.transition == "expired" and a.alert.points is None
    ]
    assert ended.alert.policy_version == "1"
    early = policies_of(engine, PolicyChange("vitals", 2, moment(T0), update_delta=0.5, reason="test"))

    (finding,) = await verify(engine, shelf, [ended], policies=policies)
    (other,) = await verify(engine, shelf, [ended], policies=early)

    assert finding.verified
    assert "policy_version" in {difference.field for difference in other.differences}


async def test_a_policy_that_is_not_in_force_is_named(engine: Engine) -> None:
    shelf, _ = await a_stay(engine)
    policies = policies_of(engine, PolicyChange("vitals", 7, moment(T0), update_delta=0.5, reason="test"))
    alert = next(a for a in await alerts_of(shelf) if a.alert.model.name == "vitals")

    (finding,) = await verify(engine, shelf, [alert], policies=policies)

    assert finding.verdict == "differs"
    assert any("policy version 1;" in note and "1+" in note for note in finding.notes)


async def test_what_was_said_of_alerts_counts_as_it_did_live(engine: Engine) -> None:
    """Feedback keeps an episode quiet; it is a record of the patient's, and read again with the others."""
    ill = course("p-1", 0, T0, UP_AND_DOWN)
    loud, _ = await published(engine, ill)
    raised = next(a.alert for a in await alerts_of(loud) if a.alert.transition == "escalated")
    at = raised.source.offset + 1
    feedback = test_feedback.record(at, test_feedback.said(raised, "acknowledged"), ill[at - 1].timestamp)
    vitals = [*ill[:at], feedback, *(r._replace(offset=r.offset + 1) for r in ill[at:])]

    quiet, _ = await published(engine, vitals)

    alerts = await alerts_of(quiet)
    assert len(alerts) < len(await alerts_of(loud))
    assert verdicts(await verify(engine, quiet)) == ["verified"] * len(alerts)


LONG = [0.0] + [1.0] * 34 + [0.0] * 9
"""Four hours apart: an episode that is open for longer than the rebuild horizon of 120 h."""


async def test_the_end_of_a_long_episode_verifies_from_the_horizon(engine: Engine) -> None:
    shelf, _ = await published(
        engine, mixed(course("p-1", 0, T0, LONG, step_h=4), course("p-2", 0, T0, [0.0] * len(LONG), step_h=4))
    )
    ends = [a for a in await alerts_of(shelf) if a.alert.transition == "resolved"]
    assert transitions(ends) == {("vitals", "resolved"), ("news2", "resolved")}

    findings = await verify(engine, shelf, ends)

    assert verdicts(findings) == ["verified", "verified"]
    assert {finding.reach for finding in findings} == {"horizon"}
    assert shelf.read_from[0] > 10


async def test_what_was_said_once_long_ago_is_found_from_the_first_record(engine: Engine) -> None:
    """The age, stated at admission alone, is older than the horizon; the worker still knew it."""
    shelf, _ = await published(engine, course("p-1", 0, T0, LONG, step_h=4, aged_once=True))
    end = [a for a in await alerts_of(shelf) if a.alert.transition == "resolved" and a.alert.points is None]

    findings = await verify(engine, shelf, end)

    assert verdicts(findings) == ["verified"]
    assert findings[0].reach == "whole"
    assert shelf.read_from[-1] == 0 < shelf.read_from[0]


async def test_a_log_whose_beginning_is_deleted(engine: Engine) -> None:
    shelf, _ = await published(engine, course("p-1", 0, T0, LONG, step_h=4))
    alerts = await alerts_of(shelf)
    first = sorted({alert.alert.source.offset for alert in alerts})[1]
    shelf.delete_before(first)

    findings = await verify(engine, shelf)

    gone = [f for f in findings if f.published.alert.source.offset < first]
    assert verdicts(gone) == ["incomplete-history"] * len(gone) != []
    assert "is deleted" in gone[0].notes[0]
    ends = [f for f in findings if f.published.alert.transition == "resolved"]
    assert len(ends) == 2
    assert {(f.verdict, f.reach) for f in ends} == {("verified", "horizon")}
    # Those whose records are there, and not all of their windows: never said to be false.
    cut = [f for f in findings if f.published.alert.source.offset == first]
    assert {f.verdict for f in cut} <= {"incomplete-history", "verified"}
    assert "incomplete-history" in verdicts(cut)
    assert any("reaches" in note for f in cut for note in f.notes)


async def test_alerts_of_a_worker_that_was_restarted_in_between_verify(engine: Engine) -> None:
    """Read again from a checkpoint, the same alerts come twice; each copy verifies."""
    shelf, _ = await a_stay(engine)
    for again in await alerts_of(shelf):
        shelf.put(again.key, again.value)
    findings = await verify(engine, shelf)
    assert verdicts(findings) == ["verified"] * len(shelf.topics[ALERTS])


async def test_what_is_no_alert_is_told_by_its_place(engine: Engine) -> None:
    shelf, _ = await a_stay(engine)
    shelf.put(b"p-1", b"{}")
    found = await find(shelf, ALERTS, [PLACE.partition], lambda record: True)
    assert found.unreadable == [(PLACE.partition, len(found.alerts))]


@pytest.mark.parametrize(
    ("borders", "cut"),
    [([], [[2, 3, 5, 9]]), ([3], [[2, 3], [5, 9]]), ([4], [[2, 3], [5, 9]]), ([0, 9, 20], [[2, 3, 5, 9]]),
     ([2, 3], [[2], [3], [5, 9]])],
)  # fmt: skip
def test_records_are_cut_after_a_border(borders: list[int], cut: list[list[int]]) -> None:
    records = [Record(offset, 0, None, None) for offset in (2, 3, 5, 9)]
    assert [[r.offset for r in piece] for piece in pieces(records, borders)] == cut


async def test_the_first_record_at_a_time_is_found_whatever_the_broker_says_before_it(engine: Engine) -> None:
    class Early(Shelf):
        async def offset_at(self, topic: str, partition: int, time_ms: int) -> int | None:
            return 0

    shelf = Early(course("p-1", 0, T0, [0.0] * 5))
    assert await first_at(shelf, PLACE.topic, PLACE.partition, T0 + 2 * HOUR) == 2
    assert await first_at(shelf, PLACE.topic, PLACE.partition, T0 + 9 * HOUR) == 5
