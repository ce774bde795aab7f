"""Kill a worker, quickly, on the embedded broker; `tests/integration/test_kill.py` does it in full."""

import asyncio
import random
import uuid

from tests import killing
from tests.killing import Site, WorkerProcess
from worker.embedded import redis, tansu

SEED = 20_260_101


async def test_killed_at_random_moments_gives_the_alerts_of_an_undisturbed_run() -> None:
    rng = random.Random(SEED)
    records = killing.load(24, SEED, days=6)
    with tansu() as broker, redis() as cache:
        site = Site(broker.address, cache.address, False, f"quick-{uuid.uuid4().hex[:6]}", "killed")
        await killing.create_topics(site)
        with WorkerProcess(site) as first, WorkerProcess(site) as second:
            await asyncio.gather(first.ready(), second.ready())
            load = asyncio.create_task(killing.produce(site, records, 7.0))
            for worker in (first, second):
                await asyncio.sleep(1.0 + 2 * rng.random())
                worker.kill()
                worker.start()
            ends = await load
            await killing.committed_to_the_end(site, ends)
            await asyncio.sleep(killing.SETTLE_S)
            assert await first.stop() == 0, first.tail()
            assert await second.stop() == 0, second.tail()
        disturbed = await killing.outcome(site)
        reference = await killing.undisturbed(site, ends)
    assert killing.differences(disturbed, reference) == []
    assert killing.unaccounted(len(records), disturbed, reference) == []
    assert reference.alerts
    assert disturbed.backends == reference.backends == {"onnxruntime-cpu", "charts"}
    print(f"seed {SEED}: {killing.repeated(disturbed)} messages came twice")
