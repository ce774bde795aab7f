"""A worker whose backend cannot run: the reference stands in, and says so."""

import sys

import pytest
from prometheus_client import REGISTRY
from typer.testing import CliRunner

from worker.cli import app
from worker.config import Settings
from worker.serving import Ladder


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.mark.parametrize("backend", ["onnxruntime-cuda", "tensorrt", "tensorrt-rtx"])
async def test_a_missing_library_is_replaced_by_the_reference(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pycuda", "pycuda.driver", "tensorrt"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setenv("RISKSTREAM_BACKEND", backend)
    step = {"model": "vitals", "backend": "onnxruntime-cpu", "reason": "loaded"}
    before = sample("riskstream_ladder_steps_total", **step)
    ladder = Ladder(Settings())
    await ladder.start()
    try:
        assert ladder.current.backend == "onnxruntime-cpu"
        assert ladder.current.rung == 1
        assert sample("riskstream_ladder_rung", model="vitals") == 1
        assert sample("riskstream_ladder_steps_total", **step) == before + 1
    finally:
        await ladder.close()


def test_an_unknown_backend_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RISKSTREAM_BACKEND", "cuda")
    result = CliRunner().invoke(app, ["run"])
    assert result.exit_code != 0
