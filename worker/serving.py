"""Which version of the model serves, on which rung of the ladder; changed while chunks go on.

    backend asked for -> onnxruntime -> NEWS2 alone

`Ladder` holds what serves. When an engine fails its golden data, or a call takes longer than the patience,
the chunk is computed by the next rung, which serves from then on; the better one is tried again, after ever
longer waits, until it loads, reproduces its golden data and serves. An engine whose call has not come back is
not tried again until it has: a thread that hangs cannot be ended. Below the last rung NEWS2 alone is left,
which is the lanes' affair; until something answers, every rung is loaded anew, now and then.

A new version is one that config.json in the repository names and that is not what serves. It is loaded beside
the old one, held to its golden data, and serves the next chunk of every partition; a chunk at work finishes
with what it began with. One that cannot be loaded changes nothing, and is tried again when its files change,
and now and then. So rolling back is naming the old version again. A shadow stays with the version that its
settings name.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

import structlog

from engines.errors import EngineError
from engines.repository import REFERENCE_BACKEND
from engines.steps import require_series
from schemas.model_config import ModelConfig
from worker import metrics
from worker.config import Settings
from worker.errors import EngineHungError
from worker.loading import LOAD_S, Files, Loaded, Loader, Turns, files_of
from worker.policies import Policies
from worker.served import Served

LOOK_S = 2.0
"""Between two looks at the repository, and at what can be closed."""

FIRST_CLIMB_S = 10.0
"""Wait before the better rung is tried again; doubled after each try that fails, up to `LAST_CLIMB_S`."""

LAST_CLIMB_S = 600.0

LAST_MEND_S = 30.0
"""The longest wait between two tries while nothing serves: patients have NEWS2 alone then."""

REFUSED_S = 60.0
"""Between two tries of a version that is refused: what was wrong may have been the machine's."""

PROVE_S = 60.0
"""Between two proofs of an engine that serves: one that has gone wrong may answer finitely all the same."""

log = structlog.get_logger("riskstream.serving")


def longest_s(settings: Settings) -> float:
    """The longest that `Ladder.instead` takes: each lower rung is loaded, one after the other."""
    return LOAD_S * (len(_rungs(settings)) - 1)


def _rungs(settings: Settings) -> tuple[str, ...]:
    return tuple(dict.fromkeys((settings.backend, REFERENCE_BACKEND)))


class Ladder:
    """What serves, and what could.

    refused: why the version that the repository names does not serve; empty if it does.
    prepare: called with a version that is about to serve, while the one before does.

    Args:
        settings: repository, model, backend, patience.
        turns: gives what engines of a backend's device take turns by; None where they need not.
        require: raises KindError for a model of a kind that is not served here.
    """

    def __init__(
        self,
        settings: Settings,
        turns: Turns = lambda backend: None,
        require: Callable[[ModelConfig], None] = require_series,
    ) -> None:
        self.policies: Policies | None = None
        self.prepare: Callable[[Served], Awaitable[None]] | None = None
        self.refused = ""
        self._settings = settings
        self._loader = Loader(settings, turns, require)
        self._rungs = _rungs(settings)
        self._current: Loaded | None = None
        self._files: Files | None = None
        self._retired: list[Loaded] = []
        self._changing = asyncio.Lock()
        self._spent = False
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
        self._files = await files_of(self._settings)
        self._install(await self._named())

    async def follow(self) -> None:
        """Swap versions, climb, and close what was replaced, for ever; waits for what it loads."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()
            await self.climb()
            await self._sweep()

    async def prove(self) -> None:
        """Hold what serves to its golden data, for ever; what fails them serves no more."""
        while True:
            await asyncio.sleep(PROVE_S)
            with suppress(EngineHungError):  # whoever asks it for risks meets that too, and knows what to do
                await self.answers()

    async def look(self) -> bool:
        """Swap to the version that the repository names, if it is another one. Whether it was swapped."""
        found = await files_of(self._settings)
        again = bool(self.refused) and time.perf_counter() > self._refused_at + REFUSED_S
        if found == self._files and not again:
            return False
        self._files = found
        try:
            loaded = await self._named()
        except EngineError as error:
            self._refuse(error)
            return False
        self.refused = ""
        if self.prepare is not None:
            await self.prepare(loaded)
        async with self._changing:
            before = self.current
            if loaded.config == before.config and not self._spent:
                await loaded.close()  # what serves already, whose files were written again
                return False
            self._install(loaded)
            if self.policies is not None:
                for why in self.policies.ship(loaded.config.policy):
                    log.warning("a change of policy does not fit the new version and is left out", why=why)
        metrics.model_swaps.labels(self._settings.model, "swapped").inc()
        log.info(
            "model swapped",
            model=loaded.config.name,
            before=before.config.version,
            version=loaded.config.version,
            digest=loaded.config.digest,
        )
        await self._sweep()
        return True

    def _refuse(self, error: EngineError) -> None:
        self.refused = error.reason
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
                return current if current.fingerprint == failed.fingerprint else None
            if self._spent:
                return None
            lower = await self._first(range(current.rung + 1, len(self._rungs)), current.config)
            lasted = time.perf_counter() - self._climbed_at > LAST_CLIMB_S
            self._spent = lower is None
            self._wait_longer(anew=lasted)
            if lower is not None:
                self._install(lower, reason)
            elif lasted:
                self._climb_at = time.perf_counter()
            return lower

    async def climb(self) -> bool:
        """Go back to the backend asked for, if it is time to try and it works. Whether something changed.

        While nothing answers, any rung will do.
        """
        current = self.current
        rungs = range(len(self._rungs)) if self._spent else range(current.rung)
        if not rungs or time.perf_counter() < self._climb_at:
            return False
        await self._sweep()
        free = [rung for rung in rungs if not self._hangs(rung)]
        if not free:
            return False  # another would hang beside it
        better = await self._first(free, current.config)
        async with self._changing:
            if better is None:
                self._wait_longer()
                return False
            if self.current is not current:
                await better.close()
                return False
            self._install(better, "back" if better.rung < current.rung else "loaded")
            self._climbed_at = time.perf_counter()
            if better.rung:
                self._wait_longer()
        await self._sweep()
        return True

    def _wait_longer(self, *, anew: bool = False) -> None:
        """Put off the next try of the better rung."""
        longest = LAST_MEND_S if self._spent else LAST_CLIMB_S
        self._climb_wait = FIRST_CLIMB_S if anew else min(self._climb_wait * 2, longest)
        self._climb_at = time.perf_counter() + self._climb_wait

    def _hangs(self, rung: int) -> bool:
        """Whether a call of an engine of this rung, or a load, has not come back."""
        engines = (*self._retired, self._current) if self._current is not None else ()
        busy = any(loaded.rung == rung and loaded.batcher.busy for loaded in engines)
        return busy or self._loader.late(self._rungs[rung])

    async def answers(self) -> bool:
        """Whether what serves reproduces its golden data; if not, the next rung is to serve.

        Raises:
            EngineHungError: it hangs for good, and nothing stands in for it.
        """
        current = self.current
        with current.held():
            if await current.batcher.answers():
                self._spent = self._spent and current is not self._current
                return True
        await self.instead(current, "engine-down")
        return False

    async def close(self) -> None:
        """Free all engines but those whose calls have not come back."""
        await self._loader.close()
        for loaded in (*self._retired, *([self._current] if self._current else [])):
            if not loaded.batcher.busy:
                await loaded.close()

    async def _named(self) -> Loaded:
        """The version that the repository names, on the first rung that can.

        Raises:
            EngineError: none can; the last one's.
        """
        config = await self._loader.served_config()
        free = [rung for rung in range(len(self._rungs)) if not self._hangs(rung)]
        for rung in free[:-1]:
            loaded = await self._first([rung], config)
            if loaded is not None:
                return loaded
        return await self._load(free[-1] if free else len(self._rungs) - 1, config)

    async def _first(self, rungs: Iterable[int], config: ModelConfig) -> Loaded | None:
        """A version on the first rung that can; None if none of them can."""
        for rung in rungs:
            try:
                return await self._load(rung, config)
            except EngineError as error:
                metrics.engine_failures.labels(config.name, error.reason).inc()
                log.warning(
                    "a backend cannot serve", model=config.name, backend=self._rungs[rung], why=str(error)
                )
        return None

    async def _load(self, rung: int, config: ModelConfig) -> Loaded:
        return await self._loader.load(config, self._rungs[rung], rung, self._current)

    def _install(self, loaded: Loaded, reason: str = "loaded") -> None:
        """Have the next chunks served by this; what served before is closed once no chunk holds it."""
        before, self._current, name = self._current, loaded, loaded.config.name
        self._spent = False
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
            if old.watch is not None and old.watch is not self.current.watch:
                old.watch.end()
