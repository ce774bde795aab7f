"""Findings as observations of their patients: what they leave in the state, tell in alerts, and raise."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engines.engine import Engine
from engines.errors import KindError, RepositoryError
from schemas.messages import Alert
from schemas.policy_change import PolicyChange
from tests.worker.records import (
    HOUR,
    IMAGING,
    MINUTE,
    NEWS2,
    PLACE,
    PNEUMONIA,
    T0,
    LocalPath,
    Outbox,
    Record,
    observation,
    rfc3339,
    worsening,
)
from tests.worker.records import record as vitals_record
from tests.worker.shelf import published
from tests.worker.test_audit import SETTINGS, alerts_of, verdicts
from tests.worker.test_checkpoint import Life, ListLog, ids, remains
from tests.worker.test_feedback import course, said
from tests.worker.test_feedback import record as feedback_record
from worker import config
from worker.alert_log import enter, no_alerts
from worker.audit import Auditor
from worker.codec import decode, encode_hot
from worker.decode import FINDING_TYPE
from worker.errors import EngineDownError
from worker.findings import KEPT_MODELS
from worker.policies import NO_IMAGING, Policies, imaging_config, needed_s
from worker.rerun import Rerun
from worker.restore import adopt_episodes
from worker.store import Store

HEADERS = (("content-type", FINDING_TYPE),)


def finding(patient: str, time_ms: int, risk: float, **fields: Any) -> dict[str, Any]:
    """What the shipped image model would say of a picture taken at a time."""
    return {
        "id": f"{patient}-{time_ms}",
        "patient": patient,
        "time": rfc3339(time_ms),
        "outcome": PNEUMONIA.outcome,
        "risk": risk,
        "classes": [
            {"name": "normal", "probability": round(1 - risk, 6)},
            {"name": "pneumonia", "probability": risk},
        ],
        "findings": ["pneumonia"],
        "model": {"name": PNEUMONIA.name, "version": 7, "digest": "d" * 64},
        "backend": "onnxruntime",
        "source": {"cluster": "c", "topic": "imaging", "partition": 1, "offset": 5},
        "image_sha256": "a" * 64,
        "modality": "DX",
        "body_part": "CHEST",
        "view": "AP",
        "quality": ["low-contrast"],
        **fields,
    }


def record(offset: int, content: Mapping[str, Any], timestamp: int) -> Record:
    return Record(offset, timestamp, content["patient"].encode(), msgspec.json.encode(content), HEADERS)


def pictured(
    offset: int, patient: str, time_ms: int, risk: float, *, after_ms: int = 0, **fields: Any
) -> Record:
    """A finding that reaches the log some time after the picture was taken."""
    return record(offset, finding(patient, time_ms, risk, **fields), time_ms + after_ms)


def beat(offset: int, patient: str, time_ms: int, rate: float = 80.0) -> Record:
    return vitals_record(offset, patient, time_ms, observation("heart_rate", rate))


def told(alerts: Sequence[Alert]) -> list[tuple[str, str]]:
    return [(alert.transition, alert.severity) for alert in alerts]


async def test_a_finding_may_be_the_first_that_is_known_of_a_patient(engine: Engine) -> None:
    path = LocalPath(engine)

    assert await path.process([pictured(0, "p", T0, 0.95)]) == ["stored"]

    (alert,) = path.outbox.imaged
    assert (alert.transition, alert.severity, alert.risk, alert.threshold) == ("raised", "high", 0.95, 0.9)
    assert (alert.model.version, alert.model.digest, alert.backend) == (7, "d" * 64, "onnxruntime")
    assert (alert.outcome, alert.points, alert.inputs) == (PNEUMONIA.outcome, None, ())
    assert (alert.news2, alert.qsofa, alert.mews) == (None, None, None)
    (found,) = alert.findings
    assert (found.id, found.risk, found.age_s, found.model) == (f"p-{T0}", 0.95, 0.0, alert.model)
    assert [(one.name, one.probability) for one in found.classes] == [("pneumonia", 0.95)]
    assert (found.modality, found.body_part, found.view, found.quality) == (
        "DX", "CHEST", "AP", ("low-contrast",),
    )  # fmt: skip
    assert path.partition.patients["p"].open == -1
    assert not path.outbox.warnings
    assert not path.outbox.alerts


async def test_it_stands_in_every_alert_with_its_age(engine: Engine) -> None:
    path = LocalPath(engine)
    await path.process([pictured(0, "p", T0 - HOUR, 0.2), *worsening("p", 1, 14)])

    others = [*path.outbox.alerts, *path.outbox.warnings]
    assert path.outbox.alerts
    assert path.outbox.warnings
    for alert in others:
        (found,) = alert.findings
        assert found.age_s == (alert.time - found.time).total_seconds() > 0
        assert found.risk == 0.2
    assert not path.outbox.imaged


async def test_news2_stands_beside_an_alert_of_a_picture_and_times_are_its_patients(engine: Engine) -> None:
    path = LocalPath(engine)
    ill = worsening("p", 0, 8)
    taken = T0 + 7 * HOUR - 20 * MINUTE
    await path.process([*ill, pictured(8, "p", taken, 0.6, after_ms=30 * MINUTE)])

    (alert,) = path.outbox.imaged
    assert alert.time.timestamp() * 1000 == T0 + 7 * HOUR
    assert alert.findings[0].age_s == 20 * 60
    assert alert.news2 is not None
    assert alert.news2.low >= 7
    assert alert.source.offset == 8
    assert told([alert]) == [("raised", "elevated")]


async def test_vital_signs_are_decided_on_as_without_findings(engine: Engine) -> None:
    ill = [one._replace(offset=2 * n) for n, one in enumerate(worsening("p", 0, 20))]
    plain, path = LocalPath(engine), LocalPath(engine)
    await plain.process(ill)
    between = [pictured(one.offset + 1, "p", one.timestamp, 0.3) for one in ill]
    await path.process(sorted([*ill, *between], key=lambda one: one.offset))

    def without(alerts: Sequence[Alert]) -> list[Alert]:
        return [msgspec.structs.replace(alert, findings=()) for alert in alerts]

    assert without(path.outbox.alerts) == plain.outbox.alerts
    assert without(path.outbox.warnings) == plain.outbox.warnings
    assert path.outbox.scores == plain.outbox.scores


async def test_other_models_findings_are_told_but_raise_nothing(engine: Engine) -> None:
    path = LocalPath(engine)
    other = {"name": "fracture", "version": 1, "digest": "f" * 64}
    await path.process([pictured(0, "p", T0, 0.99, model=other), *worsening("p", 1, 12)])

    assert not path.outbox.imaged
    assert path.outbox.alerts[0].findings[0].model.name == "fracture"


async def test_the_newest_of_each_model_is_kept_and_of_some_models_alone(engine: Engine) -> None:
    path = LocalPath(engine)
    models = [{"name": f"m{n}", "version": 1, "digest": "0"} for n in range(KEPT_MODELS + 2)]
    fates = await path.process(
        [pictured(n, "p", T0 + n, 0.5, model=model, id=f"i{n}") for n, model in enumerate(models)]
    )
    late = pictured(20, "p", T0, 0.1, model=models[-1], id="late")
    oldest = pictured(21, "p", T0 - 1, 0.1, model=models[0], id="oldest")
    equal = pictured(22, "p", T0 + 5, 0.2, model=models[5], id="i6")

    assert fates == ["stored"] * len(models)
    assert await path.process([late, oldest, equal]) == ["stored"] * 3
    kept = path.partition.patients["p"].findings
    assert [(one.by.name, one.risk) for one in kept] == [("m2", 0.5), ("m3", 0.5), ("m4", 0.5), ("m5", 0.2)]


async def test_twice_is_once(engine: Engine) -> None:
    path = LocalPath(engine)
    first = pictured(0, "p", T0, 0.95)
    vitals = vitals_record(2, "p", T0 + 1, observation("heart_rate", 80), event_id=f"p-{T0}")
    assert await path.process([first, first._replace(offset=1), vitals]) == ["stored", "duplicate", "scored"]
    # Long after its id was forgotten among others, it is no newer than the one that is kept.
    await path.process([beat(n, "p", T0 + n * 1000) for n in range(3, 90)])
    before = path.partition.patients["p"].findings
    assert await path.process([first._replace(offset=90)]) == ["stored"]
    assert path.partition.patients["p"].findings == before
    assert len(path.outbox.imaged) == 1


@pytest.mark.parametrize(
    ("fields", "reason", "place"),
    [
        ({"time": "2020-01-01T00:00:00Z"}, "implausible-time", "$.time"),
        ({"time": rfc3339(T0 + 2 * HOUR)}, "implausible-time", "$.time"),
        ({"time": rfc3339(T0 - 48 * HOUR - 1000)}, "too-late", "$.time"),
        ({"risk": 1.2}, "invalid-message", "$.risk"),
        ({"findings": ["cancer"]}, "invalid-message", "$.findings"),
        ({"model": {"name": "", "version": 1, "digest": ""}}, "invalid-message", "$.model.name"),
        ({"model": {"name": "m" * 65, "version": 1, "digest": ""}}, "invalid-message", "$.model.name"),
        ({"model": {"name": "m", "version": 1 << 64, "digest": ""}}, "invalid-message", "$.model.version"),
        ({"model": {"name": "m", "version": 1, "digest": "d" * 129}}, "invalid-message", "$.model.digest"),
        ({"patient": "q"}, "key-mismatch", "$.patient"),
    ],
)
async def test_what_cannot_be_used_is_dead_lettered(
    engine: Engine, fields: dict[str, Any], reason: str, place: str
) -> None:
    path = LocalPath(engine)
    await path.process([beat(0, "p", T0)])
    content = finding("p", T0, 0.95) | fields
    bad = Record(1, T0, b"p", msgspec.json.encode(content), HEADERS)

    assert await path.process([bad]) == ["dead_lettered"]
    (letter,) = path.outbox.dead_letters
    assert (letter.reason, letter.rejections[0].path) == (reason, place)
    assert path.partition.patients["p"].findings == ()
    assert not path.outbox.imaged


@pytest.mark.parametrize(
    "value", [b"{", b"[]", b"\xff", b'{"a":' * 5000, b'{"id": "a", "id": "b"}', b'{"risk": 1e999}']
)
async def test_bytes_that_are_no_finding(engine: Engine, value: bytes) -> None:
    path = LocalPath(engine)
    assert await path.process([Record(0, T0, b"p", value, HEADERS)]) == ["dead_lettered"]
    assert path.outbox.dead_letters[0].reason in {"invalid-json", "invalid-message"}


async def test_two_keys_of_one_name(engine: Engine) -> None:
    path = LocalPath(engine)
    value = msgspec.json.encode(finding("p", T0, 0.5))[:-1] + b',"risk":0.9}'
    assert await path.process([Record(0, T0, b"p", value, HEADERS)]) == ["dead_lettered"]
    assert path.outbox.dead_letters[0].reason == "duplicate-key"


async def test_an_episode_goes_by_the_image_models_policy(engine: Engine) -> None:
    path = LocalPath(engine)
    risks = [(0, 0.55), (2, 0.95), (3, 0.2), (7, 0.2), (8, 0.95), (12, 0.95)]
    await path.process([pictured(n, "p", T0 + h * HOUR, risk) for n, (h, risk) in enumerate(risks)])

    assert told(path.outbox.imaged) == [
        ("raised", "elevated"),
        ("escalated", "high"),
        ("resolved", "high"),
        ("raised", "high"),
    ]
    assert len({alert.id for alert in path.outbox.imaged}) == 4
    assert {alert.policy_version for alert in path.outbox.imaged} == {PNEUMONIA.policy.version}


async def test_any_record_brings_out_the_expiry(engine: Engine) -> None:
    path = LocalPath(engine)
    await path.process([pictured(0, "p", T0, 0.95)])
    await path.process([beat(1 + n, "p", T0 + (n + 1) * 24 * HOUR) for n in range(3)])

    first, last = path.outbox.imaged
    assert (last.transition, last.episode, last.model, last.findings) == (
        "expired", first.episode, first.model, (),
    )  # fmt: skip
    assert last.time == last.expires_at == first.expires_at
    assert path.partition.patients["p"].latches["imaging"].trace is None
    assert path.partition.patients["p"].findings == ()


@pytest.mark.parametrize("way", ["timer", "record", "next finding", "starts anew"])
async def test_the_expiry_is_the_same_whatever_brings_it_out(engine: Engine, way: str) -> None:
    path = LocalPath(engine)
    # The picture is a day old when it is decided on, so it is forgotten before its episode expires.
    await path.process([beat(0, "p", T0), pictured(1, "p", T0 - 24 * HOUR, 0.95, after_ms=24 * HOUR)])
    if way == "timer":
        path.partition.seen_s.clear()
        path.partition.began_s = float("-inf")
        await path.pipeline.expire_silent(path.partition, T0 + 49 * HOUR)
        stored = decode(encode_hot(path.partition.patients["p"], "m"), {}, "m")
        assert stored.latches["imaging"].episode is not None
    elif way == "record":
        await path.process([beat(2, "p", T0 + 30 * HOUR), beat(3, "p", T0 + 49 * HOUR)])
    elif way == "next finding":
        other = {"name": PNEUMONIA.name, "version": 8, "digest": "e" * 64}
        await path.process([
            beat(2, "p", T0 + 30 * HOUR), pictured(3, "p", T0 + 49 * HOUR, 0.1, model=other),
        ])  # fmt: skip
    else:
        await path.process([beat(2, "p", T0 + 100 * HOUR)])

    (value,) = [
        message.value
        for message in path.outbox.by_voice()[PNEUMONIA.name]
        if msgspec.json.decode(message.value, type=Alert).transition == "expired"
    ]
    alert = msgspec.json.decode(value, type=Alert)
    assert (alert.model.version, alert.source.offset) == (7, 1)
    assert alert.time.timestamp() * 1000 == T0 + 48 * HOUR
    again = LocalPath(engine)
    await again.process([
        beat(0, "p", T0), pictured(1, "p", T0 - 24 * HOUR, 0.95, after_ms=24 * HOUR),
        beat(2, "p", T0 + 100 * HOUR),
    ])  # fmt: skip
    assert value == again.outbox.by_voice()[PNEUMONIA.name][-1].value


async def test_what_is_said_of_an_alert_keeps_its_episode_quiet(engine: Engine) -> None:
    first, second = pictured(0, "p", T0, 0.95), pictured(2, "p", T0 + 5 * HOUR, 0.7)
    loud = LocalPath(engine)
    await loud.process([first, second])
    assert told(loud.outbox.imaged)[1:] == [("updated", "high")]

    path = LocalPath(engine)
    await path.process([first])
    content = said(path.outbox.imaged[0], time=rfc3339(T0))
    assert await path.process([feedback_record(1, content, T0), second]) == ["stored", "stored"]
    assert len(path.outbox.imaged) == 1
    quiet = path.partition.patients["p"].latches["imaging"].quiet
    assert quiet is not None
    assert quiet.opened == 0


async def test_changes_of_its_policy_are_data(engine: Engine) -> None:
    path = LocalPath(engine)
    levels = [{"severity": "elevated", "enter": 0.1}, {"severity": "high", "enter": 0.9}]
    fields = {"model": PNEUMONIA.name, "version": 1, "effective_from": "2026-01-01T01:00:00Z"}
    change = msgspec.convert(fields | {"patient": "p", "levels": levels, "exit": 0.05}, PolicyChange)
    late = msgspec.convert(fields | {"resolve_s": 3600.0}, PolicyChange)
    policies = path.pipeline.policies
    assert policies.replace("file", [change]) == []
    await path.process([pictured(0, "p", T0, 0.2), pictured(1, "p", T0 + HOUR, 0.2)])

    (alert,) = path.outbox.imaged
    assert (alert.source.offset, alert.policy_version) == (1, "1+patient.1")
    bounded = Policies("vitals", engine.config.policy, NEWS2, 120 * 3600.0, IMAGING)
    (complaint,) = bounded.replace("file", [change, late])
    assert "persistence_s and resolve_s may be 0 s at most" in complaint


def test_the_default_horizon_serves_the_shipped_image_model() -> None:
    hours = config.load().rebuild_horizon_h
    assert needed_s("imaging", PNEUMONIA.policy) / 3600 <= hours
    assert needed_s("imaging", NO_IMAGING) / 3600 <= hours


def test_the_imaging_model_must_be_one(tmp_path: Path) -> None:
    assert imaging_config(config.load(imaging_model="")) is None
    with pytest.raises(KindError, match="imaging_model must name an image model"):
        imaging_config(config.load(imaging_model="vitals"))
    with pytest.raises(RepositoryError, match="no model 'pneumonia'"):
        imaging_config(config.load(imaging_model="pneumonia", model_repository=tmp_path))
    assert imaging_config(config.load(model_repository=tmp_path)) is None
    assert imaging_config(config.load()) == PNEUMONIA


async def test_once_no_imaging_model_is_named_its_open_episodes_end(engine: Engine) -> None:
    path = LocalPath(engine)
    await path.process([pictured(0, "p", T0, 0.95)])
    path.pipeline.policies = Policies(engine.config.name, engine.config.policy, NEWS2)
    await path.process([pictured(1, "p", T0 + HOUR, 0.99), beat(2, "p", T0 + 50 * HOUR)])

    assert [alert.transition for alert in path.outbox.imaged] == ["raised", "expired"]


def with_pictures(log: Sequence[Record]) -> ListLog:
    """The log with room after each record: a picture every few hours, and of one patient before all else."""
    risks = (0.2, 0.6, 0.95, 0.7, 0.45, 0.1, 0.97, 0.5)
    records = [pictured(0, "a", T0 - HOUR, 0.7)]
    for n, one in enumerate(log):
        offset, patient = 20 * (n + 1), (one.key or b"").decode()
        records.append(one._replace(offset=offset))
        if n % 5 == 0:
            risk = risks[n // 10 % len(risks)]
            records.append(pictured(offset + 1, patient, one.timestamp - HOUR, risk, after_ms=HOUR))
        if n % 11 == 0:
            other = {"name": f"m{n % 5}", "version": n, "digest": "0"}
            records.append(
                pictured(offset + 2, patient, one.timestamp, 0.5, model=other, id=f"{patient}-{n}")
            )
    return ListLog(records)


async def undisturbed(engine: Engine, log: ListLog, chunk: int = 512) -> LocalPath:
    path = LocalPath(engine)
    await path.process(log.records, chunk)
    return path


async def test_killed_rebuilt_or_cut_otherwise_it_is_the_same(engine: Engine, store: Store) -> None:
    courses = [*course("a", 60, T0), *course("b", 50, T0 + 90_000)]
    courses.sort(key=lambda one: one.timestamp)
    unsaid = await undisturbed(engine, with_pictures(courses))
    plain = with_pictures(courses)
    records: list[Record] = []
    for one in plain.records:
        records.append(one)
        for alert in unsaid.outbox.imaged[::2]:
            if alert.source.offset == one.offset and alert.transition != "expired":
                content = said(alert, time=rfc3339(one.timestamp))
                records.append(feedback_record(one.offset + 5, content, one.timestamp))
    log = ListLog(records)
    whole = await undisturbed(engine, log)
    assert {"raised", "escalated", "resolved"} <= {alert.transition for alert in whole.outbox.imaged}
    assert len(whole.outbox.imaged) < len(unsaid.outbox.imaged), "nothing was kept quiet"
    assert not whole.outbox.dead_letters

    for chunk in (1, 5):
        again = await undisturbed(engine, log, chunk)
        assert again.outbox.by_voice() == whole.outbox.by_voice()
        assert remains(again.partition) == remains(whole.partition)

    stops = [log.records[n].offset + 1 for n in (50, 70)]
    end, outbox = log.records[-1].offset + 1, Outbox()
    life = Life(engine, store, log, outbox)
    await life.begin()
    await life.work(stops[0], 140)
    assert await life.checkpointer.checkpoint(life.partition)
    await life.work(stops[1], 140)
    restored = Life(engine, store, log, outbox)
    await restored.begin()
    await restored.work(end, 140)
    assert ids(outbox) == ids(whole.outbox)
    assert remains(restored.partition) == remains(whole.partition)

    assert await restored.checkpointer.checkpoint(restored.partition)
    await store._redis.flushall()
    rebuilt = Life(engine, store, log, outbox)
    await rebuilt.begin()
    assert rebuilt.rebuilt
    await rebuilt.work(end, 140)
    assert remains(rebuilt.partition) == remains(whole.partition)


async def test_a_rebuild_from_its_horizon_has_what_findings_left(engine: Engine) -> None:
    """As late as a rebuild may have to know of a finding: silent for two days, of a picture two days old."""
    past = [pictured(0, "p", T0 - 20 * HOUR, 0.95), *(beat(1 + n, "p", T0 - n) for n in range(3))]
    seen = [pictured(10, "p", T0, 0.7), beat(11, "p", T0 + 47 * HOUR)]
    back = beat(12, "p", T0 + 94 * HOUR)
    whole = LocalPath(engine)
    await whole.process([*past, *seen])
    rebuilt = LocalPath(engine)
    rebuilt.partition.live_from = 12
    await rebuilt.process(seen)
    known = no_alerts()
    for alert in whole.outbox.imaged:
        enter(known, alert, PLACE, rebuilt.pipeline.policies.names, 12)
    adopt_episodes(rebuilt.partition, known, rebuilt.pipeline.policies)
    rebuilt.partition.position = 12
    latches = [path.partition.patients["p"].latches["imaging"] for path in (whole, rebuilt)]
    assert latches[0].episode == latches[1].episode is not None
    assert rebuilt.partition.patients["p"].findings == whole.partition.patients["p"].findings
    before = len(whole.outbox.messages)
    await whole.process([back])
    await rebuilt.process([back])
    (expired,) = rebuilt.outbox.by_voice()[PNEUMONIA.name]
    assert expired == whole.outbox.by_voice()[PNEUMONIA.name][-1]
    assert expired in whole.outbox.messages[before:]


async def test_an_engine_that_does_not_answer_holds_up_no_finding(engine: Engine) -> None:
    path, quiet = LocalPath(engine), LocalPath(engine)
    log = with_pictures(course("a", 30, T0)).records
    await quiet.process(log)

    async def down(inputs: Any) -> Any:
        raise EngineDownError("gone")

    path.served.run = down
    await path.process(log, 5)

    assert path.partition.unanswered is not None
    assert path.outbox.by_voice().keys() == {PNEUMONIA.name, "news2"}
    for name, messages in path.outbox.by_voice().items():
        assert messages == quiet.outbox.by_voice()[name]
    # The lane reads again from its checkpoint, and says none of it twice.
    before = len(path.outbox.imaged)
    path.served.run = path.run
    path.partition = type(path.partition)(PLACE, 0, 0)
    path.partition.warned = log[-1].offset + 1
    await path.process(log, 7)
    assert len(path.outbox.imaged) == before
    assert path.outbox.alerts == quiet.outbox.alerts


async def test_alerts_of_findings_are_computed_again_byte_for_byte(engine: Engine) -> None:
    records = with_pictures([*course("a", 24, T0)]).records
    ended = beat(records[-1].offset + 20, "a", T0 + 80 * HOUR)
    shelf, _ = await published(engine, [*records, ended])
    alerts = await alerts_of(shelf)
    assert {(a.alert.model.name, a.alert.transition) for a in alerts} >= {
        (PNEUMONIA.name, "raised"), (PNEUMONIA.name, "expired"), ("vitals", "raised"), ("news2", "raised"),
    }  # fmt: skip
    policies = Policies(engine.config.name, engine.config.policy, NEWS2, imaging=IMAGING)
    rerun = Rerun(engine, policies, SETTINGS)
    try:
        auditor = Auditor(shelf, rerun, SETTINGS, PLACE.cluster)
        assert set(verdicts(await auditor.verify(alerts))) == {"verified"}
        mine = next(a for a in alerts if a.alert.model.name == PNEUMONIA.name)
        forged = msgspec.structs.replace(mine.alert, backend="tensorrt")
        value = msgspec.json.encode(forged)
        (found,) = await auditor.verify([mine._replace(alert=forged, value=value)])
        assert (found.verdict, [d.field for d in found.differences]) == ("differs", ["backend"])
    finally:
        await rerun.close()
