"""A ladder of engines on a model repository, what runs on it, and a vendor's library that can be broken."""

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from prometheus_client import REGISTRY

from engines import repository
from engines.tensorrt_build import Built
from schemas.model_config import ModelConfig
from tests import kinds
from tests.engines.conftest import golden_of
from tests.engines.fake_cuda import FakeDriver
from tests.engines.fake_tensorrt import FakeTensorRT
from tests.worker.records import HOUR, LIMITS, NEWS2, PLACE, T0, TOPICS, Outbox, Record, worsening
from tests.worker.test_checkpoint import HORIZON_MS, ListLog
from tests.worker.test_lanes import SoughtLog
from worker import config as settings_of
from worker.alert_log import LastAlerts, no_alerts
from worker.checkpoint import Checkpointer
from worker.config import Settings
from worker.lanes import Lane, Stages
from worker.partition import Partition, Place
from worker.pipeline import Pipeline
from worker.policies import Policies
from worker.preparing import prepare
from worker.publish import Outgoing
from worker.restore import Restorer
from worker.served import Served
from worker.serving import Ladder
from worker.store import Store

PATIENCE_S = 0.3
GIVEN_UP_S = 60.0
RTX = "tensorrt-rtx"
FAKE, REFERENCE = b"tensorrt-rtx-cuda", b"onnxruntime-cpu"


def sample(name: str, **labels: str) -> float:
    """A metric as it stands; 0 where it has never been set."""
    return REGISTRY.get_sample_value(name, labels) or 0.0


def small(
    version: int = 1, *, note: str = "", gain: float = 1.0, keep: float = 0.7, **changes: object
) -> tuple[ModelConfig, bytes]:
    """A step model.

    A note changes its digest alone, a gain of its weights what it computes from a state, and how much of it
    an hour keeps what a state means: another's is of no use.
    """
    config, graph = kinds.model_of("step")
    made = onnx.load_from_string(graph)
    made.doc_string = note
    for fixed in made.graph.initializer:
        if fixed.name == "weights":
            scaled = numpy_helper.to_array(fixed) * np.float32(gain)
            fixed.CopyFrom(numpy_helper.from_array(scaled, "weights"))
        elif fixed.name == "keep":
            fixed.CopyFrom(numpy_helper.from_array(np.array(keep, np.float32), "keep"))
    return with_graph(msgspec.structs.replace(config, version=version, **changes), made.SerializeToString())


def with_graph(config: ModelConfig, graph: bytes) -> tuple[ModelConfig, bytes]:
    """A config for another graph."""
    return msgspec.structs.replace(config, digest=hashlib.sha256(graph).hexdigest()), graph


def put(models: Path, config: ModelConfig, graph: bytes) -> None:
    """Put a version into a repository, and name it as the one to serve, last."""
    folder = models / config.name / str(config.version)
    folder.mkdir(parents=True, exist_ok=True)
    engine = repository.open_engine(config, graph)
    inputs = {name: array.astype(np.float32) for name, array in kinds.inputs_of(engine, 5).items()}
    (folder / repository.GRAPH).write_bytes(graph)
    (folder / repository.GOLDEN).write_bytes(golden_of(inputs, engine.run(inputs)))
    engine.close()
    name_version(models, config)


def name_version(models: Path, config: ModelConfig) -> None:
    """Name a version as the one to serve, as a rename does it: whole or not at all."""
    beside = models / config.name / ".config"
    beside.write_bytes(msgspec.json.encode(config))
    beside.replace(models / config.name / repository.CONFIG)


def settings(models: Path, backend: str = "onnxruntime", **more: Any) -> Settings:
    """A worker's settings for the step model."""
    usual: dict[str, Any] = {"model": "small", "engine_patience_s": PATIENCE_S, "infer_timeout_s": 30.0}
    return settings_of.load(model_repository=models, backend=backend, **(usual | more))


class Walk:
    """A path over a ladder: one partition, and what it published."""

    def __init__(self, ladder: Ladder, outbox: Outbox | None = None) -> None:
        served = ladder.current.config
        self.ladder = ladder
        self.outbox = outbox or Outbox()
        self.policies = ladder.policies = Policies(served.name, served.policy, NEWS2)
        self.pipeline = Pipeline(ladder, self.policies, self.outbox, TOPICS, LIMITS, publish_scores=True)
        self.partition = Partition(PLACE, 0, 0)
        ladder.prepare = self.prepare

    async def prepare(self, served: Served) -> None:
        await prepare([self.partition], served)

    async def process(self, records: Sequence[Record], chunk: int = 4) -> None:
        for at in range(0, len(records), chunk):
            await self.pipeline.process(self.partition, records[at : at + chunk])


class Ward:
    """A lane over a ladder and a store, fed from a list as the transport feeds it."""

    def __init__(self, ladder: Ladder, store: Store, log: ListLog, chunk: int = 4) -> None:
        self.path = Walk(ladder)
        self.ladder = ladder
        self.log = SoughtLog(log)
        self._chunk = chunk
        restorer = Restorer(store, self.log, lambda: ladder.current.fingerprint, HORIZON_MS)

        async def alert_log(place: Place, before: int) -> LastAlerts:
            return no_alerts()

        self.checkpointer = Checkpointer(store, self.log)
        stages = Stages(
            self.path.pipeline, restorer, self.checkpointer, self.log, alert_log, ladder.answers, 0.05
        )
        self.lane = Lane(PLACE, stages)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Feed the lane until something holds."""
        async with asyncio.timeout(GIVEN_UP_S):
            while not holds():
                if self.lane.has_room and self.log.position < len(self.log.records):
                    self.lane.put(self.log.fetch(self._chunk))
                assert self.lane.failure() is None, self.lane.failure()
                await asyncio.sleep(0.002)

    async def until_offset(self, offset: int) -> None:
        await self.until(lambda: self.lane.partition is not None and self.lane.partition.position >= offset)


def bare(messages: Sequence[Outgoing]) -> list[Outgoing]:
    """Messages, whichever backend computed them."""
    return [message._replace(value=message.value.replace(FAKE, REFERENCE)) for message in messages]


class Library:
    """The fakes where a vendor's modules would be; can be taken away and given back."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.driver = FakeDriver()
        self.module = FakeTensorRT(self.driver)
        self._patch = patch
        patch.setattr("engines.tensorrt_build.build", lambda _, graph, *__: Built(graph, (), 1, (), (), None))
        self.come()

    def come(self) -> None:
        """Importable."""
        package = ModuleType("pycuda")
        package.driver = self.driver  # type: ignore[attr-defined]
        self._set({"tensorrt_rtx": self.module, "pycuda": package, "pycuda.driver": self.driver})

    def go(self) -> None:
        """Not importable."""
        self._set(dict.fromkeys(("tensorrt_rtx", "pycuda", "pycuda.driver")))

    def _set(self, modules: Mapping[str, object]) -> None:
        for name, module in modules.items():
            self._patch.setitem(sys.modules, name, module)


def records() -> list[Record]:
    """Two patients who worsen, the second when the first is ill already."""
    both = [*worsening("ill", 0, 14), *worsening("worse", 0, 14, T0 + 9 * HOUR)]
    both.sort(key=lambda one: one.timestamp)
    return [
        one._replace(offset=n, value=(one.value or b"").replace(b'"event_id": "e', b'"event_id": "e%d-' % n))
        for n, one in enumerate(both)
    ]


@asynccontextmanager
async def started(models: Path, backend: str = RTX, **more: object) -> AsyncIterator[Ladder]:
    ladder = Ladder(settings(models, backend, **more))
    await ladder.start()
    try:
        yield ladder
    finally:
        await ladder.close()


async def undisturbed(models: Path) -> Outbox:
    async with started(models, "onnxruntime") as ladder:
        walk = Walk(ladder)
        await walk.process(records())
        assert walk.outbox.alerts
        return walk.outbox


def steps(backend: bytes, reason: str) -> float:
    labels = {"model": "small", "backend": backend.decode(), "reason": reason}
    return sample("riskstream_ladder_steps_total", **labels)


def failures(reason: str) -> float:
    return sample("riskstream_engine_failures_total", model="small", reason=reason)


def rung() -> float:
    return sample("riskstream_ladder_rung", model="small")


def in_use(backend: bytes, version: int = 1) -> float:
    labels = {"model": "small", "version": str(version), "backend": backend.decode()}
    return sample("riskstream_backend_info", **labels)


def it_is_time(ladder: Ladder) -> None:
    """The wait before the next try is over."""
    ladder._climb_at = 0.0
