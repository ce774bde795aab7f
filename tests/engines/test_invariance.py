"""Row i of a batch has the same bytes in every batch: sizes, places, neighbours and memory aside."""

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from engines import repository
from engines.engine import F32, Engine
from engines.steps import columns
from schemas.window import FILL, NEVER

LARGEST = 512
SIZES = (*range(1, 71), 127, 128, 129, 255, 256, 257, 383, 511, 512)


SERIES = [config.name for config in repository.list_models() if config.kind != "image"]


@pytest.fixture(scope="module", params=SERIES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = repository.load(repository.SHIPPED, request.param)
    yield engine
    engine.close()


def rows_of(engine: Engine, number: int, rng: np.random.Generator) -> dict[str, F32]:
    """Rows as a ward would send them, states as a trained network makes them, and some wild ones."""
    fill = FILL[columns(engine.config)]
    shape = (number, len(fill))
    elapsed = rng.choice([0, 1, 2, 5, 17, 47, NEVER], shape)
    inputs = {
        "values": np.where(elapsed < NEVER, fill * rng.lognormal(0, 0.5, shape), fill),
        "elapsed": elapsed,
        "counts": np.where(elapsed == 0, rng.integers(1, 90, shape), 0),
    }
    inputs |= {pair.input: rng.uniform(-1, 1, (number, *pair.dims)) for pair in engine.config.state}
    return {name: array.astype(np.float32) for name, array in inputs.items()}


def expect_same(actual: dict[str, F32], expected: dict[str, F32], rows: slice | NDArray[np.int64]) -> None:
    for name, array in actual.items():
        assert array.tobytes() == expected[name][rows].tobytes(), name


@pytest.mark.parametrize("size", SIZES)
def test_any_batch_size(engine: Engine, size: int) -> None:
    rng = np.random.default_rng(size)
    inputs = rows_of(engine, LARGEST, rng)
    whole = engine.run(inputs)
    chosen = rng.choice(LARGEST, size, replace=False)
    expect_same(engine.run({name: array[chosen] for name, array in inputs.items()}), whole, chosen)


def test_row_by_row(engine: Engine) -> None:
    inputs = rows_of(engine, LARGEST, np.random.default_rng(7))
    whole = engine.run(inputs)
    for row in range(LARGEST):
        rows = slice(row, row + 1)
        expect_same(engine.run({name: array[rows] for name, array in inputs.items()}), whole, rows)


def test_neighbours_do_not_matter(engine: Engine) -> None:
    rng = np.random.default_rng(8)
    inputs = rows_of(engine, LARGEST, rng)
    alone = engine.run({name: array[:1] for name, array in inputs.items()})
    for place in (0, 1, 15, 16, 31, 100, 511):
        others = rows_of(engine, LARGEST, rng)
        for name, array in others.items():
            array[place] = inputs[name][0]
        expect_same(alone, engine.run(others), slice(place, place + 1))


@pytest.mark.parametrize("shift", [4, 8, 20, 36, 60])
def test_the_callers_memory_does_not_matter(engine: Engine, shift: int) -> None:
    inputs = rows_of(engine, 33, np.random.default_rng(9))
    moved = {}
    for name, array in inputs.items():
        memory = np.zeros(array.nbytes + 128, dtype=np.uint8)
        start = -memory.ctypes.data % 64 + shift
        moved[name] = memory[start : start + array.nbytes].view(np.float32).reshape(array.shape)
        moved[name][:] = array
    expect_same(engine.run(moved), engine.run(inputs), slice(None))


def test_another_engine_of_the_same_model(engine: Engine) -> None:
    inputs = rows_of(engine, 70, np.random.default_rng(10))
    other = repository.load(repository.SHIPPED, engine.config.name)
    expect_same(other.run(inputs), engine.run(inputs), slice(None))
    other.close()
