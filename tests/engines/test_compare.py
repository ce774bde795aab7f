"""How the difference of two engines is counted, and what fp16 does to the shipped models."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from engines import compare, plans, repository, tensorrt_load
from engines.errors import BackendError, DatasetError
from engines.onnxruntime_backend import OnnxRuntimeEngine
from engines.tensorrt_build import Built
from tests import kinds
from tests.engines.conftest import graph
from tests.engines.fake_cuda import FakeDriver
from tests.engines.fake_tensorrt import FakeTensorRT
from worker.cli import app

SHIPPED = [config.name for config in repository.list_models()]


def test_decisions_are_counted_at_each_level() -> None:
    config, _ = kinds.model_of("features")  # enters at 0.3 and 0.6
    reference = np.array([[0.1, 0.30], [0.59, 0.61]], np.float32)
    other = np.array([[0.1, 0.29], [0.60, 0.61]], np.float32)
    content = compare.risk_drift(config, reference, other)
    assert [(d["severity"], d["changed"], d["of"]) for d in content["decisions"]] == [
        ("elevated", 1, 4),
        ("high", 1, 4),
    ]
    assert content["risk"]["max"] == pytest.approx(0.01, abs=1e-6)
    assert content["risk"]["mean"] == pytest.approx(0.005, abs=1e-6)


@pytest.mark.parametrize("name", SHIPPED)
def test_fp16_keeps_the_shipped_models_risks(name: str) -> None:
    pair = compare.fp16_pair(repository.SHIPPED, name)
    outputs = compare.on_golden(pair, repository.SHIPPED)["outputs"]
    assert 0 < outputs["probability" if pair.reference.config.kind == "image" else "risk"]["max"] < 0.005


def test_data_of_another_kind_are_refused(tmp_path: Path) -> None:
    pair = compare.fp16_pair(repository.SHIPPED, "vitals")
    with pytest.raises(DatasetError, match="vitals is of kind windowed-series: medmnist does not fit it"):
        compare.on_data(pair, f"medmnist:{tmp_path}", lambda *_: None)


def test_differences_by_hand() -> None:
    reference = np.array([0.0, 0.0, 2.0, -4.0, 1e-9], np.float32)
    other = np.array([0.0, 0.001, 2.5, -3.0, -1e-9], np.float32)
    found = compare.difference(reference, other, "risk")
    absolute = [0.0, 0.001, 0.5, 1.0, 2e-9]
    # Over the greater magnitude, and at the least a thousandth of 4.
    relative = [0.0, 0.001 / 0.004, 0.5 / 2.5, 1.0 / 4.0, 2e-9 / 0.004]
    for came, expected in ((found, absolute), (found["relative"], relative)):
        assert came["max"] == pytest.approx(max(expected))
        assert came["mean"] == pytest.approx(sum(expected) / 5)
        ordered = sorted(expected)
        assert came["p99"] == pytest.approx(ordered[3] + 0.96 * (ordered[4] - ordered[3]))


def test_zeros_and_what_is_not_finite() -> None:
    zeros, ones = np.zeros(3, np.float32), np.ones(3, np.float32)
    nothing = {"max": 0.0, "mean": 0.0, "p99": 0.0}
    assert compare.difference(zeros, zeros, "risk") == nothing | {"relative": nothing}
    assert compare.difference(zeros, ones, "risk")["relative"]["max"] == 1.0
    with pytest.raises(BackendError, match="risk is not finite everywhere"):
        compare.difference(ones, np.array([1, np.nan, 1], np.float32), "risk")


BIAS = -25.0
"""What the plan's graph adds to the logit of `tiny`: it changes decisions on vital signs, which are large."""


@pytest.fixture
def biased(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    """The backend tensorrt-rtx is a fake whose plans hold another bias than model.onnx."""
    module = FakeTensorRT(FakeDriver())
    monkeypatch.setattr(tensorrt_load, "module_of", lambda _: module)
    monkeypatch.setattr(tensorrt_load, "cuda_driver", lambda: module.driver)
    monkeypatch.setattr(plans, "module_of", lambda _: module)
    monkeypatch.setattr(
        "engines.tensorrt_build.build", lambda *_: Built(graph(bias=BIAS), (), 1, (), (), None)
    )
    return module


def run(models: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["model", "compare", "tiny", "--repository", str(models), *arguments])


def test_two_backends_that_differ(biased: FakeTensorRT, repository_path: Path, tmp_path: Path) -> None:
    report, folder = tmp_path / "report.json", tmp_path / "plans"
    asked = ("--backend", "tensorrt-rtx", "--plans", str(folder), "--patients", "2")
    result = run(repository_path, *asked, "--report", str(report), "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content == json.loads(report.read_bytes())
    assert content["reference"] == {"backend": "onnxruntime-cpu", "precision": "fp32"}
    assert content["compared"] == {"backend": "tensorrt-rtx-cuda", "precision": "fp32"}

    golden = repository.read_golden(repository_path / "tiny" / "3" / "golden.npz")
    risk = golden["out/risk"].astype(np.float64)
    other = 1 / (1 + np.exp(-(np.log(risk / (1 - risk)) + BIAS)))
    found = content["golden"]["outputs"]
    assert found["risk"]["max"] == pytest.approx(np.abs(other - risk).max(), rel=1e-4)
    assert found["risk"]["mean"] == pytest.approx(np.abs(other - risk).mean(), rel=1e-4)
    assert found["risk"]["p99"] == pytest.approx(np.percentile(np.abs(other - risk), 99), rel=1e-4)
    relative = (risk - other) / risk  # the bias lowers every risk, and all are of one magnitude
    assert found["risk"]["relative"]["max"] == pytest.approx(relative.max(), rel=1e-4)
    assert found["risk"]["relative"]["mean"] == pytest.approx(relative.mean(), rel=1e-4)
    assert found["state_out"]["max"] == 0

    [simulated] = content["data"]
    assert simulated["risk"] == simulated["outputs"]["risk"]
    [level] = simulated["decisions"]
    assert (level["severity"], level["of"]) == ("high", 96)
    assert 0 < level["changed"] <= 96
    assert simulated["risk"]["max"] > 0.5
    assert "tensorrt-rtx-cuda fp32 against" in run(repository_path, *asked).stdout
    assert (folder / "tiny" / "3").is_dir()
    assert not (repository_path / "tiny" / "3" / "plans").exists()
    biased.driver.expect_clean()


def test_the_reference_can_be_chosen(biased: FakeTensorRT, repository_path: Path) -> None:
    asked = ("--backend", "onnxruntime", "--against", "tensorrt-rtx", "--patients", "1", "--json")
    content = json.loads(run(repository_path, *asked).stdout)
    assert content["reference"]["backend"] == "tensorrt-rtx-cuda"
    assert content["golden"]["outputs"]["risk"]["max"] > 0.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--backend", "tensorrt"), "tensorrt cannot run here: "),
        (("--backend", "onnxruntime", "--against", "tensorrt"), "tensorrt cannot run here: "),
        (("--backend", "cuda"), "no backend 'cuda'; there is onnxruntime, onnxruntime-cuda, tensorrt"),
        (("--backend", "onnxruntime"), "onnxruntime in fp32 against itself shows nothing"),
        (("--against", "tensorrt"), "--against is what --backend is compared with"),
    ],
)
def test_what_cannot_run_ends_it_before_anything_is_computed(
    repository_path: Path, arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compute(*_: object) -> None:
        raise AssertionError("computed")

    for name in ("pycuda", "pycuda.driver", "tensorrt"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(OnnxRuntimeEngine, "_execute", compute)
    result = run(repository_path, *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
