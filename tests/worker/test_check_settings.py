"""Odd combinations of settings are named, with what to do."""

import sys
from pathlib import Path
from typing import Any

import pytest

from worker import config
from worker.check_settings import check_disk, check_settings


def test_the_defaults_fit_together() -> None:
    (finding,) = check_settings(config.load())

    assert finding.severity == "ok"
    assert "40 s" in finding.detail


@pytest.mark.parametrize(
    ("settings", "named", "advised"),
    [
        ({"rebalance_timeout_s": 60}, "a stop may take 55 s", "supervisor wait longer"),
        ({"rebalance_timeout_s": 5}, "rebalance_timeout_s 5 is below session_timeout_s 10", "longer"),
        ({"redis_timeout_s": 15}, "redis_timeout_s 15 is not below half of rebalance_timeout_s 30", "lower"),
        ({"max_poll_interval_s": 20}, "infer_timeout_s 20 is not below max_poll_interval_s 20", "lower"),
        ({"engine_patience_s": 20}, "engine_patience_s 20 is not below infer_timeout_s 20", "lower"),
        ({"stall_after_s": 30}, "stall_after_s 30 is not above infer_timeout_s", "raise"),
        ({"kafka_username": "u"}, "PLAINTEXT sends none", "SASL_SSL"),
        ({"broker": "kafka.example:9092"}, "PLAINTEXT to another machine", "SASL_SSL"),
        ({"redis_ca_file": __file__}, "redis:// uses none", "rediss://"),
        ({"redis": "redis://:secret@redis.example:6379/0"}, "redis:// to another machine", "rediss://"),
        ({"imaging_hosts": "http://pacs.example"}, "http:// to another machine", "https://"),
        ({"imaging_silence_timeout_s": 60}, "60 is not below imaging_fetch_timeout_s 60", "lower"),
        ({"board_host": "0.0.0.0"}, "there is no board_token", "refuses to start"),
        ({"board_host": "ward.example", "board_token": "t" * 16}, "has no certificate", "proxy with TLS"),
    ],
)
def test_an_odd_combination_is_named(settings: dict[str, Any], named: str, advised: str) -> None:
    (finding,) = check_settings(config.load(**settings))

    assert (finding.severity, finding.well) == ("warning", True)
    assert named in finding.detail
    assert advised in finding.advice


@pytest.mark.parametrize("broker", ["localhost:9092", "127.0.0.1:1,127.0.0.2:2", "[::1]:9092"])
def test_a_broker_on_this_machine_needs_no_tls(broker: str) -> None:
    assert [finding.severity for finding in check_settings(config.load(broker=broker))] == ["ok"]


def test_traces_without_the_extra_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config.load(traces="otlp")
    assert [finding.severity for finding in check_settings(settings)] == ["ok"]
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)

    (finding,) = check_settings(settings)

    assert (finding.subject, finding.severity) == ("settings: traces", "failed")
    assert "riskstream[tracing]" in finding.advice


def test_a_disk_that_cannot_be_written_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert check_disk().severity == "ok"
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))

    finding = check_disk()

    assert finding.severity == "failed"
    assert "tmpfs" in finding.advice


def test_buckets_without_the_extra_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    (finding,) = check_settings(config.load(imaging_buckets="s3://scans"))
    assert finding.severity == "failed"
    assert "riskstream[objects]" in finding.advice


def test_buckets_with_the_extra_fit() -> None:
    pytest.importorskip("s3fs")
    assert [f.severity for f in check_settings(config.load(imaging_buckets="s3://scans"))] == ["ok"]
