"""Changes of policies: what they may say, what they make of a policy, and what errors do not quote."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from schemas import news2_policy, policy_change
from schemas.errors import PolicyError
from schemas.model_config import Level, Policy
from schemas.policy_change import PolicyChange, cautions, changed

BASE = Policy(
    version="7",
    levels=(Level("elevated", 0.3, 600.0), Level("high", 0.6)),
    exit=0.2,
    resolve_s=1200.0,
    refractory_s=1800.0,
    update_delta=0.15,
    expiry_s=7200.0,
)
NEWS2 = news2_policy.load()
LEVELS = [{"severity": "elevated", "enter": 0.5, "persistence_s": 60}]


def stated(model: str = "vitals", /, **fields: Any) -> dict[str, Any]:
    return {"model": model, "version": 2, "effective_from": "2026-01-01T00:00:00Z", **fields}


def change(model: str = "vitals", **fields: Any) -> PolicyChange:
    return policy_change.decode(msgspec.json.encode(stated(model, **fields)))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (stated(levels=LEVELS), "levels, exit bind one another: state all of them, or none"),
        (stated(exit=0.1), "levels, exit bind one another"),
        (stated("news2", levels=LEVELS, exit=4), "levels, exit, single bind one another"),
        (stated(refractory_s=10), "refractory_s, expiry_s bind one another"),
        (stated(refractory_s=20, expiry_s=10), "policy.refractory_s must not exceed expiry_s 10"),
        (stated(levels=LEVELS, exit=0.6), "policy.exit must be below the first enter 0.5, came 0.6"),
        (stated(levels=[{"severity": "e", "enter": 1.5}], exit=0.1), "<= 1.0"),
        (stated("news2", levels=[{"severity": "e", "enter": 5.5}], exit=4, single=None), "Expected `int`"),
        (stated("news2", levels=[{"severity": "e", "enter": 5}], exit=4, single="x"), "policy.single must"),
        (stated("news2", scale=3), "Invalid enum value 3"),
        (stated(scale=2), "scale is for model `news2` alone"),
        (stated(patient="p", care_unit="u"), "state care_unit or patient, not both"),
        (stated(version=0), ">= 1"),
        (stated(effective_from="2026-01-01T00:00:00"), "with a timezone"),
        (stated(update_delta=2.0), "<= 1.0"),
        (stated(resolve_s=1e9), "<= 172800"),
        ([], "Expected `object`, got `array`"),
    ],
)
def test_what_contradicts_itself_is_named(content: object, complaint: str) -> None:
    with pytest.raises(PolicyError) as caught:
        policy_change.decode(msgspec.json.encode(content))
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        msgspec.json.encode({**stated(), "Secret-Name": 1}),
        b'{"Secret-Name',
        b"\xff\xfeSecret-Name",
        b"",
        b"[" * 9999,
    ],
)
def test_errors_quote_nothing(content: bytes) -> None:
    with pytest.raises(PolicyError) as caught:
        policy_change.decode(content)
    assert "Secret" not in str(caught.value)


def test_layers_say_only_what_they_change() -> None:
    unit = change(care_unit="ICU", levels=LEVELS, exit=0.4, version=3)
    patient = change(patient="p", update_delta=0.3, version=12)

    found = changed(BASE, [unit, patient])

    assert found == Policy(
        version="7+unit.3+patient.12",
        levels=(Level("elevated", 0.5, 60.0),),
        exit=0.4,
        resolve_s=1200.0,
        refractory_s=1800.0,
        update_delta=0.3,
        expiry_s=7200.0,
    )
    assert changed(BASE, []) == BASE
    assert changed(BASE, [change()]) == msgspec.structs.replace(BASE, version="7+everyone.2")


def test_one_patient_on_scale_2() -> None:
    found = changed(NEWS2, [change("news2", patient="p", scale=2)])

    assert (found.scale, found.version, found.single) == (2, "1+patient.2", "medium")


def test_news2_without_its_single_rule() -> None:
    levels = [{"severity": "a", "enter": 7.0}]

    found = changed(NEWS2, [change("news2", levels=levels, exit=5, single=None)])

    assert (found.levels[0].enter, found.single, found.single_enter) == (7, None, 0)


def test_keys_keep_versions_apart() -> None:
    assert change(patient="p", version=4).key == b'["vitals",null,"p",4]'
    keys = {change(**scope).key for scope in ({}, {"patient": "p"}, {"care_unit": "p"}, {"version": 3})}
    assert len(keys) == 4


def test_a_file_is_a_list_of_them() -> None:
    first, second = stated(), stated(version=3)
    found = policy_change.read(msgspec.json.encode([first, second]), "f.json")

    assert [c.version for c in found] == [2, 3]
    assert found[0].effective_from == datetime(2026, 1, 1, tzinfo=UTC)
    with pytest.raises(PolicyError, match=r"f\.json, change 1: its scope and version stand there twice"):
        policy_change.read(msgspec.json.encode([first, first]), "f.json")
    with pytest.raises(PolicyError, match=r"f\.json, change 1: scale is for"):
        policy_change.read(msgspec.json.encode([first, stated(version=3, scale=2)]), "f.json")
    with pytest.raises(PolicyError, match=r"f\.json: Expected `array`, got `object`"):
        policy_change.read(msgspec.json.encode(first), "f.json")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            change(
                "news2", levels=[{"severity": "h", "enter": 7, "persistence_s": 3600}], exit=5, single=None
            ),
            0,
        ),
        (
            change(
                "news2", levels=[{"severity": "h", "enter": 7, "persistence_s": 3601}], exit=5, single=None
            ),
            1,
        ),
        (change("news2", levels=[{"severity": "h", "enter": 8}], exit=5, single="h"), 1),
        (change("news2", patient="p", scale=2), 0),
        (change("news2", care_unit="respiratory", scale=2), 1),
        (change("news2", scale=2), 1),
        (change("news2", fresh_s=60), 0),
        (change(levels=LEVELS, exit=0.4), 0),
    ],
)
def test_what_weakens_the_floor_deserves_a_second_look(content: PolicyChange, expected: int) -> None:
    assert len(cautions(content)) == expected
