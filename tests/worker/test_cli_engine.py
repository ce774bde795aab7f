"""The commands build, inspect and compare, as a user runs them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from worker.cli import app


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["model", *arguments])


def test_compare_prints_json_and_a_table(tmp_path: Path) -> None:
    report = tmp_path / "drift.json"
    asked = ("compare", "vitals", "--patients", "3")
    result = run(*asked, "--json", "--report", str(report))
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content == json.loads(report.read_bytes())
    assert content["compared"] == {"backend": "onnxruntime-cpu", "precision": "fp16"}
    [simulated] = content["data"]
    assert simulated["stays"] == 3
    assert list(simulated["hours"]) == [str(hour) for hour in range(1, 49)]
    assert all(0 <= figures["max"] < 0.01 for figures in simulated["hours"].values())
    assert "never executed" in run(*asked).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("build", "vitals", "--backend", "cuda"), "there is tensorrt, tensorrt-rtx"),
        (("build", "absent", "--backend", "tensorrt-rtx"), "no model 'absent'"),
        (("build", "vitals", "--backend", "tensorrt-rtx", "--profile", "3,2,1"), "min <= opt <= max"),
        (("inspect", "absent.plan"), "no plan at absent.plan"),
    ],
)
def test_mistakes_end_in_one_line(arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.tensorrt
def test_build_then_inspect(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="building needs the extra `tensorrt-rtx`")
    asked = ("vitals", "--plans", str(tmp_path))
    assert "has no plans" in run("inspect", *asked).stderr
    first = json.loads(run("build", *asked, "--backend", "tensorrt-rtx", "--json").stdout)
    again = run("build", *asked, "--backend", "tensorrt-rtx")
    assert first["how"] == "built"
    assert again.stdout.startswith("cached:")
    [content] = json.loads(run("inspect", *asked, "--json").stdout)
    assert content["plan"] == first["plan"]
    assert {"risk", "values"} <= {tensor["name"] for tensor in content["tensors"]}
    assert json.loads(run("inspect", first["plan"], "--json").stdout)[0]["key"] == first["key"]
    assert "risk" in run("inspect", *asked).stdout
