"""`check` and plans: what is there is proved, what is not is never built."""

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from engines import plans
from tests.worker.ladders import Library, put, settings, small
from worker.check import check
from worker.check_engine import loaded
from worker.cli import app


def files(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("more", "gpu", "runs"),
    [
        ({}, (8, 9), "tensorrt-rtx-cuda"),
        ({"plans": "the plans"}, (8, 9), "tensorrt-rtx-cuda"),
        ({"precision": "fp16"}, (7, 5), "tensorrt-rtx-cuda-fp16"),
    ],
)
async def test_a_plan_is_looked_for_and_proved_but_never_built(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: dict[str, str],
    gpu: tuple[int, int],
    runs: str,
) -> None:
    """The command that is advised builds the plan that the next check finds."""
    library = Library(monkeypatch)
    library.driver.capability = gpu
    targets = SimpleNamespace(__members__=dict.fromkeys(("SM75", "SM80", "SM89")))
    monkeypatch.setattr(library.module, "ComputeCapability", targets)
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "models", *small(golden_tolerance=0.01))
    asked = settings(tmp_path / "models", "tensorrt-rtx", http_port=0, **more)
    before = files(tmp_path)
    engine, (told,) = loaded(asked, "model")
    assert engine.backend == "onnxruntime-cpu"
    engine.close()
    assert files(tmp_path) == before
    assert (told.subject, told.severity) == ("model: backend", "warning")
    assert re.search(r"no current plan at .*\.plan: there was no such plan; .* of onnxruntime$", told.detail)
    assert told.advice.startswith("a worker builds it when it starts")
    command = shlex.split(told.advice.partition("beforehand: riskstream ")[2])
    assert command[:3] == ["model", "build", "small"]
    made = CliRunner().invoke(app, command)
    assert made.exit_code == 0, made.output
    with_plan = files(tmp_path)
    assert len(with_plan) > len(before)
    found = {finding.subject: finding for finding in await check(asked, 20.0)}
    assert f"version 1 on {runs}, golden data agree" in found["model"].detail
    assert "model: backend" not in found
    assert files(tmp_path) == with_plan


def test_the_advised_command_builds_the_plan_of_a_shadow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the version that runs as a shadow, and not of the one that is served."""
    Library(monkeypatch)
    put(tmp_path, *small(2, note="shadow"))
    top = tmp_path / "small/config.json"
    (tmp_path / "small/2/config.json").write_bytes(top.read_bytes())
    put(tmp_path, *small(1))
    asked = settings(tmp_path, "tensorrt-rtx", shadow_version=2)
    engine, (told,) = loaded(asked, "model")
    engine.close()
    command = shlex.split(told.advice.partition("beforehand: riskstream ")[2])
    assert command[-2:] == ["--version", "2"]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert [path.parent.parent.name for path in tmp_path.rglob("*.plan")] == ["2"]
    engine, found = loaded(asked, "model")
    assert (engine.backend, engine.config.version, found) == ("tensorrt-rtx-cuda", 2, [])
    engine.close()


def test_a_stale_plan_is_no_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Library(monkeypatch)
    put(tmp_path, *small())
    plan = plans.obtain(tmp_path, "small", "tensorrt-rtx").path
    put(tmp_path, *small(note="another"))
    before = files(tmp_path)
    engine, (told,) = loaded(settings(tmp_path, "tensorrt-rtx"), "model")
    engine.close()
    assert f"no current plan at {plan}: the model has changed since it was built" in told.detail
    assert files(tmp_path) == before


def test_a_folder_in_which_a_worker_could_not_build_a_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Library(monkeypatch)
    put(tmp_path, *small())
    monkeypatch.setattr(
        "os.access", lambda path, mode: path != tmp_path / "small/1"
    )  # root may write anywhere
    engine, (told,) = loaded(settings(tmp_path, "tensorrt-rtx"), "model")
    engine.close()
    words = f"a worker cannot write it to {tmp_path}/small/1/plans: name another folder in RISKSTREAM_PLANS"
    assert told.advice.startswith(words)
