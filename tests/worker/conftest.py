"""Real parts shared by the tests: the shipped model, a redis-server."""

from collections.abc import AsyncIterator, Iterator

import msgspec
import pytest

from engines import repository
from engines.engine import Engine
from schemas.model_config import Level, Policy
from worker import config, embedded
from worker.config import Settings
from worker.store import Store

POLICY = Policy(
    "1",
    (Level("elevated", 0.23, 3600.0), Level("high", 0.51, 1800.0)),
    exit=0.161,
    resolve_s=7200.0,
    refractory_s=14400.0,
    update_delta=0.15,
    expiry_s=43200.0,
)
"""The tests' own, which says much in a few hours: choosing another policy to ship changes no test."""


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """The shipped vitals model on ONNX Runtime, under the tests' policy."""
    config = repository.read_config(repository.SHIPPED, "vitals")
    graph = repository.read_graph(repository.SHIPPED, config)
    engine = repository.open_engine(msgspec.structs.replace(config, policy=POLICY), graph)
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
