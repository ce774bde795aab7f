"""A model folder's config.json: what is accepted, and the message that each mistake gets."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import ModelConfigError
from schemas.model_config import Batching, Level, StatePair, load

Config = dict[str, Any]


def config() -> Config:
    """A recurrent model of two features."""
    return {
        "name": "vitals",
        "kind": "windowed-series",
        "version": 1,
        "outcome": "death in hospital",
        "features": ["heart_rate", "age"],
        "input": [
            {"name": "values", "dims": [2]},
            {"name": "elapsed", "dims": [2]},
            {"name": "counts", "dims": [2]},
            {"name": "hidden", "dims": [8]},
        ],
        "output": [{"name": "risk", "dims": []}, {"name": "hidden_next", "dims": [8]}],
        "state": [{"input": "hidden", "output": "hidden_next", "dims": [8]}],
        "digest": "0" * 64,
        "policy": {
            "version": "1",
            "levels": [
                {"severity": "moderate", "enter": 0.3, "persistence_s": 600},
                {"severity": "high", "enter": 0.5},
            ],
            "exit": 0.2,
            "resolve_s": 1800,
            "refractory_s": 3600,
            "update_delta": 0.1,
            "expiry_s": 43200,
        },
    }


def put(*path: str | int, value: Any) -> Callable[[Config], None]:
    def change(document: Config) -> None:
        at: Any = document
        for step in path[:-1]:
            at = at[step]
        at[path[-1]] = value

    return change


def drop(key: str) -> Callable[[Config], None]:
    def change(document: Config) -> None:
        del document[key]

    return change


def written(directory: Path, document: object) -> Path:
    path = directory / "config.json"
    path.write_text(json.dumps(document))
    return path


def test_a_config_is_read(tmp_path: Path) -> None:
    loaded = load(written(tmp_path, config()))
    assert loaded.features == ("heart_rate", "age")
    assert loaded.state == (StatePair("hidden", "hidden_next", (8,)),)
    assert loaded.policy.levels == (Level("moderate", 0.3, 600.0), Level("high", 0.5))
    assert loaded.policy.memory_s == 1800
    assert loaded.dynamic_batching == Batching(max_batch_size=512)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (drop("digest"), ["missing required field `digest`"]),
        (drop("policy"), ["missing required field `policy`"]),
        (put("polcy", value={}), ["unknown field `polcy`"]),
        (put("name", value="Vitals!"), ["$.name", "matching regex"]),
        (put("kind", value="image"), ["$.kind", "'image'"]),
        (put("version", value=0), ["$.version", ">= 1"]),
        (put("digest", value="abc"), ["$.digest", "matching regex"]),
        (put("features", value=[]), ["$.features", "length >= 1"]),
        (put("features", value=["heart_rate", "pulse"]), ["feature table", "'pulse'", "'heart_rate'"]),
        (put("features", value=["age", "age"]), ["named twice"]),
        (put("input", 0, "name", value="vals"), ["input tensors must be", "'values'", "'vals'"]),
        (put("input", 0, "dims", value=[3]), ["values", "dims [2]", "[3]"]),
        (put("input", 0, "data_type", value="TYPE_FP64"), ["$.input[0].data_type"]),
        (
            put("output", 0, "name", value="probability"),
            ["output tensors must be", "'risk'", "'probability'"],
        ),
        (put("state", 0, "input", value="memory"), ["input tensors must be", "'memory'", "'hidden'"]),
        (put("dynamic_batching", value={"max_batch_size": 0}), ["$.dynamic_batching.max_batch_size"]),
        (put("golden_tolerance", value=0.5), ["$.golden_tolerance", "<= 0.01"]),
        (put("policy", "levels", value=[]), ["$.policy.levels", "length >= 1"]),
        (put("policy", "levels", 1, "enter", value=0.3), ["policy.levels", "rise strictly", "[0.3, 0.3]"]),
        (put("policy", "levels", 1, "enter", value=1.5), ["$.policy.levels[1].enter", "<= 1.0"]),
        (put("policy", "levels", 1, "severity", value="moderate"), ["two levels have one severity"]),
        (put("policy", "exit", value=0.3), ["policy.exit", "below", "0.3"]),
        (put("policy", "update_delta", value=0), ["$.policy.update_delta", "> 0.0"]),
        (put("policy", "expiry_s", value=999_999), ["$.policy.expiry_s"]),
        (put("policy", "resolve_s", value=-1), ["$.policy.resolve_s"]),
        (put("policy", "refractory_s", value=43_201), ["policy.refractory_s", "expiry_s"]),
    ],
)
def test_a_bad_config_is_refused_with_the_place_and_the_mend(
    tmp_path: Path, change: Callable[[Config], None], parts: list[str]
) -> None:
    document = config()
    change(document)
    path = written(tmp_path, document)
    with pytest.raises(ModelConfigError) as raised:
        load(path)
    assert raised.value.reason == "invalid-model-config"
    for part in (str(path), *parts):
        assert part in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelConfigError, match=r"cannot read .*config\.json: No such file"):
        load(tmp_path / "config.json")


def test_a_file_that_is_not_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("name: vitals")
    with pytest.raises(ModelConfigError, match="malformed"):
        load(path)
