"""What an engine takes for a batch, by batch size: latency, rows per second, CPU time, its parts, company.

Every point is one backend at one batch size. A round visits all points, and the next one in the opposite
order, so that a busy minute of the machine falls on all of them; a figure is the median of what the rounds
found, and a ratio the median of the rounds' ratios.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines import repository, tensorrt_module
from engines.engine import F32, Engine, Parts
from engines.errors import BackendError, EngineError, ExtraError, InputError
from engines.precision import Precision
from schemas.model_config import ModelConfig

ALL = repository.BACKENDS
"""Every backend that serves, whether it can run here or not."""

PYTORCH = {"pytorch": "cpu", "pytorch-cuda": "cuda"}
"""What can be measured beside them when it is named, and its device: the network run eagerly by PyTorch."""

PERCENTILES = (50, 90, 99)

WARM_UP_S = 0.1
"""Seconds for which each point runs before anything is timed: kernels, caches and clocks settle within it."""

FEWEST = 3
"""Timed batches of a point in a round, however long one takes."""

Progress = Callable[[str, int, int], None]
"""Told (what, done, of)."""

Content = dict[str, Any]


class Order(NamedTuple):
    """What to measure: batch sizes, seconds for each point over all rounds, rounds."""

    sizes: Sequence[int]
    seconds: float
    rounds: int


class Round(NamedTuple):
    """What one round found at one point.

    took: float64[batches], seconds of each batch.
    cpu: seconds of CPU for a batch, of all threads of the process, on average.
    parts: float64[batches, 3], seconds of `Parts`; None where the backend does not tell them apart.
    together: batches per second with as many in flight as the engine takes; None where that is one.
    """

    took: NDArray[np.float64]
    cpu: float
    parts: NDArray[np.float64] | None
    together: float | None = None


class Opened(NamedTuple):
    """Engines by `called`, the reference first, and why the other backends cannot run here."""

    engines: dict[str, Engine]
    refused: dict[str, EngineError]


def sizes_of(config: ModelConfig, asked: str | None = None) -> tuple[int, ...]:
    """Batch sizes to measure: those asked for, such as `1,8,128`, or powers of two up to the model's largest.

    Raises:
        InputError: not such a list, or a size that the model does not take.
    """
    most = config.dynamic_batching.max_batch_size
    if asked is None:
        return tuple(sorted({*(2**n for n in range(most.bit_length())), most}))
    words = [word.strip() for word in asked.split(",")]
    if not all(re.fullmatch("[0-9]{1,6}", word) and 1 <= int(word) <= most for word in words):
        raise InputError(
            f"{config.name} takes batch sizes from 1 to {most}, such as 1,8,{most}; came {asked!r}"
        )
    return tuple(sorted({int(word) for word in words}))


def called(backend: str, precision: Precision) -> str:
    """A backend's name among those measured: with its precision unless that is fp32."""
    return backend if precision == "fp32" else f"{backend}-{precision}"


@contextmanager
def opened(
    models: Path,
    name: str,
    backends: Sequence[str] | None = None,
    plans: Path | None = None,
    precisions: Sequence[Precision] = ("fp32",),
    version: int | None = None,
) -> Iterator[Opened]:
    """The reference and other backends of a model, each proved on its golden data; closed at the end.

    Args:
        models: the repository.
        name: of the model.
        backends: which must run, of `ALL` and `PYTORCH`; every one of `ALL` that can, unless given.
        plans: folder to keep plans in; beside the model unless given.
        precisions: of plans, each measured; the other backends compute the graph as it is.
        version: of the model; the served one unless given.

    Raises:
        InputError: fp16, of backends none of which runs plans.
        EngineError: the reference, or a backend that is asked for by name, cannot be loaded.
    """
    others = dict.fromkeys(other for other in backends or ALL if other != repository.REFERENCE_BACKEND)
    if "fp16" in precisions and others.keys().isdisjoint(tensorrt_module.BACKENDS):
        raise InputError(
            f"precision fp16 is of plans: measure {' or '.join(tensorrt_module.BACKENDS)}, not "
            f"{', '.join(others) or repository.REFERENCE_BACKEND} alone"
        )
    engines: dict[str, Engine] = {}
    refused = {}
    try:
        engines[repository.REFERENCE_BACKEND] = repository.load(models, name, version=version)
        for backend, precision in _targets(others, precisions):
            try:
                engines[called(backend, precision)] = _load(models, name, backend, plans, precision, version)
            except EngineError as error:
                if backends:
                    raise
                refused[called(backend, precision)] = error
        yield Opened(engines, refused)
    finally:
        for engine in engines.values():
            engine.close()


def _targets(backends: Iterable[str], precisions: Sequence[Precision]) -> Iterator[tuple[str, Precision]]:
    """What to load: plans in every precision asked for, the others as they are."""
    for backend in backends:
        if backend in tensorrt_module.BACKENDS:
            for precision in dict.fromkeys(precisions):
                yield backend, precision
        else:
            yield backend, "fp32"


def _load(
    models: Path, name: str, backend: str, plans: Path | None, precision: Precision, version: int | None
) -> Engine:
    if backend in PYTORCH:
        return _pytorch(repository.read_config(models, name, version), models, PYTORCH[backend])
    if backend not in ALL:
        raise BackendError(f"no backend {backend!r} to measure; there is {', '.join((*ALL, *PYTORCH))}")
    return repository.load(models, name, backend, plans, version, precision=precision)


def _pytorch(config: ModelConfig, models: Path, device: str) -> Engine:
    try:
        from engines.train.pytorch import PyTorchEngine
    except ModuleNotFoundError as error:
        raise ExtraError(f"measuring PyTorch needs {error.name}: pip install 'riskstream[train]'") from error
    engine = PyTorchEngine(config, repository.read_graph(models, config), device)
    folder = models / config.name / str(config.version)
    repository.verify(engine, repository.read_golden(folder / repository.GOLDEN))
    return engine


def golden_inputs(models: Path, config: ModelConfig) -> dict[str, F32]:
    """The inputs of a model's golden data, float32[rows, *dims].

    Raises:
        RepositoryError: they cannot be read.
    """
    golden = repository.golden_of(models, config)
    return {key.removeprefix("in/"): array for key, array in golden.items() if key.startswith("in/")}


def repeated(inputs: Mapping[str, F32], rows: int) -> dict[str, F32]:
    """So many rows: those at hand, over and over."""
    return {name: np.ascontiguousarray(array[np.arange(rows) % len(array)]) for name, array in inputs.items()}


def measure(
    engines: Mapping[str, Engine], inputs: Mapping[str, F32], order: Order, progress: Progress
) -> Content:
    """Time engines of one model side by side.

    Args:
        engines: by backend; the first is the reference. Nothing else may use them meanwhile.
        inputs: rows that are repeated to each batch size, float32[rows, *dims].
        order: what to measure.
        progress: told after every point; nothing is timed meanwhile.

    Returns:
        By backend "engine", the runtime and device, and "points", one `point` for each batch size.
    """
    batches = {size: repeated(inputs, size) for size in order.sizes}
    points = [(backend, size) for size in order.sizes for backend in engines]
    apart = set()
    for number, (backend, size) in enumerate(points, start=1):
        if _warm(engines[backend], batches[size]):
            apart.add(backend)
        progress("warming up", number, len(points))
    found: dict[tuple[str, int], list[Round]] = {point: [] for point in points}
    for number in range(order.rounds):
        for done, (backend, size) in enumerate(points if number % 2 == 0 else reversed(points), start=1):
            seconds = order.seconds / order.rounds
            found[backend, size].append(
                timed(engines[backend], batches[size], seconds, apart=backend in apart)
            )
            progress("measuring", number * len(points) + done, order.rounds * len(points))
    reference = next(iter(engines))
    return {
        backend: {
            "engine": engine.backend,
            "points": [
                point(size, found[backend, size], found.get((backend, 1)), found[reference, size])
                for size in order.sizes
            ],
        }
        for backend, engine in engines.items()
    }


def timed(engine: Engine, inputs: Mapping[str, F32], seconds: float, *, apart: bool) -> Round:
    """Run batches for so many seconds; where parts can be told apart, every other batch tells them.

    So the latency is that of `run`, as it serves, and its parts are those of batches that ran in between.
    """
    engine.run(inputs)  # what the point before left in the caches is not this point's
    took: list[float] = []
    parts: list[Parts] = []
    cpu, until = process_time(), perf_counter() + seconds
    while len(took) < FEWEST or perf_counter() < until:
        began = perf_counter()
        engine.run(inputs)
        took.append(perf_counter() - began)
        if apart and (told := engine.run_in_parts(inputs)[1]) is not None:
            parts.append(told)
    spent = (process_time() - cpu) / (len(took) + len(parts))
    company = None if engine.in_flight == 1 else together(engine, inputs, seconds)
    return Round(np.array(took), spent, np.array(parts) if parts else None, company)


def together(engine: Engine, inputs: Mapping[str, F32], seconds: float) -> float:
    """Batches per second while every thread that the engine takes hands over one batch after another."""
    began = perf_counter()
    until = began + seconds

    def batches() -> int:
        done = 0
        while done < FEWEST or perf_counter() < until:
            engine.run(inputs)
            done += 1
        return done

    with ThreadPoolExecutor(engine.in_flight) as threads:
        calls = [threads.submit(batches) for _ in range(engine.in_flight)]
        done = sum(call.result() for call in calls)
    return done / (perf_counter() - began)


def point(
    size: int, rounds: Sequence[Round], alone: Sequence[Round] | None, reference: Sequence[Round]
) -> Content:
    """Figures of one backend at one batch size: medians over the rounds.

    Args:
        size: rows of a batch.
        rounds: at this point.
        alone: of this backend at batch size 1, round by round; None where that was not measured.
        reference: of the reference at this size, round by round.

    Returns:
        "batch", "batches" timed in all rounds, "latency_ms" by percentile, "rows_per_second" with the least
        and the greatest of the rounds, "cpu_ms" of a batch, "parts_ms" or None, and the rows per second as
        multiples "to_batch_1" (None where that was not measured) and "to_reference". "in_flight" has
        "rows_per_second" with as many batches in flight as the engine takes, and what multiple "to_one" batch
        after another that is; None where it takes one.
    """
    speeds = [_speed(size, each) for each in rounds]
    percentiles = np.array([np.percentile(each.took, PERCENTILES) for each in rounds])
    return {
        "batch": size,
        "batches": sum(len(each.took) for each in rounds),
        "latency_ms": {
            f"p{which}": _ms(found)
            for which, found in zip(PERCENTILES, np.median(percentiles, axis=0), strict=True)
        },
        "rows_per_second": {
            "median": round(float(np.median(speeds)), 1),
            "least": round(min(speeds), 1),
            "greatest": round(max(speeds), 1),
        },
        "cpu_ms": _ms(np.median([each.cpu for each in rounds])),
        "parts_ms": _parts(rounds),
        "to_batch_1": None if alone is None else _ratio(speeds, [_speed(1, each) for each in alone]),
        "to_reference": _ratio(speeds, [_speed(size, each) for each in reference]),
        "in_flight": _in_flight(size, rounds, speeds),
    }


def _warm(engine: Engine, inputs: Mapping[str, F32]) -> bool:
    """Run for a while; whether the engine tells its parts apart."""
    told = engine.run_in_parts(inputs)[1]
    until = perf_counter() + WARM_UP_S
    while perf_counter() < until:
        engine.run(inputs)
    return told is not None


def _speed(size: int, found: Round) -> float:
    """Rows per second."""
    return float(size * len(found.took) / found.took.sum())


def _in_flight(size: int, rounds: Sequence[Round], speeds: Sequence[float]) -> dict[str, float] | None:
    found = [size * each.together for each in rounds if each.together is not None]
    if not found:
        return None
    return {"rows_per_second": round(float(np.median(found)), 1), "to_one": _ratio(found, speeds)}


def _ratio(speeds: Sequence[float], others: Sequence[float]) -> float:
    return round(float(np.median(np.array(speeds) / np.array(others))), 2)


def _parts(rounds: Sequence[Round]) -> dict[str, float] | None:
    told = [np.median(each.parts, axis=0) for each in rounds if each.parts is not None]
    if not told:
        return None
    return dict(zip(Parts._fields, map(_ms, np.median(told, axis=0)), strict=True))


def _ms(seconds: Any) -> float:
    return round(1000 * float(seconds), 4)
