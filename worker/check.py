"""`riskstream check`: is everything there that a worker needs? Also the container's health check."""

import asyncio
from typing import NamedTuple

from engines import repository
from engines.errors import EngineError
from engines.steps import require_series
from schemas import news2_policy
from schemas.errors import PolicyError
from schemas.window import WINDOW_BINS
from worker.cluster import complaints, describe
from worker.config import Settings
from worker.decide import TREND_MS
from worker.errors import WorkerError
from worker.store import Store

ACCEPTED_POLICY = "noeviction"
"""A Redis that evicts would drop patients silently; refusing writes instead is noticed."""


class Finding(NamedTuple):
    """One check: what was looked at, whether it is well, and what to do if not."""

    subject: str
    well: bool
    detail: str


async def check(settings: Settings, seconds: float) -> list[Finding]:
    """Check broker, topics, Redis and model, each within `seconds`."""
    checks = {"kafka": _kafka(settings), "redis": _redis(settings), "model": _model(settings)}
    findings: list[Finding] = []
    for subject, running in checks.items():
        try:
            findings.append(await asyncio.wait_for(running, seconds))
        except TimeoutError:
            findings.append(Finding(subject, False, f"no answer within {seconds:g} s"))
    return findings


async def _kafka(settings: Settings) -> Finding:
    try:
        cluster = await describe(settings, create=False)
    except WorkerError as error:
        return Finding("kafka", False, f"{error}; check RISKSTREAM_BROKER, TLS and credentials")
    found = complaints(settings, cluster)
    if found:
        return Finding("kafka", False, "; ".join(found))
    return Finding(
        "kafka", True, f"cluster {cluster.id}, {cluster.partitions[settings.topic_vitals]} partitions"
    )


async def _redis(settings: Settings) -> Finding:
    store = Store(settings)
    try:
        await store.ping()
        policy = await store.policy()
    except WorkerError as error:
        return Finding("redis", False, f"{error}; check RISKSTREAM_REDIS, TLS and credentials")
    finally:
        await store.close()
    if policy != ACCEPTED_POLICY:
        return Finding("redis", False, f"maxmemory-policy is {policy}; set it to {ACCEPTED_POLICY}")
    return Finding("redis", True, f"maxmemory-policy {policy}")


async def _model(settings: Settings) -> Finding:
    try:
        news2 = news2_policy.load(settings.news2_policy)
        require_series(repository.read_config(settings.model_repository, settings.model))
        engine = await asyncio.to_thread(
            repository.load, settings.model_repository, settings.model, settings.backend
        )
    except (EngineError, PolicyError) as error:
        return Finding("model", False, str(error))
    engine.close()
    config = engine.config
    hours = settings.rebuild_horizon_h
    # A window, the silence after it, and what a trace remembers: across one silence that does not expire it.
    policies = (config.policy, news2)
    remembered_s = max(*(p.memory_s + p.expiry_s for p in policies), TREND_MS / 1000 + 3600)
    needed = 2 * WINDOW_BINS + remembered_s / 3600
    if hours < needed:
        return Finding("model", False, f"rebuild_horizon_h is {hours:g}; the policies need {needed:g}")
    return Finding(
        "model",
        True,
        f"{config.name} version {config.version} on {engine.backend}, golden data agree; "
        f"NEWS2 policy {news2.version}",
    )
