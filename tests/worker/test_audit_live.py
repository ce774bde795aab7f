"""`explain` and `replay` over what a worker, killed meanwhile, published on the embedded broker."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from typer.testing import CliRunner

from engines.errors import RepositoryError
from tests import killing
from tests.killing import Site, WorkerProcess
from worker import cli
from worker.audit_run import Order, audit
from worker.cluster import create_topics
from worker.config import Settings
from worker.embedded import redis, tansu
from worker.errors import FatalError
from worker.history import History
from worker.published import Published, Range, find
from worker.replay import Bound, ReplayOrder, replay

ROOT = Path(cli.__file__).resolve().parent.parent
SEED = 4


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """A broker with the alerts of a few patients, whose worker was killed once."""

    async def run(site: Site) -> None:
        await killing.create_topics(site)
        records = killing.load(12, SEED, days=2)
        with WorkerProcess(site) as worker:
            await worker.ready()
            load = asyncio.create_task(killing.produce(site, records, 3.0))
            await asyncio.sleep(1.5)
            worker.kill()
            worker.start()
            await killing.committed_to_the_end(site, await load)
            assert await worker.stop() == 0, worker.tail()

    with tansu() as broker, redis() as cache:
        made = Site(broker.address, cache.address, False, "audit", "live")
        asyncio.run(run(made))
        yield made


def everything(settings: Settings, topic: str, within: Range = Range()) -> list[Published]:  # noqa: B008
    async def read() -> list[Published]:
        async with History(settings) as log:
            return (await find(log, topic, range(killing.PARTITIONS), lambda record: True, within)).alerts

    return asyncio.run(read())


def command(site: Site, *arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, **site.environment()}
    return subprocess.run(
        [sys.executable, "-m", "worker.cli", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        input=stdin,
        timeout=60,
        check=False,
    )


def test_every_alert_verifies(site: Site) -> None:
    settings = site.settings()
    alerts = everything(settings, settings.topic_alerts)

    result = asyncio.run(audit(settings, Order()))

    assert result.well
    assert result.alerts == result.verified == len(alerts) > 10
    assert {alert.alert.model.name for alert in alerts} == {"vitals", "news2"}


def test_a_stretch_is_replayed_with_the_ids_and_bytes_of_the_live_alerts(site: Site) -> None:
    settings = site.settings()
    live = {alert.alert.id: alert.value for alert in everything(settings, settings.topic_alerts)}
    order = ReplayOrder(Bound(), Bound(), (), "audit-again", "audit-again-scores", create=True)

    first = asyncio.run(replay(settings, settings, order))
    second = asyncio.run(replay(settings, settings, order))

    again = everything(settings, "audit-again")
    assert {alert.alert.id: alert.value for alert in again}.items() >= live.items()
    assert len(again) == 2 * len({alert.alert.id for alert in again})
    assert (first.live, first.incomplete, first.alerts) == (True, (), second.alerts)
    assert sum(count for counts in first.alerts.values() for count in counts.values()) == len(again) / 2
    assert first.scores == sum(killing_scores(site).values())


def killing_scores(site: Site) -> dict[tuple[int, int], int]:
    """Places of records that have scores, each once."""
    return dict.fromkeys(asyncio.run(killing.outcome(site)).scored, 1)


def test_a_part_of_the_log_gives_the_part_of_the_alerts_that_rests_on_it(site: Site) -> None:
    settings = site.settings()
    alerts = everything(settings, settings.topic_alerts)
    partition = alerts[0].partition
    times = sorted(alert.alert.time for alert in alerts if alert.partition == partition)
    time_ms = round(times[len(times) // 2].timestamp() * 1000)

    def part(since: Bound, until: Bound) -> dict[str, int]:
        order = ReplayOrder(since, until, (partition,), "audit-part", dry=True)
        found = asyncio.run(replay(settings, settings, order))
        return {"records": found.records} | {
            f"{name} {transition}": count
            for name, counts in found.alerts.items()
            for transition, count in counts.items()
            if transition != "expired"
        }

    whole, before, after = (
        part(*bounds)
        for bounds in (
            (Bound(), Bound()),
            (Bound(), Bound(time_ms=time_ms)),
            (Bound(time_ms=time_ms), Bound()),
        )
    )
    assert min(before["records"], after["records"]) > 0
    assert whole == {name: before.get(name, 0) + after.get(name, 0) for name in {**before, **after}}


@pytest.mark.parametrize("which", ["topic_alerts", "topic_scores", "topic_dead_letters", "topic_vitals"])
def test_nothing_is_replayed_into_a_live_topic(site: Site, which: str) -> None:
    settings = site.settings()
    order = ReplayOrder(Bound(), Bound(), (), getattr(settings, which), create=True)
    with pytest.raises(FatalError, match=rf"live topic of RISKSTREAM_{which.upper()}"):
        asyncio.run(replay(settings, settings, order))


def test_an_offset_names_no_place_in_several_partitions(site: Site) -> None:
    settings = site.settings()
    order = ReplayOrder(Bound(offset=3), Bound(), (), "audit-part", dry=True)
    with pytest.raises(FatalError, match="--partition"):
        asyncio.run(replay(settings, settings, order))


def test_one_alert_is_explained_for_people(site: Site) -> None:
    settings = site.settings()
    alerts = everything(settings, settings.topic_alerts)
    alert = next(a.alert for a in alerts if a.alert.model.name == "vitals" and a.alert.transition == "raised")

    shown = command(site, "explain", alert.id, "--patient", alert.patient)

    assert (shown.returncode, shown.stderr) == (0, "")
    for text in (alert.id, alert.patient, alert.model.digest, alert.inputs[0].feature, "<- this one"):
        assert text in shown.stdout
    source = f"{alert.source.topic}/{alert.source.partition}/{alert.source.offset}"
    assert f"record     {source}" in shown.stdout
    assert "VERIFIED" in shown.stdout


def test_a_forged_copy_beside_the_alert_is_told_to_machines(site: Site) -> None:
    settings = site.settings()
    real = everything(settings, settings.topic_alerts)[0]
    forged = msgspec.json.encode(msgspec.structs.replace(real.alert, severity="forged"))

    async def put() -> None:
        producer = AIOKafkaProducer(bootstrap_servers=site.broker)
        await producer.start()
        try:
            await producer.send_and_wait("audit-forged", real.value, real.key, partition=real.partition)
            await producer.send_and_wait("audit-forged", forged, real.key, partition=real.partition)
            await producer.send_and_wait("audit-forged", b"no alert", b"x", partition=real.partition)
        finally:
            await producer.stop()

    elsewhere = site.settings().model_copy(update={"topic_alerts": "audit-forged"})
    asyncio.run(create_topics(settings, ["audit-forged"], killing.PARTITIONS))
    asyncio.run(put())

    result = asyncio.run(audit(elsewhere, Order()))

    assert not result.well
    assert (result.alerts, result.verified) == (2, 1)
    assert [finding.verdict for finding in result.findings] == ["differs"]
    assert [d.field for d in result.findings[0].differences] == ["severity"]
    assert len(result.unreadable) == 1
    shown = command(
        site, "explain", "-", "--json", "--partition", str(real.partition), stdin=real.alert.id + "\n"
    )
    found = json.loads(shown.stdout)
    assert shown.returncode == 0
    assert {finding["verdict"] for finding in found["findings"]} == {"verified"}
    assert found["findings"][0]["alert"] == json.loads(real.value)


def test_an_id_that_nobody_published(site: Site) -> None:
    unknown = "0d9d2e1c-5b0e-5a53-9f0b-1f7c2f3a4b5c"
    shown = command(site, "explain", unknown)
    assert shown.returncode == 1
    assert f"{unknown} was not found; the alert topic reaches back to 20" in shown.stdout
    assert shown.stderr == ""


def test_a_model_that_is_not_in_the_repository(site: Site, tmp_path: Path) -> None:
    settings = site.settings().model_copy(update={"model_repository": tmp_path})
    alert = next(a.alert for a in everything(settings, settings.topic_alerts) if a.alert.risk is not None)
    result = asyncio.run(audit(settings, Order((alert.id,))))
    assert {finding.verdict for finding in result.findings} == {"other-model"}
    assert "no model 'vitals'" in result.findings[0].notes[0]


def test_times_of_publishing_bound_what_is_looked_at(site: Site) -> None:
    settings = site.settings()
    alerts = everything(settings, settings.topic_alerts)
    times = sorted({alert.timestamp for alert in alerts})
    middle = times[len(times) // 2]
    since, until = (everything(settings, settings.topic_alerts, within) for within in
                    (Range(since=middle), Range(until=middle)))  # fmt: skip
    assert since == [alert for alert in alerts if alert.timestamp >= middle]
    assert until == [alert for alert in alerts if alert.timestamp < middle]
    assert asyncio.run(audit(settings, Order(within=Range(since=middle)))).verified == len(since)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("explain",), "give the ids of alerts, or --all"),
        (("explain", "x"), "an alert id is a UUID"),
        (("explain", "--all", "--from", "noon"), "takes a time such as"),
        (("explain", "--all", "--from", "2026-01-01T00:00:00"), "needs a zone"),
        (("replay",), "Missing option '--alerts-topic'"),
        (("replay", "--alerts-topic", "x", "--to", "-3"), "takes a time such as"),
    ],
)
def test_mistakes_of_usage_are_told_in_words(arguments: tuple[str, ...], said: str) -> None:
    shown = CliRunner().invoke(cli.app, arguments)
    assert shown.exit_code == 2
    assert said in " ".join(shown.output.replace("│", " ").split())


def test_a_partition_that_is_not_there_is_told_in_one_line(site: Site) -> None:
    shown = command(site, "explain", "--all", "--partition", "99")
    assert (shown.returncode, shown.stdout) == (1, "")
    assert "has partitions 0 to 3, not 99" in shown.stderr
    assert len(shown.stderr.splitlines()) == 1


def test_a_model_that_is_not_there_is_told(site: Site) -> None:
    settings = site.settings()
    order = ReplayOrder(Bound(), Bound(), (), "audit-part", model="nobody", dry=True)
    with pytest.raises(RepositoryError, match="no model 'nobody'"):
        asyncio.run(replay(settings, settings, order))
