"""Models of one's own, from the script that writes the graph to alerts: the documents' examples."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from engines import repository
from tests.worker.records import HOUR, T0, LocalPath, observation, record, worsening
from worker.cli import app

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ("cardiac", "kidney")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository to which both examples were added as the documents say."""
    folder = tmp_path_factory.mktemp("own")
    for name in NAMES:
        graph = folder / f"{name}.onnx"
        subprocess.run([sys.executable, EXAMPLES / f"{name}.py", graph], check=True, timeout=60)
        added = riskstream("add", str(graph), "--config", str(EXAMPLES / f"{name}.json"), models=folder)
        assert added == (0, f"added {name} version 1 to {folder}; " + hint(name, folder))
    return folder


def hint(name: str, folder: Path) -> str:
    return f"riskstream model check {name} --repository {folder}\n"


def riskstream(command: str, *arguments: str, models: Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["model", command, *arguments, "--repository", str(models)])
    return result.exit_code, result.output


def test_both_are_listed(models: Path) -> None:
    status, shown = riskstream("list", "--json", models=models)
    assert status == 0
    listed = json.loads(shown)
    assert [(one["name"], one["kind"], one["version"]) for one in listed] == [
        ("cardiac", "windowed-series", 1),
        ("kidney", "features", 1),
    ]
    assert all(len(one["digest"]) == 64 for one in listed)


@pytest.mark.parametrize("name", NAMES)
def test_both_are_fit_to_be_served(models: Path, name: str) -> None:
    status, shown = riskstream("check", name, "--json", models=models)
    content = json.loads(shown)
    assert (status, content["well"]) == (0, True), content
    subjects = [finding["subject"] for finding in content["findings"]]
    assert subjects == ["config", "files", "outputs", "hostile", "batches", "speed", "reference"]
    status, shown = riskstream("check", name, models=models)
    assert (status, shown.count("ok")) == (0, 7)


def test_the_kidney_model_alerts_on_laboratory_values(models: Path) -> None:
    engine = repository.load(models, "kidney")
    path = LocalPath(engine)
    values = [(1.0, 18, 4.1), (1.6, 30, 4.6), (2.9, 55, 5.3), (4.0, 80, 6.1)]
    records = [
        record(
            n,
            "p",
            T0 + n * 6 * HOUR,
            observation("age", 71),
            observation("creatinine", creatinine),
            observation("urea_nitrogen", urea),
            observation("potassium", potassium),
        )
        for n, (creatinine, urea, potassium) in enumerate(values)
    ]
    records.append(record(4, "p", T0 + 19 * HOUR, observation("heart_rate", 88)))

    assert path.process_now(records) == ["scored"] * 4 + ["stored"]
    first, *_, last = path.outbox.alerts
    assert (first.transition, first.model.name) == ("raised", "kidney")
    assert first.missing == ("bicarbonate", "lactate")
    told = {given.feature: given.contribution or 0.0 for given in last.inputs}
    assert set(told) == {"age", "creatinine", "urea_nitrogen", "potassium"}
    assert max(told, key=lambda name: told[name]) == "creatinine"
    engine.close()


def test_the_cardiac_model_alerts_on_a_course(models: Path) -> None:
    engine = repository.load(models, "cardiac")
    path = LocalPath(engine)
    path.process_now(worsening("p", 0, 12))
    first = path.outbox.alerts[0]
    assert (first.transition, first.model.name) == ("raised", "cardiac")
    told = {given.feature: given.contribution or 0.0 for given in first.inputs}
    assert set(told) == {"heart_rate", "systolic_pressure", "mean_pressure"}
    assert all(value > 0 for value in told.values())
    engine.close()


def test_a_version_is_added_once(models: Path, tmp_path: Path) -> None:
    arguments = (str(models / "kidney.onnx"), "--config", str(EXAMPLES / "kidney.json"))
    status, _ = riskstream("add", *arguments, models=models)
    assert status == 1
    raised = tmp_path / "kidney.json"
    raised.write_text((EXAMPLES / "kidney.json").read_text().replace('"version": 1,', '"version": 2,'))
    assert riskstream("add", arguments[0], "--config", str(raised), models=tmp_path)[0] == 0
    assert repository.read_config(tmp_path, "kidney").version == 2


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"name": "kidney"', '"name": "../kidney"', "name must be small letters"),
        ('"dims": [6]', '"dims": [5]', "input values must have dims"),
        ('"kind": "features"', '"kind": "image"', "an image model"),
        ("{", "[", "Expected `object`, got `array`"),
    ],
)
def test_a_config_that_does_not_fit_is_told(
    models: Path, tmp_path: Path, before: str, after: str, message: str
) -> None:
    config = tmp_path / "config.json"
    config.write_text((EXAMPLES / "kidney.json").read_text().replace(before, after, 1))
    result = CliRunner().invoke(
        app,
        [
            "model",
            "add",
            str(models / "kidney.onnx"),
            "--config",
            str(config),
            "--repository",
            str(tmp_path / "m"),
        ],
    )
    assert result.exit_code == 1
    assert message in result.stderr
    assert not list(tmp_path.glob("m/[!.]*"))
