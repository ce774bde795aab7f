"""The worker process: a Faust agent around the pipeline, its dependencies, its end.

The agent (`transport.py`) hands each chunk of raw records to its partition's lane (`lanes.py`). Faust brings
the consumer group, flow control and supervision; it publishes, commits and serves nothing.
"""

import asyncio
import faulthandler
import os
import signal
import tempfile
import threading
import time
from collections.abc import Coroutine
from functools import partial
from typing import Any

import structlog

from schemas import units
from schemas.errors import PolicyError
from schemas.model_config import ModelConfig
from worker import metrics, shadow, tracing
from worker.alert_log import LastAlerts, last_alerts
from worker.assignment import Lanes
from worker.carry import Carrier
from worker.checkpoint import Checkpointer
from worker.cluster import Cluster, complaints, describe, optional_topics
from worker.config import Role, Settings
from worker.deadlines import shutdown_s
from worker.errors import FatalError, StoreError
from worker.feedback_topic import feedback_load
from worker.findings_topic import findings_load
from worker.http import Health, serve
from worker.imaging_app import ImagingRole, image_settings, require_image
from worker.intake import limits_of
from worker.lanes import Lane, Stages
from worker.loading import Loader, device_turns
from worker.messages import Author
from worker.partition import Place
from worker.pipeline import Pipeline
from worker.policies import Policies, shipped
from worker.policy_source import PolicyFile, PolicyTopic, follow_imaging
from worker.preparing import prepare
from worker.publish import Publisher
from worker.restore import Restorer
from worker.role import serve_app, together, unless_stopped, until_up
from worker.served import Served
from worker.serving import Ladder
from worker.store import Store
from worker.transport import chunk_app, vitals_subscription

log = structlog.get_logger("riskstream.app")


class Worker:
    """One worker process, from start to stop."""

    def __init__(self, settings: Settings, role: Role = Role.VITALS) -> None:
        turns = device_turns()
        self.settings = settings
        self._role = role
        self._imaging = ImagingRole(settings, turns) if role is not Role.VITALS else None
        self._stop = asyncio.Event()
        self._lanes: Lanes[Lane] | None = None
        self._ladder = Ladder(settings, turns)
        self._checkpointer: Checkpointer | None = None
        self._store: Store | None = None
        self._publisher = Publisher(settings)
        self._joined = False
        self._redis_up: bool | None = None  # nobody has asked yet

    async def run(self) -> None:
        """Work until a signal comes or something fatal happens.

        Raises:
            FatalError: the process must stop, and says why.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._begin_to_stop)
        loop.add_signal_handler(signal.SIGUSR1, _log_tasks)
        tracing.start(self.settings)
        runner, port = await serve(
            self.settings.http_host, self.settings.http_port, Health(self._live_all, self._ready_all)
        )
        log.info("serving metrics and health", host=self.settings.http_host, port=port)
        roles = [self._work()] if self._role is not Role.IMAGING else []
        if self._imaging is not None:
            roles.append(self._imaging.run(self._stop))
        try:
            await together(self._stop, roles)
        finally:
            await self._publisher.stop()
            if self._store is not None:
                await self._store.close()
            await self._ladder.close()
            await runner.cleanup()
            await asyncio.to_thread(tracing.stop)
            log.info("stopped")

    async def _work(self) -> None:
        ladder = self._ladder
        if not await unless_stopped(self._stop, ladder.start()):
            return
        shadow.announce(self.settings, ladder.current.config)
        cluster = await until_up(self._stop, "Kafka", self._describe)
        await until_up(self._stop, "Kafka producer", self._publisher.start)
        if cluster is None or self._stop.is_set():
            return
        self._store = store = Store(self.settings, cluster.vitals_id)
        self._lanes = Lanes(cluster.id)
        with tempfile.TemporaryDirectory(prefix="riskstream-") as folder:
            app = chunk_app(self.settings, self._lanes, folder, vitals_subscription(self.settings))
            # Units take half a second to load, for which the first record would wait.
            (policies, followed), _ = await asyncio.gather(
                self._policies(ladder.current.config, cluster), asyncio.to_thread(units.prepare)
            )
            ladder.policies = policies
            self._lanes.make = partial(Lane, stages=self._stages(app, store, policies))
            ladder.prepare = self._prepare
            beside = (self._watch_redis(store), ladder.follow(), ladder.prove(), *followed)
            self._joined = True
            try:
                await serve_app(self.settings, app, self._lanes, self._stop, beside)
            finally:
                self._joined = False

    async def _policies(
        self, model: ModelConfig, cluster: Cluster
    ) -> tuple[Policies, list[Coroutine[Any, Any, None]]]:
        """The policies in force, and what goes on beside the lanes: following their sources, feedback."""
        settings, followed = self.settings, []
        try:
            policies = shipped(settings, model)
            if "imaging" in policies.names:
                image_model = Loader(image_settings(settings), device_turns(), require_image)
                followed.append(follow_imaging(policies, image_model.served_config))
            if settings.policies is not None:
                file = PolicyFile(settings.policies, policies)
                file.load()
                followed.append(file.follow())
        except PolicyError as error:
            raise FatalError(str(error)) from None
        partitions = cluster.partitions.get(settings.topic_policies, 0)
        if partitions:
            topic = PolicyTopic(settings, partitions, policies)
            await until_up(self._stop, "policies topic", topic.load)
            followed.append(topic.follow())
        if settings.imaging_model and "imaging" not in policies.names:
            log.warning(
                "findings raise no alerts: the repository has no such model", model=settings.imaging_model
            )
        author = partial(Author, voices=self._ladder.current.voices, topics=settings.output_topics)
        followed += [
            Carrier(load, settings, cluster.id, self._publisher.publish, author).run()
            for load in (feedback_load(settings, cluster), findings_load(settings))
            if cluster.partitions.get(load.topic)
        ]
        for name in optional_topics(settings):
            if not cluster.partitions.get(name):
                log.warning("topic is missing; it is read after the next start", topic=name)
        return policies, followed

    def _begin_to_stop(self) -> None:
        """Stop; should anything hang while it does, end the process all the same: its state is safe."""
        self._stop.set()
        deadline = threading.Timer(shutdown_s(self.settings.rebalance_timeout_s), _end_all_the_same)
        deadline.daemon = True
        deadline.start()

    async def _describe(self) -> Cluster:
        cluster = await describe(self.settings, create=self.settings.create_topics)
        found = complaints(self.settings, cluster)
        if found:
            raise FatalError("; ".join(found))
        return cluster

    async def _watch_redis(self, store: Store) -> None:
        while True:
            try:
                await store.ping()
                metrics.redis_up.set(1)
                self._redis_up = True
            except StoreError:
                metrics.redis_up.set(0)
                self._redis_up = False
            await asyncio.sleep(5.0)

    async def _prepare(self, served: Served) -> None:
        lanes = self._lanes.owned if self._lanes else []
        await prepare([lane.partition for lane in lanes if lane.partition is not None], served)

    def _stages(self, app: Any, store: Store, policies: Policies) -> Stages:
        settings, ladder = self.settings, self._ladder

        async def alert_log(place: Place, before: int) -> LastAlerts:
            return await last_alerts(settings, place, policies.names, before)

        pipeline = Pipeline(
            ladder,
            policies,
            self._publisher.publish,
            settings.output_topics,
            limits_of(settings),
            publish_scores=settings.publish_scores,
            shadow=settings.shadow_version,
        )
        horizon_ms = round(settings.rebuild_horizon_h * 3_600_000)
        restorer = Restorer(store, app.consumer, lambda: ladder.current.fingerprint, horizon_ms)
        self._checkpointer = Checkpointer(store, app.consumer)
        return Stages(
            pipeline,
            restorer,
            self._checkpointer,
            app.consumer,
            alert_log,
            ladder.answers,
            settings.checkpoint_interval_s,
        )

    def _live_all(self) -> tuple[bool, str]:
        """Of the roles that run here, the first that does not live."""
        alive, why = self._live()
        return self._imaging.live() if alive and self._imaging is not None else (alive, why)

    def _ready_all(self) -> tuple[bool, dict[str, Any]]:
        """Whether every role that runs here is ready; what is said of the imaging role stands apart."""
        ready, state = (True, {}) if self._role is Role.IMAGING else self._ready()
        if self._imaging is None:
            return ready, state
        imaging_ready, imaging = self._imaging.ready()
        return ready and imaging_ready, {**state, "imaging": imaging}

    def _live(self) -> tuple[bool, str]:
        for lane in self._lanes.owned if self._lanes else ():
            stalled = time.perf_counter() - lane.stuck_since if lane.stuck_since is not None else 0.0
            if stalled > self.settings.stall_after_s:
                return (
                    False,
                    f"partition {lane.place.partition} has lag and has not moved for {stalled:.0f} s",
                )
        if self._ladder.started and self._ladder.current.batcher.hung:
            return False, "the engine hangs"
        return True, ""

    def _ready(self) -> tuple[bool, dict[str, Any]]:
        lanes = self._lanes.owned if self._lanes else []
        served = self._ladder.current if self._ladder.started else None
        state = {
            "joined": self._joined and self._lanes is not None and self._lanes.joined,
            "redis": self._redis_up,
            "checkpoints": self._checkpointer is None or not self._checkpointer.failing,
            "partitions": len(lanes),
            "partitions_ready": sum(lane.ready for lane in lanes),
            "news2_alone": sum(lane.floored for lane in lanes),
            "backend": served.backend if served else None,
            "rung": served.rung if served else None,
            "model": served.config.name if served else None,
            "version": served.config.version if served else None,
            "refused": self._ladder.refused or None,
            "shadow": self.settings.shadow_version is not None,
        }
        ready = (
            state["joined"] and state["redis"] and state["checkpoints"] and all(lane.ready for lane in lanes)
        )
        answers = served is not None and not served.batcher.hung and not state["news2_alone"]
        return bool(ready and answers), state


def _end_all_the_same() -> None:
    log.critical("did not stop in time, and is ended")
    faulthandler.dump_traceback(all_threads=True)
    os._exit(1)


def _log_tasks() -> None:
    """Log where every task stands: what to look at when a worker seems to hang (SIGUSR1)."""
    for task in asyncio.all_tasks():
        stack = [f"{frame.f_code.co_filename}:{frame.f_lineno}" for frame in task.get_stack(limit=8)]
        log.info("task", name=task.get_name(), stack=stack)
