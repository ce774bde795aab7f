"""A version that runs as a shadow comes to be served: workers swap, it goes on, nothing comes twice."""

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from schemas.messages import Alert
from tests import killing
from tests.killing import Outcome, Site, WorkerProcess
from tests.worker.ladders import name_version, put, small
from tests.worker.test_cli_versions import riskstream
from tests.worker.test_swap_live import serves
from worker.embedded import redis, tansu

SEED = 4
PATIENTS = 6


class Ran(NamedTuple):
    """What was left behind; `swapped` has each partition's first offset after version 2 was served."""

    served: Outcome
    shadowed: Outcome
    swapped: dict[int, int]
    shadow_says: dict[str, object]

    def later(self, at: tuple[int, int]) -> bool:
        """Whether a record came after the swap."""
        partition, offset = at
        return offset >= self.swapped.get(partition, 0)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    models = tmp_path_factory.mktemp("models")
    # The second keeps less of its state: who went on from the first's would say other risks than the shadow.
    versions = [small(1), small(2, gain=1.7, keep=0.5)]
    for config, graph in versions:
        put(models, config, graph)
        (models / f"small/{config.version}/config.json").write_bytes(msgspec.json.encode(config))
    name_version(models, versions[0][0])
    with tansu() as broker, redis() as cache:
        return asyncio.run(_run(Site(broker.address, cache.address, False, "promoted", "live"), models))


async def _run(site: Site, models: Path) -> Ran:
    shadow = dataclasses.replace(site, group=f"{site.group}-shadow-2")
    more = {"RISKSTREAM_MODEL": "small", "RISKSTREAM_MODEL_REPOSITORY": str(models)} | {
        f"RISKSTREAM_TOPIC_SHADOW_{kind}": f"{shadow.run}-{shadow.group}-{topic}"
        for kind, topic in (("ALERTS", "alerts"), ("SCORES", "scores"), ("DEAD_LETTERS", "dead"))
    }
    await killing.create_topics(site)
    records = killing.load(PATIENTS, SEED, days=1)
    half = len(records) // 2
    with (
        WorkerProcess(site, **more) as worker,
        WorkerProcess(site, **more, RISKSTREAM_SHADOW_VERSION="2") as second,
    ):
        await asyncio.gather(worker.ready(), second.ready())
        swapped = await killing.produce(site, records[:half], 0.5)
        await asyncio.gather(*(killing.committed_to_the_end(each, swapped) for each in (site, shadow)))
        code, told = await asyncio.to_thread(riskstream, "serve", models, "small", "--version", "2")
        assert code == 0, told
        await serves(worker, 2)
        ends = swapped | await killing.produce(site, records[half:], 0.5)
        await asyncio.gather(*(killing.committed_to_the_end(each, ends) for each in (site, shadow)))
        says = json.loads(await killing.get(second, "health/ready"))
        assert await worker.stop() == await second.stop() == 0, worker.tail() + second.tail()
    return Ran(await killing.outcome(site), await killing.outcome(shadow), swapped, says)


def place(alert: Alert) -> tuple[int, int]:
    """Partition and offset of the record that an alert rests on."""
    return alert.source.partition, alert.source.offset


def alerts(outcome: Outcome) -> list[Alert]:
    """The model's, by record and within it in their order."""
    found = [msgspec.json.decode(value, type=Alert) for value in outcome.alerts.values()]
    own = [alert for alert in found if alert.model.name == "small"]
    return sorted(own, key=lambda alert: (*place(alert), alert.sequence))


def test_the_shadow_goes_on_with_its_version(ran: Ran) -> None:
    assert (ran.shadow_says["shadow"], ran.shadow_says["version"]) == (True, 2)
    assert ran.shadowed.scored.keys() == ran.served.scored.keys()
    assert {alert.model.version for alert in alerts(ran.shadowed)} == {2}


def test_the_worker_swaps_to_what_the_shadow_has_said_all_along(ran: Ran) -> None:
    before = [at for at in ran.served.risks if not ran.later(at)]
    after = [at for at in ran.served.risks if ran.later(at)]
    assert min(len(before), len(after)) > 100
    assert [at for at in before if ran.served.risks[at] != ran.shadowed.risks[at]]
    assert [at for at in after if ran.served.risks[at] != ran.shadowed.risks[at]] == []
    # An expiry names the last record before it, which another version may have scored.
    told = [alert for alert in alerts(ran.served) if alert.transition != "expired"]
    assert {alert.model.version for alert in told} == {1, 2}
    for alert in told:
        assert alert.model.version == 1 + ran.later(place(alert))


@pytest.mark.parametrize("side", ["served", "shadowed"])
def test_nothing_comes_twice_and_no_open_episode_is_raised_again(ran: Ran, side: str) -> None:
    outcome: Outcome = getattr(ran, side)
    assert outcome.repeats == 0
    assert set(outcome.scored.values()) == {1}
    open_: dict[str, Alert] = {}
    gone_on = 0
    for alert in alerts(outcome):
        if alert.transition == "raised":
            assert alert.patient not in open_
            open_[alert.patient] = alert
        began = open_[alert.patient]
        assert began.episode == alert.episode
        gone_on += ran.later(place(alert)) and not ran.later(place(began))
        if alert.transition in ("resolved", "expired"):
            del open_[alert.patient]
    assert gone_on, "an episode of before the swap is told of after it"
