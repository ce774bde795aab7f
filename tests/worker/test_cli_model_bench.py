"""The command `model bench`, as a user runs it, on models of the documents' kinds."""

import json
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner, Result

from engines import acceptance
from tests import kinds
from worker.cli import app


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["model", "bench", *arguments])


@pytest.fixture(params=kinds.KINDS)
def models(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A repository with one small model of each kind, in turn."""
    config, graph = kinds.model_of(request.param)
    file = tmp_path / "small.json"
    file.write_bytes(msgspec.json.encode(config))
    acceptance.add(tmp_path / "models", graph, file)
    return tmp_path / "models"


def test_figures_of_every_kind_of_model(models: Path, tmp_path: Path) -> None:
    report, plot = tmp_path / "bench.json", tmp_path / "bench.svg"
    few = ("--batch", "1,4,16", "--seconds", "0.02", "--rounds", "2")
    asked = ("small", "--repository", str(models), *few)
    result = run(*asked, "--json", "--report", str(report), "--plot", str(plot))
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content == json.loads(report.read_bytes())
    assert content["model"]["name"] == "small"
    assert len(content["model"]["digest"]) == 64
    assert {"cpu", "cores"} <= content["machine"].keys()
    assert {"python", "numpy", "onnxruntime"} <= content["versions"].keys()
    assert content["refused"].keys() == {"onnxruntime-cuda", "tensorrt", "tensorrt-rtx"}
    assert content["refused"]["tensorrt"]["reason"] == "backend"
    assert len(content["load_average"]["before"]) == 3
    [found] = content["backends"].values()
    assert [point["batch"] for point in found["points"]] == [1, 4, 16]
    for point in found["points"]:
        percentiles = list(point["latency_ms"].values())
        assert percentiles == sorted(percentiles)
        assert point["parts_ms"].keys() == {"copy_in", "compute", "copy_out"}
        speed = point["rows_per_second"]
        assert 0 < speed["least"] <= speed["median"] <= speed["greatest"]
    drawn = plot.read_text()
    assert drawn.count('id="axes_') == 2
    shown = run(*asked)
    assert shown.exit_code == 0
    assert "tensorrt-rtx left out: tensorrt-rtx cannot run here" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert "…" not in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("absent",), "no model 'absent'"),
        (
            ("vitals", "--batch", "1,513"),
            "vitals takes batch sizes from 1 to 512, such as 1,8,512; came '1,513'",
        ),
        (
            ("vitals", "--backend", "tensorrt"),
            "tensorrt cannot run here: ",
        ),
        (("vitals", "--backend", "cuda"), "no backend 'cuda' to measure"),
        (("vitals", "--plot", "bench.pdf"), "--plot writes .svg or .png, not .pdf"),
        (("vitals", "--report", "absent/bench.json"), "absent/bench.json: No such file or directory"),
    ],
)
def test_mistakes_end_in_one_line_before_anything_is_timed(arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
