"""From the model repository to an engine that serves: loaded and proven in a thread of its own, in time.

Whatever a file in the repository or a vendor's library does, what comes out is an engine or an `EngineError`.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from engines import repository
from engines.engine import Engine
from engines.errors import BackendError, EngineError
from engines.steps import require_series
from schemas.model_config import ModelConfig
from worker.batch import Batcher
from worker.config import Settings
from worker.drift import DriftWatch, watch
from worker.served import Served
from worker.threads import in_thread

LOAD_S = 300.0
"""A load that takes longer is given up. Building a plan of a large model takes minutes; for as long, a worker
that starts answers nothing, and one that serves finds no newer version."""

CLOSE_S = 5.0
"""What a worker that stops waits for loads under way: their engines are to be closed."""

Turns = Callable[[str], asyncio.Semaphore | None]

ON_A_GPU = 2
"""Batches that all engines together have on a GPU at a time: one is copied while another is computed."""


def device_turns() -> Turns:
    """Turns by backend, for all engines of a process: those on a GPU take turns, those on the CPU need not.

    Whoever waits is served in turn: of two engines, neither waits for more than a batch of the other to end.
    """
    gpu = asyncio.Semaphore(ON_A_GPU)
    return lambda backend: None if backend == repository.REFERENCE_BACKEND else gpu


class Loaded(Served):
    """A version on an engine of this process.

    rung: 0 for the backend asked for, 1 for the one that stands in.
    """

    def __init__(self, batcher: Batcher, rung: int, watch: DriftWatch | None) -> None:
        super().__init__(batcher.engine.config, batcher.engine.backend, batcher.infer, watch)
        self.batcher = batcher
        self.rung = rung

    async def close(self) -> None:
        """Free the engine; nobody holds this any more."""
        await self.batcher.close()
        try:
            await in_thread(self.batcher.engine.close)
        except BackendError:  # no thread can be started: all the more reason to free it
            self.batcher.engine.close()


class Files(NamedTuple):
    """What a version's files were when they were looked at: a change of any is a reason to load it again."""

    config: bytes
    others: tuple[tuple[int, int], ...]


class Proven(NamedTuple):
    """An engine that reproduces its golden data, how to ask it for them again, and what counts its scores."""

    engine: Engine
    verify: Callable[[], None]
    watch: DriftWatch | None


class Loader:
    """Loads a model's versions.

    Args:
        settings: repository, model, patience.
        turns: gives what engines of a backend's device take turns by; None where they need not.
        require: raises KindError for a model of a kind that is not served here.
    """

    def __init__(
        self, settings: Settings, turns: Turns, require: Callable[[ModelConfig], None] = require_series
    ) -> None:
        self._settings = settings
        self._require = require
        self._turns = turns
        self._under_way: dict[asyncio.Future[Proven], str] = {}

    def late(self, backend: str) -> bool:
        """Whether a load on a backend was given up and has not come back."""
        return backend in self._under_way.values()

    async def served_config(self) -> ModelConfig:
        """The config of the version to serve: a shadow's, or else the one that the repository names.

        Raises:
            EngineError: it cannot be used.
        """
        return await in_thread(self._config)

    def _config(self) -> ModelConfig:
        settings = self._settings
        config = repository.read_config(settings.model_repository, settings.model, settings.shadow_version)
        self._require(config)
        return config

    async def load(self, config: ModelConfig, backend: str, rung: int, before: Served | None) -> Loaded:
        """Load a version, by its config, on a backend; what counts scores is taken on from `before`.

        Raises:
            EngineError: it cannot be loaded, or not in time.
        """
        settings = self._settings
        counted = before if before is not None and before.config == config else None
        call = in_thread(lambda: _proven(settings, config, backend, counted is None))
        self._under_way[call] = backend
        try:
            await asyncio.wait({call}, timeout=LOAD_S)
        except asyncio.CancelledError:
            call.add_done_callback(self._unwanted)
            raise
        if not call.done():
            call.add_done_callback(self._unwanted)
            raise BackendError(f"loading {config.name} on {backend} takes more than {LOAD_S:g} s")
        del self._under_way[call]
        engine, verify, counts = call.result()
        timeout_s, patience_s = settings.infer_timeout_s, settings.engine_patience_s
        try:
            batcher = Batcher(engine, verify, timeout_s, patience_s, self._turns(backend))
        except RuntimeError as error:
            engine.close()
            raise BackendError(f"no thread can run {config.name}: {error}; out of memory?") from error
        return Loaded(batcher, rung, counted.watch if counted is not None else counts)

    def _unwanted(self, call: asyncio.Future[Proven]) -> None:
        """Free what nobody waits for any more."""
        self._under_way.pop(call, None)
        if not call.cancelled() and call.exception() is None:
            call.result().engine.close()

    async def close(self) -> None:
        """Wait for loads under way, but not for long."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=CLOSE_S)


async def files_of(settings: Settings) -> Files | None:
    """The served version's files as they are now; None while they cannot be read."""
    try:
        return await in_thread(lambda: _files(settings))
    except EngineError:
        return None


def _files(settings: Settings) -> Files | None:
    try:
        config = repository.read_config(settings.model_repository, settings.model, settings.shadow_version)
        folder = settings.model_repository / settings.model / str(config.version)
        stats = [(folder / name).stat() for name in (repository.GRAPH, repository.GOLDEN)]
    except (OSError, EngineError):
        return None
    return Files(msgspec.json.encode(config), tuple((stat.st_mtime_ns, stat.st_size) for stat in stats))


def _proven(settings: Settings, config: ModelConfig, backend: str, with_watch: bool) -> Proven:
    models = settings.model_repository
    try:
        # By the config in hand: by now config.json may name another version, or be damaged.
        golden = repository.golden_of(models, config)
        engine = repository.load_unproved(
            models,
            config,
            backend,
            settings.plans,
            settings.model_memory_limit,
            precision=settings.precision_on(backend),
        )
        try:
            repository.verify(engine, golden)
            repository.warm_up(engine, golden)
            counts = watch(models, config) if with_watch and config.kind != "image" else None
        except BaseException:
            engine.close()
            raise
    except EngineError:
        raise
    except Exception as error:
        # A damaged file or a vendor's library may raise anything; the version before goes on all the same.
        raise BackendError(f"{config.name} cannot be loaded on {backend}: {type(error).__name__}") from error
    return Proven(engine, lambda: repository.verify(engine, golden), counts)
