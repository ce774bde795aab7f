"""Is a model folder fit to be served? Everything that the worker relies on, tried on the model itself.

config     config.json can be used, and names the folder
files      model.onnx is the one that config.json names, its tensors are those, golden.npz agrees
outputs    on random inputs: finite, risks and probabilities between 0 and 1, not all the same
hostile    the same, where nothing was measured or everything is at the edge of what is plausible
batches    row i of a batch has the same bytes alone and among others; on a GPU, where kernels may differ by
           batch size, the same within the engine's golden tolerance
speed      milliseconds a row, alone and in company; never a complaint
reference  of a series model: reference.json is this model's; without one drift is not watched, no complaint
"""

import hashlib
import io
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from engines import drift_reference, repository, synthetic
from engines.engine import F32, Engine
from engines.errors import BackendError, EngineError, RepositoryError
from engines.precision import Precision
from schemas.model_config import ModelConfig

ROWS = 64
"""Random rows that a model is tried on, where its largest batch allows."""

GOLDEN_ROWS = 16
"""Rows of golden data: enough to notice another graph, few enough to load fast."""

TIMED_S = 0.3
"""Seconds for each measurement of speed."""


class Finding(NamedTuple):
    """One check: what was looked at, whether it is well, and what was found."""

    subject: str
    well: bool
    detail: str


def check(
    models: Path,
    name: str,
    backend: str = repository.REFERENCE_BACKEND,
    version: int | None = None,
    *,
    precision: Precision = "fp32",
    plans: Path | None = None,
) -> list[Finding]:
    """Check a model of a repository; what cannot be looked at because of an earlier finding is left out.

    Args:
        models: the repository.
        name: of the model.
        backend: that computes it.
        version: the served one unless given.
        precision: of the plan, where the backend runs one.
        plans: folder to keep plans in; beside the model unless given.
    """
    try:
        config = repository.read_config(models, name, version)
    except EngineError as error:
        return [Finding("config", False, str(error))]
    findings = [Finding("config", True, f"{config.kind}, version {config.version}")]
    try:
        engine = repository.load(models, name, backend, plans, version, precision=precision)
    except BackendError as error:
        return [*findings, Finding("backend", False, str(error))]
    except EngineError as error:
        return [*findings, Finding("files", False, f"{error.reason}: {error}")]
    findings.append(Finding("files", True, f"digest {config.digest[:12]}, tensors and golden data agree"))
    batches = _batches if backend == repository.REFERENCE_BACKEND else _batches_nearly
    checks = {"outputs": _outputs, "hostile": _hostile, "batches": batches, "speed": _speed}
    for subject, look in checks.items():
        findings.append(_found(subject, look, engine))
    engine.close()
    return [*findings, *_reference(models, config)]


def _reference(models: Path, config: ModelConfig) -> list[Finding]:
    if config.kind == "image":
        return []
    if not (repository.companions(models, config) / repository.REFERENCE).exists():
        remedy = (
            f"`riskstream model reference {config.name} --version {config.version} --data SOURCE` makes one"
        )
        return [Finding("reference", True, f"none, so that drift is not watched; {remedy}")]
    try:
        found = drift_reference.read(models, config)
    except EngineError as error:
        return [Finding("reference", False, f"{error.reason}: {error}")]
    return [Finding("reference", True, f"{found.hours:,} patient-hours of {found.stays:,} stays")]


def _found(subject: str, look: Callable[[Engine], tuple[bool, str]], engine: Engine) -> Finding:
    try:
        return Finding(subject, *look(engine))
    except EngineError as error:
        return Finding(subject, False, f"{error.reason}: {error}")


def _outputs(engine: Engine) -> tuple[bool, str]:
    outputs = synthetic.in_batches(engine, synthetic.inputs(engine, ROWS))
    complaints = faults(outputs)
    answer = outputs[_answer(engine)]
    if np.ptp(answer.reshape(len(answer), -1), axis=0).max() == 0:
        complaints.append("every random row gets the same answer")
    if complaints:
        return False, "; ".join(complaints)
    told = answer if answer.ndim == 1 else answer.max(axis=1)
    return True, f"{len(answer)} random rows: {_answer(engine)} from {told.min():.3g} to {told.max():.3g}"


def _hostile(engine: Engine) -> tuple[bool, str]:
    inputs = synthetic.hostile(engine)
    number = len(next(iter(inputs.values())))
    complaints = faults(synthetic.in_batches(engine, inputs))
    return not complaints, "; ".join(complaints) or f"{number} rows at the edges of what can come"


def _batches(engine: Engine) -> tuple[bool, str]:
    return _companies(engine, lambda _, one, other: one.tobytes() == other.tobytes(), "have the same bytes")


def _batches_nearly(engine: Engine) -> tuple[bool, str]:
    def alike(name: str, one: F32, other: F32) -> bool:
        return bool(np.max(np.abs(one - other)) <= engine.golden_tolerance(name))

    answer = _answer(engine)
    return _companies(
        engine,
        alike,
        f"agree within the golden tolerance, {answer} within {engine.golden_tolerance(answer):g},",
    )


def _companies(engine: Engine, alike: Callable[[str, F32, F32], bool], told: str) -> tuple[bool, str]:
    """Whether rows are alike alone, in parts of a batch and in all of it."""
    rows = _rows(engine)
    if rows == 1:
        return True, "it takes one row at a time"
    inputs = synthetic.inputs(engine, rows, seed=1)
    together = engine.run(inputs)
    for chosen in (*([i] for i in range(rows)), range(rows // 2), range(1, rows, 3)):
        part = engine.run({name: array[list(chosen)] for name, array in inputs.items()})
        for name, array in part.items():
            if not alike(name, array, together[name][list(chosen)]):
                return False, f"{name} of a row differs between a batch of {rows} and one of {len(chosen)}"
    return True, f"{rows} rows {told} alone, in parts and together"


def _speed(engine: Engine) -> tuple[bool, str]:
    told = []
    most = _rows(engine)
    inputs = synthetic.inputs(engine, most)
    for size in sorted({1, most}):
        part = {name: array[:size] for name, array in inputs.items()}
        runs, started = 0, time.perf_counter()
        while not runs or time.perf_counter() - started < TIMED_S:
            engine.run(part)
            runs += 1
        took_ms = 1000 * (time.perf_counter() - started) / runs
        told.append(f"{took_ms / size:.3g} ms a row in batches of {size}")
    return True, f"{', '.join(told)} on {engine.backend}"


def add(models: Path, graph: bytes, config: Path) -> ModelConfig:
    """Make a model folder from a graph and its config, or a version beside those that a folder has.

    Writes the digest and golden data of synthetic rows. The first version of a name is served; a later one is
    not until `versions.serve`.

    Golden data of one's own, from the framework that trained the model, are better: they also show that the
    export is right. Put them in place of these.

    Args:
        models: the repository; made where it is not there.
        graph: content of model.onnx.
        config: a config.json, of which `digest` may be missing.

    Raises:
        RepositoryError: the config cannot be used, or the repository has this version already.
        GraphError: the graph cannot be loaded or does not fit the config.
    """
    content = _read(config) | {"digest": hashlib.sha256(graph).hexdigest()}
    models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".adding-", dir=models) as folder:
        made = Path(folder) / str(content.get("name")) / repository.CONFIG
        made.parent.mkdir()
        made.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
        loaded = repository.read_config(Path(folder), made.parent.name)
        version = made.parent / str(loaded.version)
        version.mkdir()
        (version / repository.GRAPH).write_bytes(graph)
        engine = repository.open_engine(loaded, graph)
        (version / repository.GOLDEN).write_bytes(golden(engine))
        (version / repository.CONFIG).write_bytes(made.read_bytes())
        engine.close()
        place = models / loaded.name
        if (place / version.name).exists():
            raise RepositoryError(f"{place} has version {version.name} already; raise `version` in {config}")
        place.mkdir(exist_ok=True)
        version.rename(place / version.name)
        if not (place / repository.CONFIG).exists():
            made.replace(place / repository.CONFIG)
    return loaded


def golden(engine: Engine, seed: int = 0) -> bytes:
    """The content of a golden.npz: synthetic inputs, and what this engine makes of them."""
    given = synthetic.inputs(engine, min(_rows(engine), GOLDEN_ROWS), seed)
    arrays = {f"in/{name}": array for name, array in given.items()}
    arrays |= {f"out/{name}": array for name, array in engine.run(given).items()}
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    return file.getvalue()


def _read(config: Path) -> dict[str, Any]:
    try:
        content = msgspec.json.decode(config.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise RepositoryError(f"cannot read {config}: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise RepositoryError(f"{config}: {error}") from error
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", str(content.get("name"))):
        raise RepositoryError(
            f"{config}: name must be small letters, digits, - and _, came {content.get('name')!r}"
        )
    return content


def faults(outputs: Mapping[str, F32]) -> list[str]:
    """What is wrong with a model's answers."""
    found = [f"{name} is not finite" for name, array in outputs.items() if not np.isfinite(array).all()]
    for name in ("risk", "probability"):
        array = outputs.get(name)
        if array is not None and not ((array >= 0) & (array <= 1)).all():
            found.append(f"{name} is not between 0 and 1")
    probability, spread = outputs.get("probability"), outputs.get("spread")
    if probability is not None and not np.allclose(probability.sum(axis=1), 1, atol=1e-3):
        found.append("probability does not add up to 1 over the classes")
    if spread is not None and (spread < 0).any():
        found.append("spread is below 0")
    return found


def _rows(engine: Engine) -> int:
    return min(ROWS, engine.config.dynamic_batching.max_batch_size)


def _answer(engine: Engine) -> str:
    return "probability" if engine.config.kind == "image" else "risk"
