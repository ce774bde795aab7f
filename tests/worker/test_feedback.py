"""What people say of alerts: which records are feedback, what they do to the latches, and how they travel."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from engines.engine import Engine
from schemas.latch import Quiet
from schemas.messages import Alert, DeadLetter
from tests.worker.records import (
    HOUR,
    T0,
    TOPICS,
    LocalPath,
    Outbox,
    Record,
    observation,
    rfc3339,
    worsening,
)
from tests.worker.records import record as vitals_record
from tests.worker.test_checkpoint import Life, ListLog, ids, remains
from worker import config, embedded, metrics
from worker.carry import Carrier
from worker.cluster import Cluster, describe
from worker.codec import encode_hot
from worker.decode import FEEDBACK_TYPE
from worker.feedback_topic import feedback_load
from worker.messages import Author
from worker.partition import Place
from worker.publish import Outgoing, Publisher
from worker.store import Store

HEADERS = (("content-type", FEEDBACK_TYPE),)


def said(alert: Alert | Mapping[str, Any], action: str = "acknowledged", **fields: Any) -> dict[str, Any]:
    """Feedback that repeats its whole alert."""
    content: dict[str, Any] = msgspec.to_builtins(alert)
    patient = fields.pop("patient", content["patient"])
    time = fields.pop("time", content["time"])
    return {
        "event_id": fields.pop("event_id", f"said-{content['id']}-{action}"),
        "patient": patient,
        "time": time,
        "action": action,
        "alert": content,
        **fields,
    }


def record(offset: int, content: Mapping[str, Any], timestamp: int = 0) -> Record:
    patient = content["patient"].encode()
    return Record(offset, timestamp, patient, msgspec.json.encode(content), HEADERS)


@pytest.fixture
async def path(engine: Engine) -> LocalPath:
    """A patient about whom alerts were raised; offsets 0 to 19."""
    path = LocalPath(engine)
    await path.process(worsening("p", 0, 20))
    return path


def at(path: LocalPath) -> int:
    return path.partition.patients["p"].touched_ms


async def test_it_quietens_the_latch_of_its_alert(path: LocalPath) -> None:
    alert, warning = path.outbox.alerts[0], path.outbox.warnings[0]
    before = metrics.feedback.labels("vitals", "acknowledged", "")._value.get()

    fates = await path.process(
        [
            record(20, said(alert, time=rfc3339(at(path))), at(path)),
            record(21, said(warning, "dismissed", reason="artefact", time=rfc3339(at(path))), at(path)),
        ]
    )

    latches = path.partition.patients["p"].latches
    assert fates == ["stored", "stored"]
    assert latches["risk"].quiet == Quiet(int(alert.episode.rsplit("/", 1)[1]), alert.sequence, False)
    assert latches["news2"].quiet == Quiet(int(warning.episode.rsplit("/", 1)[1]), warning.sequence, True)
    assert not path.outbox.dead_letters
    assert metrics.feedback.labels("vitals", "acknowledged", "")._value.get() == before + 1


async def test_late_feedback_on_an_older_alert_takes_nothing_back(path: LocalPath) -> None:
    first, last = path.outbox.alerts[0], path.outbox.alerts[-1]
    assert (first.episode, first.sequence) < (last.episode, last.sequence)
    for n, alert in enumerate((last, first)):
        await path.process([record(20 + n, said(alert, time=rfc3339(at(path))), at(path))])

    quiet = path.partition.patients["p"].latches["risk"].quiet
    assert quiet is not None
    assert quiet.sequence == last.sequence


async def test_twice_is_once(path: LocalPath) -> None:
    content = said(path.outbox.alerts[0], time=rfc3339(at(path)))

    assert await path.process([record(20, content, at(path)), record(21, content, at(path))]) == [
        "stored",
        "duplicate",
    ]


async def test_an_event_id_that_a_vitals_record_has_too_makes_that_no_duplicate(path: LocalPath) -> None:
    content = said(path.outbox.alerts[0], time=rfc3339(at(path)), event_id="1042")
    vitals = vitals_record(21, "p", at(path) + 1, observation("heart_rate", 190), event_id="1042")

    assert await path.process([record(20, content, at(path)), vitals]) == ["stored", "scored"]


async def test_a_sequence_that_no_alert_can_have_is_refused(path: LocalPath) -> None:
    """One that is kept must fit what is stored, or no checkpoint of the partition succeeds again."""
    content = said(path.outbox.alerts[0], time=rfc3339(at(path)))
    content["alert"] |= {"sequence": 999_999_999}
    content["alert"]["id"] = _id(content["alert"]["episode"], content["alert"])
    assert await path.process([record(20, content, at(path))]) == ["stored"]
    assert encode_hot(path.partition.patients["p"], "")

    content["event_id"] = "beyond"
    content["alert"] |= {"sequence": 1 << 64}
    content["alert"]["id"] = _id(content["alert"]["episode"], content["alert"])
    value = json.dumps(content).encode()
    assert await path.process([Record(21, at(path), b"p", value, HEADERS)]) == ["dead_lettered"]
    (letter,) = path.outbox.dead_letters
    assert letter.rejections[0].path == "$.alert.sequence"


async def test_of_a_patient_who_is_not_known_nothing_is_kept(path: LocalPath) -> None:
    content = said(path.outbox.alerts[0], patient="q", time=rfc3339(at(path)))

    assert await path.process([record(20, content, at(path))]) == ["stored"]
    assert set(path.partition.patients) == {"p"}


@pytest.mark.parametrize(
    ("change", "reason", "place"),
    [
        ({"alert": {"sequence": 9}}, "unknown-alert", "$.alert.id"),
        ({"alert": {"episode": "cluster/vitals/3/20"}}, "unknown-alert", "$.alert"),
        ({"alert": {"episode": "nonsense"}}, "unknown-alert", "$.alert.id"),
        ({"reason": "artefact"}, "invalid-message", "$.reason"),
        ({"action": "dismissed"}, "invalid-message", "$.reason"),
        ({"action": "dismissed", "reason": "because"}, "invalid-message", "$.reason"),
        ({"action": "liked"}, "invalid-message", "$.action"),
        ({"time": "2020-01-01T00:00:00Z"}, "implausible-time", "$.time"),
        ({"time": "2026-01-01"}, "invalid-message", "$.time"),
        ({"alert": {"model": {"name": ""}}}, "invalid-message", "$.alert.model.name"),
    ],
)
async def test_what_is_none_is_dead_lettered(
    path: LocalPath, change: dict[str, Any], reason: str, place: str
) -> None:
    content = said(path.outbox.alerts[0], time=rfc3339(at(path)))
    content["alert"] |= change.get("alert", {})
    if place == "$.alert":
        content["alert"]["id"] = _id(content["alert"]["episode"], content["alert"])
    content |= {name: value for name, value in change.items() if name != "alert"}

    assert await path.process([record(20, content, at(path))]) == ["dead_lettered"]
    (letter,) = path.outbox.dead_letters
    assert (letter.reason, letter.rejections[0].path) == (reason, place)
    assert path.partition.patients["p"].latches["risk"].quiet is None


@pytest.mark.parametrize(
    "value", [b"{", b"[]", b"\xff", b'{"a":' * 5000, b'{"event_id": "a", "event_id": "b"}']
)
async def test_bytes_that_are_no_feedback(path: LocalPath, value: bytes) -> None:
    assert await path.process([Record(20, at(path), b"p", value, HEADERS)]) == ["dead_lettered"]
    assert path.outbox.dead_letters[0].reason in ("invalid-json", "invalid-message")


async def test_another_partitions_alert_is_unknown_here(engine: Engine, path: LocalPath) -> None:
    other = LocalPath(engine, Place("cluster", "vitals", 4))
    await other.process(worsening("p", 0, 20))
    content = said(other.outbox.alerts[0], time=rfc3339(at(path)))

    assert await path.process([record(20, content, at(path))]) == ["dead_lettered"]
    assert path.outbox.dead_letters[0].reason == "unknown-alert"


def with_feedback(log: ListLog, alerts: Sequence[Alert]) -> ListLog:
    """The log, with what was said of each alert put right after the record that raised it."""
    records: list[Record] = []
    for one in log.records:
        records.append(one)
        for number, alert in enumerate(alerts):
            if alert.source.offset == one.offset and alert.transition != "expired":
                action = ("acknowledged", "dismissed", "confirmed")[number % 3]
                more = {"reason": "other"} if action == "dismissed" else {}
                content = said(alert, action, time=rfc3339(one.timestamp), **more)
                records.append(record(records[-1].offset + 1, content, one.timestamp))
    return ListLog(records)


async def undisturbed(engine: Engine, log: ListLog, chunk: int = 512) -> LocalPath:
    path = LocalPath(engine)
    await path.process(log.records, chunk)
    return path


def course(patient: str, hours: int, start_ms: int) -> list[Record]:
    """A patient who declines and recovers, by turns of eight hours."""
    ill = worsening(patient, 0, 9)
    made = []
    for hour in range(hours):
        turn = hour % 16
        like = ill[turn if turn <= 8 else 16 - turn]
        time_ms = start_ms + hour * HOUR
        content = {
            **msgspec.json.decode(like.value or b""),
            "event_id": f"{patient}-{hour}",
            "time": rfc3339(time_ms),
        }
        made.append(Record(0, time_ms, like.key, msgspec.json.encode(content)))
    return made


async def test_killed_rebuilt_or_cut_otherwise_it_is_the_same(engine: Engine, store: Store) -> None:
    """Every record stands at an offset of its own with room behind it, so that feedback moves none."""
    courses = [*course("a", 60, T0), *course("b", 50, T0 + 90_000)]
    courses.sort(key=lambda one: one.timestamp)
    plain = ListLog([one._replace(offset=20 * n) for n, one in enumerate(courses)])
    unsaid = await undisturbed(engine, plain)
    log = with_feedback(plain, [*unsaid.outbox.alerts, *unsaid.outbox.warnings])
    whole = await undisturbed(engine, log)
    assert ids(unsaid.outbox) - ids(whole.outbox), "nothing was kept quiet"
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
    stood = life.partition.position
    await life.work(stops[1], 140)
    restored = Life(engine, store, log, outbox)
    await restored.begin()
    assert restored.partition.position == stood
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


def carrier_of(path: LocalPath, cluster: Cluster) -> Carrier:
    settings = config.load()
    load = feedback_load(settings, cluster)
    return Carrier(load, settings, cluster.id, path.outbox, lambda place: Author(place, path.voices, TOPICS))


async def test_it_is_carried_to_its_patients_partition(engine: Engine) -> None:
    with embedded.tansu() as broker:
        # Tansu lets a group wait for other members for half of this.
        settings = config.load(
            broker=broker.address, kafka_idempotence=False, partitions=4, session_timeout_s=2.0
        )
        cluster = await describe(settings, create=True)
        path = LocalPath(engine, Place(cluster.id, "vitals", 3))
        await path.process(worsening("p", 0, 20))
        good = said(path.outbox.alerts[0])
        strange = {**good, "event_id": "strange", "alert": {**good["alert"], "id": "x"}}
        publisher = Publisher(settings)
        await publisher.start()
        carrier = Carrier(
            feedback_load(settings, cluster),
            settings,
            cluster.id,
            publisher.publish,
            lambda place: Author(place, path.voices, TOPICS),
        )
        carrying = asyncio.create_task(carrier.run())
        topic = settings.topic_feedback
        values = [msgspec.json.encode(content) for content in (good, strange)]
        await publisher.publish([Outgoing(topic, b"p", value, ()) for value in values])

        consumer = AIOKafkaConsumer(**settings.kafka_client(), auto_offset_reset="earliest")
        await consumer.start()
        places = [TopicPartition("vitals", 3), *(TopicPartition("dead-letters", n) for n in range(4))]
        consumer.assign(places)
        await consumer.seek_to_beginning(*places)
        async with asyncio.timeout(30):
            found = {r.topic: r for r in [await consumer.getone(), await consumer.getone()]}
        await consumer.stop()
        carrying.cancel()
        await asyncio.gather(carrying, return_exceptions=True)
        await publisher.stop()

    assert found["vitals"].key == b"p"
    assert msgspec.json.decode(found["vitals"].value) == {
        "event_id": good["event_id"],
        "patient": "p",
        "time": good["time"],
        "alert": {
            **{name: good["alert"][name] for name in ("id", "episode", "sequence", "transition", "time")},
            "model": {"name": "vitals"},
        },
        "action": "acknowledged",
        "reason": None,
        "role": "",
    }
    assert dict(found["vitals"].headers)["content-type"] == FEEDBACK_TYPE
    letter = msgspec.json.decode(found["dead-letters"].value, type=DeadLetter)
    assert (letter.reason, letter.source.topic) == ("unknown-alert", "alert-feedback")
    assert letter.value == values[1]


@pytest.mark.parametrize(
    "episode", ["c/vitals/9/1", "d/vitals/3/1", "c/other/3/1", "c/vitals/-1/1", "c/vitals/3/x", "", "/"]
)
def test_no_feedback_goes_where_no_alert_came_from(path: LocalPath, episode: str) -> None:
    carrier = carrier_of(path, Cluster("c", {"vitals": 4}, "id"))
    content = said(path.outbox.alerts[0])
    content["alert"] |= {"episode": episode, "id": _id(episode, content["alert"])}

    carried = carrier.carried(record(0, content), 2)

    assert carried.topic == "dead-letters"
    assert msgspec.json.decode(carried.value, type=DeadLetter).reason == "unknown-alert"


def test_what_a_paging_system_adds_stays_behind(path: LocalPath) -> None:
    """With the header that it is carried with, a record of the greatest size would fit no more."""
    carrier = carrier_of(path, Cluster("cluster", {"vitals": 4}, "id"))
    content = said(path.outbox.alerts[0], note="x" * 900_000)

    carried = carrier.carried(record(0, content), 2)

    assert carried.topic == "vitals"
    assert len(carried.value) < 2000


def _id(episode: str, alert: Mapping[str, Any]) -> str:
    from schemas.messages import alert_id

    return alert_id(episode, alert["model"]["name"], alert["transition"], alert["sequence"])
