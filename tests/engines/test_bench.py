"""Measuring engines: arithmetic, refusals, parts within the whole; never how fast anything is."""

import itertools
import threading
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter, sleep

import msgspec
import numpy as np
import pytest

from engines import bench, repository
from engines.bench import Order, Round
from engines.engine import F32, Engine
from engines.errors import BackendError, GoldenFileError, InputError
from schemas.model_config import Batching, ModelConfig
from tests import kinds
from tests.engines.conftest import config_of, graph, tiny_inputs

TINY = config_of(graph())  # at most 32 rows


class Numpy(Engine):
    """A second backend, which does not tell its parts apart: the tiny graph's sizes, in numpy."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, "numpy")
        self.sizes: list[int] = []

    def _execute(self, inputs: Mapping[str, F32], rows: int) -> dict[str, F32]:
        self.sizes.append(rows)
        return {name: np.zeros((rows, *dims), np.float32) for name, dims in self.output_dims.items()}

    def close(self) -> None:
        """Nothing to free."""


def silent(what: str, done: int, of: int) -> None:
    """Progress that nobody watches."""


def rounds(*ms: list[float], cpu_ms: float = 1.0) -> list[Round]:
    return [Round(np.array(took) / 1000, cpu_ms / 1000, None) for took in ms]


def test_sizes_are_powers_of_two_up_to_the_largest_and_the_largest() -> None:
    assert bench.sizes_of(TINY) == (1, 2, 4, 8, 16, 32)
    config = msgspec.structs.replace(TINY, dynamic_batching=Batching(max_batch_size=20))
    assert bench.sizes_of(config) == (1, 2, 4, 8, 16, 20)
    assert bench.sizes_of(TINY, " 8,1, 8,32") == (1, 8, 32)


@pytest.mark.parametrize("asked", ["", "0", "33", "1,,2", "-1", "1.5", "all", "9" * 30, "²"])
def test_other_sizes_are_refused(asked: str) -> None:
    with pytest.raises(InputError, match=r"tiny takes batch sizes from 1 to 32, such as 1,8,32; came '.*'"):
        bench.sizes_of(TINY, asked)


def test_figures_are_medians_over_the_rounds() -> None:
    found = rounds([4.0] * 50, [1.0] * 99 + [11.0], [2.0] * 10)
    content = bench.point(8, found, rounds([1.0], [1.0], [1.0]), rounds([2.0], [2.0], [4.0]))
    assert content["batches"] == 160
    assert content["latency_ms"] == {"p50": 2.0, "p90": 2.0, "p99": 2.0}
    assert content["rows_per_second"] == {"median": 4000.0, "least": 2000.0, "greatest": 7272.7}
    assert content["cpu_ms"] == 1.0
    assert content["parts_ms"] is None
    # By round: rows per second 2000, 7272.7 and 4000 against 1000 each; against 4000, 4000 and 2000.
    assert content["to_batch_1"] == 4.0
    assert content["to_reference"] == 1.82


def test_percentiles_are_those_of_a_round() -> None:
    content = bench.point(1, rounds([float(ms) for ms in range(1, 102)]), None, rounds([1.0]))
    assert content["latency_ms"] == {"p50": 51.0, "p90": 91.0, "p99": 100.0}
    assert content["to_batch_1"] is None


def test_parts_are_medians_of_medians() -> None:
    told = [[[1, 5, 1], [3, 7, 1]], [[2, 9, 4]], [[9, 9, 9]]]
    found = [Round(np.array([0.02]), 0.01, np.array(parts) / 1000) for parts in told]
    content = bench.point(1, found, None, found)
    assert content["parts_ms"] == {"copy_in": 2.0, "compute": 9.0, "copy_out": 4.0}


def test_company_is_a_multiple_of_one_batch_after_another() -> None:
    alone = Round(np.array([0.001, 0.001]), 0.01, None)
    found = [alone._replace(together=speed) for speed in (1000.0, 3000.0, 2000.0)]
    assert bench.point(8, found, None, found)["in_flight"] == {"rows_per_second": 16000.0, "to_one": 2.0}
    assert bench.point(8, [alone], None, [alone])["in_flight"] is None


class Two(Numpy):
    """Takes two batches at once, each for some milliseconds; notes the most that it had."""

    in_flight = 2

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.lock = threading.Lock()
        self.now = self.most = 0

    def _execute(self, inputs: Mapping[str, F32], rows: int) -> dict[str, F32]:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        sleep(0.003)
        with self.lock:
            self.now -= 1
        return super()._execute(inputs, rows)


def test_an_engine_that_takes_two_batches_is_measured_with_two() -> None:
    engine = Two(TINY)
    found = bench.timed(engine, tiny_inputs(4), 0.01, apart=False)
    assert found.together is not None
    assert engine.most == 2
    assert bench.timed(Numpy(TINY), tiny_inputs(4), 0.01, apart=False).together is None


def test_rows_are_repeated_whole_and_in_order() -> None:
    inputs = {"values": np.arange(6, dtype=np.float32).reshape(3, 2), "state": np.eye(3, dtype=np.float32)}
    made = bench.repeated(inputs, 7)
    for name, array in inputs.items():
        assert made[name].tobytes() == array[[0, 1, 2, 0, 1, 2, 0]].tobytes()
    assert bench.repeated(inputs, 2)["values"].tolist() == [[0, 1], [2, 3]]


def test_backends_are_measured_side_by_side() -> None:
    engine, other = repository.open_engine(TINY, graph()), Numpy(TINY)
    told: list[tuple[str, int, int]] = []
    inputs = tiny_inputs(3)
    order = Order((1, 4, 32), 0.006, 2)
    content = bench.measure(
        {"onnxruntime": engine, "other": other}, inputs, order, lambda *at: told.append(at)
    )
    engine.close()
    assert [found["engine"] for found in content.values()] == ["onnxruntime-cpu", "numpy"]
    for backend, found in content.items():
        assert [point["batch"] for point in found["points"]] == [1, 4, 32]
        assert all(point["batches"] >= 2 * bench.FEWEST for point in found["points"])
        assert (found["points"][0]["parts_ms"] is None) == (backend == "other")
        assert found["points"][0]["to_batch_1"] == 1.0
    assert [point["to_reference"] for point in content["onnxruntime"]["points"]] == [1.0] * 3
    assert told[-1] == ("measuring", 12, 12)
    assert [key for key, _ in itertools.groupby(other.sizes)] == [1, 4, 32, 1, 4, 32, 4, 1]


def test_without_batch_1_there_is_no_multiple_of_it() -> None:
    engine = Numpy(TINY)
    content = bench.measure({"other": engine}, tiny_inputs(1), Order((4, 8), 0.001, 1), silent)
    assert [point["to_batch_1"] for point in content["other"]["points"]] == [None, None]


@pytest.mark.parametrize("kind", kinds.KINDS)
@pytest.mark.parametrize("rows", [1, 5, 32])
def test_parts_lie_within_the_whole_and_change_no_byte(kind: str, rows: int) -> None:
    engine = kinds.engine_of(kind)
    inputs = kinds.inputs_of(engine, rows)
    served = engine.run(inputs)
    began = perf_counter()
    outputs, parts = engine.run_in_parts(inputs)
    whole = perf_counter() - began
    engine.close()
    assert parts is not None
    assert min(parts) > 0
    assert sum(parts) <= whole
    assert {name: array.tobytes() for name, array in outputs.items()} == {
        name: array.tobytes() for name, array in served.items()
    }


def test_running_in_parts_refuses_what_running_refuses() -> None:
    engine = kinds.engine_of("features")
    with pytest.raises(InputError, match="takes the inputs"):
        engine.run_in_parts({})
    engine.close()
    with pytest.raises(BackendError, match="closed"):
        engine.run_in_parts(kinds.inputs_of(engine, 1))


def test_the_reference_runs_and_others_say_why_not(repository_path: Path) -> None:
    with bench.opened(repository_path, "tiny") as found:
        assert [engine.backend for engine in found.engines.values()] == ["onnxruntime-cpu"]
        assert list(found.refused) == ["onnxruntime-cuda", "tensorrt", "tensorrt-rtx"]
        assert str(found.refused["tensorrt"]).startswith("tensorrt cannot run here: ")
        engine = found.engines["onnxruntime"]
    with pytest.raises(BackendError, match="closed"):
        engine.run(bench.golden_inputs(repository_path, engine.config))


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("tensorrt-rtx", r"tensorrt-rtx cannot run here: .*pip install 'riskstream"),
        ("cuda", "no backend 'cuda' to measure; there is onnxruntime, onnxruntime-cuda, tensorrt"),
    ],
)
def test_a_backend_asked_for_by_name_must_run(repository_path: Path, backend: str, message: str) -> None:
    with (
        pytest.raises(BackendError, match=message),
        bench.opened(repository_path, "tiny", ["onnxruntime", backend]),
    ):
        pass


def test_a_model_that_cannot_be_loaded_is_not_measured(repository_path: Path) -> None:
    (repository_path / "tiny" / "3" / "golden.npz").unlink()
    with pytest.raises(GoldenFileError, match="cannot read"), bench.opened(repository_path, "tiny"):
        pass
