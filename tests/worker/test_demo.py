"""The demo shows alerts, accounts for every record, notices what is wrong, and leaves nothing running."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_args

import msgspec
import pytest
import redis as redis_client
from rich.console import Console

from schemas.messages import (
    Alert,
    BasisInput,
    DeadLetter,
    EarlyWarning,
    ModelReference,
    Rejection,
    Score,
    Source,
    Transition,
)
from schemas.news2 import Part
from worker import demo_view, embedded
from worker.demo import demo
from worker.demo_report import (
    Counters,
    Fate,
    PicturesReport,
    Records,
    Report,
    Tally,
    complaints,
    percentiles,
    read_counters,
)
from worker.demo_setup import DemoError, Options
from worker.demo_view import LiveView, PlainView, alert_line, summary
from worker.embedded import LOOPBACK
from worker.recording import Choice
from worker.send import Confirmed

ROOT = Path(embedded.__file__).resolve().parent.parent
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SEPSIS = Choice(patients=3, hours=30, mix={"sepsis": 1})


def source(offset: int, topic: str = "vitals") -> Source:
    return Source("cluster", topic, 0, offset)


def alert(number: int, transition: Transition = "raised", *inputs: BasisInput) -> Alert:
    return Alert(
        id=str(number),
        episode="cluster/vitals/0/1",
        sequence=number,
        transition=transition,
        patient="sim-1-0001",
        severity="high",
        time=NOON,
        raised_at=NOON,
        expires_at=NOON + timedelta(hours=12),
        risk=0.61,
        threshold=0.5,
        outcome="in-hospital death",
        policy_version="1",
        model=ModelReference("vitals", 1, "0" * 64),
        backend="onnxruntime-cpu",
        source=source(1),
        inputs=inputs,
    )


def letter(offset: int, reason: str, accepted: int) -> DeadLetter:
    return DeadLetter(
        str(offset), reason, (Rejection(reason),), source(offset), NOON, 0, "", b"", accepted=accepted
    )


def running_demo(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "worker.cli", "demo", "--patients", "3", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def children(pid: int) -> list[int]:
    """Children of a process, on Linux."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.perf_counter() + seconds
    while not holds():
        assert time.perf_counter() < deadline
        time.sleep(0.05)


def test_servers_of_the_users_own_are_used_and_left_clean() -> None:
    with embedded.tansu() as broker, embedded.redis() as redis, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RISKSTREAM_KAFKA_IDEMPOTENCE", "false")
        options = Options(
            6,
            "simulate",
            SEPSIS,
            workers=2,
            broker=broker.address,
            redis=f"redis://{redis.address}/0",
        )
        report = demo(options, PlainView(Console(file=io.StringIO())))
        assert (report.complaints, report.lost) == ((), 0)
        with redis_client.Redis(port=redis.port) as client:
            assert client.dbsize() == 0
        assert (broker.running, redis.running) == (True, True)


@pytest.mark.skipif(sys.platform != "linux", reason="finds children in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_stops_all_that_it_started(number: signal.Signals) -> None:
    with running_demo("--seconds", "60") as process:
        until(lambda: len(children(process.pid)) == 3)
        started = children(process.pid)
        process.send_signal(number)
        process.communicate(timeout=30)
    assert process.returncode == 130
    until(
        lambda: not any(Path(f"/proc/{pid}").exists() for pid in started), 10
    )  # reaped by init, in its time


@pytest.mark.skipif(sys.platform != "linux", reason="finds children in /proc")
def test_a_dead_worker_fails_the_demo_and_shows_its_last_lines() -> None:
    with running_demo("--seconds", "60") as process:

        def worker() -> list[int]:
            names = {
                pid: Path(f"/proc/{pid}/cmdline").read_text().split("\0") for pid in children(process.pid)
            }
            return [pid for pid, name in names.items() if "run" in name]

        until(lambda: bool(worker()))
        os.kill(worker()[0], signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "a worker ended with status -9; its last lines:" in errors
    assert "Traceback" not in errors


def test_the_demo_serves_the_ward_page_while_it_runs() -> None:
    port = embedded.free_port()
    url = f"http://{LOOPBACK}:{port}/"

    def patients() -> int:
        try:
            with urllib.request.urlopen(f"{url}api/ward", timeout=5) as answer:
                return len(json.loads(answer.read())["rows"])
        except OSError:
            return 0

    with running_demo("--seconds", "60", "--board-port", str(port)) as process:
        until(lambda: patients() > 0)
        process.send_signal(signal.SIGINT)
        shown, _ = process.communicate(timeout=30)
    assert (process.returncode, patients()) == (130, 0)
    assert shown.startswith(f"ward page: {url} while the demo runs")


def test_a_port_of_the_ward_page_that_is_taken_is_a_clear_error() -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = str(taken.getsockname()[1])
        with running_demo("--board-port", port) as process:
            _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"cannot listen on {LOOPBACK}:{port}" in told
    assert "Traceback" not in told


def test_no_broker_is_a_clear_error() -> None:
    options = Options(5, "simulate", SEPSIS, broker=f"{LOOPBACK}:{embedded.free_port()}")
    with pytest.raises(DemoError, match=r"the broker at .* fails: KafkaConnectionError"):
        demo(options, PlainView(Console(file=io.StringIO())))


@pytest.mark.parametrize("name", ["none/r.json", "."])
def test_a_report_that_cannot_be_written_is_told_before_anything_starts(tmp_path: Path, name: str) -> None:
    with running_demo("--report", str(tmp_path / name)) as process:
        shown, told = process.communicate(timeout=60)
    assert (process.returncode, shown) == (1, "")
    assert told.startswith("riskstream demo: --report: cannot write")
    assert told.count("\n") == 1


def test_the_command_shows_alerts_accounts_for_every_record_and_writes_its_report(tmp_path: Path) -> None:
    chosen = ("--seconds", "6", "--hours", "30", "--pathways", "sepsis=1")
    with running_demo(*chosen, "--json", "--report", str(tmp_path / "r.json")) as process:
        shown, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    report = json.loads(shown)
    assert report == json.loads((tmp_path / "r.json").read_bytes())
    records = report["records"]
    pictures = report["pictures"]
    assert pictures["sent"] == pictures["findings"] == records["stored"] > 0
    assert records["in"] - records["stored"] == records["scored"] == report["scores"] > 300
    assert [records[fate] for fate in ("duplicate", "dead_lettered")] == [0, 0]
    assert (report["lost"], report["complaints"]) == (0, [])
    assert report["alerts"]["raised"] >= 1
    assert set(report["alerts"]) == {"raised", "escalated", "updated", "resolved", "expired"}
    assert 0 < report["latency_ms"]["p50"] <= report["latency_ms"]["p95"] <= report["latency_ms"]["p99"]
    assert (report["model"], report["backend"]) == ("vitals/1", "onnxruntime-cpu")
    assert report["events_per_second"] > 0
    assert report["cpu_us_per_event"] > 0
    assert "  raised     sim-1-000" in told
    assert "alerts     " in told


METRICS = """# TYPE riskstream_records counter
riskstream_records_total{topic="vitals",fate="scored"} 7.0
riskstream_records_total{topic="vitals",fate="dead_lettered"} 1.0
riskstream_records_total{topic="imaging",fate="scored"} 5.0
# TYPE process_cpu_seconds counter
process_cpu_seconds_total 1.5
"""


def test_counters_are_summed_over_workers_and_read_for_one_topic() -> None:
    counters = read_counters([METRICS, METRICS], "vitals")
    assert counters == Counters({"scored": 14, "stored": 0, "duplicate": 0, "dead_lettered": 2}, 3.0)
    assert counters.total == 16


def tallied() -> Tally:
    """Three records in the log: one scored, one refused, one stored in part."""
    tally = Tally()
    for offset in range(3):
        tally.confirmed(Confirmed(0, offset, time.perf_counter()))
    tally.score(Score("p", NOON, 0.1, "vitals", 1, source(0)))
    tally.dead_letter(letter(1, "unknown-code", 0))
    tally.dead_letter(letter(2, "unknown-code", 1))
    return tally


RIGHT = Counters({"scored": 1, "stored": 1, "duplicate": 0, "dead_lettered": 1}, 0.0)


def test_a_tally_that_adds_up_has_no_complaint() -> None:
    tally = tallied()
    assert tally.log_length() == 3
    assert complaints(3, 0, 3, RIGHT, tally) == ()


@pytest.mark.parametrize(
    ("confirmed", "fates", "complaint"),
    [
        (4, RIGHT.fates, "4 records were confirmed and 0 findings came, the log holds 3"),
        (3, {**RIGHT.fates, "stored": 0}, "3 records are in the log, 2 have a fate"),
        (3, {**RIGHT.fates, "scored": 2, "stored": 0}, "2 records were scored, 1 scores came"),
        (3, {**RIGHT.fates, "stored": 0, "dead_lettered": 2}, "2 records were refused, 1 dead letters came"),
    ],
)
def test_what_does_not_add_up_is_said(confirmed: int, fates: dict[Fate, int], complaint: str) -> None:
    assert complaints(confirmed, 0, 3, Counters(fates, 0.0), tallied()) == (complaint,)


def test_pictures_add_up_too() -> None:
    tally = Tally("pneumonia", "imaging")
    letter_of_picture = msgspec.structs.replace(letter(0, "burned-in", 0), source=source(0, "imaging"))
    tally.dead_letter(letter_of_picture)
    assert tally.refused == set()
    none = Counters(dict.fromkeys(get_args(Fate), 0), 0.0)
    assert complaints(0, 1, 0, none, tally) == ()
    assert complaints(0, 2, 0, none, tally) == ("2 pictures were sent, 0 findings and 1 dead letters came",)


def test_messages_that_come_twice_count_once() -> None:
    tally = tallied()
    tally.score(Score("p", NOON, 0.1, "vitals", 1, source(0)))
    tally.dead_letter(letter(1, "unknown-code", 0))
    assert (len(tally.scored), len(tally.refused)) == (1, 1)
    assert [tally.alert(alert(1)), tally.alert(alert(1))] == [True, False]
    assert tally.alerts["raised"] == 1


def test_a_record_that_the_engine_failed_on_is_refused_though_accepted() -> None:
    tally = Tally()
    tally.dead_letter(letter(5, "inference-failed", 3))
    assert tally.refused == {(0, 5)}


def test_latency_runs_from_the_producer_to_the_score() -> None:
    tally = tallied()
    (latency,) = tally.latencies_ms()
    assert 0 <= latency < 1000
    assert percentiles([latency])["p99"] == round(latency, 2)
    assert percentiles([]) == {"p50": None, "p95": None, "p99": None}


def test_plain_lines_are_thinned_out() -> None:
    file = io.StringIO()
    view = PlainView(Console(file=file, width=80))
    for number in range(1, 101):
        view.alert(alert(number))
    lines = file.getvalue().splitlines()
    assert len(lines) == demo_view.PLAIN_ALERTS + 1 + 3
    assert lines[0] == ("2026-01-01 12:00  raised     sim-1-0001    high      risk 0.61 (threshold 0.5)  ")


def test_an_alert_line_shows_news2() -> None:
    parts = (Part("heart_rate", 3, 3), Part("temperature", 0, 3, missing=True), Part("consciousness", 0, 0))
    warning = EarlyWarning(low=3, high=6, complete=False, response="low-medium", scale=1, parts=parts)
    beside = msgspec.structs.replace(alert(1), news2=warning)
    assert alert_line(beside).endswith("risk 0.61 (threshold 0.5)  NEWS2 3-6    ")
    own = msgspec.structs.replace(beside, risk=None, points=5.0, threshold=5)
    assert alert_line(own).endswith("high      NEWS2 3-6 (3 in one parameter)  heart_rate 3")
    whole = msgspec.structs.replace(warning, low=5, high=5, complete=True)
    assert "NEWS2 5 (threshold 5)" in alert_line(msgspec.structs.replace(own, news2=whole))


def test_an_alert_line_shows_the_inputs_that_change_the_risk_most() -> None:
    def explained(feature: str, value: float, unit: str, contribution: float | None) -> BasisInput:
        return BasisInput(feature, "", value, unit, NOON, 60.0, contribution)

    inputs = (
        explained("heart_rate", 88, "/min", 0.004),
        explained("lactate", 9.04, "mmol/L", 0.1234),
        explained("potassium", 4.1, "mmol/L", None),
        explained("gcs", 15, "1", -0.05),
        explained("urine_output", 0.0, "mL", 0.021),
        explained("age", 70, "a", 0.0),
    )
    assert alert_line(alert(1, "raised", *inputs)).endswith(
        "risk 0.61 (threshold 0.5)  lactate 9.04 mmol/L (+0.12), gcs 15 (-0.05), urine_output 0 mL (+0.02)"
    )


def test_the_live_view_orders_patients_by_risk_and_marks_open_alerts() -> None:
    console = Console(file=io.StringIO(), width=140, force_terminal=True, height=40)
    with LiveView(console) as view:
        view.stage("model vitals")
        view.progress(1, 4)
        view.score(Score("calm", NOON, 0.05, "vitals", 1, source(0)))
        view.score(Score("ill", NOON, 0.9, "vitals", 1, source(1)))
        view.alert(alert(1))
        view.alert(alert(2, "resolved"))
        with console.capture() as capture:
            console.print(view.__rich__())
    drawn = capture.get()
    assert drawn.index("ill") < drawn.index("calm")
    assert "1 of 4 records sent" in drawn
    assert "resolved" in drawn


def test_the_summary_says_what_is_wrong() -> None:
    report = Report(
        records=Records(10, 8),
        scores=8,
        alerts={"raised": 1},
        news2_alerts={"raised": 2},
        latency_ms=percentiles([]),
        events_per_second=1.0,
        cpu_us_per_event=None,
        backend="onnxruntime-cpu",
        model="vitals/1",
        lost=2,
        seconds=1.0,
        patients=1,
        source="simulate",
        seed=1,
        workers=1,
        speed=None,
        pictures=PicturesReport(3, 2, 1, {"raised": 2}),
        complaints=("10 records are in the log, 8 have a fate",),
    )
    assert "2 lost" in summary(report)
    assert "pictures   3 sent: 2 findings, 1 dead-lettered" in summary(report)
    assert "WRONG      10 records are in the log, 8 have a fate" in summary(report)
