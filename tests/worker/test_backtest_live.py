"""A backtest of a recorded topic foretells what a worker publishes from it: the same ids, the same bytes."""

import json
import uuid
from pathlib import Path

import pytest

from tests import foretelling, killing
from tests.killing import Site
from worker import backtest_topic
from worker.embedded import redis, tansu
from worker.recording import SourceError

SEED = 20_261_122

CHANGES = [
    {
        "model": "vitals",
        "version": 3,
        "effective_from": "2026-01-02T00:00:00Z",
        "levels": [{"severity": "elevated", "enter": 0.15, "persistence_s": 1800.0}],
        "exit": 0.1,
    },
    {"model": "news2", "version": 1, "effective_from": "2026-01-01T00:00:00Z", "resolve_s": 3600.0},
]


async def test_a_worker_publishes_what_was_foretold(tmp_path: Path) -> None:
    records = killing.load(10, SEED, days=3)
    file = tmp_path / "policies.json"
    file.write_text(json.dumps(CHANGES))
    with tansu() as broker, redis() as cache:
        site = Site(broker.address, cache.address, False, f"told-{uuid.uuid4().hex[:6]}", "live")
        ends = await foretelling.ends_of(site, records)
        more = {"RISKSTREAM_POLICIES": str(file)}
        live = await foretelling.published(site, ends, **more)
        told, report = await foretelling.foretold(site, tmp_path, **more)
        with pytest.raises(SourceError, match="the broker has no topic nothing"):
            await backtest_topic.read("nothing", site.settings(), None, None)
    assert foretelling.differences(told, live) == []
    assert {json.loads(line)["model"]["name"] for line in told} == {"vitals", "news2"}
    assert any(json.loads(line)["policy_version"].endswith("+everyone.3") for line in told)
    assert report["foretold_alerts"] == len(told)
    assert report["source"]["records"] == len(records) == sum(ends.values())
