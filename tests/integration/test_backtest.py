"""A backtest of a topic on Apache Kafka foretells, byte for byte, what a worker publishes from it."""

import uuid
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from schemas.messages import Alert
from tests import foretelling, killing
from tests.integration.servers import KafkaServer, RedisServer
from tests.killing import Site

pytestmark = pytest.mark.asyncio(loop_scope="module")

SEED = 20_261_123
STAYS = 300
"""Recorded ones; of simulated patients a third."""

DAYS = 12.0
LATE, LATER = datetime(2026, 1, 9, tzinfo=UTC), datetime(2026, 1, 12, tzinfo=UTC)
"""More than the rebuild horizon after the first record, and before the last."""


async def test_a_worker_publishes_what_was_foretold(
    kafka: KafkaServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    records = killing.load(STAYS, SEED, DAYS)
    address = redis_server.url.removeprefix("redis://").removesuffix("/0")
    site = Site(kafka.bootstrap, address, True, f"told-{uuid.uuid4().hex[:6]}", "live")
    ends = await foretelling.ends_of(site, records)
    told, report = await foretelling.foretold(site, tmp_path)
    live = await foretelling.published(site, ends)
    assert foretelling.differences(told, live) == []
    assert report["foretold_alerts"] == len(told) > 100
    assert report["cohort"]["patients"] >= 100
    assert report["source"]["records"] == len(records)

    span = ("--from", LATE.isoformat(), "--to", LATER.isoformat())
    part, report = await foretelling.foretold(site, tmp_path, *span)
    assert foretelling.differences(within_span(part), within_span(live)) == []
    assert 0 < len(part) < len(told)
    assert report["source"]["records"] < len(records)


def within_span(alerts: list[bytes]) -> list[bytes]:
    """Those that rest on a record of the span; an expiry is dated at another time than its record."""
    known = [(value, msgspec.json.decode(value, type=Alert)) for value in alerts]
    return [value for value, alert in known if alert.transition != "expired" and LATE <= alert.time < LATER]
