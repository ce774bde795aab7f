"""The version of the model that serves, on its engine: what a chunk holds on to from start to end."""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Protocol

from engines.steps import SeriesModel, fingerprint
from schemas.latch import Which
from schemas.model_config import ModelConfig
from worker import early_warning
from worker.drift import DriftWatch
from worker.infer import Run
from worker.messages import Voice


class Served:
    """One version of the model on one engine.

    config, backend: the version's, the engine's.
    run: graph inputs -> graph outputs, any number of rows.
    watch: counts what it scores, where it has a reference to compare with.
    users: chunks that hold it.
    """

    def __init__(self, config: ModelConfig, backend: str, run: Run, watch: DriftWatch | None = None) -> None:
        self.config = config
        self.backend = backend
        self.run = run
        self.watch = watch
        self.users = 0

    @cached_property
    def model(self) -> SeriesModel:
        """How the tensors map to the feature table; of a series model."""
        return SeriesModel(self.config)

    @cached_property
    def fingerprint(self) -> str:
        """What recurrent states under it mean: those of another fingerprint are of no use to it."""
        return fingerprint(self.config)

    @cached_property
    def voices(self) -> Mapping[Which, Voice]:
        """Who raises alerts while it serves."""
        return early_warning.voices(self.config, self.backend)

    @contextmanager
    def held(self) -> Iterator["Served"]:
        """Keep it from being closed meanwhile."""
        self.users += 1
        try:
            yield self
        finally:
            self.users -= 1


class Serving(Protocol):
    """Says what serves."""

    @property
    def current(self) -> Served:
        """What serves the next chunk."""
        ...

    async def instead(self, failed: Served, reason: str) -> Served | None:
        """What computes a chunk's rows where one failed; of the same version. None if nothing does."""
        ...


class Answering(Serving, Protocol):
    """Serving that can be asked whether it works again."""

    async def answers(self) -> bool:
        """Whether what serves reproduces its golden data."""
        ...


class Alone:
    """The serving of one engine that nothing stands in for: offline and in benchmarks."""

    def __init__(self, served: Served, answers: Callable[[], Awaitable[bool]] | None = None) -> None:
        self.current = served
        self._answers = answers

    async def answers(self) -> bool:
        """What it was made with says; true if nothing does."""
        return self._answers is None or await self._answers()

    async def instead(self, failed: Served, reason: str) -> Served | None:
        """Nothing."""
        return None
