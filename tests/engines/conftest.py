"""A tiny real model, made without training, and stays in the Challenge's format."""

import hashlib
import io
from pathlib import Path

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper

from engines.engine import F32
from schemas.model_config import Batching, Level, ModelConfig, Policy, StatePair, Tensor

FEATURES = ("age", "heart_rate")
POLICY = Policy("1", (Level("high", 0.5),), 0.3, 3600.0, 3600.0, 0.1, 7200.0)
WIDTH = 4


def graph(bias: float = 0.0, width: int = WIDTH, risk: str = "risk") -> bytes:
    """risk = sigmoid(mean of the inputs + bias), state_out = state + 1, in ONNX."""
    row = ["batch", len(FEATURES)]
    inputs = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, row) for n in ("values", "elapsed", "counts")
    ]
    inputs.append(helper.make_tensor_value_info("state", TensorProto.FLOAT, ["batch", width]))
    outputs = [
        helper.make_tensor_value_info(risk, TensorProto.FLOAT, ["batch"]),
        helper.make_tensor_value_info("state_out", TensorProto.FLOAT, ["batch", width]),
    ]
    nodes = [
        helper.make_node("Concat", ["values", "elapsed", "counts"], ["all"], axis=1),
        helper.make_node("ReduceMean", ["all", "axis"], ["mean"], keepdims=0),
        helper.make_node("Add", ["mean", "bias"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], [risk]),
        helper.make_node("Add", ["state", "one"], ["state_out"]),
    ]
    constants = [
        helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
        helper.make_tensor("bias", TensorProto.FLOAT, [], [bias]),
        helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
    ]
    made = helper.make_graph(nodes, "tiny", inputs, outputs, constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return bytes(model.SerializeToString())


def config_of(content: bytes) -> ModelConfig:
    rows = tuple(Tensor(name, (len(FEATURES),)) for name in ("values", "elapsed", "counts"))
    return ModelConfig(
        name="tiny",
        kind="windowed-series",
        version=3,
        outcome="nothing",
        features=FEATURES,
        input=(*rows, Tensor("state", (WIDTH,))),
        output=(Tensor("risk", ()), Tensor("state_out", (WIDTH,))),
        digest=hashlib.sha256(content).hexdigest(),
        policy=POLICY,
        state=(StatePair("state", "state_out", (WIDTH,)),),
        dynamic_batching=Batching(max_batch_size=32),
    )


def tiny_inputs(rows: int, seed: int = 0) -> dict[str, F32]:
    rng = np.random.default_rng(seed)
    shapes = dict.fromkeys(("values", "elapsed", "counts"), len(FEATURES)) | {"state": WIDTH}
    return {name: rng.normal(0, 1, (rows, width)).astype(np.float32) for name, width in shapes.items()}


def tiny_outputs(inputs: dict[str, F32]) -> dict[str, F32]:
    """What the tiny graph computes, in numpy."""
    mean = np.concatenate([inputs["values"], inputs["elapsed"], inputs["counts"]], axis=1).mean(axis=1)
    return {"risk": 1 / (1 + np.exp(-mean)), "state_out": inputs["state"] + 1}


def golden_of(inputs: dict[str, F32], outputs: dict[str, F32]) -> bytes:
    file = io.BytesIO()
    arrays = {f"in/{k}": v for k, v in inputs.items()} | {f"out/{k}": v for k, v in outputs.items()}
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


@pytest.fixture
def repository_path(tmp_path: Path) -> Path:
    """A repository with the model `tiny`, in order."""
    content, inputs = graph(), tiny_inputs(5)
    folder = tmp_path / "models" / "tiny"
    (folder / "3").mkdir(parents=True)
    (folder / "config.json").write_bytes(msgspec.json.encode(config_of(content)))
    (folder / "3" / "model.onnx").write_bytes(content)
    (folder / "3" / "golden.npz").write_bytes(golden_of(inputs, tiny_outputs(inputs)))
    return tmp_path / "models"
