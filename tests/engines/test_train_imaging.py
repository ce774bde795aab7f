"""Training image models: honest parts, a graph that equals the network, and whole folders on small sets."""

# ruff: noqa: E402
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra `train`")

from typer.testing import CliRunner, Result

from engines import evaluate_images, repository, versions
from engines.errors import DatasetError
from engines.labelled import LabelledImages
from engines.train import image_export, image_fit, image_parts, imaging
from engines.train.image_fit import Recipe
from engines.train.image_members import Pictures, Task, train_members
from engines.train.image_network import Ensemble, Member
from schemas.model_config import ImageInput
from tests.engines.pictures import folder, medmnist_file, tensors
from worker import cli_train
from worker.cli import app

QUICK = imaging.Plan(Recipe(epochs=1), members=2, processes=1)


def member(dims: tuple[int, int, int], classes: int, seed: int = 0) -> Member:
    """A network with random weights and uneven normalisation layers."""
    torch.manual_seed(seed)
    norm = (torch.full((dims[0],), 0.4), torch.full((dims[0],), 0.2))
    made = Member(*dims, classes, norm)
    for layer in made.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(layer.weight, 1, 0.1)
    made.eval()
    return made


@pytest.fixture(scope="module")
def ensemble() -> Ensemble:
    return Ensemble([member((1, 28, 28), 2, seed) for seed in (0, 1)], 1.3)


@pytest.fixture(scope="module")
def exported(ensemble: Ensemble) -> bytes:
    return image_export.to_onnx(ensemble, (1, 28, 28))


SUBJECT = imaging.Subject("x", ImageInput(height=28, width=28), ("normal", "ill"), ("ill",))


def test_export_equals_the_training_network(ensemble: Ensemble, exported: bytes, tmp_path: Path) -> None:
    config = imaging.config_of(SUBJECT, "0" * 64, ensemble.map_dims((1, 28, 28)))
    engine = repository.open_engine(config, exported)
    images, _ = tensors(40, 28)
    found = evaluate_images.run_images(engine, images)
    with torch.no_grad():
        batch = torch.from_numpy(images)
        apart = sum(member((1, 28, 28), 2, seed)(batch) for seed in (0, 1)) / 2 * 1.3
    np.testing.assert_allclose(found["probability"], torch.softmax(apart, 1).numpy(), atol=1e-5, rtol=0)
    np.testing.assert_allclose(found["activation"].mean(axis=(2, 3)), apart.numpy(), atol=1e-5, rtol=0)
    (tmp_path / "golden.npz").write_bytes(
        image_export.golden(ensemble, image_export.synthetic_images((1, 28, 28)))
    )
    repository.verify(engine, repository.read_golden(tmp_path / "golden.npz"))


def test_the_graph_is_plain_and_depends_on_weights_alone(ensemble: Ensemble, exported: bytes) -> None:
    operators = {node.op_type for node in onnx.load_from_string(exported).graph.node}
    assert operators <= {"Add", "Conv", "Div", "Mul", "ReduceMean", "Relu", "Softmax", "Sub"}
    assert b".py" not in exported
    assert image_export.to_onnx(ensemble, (1, 28, 28)) == exported


@pytest.mark.parametrize(
    ("dims", "map_dims"),
    [
        ((1, 8, 8), (8, 8)),
        ((1, 28, 28), (7, 7)),
        ((3, 64, 48), (16, 12)),
        ((1, 128, 128), (8, 8)),
        ((3, 224, 224), (7, 7)),
        ((1, 512, 512), (8, 8)),
    ],
)
def test_networks_grow_with_the_pictures(dims: tuple[int, int, int], map_dims: tuple[int, int]) -> None:
    made = Ensemble([member(dims, 3)], 1.0)
    assert made.map_dims(dims) == map_dims
    assert sum(weights.numel() for weights in made.parameters()) < 900_000


def test_parts_keep_groups_whole_and_classes_even() -> None:
    labels = np.array([0] * 30 + [1] * 90)
    groups = [f"patient {number // 3}" for number in range(120)]
    parts = image_parts.divided(labels, groups, 5, seed=1)
    assert np.bincount(parts).tolist() == [24] * 5
    assert [int(labels[parts == part].sum()) for part in range(5)] == [18] * 5
    assert all(len(set(parts[start : start + 3])) == 1 for start in range(0, 120, 3))
    assert parts.tolist() == image_parts.divided(labels, groups, 5, seed=1).tolist()


def test_pictures_that_stand_in_validation_are_not_learnt_from(tmp_path: Path) -> None:
    path = medmnist_file(tmp_path / "x.npz", {"train": 12, "val": 4, "test": 4})
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["train_images"][3] = arrays["val_images"][1]
    arrays["train_images"][7] = arrays["train_images"][6]
    np.savez(path, **arrays)
    images = evaluate_images.open_source(f"medmnist:{path}").named(("a", "b"))
    found = image_parts.material(images, ImageInput(height=28, width=28), lambda *_: None)
    assert (found.dropped, len(found.images), len(found.tensors), len(found.held_out)) == (1, 11, 11, 4)
    assert found.images.names == ("0", "1", "2", *map(str, range(4, 12)))
    assert found.groups[5] == found.groups[6]
    assert len(set(found.groups)) == 10


def test_the_test_split_stays_closed(tmp_path: Path) -> None:
    path = folder(tmp_path, {"a": 0, "b": 1}, 6, 16, split=["train"] * 8 + ["test"] * 4)
    for number in range(8, 12):
        for file in path.glob(f"{number}.*"):
            file.write_bytes(b"unreadable")
    images = evaluate_images.open_source(f"images:{path}")
    found = image_parts.material(images, ImageInput(height=16, width=16), lambda *_: None)
    assert (len(found.tensors), len(found.held_out)) == (8, 0)


def test_a_member_depends_on_its_task_alone() -> None:
    images, labels = tensors(24, 16)
    pictures = Pictures(images, labels, 2)
    tasks = [Task(Recipe(epochs=1), np.arange(20), 3), Task(Recipe(epochs=1), np.arange(4, 24), 4)]
    epochs: list[int] = []
    both = train_members(pictures, tasks, 1, lambda: epochs.append(1))
    alone = train_members(pictures, tasks[1:], 1, lambda: None)
    assert len(epochs) == 2
    for one, other in zip(both[1].state_dict().values(), alone[0].state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_augmentation_moves_but_keeps_the_picture() -> None:
    torch.manual_seed(0)
    batch = torch.from_numpy(tensors(8, 28)[0])
    none = Recipe(shift=0, turn=0, zoom=0, light=0, noise=0)
    torch.testing.assert_close(image_fit.augmented(batch, none), batch, atol=1e-5, rtol=0)
    made = image_fit.augmented(batch, Recipe())
    assert made.shape == batch.shape
    assert 0.005 < float((made - batch).abs().mean()) < 0.2


@pytest.mark.parametrize("steepness", [0.4, 1.0, 2.5])
def test_temperature_recovers_a_known_calibration(steepness: float) -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(0, 2, (20_000, 2)).astype(np.float32)
    share = 1 / (1 + np.exp(-(true[:, 1] - true[:, 0])))
    labels = (rng.random(20_000) < share).astype(np.int64)
    assert imaging.temperature(true / steepness, labels) == pytest.approx(steepness, rel=0.05)


def trained(
    images: LabelledImages, out: Path, subject: imaging.Subject, plan: imaging.Plan
) -> dict[str, Any]:
    return imaging.train(images, out, subject, plan, lambda *_: None)


def test_a_trained_model_finds_blobs_and_says_where(tmp_path: Path) -> None:
    """The whole procedure on blobs: good figures, a folder that loads, a map that peaks at the blob."""
    path = medmnist_file(tmp_path / "x.npz", {"train": 96, "val": 24})
    images = evaluate_images.open_source(f"medmnist:{path}")
    plan = imaging.Plan(Recipe(epochs=6), 2, processes=1, compared=(("mixup", Recipe(epochs=1, mixup=0.2)),))
    content = trained(images, tmp_path, SUBJECT, plan)
    assert content["judged"]["auroc"] > 0.97
    assert content["validation"]["auroc"] > 0.97
    assert content["data"]["validation"]["images"] == 24
    assert [row["recipe"] for row in content["tried"]] == ["mixup"]
    assert content["drift"]["brightness_ks"] < 0.5
    assert content == json.loads((tmp_path / "x/evaluation.json").read_text())
    engine = repository.load(tmp_path, "x")
    picture, labels = tensors(8, 28, seed=9)
    found = evaluate_images.run_images(engine, picture[labels == 1])
    for tensor, seen in zip(picture[labels == 1], found["activation"][:, 1], strict=True):
        y, x = np.unravel_index(int(tensor[0].argmax()), (28, 28))
        row, column = np.unravel_index(int(seen.argmax()), seen.shape)
        assert max(abs(4 * row + 2 - y), abs(4 * column + 2 - x)) <= 8


def test_training_again_changes_nothing_that_is_served(tmp_path: Path) -> None:
    """Into the repository that workers follow: another version, served by `model serve` alone."""
    data = f"medmnist:{medmnist_file(tmp_path / 'x.npz', {'train': 12, 'val': 4})}"
    models = tmp_path / "models"

    def run(*more: str) -> Result:
        command = ["model", "train", "imaging", "--data", data, "--out", str(models), "--name", "x"]
        quick = ["--members", "2", "--threads", "1"]
        return CliRunner().invoke(app, [*command, *quick, *more])

    def held() -> dict[Path, bytes]:
        return {file: file.read_bytes() for file in models.rglob("*") if file.is_file()}

    made = run("--epochs", "1")
    assert made.exit_code == 0, made.output
    before, served = held(), repository.read_config(models, "x")
    made = run("--epochs", "2")
    assert made.exit_code == 0, made.output
    asked = f"x --version 2 --repository {models}"
    then = f"riskstream model check {asked}, then riskstream model serve {asked}"
    assert f"wrote {models}/x/2, which is not served: {then}" in made.output
    assert {file: content for file, content in held().items() if file in before} == before
    assert versions.serve(models, "x", 2).digest != served.digest
    card = json.loads((models / "x/model_card.json").read_text())
    assert (card["version"], json.loads((models / "x/evaluation.json").read_text())["model"]["version"]) == (
        2,
        2,
    )
    assert versions.rollback(models, "x") == served

    refused = run("--epochs", "1", "--replace")
    assert refused.exit_code == 1
    assert "holds the versions [1, 2]" in refused.output
    shutil.rmtree(models / "x/2")
    made = run("--epochs", "2", "--replace")
    assert made.exit_code == 0, made.output
    assert repository.load(models, "x").config.version == 1
    assert repository.read_config(models, "x").digest != served.digest
    assert not (models / "x/served.json").exists()
    assert [each.name for each in models.iterdir()] == ["x"]


def test_a_model_of_another_kind_is_no_version(tmp_path: Path) -> None:
    data = f"images:{folder(tmp_path / 'data', {'normal': 0, 'ill': 1}, 3, 16)}"
    shutil.copytree(repository.SHIPPED / "bedside", tmp_path / "models/bedside")
    command = ["model", "train", "imaging", "--data", data, "--out", str(tmp_path / "models"), "--size", "16"]
    result = CliRunner().invoke(app, [*command, "--name", "bedside"])
    assert result.exit_code == 1
    assert "holds a model of kind windowed-series" in result.output


@pytest.mark.parametrize(
    ("classes", "channels", "findings"),
    [({"healthy": 0, "tumour": 1}, 1, ["tumour"]), ({"a": 0, "b": 1, "normal": 2}, 3, ["a", "b"])],
)
def test_a_folder_of_pictures_becomes_a_model(
    tmp_path: Path,
    classes: dict[str, int],
    channels: int,
    findings: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PNG, JPEG and DICOM at 48 pixels through the command line into ./models, and judged by it."""
    each = 24 // len(classes)
    split = ["train"] * 15 + ["val"] * 9
    group = [f"p{number // 3}" for number in range(24)]
    data = f"images:{folder(tmp_path / 'data', classes, each, 48, split=split, group=group)}"
    options = [
        "--size",
        "32",
        "--channels",
        str(channels),
        "--epochs",
        "1",
        "--members",
        "2",
        "--threads",
        "1",
    ]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RISKSTREAM_MODEL_REPOSITORY", str(tmp_path / "served"))
    made = CliRunner().invoke(app, ["model", "train", "imaging", "--data", data, *options])
    assert made.exit_code == 0, made.output
    name = findings[0] if len(findings) == 1 else "imaging"
    assert f"wrote models/{name}; riskstream model check {name} --repository models" in made.output
    assert not (tmp_path / "served").exists(), "what workers serve is left alone"
    config = repository.read_config(tmp_path / "models", name)
    assert config.classes == tuple(sorted(classes))
    assert list(config.findings) == findings
    assert config.image == ImageInput(height=32, width=32, channels=channels)  # type: ignore[arg-type]
    for file in (
        "MODEL_CARD.md",
        "model_card.json",
        "evaluation.json",
        "evaluation.html",
        "1/model.onnx",
        "1/golden.npz",
    ):
        assert (tmp_path / "models" / name / file).stat().st_size > 0
    files = ["--predictions", str(tmp_path / "p.csv"), "--report", str(tmp_path / "r.json")]
    judged = CliRunner().invoke(
        app,
        ["model", "evaluate", name, "--repository", str(tmp_path / "models"), "--data", data, *files],
    )
    assert judged.exit_code == 0, judged.output
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["judged"]["n"] == 9
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 10


def test_pictures_of_224_pixels(tmp_path: Path) -> None:
    data = folder(tmp_path / "data", {"normal": 0, "ill": 1}, 3, 240)
    asked = cli_train.Asked(None, None, None, "crop", None, None, 1, 2, None)
    images = evaluate_images.open_source(f"images:{data}")
    subject = cli_train._subject(images, asked)
    assert subject.image == ImageInput(height=224, width=224, fit="crop")
    content = trained(images, tmp_path / "models", subject, QUICK)
    assert content["data"]["images"] == 6
    engine = repository.load(tmp_path / "models", "ill")
    assert engine.output_dims["activation"] == (2, 7, 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--findings", "normal,ill"], "findings among them that are not all"),
        (["--findings", "cured"], "findings among them"),
        (["--classes", "normal,sick"], "labels ['ill'] are not among the classes"),
        (["--channels", "2"], "--channels must be 1 or 3"),
        (["--fit", "squeeze"], "--fit must be pad, crop or stretch"),
        (["--name", "Mine!"], "--name must be small letters"),
        (
            ["--members", "9"],
            "'ill' has 3 groups of pictures to learn from (a picture alone,",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, options: list[str], message: str) -> None:
    data = f"images:{folder(tmp_path / 'data', {'normal': 0, 'ill': 1}, 3, 16)}"
    command = ["model", "train", "imaging", "--data", data, "--out", str(tmp_path / "models"), "--size", "16"]
    result = CliRunner().invoke(app, command + options)
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())


def test_options_of_imaging_are_refused_for_series(tmp_path: Path) -> None:
    command = ["model", "train", "vitals", "--data", f"physionet2012:{tmp_path}", "--size", "16"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert "--size is for imaging" in result.output


def test_nothing_left_to_learn_from(tmp_path: Path) -> None:
    path = medmnist_file(tmp_path / "x.npz", {"train": 4, "val": 4})
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["train_images"] = arrays["val_images"]
    np.savez(path, **arrays)
    with pytest.raises(DatasetError, match="stands in validation too"):
        trained(evaluate_images.open_source(f"medmnist:{path}"), tmp_path, SUBJECT, QUICK)


def test_golden_pictures_are_synthetic_and_seeded() -> None:
    made = image_export.synthetic_images((3, 20, 30))
    assert made.shape == (4, 3, 20, 30)
    assert 0 <= made.min() < made.max() <= 1
    np.testing.assert_array_equal(made, image_export.synthetic_images((3, 20, 30)))
    assert np.load(io.BytesIO(image_export.golden(Ensemble([member((1, 8, 8), 2)], 1), made[:, :1, :8, :8])))
