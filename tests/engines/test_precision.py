"""fp16 graphs: what is converted, what stays, and how near the answers are."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from engines import repository
from engines.engine import ANSWERS, Engine
from engines.errors import GoldenError, GraphError
from engines.precision import to_fp16
from tests import kinds

SHIPPED = [config.name for config in repository.list_models()]
F16, F32 = TensorProto.FLOAT16, TensorProto.FLOAT


def types_of(graph: bytes) -> dict[str, int]:
    """Element type of every tensor."""
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(graph), strict_mode=True)
    described = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    found = {value.name: value.type.tensor_type.elem_type for value in described}
    return found | {weights.name: weights.data_type for weights in model.graph.initializer}


def engines_of(kind: str) -> tuple[Engine, Engine]:
    config, graph = kinds.model_of(kind)
    return repository.open_engine(config, graph), repository.open_engine(config, to_fp16(graph))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_graph_is_converted(name: str) -> None:
    graph = repository.read_graph(repository.SHIPPED, repository.read_config(repository.SHIPPED, name))
    converted = to_fp16(graph)
    assert converted == to_fp16(graph)
    assert len(converted) < 0.8 * len(graph)
    types = types_of(converted)
    model = onnx.load_model_from_string(converted)
    for node in model.graph.node:
        if node.op_type in {"MatMul", "Gemm", "Conv"}:
            assert {types[name] for name in node.input} == {F16}
    assert {types[value.name] for value in [*model.graph.input, *model.graph.output]} == {F32}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_graph_passes_its_golden_data_in_fp16(name: str) -> None:
    """As far as the types go: on a CPU, between tensors that were rounded."""
    config = repository.read_config(repository.SHIPPED, name)
    engine = repository.open_engine(config, to_fp16(repository.read_graph(repository.SHIPPED, config)))
    golden = repository.golden_of(repository.SHIPPED, config)
    with pytest.raises(GoldenError):
        repository.verify(engine, golden)
    engine.precision = "fp16"
    repository.verify(engine, golden)
    engine.close()


@pytest.mark.parametrize("name", SHIPPED)
def test_what_decides_is_held_tighter_in_fp16_than_the_rest(name: str) -> None:
    """A risk that lies off by what a forecast may would change decisions."""
    config = repository.read_config(repository.SHIPPED, name)
    engine = repository.open_engine(config, to_fp16(repository.read_graph(repository.SHIPPED, config)))
    engine.precision = "fp16"
    golden = repository.golden_of(repository.SHIPPED, config)
    refused = set()
    for output in engine.output_dims:
        shifted = golden | {f"out/{output}": golden[f"out/{output}"] + np.float32(0.0025)}
        if output in ANSWERS:
            with pytest.raises(GoldenError, match=f"{output} differs from golden.npz by .*, over 0.0005,"):
                repository.verify(engine, shifted)
            refused.add(output)
        else:
            repository.verify(engine, shifted)
    assert len(refused) == 1
    engine.close()


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_of_every_kind_the_answer_is_held_tighter(kind: str) -> None:
    engine = kinds.engine_of(kind)
    engine.precision = "fp16"
    answer = "probability" if kind == "image" else "risk"
    held = {output: engine.golden_tolerance(output) for output in engine.output_dims}
    assert held == {output: 5e-4 if output == answer else 5e-3 for output in engine.output_dims}
    engine.precision = "fp32"
    assert {engine.golden_tolerance(output) for output in engine.output_dims} == {1e-4}
    engine.close()


@pytest.mark.parametrize("kind", ["whole", "features", "image"])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_answers_stay_near(kind: str, seed: int) -> None:
    reference, other = engines_of(kind)
    inputs = kinds.inputs_of(reference, 9, seed)
    expected, came = reference.run(inputs), other.run(inputs)
    for name, array in expected.items():
        np.testing.assert_allclose(came[name], array, rtol=0.01, atol=0.005)


def test_what_comes_before_the_first_product_keeps_its_digits() -> None:
    """(x - 20,000) @ 1: x is known to 16 in fp16, the difference to 0.0005."""
    nodes = [
        helper.make_node("Sub", ["x", "centre"], ["offset"]),
        helper.make_node("MatMul", ["offset", "one"], ["y"]),
    ]
    constants: dict[str, object] = {
        "centre": np.array([20_000.0], np.float32),
        "one": np.ones((1, 1), np.float32),
    }
    converted = to_fp16(kinds.serialised(nodes, {"x": (1,)}, {"y": (1,)}, constants))
    types = types_of(converted)
    assert (types["centre"], types["offset"], types["offset__fp16"], types["y"]) == (F32, F32, F16, F32)
    evaluator = ReferenceEvaluator(onnx.load_model_from_string(converted))
    found = evaluator.run(None, {"x": np.array([[20_001.5]], np.float32)})[0]
    assert found == pytest.approx(1.5)


def test_weights_that_fp16_cannot_hold_saturate() -> None:
    nodes = [
        helper.make_node("Add", ["z", "mask"], ["masked"]),
        helper.make_node("MatMul", ["x", "w"], ["z"]),
    ]
    nodes = [nodes[1], nodes[0], helper.make_node("MatMul", ["masked", "w"], ["y"])]
    constants: dict[str, object] = {"w": np.eye(2, dtype=np.float32), "mask": np.array([0, -1e9], np.float32)}
    model = onnx.load_model_from_string(to_fp16(kinds.serialised(nodes, {"x": (2,)}, {"y": (2,)}, constants)))
    weights = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    assert weights["mask__fp16"].tolist() == [0, -65504]


def test_a_weight_that_is_read_on_both_sides_keeps_its_digits_where_it_can() -> None:
    nodes = [
        helper.make_node("Add", ["x", "b"], ["shifted"]),
        helper.make_node("MatMul", ["shifted", "w"], ["z"]),
        helper.make_node("Add", ["z", "b"], ["again"]),
        helper.make_node("MatMul", ["again", "w"], ["y"]),
    ]
    constants: dict[str, object] = {"w": np.eye(1, dtype=np.float32), "b": np.array([1.0001], np.float32)}
    types = types_of(to_fp16(kinds.serialised(nodes, {"x": (1,)}, {"y": (1,)}, constants)))
    assert (types["b"], types["b__fp16"]) == (F32, F16)


def test_a_graph_without_products_is_refused() -> None:
    graph = kinds.serialised([helper.make_node("Sigmoid", ["x"], ["y"])], {"x": (2,)}, {"y": (2,)}, {})
    with pytest.raises(GraphError, match="no matrix product or convolution"):
        to_fp16(graph)


def test_bytes_that_are_no_graph_are_refused() -> None:
    with pytest.raises(GraphError, match="cannot read the graph"):
        to_fp16(b"not an ONNX model")
