"""The imaging role, assembled: its group, engine, sources and decoders, beside the vitals role or alone.

It shares nothing with the vitals role but the process and the device: it has a Faust app, a producer, an
engine thread and a connection to Redis of its own.
"""

import asyncio
import tempfile
import time
from typing import Any

import structlog

from engines.errors import KindError
from schemas.model_config import ModelConfig
from worker import decoder, fetch, serving
from worker.assignment import Lanes
from worker.cluster import ImagingCluster, describe_imaging, imaging_complaints
from worker.config import Settings
from worker.errors import FatalError
from worker.imaging import ImagingPath, Outlets
from worker.imaging_lanes import ImagingLane, ImagingStages, Room
from worker.imaging_memory import ScoredImages
from worker.imaging_sources import FetchedAndDecoded
from worker.intake import limits_of
from worker.loading import Turns
from worker.partition import Place
from worker.publish import Publisher
from worker.role import serve_app, unless_stopped, until_up
from worker.serving import Ladder
from worker.store import connect
from worker.transport import Subscription, chunk_app

LOOK_S = 5.0
"""Between two looks at Redis."""

CHUNK_RECORDS = 64
"""Of a partition at once: pictures are few and large."""

SLACK_S = 5.0
"""For what a step does after its time has run out: a probe thread, a digest, a child that is ended."""

log = structlog.get_logger("riskstream.imaging")


def stalled_after_s(settings: Settings) -> float:
    """Seconds without movement from which the role counts as stuck.

    Not before the longest step of one picture has run out of its own time: a restart would begin it anew.
    A step that hangs is found so long after it began, and the supervisor's next look.
    """
    step_s = max(fetch.longest_s(settings), decoder.longest_s(settings.imaging_decode_timeout_s))
    step_s = max(step_s, serving.longest_s(settings), settings.publish_timeout_s)
    return max(settings.stall_after_s, step_s + 2 * settings.redis_timeout_s + SLACK_S)


class ImagingRole:
    """The imaging role of a worker, from start to stop."""

    def __init__(self, settings: Settings, turns: Turns) -> None:
        """`turns` are those of the process's other engines."""
        self.settings = settings
        self._ladder = image_ladder(settings, turns)
        self._publisher = Publisher(settings)
        self._joined = False
        self._lanes: Lanes[ImagingLane] | None = None
        self._path: ImagingPath | None = None
        self._sources: FetchedAndDecoded | None = None
        self._scored: ScoredImages | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set.

        Raises:
            FatalError: the process must stop, and says why.
            EngineError: the model cannot be served.
        """
        redis = connect(self.settings)
        try:
            if not await unless_stopped(stop, self._ladder.start()):
                return
            cluster = await until_up(stop, "Kafka", self._describe)
            await until_up(stop, "Kafka producer", self._publisher.start)
            if cluster is None or stop.is_set():
                return
            self._sources = FetchedAndDecoded(self.settings)
            await self._sources.start()
            await self._serve(stop, cluster, self._sources, redis)
        finally:
            await self._publisher.stop()
            if self._sources is not None:
                await self._sources.close()
            await self._ladder.close()
            await redis.aclose()

    async def _serve(
        self,
        stop: asyncio.Event,
        cluster: ImagingCluster,
        sources: FetchedAndDecoded,
        redis: Any,
    ) -> None:
        s = self.settings
        self._scored = ScoredImages(
            redis, f"{cluster.id}:{s.imaging_group}:{cluster.topic_id}", s.imaging_memory_h
        )
        self._path = path = ImagingPath(
            self._ladder,
            sources,
            Outlets(self._publisher.publish, s.topic_findings, s.topic_dead_letters),
            self._scored,
            limits_of(s, s.imaging_max_record_bytes),
        )
        self._lanes = lanes = Lanes[ImagingLane](cluster.id)
        subscription = Subscription(s.imaging_group, s.topic_imaging, s.fetch_max_bytes, CHUNK_RECORDS)
        with tempfile.TemporaryDirectory(prefix="riskstream-imaging-") as folder:
            app = chunk_app(s, lanes, folder, subscription)
            room = Room(s.imaging_window_bytes)
            stages = ImagingStages(path, app.consumer, room, s.checkpoint_interval_s)

            def make(place: Place) -> ImagingLane:
                return ImagingLane(place, stages)

            lanes.make = make
            self._joined = True
            try:
                beside = (self._watch(self._scored), self._ladder.follow(), self._ladder.prove())
                await serve_app(s, app, lanes, stop, beside)
            finally:
                self._joined = False

    async def _describe(self) -> ImagingCluster:
        cluster = await describe_imaging(self.settings, create=self.settings.create_topics)
        found = imaging_complaints(self.settings, cluster)
        if found:
            raise FatalError("; ".join(found))
        return cluster

    async def _watch(self, scored: ScoredImages) -> None:
        while True:
            await scored.look()
            await asyncio.sleep(LOOK_S)

    def live(self) -> tuple[bool, str]:
        """Whether the role moves, and why not; what waits for a dependency counts as moving."""
        for lane in self._lanes.owned if self._lanes else ():
            stalled = time.perf_counter() - lane.stuck_since if lane.stuck_since is not None else 0.0
            if stalled > stalled_after_s(self.settings):
                return False, f"imaging partition {lane.place.partition} has not moved for {stalled:.0f} s"
        if self._ladder.started and self._ladder.current.batcher.hung:
            return False, "the image engine hangs"
        return True, ""

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """Whether every dependency is there, and one entry for each."""
        lanes = self._lanes.owned if self._lanes else []
        served, path = self._ladder.current if self._ladder.started else None, self._path
        state = {
            "joined": self._joined and self._lanes is not None and self._lanes.joined,
            "redis": self._scored is not None and self._scored.redis_up,
            "partitions": len(lanes),
            "partitions_ready": sum(lane.ready for lane in lanes),
            "in_flight": path.in_flight if path else 0,
            "sources_away": self._sources.away if self._sources else 0,
            "decoders": self._sources is None or self._sources.decoders_up,
            "engine_answers": served is not None
            and not served.batcher.hung
            and not (path and path.engine_away),
            "backend": served.backend if served else None,
            "rung": served.rung if served else None,
            "refused": self._ladder.refused or None,
            "model": served.config.name if served else None,
            "version": served.config.version if served else None,
        }
        needed = ("joined", "redis", "decoders", "engine_answers")
        ready = all(state[name] for name in needed) and not state["sources_away"]
        return ready and all(lane.ready for lane in lanes), state


def image_ladder(settings: Settings, turns: Turns) -> Ladder:
    """What serves the image model.

    Raises:
        KindError: none is named.
    """
    return Ladder(image_settings(settings), turns, require_image)


def image_settings(settings: Settings) -> Settings:
    """The settings by which the image model is served.

    Raises:
        KindError: none is named.
    """
    if not settings.imaging_model:
        raise KindError("imaging_model is empty; the imaging role needs one of kind image")
    return settings.model_copy(update={"model": settings.imaging_model, "shadow_version": None})


def require_image(config: ModelConfig) -> None:
    """Refuse a model that reads no images.

    Raises:
        KindError: it is a series model.
    """
    if config.kind != "image":
        raise KindError(f"{config.name} is of kind {config.kind}; the imaging role needs one of kind image")
