"""What a backtest of a topic foretells, beside what a worker published from it."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from schemas.messages import Alert
from tests import killing
from tests.killing import Sent, Site


async def ends_of(site: Site, records: list[Sent]) -> dict[int, int]:
    """Create the run's topics and fill its input; the end of each partition's log."""
    await killing.create_topics(site)
    return await killing.produce(site, records, 0.0)


async def published(site: Site, ends: dict[int, int], **more: str) -> list[bytes]:
    """The alerts of `riskstream run` over the whole topic, as bytes."""
    with killing.WorkerProcess(site, **more) as worker:
        await killing.committed_to_the_end(site, ends, 120.0)
        assert await worker.stop() == 0, worker.tail()
    return list((await killing.outcome(site)).alerts.values())


async def foretold(
    site: Site, folder: Path, *options: str, **more: str
) -> tuple[list[bytes], dict[str, Any]]:
    """The alerts and the report of `riskstream backtest` of the run's topic."""
    alerts, report = folder / "alerts.jsonl", folder / "report.json"
    command = [
        *(sys.executable, "-m", "worker.cli", "backtest", f"kafka:{site.run}-vitals"),
        *("--enter", "0.2,0.4", "--persistence", "3600"),
        *("--alerts", str(alerts), "--report", str(report), *options),
    ]
    environment = killing.inherited() | site.environment(**more)
    done = await asyncio.to_thread(
        subprocess.run, command, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return alerts.read_bytes().splitlines(), json.loads(report.read_bytes())


def differences(ours: list[bytes], theirs: list[bytes]) -> list[str]:
    """What is unlike in two sets of alerts, in words; empty when they have the same ids and bytes."""
    one, other = (
        {msgspec.json.decode(value, type=Alert).id: value for value in values} for values in (ours, theirs)
    )
    missing = [f"{len(other.keys() - one.keys())} were not foretold"] if other.keys() - one.keys() else []
    extra = [f"{len(one.keys() - other.keys())} never came"] if one.keys() - other.keys() else []
    unlike = [key for key in one.keys() & other.keys() if one[key] != other[key]]
    return missing + extra + ([f"{len(unlike)} differ in content"] if unlike else [])
