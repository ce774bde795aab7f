"""What of deploy/ runs without a container engine: the Redis start script and the rights of its user."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import redis.asyncio
from pydantic import SecretStr

from tests.integration.servers import START_S, free_ports
from worker.config import Settings
from worker.embedded import Child
from worker.errors import StoreError
from worker.partition import Place
from worker.store import Store, Write, connect

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "redis" / "start.sh"
PASSWORD = "a word 'with' $igns"
PLACE = Place("cluster", "vitals", 0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def settings(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Settings]:
    """Settings of a worker whose Redis was started by the script."""
    folder = tmp_path_factory.mktemp("deployed-redis")
    (port,) = free_ports(1)
    environment = {"PATH": os.environ["PATH"], "REDIS_PASSWORD": PASSWORD, "RUN_DIRECTORY": str(folder)}
    command = ["sh", str(SCRIPT), "--dir", str(folder), "--port", str(port), "--bind", "127.0.0.1"]
    worker = Settings(
        redis=SecretStr(f"redis://127.0.0.1:{port}/0"),
        redis_username="riskstream",
        redis_password=SecretStr(PASSWORD),
    )
    with Child("redis", command, environment) as child:
        child.start()
        async with asyncio.timeout(START_S):
            await answering(worker)
        yield worker


async def answering(settings: Settings) -> None:
    store = Store(settings)
    try:
        while True:
            try:
                return await store.ping()
            except StoreError:
                await asyncio.sleep(0.05)
    finally:
        await store.close()


async def test_the_worker_may_do_all_it_does(settings: Settings) -> None:
    store = Store(settings)
    try:
        assert (await store.info())["maxmemory_policy"] == "noeviction"
        token, marker = await store.acquire(PLACE)
        assert marker.offset is None
        write = Write(digest="d", hot=b"hot", bins={1: b"bin"}, drop=())
        assert await store.save(PLACE, token, [write], offset=7, newest_ms=1) == "ok"
        assert [patient.hot for patient in await store.load(PLACE)] == [b"hot"]
        await store.discard(PLACE, token)
        assert await store.load(PLACE) == []
    finally:
        await store.close()


@pytest.mark.parametrize(
    "command",
    [
        ("FLUSHALL",),
        ("KEYS", "*"),
        ("CONFIG", "GET", "*"),
        ("SHUTDOWN",),
        ("SET", "other:key", "1"),
        ("ACL", "LIST"),
    ],
    ids=lambda command: command[0],
)
async def test_its_user_may_do_no_more(settings: Settings, command: tuple[str, ...]) -> None:
    async with connect(settings) as client:
        with pytest.raises(redis.exceptions.NoPermissionError):
            await client.execute_command(*command)


async def test_nobody_comes_in_without_the_password(settings: Settings) -> None:
    async with redis.asyncio.Redis.from_url(settings.redis.get_secret_value()) as client:
        with pytest.raises(redis.exceptions.AuthenticationError):
            await client.ping()
