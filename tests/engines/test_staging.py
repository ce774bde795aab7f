"""A trained model comes into its repository whole, and nothing that is served there changes by it."""

import shutil
from pathlib import Path

import msgspec
import pytest

from engines import repository, staging, versions
from engines.errors import EngineError, KindError, RepositoryError
from tests.engines.conftest import config_of, golden_of, graph, tiny_inputs, tiny_outputs

SERIES = "windowed-series"


def write(into: staging.Staged) -> None:
    """A model folder as training writes it, of another graph than the one that is there."""
    content = graph(bias=1e-6)
    config = msgspec.structs.replace(config_of(content), version=into.version)
    own = into.folder / str(into.version)
    own.mkdir()
    (own / repository.GRAPH).write_bytes(content)
    (own / repository.GOLDEN).write_bytes(golden_of(tiny_inputs(5), tiny_outputs(tiny_inputs(5))))
    (into.folder / repository.CONFIG).write_bytes(msgspec.json.encode(config))
    (into.folder / repository.CARD).write_text("the card of what was trained")


def everything(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its path in it."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_first_of_a_name_comes_whole_and_is_served(tmp_path: Path) -> None:
    models = tmp_path / "new" / "models"
    with staging.staged(models, "tiny", SERIES, replace=False) as into:
        write(into)
        assert repository.list_models(models) == []
        assert not (models / "tiny").exists()
    assert repository.load(models, "tiny").config.version == 1
    assert [each.name for each in models.iterdir()] == ["tiny"]


def test_a_model_that_is_there_gets_a_version_that_is_not_served(repository_path: Path) -> None:
    (repository_path / "tiny" / repository.CARD).write_text("the card of what is served")
    before = everything(repository_path)
    served = repository.read_config(repository_path, "tiny")
    with staging.staged(repository_path, "tiny", SERIES, replace=False) as into:
        write(into)
        assert everything(repository_path / "tiny") == {
            name.removeprefix("tiny/"): content for name, content in before.items()
        }
    after = everything(repository_path)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {
        f"tiny/4/{name}" for name in (repository.GRAPH, repository.GOLDEN, repository.CONFIG, repository.CARD)
    }
    assert repository.read_config(repository_path, "tiny") == served
    assert repository.versions(repository_path, "tiny") == [3, 4]

    assert versions.serve(repository_path, "tiny", 4).digest != served.digest
    assert (repository_path / "tiny" / repository.CARD).read_text() == "the card of what was trained"
    assert versions.rollback(repository_path, "tiny") == served
    assert (repository_path / "tiny" / repository.CARD).read_text() == "the card of what is served"


def test_a_training_that_fails_leaves_nothing(repository_path: Path) -> None:
    before = everything(repository_path)

    def fail() -> None:
        with staging.staged(repository_path, "tiny", SERIES, replace=True) as into:
            write(into)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert everything(repository_path) == before
    assert [each.name for each in repository_path.iterdir()] == ["tiny"]


def test_replacing_takes_the_place_of_the_whole_folder(repository_path: Path) -> None:
    (repository_path / "tiny" / repository.BACKTEST).write_text("of another policy")
    with staging.staged(repository_path, "tiny", SERIES, replace=True) as into:
        write(into)
    assert set(everything(repository_path)) == {
        "tiny/config.json", "tiny/MODEL_CARD.md", "tiny/1/model.onnx", "tiny/1/golden.npz",
    }  # fmt: skip
    assert repository.load(repository_path, "tiny").config.version == 1
    assert [each.name for each in repository_path.iterdir()] == ["tiny"]


def test_what_was_there_comes_back_where_nothing_can_replace_it(repository_path: Path) -> None:
    before = everything(repository_path / "tiny")

    def lose() -> None:
        with staging.staged(repository_path, "tiny", SERIES, replace=True) as into:
            shutil.rmtree(into.folder)

    with pytest.raises(RepositoryError, match="cannot put it into"):
        lose()
    assert everything(repository_path / "tiny") == before


@pytest.mark.parametrize("there", [True, False])
def test_what_came_to_be_there_meanwhile_stays_and_so_does_what_was_trained(
    there: bool, repository_path: Path
) -> None:
    name = "tiny" if there else "other"
    meanwhile = repository_path / ("tiny/4/model.onnx" if there else "other/config.json")

    def collide() -> None:
        with staging.staged(repository_path, name, SERIES, replace=False) as into:
            write(into)
            meanwhile.parent.mkdir()
            meanwhile.write_text("of somebody else")

    with pytest.raises(RepositoryError, match=r"is kept in .*/\.training-.*`riskstream model add` takes"):
        collide()
    assert meanwhile.read_text() == "of somebody else"
    [kept] = repository_path.glob(f".training-*/{name}")
    assert {Path(file).name for file in everything(kept)} >= {repository.GRAPH, repository.CONFIG}


def no_config(models: Path) -> None:
    (models / "tiny/config.json").unlink()


def another_version(models: Path) -> None:
    (models / "tiny/4").mkdir()


def no_folder(models: Path) -> None:
    shutil.rmtree(models)
    models.write_text("a file")


def nothing(models: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("before", "kind", "replace", "error", "message"),
    [
        (nothing, "image", False, KindError, "of kind windowed-series, .* another --out, or --replace"),
        (no_config, SERIES, False, RepositoryError, "holds no config.json: name another --out, or --replace"),
        (another_version, SERIES, True, RepositoryError, r"holds the versions \[3, 4\], .*another --out"),
        (no_folder, SERIES, False, RepositoryError, "cannot write to .*; name another --out"),
    ],
)
def test_what_is_refused_is_refused_before_the_work(
    before: object, kind: str, replace: bool, error: type[EngineError], message: str, repository_path: Path
) -> None:
    assert callable(before)
    before(repository_path)
    begun = []
    with (
        pytest.raises(error, match=message),
        staging.staged(repository_path, "tiny", kind, replace=replace) as into,
    ):
        begun.append(into)
    assert not begun
    assert not list(repository_path.parent.rglob(".training-*"))
