"""What a careless or hostile producer may send, with the fate and the reasons that it must get.

Every case names the canary patient wherever it can, so that the privacy tests can look for it.
"""

import json
import random
from typing import Any, NamedTuple

from schemas.messages import alert_id
from tests.worker.records import HOUR, T0, message, observation, rfc3339
from worker.decode import FEEDBACK_TYPE, FINDING_TYPE

CANARY = "canary-7f3a-patient"
EVENT = "canary-7f3a-event"
TEXT = "canary-7f3a-text"
"""No log, label, header or exception text may hold what these three share."""
MARK = "canary-7f3a"

GOOD = observation("heart_rate", 80)
YEAR = 366 * 24 * HOUR


class Case(NamedTuple):
    """One record and what must become of it.

    reasons: (reason, path) of every rejection, in order.
    accepted: observations that count all the same.
    """

    name: str
    value: bytes | None
    reasons: tuple[tuple[str, str], ...]
    fate: str = "dead_lettered"
    accepted: int = 0
    key: bytes | None = CANARY.encode()
    headers: tuple[tuple[str, bytes], ...] = ()
    timestamp: int = T0


def _message(*observations: Any, **fields: Any) -> bytes:
    """A message in which fields may be of any type; None leaves one out."""
    whole = {
        "event_id": EVENT,
        "patient": CANARY,
        "time": rfc3339(T0),
        "observations": list(observations) or [GOOD],
        **fields,
    }
    return json.dumps({name: value for name, value in whole.items() if value is not None}).encode()


def _raw(text: str) -> bytes:
    """A message with `text` in place of its only observation."""
    return _message(0).replace(b"[0]", b"[" + text.encode() + b"]")


def _one(reason: str, path: str = "$") -> tuple[tuple[str, str], ...]:
    return ((reason, path),)


def _observation(reason: str, place: str = "", position: int = 0) -> tuple[tuple[str, str], ...]:
    return _one(reason, f"$.observations[{position}]{place}")


_WHOLE = message(CANARY, EVENT, T0, GOOD)
_NOISE = random.Random(7)
_CODE = '"code":"8867-4"'

BYTES = (
    Case("no value", None, _one("empty")),
    Case("empty value", b"", _one("empty")),
    *(
        Case(f"random {n}", b"\xff" + _NOISE.randbytes(n), _one("invalid-json"))
        for n in (1, 2, 33, 1000, 65_536)
    ),
    *(
        Case(f"truncated {n}", _WHOLE[:n], _one("invalid-json"))
        for n in (1, 10, len(_WHOLE) // 2, len(_WHOLE) - 1)
    ),
    Case("trailing text", _WHOLE + TEXT.encode(), _one("invalid-json")),
    Case("byte order mark", b"\xef\xbb\xbf" + _WHOLE, _one("invalid-json")),
    Case("UTF-16", _WHOLE.decode().encode("utf-16"), _one("invalid-json")),
    Case("not UTF-8", _WHOLE.replace(b"canary-7f3a-event", b"canary-7f3a-\xff"), _one("invalid-json")),
    Case("lone surrogate", _WHOLE.replace(b"canary-7f3a-event", b"\\ud800"), _one("invalid-json")),
    Case("10 MB of zeros", bytes(10 << 20), _one("too-large")),
    Case("10 MB message", _message(comment=TEXT * 800_000), _one("too-large")),
    Case("deep lists", b"[" * 200_000, _one("invalid-message")),
    Case("deep unknown field", _message(x=0).replace(b'"x": 0', b'"x":' + b"[" * 200_000), _one("too-deep")),
    Case("deep observation", _raw("[" * 200_000), _observation("invalid-message")),
    Case("NaN", _raw(f'{{{_CODE},"value":NaN}}'), _one("invalid-json")),
    Case("Infinity", _raw(f'{{{_CODE},"value":-Infinity}}'), _one("invalid-json")),
)

TYPES = (
    Case("a care unit that is no text", _message(care_unit=[MARK]), _one("invalid-message", "$.care_unit")),
    *(Case(f"a JSON {text}", text.encode(), _one("invalid-message")) for text in ("null", "1", "[]", '"x"')),
    Case("no fields", b"{}", _one("invalid-message")),
    Case("no patient", _message(patient=None), _one("invalid-message")),
    Case("no event id", _message(event_id=None), _one("invalid-message")),
    Case("no observations", _message(observations=None), _one("invalid-message")),
    Case("patient is a number", _message(patient=7), _one("invalid-message", "$.patient")),
    Case("patient is empty", _message(patient=""), _one("invalid-message", "$.patient"), key=b""),
    Case("patient is long", _message(patient="x" * 129), _one("invalid-message", "$.patient")),
    Case("event id is an object", _message(event_id={"id": TEXT}), _one("invalid-message", "$.event_id")),
    Case("time is a number", _message(time=T0), _one("invalid-message", "$.time")),
    Case("time has no zone", _message(time="2026-01-01T00:00:00"), _one("invalid-message", "$.time")),
    Case("time is no date", _message(time="2026-02-30T00:00:00Z"), _one("invalid-message", "$.time")),
    Case("observations is text", _message(observations=TEXT), _one("invalid-message", "$.observations")),
    Case("observations is empty", _message(observations=[]), _one("invalid-message", "$.observations")),
    Case("4097 observations", _message(*[GOOD] * 4097), _one("invalid-message", "$.observations")),
    Case("observation is null", _raw("null"), _observation("invalid-observation")),
    Case("no code", _raw('{"value":1}'), _observation("invalid-observation")),
    Case("value is text", _raw(f'{{{_CODE},"value":"80"}}'), _observation("invalid-observation", ".value")),
    Case("value is null", _raw(f'{{{_CODE},"value":null}}'), _observation("invalid-observation", ".value")),
    Case("value is huge", _raw(f'{{{_CODE},"value":1e999}}'), _observation("invalid-observation", ".value")),
    Case(
        "unknown status", _message({**GOOD, "status": TEXT}), _observation("invalid-observation", ".status")
    ),
    Case("long code", _message({**GOOD, "code": "8" * 65}), _observation("invalid-observation", ".code")),
)

MEANING = (
    Case("unknown code", _message({**GOOD, "code": TEXT}), _observation("unknown-code", ".code")),
    Case(
        "unknown system", _message({**GOOD, "system": TEXT}), _observation("unknown-code-system", ".system")
    ),
    Case("unknown unit", _message({**GOOD, "unit": TEXT}), _observation("unknown-unit")),
    Case("explosive unit", _message({**GOOD, "unit": "10*999999999/min"}), _observation("unknown-unit")),
    Case("wrong unit", _message({**GOOD, "unit": "mm[Hg]"}), _observation("wrong-unit")),
    Case("implausible value", _message({**GOOD, "value": 867.5}), _observation("implausible-value")),
    Case("largest float", _message({**GOOD, "value": 1.7e308}), _observation("implausible-value")),
    Case("1970", _message(time=rfc3339(0)), _observation("implausible-time", ".time")),
    Case("2999", _message(time="2999-01-01T00:00:00Z"), _observation("implausible-time", ".time")),
    Case("year 1", _message(time="0001-01-01T00:00:00+14:00"), _observation("implausible-time", ".time")),
    Case("over a year old", _message(time=rfc3339(T0 - YEAR - 1)), _observation("implausible-time", ".time")),
    Case(
        "over an hour ahead", _message(time=rfc3339(T0 + HOUR + 1)), _observation("implausible-time", ".time")
    ),
    Case(
        "own time in 1970", _message({**GOOD, "time": rfc3339(0)}), _observation("implausible-time", ".time")
    ),
    Case(
        "timestamp in microseconds",
        _message(),
        _observation("implausible-time", ".time"),
        timestamp=T0 * 1000,
    ),
    Case("no timestamp", _message(), _observation("implausible-time", ".time"), timestamp=-1),
    Case(
        "correction of nothing",
        _message({**GOOD, "status": "corrected"}),
        _observation("correction-out-of-reach"),
    ),
)

DUPLICATE_KEYS = tuple(
    Case(f"two keys: {name}", value, _one("duplicate-key"))
    for name, value in {
        "patient": b'{"patient":"x",' + _WHOLE[1:],
        "time": b'{"time":"2025-12-31T00:00:00Z",' + _WHOLE[1:],
        "observations": b'{"observations":[],' + _WHOLE[1:],
        "value": _raw(f'{{{_CODE},"value":80,"value":90}}'),
        "unit": _raw(f'{{{_CODE},"value":80,"unit":"/min","unit":"/h"}}'),
        "unit beside none": _raw(
            f'{{{_CODE},"value":80,"unit":"/min","unit":"1"}},{{{_CODE},"value":80}},{{{_CODE},"value":81}}'
        ),
        "time beside none": _raw(
            f'{{{_CODE},"value":80,"time":null,"time":"2025-12-31T23:00:00Z"}},{{{_CODE},"value":80}}'
        ),
        "brace in a text": _raw(f'{{"unit":"/min",{_CODE},"system":"}}","value":80,"unit":"1"}}'),
        "escaped": _raw(f'{{{_CODE},"value":80,"v\\u0061lue":90}}'),
        "in a half-good record": _raw(f'{{{_CODE},"value":80,"value":90}},null'),
    }.items()
)

KEYS = tuple(
    Case(f"key {name}", _WHOLE, _one("key-mismatch", "$.patient"), key=key)
    for name, key in {
        "of another": f"{MARK}-other".encode(),
        "none": None,
        "empty": b"",
        "quoted": b'"' + CANARY.encode() + b'"',
        "not UTF-8": b"\xff\xfe",
    }.items()
)

HEADERS = (
    Case(
        "unknown content type",
        _WHOLE,
        _one("unsupported-content-type"),
        headers=(("content-type", TEXT.encode()),),
    ),
    Case("huge header", b"x", _one("invalid-json"), headers=(("h" * 1_000_000, b"y" * 1_000_000),) * 3),
    Case("many headers", b"x", _one("invalid-json"), headers=((MARK, MARK.encode()),) * 1000),
)

_STALE = {**GOOD, "time": rfc3339(0)}

HALF_GOOD = (
    Case(
        "one type wrong",
        _message(GOOD, {**GOOD, "value": TEXT}, observation("lactate", 2)),
        _observation("invalid-observation", ".value", 1),
        "scored",
        2,
    ),
    Case(
        "one code unknown",
        _message({**GOOD, "code": TEXT}, GOOD),
        _observation("unknown-code", ".code"),
        "scored",
        1,
    ),
    Case(
        "all kinds",
        _message({**GOOD, "unit": TEXT}, {**GOOD, "value": 1e9}, _STALE, 7, GOOD),
        (
            ("invalid-observation", "$.observations[3]"),
            ("unknown-unit", "$.observations[0]"),
            ("implausible-value", "$.observations[1]"),
            ("implausible-time", "$.observations[2].time"),
        ),
        "scored",
        1,
    ),
    Case(
        "only a static is good",
        _message(observation("age", 70), {**GOOD, "value": -5}),
        _observation("implausible-value", "", 1),
        "stored",
        1,
    ),
)


def _feedback(**fields: Any) -> bytes:
    """Feedback on an alert of a place that is not this partition, with texts that name the canary."""
    episode, transition = f"{TEXT}/vitals/3/7", "raised"
    alert = {
        "id": alert_id(episode, "vitals", transition, 0),
        "episode": episode,
        "sequence": 0,
        "transition": transition,
        "time": rfc3339(T0),
        "model": {"name": "vitals"},
        "patient": CANARY,
    }
    whole = {
        "event_id": EVENT,
        "patient": CANARY,
        "time": rfc3339(T0),
        "action": "acknowledged",
        "role": TEXT,
        "alert": {**alert, **fields.pop("alert", {})},
        **fields,
    }
    return json.dumps(whole).encode()


def _said(name: str, value: bytes, reason: str, path: str) -> Case:
    return Case(f"feedback: {name}", value, _one(reason, path), headers=(("content-type", FEEDBACK_TYPE),))


FEEDBACK = (
    _said("another input's alert", _feedback(), "unknown-alert", "$.alert"),
    _said("an id of no alert", _feedback(alert={"id": TEXT}), "unknown-alert", "$.alert.id"),
    _said("an action that is none", _feedback(action=TEXT), "invalid-message", "$.action"),
    _said("a reason that is none", _feedback(reason=TEXT), "invalid-message", "$.reason"),
    _said("another model's name", _feedback(alert={"model": {"name": TEXT}}), "unknown-alert", "$.alert.id"),
    _said("vitals in its place", _message(), "invalid-message", "$"),
)


def _finding(**fields: Any) -> bytes:
    """A finding in which fields may be of any type."""
    whole = {
        "id": EVENT,
        "patient": CANARY,
        "time": rfc3339(T0),
        "outcome": TEXT,
        "risk": 0.2,
        "classes": [{"name": "none", "probability": 0.8}, {"name": TEXT, "probability": 0.2}],
        "findings": [TEXT],
        "model": {"name": TEXT, "version": 1, "digest": "0"},
        "backend": TEXT,
        "source": {"cluster": "c", "topic": TEXT, "partition": 0, "offset": 0},
        "image_sha256": "0" * 64,
        "modality": TEXT,
        "quality": [TEXT],
    }
    return json.dumps(whole | fields).encode()


GOOD_FINDING = _finding(
    risk=0.95,
    classes=[{"name": "none", "probability": 0.05}, {"name": TEXT, "probability": 0.95}],
    model={"name": "pneumonia", "version": 1, "digest": "0"},
)
"""One that raises an alert, and names the canary wherever a good one can."""


def _found(name: str, value: bytes, reason: str, path: str) -> Case:
    return Case(f"finding: {name}", value, _one(reason, path), headers=(("content-type", FINDING_TYPE),))


FINDINGS = (
    _found(
        "a class that is none", _finding(id=f"{EVENT}-2", findings=[EVENT]), "invalid-message", "$.findings"
    ),
    _found("an unlikely time", _finding(time="1970-01-01T00:00:00Z"), "implausible-time", "$.time"),
    _found("somebody else's", _finding(patient=TEXT), "key-mismatch", "$.patient"),
    _found("a risk that is none", _finding(risk=TEXT), "invalid-message", "$.risk"),
    _found("a digest that is none", _finding(image_sha256=TEXT), "invalid-message", "$.image_sha256"),
)

CASES: tuple[Case, ...] = (
    *(*BYTES, *TYPES, *MEANING),
    *(*DUPLICATE_KEYS, *KEYS, *HEADERS, *HALF_GOOD, *FEEDBACK, *FINDINGS),
)
