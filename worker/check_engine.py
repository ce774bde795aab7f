"""The engine that a worker would start with, for `riskstream check`."""

import os
import shlex
from functools import partial

from engines import repository
from engines.engine import Engine
from engines.errors import EngineError, NoPlanError
from engines.plans import folder_of
from worker.config import Settings
from worker.finding import Finding, warning


def loaded(settings: Settings, subject: str) -> tuple[Engine, list[Finding]]:
    """The engine of the model that the settings name; a warning where its backend is not the one asked for.

    Nothing is written: a plan that is not there is left to the worker, or to whoever builds it beforehand.

    Raises:
        EngineError: no backend can serve it.
    """
    load = partial(
        repository.load,
        settings.model_repository,
        settings.model,
        version=settings.shadow_version,
        memory_limit=settings.model_memory_limit,
        read_only=True,
    )
    other = repository.REFERENCE_BACKEND
    try:
        return load(settings.backend, settings.plans, precision=settings.precision), []
    except NoPlanError as error:
        told = f"{error}; the other findings are of {other}"
        advice = f"{_worker_would(settings)}; beforehand: {_build(settings, error.architecture)}"
    except EngineError as error:
        if settings.backend == other:
            raise
        advice = f"a worker serves on {other} meanwhile; mend it, or set RISKSTREAM_BACKEND={other}"
        if settings.precision != "fp32":
            advice += " and RISKSTREAM_PRECISION=fp32"
        told = str(error)
    return load(other), [warning(f"{subject}: backend", told, advice)]


def _worker_would(settings: Settings) -> str:
    """What a worker that starts does about a plan that is not there."""
    config = repository.read_config(settings.model_repository, settings.model, settings.shadow_version)
    folder = folder_of(settings.model_repository, config, settings.plans)
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not os.access(there, os.W_OK):
        return f"a worker cannot write it to {folder}: name another folder in RISKSTREAM_PLANS"
    return "a worker builds it when it starts, and serves nothing until it has"


def _build(settings: Settings, architecture: str | None) -> str:
    """The command that builds the plan where the worker looks for it."""
    options = {
        "backend": settings.backend,
        "precision": settings.precision,
        "architecture": architecture,
        "repository": settings.model_repository,
        "plans": settings.plans,
        "version": settings.shadow_version,
    }
    given = [f"--{name} {shlex.quote(str(value))}" for name, value in options.items() if value is not None]
    return " ".join(["riskstream model build", settings.model, *given])
