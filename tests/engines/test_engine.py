"""The contract of `Engine`, on a tiny real graph."""

import re
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from engines import onnxruntime_backend, repository
from engines.engine import F32, Engine
from engines.errors import BackendError, InputError
from tests import kinds
from tests.engines.conftest import config_of, graph, tiny_inputs, tiny_outputs


@pytest.fixture(params=repository.BACKENDS)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    content = graph()
    engine = repository.open_engine(config_of(content), content, request.param)
    yield engine
    engine.close()


@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 32])
def test_computes_the_graph(engine: Engine, rows: int) -> None:
    inputs = tiny_inputs(rows)
    outputs = engine.run(inputs)
    for name, expected in tiny_outputs(inputs).items():
        assert outputs[name].dtype == np.float32
        assert outputs[name].shape == expected.shape
        np.testing.assert_allclose(outputs[name], expected, atol=1e-6)


def test_returned_arrays_are_the_callers(engine: Engine) -> None:
    first = engine.run(tiny_inputs(4, seed=1))
    kept = {name: array.copy() for name, array in first.items()}
    engine.run(tiny_inputs(32, seed=2))
    for name, array in first.items():
        assert array.tobytes() == kept[name].tobytes()
        array[:] = 0


def test_inputs_are_only_read(engine: Engine) -> None:
    inputs = tiny_inputs(3)
    for array in inputs.values():
        array.setflags(write=False)
    engine.run(inputs)


def test_strided_inputs(engine: Engine) -> None:
    inputs = tiny_inputs(8)
    strided = {name: np.asfortranarray(array) for name, array in inputs.items()}
    assert engine.run(strided)["risk"].tobytes() == engine.run(inputs)["risk"].tobytes()


def without_counts(inputs: dict[str, F32]) -> None:
    del inputs["counts"]


def with_another(inputs: dict[str, F32]) -> None:
    inputs["pulse"] = inputs["values"]


def in_double(inputs: dict[str, F32]) -> None:
    inputs["values"] = inputs["values"].astype(np.float64)


def too_wide(inputs: dict[str, F32]) -> None:
    inputs["state"] = np.zeros((5, 7), np.float32)


def ragged(inputs: dict[str, F32]) -> None:
    inputs["elapsed"] = inputs["elapsed"][:2]


def without_rows(inputs: dict[str, F32]) -> None:
    for name, array in inputs.items():
        inputs[name] = array[:0]


def too_many(inputs: dict[str, F32]) -> None:
    inputs |= tiny_inputs(33)


def scalar(inputs: dict[str, F32]) -> None:
    inputs["values"] = np.array(1.0, np.float32)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_counts, "tiny takes the inputs ['counts', 'elapsed', 'state', 'values'], came ['elapsed', "),
        (with_another, "came ['counts', 'elapsed', 'pulse', "),
        (in_double, "input values must be float32[batch, 2], came float64[5, 2]"),
        (too_wide, "input state must be float32[batch, 4], came float32[5, 7]"),
        (ragged, "all inputs must have one batch size from 1 to 32, came [2, 5]"),
        (without_rows, "one batch size from 1 to 32, came [0]"),
        (too_many, "one batch size from 1 to 32, came [33]"),
        (scalar, "one batch size from 1 to 32, came [0, 5]"),
    ],
)
def test_refuses_what_does_not_fit(
    engine: Engine, spoil: Callable[[dict[str, F32]], None], message: str
) -> None:
    inputs = tiny_inputs(5)
    spoil(inputs)
    with pytest.raises(InputError, match=re.escape(message)):
        engine.run(inputs)


def test_a_provider_that_is_not_there_is_no_silent_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    content = graph()
    monkeypatch.setattr(onnxruntime_backend, "PROVIDER", "NoSuchExecutionProvider")
    with pytest.raises(BackendError, match=r"this ONNX Runtime has no NoSuchExecutionProvider; it has .*CPU"):
        repository.open_engine(config_of(content), content)


def test_a_closed_engine_says_so(engine: Engine) -> None:
    engine.close()
    engine.close()
    with pytest.raises(BackendError, match="closed"):
        engine.run(tiny_inputs(1))


@pytest.fixture(params=[(kind, backend) for kind in kinds.KINDS for backend in repository.BACKENDS])
def engine_of_kind(request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = kinds.engine_of(*request.param)
    yield engine
    engine.close()


def test_every_kind_has_its_outputs(engine_of_kind: Engine) -> None:
    outputs = engine_of_kind.run(kinds.inputs_of(engine_of_kind, 5))
    assert {name: array.shape for name, array in outputs.items()} == {
        name: (5, *dims) for name, dims in engine_of_kind.output_dims.items()
    }
    for array in outputs.values():
        assert array.dtype == np.float32
        assert np.isfinite(array).all()


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 15, 16, 17, 31])
def test_a_row_of_any_kind_has_the_same_bytes_in_any_batch(engine_of_kind: Engine, rows: int) -> None:
    inputs = kinds.inputs_of(engine_of_kind, 32)
    whole = engine_of_kind.run(inputs)
    chosen = np.random.default_rng(rows).choice(32, rows, replace=False)
    part = engine_of_kind.run({name: array[chosen] for name, array in inputs.items()})
    for name, array in part.items():
        assert array.tobytes() == whole[name][chosen].tobytes()


def test_arrays_of_any_kind_are_the_callers(engine_of_kind: Engine) -> None:
    first = engine_of_kind.run(kinds.inputs_of(engine_of_kind, 1, seed=1))
    kept = {name: array.copy() for name, array in first.items()}
    engine_of_kind.run(kinds.inputs_of(engine_of_kind, 9, seed=2))
    for name, array in first.items():
        assert array.tobytes() == kept[name].tobytes()
        array[:] = 0
