"""What is ONNX Runtime's own; the contract of every backend is in contract.py."""

import onnxruntime as ort
import pytest

from engines import repository
from engines.errors import BackendError
from tests.engines.conftest import config_of, graph


def test_a_provider_that_is_not_there_is_no_silent_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    content = graph()
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["AzureExecutionProvider"])
    with pytest.raises(BackendError, match=r"this ONNX Runtime has no CPUExecutionProvider; it has Azure"):
        repository.open_engine(config_of(content), content)
