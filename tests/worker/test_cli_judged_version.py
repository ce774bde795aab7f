"""`model compare --version` and `model bench --version`: a version is judged before it serves."""

import json
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner, Result

from engines import bench, compare, repository
from engines.compare import Side
from schemas.model_config import Batching
from tests.worker.ladders import name_version, put, small
from worker.cli import app


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Serves version 1 of `small`; beside it lies 2, which computes otherwise and takes larger batches."""
    first, graph = small(1)
    put(tmp_path, *small(2, gain=0.5, dynamic_batching=Batching(max_batch_size=128)))
    folder = tmp_path / "small/2"
    (folder / repository.CONFIG).write_bytes((tmp_path / "small" / repository.CONFIG).read_bytes())
    put(tmp_path, first, graph)
    name_version(tmp_path, first)
    return tmp_path


def run(command: str, models: Path, *more: str) -> Result:
    return CliRunner().invoke(app, ["model", command, "small", "--repository", str(models), "--json", *more])


@pytest.mark.parametrize(("asked", "version"), [((), 1), (("--version", "2"), 2)])
def test_the_version_that_is_asked_for_is_compared(
    models: Path, asked: tuple[str, ...], version: int
) -> None:
    result = run("compare", models, "--patients", "1", *asked)
    assert result.exit_code == 0, result.output
    config = repository.read_config(models, "small", version)
    assert json.loads(result.stdout)["model"] == {
        "name": "small",
        "version": version,
        "digest": config.digest,
    }
    pair = compare.pair_of(models, "small", Side(precision="fp16"), Side(), version=version)
    assert {engine.config.version for engine in pair} == {version}
    pair.close()


def test_the_version_that_is_asked_for_is_measured(models: Path) -> None:
    few = ("--seconds", "0.01", "--rounds", "1")
    result = run("bench", models, "--batch", "128", *few, "--version", "2")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert (content["model"]["version"], content["model"]["digest"]) == (2, small(2, gain=0.5)[0].digest)
    assert "takes batch sizes from 1 to 64" in run("bench", models, "--batch", "128", *few).stderr
    with bench.opened(models, "small", version=2) as found:
        assert {engine.config.version for engine in found.engines.values()} == {2}


@pytest.mark.parametrize("command", ["compare", "bench"])
def test_a_version_that_is_not_there(models: Path, command: str) -> None:
    result = run(command, models, "--version", "3")
    assert result.exit_code == 1
    assert "no version 3 of small" in result.stderr
    assert msgspec.json.decode((models / "small/config.json").read_bytes())["version"] == 1
