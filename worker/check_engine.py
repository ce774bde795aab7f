"""The engine that a worker would start with, for `riskstream check`."""

from functools import partial

from engines import repository
from engines.engine import Engine
from engines.errors import EngineError
from worker.config import Settings
from worker.finding import Finding, warning


def loaded(settings: Settings, subject: str) -> tuple[Engine, list[Finding]]:
    """The engine of the model that the settings name; a warning where its backend is not the one asked for.

    Raises:
        EngineError: no backend can serve it.
    """
    load = partial(
        repository.load,
        settings.model_repository,
        settings.model,
        version=settings.shadow_version,
        memory_limit=settings.model_memory_limit,
    )
    try:
        return load(settings.backend, settings.plans, precision=settings.precision), []
    except EngineError as error:
        if settings.backend == repository.REFERENCE_BACKEND:
            raise
        other = repository.REFERENCE_BACKEND
        advice = f"a worker serves on {other} meanwhile; mend it, or set RISKSTREAM_BACKEND={other}"
        if settings.precision != "fp32":
            advice += " and RISKSTREAM_PRECISION=fp32"
        told = [warning(f"{subject}: backend", str(error), advice)]
    return load(repository.REFERENCE_BACKEND), told
