"""A worker that serves and a shadow of another version on one stream: what is served is as without it."""

import asyncio
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import killing
from tests.killing import Outcome, Site, WorkerProcess
from tests.shadowing import VERSION, two_versions
from worker import cli, config
from worker.embedded import redis, tansu
from worker.errors import FatalError
from worker.history import History
from worker.published import Range
from worker.shadow_report import Order, compared

ROOT = Path(cli.__file__).resolve().parent.parent
SEED = 11
PATIENTS = 4


class Ran(NamedTuple):
    """What was left behind: without a shadow, beside one, and by the shadow itself."""

    site: Site
    shadow: Site
    environment: dict[str, str]
    before: Outcome
    beside: Outcome
    shadowed: Outcome
    metrics: str
    ready: str


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    folder = two_versions(tmp_path_factory.mktemp("models"))
    with tansu() as broker, redis() as cache:
        site = Site(broker.address, cache.address, False, "shadow", "live")
        yield asyncio.run(_run(site, folder))


async def _run(site: Site, folder: Path) -> Ran:
    shadow = dataclasses.replace(site, group=f"{site.group}-shadow-{VERSION}")
    more = {"RISKSTREAM_MODEL_REPOSITORY": str(folder), "RISKSTREAM_CHECKPOINT_INTERVAL_S": "0.3"} | {
        f"RISKSTREAM_TOPIC_SHADOW_{kind}": f"{shadow.run}-{shadow.group}-{topic}"
        for kind, topic in (("ALERTS", "alerts"), ("SCORES", "scores"), ("DEAD_LETTERS", "dead"))
    }
    await killing.create_topics(site)
    sent = killing.load(8, SEED, days=2)
    few = sorted({record.key for record in sent})[:PATIENTS]
    ends = await killing.produce(site, [record for record in sent if record.key in few], 0.0)
    alone = site.reference()
    with WorkerProcess(alone, **more) as worker:
        await killing.committed_to_the_end(alone, ends)
        assert await worker.stop() == 0, worker.tail()
    with (
        WorkerProcess(site, **more) as worker,
        WorkerProcess(site, **more, RISKSTREAM_SHADOW_VERSION=str(VERSION)) as second,
    ):
        await asyncio.gather(*(killing.committed_to_the_end(each, ends) for each in (site, shadow)))
        told = await killing.get(second, "metrics"), await killing.get(second, "health/ready")
        assert await worker.stop() == await second.stop() == 0, worker.tail() + second.tail()
    before, beside, shadowed = [await killing.outcome(each) for each in (alone, site, shadow)]
    return Ran(site, shadow, site.environment(**more), before, beside, shadowed, *told)


def headers(site: Site, kind: str) -> set[bytes]:
    """The types of the events in one of a run's topics."""

    async def read() -> set[bytes]:
        found = set()
        async with History(site.settings()) as log:
            topic = f"{site.run}-{site.group}-{kind}"
            for partition in range(killing.PARTITIONS):
                async for records in log.read(topic, partition, *await log.span(topic, partition)):
                    found |= {dict(record.headers)["ce_type"] for record in records}
        return found

    return asyncio.run(read())


def command(ran: Ran, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "worker.cli", "shadow", *arguments],
        cwd=ROOT,
        env=os.environ | ran.environment | more,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_what_is_served_is_as_without_a_shadow(ran: Ran) -> None:
    assert ran.beside.alerts
    assert killing.differences(ran.beside, ran.before) == []
    assert ran.beside.risks == ran.before.risks


def test_nothing_of_the_shadow_is_in_the_served_topics(ran: Ran) -> None:
    assert {json.loads(alert)["model"]["version"] for alert in ran.beside.alerts.values()} == {1}
    for kind in ("alerts", "scores", "dead"):
        assert not [each for each in headers(ran.site, kind) if b"shadow" in each]
        ours = headers(ran.shadow, kind)
        assert ours or kind == "dead"  # the embedded broker may say that a log ends before its last batch
        assert all(each.startswith(b"riskstream.shadow.") for each in ours)


def test_the_shadow_scores_the_same_records_by_its_own_version(ran: Ran) -> None:
    assert ran.shadowed.scored.keys() == ran.beside.scored.keys()
    assert ran.shadowed.dead == ran.beside.dead
    assert ran.shadowed.risks != ran.beside.risks
    alerts = [json.loads(alert) for alert in ran.shadowed.alerts.values()]
    assert {alert["model"]["version"] for alert in alerts if alert["model"]["name"] == "vitals"} == {VERSION}
    assert ran.shadowed.patients.keys() == ran.beside.patients.keys() != set()


def test_a_shadow_says_that_it_is_one(ran: Ran) -> None:
    assert f'riskstream_shadow_info{{model="vitals",version="{VERSION}"}} 1.0' in ran.metrics
    assert json.loads(ran.ready)["shadow"] is True
    assert json.loads(ran.ready)["version"] == VERSION


@pytest.fixture(scope="module")
def found(ran: Ran, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report that the command prints, with the page under `html`."""
    folder = tmp_path_factory.mktemp("report")
    file, html = folder / "shadow.json", folder / "shadow.html"
    shown = command(ran, "--json", "--report", str(file), "--html", str(html))
    assert (shown.returncode, shown.stderr) == (0, "")
    content: dict[str, Any] = json.loads(shown.stdout)
    assert json.loads(file.read_bytes()) == content
    return {**content, "html": html.read_text()}


def test_the_report_is_of_all_that_both_said(ran: Ran, found: dict[str, Any]) -> None:
    apart = [ran.shadowed.risks[place] - risk for place, risk in ran.beside.risks.items()]
    assert found["scores"]["compared"] == len(apart) > 100
    assert (found["scores"]["only_served"], found["scores"]["only_shadow"]) == (0, 0)
    assert found["scores"]["difference"]["mean"] == pytest.approx(sum(apart) / len(apart), abs=1e-6)
    assert found["scores"]["difference"]["max_absolute"] == pytest.approx(max(map(abs, apart)), abs=1e-6)
    for side, outcome in (("served", ran.beside), ("shadow", ran.shadowed)):
        for voice, name in (("model", "vitals"), ("news2", "news2")):
            alerts = [json.loads(alert) for alert in outcome.alerts.values()]
            counted = sum(alert["model"]["name"] == name for alert in alerts)
            assert sum(found["alerts"][voice][side]["transitions"].values()) == counted
    episodes = found["alerts"]["news2"]["episodes"]
    assert episodes["only_served"] == episodes["only_shadow"] == 0
    assert f"{len(apart):,}" in found["html"]


def report(ran: Ran, order: Order = Order(), **more: str) -> dict[str, Any]:  # noqa: B008 - immutable
    names = {name.removeprefix("RISKSTREAM_").lower(): value for name, value in ran.environment.items()}
    return asyncio.run(compared(config.load(None, **(names | more)), order))


def test_without_served_scores_it_compares_alerts_alone(ran: Ran, found: dict[str, Any]) -> None:
    alone = report(ran, Order(within=Range(since=0)), topic_scores="no-such-topic")
    assert alone["scores"] is None
    assert "alerts alone are compared" in alone["notes"][0]
    assert alone["alerts"] == found["alerts"]


@pytest.mark.parametrize(
    ("order", "more", "said"),
    [
        (Order(), {"topic_shadow_scores": "nowhere"}, "topic nowhere does not exist in .* no shadow has run"),
        (Order(), {"topic_vitals": "nowhere"}, "topic nowhere does not exist in .* the settings name it"),
        (Order(5), {}, "holds no score of version 5 of vitals"),
        (Order(within=Range(since=1 << 42)), {}, "holds no score of vitals and of the input in that time"),
    ],
)
def test_what_cannot_be_compared_is_told(ran: Ran, order: Order, more: dict[str, str], said: str) -> None:
    with pytest.raises(FatalError, match=said):
        report(ran, order, **more)


def test_a_failure_is_told_in_one_line(ran: Ran) -> None:
    shown = command(ran, "--version", "5", "--from", "2026-01-01T00:00:00Z")
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr.startswith("riskstream shadow: topic shadow-live-shadow-2-scores holds no score")
    assert len(shown.stderr.splitlines()) == 1
