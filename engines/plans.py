"""Plans, cached beside their model, each with its provenance.

In <repository>/<name>/<version>/plans:
    <backend>-<module version>-<architecture>-<precision>-<min>-<opt>-<max>.plan
    and the same with .json: what it was made of, `Provenance`

A plan is used only if its provenance names the digests of the model, of the graph that was parsed and of the
plan's own bytes, as they are now. Anything else is stale: it is built again in its place, never used. Of
several that the GPU can run, the one built last serves (`last_built`).
"""

import hashlib
import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import Struct

from engines import repository, tensorrt_build
from engines.errors import BuildError, ExtraError, NoPlanError
from engines.precision import Precision, to_fp16
from engines.tensorrt_build import PlanTensor, Profile
from engines.tensorrt_module import message_log, module_of
from schemas.model_config import ModelConfig

PLANS = "plans"
"""Folder within a model's version."""

NEVER_RUN = "compiled, never executed"


class Key(Struct, frozen=True):
    """What decides a plan's bytes, as far as they can be decided: builds of equal keys may differ.

    digest: SHA-256 of model.onnx.
    graph_digest: SHA-256 of the graph that was parsed: model.onnx, or what fp16 made of it.
    """

    model: str
    version: int
    digest: str
    graph_digest: str
    backend: str
    module_version: str
    architecture: str
    precision: str
    profile: tuple[int, int, int]

    @property
    def stem(self) -> str:
        """File name of the plan, without suffix."""
        sizes = "-".join(map(str, self.profile))
        return f"{self.backend}-{self.module_version}-{self.architecture}-{self.precision}-{sizes}"


class Provenance(Struct, frozen=True):
    """What is known of a plan from its build.

    plan_digest: SHA-256 of the plan. seconds: that the build took. messages: warnings of the build.
    """

    key: Key
    tensors: tuple[PlanTensor, ...]
    network_layers: int
    flags: tuple[str, ...]
    messages: tuple[str, ...]
    plan_digest: str
    plan_bytes: int
    built: datetime
    built_on: str
    seconds: float


class Obtained(NamedTuple):
    """A plan's file, its provenance, and whether it was `cached`, `built` or `rebuilt`, and why."""

    path: Path
    provenance: Provenance
    how: Literal["cached", "built", "rebuilt"]
    why: str


def obtain(
    models: Path,
    name: str,
    backend: str,
    precision: Precision = "fp32",
    profile: Profile | None = None,
    architecture: str | None = None,
    plans: Path | None = None,
    version: int | None = None,
    *,
    read_only: bool = False,
) -> Obtained:
    """The plan of a model: from the cache if it is current, else built.

    Args:
        models: the model repository.
        name: of the model.
        backend: `tensorrt` or `tensorrt-rtx`.
        precision: fp16 converts the graph first (`engines/precision.py`).
        profile: batch sizes; 1, 32 and the model's greatest unless given.
        architecture: as `tensorrt_build.architecture` takes it.
        plans: folder to keep plans in, as <plans>/<name>/<version>; beside the model unless given.
        version: of the model; the served one unless given.
        read_only: build and write nothing.

    Raises:
        NoPlanError: nothing may be built, and there is no current plan.
        RepositoryError, DigestError: the model cannot be read.
        ExtraError: the module, or for fp16 `onnx`, is not installed.
        GraphError: the graph cannot be converted to fp16.
        BuildError: it cannot be built, the plan cannot be written, or the profile's batches are larger than
            the model's.
    """
    config = repository.read_config(models, name, version)
    parsed = _parsed(models, config, precision)
    module = module_of(backend)
    chosen = profile or Profile.of(config)
    most = config.dynamic_batching.max_batch_size
    if chosen.max > most:
        raise BuildError(f"{name} takes batches of {most} rows at most, the profile has {chosen.max}")
    target = tensorrt_build.architecture(module, architecture)
    key = _key(config, parsed, backend, str(module.__version__), precision, target, chosen)
    path = folder_of(models, config, plans) / f"{key.stem}.plan"
    known, why = _current(path, key)
    if known is not None:
        return Obtained(path, known, "cached", why)
    if read_only:
        raise NoPlanError(f"no current plan at {path}: {why}", architecture)
    how: Literal["built", "rebuilt"] = "rebuilt" if path.exists() else "built"
    timings = path.parent / f"{backend}-{key.module_version}-{key.architecture}.timings"
    begun = time.perf_counter()
    made = tensorrt_build.build(module, parsed, config, chosen, key.architecture, _read(timings))
    provenance = Provenance(
        key,
        made.tensors,
        made.layers,
        made.flags,
        made.messages,
        _sha256(made.plan),
        len(made.plan),
        datetime.now(UTC),
        f"{platform.system()} {platform.machine()}",
        round(time.perf_counter() - begun, 3),
    )
    _write(path, made.plan)
    _write(path.with_suffix(".json"), msgspec.json.format(msgspec.json.encode(provenance)))
    if made.timing_cache is not None:
        _write(timings, made.timing_cache)
    return Obtained(path, provenance, how, why)


def last_built(
    models: Path,
    config: ModelConfig,
    backend: str,
    precision: Precision,
    fits: Callable[[str], bool],
    plans: Path | None = None,
) -> Obtained | None:
    """Of the current plans that fit, the one built last; None if there is none.

    Whoever builds a plan of another profile or architecture, here or on a build machine, so has it served.

    Args:
        models: the model repository.
        config: of the model.
        backend: `tensorrt` or `tensorrt-rtx`.
        precision: of the plan.
        fits: whether a plan of this architecture can run.
        plans: as `obtain` has it.

    Raises:
        RepositoryError, DigestError, ExtraError, GraphError: as `obtain`.
        BuildError: a plan cannot be read.
    """
    parsed = _parsed(models, config, precision)
    module_version = str(module_of(backend).__version__)
    found = []
    for path in folder_of(models, config, plans).glob("*.plan"):
        try:
            made = read_provenance(path)
        except BuildError:
            continue
        architecture, profile = made.key.architecture, made.key.profile
        key = _key(config, parsed, backend, module_version, precision, architecture, profile)
        # A profile beyond the model's batches is from before they were lowered, perhaps to save memory.
        if made.key == key and profile[2] <= config.dynamic_batching.max_batch_size and fits(architecture):
            found.append((made.built, path, key))
    for _, path, key in sorted(found, reverse=True):
        known, why = _current(path, key)
        if known is not None:
            return Obtained(path, known, "cached", why)
    return None


def folder_of(models: Path, config: ModelConfig, plans: Path | None = None) -> Path:
    """Where the plans of a model's version are kept."""
    if plans is not None:
        return plans / config.name / str(config.version)
    return models / config.name / str(config.version) / PLANS


def inspect(path: Path, config: ModelConfig | None = None) -> dict[str, Any]:
    """A plan in words: its provenance, whether it is current, and what its runtime says of it.

    Args:
        path: of the plan.
        config: of its model, to tell a plan of another digest; None where only the plan is at hand.

    Returns:
        "plan", "state" (`current` or why not), "engine": {"loaded", "note", "layers"}, and the provenance.

    Raises:
        BuildError: there is no such plan, or no provenance beside it.
    """
    plan = read_plan(path)
    provenance = read_provenance(path)
    state = "current"
    if _sha256(plan) != provenance.plan_digest:
        state = "damaged: its bytes are not those that were built"
    elif config is not None and config.digest != provenance.key.digest:
        state = "stale: the model has changed since"
    found: dict[str, Any] = {"plan": str(path), "state": state, "engine": _loaded(plan, provenance)}
    found.update(msgspec.to_builtins(provenance))
    return found


def read_plan(path: Path) -> bytes:
    """A plan's bytes.

    Raises:
        BuildError: it is missing or cannot be read.
    """
    plan = _read(path)
    if plan is None:
        raise BuildError(f"no plan at {path}; `riskstream model build` makes one")
    return plan


def read_provenance(path: Path) -> Provenance:
    """The provenance beside a plan.

    Raises:
        BuildError: it is missing or cannot be read.
    """
    file = path.with_suffix(".json")
    try:
        return msgspec.json.decode(file.read_bytes(), type=Provenance)
    except (OSError, msgspec.MsgspecError) as error:
        raise BuildError(f"{path} has no provenance that can be read ({error}); build it again") from error


def _parsed(models: Path, config: ModelConfig, precision: Precision) -> bytes:
    """The graph that is parsed for a plan of this precision."""
    graph = repository.read_graph(models, config)
    return to_fp16(graph) if precision == "fp16" else graph


def _key(
    config: ModelConfig,
    parsed: bytes,
    backend: str,
    module_version: str,
    precision: Precision,
    architecture: str,
    profile: tuple[int, int, int],
) -> Key:
    return Key(
        config.name,
        config.version,
        config.digest,
        _sha256(parsed),
        backend,
        module_version,
        architecture,
        precision,
        profile,
    )


def _current(path: Path, key: Key) -> tuple[Provenance | None, str]:
    """The provenance of a plan that may be used, else None and why it may not."""
    plan = _read(path)
    if plan is None:
        return None, "there was no such plan"
    try:
        provenance = read_provenance(path)
    except BuildError:
        return None, "its provenance was missing or damaged"
    if provenance.key != key:
        changed = "the model" if provenance.key.digest != key.digest else "the graph to parse"
        return None, f"{changed} has changed since it was built"
    if _sha256(plan) != provenance.plan_digest:
        return None, "the plan was damaged"
    return provenance, "model, graph and plan are those of its provenance"


def _loaded(plan: bytes, provenance: Provenance) -> dict[str, Any]:
    """What the runtime says of a plan. Without a GPU's driver it loads none, and returns None for it."""
    about: dict[str, Any] = {"loaded": False, "layers": None}
    build = "tensors and profiles are those of the network when it was built"
    try:
        module = module_of(provenance.key.backend)
    except ExtraError as error:
        return about | {"note": f"{error}; {build}"}
    log = message_log(module)
    engine = module.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None:
        why = log.messages[0] if log.messages else "it gives no reason"
        return about | {"note": f"{NEVER_RUN} here: {module.__name__} cannot load it ({why}); {build}"}
    shown = engine.create_engine_inspector().get_engine_information(module.LayerInformationFormat.JSON)
    return {"loaded": True, "note": "loaded by its runtime", "layers": msgspec.json.decode(shown)}


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise BuildError(f"cannot read {path}: {error.strerror}") from error


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all: beside the file, then in its place."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content)
        beside.replace(path)
    except OSError as error:
        raise BuildError(
            f"cannot write {path}: {error.strerror}; another folder for plans is named by --plans, for a "
            "worker by RISKSTREAM_PLANS"
        ) from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
