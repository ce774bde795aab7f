"""ONNX Runtime's CUDA provider where there is none: it is refused, and the CPU never computes in its place.

What it computes on a GPU is tested in test_gpu.py.
"""

import re
from pathlib import Path

import onnxruntime as ort
import pytest

from engines import repository
from engines.errors import BackendError
from tests.engines.conftest import config_of, graph

BACKEND = "onnxruntime-cuda"
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
INSTALL = f"pip install 'onnxruntime-gpu[cuda,cudnn]=={ort.__version__}' in its place"


@pytest.fixture
def without_cuda() -> None:
    if CUDA in ort.get_available_providers():
        pytest.skip(f"this ONNX Runtime has the {CUDA}")


@pytest.mark.usefixtures("without_cuda")
def test_a_build_without_the_provider_says_what_to_install(repository_path: Path) -> None:
    wanted = (
        rf"{BACKEND} cannot run here: this ONNX Runtime .* has no {CUDA} .*{re.escape(INSTALL)}.* CUDA 13"
    )
    with pytest.raises(BackendError, match=wanted):
        repository.load(repository_path, "tiny", BACKEND)


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.usefixtures("without_cuda")
def test_a_provider_that_cannot_load_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime itself, told to use a provider that it cannot load: it would take the CPU's."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, CPU])
    content = graph()
    with pytest.raises(BackendError, match=r"does not put model.onnx on the GPU \(.*disabled by the user"):
        repository.open_engine(config_of(content), content, BACKEND)


def test_a_session_on_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[list[object], int]] = []

    class OnCpu(ort.InferenceSession):  # type: ignore[misc]
        def __init__(self, graph: bytes, _: object, providers: list[object], enable_fallback: int) -> None:
            asked.append((providers, enable_fallback))
            super().__init__(graph, providers=[CPU])

    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(ort, "InferenceSession", OnCpu)
    content = graph()
    with pytest.raises(BackendError, match=rf"asked ONNX Runtime for {CUDA}, got \['{CPU}'\]: pip uninstall"):
        repository.open_engine(config_of(content), content, BACKEND)
    assert asked == [([(CUDA, {"use_tf32": "0"})], 0)]
