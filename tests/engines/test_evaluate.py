"""Reports and predictions of the served model, through the command line."""

import csv
import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from engines import evaluate, evaluate_stays, physionet2012, repository
from engines.errors import RepositoryError
from engines.physionet2012 import PARAMETERS
from schemas.features import CHANNEL, FEATURES
from schemas.model_card import ATTRIBUTES, ModelCard
from worker.cli_model import app

STAYS = 60

HERE = Path(__file__).parent

SHARE = {"type": "number", "minimum": 0, "maximum": 1}
INTERVAL = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
FIGURES = {
    "type": "object",
    "required": ["n", "positives", "auroc", "auprc", "event1", "brier", "ece", "intervals", "curves"],
    "properties": {
        **dict.fromkeys(("auroc", "auprc", "event1", "sensitivity", "specificity", "brier", "ece"), SHARE),
        "intervals": {"type": "object", "additionalProperties": INTERVAL},
        "curves": {"type": "object", "required": ["roc", "precision_recall", "calibration", "decision"]},
    },
}
REPORT = {
    "type": "object",
    "required": [
        "model",
        "backend",
        "data",
        "event1_threshold",
        "verdict",
        "hours",
        "baselines",
        "subgroups",
        "trajectories",
        "robustness",
        "metrics",
        "reproduce",
    ],
    "properties": {
        "hours": {
            "type": "object",
            "required": ["6", "12", "24", "48"],
            "additionalProperties": FIGURES,
        },
        "data": {"type": "object", "required": ["name", "digest", "stays", "deaths"]},
    },
}


@pytest.fixture(scope="module")
def stays_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up stays with outcomes, in the Challenge's format."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(5)
    lines = ["RecordID,In-hospital_death"]
    for record in range(100, 100 + STAYS):
        (folder / f"{record}.txt").write_text(stay_text(record, rng))
        lines.append(f"{record},{int(record % 4 == 0)}")
    (folder / "Outcomes-z.txt").write_text("\n".join(lines) + "\n")
    return folder


def stay_text(record: int, rng: np.random.Generator) -> str:
    lines = ["Time,Parameter,Value", f"00:00,RecordID,{record}", f"00:00,Age,{rng.integers(20, 90)}"]
    for hour in range(48):
        for name in rng.choice(["HR", "SysABP", "GCS", "Lactate", "Urine"], 3, replace=False):
            feature = FEATURES[CHANNEL[PARAMETERS[name][2]]]
            value = float(np.clip(feature.fill * rng.normal(1, 0.1), feature.low, feature.high))
            lines.append(f"{hour:02d}:30,{name},{value:.1f}")
    return "\n".join(lines) + "\n"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_report_and_predictions(stays_path: Path, tmp_path: Path) -> None:
    report, predictions = tmp_path / "out" / "r.json", tmp_path / "out" / "p.csv"
    result = run(
        "evaluate", "vitals", "--data", f"physionet2012:{stays_path}",
        "--report", str(report), "--predictions", str(predictions),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    content = json.loads(report.read_text())
    jsonschema.validate(content, REPORT)
    assert content["model"]["digest"] == repository.read_config(repository.SHIPPED, "vitals").digest
    assert content["data"]["stays"] == STAYS
    assert content["baselines"]["news2"]["hours"]["48"]["n"] == STAYS
    assert content["robustness"]["n"] == STAYS
    with predictions.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["stay"], row["hour"]) for row in rows[:2]] == [("100", "1"), ("100", "2")]
    assert len(rows) == STAYS * 48
    assert all(0 < float(row["risk"]) < 1 for row in rows)


def test_hour_h_does_not_know_what_came_after(stays_path: Path) -> None:
    engine = repository.load(repository.SHIPPED, "vitals")
    stays = physionet2012.read(stays_path)
    cut = [
        physionet2012.Stay(stay.record, tuple(s for s in stay.samples if s.minute < 12 * 60), stay.outcome)
        for stay in stays
    ]
    full, early = (
        evaluate_stays.served(engine, evaluate_stays.rows_of(group)).risk for group in (stays, cut)
    )
    assert full[:, :12].tobytes() == early[:, :12].tobytes()
    assert full[:, 12:].tobytes() != early[:, 12:].tobytes()


def test_without_outcomes_predictions_are_written(stays_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "unknown"
    folder.mkdir()
    (folder / "100.txt").write_text((stays_path / "100.txt").read_text())
    source, predictions = f"physionet2012:{folder}", str(tmp_path / "p.csv")
    assert run("evaluate", "vitals", "--data", source, "--predictions", predictions).exit_code == 0
    assert (tmp_path / "p.csv").stat().st_size > 0
    (folder / "Outcomes-z.txt").write_text("RecordID,In-hospital_death\n100,0\n")
    assert run("evaluate", "vitals", "--data", source, "--predictions", predictions).exit_code == 0
    refused = run("evaluate", "vitals", "--data", source, "--report", str(tmp_path / "r.json"))
    assert refused.exit_code == 1
    assert "judging needs deaths and survivors" in refused.stderr
    assert not (tmp_path / "r.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluate", "vitals", "--data", "somewhere"), "physionet2012:DIR"),
        (("evaluate", "vitals", "--data", "physionet2012:/no/such/folder"), "no such folder"),
        (("evaluate", "cardiac", "--data", "physionet2012:/"), "no model 'cardiac'"),
        (("evaluate", "cardiac", "--data", "x", "--report", "/dev/null/x/r.json"), "/dev/null/x"),
        (("evaluate", "cardiac", "--data", "x", "--predictions", "/dev/null/x/p.csv"), "/dev/null/x"),
        (("train", "cardiac", "--data", "physionet2012:/"), "no training for 'cardiac'; there is for vitals"),
        (("train", "vitals", "--data", "physionet2012:/no/such/folder"), "no such folder"),
        (("evaluate", "vitals", "--data", "medmnist:x.npz"), "reads patients' series"),
        (("evaluate", "vitals", "--data", f"physionet2012:{HERE}", "--split", "test"), "no splits"),
        (("report", "cardiac", "--html", "/dev/null/x.html"), "/dev/null"),
        (("list", "--repository", "/no/such/folder"), "no model repository"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr


def test_list() -> None:
    listed = json.loads(run("list", "--json").stdout)
    fields = ("name", "kind", "version", "digest", "outcome")
    configs = repository.list_models(repository.SHIPPED)
    assert listed == [{field: getattr(config, field) for field in fields} for config in configs]
    assert {"bedside", "pneumonia", "vitals"} <= {one["name"] for one in listed}
    assert "vitals" in run("list").stdout


def test_words_of_a_config_are_no_markup(tmp_path: Path) -> None:
    (tmp_path / "vitals").mkdir()
    config = json.loads((repository.SHIPPED / "vitals/config.json").read_bytes()) | {"outcome": "[/x][red]"}
    (tmp_path / "vitals/config.json").write_text(json.dumps(config))
    listed = run("list", "--repository", str(tmp_path))
    assert listed.exit_code == 0
    assert "[/x][red]" in listed.stdout


@pytest.mark.parametrize(("digest", "taken"), [(True, True), (False, False), (None, True)])
def test_figures_of_another_graph_are_not_the_models(
    tmp_path: Path, digest: bool | None, taken: bool
) -> None:
    config = repository.read_config(repository.SHIPPED, "vitals")
    content: dict[str, Any] = {"event1_threshold": 0.123}
    if digest is not None:
        content["model"] = {"digest": config.digest if digest else "0" * 64}
    (tmp_path / "vitals").mkdir()
    (tmp_path / "vitals/evaluation.json").write_text(json.dumps(content))
    threshold, source = evaluate.event1_threshold(tmp_path, config)
    assert (threshold == 0.123) is taken
    assert ("policy" in source) is not taken
    assert bool(evaluate.shipped(tmp_path, config)) is taken


@pytest.mark.parametrize("content", ["", "[]", '{"hours": {}}', '{"event1_threshold": "high"}'])
def test_a_threshold_is_needed(tmp_path: Path, content: str) -> None:
    config = repository.read_config(repository.SHIPPED, "vitals")
    (tmp_path / "vitals").mkdir()
    (tmp_path / "vitals" / "evaluation.json").write_text(content)
    with pytest.raises(RepositoryError, match=r"vitals/evaluation\.json must"):
        evaluate.event1_threshold(tmp_path, config)


def test_a_model_from_elsewhere_is_judged_at_its_policy(tmp_path: Path) -> None:
    config = repository.read_config(repository.SHIPPED, "vitals")
    threshold, source = evaluate.event1_threshold(tmp_path, config)
    assert threshold == config.policy.levels[0].enter
    assert "policy" in source


@pytest.mark.parametrize("name", ["bedside", "pneumonia", "vitals"])
def test_the_shipped_figures_belong_to_the_shipped_graph(name: str) -> None:
    folder = repository.SHIPPED / name
    content = json.loads((folder / "evaluation.json").read_text())
    config = repository.read_config(repository.SHIPPED, name)
    assert content["model"]["digest"] == config.digest
    card = (folder / "MODEL_CARD.md").read_text()
    page = (folder / "evaluation.html").read_text()
    for text in (config.digest, "Not for clinical use without local validation"):
        assert text in card
        assert text in page
    made = msgspec.json.decode((folder / "model_card.json").read_bytes(), type=ModelCard)
    assert (made.model, made.digest) == (name, config.digest)
    numbers = [number for category in ATTRIBUTES.values() for number in category]
    assert [attribute.number for attribute in made.source_attributes] == numbers
    assert sum(file.stat().st_size for file in folder.rglob("*") if "plans" not in file.parts) < 10 << 20


@pytest.mark.parametrize(("name", "auroc"), [("vitals", 0.845), ("bedside", 0.83)])
def test_the_shipped_series_models_are_as_good_as_they_were(name: str, auroc: float) -> None:
    content = json.loads((repository.SHIPPED / name / "evaluation.json").read_text())
    assert content["hours"]["48"]["auroc"] >= auroc
    assert content["hours"]["48"]["ece"] <= 0.02
    for forecast in content["forecast"].values():
        assert forecast["mae"] < forecast["carried_forward_mae"]
