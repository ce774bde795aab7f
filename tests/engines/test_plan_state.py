"""What `inspect` says of plans and what a load takes are one judgement; plans are TensorRT for RTX's own.

Nothing here runs a plan.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner, Result

from engines import plans, repository
from engines.plan_inspect import inspect_file
from engines.plans import Key
from engines.tensorrt_build import Profile
from tests.engines.conftest import graph
from worker.cli import app

rtx = pytest.importorskip("tensorrt_rtx", reason="building needs the extra `tensorrt-rtx`")

pytestmark = pytest.mark.tensorrt

RTX = "tensorrt-rtx"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["model", *arguments])


def inspected(models: Path) -> dict[str, str]:
    """States by file name, as `model inspect NAME` tells them."""
    result = run("inspect", "tiny", "--repository", str(models), "--json")
    assert result.exit_code == 0, result.output
    return {Path(each["plan"]).name: each["state"] for each in json.loads(result.stdout)}


def taken(models: Path) -> str | None:
    """Name of the plan that a load would take, on whatever GPU."""
    config = repository.read_config(models, "tiny")
    found = plans.last_built(models, config, RTX, "fp32", lambda _: True)
    return None if found is None else found.path.name


def tell(path: Path, **changes: Any) -> None:
    """Change a plan's provenance."""
    made = plans.read_provenance(path)
    beside = path.with_suffix(".json")
    beside.write_bytes(msgspec.json.encode(msgspec.structs.replace(made, **changes)))


def tell_key(path: Path, **changes: Any) -> None:
    tell(path, key=msgspec.structs.replace(plans.read_provenance(path).key, **changes))


def lower_the_batches(models: Path) -> None:
    file = models / "tiny" / repository.CONFIG
    content = json.loads(file.read_bytes())
    content["dynamic_batching"]["max_batch_size"] = 8
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("spoil", "state"),
    [
        (
            lambda _, path: tell_key(path, module_version="0.1"),
            "stale: it was built by tensorrt-rtx 0.1, here is",
        ),
        (lambda _, path: tell_key(path, graph_digest="0" * 64), "stale: the graph to parse has changed"),
        (lambda _, path: tell_key(path, model="other"), "stale: it is of other 3"),
        (
            lambda models, _: lower_the_batches(models),
            "stale: it takes batches of 32 rows, the model 8 at most",
        ),
        (
            lambda models, _: (models / "tiny/3/model.onnx").write_bytes(graph(bias=1.0)),
            "refused: ",
        ),
    ],
)
def test_what_inspect_says_is_what_a_load_does(
    repository_path: Path, spoil: Callable[[Path, Path], object], state: str
) -> None:
    path = plans.obtain(repository_path, "tiny", RTX).path
    assert (inspected(repository_path), taken(repository_path)) == ({path.name: "current"}, path.name)
    spoil(repository_path, path)
    assert inspected(repository_path)[path.name].startswith(state)
    assert taken(repository_path) is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"module_version": "0.1"}, f"it was built by {RTX} 0.1, here is {rtx.__version__}"),
        ({"architecture": "sm86"}, "its provenance has the architecture sm86, its name ampere-plus"),
        ({"profile": (1, 2, 3)}, r"its provenance has the profile (1, 2, 3), its name (1, 32, 32)"),
        ({"precision": "fp16"}, "its provenance has the precision fp16, its name fp32"),
        ({"graph_digest": "0" * 64}, "the graph to parse has changed since it was built"),
    ],
)
def test_a_rebuild_says_what_differed(repository_path: Path, changes: dict[str, Any], why: str) -> None:
    path = plans.obtain(repository_path, "tiny", RTX).path
    tell_key(path, **changes)
    again = plans.obtain(repository_path, "tiny", RTX)
    assert (again.how, again.why) == ("rebuilt", why)


def be_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def lose_the_time_zone(path: Path) -> None:
    content = json.loads(path.with_suffix(".json").read_bytes())
    content["built"] = "2026-01-01T00:00:00"
    path.with_suffix(".json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "spoil",
    [
        be_a_folder,
        lose_the_time_zone,
        lambda path: path.with_suffix(".json").write_bytes(b"{}"),
        lambda path: path.with_suffix(".json").write_bytes(b'{"key":' + b"[" * 100_000),
        lambda path: path.with_suffix(".json").unlink(),
        lambda path: path.write_bytes(b""),
    ],
)
def test_a_bad_file_leaves_the_plan_beside_it_to_serve(
    repository_path: Path,
    spoil: Callable[[Path], object],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plans.log, "disabled", False)  # by a library that configured logging, tests ago
    good = plans.obtain(repository_path, "tiny", RTX).path
    bad = plans.obtain(repository_path, "tiny", RTX, profile=Profile(1, 2, 4)).path
    assert taken(repository_path) == bad.name
    spoil(bad)
    assert [taken(repository_path) for _ in range(3)] == [good.name] * 3
    [said] = [record.getMessage() for record in caplog.records if record.name == "riskstream.plans"]
    assert str(bad) in said
    assert "`riskstream model build` makes it anew, or remove its files" in said
    found = inspected(repository_path)
    assert found[good.name] == "current"
    assert found[bad.name].startswith("damaged: ")
    assert found[bad.name].endswith(plans.ANEW)
    shown = run("inspect", "tiny", "--repository", str(repository_path))
    assert f"{bad}: damaged" in shown.stdout
    if bad.is_file():
        assert plans.obtain(repository_path, "tiny", RTX, profile=Profile(1, 2, 4)).how == "rebuilt"


def test_a_timing_cache_that_cannot_be_read_only_costs_time(repository_path: Path) -> None:
    (repository_path / f"tiny/3/plans/{RTX}-{rtx.__version__}-ampere-plus.timings").mkdir(parents=True)
    assert plans.obtain(repository_path, "tiny", RTX).how == "built"


def test_a_file_is_held_against_the_model_that_it_names(repository_path: Path, tmp_path: Path) -> None:
    path = plans.obtain(repository_path, "tiny", RTX).path
    asked = ("inspect", str(path), "--json")
    [unknown] = json.loads(run(*asked).stdout)
    assert unknown["state"].startswith("unknown: no model 'tiny' in ")
    [current] = json.loads(run(*asked, "--repository", str(repository_path)).stdout)
    assert current["state"] == "current"
    tell_key(path, module_version="0.1")
    [stale] = json.loads(run(*asked, "--repository", str(repository_path)).stdout)
    assert stale["state"].startswith("stale: it was built by tensorrt-rtx 0.1")


@pytest.mark.parametrize("given", [("--plans", "elsewhere"), ("--version", "3")])
def test_options_that_do_not_apply_to_a_file_are_refused(
    repository_path: Path, given: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(plans.obtain(repository_path, "tiny", RTX).path)
    result = run("inspect", path, *given)
    assert result.exit_code == 1
    assert f"names its model and version itself: leave out {given[0]}" in result.stderr
    monkeypatch.setenv("RISKSTREAM_PLANS", "elsewhere")
    assert run("inspect", path, "--repository", str(repository_path)).exit_code == 0


def test_a_damaged_plan_is_not_handed_to_its_runtime(repository_path: Path) -> None:
    path = plans.obtain(repository_path, "tiny", RTX).path
    path.write_bytes(b"anything")
    assert inspect_file(path, repository_path)["engine"]["note"].startswith("not handed to its runtime")


def test_two_processes_of_one_number_do_not_write_one_file(
    repository_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another container's worker has the same number, and is in the middle of writing the same file."""
    monkeypatch.setattr("os.getpid", lambda: 1)
    file = repository_path / "x.plan"
    names: list[str] = []
    replace = Path.replace

    def slow(self: Path, target: Path) -> Path:
        names.append(self.name)
        if len(names) == 1:
            plans.write_whole(file, b"the other's")
            assert self.read_bytes() == b"ours"
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", slow)
    plans.write_whole(file, b"ours")
    assert file.read_bytes() == b"ours"
    assert len(set(names)) == 2


def test_a_write_that_fails_leaves_nothing(repository_path: Path) -> None:
    (repository_path / "x.plan").mkdir()
    before = sorted(repository_path.iterdir())
    with pytest.raises(IsADirectoryError):
        plans.write_whole(repository_path / "x.plan", b"content")
    assert sorted(repository_path.iterdir()) == before


def test_a_key_that_no_plan_can_have_is_no_provenance(repository_path: Path) -> None:
    path = plans.obtain(repository_path, "tiny", RTX).path
    content = json.loads(path.with_suffix(".json").read_bytes())
    content["key"]["precision"] = "int8"
    path.with_suffix(".json").write_text(json.dumps(content))
    assert inspected(repository_path)[path.name].startswith("damaged: its provenance")
    assert "precision" in Key.__struct_fields__
