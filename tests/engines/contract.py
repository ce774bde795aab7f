"""What every backend promises behind `Engine`, on tiny real graphs: tests that each backend inherits.

A subclass says how its engines are opened (`opener`) and whether a row's bytes are the same in any batch.
"""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from engines import repository
from engines.engine import F32, Engine
from engines.errors import BackendError, BuildError, GoldenError, GraphError, InputError
from schemas.model_config import ModelConfig
from tests import kinds
from tests.engines.conftest import WIDTH, config_of, golden_of, graph, tiny_inputs, tiny_outputs

Opener = Callable[[ModelConfig, bytes], Engine]


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


class EngineContract:
    """The tests. `exact`: a row has the same bytes in any batch; else they agree within golden tolerance."""

    exact = False

    @pytest.fixture
    def opener(self) -> Iterator[Opener]:
        raise NotImplementedError

    @pytest.fixture
    def engine(self, opener: Opener) -> Iterator[Engine]:
        content = graph()
        engine = opener(config_of(content), content)
        yield engine
        engine.close()

    @pytest.fixture(params=kinds.KINDS)
    def engine_of_kind(self, opener: Opener, request: pytest.FixtureRequest) -> Iterator[Engine]:
        engine = opener(*kinds.model_of(request.param))
        yield engine
        engine.close()

    def expect_rows(self, engine: Engine, actual: dict[str, F32], expected: dict[str, F32]) -> None:
        for name, array in actual.items():
            if self.exact:
                assert array.tobytes() == expected[name].tobytes(), name
            np.testing.assert_allclose(
                array, expected[name], rtol=1e-4, atol=engine.config.golden_tolerance, err_msg=name
            )

    @pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 31, 32])
    def test_computes_the_graph(self, engine: Engine, rows: int) -> None:
        inputs = tiny_inputs(rows)
        outputs = engine.run(inputs)
        for name, expected in tiny_outputs(inputs).items():
            assert outputs[name].dtype == np.float32
            assert outputs[name].shape == expected.shape
            np.testing.assert_allclose(outputs[name], expected, atol=1e-6)

    def test_batches_of_every_size_one_after_another(self, engine: Engine) -> None:
        for seed, rows in enumerate((*range(1, 33), *range(31, 0, -3))):
            inputs = tiny_inputs(rows, seed)
            outputs = engine.run(inputs)
            for name, expected in tiny_outputs(inputs).items():
                np.testing.assert_allclose(outputs[name], expected, atol=1e-6)

    def test_batches_in_flight_keep_their_rows(self, engine_of_kind: Engine) -> None:
        requests = [kinds.inputs_of(engine_of_kind, 1 + seed % 32, seed) for seed in range(48)]
        expected = [engine_of_kind.run(inputs) for inputs in requests]
        with ThreadPoolExecutor(engine_of_kind.in_flight) as threads:
            for outputs, alone in zip(threads.map(engine_of_kind.run, requests), expected, strict=True):
                self.expect_rows(engine_of_kind, outputs, alone)

    def test_returned_arrays_are_the_callers(self, engine_of_kind: Engine) -> None:
        first = engine_of_kind.run(kinds.inputs_of(engine_of_kind, 1, seed=1))
        kept = {name: array.copy() for name, array in first.items()}
        engine_of_kind.run(kinds.inputs_of(engine_of_kind, 9, seed=2))
        for name, array in first.items():
            assert array.tobytes() == kept[name].tobytes()
            array[:] = 0

    def test_inputs_are_only_read(self, engine: Engine) -> None:
        inputs = tiny_inputs(3)
        for array in inputs.values():
            array.setflags(write=False)
        engine.run(inputs)

    def test_strided_inputs(self, engine: Engine) -> None:
        inputs = tiny_inputs(8)
        strided = {name: np.asfortranarray(array) for name, array in inputs.items()}
        assert engine.run(strided)["risk"].tobytes() == engine.run(inputs)["risk"].tobytes()

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (
                without_counts,
                "tiny takes the inputs ['counts', 'elapsed', 'state', 'values'], came ['elapsed', ",
            ),
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
        self, engine: Engine, spoil: Callable[[dict[str, F32]], None], message: str
    ) -> None:
        inputs = tiny_inputs(5)
        spoil(inputs)
        with pytest.raises(InputError, match=re.escape(message)):
            engine.run(inputs)

    def test_what_is_not_finite_goes_through(self, engine: Engine) -> None:
        inputs = tiny_inputs(3)
        inputs["values"][1] = np.nan
        risk = engine.run(inputs)["risk"]
        assert np.isnan(risk).tolist() == [False, True, False]

    def test_every_kind_has_its_outputs(self, engine_of_kind: Engine) -> None:
        outputs = engine_of_kind.run(kinds.inputs_of(engine_of_kind, 5))
        assert {name: array.shape for name, array in outputs.items()} == {
            name: (5, *dims) for name, dims in engine_of_kind.output_dims.items()
        }
        for array in outputs.values():
            assert array.dtype == np.float32
            assert np.isfinite(array).all()

    @pytest.mark.parametrize("rows", [1, 2, 3, 7, 15, 16, 17, 31])
    def test_a_row_is_the_same_in_any_batch(self, engine_of_kind: Engine, rows: int) -> None:
        inputs = kinds.inputs_of(engine_of_kind, 32)
        whole = engine_of_kind.run(inputs)
        chosen = np.random.default_rng(rows).choice(32, rows, replace=False)
        part = engine_of_kind.run({name: array[chosen] for name, array in inputs.items()})
        self.expect_rows(engine_of_kind, part, {name: array[chosen] for name, array in whole.items()})

    def test_parts_change_no_output(self, engine_of_kind: Engine) -> None:
        inputs = kinds.inputs_of(engine_of_kind, 32)
        outputs, parts = engine_of_kind.run_in_parts(inputs)
        self.expect_rows(engine_of_kind, outputs, engine_of_kind.run(inputs))
        assert parts is None or min(parts) >= 0

    def test_a_closed_engine_says_so(self, engine: Engine) -> None:
        engine.run(tiny_inputs(2))
        engine.close()
        engine.close()
        for _ in range(2):
            with pytest.raises(BackendError, match="closed"):
                engine.run(tiny_inputs(1))
        with pytest.raises(BackendError, match="closed"):
            engine.run_in_parts(tiny_inputs(1))

    def test_another_graph_than_the_configs_is_refused(self, opener: Opener) -> None:
        for content in (graph(risk="hazard"), graph(width=WIDTH + 1)):
            with pytest.raises((GraphError, BuildError)):
                opener(config_of(content), content)

    def test_golden_data(self, engine: Engine, tmp_path: Path) -> None:
        inputs, file = tiny_inputs(5), tmp_path / "golden.npz"
        file.write_bytes(golden_of(inputs, tiny_outputs(inputs)))
        repository.verify(engine, repository.read_golden(file))
        file.write_bytes(golden_of(inputs, tiny_outputs(tiny_inputs(5, seed=1))))
        with pytest.raises(GoldenError, match="differs from golden"):
            repository.verify(engine, repository.read_golden(file))
