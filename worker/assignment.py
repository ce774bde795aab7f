"""The partitions that the group has assigned to this worker: one lane for each.

The group revokes everything before it assigns anew (Kafka's eager protocol), though most partitions stay
where they are. So lanes are held while it rebalances, and only what is not assigned again is dropped.
"""

import asyncio
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from faust.types import TP

from worker.partition import Place
from worker.transport import Chunk

WATCH_S = 0.5
"""Between two looks at every lane."""


class PartitionLane(Protocol):
    """One partition's lane, of whatever role; `lanes.Lane` documents what each member means."""

    @property
    def has_room(self) -> bool: ...
    @property
    def full(self) -> bool: ...
    def put(self, chunk: Chunk) -> None: ...
    def resume(self) -> None: ...
    def close(self) -> None: ...
    def watch(self) -> None: ...
    def failure(self) -> BaseException | None: ...
    async def hold(self, seconds: float) -> None: ...
    async def stop(self, seconds: float) -> None: ...


L = TypeVar("L", bound=PartitionLane)


class Lanes(Generic[L]):
    """The lanes of all owned partitions; the transport's intake.

    `make` is set once the consumer exists; `joined` once the group has assigned partitions, or none.

    Args:
        cluster: Kafka cluster id.
    """

    def __init__(self, cluster: str) -> None:
        self.make: Callable[[Place], L] | None = None
        self.joined = False
        self._stopped = False
        self._cluster = cluster
        self._lanes: dict[TP, L] = {}

    @property
    def owned(self) -> list[L]:
        """Lanes of the partitions owned now."""
        return list(self._lanes.values())

    def wanting(self) -> set[TP]:
        """Partitions that have room for a chunk."""
        return {tp for tp, lane in self._lanes.items() if lane.has_room}

    def full(self) -> bool:
        """Whether a partition has no room."""
        return any(lane.full for lane in self._lanes.values())

    def put(self, tp: TP, chunk: Chunk) -> None:
        """Hand a fetched chunk to its partition's lane, if it is still owned."""
        lane = self._lanes.get(tp)
        if lane is not None:
            lane.put(chunk)

    def assign(self, partitions: set[TP]) -> None:
        """Start lanes for newly owned partitions, resume those that stay, drop the others."""
        assert self.make is not None
        if self._stopped:
            return
        self.joined = True
        for tp in self._lanes.keys() - partitions:
            self._lanes.pop(tp).close()
        for tp in partitions:
            if tp in self._lanes:
                self._lanes[tp].resume()
            else:
                self._lanes[tp] = self.make(Place(self._cluster, tp.topic, tp.partition))

    async def revoke(self, partitions: set[TP], seconds: float) -> None:
        """Hold partitions until the group has assigned anew, all within one deadline."""
        held = [lane for tp, lane in self._lanes.items() if tp in partitions]
        await asyncio.gather(*(lane.hold(seconds) for lane in held))

    async def stop(self, seconds: float) -> None:
        """Finish and let go of every partition for good, all within one deadline."""
        self._stopped = True
        lanes = self.owned
        self._lanes.clear()
        await asyncio.gather(*(lane.stop(seconds) for lane in lanes))

    async def run(self) -> None:
        """Watch every lane, for ever; raises what ended one."""
        while True:
            await asyncio.sleep(WATCH_S)
            for lane in self.owned:
                lane.watch()
                error = lane.failure()
                if error is not None:
                    raise error
