"""ONNX graph -> serialised plan, by TensorRT or by TensorRT for RTX. Building runs nothing.

    graph --OnnxParser--> strongly typed network --profile, flags--> build_serialized_network --> bytes

TensorRT compiles and times kernels on the GPU of this machine. TensorRT for RTX compiles without a GPU, to a
plan that the GPU's own machine finishes when it loads it: one plan serves the architectures that it names.
"""

from types import ModuleType
from typing import Any, NamedTuple

from msgspec import Struct

from engines.errors import BuildError
from engines.tensorrt_module import device_architecture, message_log
from schemas.model_config import ModelConfig

AMPERE_PLUS = "ampere-plus"
"""Every architecture from Ampere (SM 80) on that the module knows, and later ones where it can."""


class Profile(NamedTuple):
    """Batch sizes that a plan takes: the least, the one it is tuned for, the greatest."""

    min: int
    opt: int
    max: int

    @classmethod
    def parse(cls, text: str) -> "Profile":
        """From `min,opt,max`.

        Raises:
            BuildError: it is not three rising numbers from 1 on.
        """
        parts = text.split(",")
        if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
            raise BuildError(f"a profile is three batch sizes such as 1,32,512; came {text!r}")
        least, best, most = (int(part) for part in parts)
        if not 1 <= least <= best <= most:
            raise BuildError(f"a profile's batch sizes must rise from 1 on: min <= opt <= max; came {text!r}")
        return cls(least, best, most)

    @classmethod
    def of(cls, config: ModelConfig) -> "Profile":
        """From 1 to the model's greatest batch, tuned for 32."""
        most = config.dynamic_batching.max_batch_size
        return cls(1, min(32, most), most)


class PlanTensor(Struct, frozen=True):
    """An input or output of a plan; -1 in `shape` is the batch. `profile` holds an input's three shapes."""

    name: str
    mode: str
    type: str
    shape: tuple[int, ...]
    profile: tuple[tuple[int, ...], ...] = ()


class Built(NamedTuple):
    """A plan, and the network's tensors and messages as they were when it was built."""

    plan: bytes
    tensors: tuple[PlanTensor, ...]
    layers: int
    flags: tuple[str, ...]
    messages: tuple[str, ...]
    timing_cache: bytes | None


def architecture(module: ModuleType, asked: str | None) -> str:
    """The architectures to build for, in one spelling.

    Args:
        module: `tensorrt` or `tensorrt_rtx`.
        asked: `ampere-plus`, or, for TensorRT for RTX alone, compute capabilities such as `75,86`; None for
            the usual: this machine's GPU for TensorRT, `ampere-plus` for TensorRT for RTX.

    Returns:
        `ampere-plus`, or such as `sm86` or `sm75+sm86`.

    Raises:
        BuildError: the module cannot build for it.
        ExtraError, BackendError: this machine's GPU cannot be asked.
    """
    if asked == AMPERE_PLUS:
        return AMPERE_PLUS
    targets = _targets(module)
    if asked is None:
        return AMPERE_PLUS if targets else device_architecture()
    if not targets:
        raise BuildError(
            f"TensorRT builds for this machine's GPU (leave out --architecture) or for {AMPERE_PLUS}; "
            f"came {asked!r}. TensorRT for RTX builds for others"
        )
    wanted = [f"sm{part.strip()}" for part in asked.split(",")]
    unknown = [name for name in wanted if name not in targets]
    if unknown:
        raise BuildError(
            f"{module.__name__} {module.__version__} builds for {AMPERE_PLUS} or any of "
            f"{targets_of(module)}; "
            f"it has no target {', '.join(name.removeprefix('sm') for name in unknown)}"
        )
    return "+".join(name for name in targets if name in wanted)


def build(
    module: ModuleType,
    graph: bytes,
    config: ModelConfig,
    profile: Profile,
    target: str,
    timing_cache: bytes | None = None,
) -> Built:
    """Build a plan; takes about a second for the shipped models.

    Args:
        module: `tensorrt` or `tensorrt_rtx`.
        graph: the ONNX model; its types are the plan's.
        config: the model's; the network's inputs and outputs must be its tensors.
        profile: batch sizes.
        target: from `architecture`.
        timing_cache: of an earlier build; TensorRT for RTX measures nothing and has none.

    Raises:
        BuildError: the graph cannot be parsed or compiled, or its tensors are not the config's.
    """
    log = message_log(module)
    builder = module.Builder(log)
    # TensorRT 10 needs the flag; later versions know only strongly typed networks.
    network = builder.create_network(1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(module, network, graph, log)
    options = builder.create_builder_config()
    flags = _set_flags(module, options, target)
    cache = _set_timing_cache(module, options, timing_cache)
    tensors = _set_profile(builder, options, network, config, profile)
    plan = builder.build_serialized_network(network, options)
    if plan is None:
        raise BuildError(f"{_called(module)} cannot compile {config.name} for {target}: {_first(log)}")
    return Built(
        bytes(plan),
        tensors,
        int(network.num_layers),
        flags,
        tuple(log.messages),
        None if cache is None else bytes(cache.serialize()),
    )


def _parse(module: ModuleType, network: Any, graph: bytes, log: Any) -> None:
    parser = module.OnnxParser(network, log)
    if parser.parse(graph):
        return
    error = parser.get_error(0)
    where = f" at node {error.node_name()!r} ({error.node_operator()})" if error.node_operator() else ""
    raise BuildError(f"{_called(module)} cannot parse model.onnx{where}: {error.desc()}")


def _set_flags(module: ModuleType, options: Any, target: str) -> tuple[str, ...]:
    """Flags and targets; returns what was set, for the provenance."""
    options.clear_flag(module.BuilderFlag.TF32)  # fp32 means fp32: TF32 keeps eleven bits
    targets = _targets(module)
    if targets and target != AMPERE_PLUS:
        wanted = target.split("+")
        options.num_compute_capabilities = len(wanted)
        for i, name in enumerate(wanted):
            options.set_compute_capability(targets[name], i)
        return ("no-tf32", *wanted)
    if not targets and target == AMPERE_PLUS:
        options.hardware_compatibility_level = module.HardwareCompatibilityLevel.AMPERE_PLUS
        return ("no-tf32", "hardware-compatible")
    return ("no-tf32",)  # TensorRT for RTX is portable over Ampere and later when nothing is set


def _set_timing_cache(module: ModuleType, options: Any, known: bytes | None) -> Any:
    """TensorRT's timing cache. TensorRT for RTX would look for a GPU, and its plans do not depend on one."""
    if _targets(module):
        return None
    cache = options.create_timing_cache(known or b"")
    if not options.set_timing_cache(cache, ignore_mismatch=False):
        cache = options.create_timing_cache(b"")
        options.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _set_profile(
    builder: Any, options: Any, network: Any, config: ModelConfig, profile: Profile
) -> tuple[PlanTensor, ...]:
    """One optimisation profile over the batch axis of every input; all tensors, compared with the config."""
    asked = builder.create_optimization_profile()
    tensors = []
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        rest = tuple(tensor.shape)[1:]
        shapes = tuple((size, *rest) for size in profile)
        asked.set_shape(tensor.name, *shapes)
        tensors.append(_described(tensor, "input", shapes))
    options.add_optimization_profile(asked)
    tensors += [_described(network.get_output(i), "output") for i in range(network.num_outputs)]
    expected = {("input", t.name): t.dims for t in config.input}
    expected |= {("output", t.name): t.dims for t in config.output}
    for pair in config.state:
        expected |= {("input", pair.input): pair.dims, ("output", pair.output): pair.dims}
    wanted = {key: ("FLOAT", (-1, *dims)) for key, dims in expected.items()}
    found = {(t.mode, t.name): (t.type, t.shape) for t in tensors}
    if found != wanted:
        raise BuildError(f"{config.name}: config.json has the tensors {wanted}, the network {found}")
    return tuple(tensors)


def _described(tensor: Any, mode: str, profile: tuple[tuple[int, ...], ...] = ()) -> PlanTensor:
    return PlanTensor(tensor.name, mode, tensor.dtype.name, tuple(tensor.shape), profile)


def _targets(module: ModuleType) -> dict[str, Any]:
    """Compute capabilities that the module compiles for without such a GPU, by name; empty for TensorRT."""
    known = getattr(module, "ComputeCapability", None)
    members = getattr(known, "__members__", {})
    names = sorted((n for n in members if n.startswith("SM")), key=lambda name: int(name[2:]))
    return {name.lower(): members[name] for name in names}


def has_target(module: ModuleType, device: tuple[int, int]) -> bool:
    """Whether the module compiles for a GPU of this compute capability at all.

    TensorRT does for the GPU that is there. TensorRT for RTX does for its targets and, as `ampere-plus`, for
    what comes after the newest of them; what lies between them, such as Hopper, is left out for good.
    """
    known = _targets(module)
    newest = max((int(name.removeprefix("sm")) for name in known), default=0)
    number = device[0] * 10 + device[1]
    return not known or f"sm{number}" in known or number > newest


def targets_of(module: ModuleType) -> str:
    """The module's targets as messages name them: `75, 80, 86`."""
    return ", ".join(name.removeprefix("sm") for name in _targets(module))


def _called(module: ModuleType) -> str:
    return f"{module.__name__} {module.__version__}"


def _first(log: Any) -> str:
    return log.messages[0] if log.messages else "it gives no reason"
