"""The policies of the image model's versions: each finding is decided on by that of the version that made it.

Which version made a finding stands in the finding, so which policy decides on it is in the log: the same when
it is read again, whatever version is served by then. The served version's stands in for that of a version
that the repository does not have.

The repository is read in a thread, for it may hang: what decides looks only at what is held.
"""

import asyncio
import time
from collections.abc import Iterable
from math import inf
from pathlib import Path

import structlog

from engines import repository
from engines.errors import EngineError
from schemas.model_config import Policy
from worker.threads import in_thread

SOUGHT = 256
"""Versions that are known not to be there: findings may name any number."""

AGAIN_S = 2.0
"""After which one that was not there is looked for again."""

RETRY_S = 0.2
"""Between two looks at one that is there and cannot be read."""

TOLD = 5
"""Versions that one line of the log names."""

PATIENCE_S = 5.0
"""How long findings of a version that is not held wait for the repository; other records of theirs too."""

log = structlog.get_logger("riskstream.policies")


class VersionPolicies:
    """The policies of a model's versions, held once they have been read."""

    def __init__(self, models: Path, name: str) -> None:
        self.name = name
        self._models = models
        self._held: dict[int, Policy] = {}
        self._sought: dict[int, float] = {}
        self._looking: asyncio.Future[None] | None = None
        self._complaints: dict[int, str] = {}

    def of(self, version: int) -> Policy | None:
        """A version's policy; None where the repository does not have it, or not so that it can be used."""
        return self._held.get(version)

    def read(self) -> None:
        """Read every version's policy; blocks. What cannot be read now stays as it was."""
        found, complaints = dict[int, Policy](), dict[int, str]()
        try:
            numbers = repository.versions(self._models, self.name)
        except EngineError:
            return  # the config of the served version cannot be used; whoever follows it tells
        for version in numbers:
            try:
                found[version] = repository.read_config(self._models, self.name, version).policy
            except EngineError as error:
                complaints[version] = str(error)
                if self._complaints.get(version) != str(error):
                    log.warning("a version's policy cannot be read", version=version, why=str(error))
        self._held, self._complaints = self._held | found, complaints

    async def look(self) -> None:
        """Read, in a thread; one that has not come back is waited for."""
        if self._looking is None or self._looking.done():
            self._looking = in_thread(self.read)
        await asyncio.shield(self._looking)

    async def seek(self, versions: Iterable[int]) -> None:
        """Read once more where a version is not held, but wait no longer than the patience."""
        now = time.monotonic()
        missing = {v for v in versions if v not in self._held and now - self._sought.get(v, -inf) >= AGAIN_S}
        if not missing:
            return
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self.look()
                while self._complaints.keys() & missing:  # there, but it cannot be read now
                    await asyncio.sleep(RETRY_S)
                    await self.look()
        except (TimeoutError, EngineError):
            log.warning("the repository does not say in time what policies versions have", model=self.name)
        missing -= self._held.keys()
        if missing - self._sought.keys():
            log.warning(
                "findings of versions that are not there go by the served version's policy",
                model=self.name,
                versions=sorted(missing)[:TOLD],
            )
        if len(self._sought) + len(missing) > SOUGHT:
            self._sought.clear()
        self._sought |= dict.fromkeys(sorted(missing)[:SOUGHT], time.monotonic())
