"""Two workers under load on real Apache Kafka and redis-server, disturbed in every way we know.

After each scenario the alerts, their bytes, the scores, the dead letters and the stored windows and
latches are those of a worker that nothing disturbed.
"""

import asyncio
import random
import signal
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from tests import killing
from tests.integration.servers import KafkaServer, RedisServer
from tests.killing import SESSION_S, Site, WorkerProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")

SEED = 20_261_121
STAYS = 40
DAYS = 12.0
"""Stays begin over this long, so the recording is longer than the rebuild horizon of five days."""
LOAD_S = 15.0


@dataclass
class Scene:
    """What a disturbance may touch."""

    kafka: KafkaServer
    redis: RedisServer
    workers: list[WorkerProcess]
    rng: random.Random

    async def pause(self, least: float, most: float) -> None:
        """Wait for a random time."""
        await asyncio.sleep(self.rng.uniform(least, most))


async def kill_at_random(scene: Scene) -> None:
    for _ in range(4):
        await scene.pause(1.0, 3.0)
        worker = scene.rng.choice(scene.workers)
        worker.kill()
        await scene.pause(0.0, 1.0)
        worker.start()


async def freeze_past_the_session(scene: Scene) -> None:
    await scene.pause(2.0, 4.0)
    scene.workers[0].signal(signal.SIGSTOP)
    await asyncio.sleep(1.5 * SESSION_S)
    scene.workers[0].signal(signal.SIGCONT)


async def flush_redis(scene: Scene) -> None:
    await scene.pause(2.0, 4.0)
    await scene.redis.flush()
    await scene.pause(1.0, 3.0)
    scene.workers[1].kill()
    scene.workers[1].start()


async def stop_redis_for_a_while(scene: Scene) -> None:
    await scene.pause(2.0, 4.0)
    await scene.redis.stop()
    await asyncio.sleep(3.0)
    scene.workers[0].kill()
    scene.workers[0].start()
    await asyncio.sleep(2.0)
    await scene.redis.start()


async def restart_the_broker(scene: Scene) -> None:
    await scene.pause(2.0, 4.0)
    await scene.kafka.restart()


async def kill_the_broker(scene: Scene) -> None:
    await scene.pause(2.0, 4.0)
    scene.kafka.kill()
    await scene.kafka.start()


async def rebuild_from_the_log(scene: Scene) -> None:
    await asyncio.sleep(0.8 * LOAD_S)
    for worker in scene.workers:
        worker.kill()
    await scene.redis.flush()
    for worker in scene.workers:
        worker.start()


async def freeze_redis(scene: Scene) -> None:
    await scene.pause(2.0, 4.0)
    scene.redis.pause()
    await asyncio.sleep(6.0)
    scene.redis.resume()


DISTURBANCES: list[Callable[[Scene], Awaitable[None]]] = [
    kill_at_random,
    freeze_past_the_session,
    flush_redis,
    stop_redis_for_a_while,
    freeze_redis,
    restart_the_broker,
    kill_the_broker,
    rebuild_from_the_log,
]

came_twice: dict[str, int] = {}
"""Scenario -> messages that a consumer ignoring ids would have seen again."""


@pytest.mark.parametrize("disturb", DISTURBANCES, ids=lambda disturb: disturb.__name__)
async def test_disturbed_is_equal_to_undisturbed(
    disturb: Callable[[Scene], Awaitable[None]], kafka: KafkaServer, redis_server: RedisServer
) -> None:
    seed = f"{SEED}/{disturb.__name__}"
    records = killing.load(STAYS, SEED, DAYS)
    address = redis_server.url.removeprefix("redis://").removesuffix("/0")
    site = Site(kafka.bootstrap, address, True, f"kill-{uuid.uuid4().hex[:6]}", "disturbed")
    await killing.create_topics(site)
    with WorkerProcess(site) as first, WorkerProcess(site) as second:
        workers = [first, second]
        await asyncio.gather(*(worker.ready() for worker in workers))
        scene = Scene(kafka, redis_server, workers, random.Random(seed))
        load = asyncio.create_task(killing.produce(site, records, LOAD_S))
        await disturb(scene)
        ends = await load
        try:
            await killing.committed_to_the_end(site, ends)
        except AssertionError:
            for worker in workers:
                print(worker.tail())
            raise
        await asyncio.sleep(killing.SETTLE_S)
        for worker in workers:
            assert await worker.stop() == 0, worker.tail()
        lines = [line for worker in workers for line in worker.log_lines()]
    disturbed = await killing.outcome(site)
    reference = await killing.undisturbed(site, ends)
    came_twice[disturb.__name__] = killing.repeated(disturbed)
    print(f"seed {seed}: {len(records)} records, {len(disturbed.alerts)} alerts, "
          f"{came_twice[disturb.__name__]} messages came twice")  # fmt: skip
    differences = killing.differences(disturbed, reference)
    assert not differences, "\n".join(differences)
    assert killing.unaccounted(len(records), disturbed, reference) == []
    assert len(reference.alerts) >= 10
    assert disturbed.backends == {"onnxruntime-cpu", "charts"}
    if disturb is rebuild_from_the_log:
        assert any(line["event"] == "partition rebuilt from the log" for line in lines)


async def test_some_kill_made_messages_come_twice() -> None:
    """A consumer must go by ids: if nothing ever came twice, the scenarios would prove little."""
    assert came_twice
    assert max(came_twice.values()) > 0
