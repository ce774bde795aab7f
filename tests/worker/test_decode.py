"""Any bytes get a fate; bad input hurts nothing beside it."""

import base64
import hashlib
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.engine import Engine
from schemas.messages import Observation, VitalsRecord
from tests.worker.bad_input import CASES, DUPLICATE_KEYS, Case
from tests.worker.records import MINUTE, PLACE, T0, LocalPath, Record, message, observation, record
from worker.decode import Event, Refusal, decode
from worker.messages import KEPT_BYTES, KEPT_HEADERS, moment

LIMIT = 1 << 20

FIELDS = ("event_id", "patient", "time", "observations", "code", "value", "unit", "system", "status")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.datetimes().map(str),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=6),
    max_leaves=12,
)


def _as_record(case: Case, offset: int = 0) -> Record:
    return Record(offset, case.timestamp, case.key, case.value, case.headers)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_bad_record_beside_good_ones(case: Case, engine: Engine) -> None:
    path = LocalPath(engine)
    good = [record(n, "p", T0 + n * MINUTE, observation("heart_rate", 80 + n)) for n in (0, 2)]

    fates = await path.process([good[0], _as_record(case, 1), good[1]])

    assert fates == ["scored", case.fate, "scored"]
    (letter,) = path.outbox.dead_letters
    assert tuple((r.reason, r.path) for r in letter.rejections) == case.reasons
    assert (letter.reason, letter.accepted) == (case.reasons[0][0], case.accepted)
    place = (letter.source.cluster, letter.source.topic, letter.source.partition, letter.source.offset)
    assert place == (*PLACE, 1)
    value = case.value or b""
    assert letter.value == value[:KEPT_BYTES]
    assert (letter.size, letter.sha256) == (len(value), hashlib.sha256(value).hexdigest())
    assert letter.key == case.key
    assert len(letter.headers) == min(len(case.headers), KEPT_HEADERS)
    (outgoing,) = path.outbox.of("dead-letters")
    assert len(outgoing.value) < 512 * 1024, "the dead-letter topic must take it"


async def test_whole_corpus_in_one_chunk(engine: Engine) -> None:
    path = LocalPath(engine)
    records: list[Record] = []
    for case in CASES:
        good = record(len(records), "p", T0 + len(records) * 1000, observation("heart_rate", 80))
        records += [good, _as_record(case, good.offset + 1)._replace(key=case.key and case.key + b"x")]

    fates = await path.process(records)

    assert fates[::2] == ["scored"] * len(CASES)
    assert set(fates[1::2]) == {"dead_lettered"}
    assert [letter.source.offset for letter in path.outbox.dead_letters] == list(range(1, len(records), 2))


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_reject(value: bytes) -> None:
    assert isinstance(decode(Record(0, T0, b"p", value), LIMIT), Refusal)


@given(json_values)
def test_any_json_decodes_or_rejects(value: object) -> None:
    outcome = decode(Record(0, T0, b"p", json.dumps(value).encode()), LIMIT)

    assert isinstance(outcome, Event | Refusal)


@given(st.dictionaries(st.sampled_from(FIELDS[4:]), json_values), json_values)
def test_fates_add_up_for_any_observation(engine: Engine, wrong: dict[str, object], other: object) -> None:
    path = LocalPath(engine)
    value = message("p", "e", T0, {**observation("heart_rate", 80), **wrong}, observation("lactate", 2))
    value = value[:-2] + b"," + json.dumps(other).encode() + b"]}"

    (fate,) = path.process_now([Record(0, T0, b"p", value)])

    rejections = [r for letter in path.outbox.dead_letters for r in letter.rejections]
    if fate == "scored":
        accepted = sum(letter.accepted for letter in path.outbox.dead_letters) or 3
        assert accepted + len(rejections) == 3
    else:
        assert fate == "dead_lettered"
        assert rejections


@given(st.data())
def test_mutations_of_a_good_record(engine: Engine, data: st.DataObject) -> None:
    good = bytearray(message("p", "e", T0, observation("heart_rate", 80), observation("lactate", 2)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(good) - 1))
        good[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    path = LocalPath(engine)

    (fate,) = path.process_now([Record(0, T0, b"p", bytes(good))])

    assert fate in {"scored", "stored", "dead_lettered"}
    assert bool(path.outbox.scores) == (fate == "scored")
    assert path.outbox.dead_letters or fate != "dead_lettered"


_keys = st.sampled_from(["code", "value", "unit", "system", "time", "status", "note"])
_members = st.lists(st.tuples(_keys, st.sampled_from(["1", '"8867-4"', "null", '"}"', '"{"'])), max_size=5)


@given(st.lists(_members, min_size=1, max_size=4), st.booleans())
def test_a_repeated_key_is_found_wherever_it_stands(
    objects: list[list[tuple[str, str]]], first: bool
) -> None:
    """Against a plain reading of the same text: what decodes repeats no key that is read."""
    texts = [
        "{" + ",".join(['"code":"8867-4","value":1', *(f'"{k}":{v}' for k, v in members)]) + "}"
        for members in objects
    ]
    envelope = [
        '"event_id":"e","patient":"p","time":"2026-01-01T00:00:00Z"',
        f'"observations":[{",".join(texts)}]',
    ]
    value = "{" + ",".join(envelope if first else envelope[::-1]) + "}"
    repeats = any(
        len(names) > len(set(names)) for names in (["code", "value", *(k for k, _ in m)] for m in objects)
    )
    read = [[k for k, _ in m if k != "note"] for m in objects]
    repeats_read = any(len({"code", "value", *names}) < len(names) + 2 for names in read)

    outcome = decode(Record(0, T0, b"p", value.encode()), LIMIT)

    if repeats_read:
        assert outcome == Refusal("duplicate-key")
    elif not repeats:
        assert isinstance(outcome, Event)


@pytest.mark.parametrize("case", DUPLICATE_KEYS, ids=lambda case: case.name)
def test_duplicate_keys_have_no_winner(case: Case) -> None:
    assert decode(_as_record(case), LIMIT) == Refusal("duplicate-key")


@pytest.mark.parametrize("content_type", [b"application/json", b"Application/JSON; charset=utf-8", b""])
def test_content_types_that_are_native(content_type: bytes) -> None:
    value = message("p", "e", T0, observation("heart_rate", 80))

    assert isinstance(decode(Record(0, T0, b"p", value, (("content-type", content_type),)), LIMIT), Event)


def test_key_is_the_patient_in_utf8() -> None:
    value = message("Ünal-雪", "e", T0, observation("heart_rate", 80))

    assert isinstance(decode(Record(0, T0, "Ünal-雪".encode(), value), LIMIT), Event)
    assert decode(Record(0, T0, "Ünal-雪".encode("utf-16"), value), LIMIT) == Refusal(
        "key-mismatch", "$.patient"
    )


def test_limit_is_inclusive() -> None:
    value = message("p", "e", T0, observation("heart_rate", 80))

    assert isinstance(decode(Record(0, T0, b"p", value), len(value)), Event)
    assert decode(Record(0, T0, b"p", value), len(value) - 1) == Refusal("too-large")


def test_dead_letter_can_be_sent_again(engine: Engine) -> None:
    """The original comes back out of the JSON byte for byte."""
    path = LocalPath(engine)
    broken = message("p", "e", T0, observation("heart_rate", 80))[:-1]
    path.process_now([Record(0, T0, b"p", broken, (("trace", b"\x00\xff"),))])

    (outgoing,) = path.outbox.of("dead-letters")
    plain = json.loads(outgoing.value)

    assert base64.b64decode(plain["value"]) == broken
    assert base64.b64decode(plain["key"]) == b"p"
    assert [(name, base64.b64decode(content)) for name, content in plain["headers"]] == [
        ("trace", b"\x00\xff")
    ]


def test_native_message_as_msgspec_writes_it() -> None:
    observations = (Observation("8867-4", 80.0, "/min"), Observation("8867-4", 81.0, "/min"))
    value = msgspec.json.encode(VitalsRecord("e", "p", moment(T0), observations))

    event = decode(Record(0, T0, b"p", value), LIMIT)

    assert isinstance(event, Event)
    assert [o for _, o in event.observations] == list(observations)
    assert event.time_ms == T0
