"""The benchmarks' reports: shape, and arithmetic on given figures. Timings themselves are never judged."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from worker import config, recording
from worker.bench import explain, pipeline, transport
from worker.bench.peers import PEERS, Meter
from worker.bench.transport import Figures
from worker.cli import app
from worker.recording import Choice

CIRCUMSTANCES = {"machine", "versions", "commit", "command"}


def rounds(*cpu: float) -> list[Figures]:
    return [Figures(cpu_us, 2 * cpu_us, 900) for cpu_us in cpu]


def test_ratios_are_of_medians_over_rounds() -> None:
    measured = {
        "riskstream": rounds(4.0, 90.0, 5.0),
        "aiokafka": rounds(2.0, 2.5, 80.0),
        "faust_records": rounds(60.0, 70.0, 1.0),
    }
    content = transport.summary(measured)
    assert content["cpu_us_per_event"] == {"riskstream": 5.0, "aiokafka": 2.5, "faust_records": 60.0}
    assert content["wall_us_per_event"]["riskstream"] == 10.0
    assert content["ratios"] == {
        "aiokafka_over_riskstream": 0.5,
        "faust_records_over_riskstream": 12.0,
        "riskstream_over_aiokafka": 2.0,
    }
    assert all(target["met"] for target in content["targets"].values())


@pytest.mark.parametrize(
    ("riskstream", "faust_records", "met"),
    [
        (2.5, 30.0, (True, True)),
        (2.6, 40.0, (False, True)),
        (2.5, 29.0, (True, False)),
    ],
)
def test_targets_are_judged_at_their_bounds(
    riskstream: float, faust_records: float, met: tuple[bool, bool]
) -> None:
    measured = {"riskstream": riskstream, "aiokafka": 1.0, "faust_records": faust_records}
    targets = transport.summary({peer: rounds(cpu) for peer, cpu in measured.items()})["targets"]
    judged = (targets["riskstream_over_aiokafka"], targets["faust_records_over_riskstream"])
    assert tuple(target["met"] for target in judged) == met


async def test_the_meter_leaves_the_warm_up_out() -> None:
    meter = Meter(1000)
    for _ in range(10):
        assert not meter.done.is_set()
        meter.add(100)
    assert meter.done.is_set()
    assert meter.figures()["events"] == 800  # what crosses a tenth still belongs to the warm-up


def test_stages_are_medians_and_the_total_is_their_sum() -> None:
    seconds = {
        "path": 0.0105,
        "apply": 0.005,
        "decode": 0.001,
        "normalise": 0.002,
        "state": 0.0,
        "news2": 0.0005,
        "infer": 0.002,
        "decide": 0.0006,
        "explain": 0.0001,
        "write": 0.0003,
        "publish": 0.0,
        "checkpoint": 0.005,
    }
    content = pipeline.summary([seconds, {stage: 10 * s for stage, s in seconds.items()}, seconds], 1000)
    assert content == {
        "decode": 1.0,
        "normalise": 2.0,
        "state": 3.0,
        "news2": 0.5,
        "infer": 2.0,
        "decide": 0.6,
        "explain": 0.1,
        "write": 0.3,
        "publish": 1.0,
        "checkpoint": 5.0,
        "total": 15.5,
    }


def test_transport_reports_every_peer() -> None:
    chosen = ("riskstream", "aiokafka", "faust_records")
    content = transport.run(transport.LEAST_EVENTS, 1, peers=chosen)
    assert content.keys() >= CIRCUMSTANCES
    assert content["events"] == transport.LEAST_EVENTS
    assert content["observations_per_event"] == 6
    measured = content["cpu_us_per_event"]
    assert tuple(measured) == chosen
    assert all(cpu > 0 for cpu in measured.values())
    assert content["cpu_us_per_event_by_round"] == {peer: [cpu] for peer, cpu in measured.items()}


def test_every_peer_has_its_process() -> None:
    assert transport.PEERS.keys() == PEERS.keys()


def test_pipeline_reports_every_stage(tmp_path: Path) -> None:
    content = reported(
        "pipeline", "--patients", "5", "--events", "300", "--rounds", "1", file=tmp_path / "r.json"
    )
    assert content.keys() >= CIRCUMSTANCES
    assert content["records"] == 300
    assert content["patients"] == 5
    assert list(content["cpu_us_per_event"]) == [*pipeline.STAGES, "total"]
    stored = content["bytes_per_patient"]
    assert stored["memory"] > 0
    assert 0 < stored["redis_hot"]["median"] <= stored["redis_hot"]["p99"] <= stored["redis_hot"]["max"]


def test_a_broker_that_is_not_there_is_one_line() -> None:
    result = CliRunner().invoke(app, ["bench", "transport", "--events", "3000", "--broker", "127.0.0.1:1"])
    assert result.exit_code == 1
    assert "error: cannot write to the broker" in result.output


def reported(*arguments: str, file: Path) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["bench", *arguments, "--report", str(file)])
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def test_explanations_are_those_of_the_slow_reference() -> None:
    chosen = recording.read("simulate", Choice(6, hours=30, mix={"sepsis": 1}))
    content = explain.run("simulate", chosen, 3, config.load())
    assert content.keys() >= CIRCUMSTANCES
    assert content["compared"] == 3
    ways = content["ways"]
    assert list(ways) == ["served", "reference", "newest row", "shapley"]
    assert all(figures["cpu_ms_per_alert"] > 0 for figures in ways.values())
    assert ways["reference"]["top_3"] == 3
    assert ways["reference"]["largest_difference"] <= 1e-6
    assert ways["shapley"]["same_sign"] > 0.8


def test_agreement_counts_inputs_that_both_ways_find() -> None:
    served = np.array([[0.3, -0.2, 0.1, 0.01, np.nan]], dtype=np.float32)
    other = np.array([[0.3, 0.2, 0.02, 0.05, np.nan]], dtype=np.float32)
    assert explain.agreement(served, served) == {
        "top_3": 3,
        "rank": 1,
        "same_sign": 1,
        "largest_difference": 0,
    }
    found = explain.agreement(served, other)
    assert (found["top_3"], found["same_sign"]) == (2, 0.667)
    assert found["largest_difference"] == pytest.approx(0.4)
