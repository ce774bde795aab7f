"""NEWS2's policy file: the shipped one is sound, and what is wrong with another is said."""

import json
from pathlib import Path
from typing import Any

import pytest

from schemas import news2_policy
from schemas.errors import PolicyError

SHIPPED: dict[str, Any] = json.loads(news2_policy.SHIPPED.read_text())


def test_the_shipped_policy_follows_the_responses_of_the_chart() -> None:
    policy = news2_policy.load()
    assert [(level.severity, level.enter) for level in policy.levels] == [("medium", 5), ("high", 7)]
    assert policy.single_enter == 5
    assert policy.scale == 1
    assert policy.memory_s == 7200


def test_three_points_alone_may_call_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(SHIPPED | {"single": None}))
    assert news2_policy.load(path).single_enter == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": 3}, "$.scale"),
        ({"exit": 5}, "policy.exit must be below the first enter 5, came 5"),
        ({"exit": 0}, "$.exit"),
        ({"single": "dire"}, "policy.single must be null or one of the severities ['medium', 'high']"),
        ({"levels": SHIPPED["levels"][::-1]}, "`enter` must rise strictly"),
        ({"levels": []}, "$.levels"),
        ({"refractory_s": 50_000}, "refractory_s must not exceed"),
        ({"fresh_s": 0}, "$.fresh_s"),
        ({"treshold": 5}, "treshold"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(SHIPPED | changes))
    with pytest.raises(PolicyError) as caught:
        news2_policy.load(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"cannot read .*none\.json"):
        news2_policy.load(tmp_path / "none.json")
