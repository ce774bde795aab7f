"""`model evaluate` on a model of every kind, brought from elsewhere: figures, page and risks."""

import csv
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from engines import repository
from engines.engine import Engine
from tests.engines.conftest import golden_of
from tests.engines.test_evaluate import stay_text
from tests.kinds import KINDS, SERIES, inputs_of, model_of
from worker import cli_train
from worker.cli_model import app

STAYS, PICTURES = 40, 60


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of a repository for each kind: `<kind>/small`."""
    root = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        config, graph = model_of(kind)
        engine = repository.open_engine(config, graph)
        folder = root / kind / config.name
        (folder / str(config.version)).mkdir(parents=True)
        (folder / "config.json").write_bytes(msgspec.json.encode(config))
        (folder / str(config.version) / "model.onnx").write_bytes(graph)
        (folder / str(config.version) / "golden.npz").write_bytes(_golden(engine))
    return root


def _golden(engine: Engine) -> bytes:
    inputs = inputs_of(engine, 3)
    return golden_of(inputs, engine.run(inputs))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Stays and pictures with outcomes, by what reads them."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(5)
    lines = ["RecordID,In-hospital_death"]
    for record in range(STAYS):
        (root / f"{record}.txt").write_text(stay_text(record, rng))
        lines.append(f"{record},{record % 2}")
    (root / "Outcomes-z.txt").write_text("\n".join(lines) + "\n")
    arrays = {
        "test_images": rng.integers(0, 256, (PICTURES, 28, 28), dtype=np.uint8),
        "test_labels": rng.integers(0, 3, (PICTURES, 1), dtype=np.uint8),
    }
    np.savez(root / "small.npz", allow_pickle=False, **arrays)
    return {"series": f"physionet2012:{root}", "image": f"medmnist:{root / 'small.npz'}"}


def evaluated(models: Path, kind: str, source: str, *arguments: str) -> Result:
    given = ["evaluate", "small", "--repository", str(models / kind), "--data", source, *arguments]
    return CliRunner().invoke(app, given)


@pytest.mark.parametrize("kind", SERIES)
def test_series_of_every_kind(models: Path, data: dict[str, str], tmp_path: Path, kind: str) -> None:
    files = [tmp_path / name for name in ("r.json", "r.html", "p.csv")]
    options = [
        str(part)
        for pair in zip(("--report", "--html", "--predictions"), files, strict=True)
        for part in pair
    ]
    result = evaluated(models, kind, data["series"], *options)
    assert result.exit_code == 0, result.output
    content = json.loads(files[0].read_text())
    assert content["event1_threshold"] == 0.3
    assert "policy" in content["event1_threshold_from"]
    assert ("forecast" in content) == (kind == "step")
    assert [one["withheld"] for one in content["robustness"]["withheld"]][1] == "heart rate"
    assert "Not for clinical use" in files[1].read_text()
    with files[2].open(newline="") as file:
        assert len(list(csv.DictReader(file))) == STAYS * 48


def test_images(models: Path, data: dict[str, str], tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("r.json", "r.html", "p.csv")]
    options = [
        str(part)
        for pair in zip(("--report", "--html", "--predictions"), files, strict=True)
        for part in pair
    ]
    result = evaluated(models, "image", data["image"], "--split", "test", *options)
    assert result.exit_code == 0, result.output
    content = json.loads(files[0].read_text())
    assert content["judged"]["n"] == PICTURES
    assert content["reproduce"]["command"] == "riskstream model evaluate small --data medmnist:PATH"
    assert 'id="classes"' in files[1].read_text()
    with files[2].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == PICTURES
    assert float(rows[0]["risk"]) == pytest.approx(float(rows[0]["ill"]) + float(rows[0]["odd"]), abs=1e-6)


@pytest.mark.parametrize("missing", ["labels", "classes"])
def test_pictures_of_no_known_class_get_risks_alone(
    models: Path, data: dict[str, str], tmp_path: Path, missing: str
) -> None:
    with np.load(data["image"].partition(":")[2]) as archive:
        arrays = {"test_images": archive["test_images"]}
    if missing == "classes":
        arrays["test_labels"] = np.zeros((PICTURES, 1), np.uint8)
    np.savez(tmp_path / "x.npz", allow_pickle=False, **arrays)
    source, risks = f"medmnist:{tmp_path / 'x.npz'}", tmp_path / "p.csv"
    result = evaluated(models, "image", source, "--predictions", str(risks))
    assert result.exit_code == 0, result.output
    assert "no figures" in result.stdout
    assert len(risks.read_text().splitlines()) == 1 + PICTURES
    result = evaluated(models, "image", source, "--predictions", str(risks), "--json")
    assert result.exit_code == 1
    assert {"labels": "no train, val or test images and labels", "classes": "figures need"}[
        missing
    ] in result.stderr


def test_pictures_learnt_from_are_told(models: Path, data: dict[str, str], tmp_path: Path) -> None:
    with np.load(data["image"].partition(":")[2]) as archive:
        arrays = {f"train_{name}": archive[f"test_{name}"] for name in ("images", "labels")}
    np.savez(tmp_path / "x.npz", allow_pickle=False, **arrays)
    result = evaluated(models, "image", f"medmnist:{tmp_path / 'x.npz'}", "--json")
    assert "of the split train" in json.loads(result.stdout)["verdict"][0]


def test_classes_that_the_model_has_not_are_told_before_the_work(
    models: Path, data: dict[str, str], tmp_path: Path
) -> None:
    with np.load(data["image"].partition(":")[2]) as archive:
        arrays = {"test_images": archive["test_images"], "test_labels": archive["test_labels"] + 7}
    np.savez(tmp_path / "x.npz", allow_pickle=False, **arrays)
    risks = tmp_path / "p.csv"
    result = evaluated(models, "image", f"medmnist:{tmp_path / 'x.npz'}", "--predictions", str(risks))
    assert result.exit_code == 1
    assert "class number" in result.stderr
    assert not risks.exists()


def test_another_outcome_than_the_datas_is_told(models: Path, data: dict[str, str]) -> None:
    result = evaluated(models, "features", data["series"], "--json")
    assert json.loads(result.stdout)["verdict"][0].startswith(
        "The model predicts nothing; these data record in-hospital death."
    )


def test_a_file_that_cannot_be_written_is_named(models: Path, data: dict[str, str], tmp_path: Path) -> None:
    result = evaluated(models, "image", data["image"], "--predictions", str(tmp_path))
    assert result.exit_code == 1
    assert f"error: {tmp_path}: Is a directory" in result.stderr


def test_training_says_which_extra_is_missing(monkeypatch: pytest.MonkeyPatch, data: dict[str, str]) -> None:
    monkeypatch.setattr(cli_train, "NEEDED", ("json", "no_such_module"))
    for what, source in (("vitals", data["series"]), ("imaging", data["image"])):
        result = CliRunner().invoke(app, ["train", what, "--data", source])
        assert result.exit_code == 1
        assert "training needs no_such_module: pip install 'riskstream[train]'" in result.stderr


def test_json_goes_to_standard_output_alone(models: Path, data: dict[str, str]) -> None:
    result = evaluated(models, "features", data["series"], "--json")
    assert json.loads(result.stdout)["model"]["kind"] == "features"


@pytest.mark.parametrize(
    ("kind", "source", "message"),
    [("image", "series", "reads images"), ("whole", "image", "reads patients' series")],
)
def test_a_model_and_data_that_do_not_fit(
    models: Path, data: dict[str, str], kind: str, source: str, message: str
) -> None:
    result = evaluated(models, kind, data[source])
    assert result.exit_code == 1
    assert message in result.stderr
