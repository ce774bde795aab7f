"""A model repository with a second version to run as a shadow."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import numpy_helper

from engines import repository
from schemas.model_config import Level, ModelConfig

VERSION = 2


def two_versions(folder: Path) -> Path:
    """A repository whose `vitals` has a version 2 beside the shipped one, which is served: other weights of
    every member's last layer, and lower levels."""
    shutil.copytree(repository.SHIPPED / "vitals", folder / "vitals")
    served = repository.read_config(folder, "vitals")
    graph = _perturbed(repository.read_graph(folder, served))
    levels = (Level("elevated", 0.15, 7200.0), Level("high", 0.45, 1800.0))
    config = msgspec.structs.replace(
        served,
        version=VERSION,
        digest=hashlib.sha256(graph).hexdigest(),
        policy=msgspec.structs.replace(served.policy, version="shadow-1", levels=levels),
    )
    version = folder / "vitals" / str(VERSION)
    version.mkdir()
    (version / "config.json").write_bytes(msgspec.json.encode(config))
    (version / "model.onnx").write_bytes(graph)
    _write_golden(repository.golden_of(folder, served), config, graph, version / "golden.npz")
    return folder


def _perturbed(graph: bytes) -> bytes:
    model, rng = onnx.load_from_string(graph), np.random.default_rng(0)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("head.weight"):
            weights = numpy_helper.to_array(tensor)
            noise = rng.normal(0.0, np.abs(weights).mean(), weights.shape).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(weights + noise, tensor.name))
    made: bytes = model.SerializeToString()
    return made


def _write_golden(golden: dict[str, np.ndarray], config: ModelConfig, graph: bytes, file: Path) -> None:
    inputs = {name: array for name, array in golden.items() if name.startswith("in/")}
    engine = repository.open_engine(config, graph)
    found = engine.run({name.removeprefix("in/"): array for name, array in inputs.items()})
    engine.close()
    arrays: dict[str, Any] = {**inputs, **{f"out/{name}": array for name, array in found.items()}}
    np.savez(file, **arrays)
