"""What a model will take of memory, looked at before it is loaded: an estimate, with what there is beside it.

Nothing is loaded to learn it, so it knows the graph's size and the config's tensors, not the hidden layers.

onnxruntime, of the machine's memory; its constants are from resident memory around loads:
    graph    `GRAPH_COPIES` times the file: its bytes, the parsed graph, the weights, their packed form
    rows     of the largest batch, or one where they run one by one: staging, results, what lies between;
             `ROW_COPIES` times a row's tensors, `WINDOW_COPIES` times a whole window's, or `PLANES` channels
             of a picture's size
    session  `SESSION_BYTES`, whatever the model

onnxruntime-cuda, of the GPU's memory the same, and of the machine's the graph's share. What CUDA takes for a
process, whatever it runs, is in neither. No GPU has been measured.

plans, of the GPU's memory, and of the machine's the same without the plan's own share:
    plan     `PLAN_COPIES` times the file: its bytes on their way, the weights and kernels
    rows     of two batches in flight: buffers of every tensor at the profile's largest batch
    context  what the loaded plan says it works in, twice: known only then, and checked before it is allocated
"""

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import NamedTuple

from engines.errors import MemoryBudgetError
from schemas.model_config import ModelConfig

GRAPH_COPIES = 5
"""Measured: 3.0 for a dense network of 100 MiB, 4.3 for the shipped convolutional network."""

ROW_COPIES = 6
"""Measured: 4 for the shipped recurrent steps."""

WINDOW_COPIES = 64
"""As many channels of a window's length as a convolution over it has, alive at once."""

PLANES = 288
"""Two layers of 64 channels at full size, and the workspace of the convolution between: 280 measured."""

SESSION_BYTES = 4 << 20
"""Measured: 3 MiB around a graph of 1 KiB, most of it the first chunk of an arena."""

PLAN_COPIES = 2

FLOAT_BYTES = 4
MIB = 1 << 20


class Level(NamedTuple):
    """A control group: the files that say its limit and its use, and what of the use can be taken back."""

    folder: Path
    limit: str
    usage: str
    reclaimable: str


def of_graph(config: ModelConfig, graph_bytes: int, *, one_by_one: bool) -> int:
    """Bytes that ONNX Runtime will take for a model, with warm-up, of the memory that it computes in.

    Args:
        config: of the model.
        graph_bytes: size of model.onnx.
        one_by_one: a batch's rows run alone, so that its size does not matter.
    """
    rows = 1 if one_by_one else config.dynamic_batching.max_batch_size
    if config.image is not None:
        each = PLANES * FLOAT_BYTES * config.image.height * config.image.width
    else:
        whole = config.kind == "windowed-series" and not config.state
        each = (WINDOW_COPIES if whole else ROW_COPIES) * row_bytes(config)
    return GRAPH_COPIES * graph_bytes + rows * each + SESSION_BYTES


def of_plan(config: ModelConfig, plan_bytes: int, rows: int) -> tuple[int, int]:
    """Bytes that an engine of a plan will take of the machine's memory and of the GPU's, without its context.

    Args:
        config: of the model.
        plan_bytes: size of the plan.
        rows: largest batch of the plan's profile.
    """
    buffers = 2 * rows * row_bytes(config)
    return plan_bytes + buffers, PLAN_COPIES * plan_bytes + buffers


def row_bytes(config: ModelConfig) -> int:
    """Bytes of one row's inputs, outputs and states, in and out."""
    tensors = {tensor.name: tensor.dims for tensor in (*config.input, *config.output)}
    for pair in config.state:
        tensors |= {pair.input: pair.dims, pair.output: pair.dims}
    return FLOAT_BYTES * sum(prod(dims) for dims in tensors.values())


def require(config: ModelConfig, needed: int, limit: int | None, free: int | None, where: str) -> None:
    """Refuse a model that does not fit.

    Args:
        config: of the model.
        needed: bytes that it is estimated to take.
        limit: bytes that it may take; None for no limit of its own.
        free: bytes that there are; None where nobody knows.
        where: whose memory, for the message.

    Raises:
        MemoryBudgetError: it needs more than it may take, or than there is.
    """
    needs = f"{config.name} version {config.version} needs about {_mib(needed)} MiB of {where}'s memory"
    if limit is not None and needed > limit:
        raise MemoryBudgetError(
            f"{needs}, its budget is {limit // MIB} MiB: raise it (RISKSTREAM_MODEL_MEMORY_MB), make the "
            "model smaller or lower its max_batch_size"
        )
    if free is not None and needed > free:
        raise MemoryBudgetError(
            f"{needs}, {free // MIB} MiB are available: give the process more memory, make the model smaller "
            "or lower its max_batch_size"
        )


def available(root: Path = Path("/")) -> int | None:
    """Bytes that this process could still take: of the machine, and of every control group above it.

    Args:
        root: where /proc and /sys are mounted.

    Returns:
        The least of what they leave; None where the system tells nothing of it.
    """
    left = [_left(level) for level in _levels(root)]
    machine = _fields(root / "proc/meminfo").get("MemAvailable:")
    if machine is not None:
        left.append(machine * 1024)
    known = [each for each in left if each is not None]
    return max(min(known), 0) if known else None


def _levels(root: Path) -> Iterator[Level]:
    """The control groups that bound this process's memory, of version 2 and of version 1."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = base / path.lstrip("/")
        for each in (folder, *folder.parents):
            yield Level(each, *names)
            if each == base:
                break


def _left(level: Level) -> int | None:
    """What a group leaves: caches of files count as used, but give way."""
    limit, usage = _text(level.folder / level.limit).strip(), _text(level.folder / level.usage).strip()
    if not limit.isdecimal() or not usage.isdecimal():  # `max`, or no such group in this mount
        return None
    return int(limit) - int(usage) + _fields(level.folder / "memory.stat").get(level.reclaimable, 0)


def _fields(path: Path) -> dict[str, int]:
    """The first number of each line, by the word before it."""
    lines = (line.split() for line in _text(path).splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _mib(size: int) -> int:
    return -(-size // MIB)
