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
        (put("kind", value="images"), ["$.kind", "'images'"]),
        (put("kind", value="image"), ["no features, state or forecast"]),
        (put("kind", value="features"), ["kind features carries no state"]),
        (put("version", value=0), ["$.version", ">= 1"]),
        (put("digest", value="abc"), ["$.digest", "matching regex"]),
        (put("features", value=[]), ["features must be one or more names"]),
        (put("classes", value=["a", "b"]), ["only an image model has"]),
        (put("forecast", value={"features": ["heart_rate"]}), ["output tensors must be", "'forecast'"]),
        (put("forecast", value={"features": ["pulse"]}), ["feature table", "'pulse'"]),
        (put("features", value=["heart_rate", "pulse"]), ["feature table", "'pulse'", "'heart_rate'"]),
        (put("features", value=["age", "age"]), ["names, each once"]),
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
        (put("name", value="news2"), ["early warning score"]),
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


def image_config() -> Config:
    document = config()
    for key in ("features", "state"):
        del document[key]
    return document | {
        "kind": "image",
        "input": [{"name": "image", "dims": [1, 28, 32]}],
        "output": [{"name": "probability", "dims": [2]}, {"name": "activation", "dims": [2, 7, 8]}],
        "image": {"height": 28, "width": 32},
        "classes": ["normal", "pneumonia"],
        "findings": ["pneumonia"],
    }


def test_an_image_config_is_read(tmp_path: Path) -> None:
    loaded = load(written(tmp_path, image_config()))
    assert loaded.image is not None
    assert loaded.image.dims == (1, 28, 32)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (drop("image"), "needs `image`"),
        (put("classes", value=["normal"]), "two or more different names"),
        (put("findings", value=["tumour"]), "some of the classes"),
        (put("findings", value=["normal", "pneumonia"]), "some of the classes"),
        (put("image", "height", value=64), "input image must have dims [1, 64, 32], came [1, 28, 32]"),
        (put("image", "fit", value="squeeze"), "$.image.fit"),
        (put("output", 0, "dims", value=[3]), "output probability must have dims [2]"),
        (put("output", 1, "dims", value=[3, 7, 8]), "activation must have dims [2, height, width]"),
        (put("output", 1, "name", value="map"), "may have ['activation']"),
    ],
)
def test_a_bad_image_config_is_refused(tmp_path: Path, change: Callable[[Config], None], part: str) -> None:
    document = image_config()
    change(document)
    with pytest.raises(ModelConfigError) as raised:
        load(written(tmp_path, document))
    assert part in str(raised.value)


def whole_window(document: Config) -> None:
    del document["state"]
    document["input"] = [{"name": "values", "dims": [48, 2]}]
    document["output"] = document["output"][:1]


def newest_row(document: Config) -> None:
    whole_window(document)
    document |= {"kind": "features", "input": [{"name": "values", "dims": [2]}]}


def told_more(document: Config) -> None:
    document["forecast"] = {"features": ["heart_rate"]}
    document["output"] += [{"name": "spread", "dims": []}, {"name": "forecast", "dims": [1]}]


@pytest.mark.parametrize("change", [whole_window, newest_row, told_more])
def test_other_forms_of_series_model_are_read(tmp_path: Path, change: Callable[[Config], None]) -> None:
    document = config()
    change(document)
    load(written(tmp_path, document))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelConfigError, match=r"cannot read .*config\.json: No such file"):
        load(tmp_path / "config.json")


def test_a_file_that_is_not_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("name: vitals")
    with pytest.raises(ModelConfigError, match="malformed"):
        load(path)
