"""Servers for the integration tests: one of each kind for a module, and marks on every test here."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.integration.orthanc import OrthancServer
from tests.integration.servers import KafkaServer, RedisServer, new_account

FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.integration)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kafka(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[KafkaServer]:
    """Apache Kafka with a plain and a SASL_SSL listener, shared by a module's tests."""
    async with KafkaServer(tmp_path_factory.mktemp("kafka"), account=new_account()) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def redis_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RedisServer]:
    """redis-server without a password, shared by a module's tests."""
    async with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def secured_redis(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RedisServer]:
    """redis-server with one ACL user and a TLS port, shared by a module's tests."""
    async with RedisServer(tmp_path_factory.mktemp("secured-redis"), account=new_account()) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def orthanc(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[OrthancServer]:
    """Orthanc with one user, shared by a module's tests."""
    async with OrthancServer(tmp_path_factory.mktemp("orthanc"), new_account()) as server:
        yield server
