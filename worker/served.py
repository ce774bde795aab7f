"""The version of the model that serves, on its engine: what a chunk holds on to from start to end."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from engines.steps import SeriesModel
from schemas.model_config import ModelConfig
from worker import early_warning
from worker.drift import DriftWatch
from worker.infer import Run


class Served:
    """One version of the model on one engine.

    config, backend, model: the version's, the engine's, its layout.
    run: graph inputs -> graph outputs, any number of rows.
    voices: who raises alerts while it serves.
    watch: counts what it scores, where it has a reference to compare with.
    users: chunks that hold it.
    """

    def __init__(self, config: ModelConfig, backend: str, run: Run, watch: DriftWatch | None = None) -> None:
        self.config = config
        self.backend = backend
        self.model = SeriesModel(config)
        self.run = run
        self.voices = early_warning.voices(config, backend)
        self.watch = watch
        self.users = 0

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


class Alone:
    """The serving of one engine that nothing stands in for: offline and in benchmarks."""

    def __init__(self, served: Served) -> None:
        self.current = served

    async def instead(self, failed: Served, reason: str) -> Served | None:
        """Nothing."""
        return None
