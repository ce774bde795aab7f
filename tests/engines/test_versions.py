"""Versions of a model side by side, and which of them is served."""

import hashlib
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest

from engines import repository
from engines.errors import RepositoryError
from schemas.model_config import ModelConfig
from tests.engines.conftest import config_of, golden_of, graph, tiny_inputs


def put_version(models: Path, version: int, bias: float) -> ModelConfig:
    """A version of `tiny` beside the served one, whole in its own folder."""
    content, inputs = graph(bias=bias), tiny_inputs(5)
    mean = np.concatenate([inputs[name] for name in ("values", "elapsed", "counts")], axis=1).mean(axis=1)
    outputs = {"risk": 1 / (1 + np.exp(-mean - np.float32(bias))), "state_out": inputs["state"] + 1}
    config = msgspec.structs.replace(config_of(content), version=version)
    folder = models / "tiny" / str(version)
    folder.mkdir()
    (folder / "config.json").write_bytes(msgspec.json.encode(config))
    (folder / "model.onnx").write_bytes(content)
    (folder / "golden.npz").write_bytes(golden_of(inputs, outputs))
    return config


def test_the_top_config_stands_for_its_own_version(repository_path: Path) -> None:
    served = repository.read_config(repository_path, "tiny")
    assert repository.read_config(repository_path, "tiny", 3) == served
    assert repository.versions(repository_path, "tiny") == [3]
    assert repository.companions(repository_path, served) == repository_path / "tiny"


def test_a_version_beside_the_served_one(repository_path: Path) -> None:
    beside = put_version(repository_path, 10, 0.5)
    assert repository.versions(repository_path, "tiny") == [3, 10]
    assert repository.read_config(repository_path, "tiny").version == 3
    assert repository.read_config(repository_path, "tiny", 10) == beside
    assert repository.companions(repository_path, beside) == repository_path / "tiny" / "10"
    engine = repository.load(repository_path, "tiny", version=10)
    assert engine.config == beside
    engine.close()
    assert hashlib.sha256(repository.read_graph(repository_path, beside)).hexdigest() == beside.digest


def test_of_the_served_version_the_config_at_the_top_counts(repository_path: Path) -> None:
    own = repository_path / "tiny/3/config.json"
    served = repository.read_config(repository_path, "tiny")
    own.write_bytes(msgspec.json.encode(msgspec.structs.replace(served, outcome="what it was")))
    assert repository.read_config(repository_path, "tiny", 3) == served
    assert repository.companions(repository_path, served) == repository_path / "tiny"


def test_while_an_exchange_is_open_companions_are_read_beside_the_version(repository_path: Path) -> None:
    served = repository.read_config(repository_path, "tiny")
    (repository_path / "tiny/3/config.json").write_bytes(msgspec.json.encode(served))
    (repository_path / "tiny" / repository.SWITCHING).write_bytes(b"")
    assert repository.companions(repository_path, served) == repository_path / "tiny/3"


def test_a_version_that_is_not_there(repository_path: Path) -> None:
    put_version(repository_path, 4, 0.5)
    with pytest.raises(RepositoryError, match=re.escape("no version 7 of tiny in ") + r".*it has \[3, 4\]"):
        repository.load(repository_path, "tiny", version=7)


def test_a_version_in_the_wrong_folder(repository_path: Path) -> None:
    put_version(repository_path, 4, 0.5)
    (repository_path / "tiny/4").rename(repository_path / "tiny/5")
    with pytest.raises(RepositoryError, match="version is 4, the folder is 5: make them one"):
        repository.read_config(repository_path, "tiny", 5)


@pytest.mark.parametrize("folder", ["1.5", "1x", "plans", "²"])
def test_other_folders_are_no_versions(repository_path: Path, folder: str) -> None:
    put_version(repository_path, 4, 0.5)
    (repository_path / "tiny/4").rename(repository_path / "tiny" / folder)
    assert repository.versions(repository_path, "tiny") == [3]
