"""What the tests of the ward page stand on: a broker, Redis, a real worker and a real board, as processes."""

import asyncio
import os
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.error import URLError

import msgspec
from aiokafka import AIOKafkaProducer

from schemas.features import CHANNEL, FEATURES
from schemas.messages import Alert, Finding, Observation, Score, VitalsRecord
from worker import cli, config, embedded
from worker.embedded import LOOPBACK, Child, Server

ROOT = Path(cli.__file__).resolve().parent.parent
READY_S = 60.0

ILL = {"respiratory_rate": 31, "oxygen_saturation": 85, "systolic_pressure": 82, "heart_rate": 142}
"""Twelve points of NEWS2 for certain, so `high` at once."""


@dataclass
class Stage:
    """Running parts; `worker` and `board` may be stopped and started again."""

    env: dict[str, str]
    settings: config.Settings
    worker: Child
    worker_url: str
    board: Server

    @property
    def url(self) -> str:
        return f"http://{self.board.address}/"

    async def send(self, patient: str, **values: float) -> None:
        """Publish a record of bedside signs, measured now."""
        await self.publish(self.settings.topic_vitals, patient, [self.record(patient, **values)])

    def record(self, patient: str, **values: float) -> VitalsRecord:
        """A record of bedside signs, measured now."""
        now = datetime.now(UTC)
        observations = tuple(
            Observation(FEATURES[CHANNEL[name]].loinc[0], value, FEATURES[CHANNEL[name]].unit)
            for name, value in values.items()
        )
        return VitalsRecord(f"{patient}-{now.timestamp()}", patient, now, observations)

    @asynccontextmanager
    async def producer(self) -> AsyncIterator[AIOKafkaProducer]:
        """A producer that is connected already, as a device's is."""
        producer = AIOKafkaProducer(**self.settings.kafka_client())
        await producer.start()
        try:
            yield producer
            await producer.flush()
        finally:
            await producer.stop()

    async def publish(
        self, topic: str, key: str, messages: Sequence[VitalsRecord | Score | Alert | Finding]
    ) -> None:
        """Publish messages as a worker or a device would."""
        async with self.producer() as producer:
            for message in messages:
                await producer.send(topic, msgspec.json.encode(message), key.encode())

    async def ready(self) -> None:
        """Wait until the worker serves."""
        deadline = time.perf_counter() + READY_S
        while not await asyncio.to_thread(self._answers):
            assert self.worker.running, self.worker.tail()
            assert time.perf_counter() < deadline, self.worker.tail()
            await asyncio.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.worker_url}/health/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False


@contextmanager
def stage() -> Iterator[Stage]:
    """Start everything; whatever happens, nothing is left running."""
    with ExitStack() as stack:
        broker = stack.enter_context(embedded.tansu())
        redis = stack.enter_context(embedded.redis())
        own: dict[str, Any] = {
            "broker": broker.address,
            "redis": f"redis://{redis.address}/0",
            "kafka_idempotence": False,
            "publish_scores": True,
            "create_topics": True,
            "partitions": 2,
            "http_port": embedded.free_port(),
        }
        env = os.environ | {f"RISKSTREAM_{name.upper()}": str(value) for name, value in own.items()}
        env["PYTHONPATH"] = str(ROOT)
        worker = stack.enter_context(Child("worker", [sys.executable, "-m", "worker.cli", "run"], env))
        worker.start()
        page = stack.enter_context(board(env))
        url = f"http://{LOOPBACK}:{own['http_port']}"
        yield Stage(env, config.load(**own), worker, url, page)


@contextmanager
def board(env: dict[str, str], **settings: str) -> Iterator[Server]:
    """A board on a free port, with further settings."""
    port = embedded.free_port()
    own = {f"RISKSTREAM_BOARD_{name}": value for name, value in settings.items()}
    own["RISKSTREAM_BOARD_PORT"] = str(port)
    command = [sys.executable, "-m", "worker.cli", "board"]
    with embedded.started("board", command, port, env | own) as server:
        yield server
