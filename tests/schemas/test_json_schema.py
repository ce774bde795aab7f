"""The generated JSON Schema files are current, valid, and true of what msgspec encodes and decodes."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from schemas import json_schema
from schemas.features import FEATURES
from schemas.messages import VitalsRecord
from schemas.model_config import ModelConfig
from tests.schemas import test_messages, test_model_config

NAMES = {kind: name for name, kind in json_schema.ROOTS.items()}


def schema(kind: type[msgspec.Struct]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((json_schema.DIRECTORY / f"{NAMES[kind]}.schema.json").read_text())
    return document


def validator(kind: type[msgspec.Struct]) -> jsonschema.Draft202012Validator:
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    return jsonschema.Draft202012Validator(schema(kind), format_checker=checker)


def test_the_checked_in_files_are_current() -> None:
    assert json_schema.stale() == [], "run `make schemas`"


def test_writing_makes_a_folder_current(tmp_path: Path) -> None:
    (tmp_path / "of-a-type-that-went.schema.json").write_text("{}")
    assert json_schema.stale(tmp_path) != []
    json_schema.write(tmp_path)
    assert json_schema.stale(tmp_path) == []


@pytest.mark.parametrize("kind", NAMES, ids=lambda kind: kind.__name__)
def test_each_file_is_a_schema(kind: type[msgspec.Struct]) -> None:
    document = schema(kind)
    jsonschema.Draft202012Validator.check_schema(document)
    assert document["$schema"] == json_schema.DIALECT
    assert set(document["$defs"]) >= {kind.__name__}


@pytest.mark.parametrize(
    ("kind", "age"), [(kind, age) for kind, ages in test_messages.EXPECTED.items() for age in ages]
)
def test_what_msgspec_encodes_and_what_it_once_encoded_is_valid(kind: type[msgspec.Struct], age: str) -> None:
    encoded = msgspec.json.encode(test_messages.EXPECTED[kind][age])
    validator(kind).validate(json.loads(encoded))
    fixture = test_messages.FIXTURES / f"{kind.__name__}-v1-{age}.json"
    validator(kind).validate(json.loads(fixture.read_text()))


def test_a_model_config_is_valid() -> None:
    validator(ModelConfig).validate(test_model_config.config())


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"event_id": ""}, "$.event_id"),
        ({"patient": 7}, "$.patient"),
        ({"observations": []}, "$.observations"),
        ({"observations": [{"code": "8867-4", "value": "80"}]}, "$.observations[0].value"),
        ({"observations": [{"code": "8867-4", "value": 80, "status": "draft"}]}, "$.observations[0].status"),
    ],
)
def test_what_msgspec_refuses_is_invalid(change: dict[str, Any], path: str) -> None:
    message = {**test_messages.RECORD, **change}
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(message, VitalsRecord)
    errors = list(validator(VitalsRecord).iter_errors(message))
    assert [error.json_path for error in errors] == [path]


def test_the_feature_table_is_whole() -> None:
    table = json.loads((json_schema.DIRECTORY / "feature-table.json").read_text())
    assert [row["name"] for row in table["features"]] == [feature.name for feature in FEATURES]
    assert [row["channel"] for row in table["features"]] == list(range(len(FEATURES)))


def test_check_names_a_stale_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert json_schema.main(["--check"]) == 0
    assert json_schema.main(["--check"], tmp_path) == 1
    assert "alert.schema.json is not current" in capsys.readouterr().err
    assert json_schema.main([], tmp_path) == 0
    assert json_schema.main(["--check"], tmp_path) == 0
