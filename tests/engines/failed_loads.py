"""Loads that fail, over and over, in a process of their own; test_failed_loads.py runs it.

python -m tests.engines.failed_loads FOLDER prints {kind: [bytes, file descriptors, threads]} that are left
"""

import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from engines import plans, repository, tensorrt_build, tensorrt_load
from engines.engine import Engine
from engines.errors import (
    BackendError,
    DigestError,
    EngineError,
    GoldenError,
    GoldenFileError,
    GraphError,
    MemoryBudgetError,
)
from engines.tensorrt_build import Built
from tests.engines.conftest import config_of, golden_of, graph, tiny_inputs, tiny_outputs
from tests.engines.fake_cuda import FakeDriver
from tests.engines.fake_tensorrt import FakeTensorRT

WARM_UP, TIMES = 20, 100
GRAPH, INPUTS = graph(), tiny_inputs(5)
GOLDEN = golden_of(INPUTS, tiny_outputs(INPUTS))


def main(folder: Path) -> None:
    """Fail in every way, and tell what grew."""
    driver = FakeDriver()
    module = FakeTensorRT(driver)
    _install(module)
    kinds: dict[str, tuple[type[EngineError], Callable[[], Engine]]] = {
        "digest": (DigestError, _load(_model(folder, "digest", given=graph(bias=0.1)))),
        "damaged graph": (GraphError, _load(_model(folder, "graph", GRAPH[:-20]))),
        "wrong tensors": (GraphError, _load(_model(folder, "tensors", graph(width=5)))),
        "golden": (GoldenError, _load(_model(folder, "golden", graph(bias=0.1)))),
        "damaged golden": (GoldenFileError, _load(_model(folder, "npz", golden=GOLDEN[:200]))),
        "over budget": (MemoryBudgetError, _load(_model(folder, "budget"), memory_limit=1)),
        "corrupt plan": (BackendError, _load(_model(folder, "plan"), backend="tensorrt-rtx")),
        "golden of a plan": (
            GoldenError,
            _load(_model(folder, "plan-golden", graph(bias=0.1)), backend="tensorrt-rtx"),
        ),
        "over the GPU's memory": (MemoryBudgetError, _load(_model(folder, "gpu"), backend="tensorrt-rtx")),
    }
    found = {}
    for kind, (error, load) in kinds.items():
        module.refusal = "the plan is damaged" if kind == "corrupt plan" else None
        module.context_bytes = 1 << 40 if kind == "over the GPU's memory" else 0
        found[kind] = _left(error, load)
    driver.expect_clean()
    good = _load(_model(folder, "good"))
    held: list[Engine] = []
    found["control: engines that nobody closes"] = _measured(lambda: held.append(good()))
    print(json.dumps(found))


def _install(module: FakeTensorRT) -> None:
    """The fakes in place of TensorRT and CUDA, and the graph in place of a plan."""
    patch = pytest.MonkeyPatch()
    patch.setattr(tensorrt_load, "module_of", lambda _: module)
    patch.setattr(plans, "module_of", lambda _: module)
    patch.setattr(tensorrt_load, "cuda_driver", lambda: module.driver)
    patch.setattr(tensorrt_build, "build", lambda _, graph, *__: Built(graph, (), 1, (), (), None))


def _model(
    folder: Path, name: str, named: bytes = GRAPH, golden: bytes = GOLDEN, given: bytes | None = None
) -> Path:
    """A repository of `tiny`; config.json names the digest of `named`, model.onnx is `given` if it is."""
    models = folder / name
    (models / "tiny/3").mkdir(parents=True)
    (models / "tiny/config.json").write_bytes(msgspec.json.encode(config_of(named)))
    (models / "tiny/3/model.onnx").write_bytes(named if given is None else given)
    (models / "tiny/3/golden.npz").write_bytes(golden)
    return models


def _load(
    models: Path, backend: str = "onnxruntime", memory_limit: int | None = None
) -> Callable[[], Engine]:
    return lambda: repository.load(models, "tiny", backend, memory_limit=memory_limit)


def _left(error: type[EngineError], load: Callable[[], Engine]) -> list[int]:
    def fail() -> None:
        try:
            load()
        except error:
            return
        raise AssertionError(f"no {error.__name__}")

    return _measured(fail)


def _measured(once: Callable[[], object]) -> list[int]:
    """What a hundred calls leave behind, after some that fill caches: bytes, descriptors, threads."""
    for _ in range(WARM_UP):
        once()
    before = _held()
    for _ in range(TIMES):
        once()
    return [now - then for now, then in zip(_held(), before, strict=True)]


def _held() -> tuple[int, int, int]:
    gc.collect()
    status = Path("/proc/self/status").read_text()
    resident = int(status.split("VmRSS:")[1].split()[0]) << 10
    return resident, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
