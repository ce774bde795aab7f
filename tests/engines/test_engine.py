"""What is ONNX Runtime's own; the contract of every backend is in contract.py."""

import pytest

from engines import onnxruntime_backend, repository
from engines.errors import BackendError
from tests.engines.conftest import config_of, graph


def test_a_provider_that_is_not_there_is_no_silent_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    content = graph()
    monkeypatch.setattr(onnxruntime_backend, "PROVIDER", "NoSuchExecutionProvider")
    with pytest.raises(BackendError, match=r"this ONNX Runtime has no NoSuchExecutionProvider; it has .*CPU"):
        repository.open_engine(config_of(content), content)
