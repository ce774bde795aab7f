"""`riskstream model add`, `versions`, `serve`, `rollback`: a second version, served, and taken back."""

import asyncio
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from engines import repository
from tests.kinds import model_of
from worker import cli_told, config
from worker.cli import app
from worker.serving import Ladder


def riskstream(command: str, models: Path, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["model", command, *arguments, "--repository", str(models)])
    return result.exit_code, " ".join(result.output.split())


def add(models: Path, version: int, kind: str = "features") -> tuple[int, str]:
    """`riskstream model add` of a version of the model `small`."""
    made, graph = model_of(kind)
    policy = msgspec.structs.replace(made.policy, version=f"p{version}")
    (models / "graph.onnx").write_bytes(graph)
    (models / "new.json").write_bytes(
        msgspec.json.encode(msgspec.structs.replace(made, version=version, policy=policy))
    )
    return riskstream("add", models, str(models / "graph.onnx"), "--config", str(models / "new.json"))


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository whose `small` serves version 1, with version 2 beside it."""
    assert add(tmp_path, 1)[0] == 0
    assert add(tmp_path, 2)[0] == 0
    return tmp_path


def listed(models: Path) -> list[tuple[int, bool, bool, str]]:
    code, output = riskstream("versions", models, "small", "--json")
    assert code == 0, output
    digest = model_of("features")[0].digest
    rows = json.loads(output)
    assert {row["digest"] for row in rows} == {digest}
    return [(row["version"], row["served"], row["since"] is not None, row["policy"]) for row in rows]


def test_a_second_version_is_added_beside_and_says_how_it_is_served(tmp_path: Path) -> None:
    _, first = add(tmp_path, 1)
    assert (
        first == f"added small version 1 to {tmp_path}; riskstream model check small --repository {tmp_path}"
    )
    served = (tmp_path / "small/config.json").read_bytes()
    code, second = add(tmp_path, 2)
    which = f"small --repository {tmp_path} --version 2"
    assert code == 0
    assert second == (
        f"added small version 2 to {tmp_path}; riskstream model check {which}; version 1 is served until "
        f"riskstream model serve {which}"
    )
    assert (tmp_path / "small/config.json").read_bytes() == served
    for version in (1, 2):
        assert repository.read_config(tmp_path, "small", version).version == version
        assert (tmp_path / f"small/{version}/config.json").exists()
    assert riskstream("check", tmp_path, "small", "--version", "2")[0] == 0


def test_from_served_to_served_and_back(models: Path) -> None:
    assert listed(models) == [(1, True, False, "p1"), (2, False, False, "p2")]
    code, output = riskstream("serve", models, "small", "--version", "2")
    assert code == 0
    assert "small serves version 2 (digest " in output
    assert (
        f"no longer version 1; riskstream model rollback small --repository {models} takes it back" in output
    )
    assert listed(models) == [(1, False, False, "p1"), (2, True, True, "p2")]
    code, output = riskstream("serve", models, "small", "--version", "2")
    assert code == 0
    assert "serves version 2" in output
    assert output.endswith("already; it loads and computes its golden data here")
    code, output = riskstream("rollback", models, "small")
    assert code == 0
    assert "small serves version 1" in output
    assert listed(models) == [(1, True, True, "p1"), (2, False, False, "p2")]
    code, output = riskstream("rollback", models, "small")
    assert code == 1
    assert "nothing was served before what small serves now; it has the versions [1, 2]" in output


def test_versions_as_a_table(models: Path) -> None:
    assert riskstream("serve", models, "small", "--version", "2")[0] == 0
    code, output = riskstream("versions", models, "small")
    assert code == 0
    assert model_of("features")[0].digest[:12] in output
    assert "since 2" in output
    assert output.count("UTC") == 1


async def test_a_running_worker_takes_what_is_served_and_what_is_rolled_back_to(models: Path) -> None:
    ladder = Ladder(config.load(model="small", model_repository=models))
    await ladder.start()
    seen = [ladder.current.config.policy.version]
    for command in (["serve", "small", "--version", "2"], ["rollback", "small"]):
        assert (await asyncio.to_thread(riskstream, command[0], models, *command[1:]))[0] == 0
        assert await ladder.look()
        seen.append(ladder.current.config.policy.version)
    assert not await ladder.look()
    await ladder.close()
    assert seen == ["p1", "p2", "p1"]


@pytest.mark.parametrize("command", ["serve", "check", "evaluate", "reference", "build", "inspect"])
def test_a_version_that_is_not_there(models: Path, command: str) -> None:
    more = {
        "evaluate": ["--data", "physionet2012:nowhere"],
        "reference": ["--data", f"physionet2012:{models}"],
        "build": ["--backend", "tensorrt-rtx"],
    }
    code, output = riskstream(command, models, "small", "--version", "7", *more.get(command, []))
    assert code == 1
    assert "no version 7 of small in" in output
    assert "it has [1, 2]" in output.replace("│", "").replace("  ", " ")


def test_a_version_that_computes_something_else_is_not_served(models: Path) -> None:
    golden = (models / "small/2/golden.npz").read_bytes()
    (models / "small/2/golden.npz").write_bytes(golden[:-40])
    code, output = riskstream("serve", models, "small", "--version", "2")
    assert code == 1
    assert "golden.npz is not a readable .npz" in output
    assert listed(models)[0] == (1, True, False, "p1")


def test_the_version_that_is_served_is_proved_too(models: Path) -> None:
    (models / "small/1/golden.npz").write_bytes(b"PK")
    before = {file: file.read_bytes() for file in models.rglob("*") if file.is_file()}
    code, output = riskstream("serve", models, "small", "--version", "1")
    assert code == 1
    assert "golden.npz is not a readable .npz" in output
    assert "already" not in output
    left = {file: file.read_bytes() for file in models.rglob("*") if file.is_file() and file.name != ".lock"}
    assert left == {file: content for file, content in before.items() if file.name != ".lock"}


@pytest.mark.parametrize(
    "command",
    [
        ["versions"],
        ["serve", "--version", "2"],
        ["rollback"],
        ["check", "--json"],
        ["evaluate", "--data", "physionet2012:."],
        ["report", "--html", "page.html"],
        ["reference", "--data", "physionet2012:."],
        ["build", "--backend", "tensorrt-rtx"],
        ["inspect"],
        ["compare"],
        ["bench"],
    ],
    ids=lambda command: command[0],
)
def test_the_repository_is_the_workers_unless_another_is_given(
    models: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models)
    monkeypatch.setenv("RISKSTREAM_MODEL_REPOSITORY", str(models))
    name, *more = command
    result = CliRunner().invoke(app, ["model", name, "nobody", *more])
    assert result.exit_code == 1
    assert f"no model 'nobody' in {models}" in result.output
    other = CliRunner().invoke(app, ["model", name, "nobody", *more, "--repository", "/nowhere"])
    assert "/nowhere" in other.output
    assert str(models) not in other.output


def test_models_are_added_served_and_listed_where_the_worker_looks(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RISKSTREAM_MODEL_REPOSITORY", str(models / "own"))
    for _ in range(2):
        asked = ["add", str(models / "graph.onnx"), "--config", str(models / "new.json")]
        result = CliRunner().invoke(app, ["model", *asked])
    assert "has version 2 already" in result.output
    assert (models / "own/small/2/golden.npz").exists()
    result = CliRunner().invoke(app, ["model", "serve", "small", "--version", "2"])
    assert result.exit_code == 0
    (row,) = json.loads(CliRunner().invoke(app, ["model", "list", "--json"]).stdout)
    assert (row["name"], row["version"]) == ("small", 2)


def test_plans_are_looked_for_where_the_worker_does(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RISKSTREAM_PLANS", str(models / "kept"))
    code, output = riskstream("inspect", models, "small")
    assert code == 1
    assert f"small has no plans in {models}/kept/small/1;" in output


def test_what_the_commands_read_of_the_environment_are_settings_and_help_names_them() -> None:
    for variable, command in ((cli_told.MODELS, "serve"), (cli_told.PLANS, "build")):
        assert variable.removeprefix("RISKSTREAM_").lower() in config.Settings.model_fields
        shown = CliRunner().invoke(app, ["model", command, "--help"], env={"COLUMNS": "160"})
        assert f"[env var: {variable}]" in shown.output


def test_without_a_repository_nothing_is_changed_and_the_setting_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RISKSTREAM_MODEL_REPOSITORY", raising=False)
    result = CliRunner().invoke(app, ["model", "serve", "vitals", "--version", "1"], env={"COLUMNS": "160"})
    assert result.exit_code == 2
    assert "Missing option '--repository' (env var: 'RISKSTREAM_MODEL_REPOSITORY')" in result.output


@contextmanager
def without_rights() -> Iterator[None]:
    """As a user who may write nothing here; the superuser may write everywhere."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_a_repository_that_cannot_be_written() -> None:
    with tempfile.TemporaryDirectory() as made:
        models = Path(made)
        assert add(models, 1)[0] == add(models, 2)[0] == 0
        for folder in (models, *models.rglob("*")):
            folder.chmod(0o555 if folder.is_dir() else 0o444)
        with without_rights():
            told = [
                riskstream("serve", models, "small", "--version", "2"),
                riskstream("rollback", models, "small"),
            ]
            assert listed(models)[0] == (1, True, False, "p1")
        for folder in (models, *models.rglob("*")):
            folder.chmod(0o755)
    for code, output in told:
        assert code == 1
        assert "cannot change what" in output
        assert "Permission denied" in output
        assert "run this where the repository can be written" in output
