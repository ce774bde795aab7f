"""What Redis must be for the state to last: it keeps all, has room, answers soon, lets this user write."""

import time
from collections.abc import Mapping
from statistics import median
from typing import Any

from worker.config import Settings
from worker.errors import WorkerError
from worker.finding import Finding, failed, ok, warning
from worker.store import Store

ACCEPTED_POLICY = "noeviction"
"""A Redis that evicts would drop patients silently; refusing writes instead is noticed."""

OLDEST = (4, 0)
"""The scripts set several fields of a hash at once."""

OLDEST_WITH_USERS = (6, 0)

FULL = 0.8
"""Share of maxmemory from which growth should be looked at."""

SLOW_MS = 20.0
"""A checkpoint is a few calls for each partition, every second."""

PINGS = 5


async def check_redis(settings: Settings) -> list[Finding]:
    """Reachable and not evicting, in one finding; then what may hurt one day."""
    store = Store(settings)
    try:
        await store.ping()
        info = await store.info()
        milliseconds = [await _ping_ms(store) for _ in range(PINGS)]
        refused = await store.refused()
    except WorkerError as error:
        return [failed("redis", f"{error}; check RISKSTREAM_REDIS, TLS and credentials")]
    finally:
        await store.close()
    return [
        _policy(info),
        _version(info, bool(settings.redis_username)),
        _memory(info),
        _persistence(info),
        _latency(median(milliseconds)),
        _rights(refused),
    ]


async def _ping_ms(store: Store) -> float:
    started = time.perf_counter()
    await store.ping()
    return (time.perf_counter() - started) * 1000


def _policy(info: Mapping[str, Any]) -> Finding:
    policy = str(info.get("maxmemory_policy", "unknown"))
    if policy != ACCEPTED_POLICY:
        return failed("redis", f"maxmemory-policy is {policy}; set it to {ACCEPTED_POLICY}")
    return ok("redis", f"maxmemory-policy {policy}")


def _version(info: Mapping[str, Any], has_user: bool) -> Finding:
    subject, came = "redis: version", str(info.get("redis_version", "0"))
    needed = OLDEST_WITH_USERS if has_user else OLDEST
    parts = tuple(int(part) for part in came.split(".")[:2] if part.isdigit())
    if parts < needed:
        return failed(subject, f"Redis {came}", f"use Redis {'.'.join(map(str, needed))} or later")
    return ok(subject, f"Redis {came}")


def _memory(info: Mapping[str, Any]) -> Finding:
    subject, used, most = "redis: memory", int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if not most:
        return warning(
            subject,
            f"{used / 2**20:.0f} MiB used, maxmemory is not set",
            "set it, to half of the machine's: without a limit the system kills Redis when memory ends",
        )
    detail = f"{used / 2**20:.0f} of {most / 2**20:.0f} MiB used"
    if used > FULL * most:
        return warning(subject, detail, "raise maxmemory; when it is full checkpoints are refused")
    return ok(subject, detail)


def _persistence(info: Mapping[str, Any]) -> Finding:
    subject = "redis: persistence"
    if info.get("aof_enabled"):
        if info.get("aof_last_write_status", "ok") != "ok":
            return warning(subject, "the last write of the append-only file failed", "look at Redis's disk")
        return ok(subject, "append-only file")
    return warning(
        subject,
        "no append-only file",
        "set appendonly yes: when Redis restarts, every partition is rebuilt from the log otherwise",
    )


def _latency(milliseconds: float) -> Finding:
    subject, detail = "redis: latency", f"{milliseconds:.1f} ms"
    if milliseconds > SLOW_MS:
        return warning(subject, detail, "have Redis near the workers, see `redis-cli --latency` and its disk")
    return ok(subject, detail)


def _rights(refused: list[str]) -> Finding:
    subject = "redis: rights"
    if refused:
        return failed(
            subject,
            f"this user may not {', '.join(refused)}",
            "grant ~riskstream:* +@connection +@read +@write +@scripting +info (deploy/redis/start.sh)",
        )
    return ok(subject, "reads, deletes and runs scripts on riskstream:*")
