"""The policies of the image model's versions: each finding is decided on by that of the version that made it.

Which version made a finding stands in the finding, so which policy decides on it is in the log: the same when
it is read again, whatever version is served by then. A version's policy is read from the repository when the
first of its findings comes; the served version's stands in for that of one that the repository does not have.
"""

from pathlib import Path

import structlog

from engines import repository
from engines.errors import EngineError
from schemas.model_config import Policy

KEPT = 256
"""Versions whose policies are held: findings may name any number."""

log = structlog.get_logger("riskstream.policies")


class VersionPolicies:
    """The policies of a model's versions, held once they have been read."""

    def __init__(self, models: Path, name: str) -> None:
        self._models = models
        self._name = name
        self._held: dict[int, Policy | None] = {}

    def of(self, version: int) -> Policy | None:
        """A version's policy; None where the repository does not have it, or not so that it can be used."""
        if version not in self._held:
            if len(self._held) >= KEPT:
                self._held.clear()
            self._held[version] = self._read(version)
        return self._held[version]

    def look_again(self, *, everything: bool) -> None:
        """Read again what could not be read when it is next asked for; or everything."""
        self._held = {} if everything else {v: p for v, p in self._held.items() if p is not None}

    def _read(self, version: int) -> Policy | None:
        try:
            return repository.read_config(self._models, self._name, version).policy
        except EngineError as error:
            log.warning(
                "findings of a version that cannot be read go by the served version's policy",
                model=self._name,
                version=version,
                why=str(error),
            )
            return None
