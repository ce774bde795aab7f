"""Plans, cached beside their model, each with its provenance.

In <repository>/<name>/<version>/plans:
    <backend>-<module version>-<architecture>-<precision>-<min>-<opt>-<max>.plan
    and the same with .json: what it was made of, `Provenance`

A plan is used only if its provenance names the digests of the model, of the graph that was parsed and of the
plan's own bytes, as they are now (`judge`). Anything else is stale: it is built again in its place, never
used. Of several that the GPU can run, the one built last serves (`last_built`).
"""

import hashlib
import logging
import platform
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct

from engines import repository, tensorrt_build
from engines.errors import BackendError, BuildError, EngineError, ExtraError, NoPlanError
from engines.precision import Precision, to_fp16
from engines.tensorrt_build import PlanTensor, Profile
from engines.tensorrt_module import module_of
from schemas.model_config import ModelConfig

log = logging.getLogger("riskstream.plans")

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
    precision: Precision
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
    built: Annotated[datetime, Meta(tz=True)]
    built_on: str
    seconds: float


class Obtained(NamedTuple):
    """A plan's file, its provenance, and whether it was `cached`, `built` or `rebuilt`, and why."""

    path: Path
    provenance: Provenance
    how: Literal["cached", "built", "rebuilt"]
    why: str


State = Literal["current", "stale", "damaged", "refused", "unknown", "absent"]


class Judged(NamedTuple):
    """What a plan is found to be, and why; its provenance where that can be read.

    current: a load may take it. stale: made of something else than there is now. damaged: it or its
    provenance is not what was written. refused: the model itself is not in order. unknown: what it would be
    made of now cannot be told here. absent: there is none.
    """

    state: State
    why: str
    provenance: Provenance | None = None


class Makings:
    """What plans of a model are made of, as it is now. A graph is read, and converted, once.

    Args:
        models: the model repository.
        config: the model's.
    """

    def __init__(self, models: Path, config: ModelConfig) -> None:
        self._models, self.config = models, config
        self._graphs: dict[Precision, tuple[bytes, str]] = {}

    def graph(self, precision: Precision) -> tuple[bytes, str]:
        """The graph that is parsed for plans of a precision, and its digest.

        Raises:
            RepositoryError, DigestError: the model cannot be read.
            ExtraError, GraphError: it cannot be converted to fp16, here or at all.
        """
        if precision not in self._graphs:
            graph = repository.read_graph(self._models, self.config)
            graph = to_fp16(graph) if precision == "fp16" else graph
            self._graphs[precision] = graph, _sha256(graph)
        return self._graphs[precision]

    def key(
        self, backend: str, precision: Precision, architecture: str, profile: tuple[int, int, int]
    ) -> Key:
        """The key of a plan that would be built now.

        Raises:
            EngineError: as `graph`, or the module cannot be loaded.
        """
        config = self.config
        made_of = (config.name, config.version, config.digest, self.graph(precision)[1])
        version = str(module_of(backend).__version__)
        return Key(*made_of, backend, version, architecture, precision, (profile[0], profile[1], profile[2]))


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
    makings = Makings(models, config)
    parsed, _ = makings.graph(precision)
    module = module_of(backend)
    chosen = profile or Profile.of(config)
    most = config.dynamic_batching.max_batch_size
    if chosen.max > most:
        raise BuildError(f"{name} takes batches of {most} rows at most, the profile has {chosen.max}")
    target = tensorrt_build.architecture(module, architecture)
    key = makings.key(backend, precision, target, chosen)
    path = folder_of(models, config, plans) / f"{key.stem}.plan"
    state, why, known = judge(path, makings, key)
    if known is not None and state == "current":
        return Obtained(path, known, "cached", why)
    if read_only:
        raise NoPlanError(f"no current plan at {path}: {why}", architecture)
    how: Literal["built", "rebuilt"] = "built" if state == "absent" else "rebuilt"
    timings = path.parent / f"{backend}-{key.module_version}-{key.architecture}.timings"
    begun = time.perf_counter()
    made = tensorrt_build.build(module, parsed, config, chosen, key.architecture, _timings(timings))
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
    """
    makings = Makings(models, config)
    found = []
    for path in folder_of(models, config, plans).glob("*.plan"):
        try:
            made = read_provenance(path)
        except BuildError as error:
            _pass_over(path, str(error))
            continue
        asked = (made.key.backend, made.key.precision) == (backend, precision)
        if asked and fits(made.key.architecture):
            found.append((made.built, path))
    for _, path in sorted(found, reverse=True):
        state, why, known = judge(path, makings)
        if known is not None and state == "current":
            return Obtained(path, known, "cached", why)
        if state == "damaged":
            _pass_over(path, f"{path}: {why}; {ANEW}")
    return None


def judge(path: Path, makings: Makings | None, wanted: Key | None = None) -> Judged:
    """Whether a load may take a plan: the one place that decides it. Raises nothing.

    Which GPU can run it is left to whoever has one.

    Args:
        path: of the plan.
        makings: of the model that it should be of; None where that is not at hand.
        wanted: what it has to be; what its provenance says, of the model as it is now, unless given.
    """
    try:
        digest = _sha256(path.read_bytes())
        made = read_provenance(path)
    except (FileNotFoundError, NotADirectoryError):
        return Judged("absent", "there was no such plan")
    except OSError as error:
        return Judged("damaged", f"it cannot be read ({error.strerror})")
    except BuildError:
        return Judged("damaged", "its provenance was missing or damaged")
    if digest != made.plan_digest:
        return Judged("damaged", "its bytes are not those that were built", made)
    if makings is None:
        return Judged("unknown", "its model is not at hand", made)
    return Judged(*_held_against(makings, made.key, wanted), made)


def _held_against(makings: Makings, key: Key, wanted: Key | None) -> tuple[State, str]:
    """The state of a plan that is whole, and why."""
    config = makings.config
    most = config.dynamic_batching.max_batch_size
    if (key.model, key.version) != (config.name, config.version):
        return "stale", f"it is of {key.model} {key.version}"
    if key.digest != config.digest:
        return "stale", "the model has changed since it was built"
    if key.profile[2] > most:
        # From before the model's batches were made smaller, perhaps to save memory.
        return "stale", f"it takes batches of {key.profile[2]} rows, the model {most} at most"
    try:
        now = wanted or makings.key(key.backend, key.precision, key.architecture, key.profile)
    except EngineError as error:
        return "unknown" if isinstance(error, ExtraError | BackendError) else "refused", str(error)
    if key != now:
        return "stale", _difference(key, now)
    return "current", "model, graph and plan are those of its provenance"


def _difference(made: Key, now: Key) -> str:
    """What two keys of one model.onnx differ in."""
    for field in ("backend", "precision", "architecture", "profile"):
        came, named = getattr(made, field), getattr(now, field)
        if came != named:
            return f"its provenance has the {field} {came}, its name {named}"
    if made.module_version != now.module_version:
        return f"it was built by {made.backend} {made.module_version}, here is {now.module_version}"
    return "the graph to parse has changed since it was built"


ANEW = "`riskstream model build` makes it anew, or remove its files"
"""What to do about a plan that cannot be used."""


@lru_cache(maxsize=256)
def _pass_over(path: Path, why: str) -> None:
    """Say that a load leaves a damaged plan out: once, however often the model is loaded."""
    log.warning("a plan is passed over: %s", why)


def folder_of(models: Path, config: ModelConfig, plans: Path | None = None) -> Path:
    """Where the plans of a model's version are kept."""
    if plans is not None:
        return plans / config.name / str(config.version)
    return models / config.name / str(config.version) / PLANS


def read_plan(path: Path) -> bytes:
    """A plan's bytes.

    Raises:
        BuildError: it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise BuildError(f"no plan at {path}; `riskstream model build` makes one") from error
    except OSError as error:
        raise BuildError(f"cannot read {path}: {error.strerror}; {ANEW}") from error


def read_provenance(path: Path) -> Provenance:
    """The provenance beside a plan.

    Raises:
        BuildError: it is missing or cannot be read.
    """
    file = path.with_suffix(".json")
    try:
        return msgspec.json.decode(file.read_bytes(), type=Provenance)
    except (OSError, msgspec.MsgspecError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise BuildError(f"{path} has no provenance that can be read ({why}); {ANEW}") from error


def _timings(path: Path) -> bytes | None:
    """A timing cache only saves time: one that cannot be read is as good as none."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def write_whole(path: Path, content: bytes) -> None:
    """A file whole or not at all, else OSError: written beside its place, then renamed.

    The name beside it is random: processes of several containers may have one number and one folder.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with beside.open("xb") as file:
            file.write(content)
        beside.replace(path)
    except OSError:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        raise BuildError(
            f"cannot write {path}: {error.strerror}; another folder for plans is named by --plans, for a "
            "worker by RISKSTREAM_PLANS"
        ) from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
