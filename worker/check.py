"""`riskstream check`: is everything there that a worker needs? Also the container's health check.

It asks and changes nothing. Its parts run side by side, each with the same deadline.
"""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import numpy as np

from engines import drift_reference, repository
from engines.engine import Engine
from engines.errors import EngineError
from engines.steps import require_series
from schemas.errors import PolicyError
from schemas.model_config import ModelConfig
from worker.check_engine import loaded
from worker.check_imaging import check_imaging
from worker.check_redis import check_redis
from worker.check_settings import check_disk, check_settings
from worker.check_topics import check_creation, check_topics, role_names, unreachable
from worker.cluster import complaints, describe, to_create
from worker.config import Role, Settings
from worker.errors import WorkerError
from worker.finding import Finding, failed, ok, warning
from worker.http import Occupant, occupant
from worker.logs import KafkaErrors
from worker.policies import Policies, needed_s, shipped
from worker.policy_source import PolicyFile
from worker.topic_facts import gather_facts

BUSY_SHARE = 0.5
"""Share of the engine's patience that one full batch may take: a machine is not idle when it matters."""

_SILENT = {
    True: "a firewall that drops packets, a port of another service, or a listener of another kind (TLS or "
    "plain): check RISKSTREAM_BROKER and RISKSTREAM_KAFKA_SECURITY_PROTOCOL, and what the broker advertises",
    False: "give it longer with --timeout; what hangs so for a worker too keeps it from being ready",
}
"""What to do where no answer came in time, of Kafka and of all else."""

_Versions = dict[int, ModelConfig | None]
"""The image model's versions, each of which decides on findings of its own; None where it cannot be read."""


async def check(settings: Settings, seconds: float, role: Role = Role.VITALS) -> list[Finding]:
    """Check settings, broker, topics, Redis, model, HTTP port and disk, each within `seconds`.

    Of what a worker of this role needs.
    """
    heard, checks = KafkaErrors(), dict[str, Coroutine[Any, Any, list[Finding]]]()
    if role is not Role.IMAGING:
        checks |= {"kafka": _kafka(settings, heard), "model": _model(settings)}
    if role is not Role.VITALS:
        checks |= check_imaging(settings, heard)
    checks |= {"redis": check_redis(settings), "http": _http(settings)}
    with heard:
        found = await asyncio.gather(
            *(_within(subject, running, seconds, heard) for subject, running in checks.items())
        )
    return [*check_settings(settings), *(finding for findings in found for finding in findings), check_disk()]


async def _within(
    subject: str, running: Coroutine[Any, Any, list[Finding]], seconds: float, heard: KafkaErrors
) -> list[Finding]:
    try:
        return await asyncio.wait_for(running, seconds)
    except TimeoutError:
        kafka, why = subject.endswith("kafka"), f": {heard.last}" if heard.last else ""
        return [failed(subject, f"no answer within {seconds:g} s{why if kafka else ''}", _SILENT[kafka])]


async def _kafka(settings: Settings, heard: KafkaErrors) -> list[Finding]:
    try:
        cluster = await describe(settings, create=False)
        new = to_create(settings, cluster)
        partitions = cluster.partitions | new
        found = complaints(settings, cluster._replace(partitions=partitions))
        facts = await gather_facts(settings, role_names(settings))
    except WorkerError as error:
        return [unreachable("kafka", error, heard)]
    first = (
        failed("kafka", "; ".join(found))
        if found
        else ok("kafka", f"cluster {cluster.id}, {partitions[settings.topic_vitals]} partitions")
    )
    made = check_creation(settings, new, facts.cluster, "kafka: topics")
    return [first, *made, *check_topics(settings, facts)]


async def _model(settings: Settings) -> list[Finding]:
    try:
        config = repository.read_config(settings.model_repository, settings.model, settings.shadow_version)
        require_series(config)
        policies = shipped(settings, config)
        versions = _image_versions(settings, policies.names.get("imaging"))
        engine, degraded = await asyncio.to_thread(loaded, settings, "model")
    except (EngineError, PolicyError) as error:
        return [failed("model", str(error))]
    try:
        took_s = await asyncio.to_thread(_full_batch_s, engine)
    finally:
        engine.close()
    others = [
        _speed(settings, took_s, config.dynamic_batching.max_batch_size),
        _reference(settings, config),
        _findings(settings, policies, versions),
        *_policies(settings, config),
        *degraded,
    ]
    short = _horizon(settings, policies, versions)
    if short:
        return [failed("model", short), *others]
    told = f"{config.name} version {config.version} on {engine.backend}, golden data agree"
    return [ok("model", f"{told}; NEWS2 policy {policies.shipped['news2'].version}"), *others]


def _horizon(settings: Settings, policies: Policies, versions: _Versions) -> str:
    """Which policy needs a rebuild to read farther back than it does; empty where none does."""
    needs = {policies.names.get(which, which): needed_s(which, p) for which, p in policies.shipped.items()}
    for version, config in versions.items():
        if config is not None:
            needs[f"{config.name} version {version}"] = needed_s("imaging", config.policy)
    hours, needed = settings.rebuild_horizon_h, max(needs.values()) / 3600
    whose = " and ".join(name for name, seconds in needs.items() if seconds == max(needs.values()))
    return (
        f"rebuild_horizon_h is {hours:g}; the policies need {needed:g}, for {whose}" if hours < needed else ""
    )


def _image_versions(settings: Settings, name: str | None) -> _Versions:
    if name is None:
        return {}
    found: _Versions = {}
    for version in repository.versions(settings.model_repository, name):
        try:
            found[version] = repository.read_config(settings.model_repository, name, version)
        except EngineError:
            found[version] = None
    return found


def _findings(settings: Settings, policies: Policies, versions: _Versions) -> Finding:
    subject, name = "model: findings", policies.names.get("imaging")
    if name is None and settings.imaging_model:
        return warning(
            subject,
            f"no model {settings.imaging_model} in {settings.model_repository}: findings raise no alerts",
            "put it there, or name another in RISKSTREAM_IMAGING_MODEL; empty for none",
        )
    if name is None:
        return ok(subject, "findings raise no alerts, as imaging_model says")
    told = f"those of {name} raise alerts, by policy {policies.shipped['imaging'].version}"
    lost = [str(version) for version, config in versions.items() if config is None]
    if lost:
        return warning(
            subject,
            f"{told}; the config of version {', '.join(lost)} cannot be used",
            "mend it: what that version found is decided on by the served version's policy",
        )
    return ok(subject, told)


def _reference(settings: Settings, config: ModelConfig) -> Finding:
    subject = "model: reference"
    try:
        made = drift_reference.read(settings.model_repository, config)
    except EngineError as error:
        return warning(
            subject, str(error), f"`riskstream model reference {config.name}` makes one: drift is not watched"
        )
    return ok(subject, f"{made.hours:,} patient-hours of {made.stays:,} stays")


def _policies(settings: Settings, config: ModelConfig) -> list[Finding]:
    """The file of changes, where there is one: a worker does not start with one that cannot be used."""
    if settings.policies is None:
        return []
    policies = shipped(settings, config)
    try:
        PolicyFile(settings.policies, policies).load()
    except PolicyError as error:
        return [failed("policies", str(error), "mend RISKSTREAM_POLICIES: a worker does not start with it")]
    return [ok("policies", f"{len(policies.changes())} changes in {settings.policies}")]


def _full_batch_s(engine: Engine) -> float:
    """Seconds for the largest batch; the second one, because the first also makes buffers."""
    rows = engine.config.dynamic_batching.max_batch_size
    inputs = {name: np.zeros((rows, *dims), np.float32) for name, dims in engine.input_dims.items()}
    engine.run(inputs)
    started = time.perf_counter()
    engine.run(inputs)
    return time.perf_counter() - started


def _speed(settings: Settings, took_s: float, rows: int) -> Finding:
    subject, detail = "model: speed", f"{rows} rows in {took_s * 1000:.1f} ms"
    if took_s > BUSY_SHARE * settings.engine_patience_s:
        return warning(
            subject,
            f"{detail}, engine_patience_s is {settings.engine_patience_s:g}",
            "raise the patience or use a faster machine: NEWS2 would answer alone under load",
        )
    return ok(subject, detail)


async def _http(settings: Settings) -> list[Finding]:
    subject, host, port = "http", settings.http_host, settings.http_port
    if port == 0:
        return [ok(subject, "a free port is picked")]
    came = await occupant(host, port)
    if came is Occupant.NOBODY:
        return [ok(subject, f"{host}:{port} is free")]
    if came is Occupant.READY:
        return [ok(subject, f"the worker on {host}:{port} is ready")]
    if came is Occupant.NOT_READY:
        return [
            warning(
                subject,
                f"the worker on {host}:{port} is not ready",
                "GET /health/ready says which dependency is missing; a restoration may be under way",
            )
        ]
    return [
        failed(
            subject,
            f"{host}:{port} cannot be had, and no worker answers there",
            "set RISKSTREAM_HTTP_PORT or RISKSTREAM_HTTP_HOST",
        )
    ]
