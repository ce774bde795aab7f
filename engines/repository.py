"""The model repository: folders in Triton's layout, checked whenever one is loaded.

<repository>/<name>/config.json            of the served version: tensors, policy, digest
<repository>/<name>/<version>/config.json  of that version, where it is not the served one
<repository>/<name>/<version>/model.onnx
<repository>/<name>/<version>/golden.npz   in/<tensor> and out/<tensor>: what must come out

Companions, beside the config that they go with:
    MODEL_CARD.md      for people: intended use, data, limits
    model_card.json    the same for machines; `schemas/model_card.py`
    evaluation.json    how good it was found to be
    evaluation.html    the same, for people
    reference.json     how its inputs and risks were distributed; `engines/drift.py`
    backtest.json      what its alert policy was found to do
    baselines.npz      what it was compared with; `engines/baselines.py`

Of the served version the config at the top counts, and `<version>/config.json` is what it was when it was put
there. `engines/versions.py` changes which version is served.
"""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from math import isqrt
from pathlib import Path

import numpy as np

from engines import memory, tensorrt_module
from engines.engine import F32, Engine
from engines.errors import BackendError, DigestError, GoldenError, GoldenFileError, RepositoryError
from engines.precision import Precision
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
BASELINES = "baselines.npz"
COMPANIONS = (CARD, MODEL_CARD, EVALUATION, PAGE, REFERENCE, BACKTEST, BASELINES)
ANEW = (
    "copy the version's folder again as a whole, or add the graph under another `version`: "
    "`riskstream model add GRAPH --config CONFIG --repository FOLDER` writes new golden data"
)
"""What to do where golden data cannot be read."""

SWITCHING = ".switching"
"""There while the companions at the top are exchanged, until the config is; `engines/versions.py`."""

REFERENCE_BACKEND = "onnxruntime"
"""The backend that others are held against, and that stands in for them."""

BACKENDS = (REFERENCE_BACKEND, "onnxruntime-cuda", *tensorrt_module.BACKENDS)


def list_models(repository: Path = SHIPPED) -> list[ModelConfig]:
    """Configs of every model folder, by name. Nothing but the configs is read.

    Raises:
        RepositoryError: the repository is not a folder, or a config cannot be used.
    """
    with _readable(repository):
        if not repository.is_dir():
            raise RepositoryError(f"no model repository at {repository}")
        return [read_config(repository, file.parent.name) for file in sorted(repository.glob(f"*/{CONFIG}"))]


def versions(repository: Path, name: str) -> list[int]:
    """Versions of a model that have a config: their own, or the one at the top.

    Raises:
        RepositoryError: there is no such model, or the config of the served version cannot be used.
    """
    served = read_config(repository, name).version
    with _readable(repository / name):
        found = (repository / name).glob(f"[1-9]*/{CONFIG}")
        return sorted({served} | {int(file.parent.name) for file in found if _numbered(file)})


def read_config(repository: Path, name: str, version: int | None = None) -> ModelConfig:
    """The config of one model.

    Args:
        repository: folder of model folders.
        name: of the model.
        version: the served one unless given.

    Raises:
        RepositoryError: there is no such model or version, or its config cannot be used.
    """
    path = repository / name / CONFIG
    with _readable(path):
        if not path.is_file():
            names = sorted(file.parent.name for file in repository.glob(f"*/{CONFIG}"))
            raise RepositoryError(f"no model {name!r} in {repository}; it has {names}")
    served = _config(path, name)
    if version is None or version == served.version:
        return served
    path = repository / name / str(version) / CONFIG
    with _readable(path):
        if not path.is_file():
            have = versions(repository, name)
            raise RepositoryError(f"no version {version} of {name} in {repository}; it has {have}")
    config = _config(path, name)
    if config.version != version:
        raise RepositoryError(f"{path}: version is {config.version}, the folder is {version}: make them one")
    return config


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Nothing of a folder that may not be read, or whose mount is stale, is there to be used."""
    try:
        yield
    except OSError as error:
        raise RepositoryError(f"cannot read {error.filename or path}: {error.strerror}") from error


def companions(repository: Path, config: ModelConfig) -> Path:
    """The folder of a version's card, evaluation, reference and the like.

    At the top for the served version, unless an exchange was begun and not ended: then with the version,
    where they were put before it began.
    """
    top = repository / config.name
    own = top / str(config.version)
    if not (own / CONFIG).is_file():
        return top
    served = read_config(repository, config.name).version == config.version
    return top if served and not (top / SWITCHING).exists() else own


def load(
    repository: Path,
    name: str,
    backend: str = REFERENCE_BACKEND,
    plans: Path | None = None,
    version: int | None = None,
    memory_limit: int | None = None,
    *,
    precision: Precision = "fp32",
    read_only: bool = False,
) -> Engine:
    """Load a model and prove it: memory, digest, tensors, golden data, the same in batches of other sizes.

    By then whatever the runtime makes when a batch size first comes is made.

    Args:
        repository: the folder of model folders.
        name: of the model.
        backend: one of `BACKENDS`.
        plans: folder to keep plans in; beside the model unless given. Only backends of plans look at it.
        version: the served one unless given.
        memory_limit: bytes that it may take: of the GPU's memory where one computes it, else the machine's.
        precision: of the plan; the other backends compute the graph as it is.
        read_only: write no plan, and nothing beside one.

    Raises:
        NoPlanError: the backend runs plans, none is current, and none may be written.
        MemoryBudgetError: it needs more than that, or than there is; nothing was loaded.
        RepositoryError: the folder or a file is missing or cannot be read.
        DigestError: model.onnx is not the file named by config.json.
        GraphError: the graph cannot be loaded or does not fit config.json.
        GoldenFileError: golden.npz is missing or damaged.
        GoldenError: the engine computes something else than golden.npz.
        InputError: the inputs of golden.npz do not fit config.json.
        BackendError: the backend is unknown, cannot run here or not in this precision; no other is taken
            instead.
        BuildError: the backend runs plans, and this model's cannot be built or written.
    """
    config = read_config(repository, name, version)
    engine = load_unproved(
        repository, config, backend, plans, memory_limit, precision=precision, read_only=read_only
    )
    try:
        golden = golden_of(repository, config)
        verify(engine, golden)
        warm_up(engine, golden)
    except BaseException:
        engine.close()
        raise
    return engine


def load_unproved(
    repository: Path,
    config: ModelConfig,
    backend: str,
    plans: Path | None = None,
    memory_limit: int | None = None,
    *,
    precision: Precision = "fp32",
    read_only: bool = False,
) -> Engine:
    """As `load`, without the golden data: for measuring how far an engine lies from them."""
    if backend in tensorrt_module.BACKENDS:
        from engines.tensorrt_load import load_plan

        return load_plan(repository, config, backend, plans, memory_limit, precision, read_only=read_only)
    if precision != "fp32":
        raise BackendError(
            f"{backend} computes model.onnx as it is: precision {precision} is of plans, which "
            f"{' and '.join(tensorrt_module.BACKENDS)} run"
        )
    _require_memory(repository, config, backend, memory_limit)
    return open_engine(config, read_graph(repository, config), backend)


def read_graph(repository: Path, config: ModelConfig) -> bytes:
    """The model's graph, model.onnx of the config's version.

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


def golden_of(repository: Path, config: ModelConfig) -> dict[str, F32]:
    """The arrays of the golden.npz of the config's version.

    Raises:
        GoldenFileError: the file is missing or damaged.
    """
    return read_golden(repository / config.name / str(config.version) / GOLDEN)


def open_engine(config: ModelConfig, graph: bytes, backend: str = REFERENCE_BACKEND) -> Engine:
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

    return OnnxRuntimeEngine(config, graph, CPU if backend == REFERENCE_BACKEND else CUDA)


def read_golden(path: Path) -> dict[str, F32]:
    """The arrays of a golden.npz.

    Raises:
        GoldenFileError: the file is missing or damaged.
    """
    try:
        content = _bytes(path)
    except RepositoryError as error:
        raise GoldenFileError(f"{error}; {ANEW}") from error
    if not content.startswith(b"PK"):  # numpy would take it for a pickle, and tell how to open it unsafely
        raise GoldenFileError(f"{path} is not a readable .npz: it is no zip archive; {ANEW}")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except Exception as error:  # of damaged bytes zipfile, zlib and numpy's parser of headers raise anything
        why = str(error) or type(error).__name__
        raise GoldenFileError(f"{path} is not a readable .npz: {why}; {ANEW}") from error


def verify(engine: Engine, golden: dict[str, F32]) -> None:
    """Run the golden inputs, in each place that batches are computed in, and compare.

    Raises:
        GoldenError: an output is absent, of another shape or no numbers with a fraction, or differs by more
            than the engine's `golden_tolerance`.
        InputError: the golden inputs do not fit the config.
    """
    inputs = {key.removeprefix("in/"): array for key, array in golden.items() if key.startswith("in/")}
    expected = {key.removeprefix("out/"): array for key, array in golden.items() if key.startswith("out/")}
    for actual in engine.run_in_each(inputs):
        _compare(engine, actual, expected)


def _compare(engine: Engine, actual: dict[str, F32], expected: dict[str, F32]) -> None:
    name, tolerance = engine.config.name, engine.golden_tolerance
    rows = len(next(iter(actual.values())))
    if expected.keys() != actual.keys():
        raise GoldenError(f"{name}: golden.npz has outputs {sorted(expected)}, the engine {sorted(actual)}")
    for tensor, array in expected.items():
        came = actual[tensor]
        if array.shape != came.shape or array.dtype.kind != "f":
            raise GoldenError(
                f"{name}: {tensor} is {array.dtype}{list(array.shape)} in golden.npz, the engine gave "
                f"{came.dtype}{list(came.shape)}"
            )
        difference = float(np.max(np.abs(array - came)))
        if not difference <= tolerance:  # so that NaN fails
            raise GoldenError(
                f"{name}: {tensor} differs from golden.npz by {difference:.3g}, over {tolerance:g}, in a "
                f"batch of {rows}"
            )


def warm_up(engine: Engine, golden: dict[str, F32]) -> None:
    """Run the golden rows again in batches of one, of some and of as many as there may be, and compare.

    Runtimes choose kernels and allocate buffers when a size first comes: here, not under the first patients.

    Raises:
        GoldenError, InputError: as `verify`.
    """
    compared = {key: array for key, array in golden.items() if key.startswith(("in/", "out/"))}
    rows = len(next(iter(compared.values())))
    most = engine.config.dynamic_batching.max_batch_size
    sizes = {1, min(2, most)} if engine.one_by_one else {1, isqrt(most), most}
    for size in sorted(sizes):
        chosen = np.arange(size) % rows
        verify(engine, {key: array[chosen] for key, array in compared.items()})


def _require_memory(repository: Path, config: ModelConfig, backend: str, limit: int | None) -> None:
    """Refuse a graph that would not fit, before it is read."""
    from engines.onnxruntime_backend import runs_one_by_one

    on_gpu = backend == "onnxruntime-cuda"
    file = repository / config.name / str(config.version) / GRAPH
    try:
        size = file.stat().st_size
    except OSError as error:
        raise RepositoryError(f"cannot read {file}: {error.strerror}") from error
    needed = memory.of_graph(config, size, one_by_one=not on_gpu and runs_one_by_one(config))
    if on_gpu:
        memory.require(config, needed, limit, tensorrt_module.free_memory_if_known(), "the GPU")
        needed, limit = memory.GRAPH_COPIES * size, None
    memory.require(config, needed, limit, memory.available(), "the machine")


def _config(path: Path, name: str) -> ModelConfig:
    try:
        config = model_config.load(path)
    except ModelConfigError as error:
        raise RepositoryError(str(error)) from error
    if config.name != name:
        raise RepositoryError(f"{path}: name is {config.name!r}, the folder is {name!r}; they must agree")
    return config


def _numbered(file: Path) -> bool:
    return file.parent.name.isascii() and file.parent.name.isdigit()


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RepositoryError(f"cannot read {path}: {error.strerror}") from error
    except MemoryError as error:
        raise RepositoryError(f"cannot read {path}: it does not fit in memory") from error
