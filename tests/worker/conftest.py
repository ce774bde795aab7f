"""Real parts shared by the tests: the shipped model, a redis-server."""

from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import settings

from engines import repository
from engines.engine import Engine
from worker import config, embedded
from worker.config import Settings
from worker.store import Store

settings.register_profile("same-examples-every-time", derandomize=True, deadline=None)
settings.load_profile("same-examples-every-time")


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """The shipped vitals model on ONNX Runtime."""
    engine = repository.load(repository.SHIPPED, "vitals")
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[embedded.Server]:
    """One redis-server for all tests; each test has its own namespace in it."""
    with embedded.redis() as server:
        yield server


@pytest.fixture
def redis_settings(redis_server: embedded.Server, request: pytest.FixtureRequest) -> Settings:
    """Settings whose group, and so whose namespace in Redis, is this test's own."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.nodeid)[-150:]
    return config.load(redis=f"redis://{redis_server.address}/0", group=name, redis_timeout_s=1.0)


@pytest.fixture
async def store(redis_settings: Settings) -> AsyncIterator[Store]:
    """A store in the test's own namespace."""
    store = Store(redis_settings)
    yield store
    await store.close()
