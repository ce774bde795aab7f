"""The endpoints tell what the app tells them."""

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from worker import metrics
from worker.errors import FatalError
from worker.http import Health, serve


class State:
    """What a worker would report."""

    alive: tuple[bool, str] = (True, "")
    ready: tuple[bool, dict[str, Any]] = (True, {"redis": True})


@pytest.fixture
async def served() -> AsyncIterator[tuple[State, str]]:
    state = State()
    runner, port = await serve("127.0.0.1", 0, Health(lambda: state.alive, lambda: state.ready))
    yield state, f"http://127.0.0.1:{port}"
    await runner.cleanup()


async def test_health(served: tuple[State, str]) -> None:
    state, url = served
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{url}/health/live") as answer:
            assert (answer.status, await answer.json()) == (200, {"live": True, "reason": ""})
        state.alive, state.ready = (False, "partition 3 has not moved"), (False, {"redis": False})
        async with session.get(f"{url}/health/live") as answer:
            assert (answer.status, (await answer.json())["reason"]) == (503, "partition 3 has not moved")
        async with session.get(f"{url}/health/ready") as answer:
            assert (answer.status, await answer.json()) == (503, {"ready": False, "redis": False})


async def test_metrics(served: tuple[State, str]) -> None:
    metrics.records.labels("vitals", "scored").inc(0)
    metrics.redis_up.set(1)
    async with aiohttp.ClientSession() as session, session.get(f"{served[1]}/metrics") as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/plain")
        assert "# TYPE riskstream_records_total counter" in await answer.text()


async def test_nothing_else_is_served(served: tuple[State, str]) -> None:
    async with aiohttp.ClientSession() as session, session.get(f"{served[1]}/") as answer:
        assert answer.status == 404


async def test_a_port_that_is_taken_is_fatal_and_named(served: tuple[State, str]) -> None:
    port = int(served[1].rpartition(":")[2])
    with pytest.raises(
        FatalError, match=rf"cannot listen on 127\.0\.0\.1:{port}: .*; set RISKSTREAM_HTTP_PORT"
    ):
        await serve("127.0.0.1", port, Health(lambda: (True, ""), lambda: (True, {})))


async def test_a_host_that_does_not_exist_is_fatal_and_named() -> None:
    with pytest.raises(FatalError, match=r"cannot listen on nowhere\.invalid:0: "):
        await serve("nowhere.invalid", 0, Health(lambda: (True, ""), lambda: (True, {})))
