"""`riskstream model serve` and `rollback` beside a worker that runs, on the embedded broker."""

import asyncio
from pathlib import Path

import aiohttp
import msgspec

from schemas.messages import Alert, Score
from tests import killing
from tests.killing import Site, WorkerProcess
from tests.worker.ladders import name_version, put, small
from tests.worker.test_cli_versions import riskstream
from worker.audit_run import Order, audit
from worker.embedded import redis, tansu

SEED = 4


async def serves(worker: WorkerProcess, version: int) -> None:
    """Wait until the worker says that a version serves."""
    url = f"http://127.0.0.1:{worker.port}/health/ready"
    async with asyncio.timeout(30), aiohttp.ClientSession() as session:
        while True:
            async with session.get(url) as response:
                if (await response.json())["version"] == version:
                    return
            await asyncio.sleep(0.2)


async def test_a_running_worker_serves_what_it_is_told_to_and_goes_back(tmp_path: Path) -> None:
    versions = [small(1), small(2, note="second")]
    for config, graph in versions:
        put(tmp_path, config, graph)
        (tmp_path / f"small/{config.version}/config.json").write_bytes(msgspec.json.encode(config))
    name_version(tmp_path, versions[0][0])
    with tansu() as broker, redis() as cache:
        site = Site(broker.address, cache.address, False, "swap", "live")
        await killing.create_topics(site)
        records = killing.load(6, SEED, days=1)
        third = len(records) // 3
        parts = [records[:third], records[third : 2 * third], records[2 * third :]]
        changes: list[tuple[str, ...]] = [("serve", "--version", "2"), ("rollback",), ()]
        ends: list[dict[int, int]] = []
        more = {"RISKSTREAM_MODEL": "small", "RISKSTREAM_MODEL_REPOSITORY": str(tmp_path)}
        with WorkerProcess(site, **more) as worker:
            await worker.ready()
            for part, change, then in zip(parts, changes, (2, 1, 1), strict=True):
                ends.append((ends[-1] if ends else {}) | await killing.produce(site, part, 0.5))
                await killing.committed_to_the_end(site, ends[-1])
                if change:
                    command, *arguments = change
                    told = await asyncio.to_thread(riskstream, command, tmp_path, "small", *arguments)
                    assert told[0] == 0, told[1]
                    await serves(worker, then)
            assert await worker.stop() == 0, worker.tail()
        alerts = [
            msgspec.json.decode(value, type=Alert)
            for value in await killing._read_all(site, "swap-live-alerts")
        ]
        scores = [
            msgspec.json.decode(value, type=Score)
            for value in await killing._read_all(site, "swap-live-scores")
        ]
        settings = site.settings().model_copy(update={"model": "small", "model_repository": tmp_path})
        audited = await audit(settings, Order())
        (tmp_path / "small/2/config.json").unlink()
        without = await audit(settings, Order())

    def version_at(partition: int, offset: int) -> int:
        return 2 if ends[0].get(partition, 0) <= offset < ends[1].get(partition, 0) else 1

    assert len(scores) > 100
    for score in scores:
        assert score.model_version == version_at(score.source.partition, score.source.offset)
    digests = {config.version: config.digest for config, _ in versions}
    own = [alert for alert in alerts if alert.model.name == "small"]
    assert {alert.model.version for alert in own} == {1, 2}
    for alert in own:
        assert alert.model.version == version_at(alert.source.partition, alert.source.offset)
        assert alert.model.digest == digests[alert.model.version]
    assert (audited.verified, audited.findings) == (audited.alerts, []), "each by the version that it names"
    assert {finding.verdict for finding in without.findings} == {"other-model"}
