"""Every check of the repository, by breaking the real thing."""

import hashlib
import io
import random
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from engines import repository, synthetic
from engines.engine import F32, Engine
from engines.errors import (
    BackendError,
    DigestError,
    EngineError,
    GoldenError,
    GoldenFileError,
    GraphError,
    RepositoryError,
)
from schemas.model_config import Batching, ModelConfig
from tests.engines.conftest import config_of, golden_of, graph, tiny_inputs, tiny_outputs
from tests.kinds import model_of


def put_graph(repository_path: Path, content: bytes) -> None:
    """Replace model.onnx, and the digest with it."""
    (repository_path / "tiny/3/model.onnx").write_bytes(content)
    (repository_path / "tiny/config.json").write_bytes(msgspec.json.encode(config_of(content)))


def test_loads(repository_path: Path) -> None:
    engine = repository.load(repository_path, "tiny")
    assert engine.backend == "onnxruntime-cpu"
    assert engine.config.version == 3
    engine.close()


def test_the_shipped_models_load() -> None:
    for config in repository.list_models():
        repository.load(repository.SHIPPED, config.name).close()
    assert {config.name for config in repository.list_models()} >= {"bedside", "pneumonia", "vitals"}


def test_lists_by_name(repository_path: Path) -> None:
    assert [config.name for config in repository.list_models(repository_path)] == ["tiny"]
    with pytest.raises(RepositoryError, match="no model repository"):
        repository.list_models(repository_path / "absent")


def test_an_unknown_model(repository_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"no model 'vitals' .*; it has \['tiny'\]"):
        repository.load(repository_path, "vitals")


def test_an_unknown_backend(repository_path: Path) -> None:
    with pytest.raises(BackendError, match="no backend 'cuda'; there is onnxruntime"):
        repository.load(repository_path, "tiny", "cuda")


def test_a_missing_graph(repository_path: Path) -> None:
    (repository_path / "tiny/3/model.onnx").unlink()
    with pytest.raises(RepositoryError, match=re.escape("3/model.onnx")):
        repository.load(repository_path, "tiny")


def test_missing_golden_data_are_no_missing_model(repository_path: Path) -> None:
    file = repository_path / "tiny/3/golden.npz"
    file.unlink()
    words = re.escape(f"cannot read {file}: No such file or directory; ") + ".*`riskstream model add GRAPH "
    with pytest.raises(GoldenFileError, match=words) as refused:
        repository.load(repository_path, "tiny")
    assert refused.value.reason == "golden-unreadable"


def test_a_renamed_folder(repository_path: Path) -> None:
    (repository_path / "tiny").rename(repository_path / "small")
    with pytest.raises(RepositoryError, match="name is 'tiny', the folder is 'small'"):
        repository.load(repository_path, "small")


def test_a_config_that_is_not_json(repository_path: Path) -> None:
    (repository_path / "tiny/config.json").write_text("{")
    with pytest.raises(RepositoryError, match=r"config\.json"):
        repository.load(repository_path, "tiny")


def test_a_flipped_byte(repository_path: Path) -> None:
    path = repository_path / "tiny/3/model.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DigestError, match=hashlib.sha256(content).hexdigest()):
        repository.load(repository_path, "tiny")


@pytest.mark.parametrize("content", [b"", b"not a graph", bytes(range(256)) * 40])
def test_garbage_with_the_right_digest(repository_path: Path, content: bytes) -> None:
    put_graph(repository_path, content)
    with pytest.raises(GraphError, match="cannot load"):
        repository.load(repository_path, "tiny")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (graph(width=5), "input state is float32[batch, 4] in config.json, tensor(float)['batch', 5]"),
        (graph(risk="hazard"), "config.json has the outputs ['risk', 'state_out'], model.onnx has ['hazard'"),
    ],
)
def test_tensors_that_are_not_the_configs(repository_path: Path, content: bytes, message: str) -> None:
    put_graph(repository_path, content)
    with pytest.raises(GraphError, match=re.escape(message)):
        repository.load(repository_path, "tiny")


def test_a_graph_that_is_larger_than_memory_is_refused_in_words(
    repository_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = repository.read_config(repository_path, "tiny")

    def full(path: Path) -> bytes:
        raise MemoryError  # as of a file of terabytes, without one

    monkeypatch.setattr(Path, "read_bytes", full)
    with pytest.raises(RepositoryError, match="does not fit in memory"):
        repository.read_graph(repository_path, config)


def test_other_weights(repository_path: Path) -> None:
    put_graph(repository_path, graph(bias=0.1))
    with pytest.raises(GoldenError, match=r"tiny: risk differs from golden.npz by 0\.02\d*, over 0.0001"):
        repository.load(repository_path, "tiny")


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (
            {"risk": np.zeros(5, np.float32)},
            "golden.npz has outputs ['risk'], the engine ['risk', 'state_out']",
        ),
        (
            {"risk": np.zeros(4, np.float32), "state_out": np.zeros((5, 4), np.float32)},
            "risk is float32[4] in golden.npz, the engine gave float32[5]",
        ),
        (
            tiny_outputs(tiny_inputs(5)) | {"risk": np.full(5, "none")},
            "risk is <U4[5] in golden.npz, the engine gave float32[5]",
        ),
        (tiny_outputs(tiny_inputs(5)) | {"risk": np.full(5, np.nan, np.float32)}, "risk differs"),
    ],
)
def test_golden_outputs_that_do_not_fit(
    repository_path: Path, outputs: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]], message: str
) -> None:
    (repository_path / "tiny/3/golden.npz").write_bytes(golden_of(tiny_inputs(5), outputs))
    with pytest.raises(GoldenError, match=re.escape(message)):
        repository.load(repository_path, "tiny")


def one_array() -> bytes:
    """An .npy file, which is no archive."""
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nothing", b"words", one_array()])
def test_a_golden_file_that_is_no_archive(repository_path: Path, content: bytes) -> None:
    (repository_path / "tiny/3/golden.npz").write_bytes(content)
    with pytest.raises(GoldenFileError, match=r"golden\.npz is not a readable .*riskstream model add"):
        repository.load(repository_path, "tiny")


@pytest.mark.parametrize("seed", range(4))
def test_a_golden_file_with_damaged_bytes_is_refused_in_words(repository_path: Path, seed: int) -> None:
    """Whatever zipfile, zlib and numpy raise of them: commands tell an EngineError in one line."""
    file, rng = repository_path / "tiny/3/golden.npz", random.Random(seed)
    packed, refused = io.BytesIO(), 0
    np.savez_compressed(packed, **np.load(file))
    whole = packed.getvalue()
    for _ in range(100):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        file.write_bytes(damaged)
        try:
            repository.read_golden(file)
        except GoldenFileError:
            refused += 1
    assert refused > 50


def test_the_shipped_weights_changed(tmp_path: Path) -> None:
    """A single changed weight in the shipped graph, under a fresh digest, is found by the golden data."""
    shutil.copytree(repository.SHIPPED / "vitals", tmp_path / "vitals")
    path = tmp_path / "vitals/1/model.onnx"
    content = path.read_bytes()
    config = repository.read_config(tmp_path, "vitals")
    bias = _largest_float(content)
    path.write_bytes(content.replace(bias.tobytes(), (bias * np.float32(1.5)).tobytes()))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    text = (tmp_path / "vitals/config.json").read_text().replace(config.digest, digest)
    (tmp_path / "vitals/config.json").write_text(text)
    with pytest.raises(GoldenError, match=r"differs from golden\.npz by"):
        repository.load(tmp_path, "vitals")


def _largest_float(content: bytes) -> np.float32:
    """The weight of greatest size among the graph's matrices."""
    import onnx
    from onnx import numpy_helper

    arrays = [numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(content).graph.initializer]
    flat = np.concatenate([array.ravel() for array in arrays if array.ndim == 2])
    return np.float32(flat[np.argmax(np.abs(flat))])


def sizes_run(config: ModelConfig, content: bytes, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batch sizes that a warm-up runs, of an engine with golden data of three rows at most."""
    engine = repository.open_engine(config, content)
    inputs = synthetic.inputs(engine, min(3, config.dynamic_batching.max_batch_size))
    golden = {f"in/{name}": array for name, array in inputs.items()}
    golden |= {f"out/{name}": array for name, array in engine.run(inputs).items()}
    golden["stay/values"] = np.zeros((9, 48, 2), np.float32)  # other data of the file are left alone
    ran: list[int] = []

    def run(self: Engine, given: Mapping[str, F32], real: Any = Engine.run) -> dict[str, F32]:
        ran.append(len(next(iter(given.values()))))
        return dict(real(self, given))

    monkeypatch.setattr(Engine, "run", run)
    repository.warm_up(engine, golden)
    engine.close()
    return ran


@pytest.mark.parametrize(
    ("kind", "most", "sizes"),
    [
        ("step", 64, [1, 8, 64]),
        ("features", 300, [1, 17, 300]),
        ("step", 2, [1, 2]),
        ("step", 1, [1]),
        ("image", 64, [1, 2]),  # one by one on ONNX Runtime: more of the same would warm nothing
        ("whole", 64, [1, 2]),
        ("image", 1, [1]),
    ],
)
def test_warm_up_runs_one_row_some_and_the_most(
    kind: str, most: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, content = model_of(kind)
    config = msgspec.structs.replace(config, dynamic_batching=Batching(max_batch_size=most))
    assert sizes_run(config, content, monkeypatch) == sizes


def test_every_error_has_its_own_reason() -> None:
    reasons = [error.reason for error in EngineError.__subclasses__()]
    assert len(set(reasons)) == len(reasons)
