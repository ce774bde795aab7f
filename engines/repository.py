"""The model repository: folders in Triton's layout, checked whenever one is loaded.

<repository>/<name>/config.json            tensors, policy, digest; `schemas/model_config.py`
<repository>/<name>/<version>/model.onnx
<repository>/<name>/<version>/golden.npz   in/<tensor> and out/<tensor>: what must come out
<repository>/<name>/MODEL_CARD.md          for people: intended use, data, limits
<repository>/<name>/model_card.json        the same for machines; `schemas/model_card.py`
<repository>/<name>/evaluation.json        how good it was found to be
<repository>/<name>/evaluation.html        the same, for people
<repository>/<name>/reference.json         how its inputs and risks were distributed; `engines/drift.py`
<repository>/<name>/backtest.json          what its alert policy was found to do
"""

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np

from engines import tensorrt_module
from engines.engine import F32, Engine
from engines.errors import BackendError, DigestError, EngineError, GoldenError, RepositoryError
from schemas import model_config
from schemas.errors import ModelConfigError
from schemas.model_config import ModelConfig

SHIPPED = Path(__file__).parent / "models"
"""The repository that comes with the package."""

CONFIG, GRAPH, GOLDEN = "config.json", "model.onnx", "golden.npz"
CARD, MODEL_CARD, EVALUATION = "MODEL_CARD.md", "model_card.json", "evaluation.json"
PAGE = "evaluation.html"
REFERENCE = "reference.json"
BACKTEST = "backtest.json"

BACKENDS = ("onnxruntime", "onnxruntime-cuda", *tensorrt_module.BACKENDS)


def list_models(repository: Path = SHIPPED) -> list[ModelConfig]:
    """Configs of every model folder, by name. Nothing but the configs is read.

    Raises:
        RepositoryError: the repository is not a folder, or a config cannot be used.
    """
    if not repository.is_dir():
        raise RepositoryError(f"no model repository at {repository}")
    return [read_config(repository, file.parent.name) for file in sorted(repository.glob(f"*/{CONFIG}"))]


def read_config(repository: Path, name: str) -> ModelConfig:
    """The config of one model.

    Raises:
        RepositoryError: there is no such model, or its config cannot be used.
    """
    path = repository / name / CONFIG
    if not path.is_file():
        have = sorted(file.parent.name for file in repository.glob(f"*/{CONFIG}"))
        raise RepositoryError(f"no model {name!r} in {repository}; it has {have}")
    try:
        config = model_config.load(path)
    except ModelConfigError as error:
        raise RepositoryError(str(error)) from error
    if config.name != name:
        raise RepositoryError(f"{path}: name is {config.name!r}, the folder is {name!r}; they must agree")
    return config


def load(repository: Path, name: str, backend: str = "onnxruntime", plans: Path | None = None) -> Engine:
    """Load a model and prove it: digest, tensors, golden data.

    Args:
        repository: the folder of model folders.
        name: of the model.
        backend: one of `BACKENDS`.
        plans: folder to keep plans in; beside the model unless given. Only backends of plans look at it.

    Raises:
        RepositoryError: the folder or a file is missing or cannot be read.
        DigestError: model.onnx is not the file named by config.json.
        GraphError: the graph cannot be loaded or does not fit config.json.
        GoldenError: the engine computes something else than golden.npz.
        BackendError: the backend is unknown or cannot run here; no other is taken instead.
        BuildError: the backend runs plans, and this model's cannot be built or written.
    """
    config = read_config(repository, name)
    engine = load_unproved(repository, config, backend, plans)
    try:
        verify(engine, read_golden(repository / name / str(config.version) / GOLDEN))
    except EngineError:
        engine.close()
        raise
    return engine


def load_unproved(repository: Path, config: ModelConfig, backend: str, plans: Path | None = None) -> Engine:
    """As `load`, without the golden data: for measuring how far an engine lies from them."""
    if backend in tensorrt_module.BACKENDS:
        from engines.tensorrt_load import load_plan

        return load_plan(repository, config, backend, plans)
    return open_engine(config, read_graph(repository, config), backend)


def read_graph(repository: Path, config: ModelConfig) -> bytes:
    """The model's graph, model.onnx.

    Raises:
        RepositoryError: it is missing.
        DigestError: it is not the file named by config.json.
    """
    file = repository / config.name / str(config.version) / GRAPH
    graph = _bytes(file)
    digest = hashlib.sha256(graph).hexdigest()
    if digest != config.digest:
        raise DigestError(f"{file} has SHA-256 {digest}, config.json names {config.digest}")
    return graph


def open_engine(config: ModelConfig, graph: bytes, backend: str = "onnxruntime") -> Engine:
    """An engine for a graph whose digest and golden data nobody has checked.

    Raises:
        GraphError: the graph cannot be loaded or does not fit the config.
        BackendError: the backend is unknown or cannot run here.
        BuildError: the backend runs plans, and the graph cannot be compiled.
    """
    if backend in tensorrt_module.BACKENDS:
        from engines.tensorrt_load import build_engine

        return build_engine(config, graph, backend)
    if backend not in BACKENDS:
        raise BackendError(f"no backend {backend!r}; there is {', '.join(BACKENDS)}")
    from engines.onnxruntime_backend import CPU, CUDA, OnnxRuntimeEngine

    return OnnxRuntimeEngine(config, graph, CPU if backend == "onnxruntime" else CUDA)


def read_golden(path: Path) -> dict[str, F32]:
    """The arrays of a golden.npz.

    Raises:
        RepositoryError: the file is missing or damaged.
    """
    content = io.BytesIO(_bytes(path))
    try:
        with np.load(content, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (TypeError, ValueError, OSError, zipfile.BadZipFile, EOFError, KeyError) as error:
        raise RepositoryError(f"{path} is not a readable .npz: {error}") from error


def verify(engine: Engine, golden: dict[str, F32]) -> None:
    """Run the golden inputs and compare.

    Raises:
        GoldenError: an output is absent, has another shape, or differs by more than `golden_tolerance`.
        InputError: the golden inputs do not fit the config.
    """
    inputs = {key.removeprefix("in/"): array for key, array in golden.items() if key.startswith("in/")}
    expected = {key.removeprefix("out/"): array for key, array in golden.items() if key.startswith("out/")}
    name, tolerance = engine.config.name, engine.config.golden_tolerance
    actual = engine.run(inputs)
    if expected.keys() != actual.keys():
        raise GoldenError(f"{name}: golden.npz has outputs {sorted(expected)}, the engine {sorted(actual)}")
    for tensor, array in expected.items():
        came = actual[tensor]
        if array.shape != came.shape:
            raise GoldenError(
                f"{name}: {tensor} is {array.shape} in golden.npz, the engine gave {came.shape}"
            )
        difference = float(np.max(np.abs(array - came)))
        if not difference <= tolerance:  # so that NaN fails
            raise GoldenError(
                f"{name}: {tensor} differs from golden.npz by {difference:.3g}, over {tolerance:g}"
            )


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RepositoryError(f"cannot read {path}: {error.strerror}") from error
