"""Versions of a model side by side, and which of them is served."""

import fcntl
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import pytest

from engines import repository, shipping, versions
from engines.errors import DigestError, EngineError, GoldenError, GoldenFileError, KindError, RepositoryError
from schemas.model_config import ModelConfig
from tests.engines.conftest import config_of, golden_of, graph, tiny_inputs, tiny_outputs


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


COMPANIONS = {
    3: {"evaluation.json": b"{}", "reference.json": b"[3]", "MODEL_CARD.md": b"three"},
    4: {"MODEL_CARD.md": b"four", "backtest.json": b"[4]"},
}


@pytest.fixture(autouse=True)
def _no_power_to_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for a disk makes these tests slow and shows nothing: nobody pulls the plug here."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def two(repository_path: Path) -> Path:
    """A repository whose `tiny` serves version 3, with 4 beside it; each has companions of its own."""
    put_version(repository_path, 4, 0.5)
    for folder, number in ((repository_path / "tiny", 3), (repository_path / "tiny/4", 4)):
        for name, content in COMPANIONS[number].items():
            (folder / name).write_bytes(content)
    return repository_path


def served_whole(models: Path) -> int:
    """The served version, after looking whether all of it is there and nothing of another."""
    engine = repository.load(models, "tiny")
    engine.close()
    for version in repository.versions(models, "tiny"):
        config = repository.read_config(models, "tiny", version)
        folder = repository.companions(models, config)
        found = {
            name: (folder / name).read_bytes() for name in repository.COMPANIONS if (folder / name).exists()
        }
        assert found == COMPANIONS[version], (version, folder)
    return engine.config.version


def contents(models: Path) -> dict[Path, bytes]:
    """Every file but the lock."""
    return {file: file.read_bytes() for file in models.rglob("*") if file.is_file() and file.name != ".lock"}


def changed_policy(models: Path) -> ModelConfig:
    """The served config with another policy, as `backtest --ship` writes it at the top."""
    served = repository.read_config(models, "tiny")
    shipped = msgspec.structs.replace(served, policy=msgspec.structs.replace(served.policy, version="9"))
    (models / "tiny/config.json").write_bytes(msgspec.json.encode(shipped))
    return shipped


def test_serves_another_version_and_keeps_what_was_served(two: Path) -> None:
    shipped = changed_policy(two)
    began = datetime.now(UTC)
    now = versions.serve(two, "tiny", 4)
    assert (now.version, served_whole(two)) == (4, 4)
    assert repository.read_config(two, "tiny", 3) == shipped
    first, second = versions.history(two, "tiny")
    assert first == versions.Served(3, shipped.digest)
    assert (second.version, second.digest, second.rolled_back) == (4, now.digest, False)
    assert second.when is not None
    assert began <= second.when <= datetime.now(UTC)
    assert not (two / "tiny" / repository.SWITCHING).exists()


def test_serving_what_is_served_changes_nothing(two: Path) -> None:
    before = contents(two)
    assert versions.serve(two, "tiny", 3).version == 3
    assert contents(two) == before


def test_rolling_back_returns_to_what_was_served_with_its_policy(two: Path) -> None:
    shipped = changed_policy(two)
    versions.serve(two, "tiny", 4)
    assert versions.rollback(two, "tiny") == shipped
    assert served_whole(two) == 3
    assert [(entry.version, entry.rolled_back) for entry in versions.history(two, "tiny")] == [
        (3, False),
        (4, False),
        (3, True),
    ]


def test_rolling_back_again_goes_back_further_and_not_forth(two: Path) -> None:
    put_version(two, 5, 0.7)
    for version in (4, 5):
        versions.serve(two, "tiny", version)
    assert [versions.rollback(two, "tiny").version for _ in range(2)] == [4, 3]
    with pytest.raises(RepositoryError, match=re.escape("it has the versions [3, 4, 5]")):
        versions.rollback(two, "tiny")
    versions.serve(two, "tiny", 5)
    assert versions.rollback(two, "tiny").version == 3


def test_there_is_nothing_to_roll_back_to(two: Path) -> None:
    with pytest.raises(RepositoryError, match="nothing was served before what tiny serves now"):
        versions.rollback(two, "tiny")


def test_a_version_that_was_put_there_by_hand_is_noted(two: Path) -> None:
    (two / "tiny/config.json").write_bytes((two / "tiny/4/config.json").read_bytes())
    (two / "tiny/3/config.json").write_bytes(msgspec.json.encode(config_of(graph())))
    versions.serve(two, "tiny", 3)
    assert [(entry.version, entry.when is None) for entry in versions.history(two, "tiny")] == [
        (4, True),
        (3, False),
    ]


def test_a_version_that_is_another_graph_now_is_not_rolled_back_to(two: Path) -> None:
    versions.serve(two, "tiny", 4)
    shutil.rmtree(two / "tiny/3")
    put_version(two, 3, 0.9)
    with pytest.raises(DigestError, match=r"version 3 of tiny had digest .* when it was served"):
        versions.rollback(two, "tiny")
    assert repository.read_config(two, "tiny").version == 4


@pytest.mark.parametrize(
    ("file", "content", "error"),
    [
        ("model.onnx", b"other", DigestError),
        ("model.onnx", None, RepositoryError),
        ("golden.npz", b"PK", GoldenFileError),
        ("golden.npz", None, GoldenFileError),
        ("golden.npz", golden_of(tiny_inputs(5), tiny_outputs(tiny_inputs(5))), GoldenError),
        ("config.json", b"{", RepositoryError),
    ],
)
def test_a_version_that_does_not_prove_is_not_served(
    two: Path, file: str, content: bytes | None, error: type[EngineError]
) -> None:
    path = two / "tiny/4" / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    before = contents(two)
    with pytest.raises(error):
        versions.serve(two, "tiny", 4)
    assert contents(two) == before


def test_a_version_of_another_kind_is_not_served(two: Path) -> None:
    config = repository.read_config(two, "tiny", 4)
    row = msgspec.structs.replace(
        config, kind="features", state=(), input=config.input[:3], output=config.output[:1]
    )
    (two / "tiny/4/config.json").write_bytes(msgspec.json.encode(row))
    with pytest.raises(
        KindError, match="version 4 of tiny is of kind features, the served one of windowed-series"
    ):
        versions.serve(two, "tiny", 4)


class Stopped(BaseException):
    """The process ends here."""


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """End at the step-th change of the file system; gives the names of those that were let through."""
    done: list[str] = []

    def counted(name: str, real: Callable[..., object], named: int) -> Callable[..., object]:
        def change(*args: object, **kwargs: object) -> object:
            if len(done) == step:
                raise Stopped
            done.append(f"{name} {Path(str(args[named])).name}")
            return real(*args, **kwargs)

        return change

    monkeypatch.setattr(os, "replace", counted("replace", os.replace, 1))
    monkeypatch.setattr(Path, "unlink", counted("unlink", Path.unlink, 0))
    return done


@pytest.mark.parametrize("step", range(16))
@pytest.mark.parametrize("then", [3, 4])
def test_stopped_anywhere_a_whole_version_is_served_and_the_next_change_works(
    two: Path, step: int, then: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = changed_policy(two)
    with monkeypatch.context() as patch:
        done = stop_at(step, patch)
        with pytest.raises(Stopped):
            versions.serve(two, "tiny", 4)
    assert served_whole(two) == (4 if "replace config.json" in done[4:] else 3), done
    versions.serve(two, "tiny", then)
    assert served_whole(two) == then
    versions.serve(two, "tiny", 7 - then)
    assert served_whole(two) == 7 - then
    assert repository.read_config(two, "tiny", 3).policy == shipped.policy
    assert not (two / "tiny" / repository.SWITCHING).exists()
    assert versions.history(two, "tiny")[-1].version == 7 - then
    assert versions.rollback(two, "tiny").version == then


def test_those_are_all_the_steps(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = stop_at(-1, monkeypatch)
    versions.serve(two, "tiny", 4)
    placed = {f"{'replace' if name in COMPANIONS[4] else 'unlink'} {name}" for name in repository.COMPANIONS}
    assert done[:3] == [f"replace {name}" for name in repository.COMPANIONS if name in COMPANIONS[3]]
    assert done[3:6] == ["replace config.json", "replace served.json", "replace .switching"]
    assert set(done[6:13]) == placed
    assert done[13:] == ["replace config.json", "replace served.json", "unlink .switching"]


def test_a_change_that_was_stopped_is_settled_before_a_policy_is_shipped(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at(9, patch)
        with pytest.raises(Stopped):
            versions.serve(two, "tiny", 4)
    assert (two / "tiny" / repository.SWITCHING).exists()
    shipping.check(two / "tiny", repository.read_config(two, "tiny"))
    assert {name: (two / "tiny" / name).read_bytes() for name in COMPANIONS[3]} == COMPANIONS[3]
    assert not (two / "tiny" / repository.SWITCHING).exists()
    assert [entry.version for entry in versions.history(two, "tiny")] == [3]


def test_two_changes_at_once_are_held_apart(two: Path) -> None:
    with (two / "tiny/.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RepositoryError, match="another command is changing"):
            versions.serve(two, "tiny", 4)
    assert versions.serve(two, "tiny", 4).version == 4


def test_a_file_is_on_disk_before_it_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def fsync(handle: int) -> None:
        done.append(f"sync {Path(os.readlink(f'/proc/self/fd/{handle}')).name}")

    def replace(source: Path, target: Path, real: Callable[..., None] = os.replace) -> None:
        done.append("replace")
        real(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    versions.write_whole(tmp_path / "config.json", b"{}")
    assert done == [f"sync .config.json.{os.getpid()}", "replace", f"sync {tmp_path.name}"]
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


def test_a_file_that_cannot_take_its_place_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(IsADirectoryError):
        versions.write_whole(tmp_path / "config.json", b"{}")
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


def test_a_history_that_cannot_be_read(two: Path) -> None:
    (two / "tiny/served.json").write_text("{")
    with pytest.raises(RepositoryError, match=r"served\.json: .*; move it away to begin another"):
        versions.serve(two, "tiny", 4)
    assert served_whole(two) == 3


def test_a_reader_never_finds_a_part_of_a_config(two: Path) -> None:
    """Readers that look all the time while versions change find one of the two, each with its own policy."""
    shipped = changed_policy(two)
    stop, found, faults = threading.Event(), set(), []

    def read() -> None:
        while not stop.is_set():
            try:
                found.add(repository.read_config(two, "tiny"))
            except RepositoryError as error:
                faults.append(str(error))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for version in (4, 3) * 5:
            versions.serve(two, "tiny", version)
    finally:
        stop.set()
        reader.join()
    assert not faults
    assert found <= {shipped, repository.read_config(two, "tiny", 4)}
