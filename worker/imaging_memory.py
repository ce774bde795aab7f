"""Which images have been scored: in this process, and in Redis for whoever comes after it.

Keys in Redis hold digests alone, and expire:

    riskstream:{CLUSTER:GROUP:TOPIC ID:images}:DIGEST

What Redis holds is a help, not a promise: it is written once a finding is confirmed, so a worker that is
killed in between publishes the finding again, under the same id. Without Redis this process remembers alone,
and writes what Redis has missed once it is back.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog

from worker import metrics
from worker.errors import StoreError
from worker.imaging_steps import turn
from worker.store import answer

KEPT = 50_000
"""Images that this process remembers, some 150 bytes each."""

REST_S = 5.0
"""After Redis has not answered it is left alone for so long: each question would wait for its timeout."""

CONNECTIONS = 4
"""Questions to Redis at once: each takes a connection, and a thousand records may come together."""

BATCH = 500
"""Digests written at once of those that Redis has missed."""

log = structlog.get_logger("riskstream.imaging")


class ScoredImages:
    """Digests of scored images; safe for many tasks of one event loop.

    redis_up: whether Redis answered last time.
    """

    def __init__(self, redis: Any, namespace: str, hours: float) -> None:
        """`namespace` is cluster, group and topic id; `hours` is how long Redis keeps a digest."""
        self.redis_up = True
        self._redis = redis
        self._prefix = f"riskstream:{{{namespace}:images}}:"
        self._expiry_s = max(round(hours * 3600), 1)
        self._known: OrderedDict[str, bool] = OrderedDict()
        self._missed: OrderedDict[str, bool] = OrderedDict()
        self._turns: dict[str, tuple[asyncio.Lock, int]] = {}
        self._rests_until = 0.0
        self._asking = asyncio.Semaphore(CONNECTIONS)

    @asynccontextmanager
    async def turn(self, digest: str) -> AsyncIterator[None]:
        """One task at a time for each image, so that a copy that comes meanwhile waits and is a duplicate."""
        lock, waiting = self._turns.get(digest, (asyncio.Lock(), 0))
        self._turns[digest] = lock, waiting + 1
        try:
            async with turn(lock):
                yield
        finally:
            lock, waiting = self._turns.pop(digest)
            if waiting > 1:
                self._turns[digest] = lock, waiting - 1

    async def has(self, digest: str) -> bool:
        """Whether an image has been scored, as far as anybody remembers."""
        if digest in self._known:
            self._known.move_to_end(digest)
            return True
        async with turn(self._asking):
            if not self._may_ask():
                return False
            try:
                found = bool(await answer(self._redis.exists(self._prefix + digest)))
            except StoreError as error:
                self._lost(error)
                return False
            self._came()
        if found:
            self._keep(digest)
        return found

    async def add(self, digest: str) -> None:
        """Remember an image whose finding is confirmed."""
        self._keep(digest)
        async with turn(self._asking):
            if not self._may_ask():
                self._miss(digest)
                return
            try:
                await answer(self._redis.set(self._prefix + digest, b"1", ex=self._expiry_s))
            except StoreError as error:
                self._miss(digest)
                self._lost(error)
                return
            self._came()

    async def look(self) -> None:
        """Ask whether Redis answers, and write what it has missed."""
        try:
            await answer(self._redis.ping())
            while self._missed:
                batch = list(self._missed)[:BATCH]
                pipe = self._redis.pipeline(transaction=False)
                for digest in batch:
                    pipe.set(self._prefix + digest, b"1", ex=self._expiry_s)
                await answer(pipe.execute())
                for digest in batch:
                    self._missed.pop(digest, None)
        except StoreError as error:
            self._lost(error)
            return
        self._came()

    def _may_ask(self) -> bool:
        return time.perf_counter() >= self._rests_until

    def _keep(self, digest: str) -> None:
        self._known[digest] = True
        self._known.move_to_end(digest)
        if len(self._known) > KEPT:
            self._known.popitem(last=False)

    def _miss(self, digest: str) -> None:
        self._missed[digest] = True
        if len(self._missed) > KEPT:
            self._missed.popitem(last=False)

    def _lost(self, error: StoreError) -> None:
        if self.redis_up:
            log.warning("scored images are remembered by this process alone", why=str(error))
        self.redis_up = False
        metrics.redis_up.set(0)
        self._rests_until = time.perf_counter() + REST_S

    def _came(self) -> None:
        if not self.redis_up:
            log.info("scored images are remembered in Redis again")
        self.redis_up = True
        metrics.redis_up.set(1)
