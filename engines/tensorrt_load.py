"""From a model to its plan in an engine: the device is looked at first, then the plan is found or built."""

from functools import partial
from pathlib import Path
from typing import Any

from engines import memory, plans, tensorrt_build
from engines.engine import Engine
from engines.errors import BackendError, BuildError, ExtraError
from engines.plans import Key, Obtained
from engines.precision import Precision
from engines.tensorrt_build import AMPERE_PLUS, Profile
from engines.tensorrt_engine import TensorRTEngine
from engines.tensorrt_module import capability, cuda_driver, free_memory, module_of
from schemas.model_config import ModelConfig

AMPERE = (8, 0)
"""Compute capability of the oldest GPU that a plan for `ampere-plus` runs on."""

OLDEST = (7, 5)
"""Compute capability of Turing, the oldest that TensorRT 10 and TensorRT for RTX run on."""


def load_plan(
    models: Path,
    config: ModelConfig,
    backend: str,
    folder: Path | None = None,
    memory_limit: int | None = None,
    precision: Precision = "fp32",
    *,
    read_only: bool = False,
) -> Engine:
    """An engine of a model's plan; golden data unchecked.

    Of the current plans that this GPU can run it takes the one built last; where there is none, it builds the
    usual one: the model's own profile, for every GPU from Ampere on, or for this one alone.

    Args:
        models: the model repository.
        config: the model's.
        backend: `tensorrt` or `tensorrt-rtx`.
        folder: where plans are kept, as `plans.obtain` has it; beside the model unless given.
        memory_limit: bytes that it may take of the GPU's memory.
        precision: of the plan.
        read_only: write nothing: no plan, and not the kernels that are compiled when it loads.

    Raises:
        NoPlanError: nothing may be written, and there is no current plan.
        MemoryBudgetError: it needs more than that, or than there is.
        BackendError: a library is missing, or there is no GPU that the plan could run on.
        BuildError: the plan cannot be built or written.
        RepositoryError, DigestError, GraphError: the model is not in order.
    """
    module, driver = runtime(backend)
    gpu = capability(driver)
    found = plans.last_built(models, config, backend, precision, partial(fits, device=gpu), folder)
    if found is None:
        found = _build_usual(models, config, backend, precision, gpu, folder, read_only=read_only)
    check(found.provenance.key, config, str(module.__version__), gpu)
    made = found.provenance
    host, device = memory.of_plan(config, made.plan_bytes, made.key.profile[2])
    memory.require(config, host, None, memory.available(), "the machine")
    memory.require(config, device, memory_limit, free_memory(driver), "the GPU")
    cache = None if read_only else found.path.with_suffix(".kernels")
    plan = plans.read_plan(found.path)
    return TensorRTEngine(config, plan, module, driver, cache=cache, precision=precision)


def _build_usual(
    models: Path,
    config: ModelConfig,
    backend: str,
    precision: Precision,
    device: tuple[int, int],
    folder: Path | None,
    *,
    read_only: bool,
) -> Obtained:
    """Build the plan that is taken where nobody built another, or say that it is not there."""
    turing = backend == "tensorrt-rtx" and device < AMPERE
    target = f"{device[0]}{device[1]}" if turing else None
    try:
        return plans.obtain(
            models,
            config.name,
            backend,
            precision,
            None,
            target,
            folder,
            version=config.version,
            read_only=read_only,
        )
    except BuildError as error:
        if turing and precision == "fp32":
            raise BuildError(
                f"{error}; TensorRT for RTX multiplies matrices in fp16 alone on sm{target}: take precision "
                "fp16, the backend tensorrt, or onnxruntime"
            ) from error
        raise


def build_engine(config: ModelConfig, graph: bytes, backend: str) -> Engine:
    """An engine of a graph, by a plan that is kept nowhere.

    Raises:
        BackendError: as `load_plan`.
        BuildError: the graph cannot be compiled, or its tensors are not the config's.
    """
    module, driver = runtime(backend)
    return TensorRTEngine(config, build_plan(config, graph, module), module, driver)


def build_plan(config: ModelConfig, graph: bytes, module: Any) -> bytes:
    """A plan for this machine's GPU and every batch size of the model.

    Raises:
        BuildError: the graph cannot be compiled, or its tensors are not the config's.
    """
    target = tensorrt_build.architecture(module, None)
    return tensorrt_build.build(module, graph, config, Profile.of(config), target).plan


def check(key: Key, config: ModelConfig, module_version: str, device: tuple[int, int]) -> None:
    """Refuse a plan that is not for this model, this version of the module or this GPU.

    Args:
        key: of the plan's provenance.
        config: of the model that is to run.
        module_version: of the module that is to run it.
        device: compute capability of the GPU.

    Raises:
        BuildError: the plan is stale.
        BackendError: the GPU cannot run it.
    """
    again = f"riskstream model build {config.name} --backend {key.backend}"
    if key.digest != config.digest:
        raise BuildError(f"the plan is stale, made of another model.onnx of {config.name}: {again}")
    if key.module_version != module_version:
        raise BuildError(
            f"the plan is stale, built by {key.backend} {key.module_version}, here is {module_version}: "
            f"{again}"
        )
    refuse_old(device)
    if fits(key.architecture, device):
        return
    here = f"sm{device[0]}{device[1]}"
    if key.architecture == AMPERE_PLUS:
        raise BackendError(
            f"the plan is for Ampere (sm80) and later, the GPU is {here}: serve on onnxruntime, or build "
            "on this GPU with --backend tensorrt"
        )
    raise BackendError(
        f"the plan is for {key.architecture}, the GPU is {here}: {again}"
        + (f" --architecture {here[2:]}" if key.backend == "tensorrt-rtx" else " on this machine")
    )


def fits(architecture: str, device: tuple[int, int]) -> bool:
    """Whether a GPU can run a plan of an architecture.

    Args:
        architecture: of the plan's key.
        device: compute capability of the GPU, one that `runtime` does not refuse: TensorRT for RTX has no
            target for some of those after Ampere.
    """
    if architecture == AMPERE_PLUS:
        return device >= AMPERE
    return f"sm{device[0]}{device[1]}" in architecture.split("+")


def refuse_old(device: tuple[int, int]) -> None:
    """Refuse a GPU that no plan runs on.

    Raises:
        BackendError: it is older than `OLDEST`.
    """
    if device < OLDEST:
        raise BackendError(
            f"the GPU is sm{device[0]}{device[1]}, too old: TensorRT runs on sm{OLDEST[0]}{OLDEST[1]} "
            "(Turing) and later; serve on onnxruntime"
        )


def runtime(backend: str) -> tuple[Any, Any]:
    """The module and PyCUDA's driver, of a backend that can run here.

    Raises:
        BackendError: a library is missing, or there is no GPU, or one that no plan of the backend runs on.
    """
    try:
        module, driver = module_of(backend), cuda_driver()
    except ExtraError as error:
        raise BackendError(f"{backend} cannot run here: {error}") from error
    here = capability(driver)
    refuse_old(here)
    if not tensorrt_build.has_target(module, here):
        raise BackendError(
            f"{backend} {module.__version__} has no target sm{here[0]}{here[1]}, which this GPU is, but "
            f"{tensorrt_build.targets_of(module)} and later: serve on the backend tensorrt, on "
            "onnxruntime-cuda or on onnxruntime"
        )
    return module, driver
