"""Small models of every kind, made without training: real graphs, each with its config."""

import hashlib
from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engines import repository
from engines.engine import Engine
from schemas.features import CHANNEL
from schemas.model_config import (
    Batching,
    Forecast,
    ImageInput,
    Level,
    ModelConfig,
    Policy,
    StatePair,
    Tensor,
)
from schemas.window import FILL, WINDOW_BINS

FEATURES = ("age", "heart_rate", "systolic_pressure", "lactate", "gcs")
WEIGHTS = np.array([0.1, 0.3, -0.3, 0.3, -0.4], dtype=np.float32)
AHEAD = ("heart_rate", "systolic_pressure")
POLICY = Policy(
    "1", (Level("elevated", 0.3, 600.0), Level("high", 0.6)), 0.2, 3600.0, 3600.0, 0.03, 12 * 3600.0
)
CENTRE = FILL[[CHANNEL[name] for name in FEATURES]]

KINDS = ("step", "whole", "features", "image")
SERIES = KINDS[:3]

Array = NDArray[np.float32]


def model_of(kind: str) -> tuple[ModelConfig, bytes]:
    """The config and the graph of one of `KINDS`."""
    return {"step": _step, "whole": _whole, "features": _features, "image": _image}[kind]()


def engine_of(kind: str, backend: str = "onnxruntime") -> Engine:
    """An engine of one of `KINDS`."""
    return repository.open_engine(*model_of(kind), backend)


def _series(kind: str, graph: bytes, dims: tuple[int, ...], names: tuple[str, ...]) -> ModelConfig:
    return ModelConfig(
        name="small",
        kind="features" if kind == "features" else "windowed-series",
        version=1,
        outcome="nothing",
        features=FEATURES,
        input=tuple(Tensor(name, dims) for name in names),
        output=(Tensor("risk", ()),),
        digest=hashlib.sha256(graph).hexdigest(),
        policy=POLICY,
        dynamic_batching=Batching(max_batch_size=64),
    )


def _step() -> tuple[ModelConfig, bytes]:
    """A leaky sum of scaled values as state, with spread and forecast; two states of other dims."""
    n = len(FEATURES)
    nodes = [
        helper.make_node("Sub", ["values", "centre"], ["offset"]),
        helper.make_node("Div", ["offset", "centre"], ["scaled"]),
        helper.make_node("Mul", ["elapsed", "decay"], ["age"]),
        helper.make_node("Exp", ["age"], ["fresh"]),
        helper.make_node("Mul", ["scaled", "fresh"], ["seen"]),
        helper.make_node("Mul", ["memory", "keep"], ["kept"]),
        helper.make_node("Add", ["kept", "seen"], ["memory_out"]),
        helper.make_node("ReduceSum", ["counts", "one"], ["fed"], keepdims=1),
        helper.make_node("Add", ["total", "fed"], ["total_out"]),
        helper.make_node("MatMul", ["memory_out", "weights"], ["sum"]),
        helper.make_node("ReduceSum", ["sum", "one"], ["score"], keepdims=0),
        helper.make_node("Sigmoid", ["score"], ["risk"]),
        helper.make_node("Mul", ["risk", "tenth"], ["spread"]),
        helper.make_node("Gather", ["values", "ahead"], ["forecast"], axis=1),
    ]
    constants = {
        "centre": CENTRE,
        "decay": np.float32(-0.05),
        "keep": np.float32(0.7),
        "tenth": np.float32(0.1),
        "weights": WEIGHTS[:, None],
        "one": np.array([1]),
        "ahead": np.array([FEATURES.index(name) for name in AHEAD]),
    }
    rows = dict.fromkeys(("values", "elapsed", "counts"), (n,))
    inputs = rows | {"memory": (n,), "total": (1,)}
    outputs: dict[str, tuple[int, ...]] = {
        "risk": (),
        "spread": (),
        "forecast": (len(AHEAD),),
        "memory_out": (n,),
        "total_out": (1,),
    }
    graph = serialised(nodes, inputs, outputs, constants)
    config = _series("step", graph, (n,), tuple(rows))
    return _with(
        config,
        input=tuple(Tensor(name, dims) for name, dims in inputs.items()),
        output=tuple(Tensor(name, dims) for name, dims in outputs.items()),
        state=(StatePair("memory", "memory_out", (n,)), StatePair("total", "total_out", (1,))),
        forecast=Forecast(AHEAD),
    ), graph


def _whole() -> tuple[ModelConfig, bytes]:
    """A convolution over the hours, of values and elapsed times."""
    n = len(FEATURES)
    rng = np.random.default_rng(5)
    kernel = (WEIGHTS[None, :, None] * rng.uniform(0.5, 1, (4, n, 3))).astype(np.float32)
    nodes = [
        helper.make_node("Sub", ["values", "centre"], ["offset"]),
        helper.make_node("Div", ["offset", "centre"], ["scaled"]),
        helper.make_node("Mul", ["elapsed", "decay"], ["age"]),
        helper.make_node("Exp", ["age"], ["fresh"]),
        helper.make_node("Mul", ["scaled", "fresh"], ["seen"]),
        helper.make_node("Transpose", ["seen"], ["series"], perm=[0, 2, 1]),
        helper.make_node("Conv", ["series", "kernel"], ["found"], kernel_shape=[3], pads=[2, 0]),
        helper.make_node("Tanh", ["found"], ["bounded"]),
        helper.make_node("ReduceMean", ["bounded", "both"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "gain"], ["score"]),
        helper.make_node("Sigmoid", ["score"], ["risk"]),
    ]
    constants = {
        "centre": CENTRE,
        "decay": np.float32(-0.05),
        "kernel": kernel,
        "both": np.array([1, 2]),
        "gain": np.float32(12),
    }
    dims = (WINDOW_BINS, n)
    graph = serialised(nodes, {"values": dims, "elapsed": dims}, {"risk": ()}, constants)
    return _series("whole", graph, dims, ("values", "elapsed")), graph


def _features() -> tuple[ModelConfig, bytes]:
    """A logistic regression on the newest values alone."""
    n = len(FEATURES)
    nodes = [
        helper.make_node("Sub", ["values", "centre"], ["offset"]),
        helper.make_node("Div", ["offset", "centre"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "weights"], ["sum"]),
        helper.make_node("ReduceSum", ["sum", "one"], ["score"], keepdims=0),
        helper.make_node("Sigmoid", ["score"], ["risk"]),
    ]
    constants = {"centre": CENTRE, "weights": WEIGHTS[:, None] * 2, "one": np.array([1])}
    graph = serialised(nodes, {"values": (n,)}, {"risk": ()}, constants)
    return _series("features", graph, (n,), ("values",)), graph


def _image() -> tuple[ModelConfig, bytes]:
    """A convolution, its mean and a softmax; the activation is each class's map."""
    rng = np.random.default_rng(6)
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["found"], kernel_shape=[3, 3], strides=[2, 2]),
        helper.make_node("Relu", ["found"], ["parts"]),
        helper.make_node("Conv", ["parts", "classes"], ["activation"], kernel_shape=[1, 1]),
        helper.make_node("ReduceMean", ["activation", "plane"], ["score"], keepdims=0),
        helper.make_node("Softmax", ["score"], ["probability"], axis=1),
    ]
    constants = {
        "kernel": rng.normal(0, 1, (6, 1, 3, 3)).astype(np.float32),
        "classes": rng.normal(0, 1, (3, 6, 1, 1)).astype(np.float32),
        "plane": np.array([2, 3]),
    }
    image = ImageInput(height=28, width=28)
    outputs = {"probability": (3,), "activation": (3, 13, 13)}
    graph = serialised(nodes, {"image": image.dims}, outputs, constants)
    config = ModelConfig(
        name="small",
        kind="image",
        version=1,
        outcome="nothing",
        input=(Tensor("image", image.dims),),
        output=tuple(Tensor(name, dims) for name, dims in outputs.items()),
        digest=hashlib.sha256(graph).hexdigest(),
        policy=POLICY,
        image=image,
        classes=("well", "ill", "odd"),
        findings=("ill", "odd"),
        dynamic_batching=Batching(max_batch_size=32),
    )
    return config, graph


Dims = Mapping[str, tuple[int, ...]]


def serialised(nodes: list[object], inputs: Dims, outputs: Dims, constants: Mapping[str, object]) -> bytes:
    """An ONNX graph with a free batch axis."""

    def tensors(side: Dims) -> list[object]:
        return [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *dims])
            for name, dims in side.items()
        ]

    fixed = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    made = helper.make_graph(nodes, "small", tensors(inputs), tensors(outputs), fixed)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return bytes(model.SerializeToString())


def _with(config: ModelConfig, **changes: object) -> ModelConfig:
    return msgspec.structs.replace(config, **changes)


def inputs_of(engine: Engine, rows: int, seed: int = 0) -> dict[str, Array]:
    """Random inputs near ordinary values, of any kind of model."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, dims in engine.input_dims.items():
        shape = (rows, *dims)
        array: NDArray[np.generic]
        if name == "values":
            array = CENTRE * rng.lognormal(0, 0.5, shape)
        elif name in ("elapsed", "counts"):
            array = rng.integers(0, WINDOW_BINS + 1, shape)
        else:
            array = rng.uniform(0, 1, shape)
        made[name] = array.astype(np.float32)
    return made
