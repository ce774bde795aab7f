"""A worker whose plan computes in fp16: settings, golden tolerance, ladder, names. On fakes: no GPU runs."""

import ast
import json
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner, Result

from engines import plans, repository
from tests.worker.ladders import (
    FAKE,
    REFERENCE,
    RTX,
    Library,
    Walk,
    failures,
    in_use,
    it_is_time,
    name_version,
    put,
    records,
    rung,
    settings,
    small,
    started,
    steps,
    undisturbed,
)
from worker import check_engine, config
from worker.cli import app
from worker.config import ConfigError, Settings

FP16 = FAKE + b"-fp16"
NARROW, TOLERANCE = 1e-6, 5e-3
"""Less and more than fp16 changes the small model's answers."""


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    return Library(monkeypatch)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    put(tmp_path, *small(golden_tolerance_fp16=TOLERANCE))
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["model", *arguments])


@pytest.mark.parametrize("backend", ["onnxruntime", "onnxruntime-cuda"])
def test_fp16_is_refused_where_no_plan_runs(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RISKSTREAM_PRECISION", "fp16")
    with pytest.raises(
        ConfigError, match=f"precision fp16 is of plans, .*; {backend} computes model.onnx as"
    ):
        config.load(backend=backend)
    assert config.load(backend=RTX).precision == "fp16"
    assert config.load(backend="tensorrt").precision_on("tensorrt") == "fp16"


def test_another_precision_is_no_setting() -> None:
    with pytest.raises(ConfigError, match="precision: Input should be 'fp32' or 'fp16'"):
        config.load(backend=RTX, precision="int8")


def test_what_stands_in_computes_in_fp32() -> None:
    chosen = config.load(backend=RTX, precision="fp16")
    assert (chosen.precision_on(RTX), chosen.precision_on("onnxruntime")) == ("fp16", "fp32")


def test_every_engine_by_the_settings_backend_has_the_settings_precision() -> None:
    """Engines that are loaded elsewhere than for serving: replay, audit, backtest, drift, bench."""
    loads = []
    for file in Path(config.__file__).parent.rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text())):
            if isinstance(call, ast.Call) and "settings.backend" in map(ast.unparse, call.args):
                named = {each.arg: ast.unparse(each.value) for each in call.keywords}
                loads.append(file.name)
                assert named.get("precision", "").endswith("settings.precision"), f"{file}:{call.lineno}"
    assert len(loads) >= 7, loads


async def test_alerts_and_metrics_name_fp16(models: Path, library: Library) -> None:
    async with started(models, precision="fp16") as ladder:
        assert (ladder.current.rung, ladder.current.backend) == (0, FP16.decode())
        assert in_use(FP16) == 1
        walk = Walk(ladder)
        await walk.process(records())
    assert {alert.backend for alert in walk.outbox.alerts if alert.model.name == "small"} == {FP16.decode()}
    library.driver.expect_clean()


async def test_fp16_out_of_tolerance_is_stood_in_for_until_the_tolerance_is_widened(
    models: Path, library: Library
) -> None:
    narrow, _ = small(golden_tolerance_fp16=NARROW)
    name_version(models, narrow)
    failed, stepped = failures("golden-mismatch"), steps(REFERENCE, "loaded")
    async with started(models, precision="fp16") as ladder:
        assert (ladder.current.rung, rung()) == (1, 1)
        assert in_use(REFERENCE) == 1
        assert (failures("golden-mismatch"), steps(REFERENCE, "loaded")) == (failed + 1, stepped + 1)
        it_is_time(ladder)
        assert not await ladder.climb()

        name_version(models, msgspec.structs.replace(narrow, golden_tolerance_fp16=TOLERANCE))
        assert await ladder.look()
        assert (ladder.current.rung, ladder.current.backend) == (0, FP16.decode())
        assert (in_use(FP16), in_use(REFERENCE)) == (1, 0)
    library.driver.expect_clean()


async def test_the_reference_stands_in_for_fp16_within_the_chunk_and_it_comes_back(
    models: Path, library: Library
) -> None:
    half = len(records()) // 2
    async with started(models, precision="fp16") as ladder:
        walk = Walk(ladder)
        await walk.process(records()[:half])
        library.module.spoiled = True
        await walk.process(records()[half : half + 4])
        assert (ladder.current.rung, ladder.current.backend) == (1, REFERENCE.decode())
        library.module.spoiled = False
        it_is_time(ladder)
        assert await ladder.climb()
        assert ladder.current.backend == FP16.decode()
        await walk.process(records()[half + 4 :])
    whole = (await undisturbed(models)).alerts
    told = [(alert.id, alert.transition, alert.severity) for alert in walk.outbox.alerts]
    assert told == [(alert.id, alert.transition, alert.severity) for alert in whole]
    library.driver.expect_clean()


def test_check_tells_of_both_settings(models: Path, library: Library) -> None:
    chosen: Settings = settings(models, RTX, precision="fp16")
    plans.obtain(models, "small", RTX, "fp16")  # check builds none
    engine, told = check_engine.loaded(chosen, "model")
    assert (engine.backend, told) == (FP16.decode(), [])
    engine.close()
    library.go()
    engine, [finding] = check_engine.loaded(chosen, "model")
    engine.close()
    assert engine.backend == REFERENCE.decode()
    assert finding.advice.endswith("set RISKSTREAM_BACKEND=onnxruntime and RISKSTREAM_PRECISION=fp32")


def test_a_model_is_checked_in_fp16(models: Path, library: Library, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    asked = ("check", "small", "--repository", str(models), "--backend", RTX, "--precision", "fp16", "--json")
    result = run(*asked, "--plans", str(kept))
    assert result.exit_code == 0, result.output
    speed = {each["subject"]: each["detail"] for each in json.loads(result.stdout)["findings"]}["speed"]
    assert speed.endswith(f"on {FP16.decode()}")
    assert list((kept / "small/1").glob("*-fp16-*.plan"))


def test_a_precision_that_the_backend_has_not_fails_the_check(models: Path) -> None:
    result = run("check", "small", "--repository", str(models), "--precision", "fp16", "--json")
    assert result.exit_code == 1
    assert "onnxruntime computes model.onnx as it is" in json.loads(result.stdout)["findings"][-1]["detail"]


SIDES = {
    ("--backend", RTX, "--precision", "fp16"): ((FP16, "fp16"), (REFERENCE, "fp32")),
    ("--backend", RTX, "--precision", "fp16", "--against", RTX): ((FP16, "fp16"), (FAKE, "fp32")),
    ("--backend", RTX, "--precision", "fp16", "--against-precision", "fp16"): (
        (FP16, "fp16"),
        (REFERENCE, "fp16"),
    ),
    ("--backend", RTX): ((FAKE, "fp32"), (REFERENCE, "fp32")),
    ("--backend", "onnxruntime", "--precision", "fp16"): ((REFERENCE, "fp16"), (REFERENCE, "fp32")),
    (): ((REFERENCE, "fp16"), (REFERENCE, "fp32")),
}


@pytest.mark.parametrize("asked", SIDES)
def test_two_precisions_compared(models: Path, library: Library, asked: tuple[str, ...]) -> None:
    result = run("compare", "small", "--repository", str(models), "--patients", "1", "--json", *asked)
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    for what, (backend, precision) in zip(("compared", "reference"), SIDES[asked], strict=True):
        assert content[what] == {"backend": backend.decode(), "precision": precision}
    differs = content["compared"]["precision"] != content["reference"]["precision"]
    assert (content["golden"]["outputs"]["risk"]["max"] > 1e-6) is differs
    library.driver.expect_clean()


def test_the_title_names_each_precision_once(models: Path, library: Library) -> None:
    asked = ("--backend", RTX, "--precision", "fp16", "--patients", "1")
    shown = run("compare", "small", "--repository", str(models), *asked).stdout
    assert "small: tensorrt-rtx-cuda fp16 against onnxruntime-cpu fp32" in shown
    assert "Types alone" not in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compare", "small", "--precision", "fp32"), "onnxruntime in fp32 against itself shows nothing"),
        (("compare", "small", "--backend", "cuda", "--precision", "fp16"), "no backend 'cuda'"),
        (
            ("bench", "small", "--backend", "onnxruntime-cuda", "--precision", "fp16"),
            "precision fp16 is of plans",
        ),
    ],
)
def test_mistakes_end_in_one_line(models: Path, arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments, "--repository", str(models))
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_both_precisions_measured_side_by_side(models: Path, library: Library) -> None:
    few = ("--batch", "1,16", "--seconds", "0.02", "--rounds", "1", "--json")
    both = ("--backend", RTX, "--precision", "both")
    result = run("bench", "small", "--repository", str(models), *both, *few)
    assert result.exit_code == 0, result.output
    found = {name: each["engine"] for name, each in json.loads(result.stdout)["backends"].items()}
    assert found == {
        repository.REFERENCE_BACKEND: REFERENCE.decode(),
        RTX: FAKE.decode(),
        f"{RTX}-fp16": FP16.decode(),
    }
    library.driver.expect_clean()
