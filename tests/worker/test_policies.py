"""Which policy is in force for whom and when; that it changes while a worker runs; what alerts say of it."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engines.engine import Engine
from schemas import policy_change
from schemas.errors import PolicyError
from schemas.news2_policy import News2Policy
from schemas.policy_change import PolicyChange
from tests.worker.records import HOUR, T0, LocalPath, Outbox, Record, observation, record, rfc3339, worsening
from tests.worker.test_checkpoint import Life, ListLog, ids, remains
from tests.worker.test_feedback import course
from worker import config, early_warning, embedded, metrics
from worker.cluster import describe
from worker.errors import FatalError
from worker.messages import moment
from worker.plan import Plan
from worker.policies import Policies, shipped
from worker.policy_source import PolicyFile, PolicyTopic, published_changes
from worker.publish import Outgoing, Publisher
from worker.store import Store

LATE = [{"severity": "elevated", "enter": 0.97}]


def change(model: str = "vitals", at_ms: int = 0, **fields: Any) -> PolicyChange:
    stated = {"model": model, "version": 1, "effective_from": rfc3339(at_ms), **fields}
    return policy_change.decode(msgspec.json.encode(stated))


def in_unit(record: Record, unit: str) -> Record:
    assert record.value is not None
    return record._replace(value=record.value[:-1] + b', "care_unit": "%s"}' % unit.encode())


@pytest.fixture
def policies(engine: Engine) -> Policies:
    return shipped(config.load(), engine.config)


def test_the_narrowest_scope_and_the_newest_time_stand(policies: Policies) -> None:
    policies.replace(
        "file",
        [
            change(update_delta=0.2),
            change(update_delta=0.3, version=2, at_ms=1000),
            change(update_delta=0.4, care_unit="ICU"),
            change(update_delta=0.5, patient="p"),
        ],
    )

    def delta(patient: str, unit: str | None, at_ms: int) -> tuple[float, str]:
        found = policies.risk(patient, unit, at_ms)
        return found.update_delta, found.version

    v = policies.shipped["risk"].version
    assert delta("q", None, -1) == (policies.shipped["risk"].update_delta, v)
    assert delta("q", None, 999) == (0.2, f"{v}+everyone.1")
    assert delta("q", None, 1000) == (0.3, f"{v}+everyone.2")
    assert delta("q", "ICU", 1000) == (0.4, f"{v}+everyone.2+unit.1")
    assert delta("p", "ICU", 1000) == (0.5, f"{v}+everyone.2+unit.1+patient.1")
    assert policies.news2("p", "ICU", 1000) is policies.shipped["news2"]
    assert policies.risk("p", "ICU", 1000) is policies.risk("p", "ICU", 2000)


def test_a_later_version_takes_an_earlier_one_back(policies: Policies) -> None:
    policies.replace("file", [change(update_delta=0.9, patient="p"), change(version=2, patient="p", at_ms=5)])

    assert policies.risk("p", None, 5).update_delta == policies.shipped["risk"].update_delta


def test_the_topic_stands_before_the_file_and_each_is_replaced_as_a_whole(policies: Policies) -> None:
    policies.replace("file", [change(update_delta=0.2), change(update_delta=0.3, patient="p")])
    policies.replace("topic", [change(update_delta=0.25)])
    assert policies.risk("q", None, 0).update_delta == 0.25

    policies.replace("topic", [])
    assert policies.risk("q", None, 0).update_delta == 0.2
    policies.replace("file", [])
    assert policies.risk("p", None, 0) is policies.shipped["risk"]


def test_what_a_rebuild_could_not_remember_is_left_out(policies: Policies) -> None:
    refused = policies.replace("file", [change(resolve_s=13 * 3600), change(resolve_s=3600, patient="p")])

    assert len(refused) == 1
    assert (
        "vitals, everyone, version 1: persistence_s, resolve_s and expiry_s may be 43200 s at most"
        in refused[0]
    )
    assert policies.risk("q", None, 0) is policies.shipped["risk"]
    assert policies.risk("p", None, 0).resolve_s == 3600


def test_another_models_changes_are_none_of_ours(policies: Policies) -> None:
    assert policies.replace("file", [change("pneumonia", update_delta=0.2)]) == []
    assert policies.risk("p", None, 0) is policies.shipped["risk"]


async def alerted(engine: Engine, changes: Sequence[PolicyChange], chunk: int = 512) -> LocalPath:
    """Two patients who decline, one of them in the ICU, under changes."""
    path = LocalPath(engine)
    assert path.pipeline.policies.replace("file", changes) == []
    ours = [in_unit(r, "ICU") if n == 0 else r for n, r in enumerate(worsening("in", 0, 20))]
    both = sorted([*ours, *worsening("out", 0, 20, T0 + 5)], key=lambda r: r.timestamp)
    await path.process([r._replace(offset=n) for n, r in enumerate(both)], chunk)
    return path


async def test_a_unit_a_patient_and_a_time(engine: Engine) -> None:
    usual = await alerted(engine, [])
    by_unit = await alerted(engine, [change(levels=LATE, exit=0.9, care_unit="ICU")])
    by_patient = await alerted(engine, [change(levels=LATE, exit=0.9, patient="out", version=4)])
    too_late = await alerted(engine, [change(levels=LATE, exit=0.9, at_ms=T0 + 30 * HOUR)])

    def who(path: LocalPath) -> set[tuple[str, str, str | None]]:
        return {(a.patient, a.policy_version, a.care_unit) for a in path.outbox.alerts}

    v = engine.config.policy.version
    assert who(usual) == {("in", v, "ICU"), ("out", v, None)}
    assert who(by_unit) == {("out", v, None)}
    assert who(by_patient) == {("in", v, "ICU")}
    assert too_late.outbox.messages == usual.outbox.messages
    assert {a.level for a in usual.outbox.alerts} <= {0, 1}


async def test_chunks_change_nothing_where_policies_change_midway(engine: Engine) -> None:
    changes = [
        change(update_delta=0.05, at_ms=T0 + 2 * HOUR),
        change(levels=[{"severity": "any", "enter": 0.1}], exit=0.05, version=2, at_ms=T0 + 3 * HOUR),
        change("news2", patient="out", scale=2, at_ms=T0 + 3 * HOUR),
        change("news2", care_unit="ICU", fresh_s=600, at_ms=T0 + 4 * HOUR),
    ]
    whole = await alerted(engine, changes)
    versions = {a.policy_version for a in [*whole.outbox.alerts, *whole.outbox.warnings]}
    assert {f"{engine.config.policy.version}+everyone.2", "1+unit.1", "1+patient.1"} <= versions

    for chunk in (1, 7):
        assert (await alerted(engine, changes, chunk)).outbox.by_voice() == whole.outbox.by_voice()


async def test_scale_2_is_one_patients(engine: Engine) -> None:
    """A saturation of 90% on air: 3 points on scale 1, none on scale 2."""
    path = LocalPath(engine)
    path.pipeline.policies.replace("file", [change("news2", patient="copd", scale=2)])
    signs = {
        "oxygen_saturation": 90,
        "fio2": 0.21,
        "heart_rate": 80,
        "respiratory_rate": 16,
        "systolic_pressure": 120,
        "temperature": 37,
        "gcs": 15,
    }
    observed = [observation(name, value) for name, value in signs.items()]
    records = [
        record(n * 2 + k, patient, T0 + n * HOUR, *observed)
        for n in range(3)
        for k, patient in enumerate(("copd", "other"))
    ]
    await path.process(records)

    assert {a.patient for a in path.outbox.warnings} == {"other"}
    scales = {score.patient: score.news2.scale for score in path.outbox.scores if score.news2}
    assert scales == {"copd": 2, "other": 1}


async def test_severities_that_changes_name_are_no_labels(engine: Engine) -> None:
    levels = [{"severity": "p-17 smith", "enter": 0.1}]
    await alerted(engine, [change(levels=levels, exit=0.05)])

    texts = [str(s.labels) for metric in metrics.alerts.collect() for s in metric.samples]
    assert not [text for text in texts if "smith" in text]
    assert metrics.alerts.labels("vitals", "raised", "other")._value.get() > 0


async def test_patients_own_policies_are_charted_together(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifty patients of a chunk on scale 2, each by a change of its own, cost what one does."""
    asked: list[int] = []
    points = early_warning.points

    def counted(policy: News2Policy, plan: Plan) -> early_warning.Points:
        asked.append(len(plan.scored))
        return points(policy, plan)

    monkeypatch.setattr(early_warning, "points", counted)
    path = LocalPath(engine)
    path.pipeline.policies.replace("file", [change("news2", patient=f"p{n}", scale=2) for n in range(50)])

    await path.process([record(n, f"p{n}", T0, observation("oxygen_saturation", 90)) for n in range(60)])

    assert len(asked) <= 4


@pytest.mark.parametrize("timer", [False, True])
async def test_an_episode_expires_by_the_policy_of_its_last_record(engine: Engine, *, timer: bool) -> None:
    """So that a timer and the patient's next record agree: what was told to have expired is raised anew."""
    path = LocalPath(engine)
    hours = [("news2", 4, 1, 0), ("news2", 12, 2, 10), ("vitals", 4, 1, 0), ("vitals", 12, 2, 10)]
    path.pipeline.policies.replace(
        "file",
        [
            change(model, T0 + at * HOUR, version=version, expiry_s=expiry_h * 3600, refractory_s=600)
            for model, expiry_h, version, at in hours
        ],
    )
    await path.process(worsening("p", 0, 8))
    if timer:
        path.partition.seen_s.clear()
        path.partition.began_s = float("-inf")
        await path.pipeline.expire_silent(path.partition, T0 + 13 * HOUR)
    ill = {"respiratory_rate": 40, "heart_rate": 150, "gcs": 3, "systolic_pressure": 60, "lactate": 14}
    values = [observation(name, value) for name, value in ill.items()]
    await path.process([record(50 + n, "p", T0 + (14 + n) * HOUR, *values) for n in range(2)])

    for alerts in (path.outbox.alerts, path.outbox.warnings):
        ended = [alert for alert in alerts if alert.transition == "expired"]
        assert {(alert.id, alert.time, alert.policy_version) for alert in ended} == {
            (ended[0].id, moment(T0 + 11 * HOUR), "1+everyone.1")
        }
        assert len(ended) == (2 if timer else 1)
        assert alerts[-1].transition == "raised"
        assert alerts[-1].policy_version == "1+everyone.2"


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while not holds():  # noqa: ASYNC110 - what is awaited sets no event
            await asyncio.sleep(0.02)


async def test_a_file_is_followed(
    policies: Policies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.policy_source.POLL_S", 0.01)
    file = tmp_path / "policies.json"
    file.write_bytes(msgspec.json.encode([change(update_delta=0.2)]))
    source = PolicyFile(file, policies)
    source.load()
    assert policies.risk("p", None, 0).update_delta == 0.2
    following = asyncio.create_task(source.follow())

    file.write_bytes(msgspec.json.encode([change(update_delta=0.3, version=2)]))
    await until(lambda: policies.risk("p", None, 0).update_delta == 0.3)
    file.write_text("[{]")
    await until(lambda: metrics.policy_refusals.labels("file")._value.get() == 1)
    file.unlink()
    await asyncio.sleep(0.05)
    assert policies.risk("p", None, 0).update_delta == 0.3
    file.write_bytes(msgspec.json.encode([change(update_delta=0.3, version=2)]))
    await until(lambda: metrics.policy_refusals.labels("file")._value.get() == 0)
    file.unlink()
    await until(lambda: metrics.policy_refusals.labels("file")._value.get() == 1)
    file.write_bytes(msgspec.json.encode([change(update_delta=0.3, version=2)]))
    await until(lambda: metrics.policy_refusals.labels("file")._value.get() == 0)
    file.write_text("[]")
    await until(lambda: policies.risk("p", None, 0) is policies.shipped["risk"])
    assert metrics.policy_refusals.labels("file")._value.get() == 0
    following.cancel()


def test_a_worker_does_not_start_on_a_file_that_cannot_be_used(policies: Policies, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="No such file"):
        PolicyFile(tmp_path / "none.json", policies).load()
    file = tmp_path / "policies.json"
    file.write_bytes(msgspec.json.encode([change(expiry_s=46 * 3600, refractory_s=0)]))
    with pytest.raises(PolicyError, match="a rebuild reads no more again"):
        PolicyFile(file, policies).load()


@pytest.mark.parametrize("key", [b"\xff", b'"\xff"', b"[" * 5000, b"", b'["\\ud800"]'])
def test_any_key_can_stand_on_the_topic(policies: Policies, key: bytes) -> None:
    topic = PolicyTopic(config.load(), 1, policies)
    for value in (b"{", msgspec.json.encode(change(update_delta=0.2)), None):
        topic._enter(Record(7, 0, key, value))
    assert topic.changes() == {}


async def test_the_topic_is_read_followed_and_refused(policies: Policies) -> None:
    with embedded.tansu() as broker:
        settings = config.load(broker=broker.address, kafka_idempotence=False, partitions=1)
        with pytest.raises(FatalError, match="topic for policies does not exist"):
            await published_changes(settings.model_copy(update={"topic_policies": ""}))
        await describe(settings, create=True)
        publisher = Publisher(settings)
        await publisher.start()

        async def send(key: bytes, value: bytes) -> None:
            await publisher.publish([Outgoing("policies", key, value, ())])

        first, second = change(update_delta=0.2), change(update_delta=0.3, version=2)
        await send(first.key, msgspec.json.encode(first))
        await send(b"other", msgspec.json.encode(second))
        await send(b"bad", b"{")
        topic = PolicyTopic(settings, settings.partitions, policies)
        await topic.load()
        assert policies.risk("p", None, 0).update_delta == 0.2
        assert metrics.policy_refusals.labels("topic")._value.get() == 2
        following = asyncio.create_task(topic.follow())

        await send(second.key.replace(b",", b", "), msgspec.json.encode(second))
        await until(lambda: policies.risk("p", None, 0).update_delta == 0.3)
        published = await published_changes(settings)
        assert published.changes.keys() == {first.key, second.key}
        assert len(published.refused) == 2
        following.cancel()
        await topic.close()
        await publisher.stop()


async def test_rebuilt_while_policies_change_it_is_the_same(engine: Engine, store: Store) -> None:
    """Levels come and go, and expiries differ, while a patient declines and recovers by turns."""
    one, three = (
        [{"severity": "high", "enter": 0.6}],
        [
            {"severity": severity, "enter": enter}
            for severity, enter in (("low", 0.05), ("mid", 0.3), ("high", 0.6))
        ],
    )
    changes = [
        change(levels=levels, exit=0.04, version=n + 1, at_ms=T0 + 5 * n * HOUR)
        for n, levels in enumerate([three, one] * 6)
    ]
    log = ListLog([r._replace(offset=n) for n, r in enumerate(course("a", 60, T0))])
    whole = LocalPath(engine)
    whole.pipeline.policies.replace("file", changes)
    await whole.process(log.records)
    assert {a.severity for a in whole.outbox.alerts} == {"low", "mid", "high"}
    for stop in range(20, 60, 4):
        outbox = Outbox()
        life = Life(engine, store, log, outbox)
        life.path.pipeline.policies.replace("file", changes)
        await life.begin()
        await life.work(stop, 60)
        assert await life.checkpointer.checkpoint(life.partition)
        await store._redis.flushall()
        rebuilt = Life(engine, store, log, outbox)
        rebuilt.path.pipeline.policies.replace("file", changes)
        await rebuilt.begin()
        assert rebuilt.rebuilt
        await rebuilt.work(60, 60)
        assert ids(outbox) == ids(whole.outbox)
        assert remains(rebuilt.partition) == remains(whole.partition)
        log.committed = None
        await store._redis.flushall()
