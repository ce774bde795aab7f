"""`riskstream backtest` as it is typed, on small data sets that the tests make."""

import json
import shutil
from pathlib import Path

import jsonschema
import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from engines import physionet2012, repository
from engines.evaluate import pretty
from engines.folds import FOLDS, Folds
from schemas import json_schema, policy_change
from schemas.messages import Alert
from schemas.model_config import Level
from tests.engines.test_evaluate import stay_text
from worker.cli import app
from worker.embedded import free_port

STAYS = 12
GRID = ("--enter", "0.02,0.05,0.1,0.3", "--persistence", "0,7200")


@pytest.fixture(scope="module")
def stays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stays")
    rng = np.random.default_rng(9)
    lines = ["RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death"]
    for record in range(STAYS):
        died = int(record % 3 == 0)
        text = stay_text(record, rng)
        if died:  # unmistakably ill
            text += "".join(f"{hour}:45,GCS,3\n{hour}:45,Lactate,12\n" for hour in range(12, 30))
        (folder / f"{record}.txt").write_text(text)
        lines.append(f"{record},1,1,9,{3 if died else -1},{died}")
    (folder / "Outcomes-z.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of one's own, with a policy that alerts on everybody."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(repository.SHIPPED / "vitals", folder / "vitals")
    config = repository.read_config(folder, "vitals")
    loud = msgspec.structs.replace(config.policy, version="7", levels=(Level("any", 0.0001),), exit=0.0)
    (folder / "vitals" / "config.json").write_bytes(pretty(msgspec.structs.replace(config, policy=loud)))
    return folder


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory, stays: Path) -> Path:
    """What a training with folds writes, but that both models are the shipped one."""
    folder = tmp_path_factory.mktemp("folds")
    config = repository.read_config(repository.SHIPPED, "vitals")
    for fold in range(2):
        name = f"vitals-fold-{fold}"
        shutil.copytree(repository.SHIPPED / "vitals" / "1", folder / name / "1")
        (folder / name / "config.json").write_bytes(pretty(msgspec.structs.replace(config, name=name)))
    digest = physionet2012.digest(physionet2012.read(stays))
    made = Folds("vitals", digest, {str(record): record // 3 % 2 for record in range(STAYS)})
    (folder / FOLDS).write_bytes(pretty(made))
    return folder


def run(*arguments: str | Path | int) -> Result:
    return CliRunner().invoke(app, ["backtest", *map(str, arguments)])


def test_everything_that_can_be_asked_for_is_written(stays: Path, tmp_path: Path) -> None:
    report, page, plot, alerts = (tmp_path / name for name in ("r.json", "r.html", "r.svg", "a.jsonl"))
    kept, change = tmp_path / "tracks.npz", tmp_path / "policies.json"
    asked = (f"physionet2012:{stays}", *GRID, "--recall", "0.7", "--tracks", kept, "--write", change)
    files = ("--report", report, "--html", page, "--plot", plot, "--alerts", alerts)
    result = run(*asked, *files, "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(report.read_bytes())
    assert json.loads(result.stdout) == content
    assert content["cohort"] == {
        "patients": STAYS, "patient_days": pytest.approx(23.5, abs=0.6), "events": 4, "without_event": 8,
        "unknown": 0,
    }  # fmt: skip
    assert len(content["policies"]) == 1 + 8
    assert [policy["name"] for policy in content["news2"]][:2] == ["NEWS2 at 5", "NEWS2 at 7"]
    assert content["risks"]["unseen"] is None
    chosen = content["policies"][content["chosen"]]
    assert chosen["recall"] >= 0.7
    assert chosen["hours_to_outcome"]["median"] > chosen["hours_to_record_end"]["median"] > 0
    (written,) = policy_change.read(change.read_bytes(), "it")
    assert isinstance(written.levels, tuple)
    assert [level.enter for level in written.levels] == [
        level["enter"] for level in chosen["policy"]["levels"]
    ]
    schema = json.loads((json_schema.DIRECTORY / "policy-change.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(json.loads(change.read_bytes())[0])
    told = [msgspec.json.decode(line, type=Alert) for line in alerts.read_bytes().splitlines()]
    assert len(told) == content["foretold_alerts"]
    shipped = content["policies"][0]["alerts"]
    ours = [alert.transition for alert in told if alert.model.name == "vitals"]
    assert {name: ours.count(name) for name in shipped} == shipped
    assert "<svg" in page.read_text()
    assert "NEWS2 at 5" in page.read_text()
    assert plot.read_text().lstrip().startswith("<?xml")
    before = kept.stat().st_mtime_ns
    again = run(*asked, "--json")
    assert json.loads(again.stdout)["policies"] == content["policies"]
    assert kept.stat().st_mtime_ns == before
    assert [change.version for change in policy_change.read(change.read_bytes(), "it")] == [1, 2]


def test_nobody_is_answered_for_by_a_model_that_saw_him(stays: Path, folds: Path) -> None:
    asked = (f"physionet2012:{stays}", *GRID, "--json")
    seen, unseen = json.loads(run(*asked).stdout), json.loads(run(*asked, "--folds", folds).stdout)
    assert unseen["risks"]["unseen"] is True
    assert unseen["policies"] == seen["policies"]  # these fold models are all the same


def test_a_choice_is_judged_on_those_it_was_not_made_on(stays: Path, folds: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    asked = (*GRID, "--folds", folds, "--recall", "0.5", "--html", page)
    result = run(f"physionet2012:{stays}", *asked, "--json")
    assert result.exit_code == 0, result.output
    held_out = json.loads(result.stdout)["held_out"]
    assert len(held_out["chosen"]) == 2
    assert f"judged on that one: recall {held_out['recall']:.3f}" in page.read_text()


def test_what_ships_is_not_chosen_without_those_it_was_chosen_on(stays: Path, folds: Path) -> None:
    asked = (f"physionet2012:{stays}", "--enter", "0.02", "--persistence", "0", "--survivors", "1")
    content = json.loads(run(*asked, "--folds", folds, "--json").stdout)
    assert content["policies"][0]["role"] == "shipped"
    assert content["held_out"]["chosen"] == [content["policies"][1]["name"]] * 2


def test_a_shipped_policy_is_told_of_wherever_the_model_tells_of_it(stays: Path, models: Path) -> None:
    folder = models / "vitals"
    before = repository.read_config(models, "vitals")
    choosing = ("--policies", _policies(stays, 0.9), "--survivors", "0", "--ship")
    result = run(f"physionet2012:{stays}", *choosing, "--model-repository", models, "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content["chosen"] == 1
    chosen = content["policies"][1]
    config = repository.read_config(models, "vitals")
    version = "8"
    assert json.loads(msgspec.json.encode(config.policy)) == chosen["policy"] | {"version": version}
    assert msgspec.structs.replace(config, policy=before.policy) == before
    kept = json.loads((folder / "backtest.json").read_bytes())
    assert kept["policy"]["recall"] == chosen["recall"]
    assert kept["before"][0]["policy"] == json.loads(msgspec.json.encode(before.policy))
    first = config.policy.levels[0]
    evaluation = json.loads((folder / "evaluation.json").read_bytes())
    assert evaluation["policy"][first.severity]["enter"] == first.enter
    card = (folder / "MODEL_CARD.md").read_text()
    assert f"Version {version}. An episode resolves" in card
    assert f"| {first.severity} | {first.enter:g} |" in card
    assert card.count("\n## ") == (repository.SHIPPED / "vitals/MODEL_CARD.md").read_text().count("\n## ")
    assert f"{first.enter:.3f}" in (folder / "evaluation.html").read_text()
    repository.load(models, "vitals").close()
    assert run(f"physionet2012:{stays}", *choosing, "--model-repository", models).exit_code == 0
    again = json.loads((folder / "backtest.json").read_bytes())
    assert repository.read_config(models, "vitals") == config
    assert again["before"] == kept["before"]


def test_data_that_the_model_was_trained_on_is_said_loudly(stays: Path, models: Path) -> None:
    file = models / "vitals" / "evaluation.json"
    evaluation = json.loads(file.read_bytes())
    evaluation["data"]["digest"] = physionet2012.digest(physionet2012.read(stays))
    file.write_text(json.dumps(evaluation))
    result = run(f"physionet2012:{stays}", *GRID, "--model-repository", models)
    assert result.exit_code == 0
    assert "THE MODEL WAS TRAINED ON THESE PATIENTS" in result.output


def test_outcomes_of_ones_own(tmp_path: Path) -> None:
    recorded = tmp_path / "outcomes.csv"
    recorded.write_text(
        "patient,outcome,time\n"
        + "".join(f"sim-1-{n:04d},{n % 2},{'2026-01-03T00:00:00Z' if n % 2 else ''}\n" for n in range(1, 7))
    )
    asked = ("simulate", "--patients", 6, "--hours", 24, "--enter", "0.2", "--persistence", "0", "--json")
    result = run(*asked, "--outcomes", recorded)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["cohort"]["events"] == 3
    lines = tmp_path / "outcomes.jsonl"
    lines.write_text("".join(f'{{"patient": "sim-1-{n:04d}", "outcome": {n % 2}}}\n' for n in range(1, 7)))
    other = run(*asked, "--outcomes", lines)
    assert json.loads(other.stdout)["cohort"] == json.loads(result.stdout)["cohort"]


def test_outcomes_of_patients_without_records_are_told_of(tmp_path: Path) -> None:
    file = tmp_path / "outcomes.csv"
    file.write_text("patient,outcome\nsim-1-0000,1\nsim-1-0001,0\nsim-one-3,1\nsim-one-4,0\n")
    asked = ("simulate", "--patients", 2, "--hours", 6, "--enter", "0.2", "--persistence", "0")
    result = run(*asked, "--outcomes", file)
    assert result.exit_code == 0, result.output
    assert "2 patients of the outcomes, 1 of them with the event, have no record that counts" in result.output
    content = json.loads(run(*asked, "--outcomes", file, "--model", "bedside", "--json").stdout)
    assert content["without_records"] == {"patients": 2, "events": 1}
    assert "--model bedside" in content["reproduce"]["command"]


@pytest.mark.parametrize(
    ("code", "words"),
    [("00000-0", "none of the 2 records counts"), ("8867-4", "no patient has records at two times")],
)
def test_records_of_which_nothing_can_be_said_are_refused(code: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "recorded.jsonl"
    record = '{"event_id":"%s","patient":"%s","time":"2026-01-01T00:00:00Z","observations":[%s]}\n'
    observation = f'{{"code":"{code}","value":80,"unit":"/min"}}'
    file.write_text(record % ("a", "p", observation) + record % ("b", "q", observation))
    result = run(file, "--tracks", tmp_path / "tracks.npz")
    assert result.exit_code == 1
    assert words in result.output


def test_a_page_without_outcomes_leaves_out_what_needs_them(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    asked = ("simulate", "--patients", 2, "--hours", 6, "--enter", "0.2", "--persistence", "0")
    assert run(*asked, "--html", page).exit_code == 0
    assert "figures that need it are left out" in page.read_text()
    refused = run(*asked, "--plot", tmp_path / "plot.svg")
    assert refused.exit_code == 1
    assert "the trade-off needs outcomes" in refused.output


def test_a_broker_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RISKSTREAM_BROKER", f"127.0.0.1:{free_port()}")
    result = run("kafka:vitals")
    assert result.exit_code == 1
    assert "cannot read vitals: Kafka at 127.0.0.1:" in result.output


def test_no_policy_that_keeps_to_the_rule_is_told_and_fails(stays: Path) -> None:
    asked = (f"physionet2012:{stays}", "--enter", "0.9", "--persistence", "86400", "--alerts-per-day", "0")
    result = run(*asked, "--policies", _policies(stays, 0.0001))
    assert result.exit_code == 1
    assert "no policy that was tried" in result.output


def _policies(folder: Path, enter: float) -> Path:
    policy = msgspec.to_builtins(repository.read_config(repository.SHIPPED, "vitals").policy)
    policy |= {"levels": [{"severity": "any", "enter": enter, "persistence_s": 0.0}], "exit": 0.0}
    file = folder.parent / "tried.json"
    file.write_text(json.dumps([policy]))
    return file


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.jsonl"], "cannot read nowhere.jsonl"),
        (["physionet2012:/nowhere"], "no such folder"),
        (["simulate", "--enter", "a"], "--enter is written FROM:TO:STEP"),
        (["simulate", "--from", "2026-01-01T00:00:00Z"], "--from and --to are for kafka:TOPIC"),
        (
            ["kafka:vitals", "--from", "2026-01-02T00:00:00Z", "--to", "2026-01-01T00:00:00Z"],
            "--from must be before --to",
        ),
        (["simulate", "--enter", "0.4:0.1:0.1"], "FROM not above TO"),
        (["kafka:vitals", "--from", "yesterday"], "--from is a time with its offset"),
        (["simulate", "--plot", "x.pdf"], "--plot writes .svg or .png"),
        (["simulate", "--folds", "nowhere"], "model train"),
        (["simulate", "--outcomes", "nowhere.csv"], "cannot read nowhere.csv"),
        (["simulate", "--policies", "nowhere.json"], "cannot read nowhere.json"),
        (["simulate", "--model", "nothing"], "no model 'nothing'"),
        (["simulate", "--patients", "2", "--hours", "1", "--recall", "0.9"], "give --outcomes"),
        (["simulate", "--recall", "0.9", "--survivors", "0.3"], "give one of"),
        (["simulate", "--ship"], "need one of"),
        (["simulate", "--model", "pneumonia", "--patients", "1", "--hours", "1"], "image"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code in (1, 2)
    assert words in " ".join(result.output.replace("│", " ").split())
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "content",
    [
        "",
        "patient\nsim\n",
        "patient,outcome\nsecret-name,2\n",
        "patient,outcome,time\nsecret-name,1,noon\n",
        '{"patient": "secret-name"}\n',
        '{"patient": "secret-name", "outcome": 1}\n{"pat\n',
        "patient,outcome\nsecret-name,1\nsecret-name,0\n",
        "patient,outcome\nsomebody else,1\n",
    ],
)
def test_bad_outcomes_are_named_by_line_and_not_quoted(content: str, tmp_path: Path) -> None:
    file = tmp_path / "outcomes"
    file.write_text(content)
    result = run("simulate", "--patients", 1, "--hours", 1, "--outcomes", file)
    assert result.exit_code == 1
    assert str(file) in result.output
    assert "secret-name" not in result.output
