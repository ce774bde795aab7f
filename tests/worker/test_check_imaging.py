"""`check --role imaging` finds what the imaging role lacks, and asks nothing of what vitals need."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from worker import config, embedded
from worker.check import check
from worker.check_topics import check_topics
from worker.cli import app
from worker.cluster import ImagingCluster, create_topics, describe_imaging, imaging_complaints
from worker.cluster_facts import ClusterFacts
from worker.config import Role, Settings
from worker.finding import Finding
from worker.topic_facts import READ, WRITE, Facts, TopicFacts

THREE_BROKERS = ClusterFacts(3, None)


async def findings(settings: Settings) -> dict[str, Finding]:
    return {finding.subject: finding for finding in await check(settings, 60.0, Role.IMAGING)}


async def test_all_is_well(redis_server: embedded.Server) -> None:
    with embedded.tansu() as broker:
        settings = config.load(
            broker=broker.address,
            redis=f"redis://{redis_server.address}",
            http_port=embedded.free_port(),
            imaging_decoders=1,
        )
        await describe_imaging(settings.model_copy(update={"partitions": 3}), create=True)
        found = await findings(settings)
    assert all(finding.well for finding in found.values()), found
    assert "pneumonia version 1 on onnxruntime-cpu" in found["imaging: model"].detail
    assert "3 partitions" in found["imaging: kafka"].detail
    assert "DICOM" in found["imaging: decoders"].detail
    assert found["imaging: sources"].detail == "inline pictures alone"
    assert not {"kafka", "model"} & found.keys()


async def test_what_is_wrong_with_topics_hides_nothing_of_the_others(redis_server: embedded.Server) -> None:
    with embedded.tansu() as broker:
        settings = config.load(
            broker=broker.address, redis=f"redis://{redis_server.address}", http_port=0, imaging_decoders=1
        )
        await create_topics(settings, [settings.topic_findings], 3)
        found = await findings(settings)
    assert "topic imaging does not exist" in found["imaging: kafka"].detail
    assert any(subject.startswith(f"topic {settings.topic_findings}") for subject in found), found


@pytest.mark.parametrize(
    ("settings", "detail"),
    [
        (
            {"imaging_model": "vitals"},
            "vitals is of kind windowed-series; the imaging role needs one of kind",
        ),
        ({"imaging_model": ""}, "imaging_model is empty"),
        ({"imaging_model": "none"}, "no model 'none'"),
    ],
)
async def test_a_model_that_reads_no_pictures_is_named(settings: dict[str, Any], detail: str) -> None:
    away = config.load(broker=f"127.0.0.1:{embedded.free_port()}", **settings)
    found = (await findings(away))["imaging: model"]
    assert not found.well
    assert detail in found.detail


def test_a_backend_that_cannot_run_is_warned_of_and_the_output_stays_json(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("pycuda", "pycuda.driver"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setenv("RISKSTREAM_BROKER", f"127.0.0.1:{embedded.free_port()}")
    monkeypatch.setenv("RISKSTREAM_BACKEND", "tensorrt-rtx")
    result = CliRunner().invoke(app, ["check", "--role", "imaging", "--json"])
    found = {finding["subject"]: finding for finding in json.loads(result.stdout)["findings"]}
    assert "pneumonia version 1 on onnxruntime-cpu" in found["imaging: model"]["detail"]
    told = found["imaging: model: backend"]
    assert told["severity"] == "warning"
    assert "tensorrt-rtx cannot run here" in told["detail"]
    assert "RISKSTREAM_BACKEND=onnxruntime" in told["advice"]


async def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "scans"
    root.mkdir()
    nobody = f"127.0.0.1:{embedded.free_port()}"
    settings = config.load(broker=nobody, imaging_roots=str(root), imaging_decoders=1)
    root.rmdir()
    known = importlib.util.find_spec
    monkeypatch.setattr(
        "worker.check_imaging.importlib.util.find_spec",
        lambda name: None if name == "pydicom" else known(name),
    )
    found = await findings(settings)
    assert (found["imaging: decoders"].severity, "dicom" in found["imaging: decoders"].advice) == (
        "warning",
        True,
    )
    assert not found["imaging: sources"].well
    assert not found["imaging: kafka"].well


def test_topics_that_are_missing_are_named() -> None:
    counts = {"imaging": 0, "findings": 4, "dead-letters": 4}
    (found,) = imaging_complaints(config.load(), ImagingCluster("c", counts, ""))
    assert found == "topic imaging does not exist; create it, or set RISKSTREAM_CREATE_TOPICS=true"
    nowhere = config.load(topic_findings="")
    assert "topic_findings is empty" in imaging_complaints(nowhere, ImagingCluster("c", counts, ""))[0]


def topic(name: str, rights: int = READ | WRITE, **configs: str) -> TopicFacts:
    defaults = {"min.insync.replicas": "2"}
    return TopicFacts(name, 4, 3, defaults | {k.replace("_", "."): v for k, v in configs.items()}, rights)


@pytest.mark.parametrize(
    ("facts", "subject", "severity"),
    [
        (topic("imaging", rights=WRITE), "topic imaging: rights", "failed"),
        (topic("imaging", cleanup_policy="compact"), "topic imaging: cleanup", "failed"),
        (topic("imaging", max_message_bytes=str(64 << 20)), "topic imaging: size", "warning"),
        (topic("findings", rights=READ), "topic findings: rights", "failed"),
        (topic("findings", max_message_bytes="200000"), "topic findings: size", "failed"),
        (topic("dead-letters", max_message_bytes="200000"), "topic dead-letters: size", "failed"),
    ],
)
def test_a_topic_that_does_not_fit_is_named(facts: TopicFacts, subject: str, severity: str) -> None:
    found = check_topics(config.load(), Facts({facts.name: facts}, False, THREE_BROKERS), imaging=True)
    assert [(finding.subject, finding.severity) for finding in found] == [(subject, severity)]


def test_the_group_is_the_roles_own() -> None:
    (found,) = check_topics(config.load(), Facts({}, True, THREE_BROKERS), imaging=True)
    assert found.subject == "group riskstream-imaging"
