"""`check` finds what is missing and says what to do."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from aiohttp import web

from engines import acceptance, repository
from engines.errors import KindError
from schemas import news2_policy
from tests.kinds import model_of
from worker import config, embedded
from worker.app import Worker
from worker.check import check
from worker.cluster import Cluster, complaints, create_topics, describe
from worker.config import Role, Settings
from worker.finding import Finding
from worker.http import Health, serve


async def findings(settings: Settings) -> dict[str, tuple[bool, str]]:
    return {f.subject: (f.well, f.detail) for f in await check(settings, 10.0)}


async def test_all_is_well(redis_server: embedded.Server) -> None:
    with embedded.tansu() as broker:
        settings = config.load(
            broker=broker.address, redis=f"redis://{redis_server.address}", http_port=embedded.free_port()
        )
        await describe(settings.model_copy(update={"partitions": 3}), create=True)
        found = await findings(settings)

    assert all(well for well, _ in found.values()), found
    assert "golden data agree" in found["model"][1]
    assert "partitions" in found["kafka"][1]


@pytest.mark.parametrize(
    ("create", "advice"),
    [
        (False, "topic vitals does not exist; create it, or set RISKSTREAM_CREATE_TOPICS=true"),
        (True, "topic vitals does not exist; the brokers do not show yet what was created"),
    ],
)
def test_topics_that_are_missing_are_named_with_what_makes_them(create: bool, advice: str) -> None:
    settings = config.load(create_topics=create)

    found = complaints(settings, Cluster("c", {"vitals": 0, "risk-alerts": 0, "dead-letters": 0}, ""))

    assert found[0] == advice


@pytest.mark.parametrize(
    ("fields", "severity", "told"),
    [
        ({"imaging_model": ""}, "ok", "raise no alerts, as imaging_model says"),
        ({}, "warning", "no model pneumonia in"),
        ({"imaging_model": "vitals"}, "failed", "vitals reads no images"),
        ({"imaging_model": "elsewhere"}, "failed", "no model 'elsewhere'"),
    ],
)
async def test_whose_findings_raise_alerts(
    tmp_path: Path, fields: dict[str, Any], severity: str, told: str
) -> None:
    shutil.copytree(repository.SHIPPED / "vitals", tmp_path / "vitals")
    settings = config.load(
        broker=f"127.0.0.1:{embedded.free_port()}", model_repository=tmp_path, redis_timeout_s=0.5, **fields
    )
    found = [one for one in await check(settings, 10.0) if one.subject.startswith("model")]
    subject = "model" if severity == "failed" else "model: findings"
    (one,) = [one for one in found if one.subject == subject]
    assert (one.severity, told in one.detail) == (severity, True)


async def test_what_a_worker_would_create_is_no_fault_and_is_not_created(
    redis_server: embedded.Server,
) -> None:
    with embedded.tansu() as broker:
        settings = config.load(
            broker=broker.address,
            redis=f"redis://{redis_server.address}",
            http_port=0,
            create_topics=True,
            partitions=5,
            imaging_decoders=1,
        )
        found = {finding.subject: finding for finding in await check(settings, 60.0, Role.ALL)}
        assert not any((await describe(settings, create=False)).partitions.values())
        await create_topics(settings, [settings.topic_vitals], 3)
        unequal = (await findings(settings))["kafka"]

    assert found["kafka"].severity == found["imaging: kafka"].severity == "ok", found
    made = found["kafka: topics"].detail
    assert "vitals (5 partitions)" in made
    assert "policies (1 partition)" in made
    assert "imaging (5 partitions)" in found["imaging: kafka: topics"].detail
    assert unequal == (
        False,
        "topic risk-alerts has 5 partitions, vitals has 3; they must be equal, because a rebuild reads the "
        "alerts of a partition from the same partition",
    )


def test_the_report_is_all_that_is_printed() -> None:
    nobody = f"127.0.0.1:{embedded.free_port()}"
    environment = os.environ | {"RISKSTREAM_BROKER": nobody, "RISKSTREAM_REDIS": f"redis://{nobody}"}
    done = subprocess.run(
        [sys.executable, "-m", "worker.cli", "check", "--json", "--role", "all"],
        env=environment,
        capture_output=True,
        check=False,
    )

    found = {finding["subject"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert done.stderr == b""
    for subject in ("kafka", "imaging: kafka"):
        assert "KafkaConnectionError: " in found[subject]["detail"]
        assert "Connect call failed" in found[subject]["detail"]


async def test_what_is_away_is_named(tmp_path: Path) -> None:
    nobody = f"127.0.0.1:{embedded.free_port()}"
    settings = config.load(
        broker=nobody, redis=f"redis://:hunter2@{nobody}", model_repository=tmp_path, redis_timeout_s=0.5
    )

    found = await findings(settings)

    assert not any(found[subject][0] for subject in ("kafka", "redis", "model"))
    assert "Connect call failed" in found["kafka"][1]
    assert "RISKSTREAM_REDIS" in found["redis"][1]
    assert "no model 'vitals'" in found["model"][1]
    assert "hunter2" not in str(found)


async def test_a_policies_file_and_the_reference_are_looked_at(tmp_path: Path) -> None:
    nobody = f"127.0.0.1:{embedded.free_port()}"
    file = tmp_path / "policies.json"
    settings = config.load(broker=nobody, redis=f"redis://{nobody}", redis_timeout_s=0.5, policies=file)

    found = await findings(settings)
    assert not found["policies"][0]
    assert "cannot read" in found["policies"][1]
    assert "stays" in found["model: reference"][1]
    file.write_text("[]")
    assert (await findings(settings))["policies"] == (True, f"0 changes in {file}")


async def test_redis_that_evicts_is_refused() -> None:
    with embedded.redis() as server:
        client = redis.Redis(port=server.port)
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.close()
        found = await findings(
            config.load(redis=f"redis://{server.address}", broker=f"127.0.0.1:{embedded.free_port()}")
        )

    assert found["redis"] == (False, "maxmemory-policy is allkeys-lru; set it to noeviction")


async def test_horizon_too_short_for_the_policy(redis_server: embedded.Server) -> None:
    nobody = f"127.0.0.1:{embedded.free_port()}"
    settings = config.load(redis=f"redis://{redis_server.address}", broker=nobody, rebuild_horizon_h=100)

    well, detail = (await findings(settings))["model"]

    assert not well
    assert "rebuild_horizon_h is 100; the policies need 113" in detail


async def test_every_version_that_decides_on_findings_needs_the_horizon(tmp_path: Path) -> None:
    model, graph = model_of("image")
    folder = tmp_path / "small"
    shutil.copytree(repository.SHIPPED / "vitals", tmp_path / "vitals")
    longer = msgspec.structs.replace(model.policy, resolve_s=10 * 3600.0, expiry_s=48 * 3600.0)
    for version, policy in enumerate((model.policy, longer, model.policy), 1):
        (folder / str(version)).mkdir(parents=True)
        (folder / str(version) / "model.onnx").write_bytes(graph)
        config_of = msgspec.structs.replace(model, version=version, policy=policy)
        (folder / str(version) / "config.json").write_bytes(msgspec.json.encode(config_of))
    shutil.copy(folder / "1/config.json", folder / "config.json")
    nobody = f"127.0.0.1:{embedded.free_port()}"
    settings = config.load(
        broker=nobody, redis=f"redis://{nobody}", model_repository=tmp_path, imaging_model="small"
    )

    well, detail = (await findings(settings))["model"]
    assert (well, "for small version 2" in detail) == (False, True), detail

    (folder / "2/config.json").write_text("{}")
    found = await severities(settings)
    assert found["model"].severity == "ok"
    assert found["model: findings"].severity == "warning"
    assert "the config of version 2 cannot be used" in found["model: findings"].detail


async def test_a_broker_that_never_answers_is_told_with_what_may_be_the_cause() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    listening = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    nobody = f"127.0.0.1:{embedded.free_port()}"
    settings = config.load(broker=f"127.0.0.1:{port}", redis=f"redis://{nobody}", imaging_decoders=1)
    async with listening:
        found = {finding.subject: finding for finding in await check(settings, 3.0, Role.ALL)}
    for subject in ("kafka", "imaging: kafka"):
        assert "no answer within 3 s" in found[subject].detail
        assert "firewall" in found[subject].advice
        assert "RISKSTREAM_BROKER" in found[subject].advice


async def test_a_news2_policy_that_contradicts_itself_is_named(
    redis_server: embedded.Server, tmp_path: Path
) -> None:
    policy = tmp_path / "news2.json"
    policy.write_text(news2_policy.SHIPPED.read_text().replace('"exit": 4', '"exit": 6'))
    nobody = f"127.0.0.1:{embedded.free_port()}"
    settings = config.load(redis=f"redis://{redis_server.address}", broker=nobody, news2_policy=policy)

    well, detail = (await findings(settings))["model"]

    assert not well
    assert "news2.json: policy.exit must be below the first enter 5, came 6" in detail


async def test_a_model_that_reads_images_is_refused(redis_server: embedded.Server, tmp_path: Path) -> None:
    model, graph = model_of("image")
    (tmp_path / "config.json").write_bytes(msgspec.json.encode(model))
    acceptance.add(tmp_path, graph, tmp_path / "config.json")
    nobody = f"127.0.0.1:{embedded.free_port()}"
    settings = config.load(
        redis=f"redis://{redis_server.address}", broker=nobody, model="small", model_repository=tmp_path
    )

    assert (await findings(settings))["model"] == (
        False,
        "small reads images; a windowed-series or features model is needed here",
    )
    with pytest.raises(KindError, match="small reads images"):
        await Worker(settings.model_copy(update={"http_port": 0})).run()


async def severities(settings: Settings) -> dict[str, Finding]:
    return {finding.subject: finding for finding in await check(settings, 10.0)}


@pytest.mark.parametrize(
    ("is_ready", "severity", "told"), [(True, "ok", "is ready"), (False, "warning", "is not ready")]
)
async def test_a_worker_on_the_port_is_asked_whether_it_is_ready(
    is_ready: bool, severity: str, told: str
) -> None:
    runner, port = await serve("127.0.0.1", 0, Health(lambda: (True, ""), lambda: (is_ready, {})))
    nobody = f"127.0.0.1:{embedded.free_port()}"
    try:
        found = await severities(config.load(broker=nobody, redis=f"redis://{nobody}", http_port=port))
    finally:
        await runner.cleanup()

    assert found["http"].severity == severity
    assert told in found["http"].detail


async def test_a_port_that_another_program_has_fails() -> None:
    app = web.Application()
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    nobody = f"127.0.0.1:{embedded.free_port()}"
    try:
        port = runner.addresses[0][1]
        found = await severities(config.load(broker=nobody, redis=f"redis://{nobody}", http_port=port))
    finally:
        await runner.cleanup()

    assert found["http"].severity == "failed"
    assert "RISKSTREAM_HTTP_PORT" in found["http"].advice


def without_file(client: redis.Redis) -> None:
    client.config_set("appendonly", "no")


def nearly_full(client: redis.Redis) -> None:
    client.config_set("maxmemory", int(client.info("memory")["used_memory"]) + 100_000)


def without_limit(client: redis.Redis) -> None:
    client.config_set("maxmemory", 0)


@pytest.mark.parametrize(
    ("change", "subject", "advised"),
    [
        (without_file, "redis: persistence", "appendonly yes"),
        (nearly_full, "redis: memory", "raise maxmemory"),
        (without_limit, "redis: memory", "set it"),
    ],
)
async def test_a_redis_that_will_hurt_one_day_is_warned_of(
    change: Callable[[redis.Redis], None], subject: str, advised: str
) -> None:
    nobody = f"127.0.0.1:{embedded.free_port()}"
    with embedded.redis() as server:
        with redis.Redis(port=server.port) as client:
            change(client)
        found = await severities(config.load(redis=f"redis://{server.address}", broker=nobody, http_port=0))

    assert found[subject].severity == "warning"
    assert advised in found[subject].advice


async def test_a_redis_user_without_rights_fails_and_nothing_is_written() -> None:
    nobody = f"127.0.0.1:{embedded.free_port()}"
    with embedded.redis() as server, redis.Redis(port=server.port) as client:
        client.execute_command(
            "ACL", "SETUSER", "narrow", "on", ">word", "~riskstream:*", "+@connection", "+@read", "+info"
        )
        found = await severities(
            config.load(
                redis=f"redis://{server.address}",
                redis_username="narrow",
                redis_password="word",
                broker=nobody,
            )
        )
        assert client.dbsize() == 0

    assert found["redis: rights"].severity == "failed"
    assert "may not DEL, HDEL, SREM, EVALSHA" in found["redis: rights"].detail


async def test_a_model_slower_than_the_patience_is_warned_of() -> None:
    nobody = f"127.0.0.1:{embedded.free_port()}"

    found = await severities(
        config.load(redis=f"redis://{nobody}", broker=nobody, http_port=0, engine_patience_s=1e-6)
    )

    assert found["model: speed"].severity == "warning"
    assert "rows in" in found["model: speed"].detail


async def test_a_model_over_its_memory_budget_fails() -> None:
    nobody = f"127.0.0.1:{embedded.free_port()}"

    found = await severities(
        config.load(redis=f"redis://{nobody}", broker=nobody, http_port=0, model_memory_mb=1)
    )

    assert found["model"].severity == "failed"
    assert "its budget is 1 MiB: raise it (RISKSTREAM_MODEL_MEMORY_MB)" in found["model"].detail


def test_warnings_fail_only_when_strict(redis_server: embedded.Server) -> None:
    """Also the shape of the JSON, which machines read."""
    with embedded.tansu() as broker:
        environment = {
            "RISKSTREAM_BROKER": broker.address,
            "RISKSTREAM_REDIS": f"redis://{redis_server.address}",
            "RISKSTREAM_HTTP_PORT": "0",
            "RISKSTREAM_REBALANCE_TIMEOUT_S": "60",
            "PATH": "",
        }

        def run(*options: str) -> tuple[int, dict[str, object]]:
            command = [sys.executable, "-m", "worker.cli", "check", "--json", *options]
            done = subprocess.run(command, env=environment, capture_output=True, check=False)
            return done.returncode, json.loads(done.stdout)

        created = {**environment, "RISKSTREAM_CREATE_TOPICS": "true"}
        make = (
            "import asyncio; from worker import cluster, config; "
            "asyncio.run(cluster.describe(config.load(), create=True))"
        )
        subprocess.run([sys.executable, "-c", make], env=created, check=True, capture_output=True)
        status, shown = run()
        strict_status, strict = run("--strict")

    assert (status, shown["well"]) == (0, True)
    assert (strict_status, strict["well"]) == (1, False)
    assert shown.keys() == {"well", "settings", "findings"}
    findings = shown["findings"]
    assert isinstance(findings, list)
    assert all(f.keys() == {"subject", "well", "detail", "severity", "advice"} for f in findings)
    assert {"kafka", "redis", "model", "http", "disk"} <= {f["subject"] for f in findings}
    assert any(f["severity"] == "warning" and f["subject"] == "settings: times" for f in findings)


async def test_a_backend_that_cannot_run_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pycuda", "pycuda.driver"):
        monkeypatch.setitem(sys.modules, name, None)
    nobody = f"127.0.0.1:{embedded.free_port()}"
    found = await check(config.load(broker=nobody, backend="tensorrt-rtx", http_port=0), 20.0)
    by_subject = {finding.subject: finding for finding in found}
    assert by_subject["model"].well
    assert "onnxruntime-cpu" in by_subject["model"].detail
    told = by_subject["model: backend"]
    assert told.severity == "warning"
    assert "tensorrt-rtx cannot run here" in told.detail
    assert "RISKSTREAM_BACKEND=onnxruntime" in told.advice
