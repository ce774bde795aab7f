"""A worker that is asked for a backend which cannot run does not start, and serves no other."""

import sys

import pytest
from typer.testing import CliRunner

from engines.errors import BackendError
from worker.app import Worker
from worker.cli import app
from worker.config import Settings


@pytest.mark.parametrize("backend", ["onnxruntime-cuda", "tensorrt", "tensorrt-rtx"])
def test_it_refuses_to_start(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pycuda", "pycuda.driver", "tensorrt"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setenv("RISKSTREAM_BACKEND", backend)
    worker = Worker(Settings())
    with pytest.raises(BackendError, match=f"{backend} cannot run here: "):
        worker._load_engine()


def test_an_unknown_backend_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RISKSTREAM_BACKEND", "cuda")
    result = CliRunner().invoke(app, ["run"])
    assert result.exit_code != 0
