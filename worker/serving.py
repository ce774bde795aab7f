"""Which version of the model serves, on which rung of the ladder; changed while chunks go on.

    backend asked for -> onnxruntime -> NEWS2 alone

`Ladder` holds what serves. When an engine fails its golden data, or a call takes longer than the patience,
the chunk is computed by the next rung, which serves from then on; the better one is tried again, after ever
longer waits, until it loads, reproduces its golden data and serves. An engine whose call has not come back is
not tried again until it has: a thread that hangs cannot be ended. Below the last rung NEWS2 alone is left,
which is the lanes' affair.

A new version is one that config.json in the repository names and that is not what serves. It is loaded beside
the old one, held to its golden data, and serves the next chunk of every partition; a chunk at work finishes
with what it began with. One that cannot be loaded changes nothing, and is tried again when its files change,
and now and then. So rolling back is naming the old version again. A shadow stays with the version that its
settings name.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import msgspec
import structlog

from engines import repository
from engines.engine import Engine
from engines.errors import EngineError, GraphError
from engines.steps import require_series
from schemas.model_config import ModelConfig
from worker import metrics
from worker.batch import Batcher
from worker.config import Settings
from worker.drift import DriftWatch, watch
from worker.policies import Policies
from worker.served import Served

LOOK_S = 2.0
"""Between two looks at the repository, and at what can be closed."""

FIRST_CLIMB_S = 10.0
"""Wait before the better rung is tried again; doubled after each try that fails, up to `LAST_CLIMB_S`."""

LAST_CLIMB_S = 600.0

REFUSED_S = 60.0
"""Between two tries of a version that is refused: what was wrong may have been the machine's."""

REFERENCE = "onnxruntime"
"""The backend that stands in for others."""

T = TypeVar("T")
Turns = Callable[[str], asyncio.Lock | None]

log = structlog.get_logger("riskstream.serving")


def device_turns() -> Turns:
    """Locks by backend, for all engines of a process: those on a GPU take turns, those on the CPU need not.

    A lock is fair: whoever waits is served in turn, so that of two engines with work neither waits for
    longer than a batch of the other.
    """
    gpu = asyncio.Lock()
    return lambda backend: None if backend == REFERENCE else gpu


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
        await asyncio.to_thread(self.batcher.engine.close)


class Files(NamedTuple):
    """What a version's files were when they were looked at: a change of any is a reason to load it again."""

    config: bytes
    others: tuple[tuple[int, int], ...]


class Ladder:
    """What serves, and what could.

    Args:
        settings: repository, model, backend, patience.
        turns: gives the lock that engines of a backend's device share; None where they need not take turns.
    """

    def __init__(self, settings: Settings, turns: Turns = lambda backend: None) -> None:
        self.policies: Policies | None = None
        self.refused = ""
        self._settings = settings
        self._turns = turns
        self._rungs = tuple(dict.fromkeys((settings.backend, REFERENCE)))
        self._current: Loaded | None = None
        self._files: Files | None = None
        self._retired: list[Loaded] = []
        self._changing = asyncio.Lock()
        self._climb_at = 0.0
        self._climb_wait = FIRST_CLIMB_S
        self._climbed_at = float("-inf")
        self._refused_at = 0.0

    @property
    def started(self) -> bool:
        """Whether something serves."""
        return self._current is not None

    @property
    def current(self) -> Loaded:
        """What serves the next chunk."""
        assert self._current is not None, "start() comes first"
        return self._current

    async def start(self) -> None:
        """Load the served version, on the first rung that can.

        Raises:
            EngineError: no rung can.
        """
        self._files = _files(self._settings)
        self._install(await self._loaded())

    async def follow(self) -> None:
        """Swap versions, climb, and close what was replaced, for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()
            await self.climb()
            await self._sweep()

    async def look(self) -> bool:
        """Swap to the version that the repository names, if it is another one. Whether it was swapped."""
        found = await asyncio.to_thread(_files, self._settings)
        again = bool(self.refused) and time.perf_counter() > self._refused_at + REFUSED_S
        if found == self._files and not again:
            return False
        self._files = found
        try:
            loaded = await self._loaded()
        except (EngineError, OSError) as error:
            self._refuse(error)
            return False
        before = self.current.config.version
        async with self._changing:
            self._install(loaded)
            if self.policies is not None:
                for why in self.policies.ship(loaded.config.policy):
                    log.warning("a change of policy does not fit the new version and is left out", why=why)
        metrics.model_swaps.labels(self._settings.model, "swapped").inc()
        log.info("model swapped", model=loaded.config.name, before=before, version=loaded.config.version)
        await self._sweep()
        return True

    def _refuse(self, error: EngineError | OSError) -> None:
        self.refused = error.reason if isinstance(error, EngineError) else "unreadable"
        self._refused_at = time.perf_counter()
        metrics.model_swaps.labels(self._settings.model, "refused").inc()
        log.error(
            "the version in the repository is refused; the one before goes on",
            model=self._settings.model,
            serving=self.current.config.version,
            why=str(error),
        )

    async def instead(self, failed: Served, reason: str) -> Served | None:
        """What computes a chunk's rows where one failed; of the same version. None if nothing does."""
        async with self._changing:
            current = self.current
            if current is not failed:  # another chunk has stepped down, or the version has been swapped
                return current if current.config.digest == failed.config.digest else None
            for rung in range(current.rung + 1, len(self._rungs)):
                try:
                    lower = await self._load(rung, current.config)
                except EngineError as error:
                    log.error("the next rung cannot be loaded", backend=self._rungs[rung], why=str(error))
                    continue
                lasted = time.perf_counter() - self._climbed_at
                self._wait_longer(anew=lasted > LAST_CLIMB_S)
                self._install(lower, reason)
                return lower
        return None

    async def climb(self) -> bool:
        """Go back to the backend asked for, if it is time to try and it works. Whether it serves now."""
        current = self.current
        if current.rung == 0 or time.perf_counter() < self._climb_at:
            return False
        if any(old.rung < current.rung and old.batcher.busy for old in self._retired):
            return False  # its call has not come back; another would hang beside it
        await self._sweep()
        try:
            better = await self._load(0, current.config)
        except EngineError as error:
            self._wait_longer()
            log.warning("the backend asked for cannot serve yet", backend=self._rungs[0], why=str(error))
            return False
        async with self._changing:
            self._install(better, "back")
            self._climbed_at = time.perf_counter()
        return True

    def _wait_longer(self, *, anew: bool = False) -> None:
        """Put off the next try of the better rung."""
        self._climb_wait = FIRST_CLIMB_S if anew else min(self._climb_wait * 2, LAST_CLIMB_S)
        self._climb_at = time.perf_counter() + self._climb_wait

    async def answers(self) -> bool:
        """Whether what serves reproduces its golden data.

        Raises:
            EngineHungError: it hangs for good, and nothing stands in for it.
        """
        return await self.current.batcher.answers()

    async def close(self) -> None:
        """Free all engines but those whose calls have not come back."""
        for loaded in (*self._retired, *([self._current] if self._current else [])):
            if not loaded.batcher.busy:
                await loaded.close()

    async def _loaded(self) -> Loaded:
        """The version that the repository names, on the first rung that can."""
        config = await _in_thread(lambda: _series_config(self._settings))
        for rung, backend in enumerate(self._rungs):
            try:
                return await self._load(rung, config)
            except EngineError as error:
                if rung + 1 == len(self._rungs):
                    raise
                metrics.engine_failures.labels(error.reason).inc()
                log.error("the backend asked for cannot serve", backend=backend, why=str(error))
        raise AssertionError("there is a rung")

    async def _load(self, rung: int, config: ModelConfig) -> Loaded:
        settings, backend = self._settings, self._rungs[rung]
        engine, verify = await _in_thread(lambda: _proven(settings, backend))
        if engine.config.digest != config.digest:
            engine.close()
            raise GraphError("the repository changed while the model was loaded")
        batcher = Batcher(
            engine, verify, settings.infer_timeout_s, settings.engine_patience_s, self._turns(backend)
        )
        same = self._current is not None and self._current.config == engine.config
        counts = self.current.watch if same else watch(settings.model_repository, engine.config)
        return Loaded(batcher, rung, counts)

    def _install(self, loaded: Loaded, reason: str = "loaded") -> None:
        """Have the next chunks served by this; what served before is closed once no chunk holds it."""
        before, self._current, name = self._current, loaded, loaded.config.name
        self.refused = ""
        if before is not None:
            self._retired.append(before)
            metrics.backend_in_use.remove(name, str(before.config.version), before.backend)
        metrics.backend_in_use.labels(name, str(loaded.config.version), loaded.backend).set(1)
        metrics.rung.labels(name).set(loaded.rung)
        if loaded.rung != (before.rung if before is not None else 0):
            metrics.ladder_steps.labels(name, loaded.backend, reason).inc()
        (log.warning if loaded.rung else log.info)(
            "model serves", model=name, version=loaded.config.version, backend=loaded.backend, why=reason
        )

    async def _sweep(self) -> None:
        """Close what was replaced, once no chunk holds it and its last call has come back."""
        for old in [old for old in self._retired if not old.users and not old.batcher.busy]:
            self._retired.remove(old)
            await old.close()


def _series_config(settings: Settings) -> ModelConfig:
    config = repository.read_config(settings.model_repository, settings.model, settings.shadow_version)
    require_series(config)
    return config


def _proven(settings: Settings, backend: str) -> tuple[Engine, Callable[[], None]]:
    """An engine that reproduces its golden data, and how to ask it for them again."""
    models = settings.model_repository
    engine = repository.load(
        models,
        settings.model,
        backend,
        settings.plans,
        version=settings.shadow_version,
        memory_limit=settings.model_memory_limit,
    )
    golden = repository.golden_of(models, engine.config)
    return engine, lambda: repository.verify(engine, golden)


def _files(settings: Settings) -> Files | None:
    """The version's files as they are now; None while they cannot be read."""
    try:
        config = repository.read_config(settings.model_repository, settings.model, settings.shadow_version)
        folder = settings.model_repository / settings.model / str(config.version)
        stats = [file.stat() for file in sorted(folder.glob("*")) if file.is_file()]
    except (OSError, EngineError):
        return None
    return Files(msgspec.json.encode(config), tuple((stat.st_mtime_ns, stat.st_size) for stat in stats))


async def _in_thread(work: Callable[[], T]) -> T:
    """Do something slow in a thread of its own: should it hang, no other work waits behind it."""
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loading")
    try:
        return await asyncio.get_running_loop().run_in_executor(pool, work)
    finally:
        pool.shutdown(wait=False)
