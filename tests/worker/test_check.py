"""`check` finds what is missing and says what to do."""

from pathlib import Path

import msgspec
import pytest
import redis

from engines import acceptance
from engines.errors import KindError
from schemas import news2_policy
from tests.kinds import model_of
from worker import config, embedded
from worker.app import Worker
from worker.check import check
from worker.cluster import describe
from worker.config import Settings


async def findings(settings: Settings) -> dict[str, tuple[bool, str]]:
    return {f.subject: (f.well, f.detail) for f in await check(settings, 10.0)}


async def test_all_is_well(redis_server: embedded.Server) -> None:
    with embedded.tansu() as broker:
        settings = config.load(broker=broker.address, redis=f"redis://{redis_server.address}")
        await describe(settings.model_copy(update={"partitions": 3}), create=True)
        found = await findings(settings)

    assert all(well for well, _ in found.values()), found
    assert "golden data agree" in found["model"][1]
    assert "partitions" in found["kafka"][1]


async def test_what_is_away_is_named(tmp_path: Path) -> None:
    nobody = f"127.0.0.1:{embedded.free_port()}"
    settings = config.load(
        broker=nobody, redis=f"redis://:hunter2@{nobody}", model_repository=tmp_path, redis_timeout_s=0.5
    )

    found = await findings(settings)

    assert not any(well for well, _ in found.values())
    assert "RISKSTREAM_BROKER" in found["kafka"][1]
    assert "RISKSTREAM_REDIS" in found["redis"][1]
    assert "no model 'vitals'" in found["model"][1]
    assert "hunter2" not in str(found)


async def test_redis_that_evicts_is_refused() -> None:
    with embedded.redis() as server:
        client = redis.Redis(port=server.port)
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.close()
        found = await findings(
            config.load(redis=f"redis://{server.address}", broker=f"127.0.0.1:{embedded.free_port()}")
        )

    assert found["redis"] == (False, "maxmemory-policy is allkeys-lru; set it to noeviction")


async def test_horizon_too_short_for_the_policy(redis_server: embedded.Server) -> None:
    nobody = f"127.0.0.1:{embedded.free_port()}"
    settings = config.load(redis=f"redis://{redis_server.address}", broker=nobody, rebuild_horizon_h=100)

    well, detail = (await findings(settings))["model"]

    assert not well
    assert "rebuild_horizon_h is 100; the policies need 110" in detail


async def test_a_news2_policy_that_contradicts_itself_is_named(
    redis_server: embedded.Server, tmp_path: Path
) -> None:
    policy = tmp_path / "news2.json"
    policy.write_text(news2_policy.SHIPPED.read_text().replace('"exit": 4', '"exit": 6'))
    nobody = f"127.0.0.1:{embedded.free_port()}"
    settings = config.load(redis=f"redis://{redis_server.address}", broker=nobody, news2_policy=policy)

    well, detail = (await findings(settings))["model"]

    assert not well
    assert "news2.json: policy.exit must be below the first enter 5, came 6" in detail


async def test_a_model_that_reads_images_is_refused(redis_server: embedded.Server, tmp_path: Path) -> None:
    model, graph = model_of("image")
    (tmp_path / "config.json").write_bytes(msgspec.json.encode(model))
    acceptance.add(tmp_path, graph, tmp_path / "config.json")
    nobody = f"127.0.0.1:{embedded.free_port()}"
    settings = config.load(
        redis=f"redis://{redis_server.address}", broker=nobody, model="small", model_repository=tmp_path
    )

    assert (await findings(settings))["model"] == (
        False,
        "small reads images; a windowed-series or features model is needed here",
    )
    with pytest.raises(KindError, match="small reads images"):
        await Worker(settings.model_copy(update={"http_port": 0})).run()
