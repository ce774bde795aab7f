"""Patient-hours in the path: each counted once, as in the reference; without one the worker goes on."""

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from engines import drift, drift_reference, repository
from engines.drift import Reference
from engines.engine import Engine
from engines.steps import run_stays
from schemas.features import CHANNEL
from schemas.window import CHANNELS, Rows, rows
from tests.worker.records import HOUR, MINUTE, PLACE, T0, LocalPath, Record, observation, record
from worker import drift as watching
from worker import recording
from worker.cli import app
from worker.drift import DriftWatch, HourTally
from worker.partition import Partition

NAMES = repository.read_config(repository.SHIPPED, "vitals").features
HEART_RATE, RISK = NAMES.index("heart_rate"), len(NAMES)


def beats(patients: int, hours: int, step: int = 15) -> list[Record]:
    """Records of patients in turn; a heart rate says in which record of which hour it was measured."""
    made: list[Record] = []
    for minute in range(0, hours * 60, step):
        for patient in range(patients):
            value = 60 + minute / 10 + 0.5 * patient
            made.append(
                record(
                    len(made), f"p{patient}", T0 + minute * MINUTE, observation("heart_rate", round(value, 2))
                )
            )
    return made


def shipped(engine: Engine) -> Reference:
    return drift_reference.read(repository.SHIPPED, engine.config)


async def tallied(engine: Engine, records: list[Record], chunk: int) -> dict[str, list[list[float]]]:
    """Heart rate and risk of every patient-hour."""
    path = LocalPath(engine)
    tally = HourTally(path.model, shipped(engine))
    found: dict[str, list[list[float]]] = {}

    def keep(closed: watching.Closed) -> None:
        for patient, values in zip(closed.patients, closed.values, strict=True):
            found.setdefault(patient, []).append(values[[HEART_RATE, RISK]].tolist())

    for at in range(0, len(records), chunk):
        change = await path.pipeline.process(path.partition, records[at : at + chunk])
        keep(tally.take(change.plan, change.risks))
    keep(tally.silent())
    assert len(tally) == 0
    return found


@pytest.mark.parametrize("chunk", [1, 3, 7, 512])
async def test_each_patient_counts_once_an_hour_by_its_last_row(engine: Engine, chunk: int) -> None:
    found = await tallied(engine, beats(patients=2, hours=3), chunk)
    assert {patient: [rate for rate, _ in hours] for patient, hours in found.items()} == {
        "p0": [64.5, 70.5, 76.5],
        "p1": [65.0, 71.0, 77.0],
    }
    assert found == await tallied(engine, beats(patients=2, hours=3), 512)


async def test_the_same_stay_gives_the_rows_of_the_reference(engine: Engine) -> None:
    values, counts = np.zeros((2, 5, CHANNELS), dtype=np.float32)
    values[:, CHANNEL["heart_rate"]] = [80, 90, 0, 70, 75]
    counts[:, CHANNEL["heart_rate"]] = [1, 1, 0, 1, 1]
    values[1, CHANNEL["lactate"]], counts[1, CHANNEL["lactate"]] = 2.5, 1
    made = rows(values, counts, np.full(4, np.nan, dtype=np.float32))
    stay = Rows(*(array[None] for array in made))
    expected, absent_h = drift.hours_of(stay, run_stays(engine, stay).risk, engine.config)
    data = {"name": "one stay", "digest": ""}
    reference = drift.make(engine.config, expected, absent_h, data, "served")
    sent = [
        [observation("heart_rate", 80)],
        [observation("heart_rate", 90), observation("lactate", 2.5)],
        [],
        [observation("heart_rate", 70)],
        [observation("heart_rate", 75)],
    ]
    path = LocalPath(engine)
    tally, found = HourTally(path.model, reference), []
    for hour, observations in enumerate(sent):
        if observations:
            one = [record(hour, "p", T0 + hour * HOUR, *observations)]
            change = await path.pipeline.process(path.partition, one)
            found.append(tally.take(change.plan, change.risks).values)
    found.append(tally.silent().values)
    assert len(expected.patients) == 4
    np.testing.assert_allclose(np.concatenate(found), expected.values, rtol=1e-6)


async def test_only_the_silent_are_let_go(engine: Engine) -> None:
    path = LocalPath(engine)
    tally = HourTally(path.model, shipped(engine))
    change = await path.pipeline.process(path.partition, beats(2, 1))
    tally.take(change.plan, change.risks)
    assert tally.silent(before_s=0.0).patients == []
    assert len(tally) == 2
    assert sorted(tally.silent().patients) == ["p0", "p1"]


async def test_a_score_without_a_risk_is_passed_over(engine: Engine) -> None:
    path = LocalPath(engine)
    tally = HourTally(path.model, shipped(engine))
    change = await path.pipeline.process(path.partition, beats(1, 1))
    tally.take(change.plan, np.full(len(change.risks), np.nan, dtype=np.float32))
    assert len(tally) == 0


def other(engine: Engine, **changes: Any) -> Reference:
    """The shipped reference under another name, so that no other test counts on its series."""
    return msgspec.structs.replace(shipped(engine), **changes)


def sample(metric: str, **labels: str) -> dict[str, float]:
    """Values by bin of a feature's series."""
    return {
        s.labels.get("bin", ""): s.value
        for family in REGISTRY.collect()
        for s in family.samples
        if s.name == metric and labels.items() <= s.labels.items()
    }


def test_every_series_is_there_from_the_start(engine: Engine) -> None:
    reference = other(engine, data="from the start")
    path = LocalPath(engine)
    DriftWatch(path.model, reference)
    name = watching.label(reference)
    for feature, expected in reference.distributions().items():
        counts = sample("riskstream_hourly_rows_total", reference=name, feature=feature)
        assert counts == dict.fromkeys(expected.names(), 0)
        shares = sample("riskstream_reference_share_ratio", reference=name, feature=feature)
        assert sum(shares.values()) == pytest.approx(1)
        assert shares.keys() == counts.keys()
    noise = sample("riskstream_reference_noise_ratio", reference=name, feature="age")[""]
    assert noise == pytest.approx(reference.features["age"].noise * reference.hours / reference.stays)


async def test_the_path_counts_patient_hours_by_bin(engine: Engine) -> None:
    reference = other(engine, data="by bin")
    path = LocalPath(engine)
    watch = DriftWatch(path.model, reference)
    path.served.watch = watch
    records = beats(patients=3, hours=4)
    await path.process(records, chunk=5)
    watch.count()
    name = watching.label(reference)
    rates = sample("riskstream_hourly_rows_total", reference=name, feature="heart_rate")
    closed = [64.5 + 6 * hour + 0.5 * patient for hour in range(3) for patient in range(3)]  # the 4th is open
    expected = reference.features["heart_rate"]
    counts = expected.count(np.array(closed, dtype=np.float32))
    assert list(rates.values()) == counts.tolist()
    assert sample("riskstream_hourly_rows_total", reference=name, feature="lactate")["absent"] == 9
    assert sum(sample("riskstream_hourly_rows_total", reference=name, feature="risk").values()) == 9


async def test_a_rebuild_counts_nothing(engine: Engine) -> None:
    reference = other(engine, data="rebuilt")
    path = LocalPath(engine)
    watch = DriftWatch(path.model, reference)
    path.served.watch = watch
    records = beats(patients=2, hours=4)
    path.partition = Partition(PLACE, 0, len(records))
    await path.process(records)
    watch.count()
    assert set(sample("riskstream_hourly_rows_total", reference=watching.label(reference)).values()) == {0}


def models(folder: Path, **changes: Any) -> Path:
    """A repository with `vitals` and a changed reference."""
    shutil.copytree(repository.SHIPPED / "vitals", folder / "vitals", dirs_exist_ok=True)
    file = folder / "vitals" / repository.REFERENCE
    file.write_bytes(msgspec.json.encode(json.loads(file.read_bytes()) | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "why"), [(None, "cannot read"), ({"digest": "0" * 64}, "it is of the model 000000000000")]
)
def test_a_worker_without_a_fitting_reference_says_so_and_goes_on(
    tmp_path: Path, engine: Engine, changes: dict[str, Any] | None, why: str
) -> None:
    models(tmp_path, **(changes or {}))
    if changes is None:
        (tmp_path / "vitals" / repository.REFERENCE).unlink()
    with capture_logs() as logs:
        assert watching.watch(tmp_path, engine.config) is None
    assert logs[0]["event"] == "drift is not watched"
    assert why in logs[0]["why"]
    assert "riskstream model reference vitals" in logs[0]["why"]


# The command


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["drift", *arguments])


def test_too_few_patients_to_tell(tmp_path: Path) -> None:
    report = tmp_path / "made" / "drift.json"
    result = run(
        "--data", "simulate", "--patients", "3", "--report", str(report), "--fail-above", "0.25", "--json"
    )
    assert result.exit_code == 2, result.output
    assert "42 of 42 cannot be judged: too few patients" in result.stderr
    content = json.loads(report.read_bytes())
    assert content == json.loads(result.stdout)
    assert (content["patients"], content["reference"]["stays"]) == (3, 3997)
    assert {shift["band"] for shift in content["shifts"]} == {"too few"}
    assert {shift["psi"] for shift in content["shifts"]} == {None}
    assert [shift["feature"] for shift in content["shifts"]] == [*NAMES, "risk"]
    assert content["patient_hours"] <= 3 * 50


def test_a_narrow_terminal_cuts_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = run("--data", "simulate", "--patients", "1")
    assert result.exit_code == 0, result.output
    assert "…" not in result.stdout


def test_what_drifted_is_named_and_fails(tmp_path: Path) -> None:
    shipped = json.loads((repository.SHIPPED / "vitals" / repository.REFERENCE).read_bytes())
    sure = shipped["features"]["respiratory_rate"] | {"noise": 0.0}
    folder = models(tmp_path, features=shipped["features"] | {"respiratory_rate": sure})
    page = tmp_path / "drift.html"
    arguments = ("--data", "simulate", "--patients", "2", "--repository", str(folder))
    result = run(*arguments, "--fail-above", "0.25", "--html", str(page))
    assert result.exit_code == 1
    assert "drifted by more than 0.25: respiratory_rate\n" in result.output
    text = page.read_text()
    assert "Another population than the reference, in respiratory rate." in text
    assert text.count("<figure>") == 9
    assert run(*arguments, "--fail-above", "100").exit_code == 0


def test_outcomes_are_set_beside_the_risks(tmp_path: Path) -> None:
    known = tmp_path / "outcomes.csv"
    sent = tmp_path / "records.jsonl"
    made = list(recording.read("simulate", recording.Choice(6, hours=6)).open())
    sent.write_bytes(b"".join(msgspec.json.encode(one) + b"\n" for one in made))
    names = sorted({one.patient for one in made})
    known.write_text(
        "patient,outcome\n" + "".join(f"{name},{i % 2}\n" for i, name in enumerate([*names[:4], "else"]))
    )
    result = run("--data", str(sent), "--outcomes", str(known), "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["outcomes"]
    assert (found["patients"], found["positives"]) == (4, 2)
    assert (found["without_outcome"], found["without_score"]) == (2, 1)
    assert found["figures"]["intervals"].keys() >= {"auroc", "ece", "calibration_in_the_large"}
    assert not any(name in result.stdout for name in names)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "nowhere"], "cannot read nowhere"),
        (["--data", "simulate", "--model", "nothing"], "no model 'nothing'"),
        (["--data", "simulate", "--outcomes", "nowhere.csv"], "cannot read nowhere.csv"),
        (["--data", "simulate", "--model", "pneumonia"], "reads images"),
        (["--data", "simulate", "--report", "/dev/null/x"], "/dev/null"),
    ],
)
def test_bad_input_is_told_in_a_line(arguments: list[str], words: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 1
    assert words in result.output
    assert "Traceback" not in result.output


# The reference


def stays(folder: Path, number: int) -> Path:
    """Stays in the Challenge's format, an hour of each without anything."""
    folder.mkdir()
    for stay in range(number):
        lines = ["Time,Parameter,Value", f"00:00,RecordID,{stay}", f"00:00,Age,{40 + stay}"]
        lines += [f"{hour:02d}:10,HR,{70 + stay + hour}" for hour in range(5) if hour != 2]
        (folder / f"{stay}.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_a_reference_is_made_of_ones_own_data_and_then_found_stable(tmp_path: Path, engine: Engine) -> None:
    data, folder = f"physionet2012:{stays(tmp_path / 'stays', 30)}", models(tmp_path / "models")
    command = ["model", "reference", "vitals", "--data", data, "--repository", str(folder)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "120 patient-hours of 30 stays" in result.output
    made = drift_reference.read(folder, engine.config)
    assert (made.stays, made.hours, made.risks) == (30, 120, "served")
    assert made.features["age"].absent == 0
    assert made.features["lactate"].hours == (0, 120)
    found = json.loads(run("--data", data, "--repository", str(folder), "--json").stdout)
    assert found["patient_hours"] == pytest.approx(120, abs=2 * 30)  # stays begin at any minute of an hour
    assert all(shift["absent"] == pytest.approx(shift["reference_absent"]) for shift in found["shifts"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["vitals", "--data", "simulate"], "physionet2012:"),
        (["nothing", "--data", "physionet2012:."], "no model 'nothing'"),
        (["pneumonia", "--data", "physionet2012:{stays}"], "reads images"),
        (["vitals", "--data", "physionet2012:{tmp}/nowhere"], "nowhere"),
    ],
)
def test_a_reference_that_cannot_be_made_says_why(tmp_path: Path, arguments: list[str], words: str) -> None:
    folder = models(tmp_path / "models")
    shutil.copytree(repository.SHIPPED / "pneumonia", folder / "pneumonia")
    before = (folder / "vitals" / repository.REFERENCE).read_bytes()
    made = [part.format(stays=stays(tmp_path / "stays", 1), tmp=tmp_path) for part in arguments[2:]]
    command = ["model", "reference", *arguments[:2], *made, "--repository", str(folder)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert words in result.output
    assert "Traceback" not in result.output
    assert (folder / "vitals" / repository.REFERENCE).read_bytes() == before
    assert not (folder / "pneumonia" / repository.REFERENCE).exists()
