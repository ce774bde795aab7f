"""A lane of the imaging topic: what is committed, what waits, what is given up and read again."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest

from tests.worker.records import Record
from worker.decode import Record as AnyRecord
from worker.errors import EngineHungError, RetryError
from worker.imaging import Fate
from worker.imaging_lanes import WINDOW, ImagingLane, ImagingStages, Room
from worker.imaging_steps import waiting
from worker.partition import Place
from worker.transport import Chunk, Committed

PLACE = Place("c", "imaging", 0)


class Log:
    """A partition's log and its group's commits, in memory."""

    def __init__(self, end: int = 100, committed: int | None = None) -> None:
        self.first, self.end, self.committed = 0, end, committed
        self.sought: list[int] = []
        self.commits: list[int] = []
        self.ours = True
        self.away = 0

    async def committed_offset(self, place: Place) -> Committed | None:
        if self.away:
            self.away -= 1
            raise RetryError("Kafka: away")
        return None if self.committed is None else Committed(self.committed, "")

    async def commit_offset(self, place: Place, offset: int, metadata: str) -> bool:
        if self.ours:
            self.committed = offset
            self.commits.append(offset)
        return self.ours

    async def log_range(self, place: Place, known: int) -> tuple[int, int]:
        return self.first, self.end

    async def offset_at(self, place: Place, timestamp_ms: int) -> int | None:
        raise NotImplementedError

    async def seek_offset(self, place: Place, offset: int) -> None:
        self.sought.append(offset)

    def log_end(self, place: Place) -> int | None:
        return self.end


class Gate:
    """A path whose records are done when they are let through."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.away: dict[int, asyncio.Event] = {}
        self._open: dict[int, asyncio.Future[Fate]] = {}

    async def take(self, place: Place, record: AnyRecord) -> Fate:
        self.taken.append(record.offset)
        self._open[record.offset] = asyncio.get_running_loop().create_future()
        if record.offset in self.away:
            with waiting():
                await self.away[record.offset].wait()
        return await self._open[record.offset]

    async def let(self, *offsets: int, error: Exception | None = None) -> None:
        for offset in offsets:
            if error is None:
                self._open[offset].set_result("scored")
            else:
                self._open[offset].set_exception(error)
        for _ in range(5):
            await asyncio.sleep(0)


def chunk(start: int, end: int, size: int = 1) -> Chunk:
    return Chunk(start, [Record(offset, 0, b"p", b"x" * size) for offset in range(start, end)])


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something, for some seconds."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it does not come")


class Scene:
    """One lane and what it touches."""

    def __init__(self, log: Log, limit: int = 1000) -> None:
        self.log, self.gate, self.room = log, Gate(), Room(limit)
        self.lane = ImagingLane(PLACE, ImagingStages(self.gate, log, self.room, 0.01))

    async def ready(self) -> None:
        await self.until(lambda: self.lane.ready and self.lane.has_room)

    async def put(self, chunk: Chunk) -> None:
        self.lane.put(chunk)
        await asyncio.sleep(0)

    async def until(self, condition: Callable[[], bool]) -> None:
        await until(condition)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene(Log())
    await scene.ready()
    yield scene
    await scene.lane.stop(0.02)


async def test_what_is_committed_leaves_no_gap(scene: Scene) -> None:
    await scene.put(chunk(0, 6))
    await scene.gate.let(1, 2, 4)
    await asyncio.sleep(0.05)
    assert scene.log.commits == []
    await scene.gate.let(0)
    await scene.until(lambda: scene.log.commits == [3])
    assert scene.lane.lag() == 97
    await scene.gate.let(3, 5)
    await scene.until(lambda: scene.log.commits == [3, 6])


async def test_several_chunks_are_on_their_way_at_once(scene: Scene) -> None:
    await scene.put(chunk(0, 3))
    await scene.put(chunk(3, 5))
    assert scene.gate.taken == [0, 1, 2, 3, 4]
    await scene.gate.let(3, 4, 1, 2)
    assert scene.lane.has_room
    await scene.gate.let(0)
    await scene.until(lambda: scene.log.commits == [5])


async def test_a_chunk_that_does_not_follow_is_sought_again(scene: Scene) -> None:
    await scene.put(chunk(0, 2))
    await scene.put(chunk(3, 5))
    await scene.until(lambda: scene.log.sought == [0, 2])
    await scene.put(chunk(2, 4))
    assert scene.gate.taken == [0, 1, 2, 3]


async def test_bytes_on_their_way_are_bounded(scene: Scene) -> None:
    await scene.put(chunk(0, 2, size=499))
    assert scene.lane.has_room
    await scene.put(chunk(2, 3, size=10))
    assert scene.lane.full
    await scene.gate.let(1)
    assert scene.lane.has_room
    assert scene.room.held == 509


async def test_a_late_record_holds_up_no_more_than_a_window(scene: Scene) -> None:
    await scene.put(chunk(0, WINDOW))
    await scene.gate.let(*range(1, WINDOW))
    assert scene.lane.full
    await scene.gate.let(0)
    assert scene.lane.has_room


@pytest.mark.parametrize(("committed", "start"), [(None, 10), (50, 50), (5, 10), (200, 10)])
async def test_it_starts_at_what_is_committed_or_at_the_logs_first_record(
    committed: int | None, start: int
) -> None:
    log = Log(committed=committed)
    log.first, log.away = 10, 0
    scene = Scene(log)
    await scene.ready()
    assert log.sought == [start]
    await scene.lane.stop(0.02)


async def test_a_rebalance_commits_what_is_done_and_reads_the_rest_again(scene: Scene) -> None:
    await scene.put(chunk(0, 4))
    await scene.gate.let(0, 2)
    await scene.lane.hold(0.1)
    assert scene.log.commits == [1]
    assert scene.room.held == 0
    assert not scene.lane.has_room
    scene.lane.resume()
    await scene.until(lambda: scene.log.sought == [0, 1])
    await scene.ready()
    await scene.put(chunk(1, 4))
    assert scene.gate.taken == [0, 1, 2, 3, 1, 2, 3]


async def test_a_lane_that_may_not_commit_starts_over_once_it_may() -> None:
    scene = Scene(Log(committed=0))
    await scene.ready()
    await scene.put(chunk(0, 2))
    scene.log.ours = False
    await scene.gate.let(0)
    await scene.until(lambda: not scene.lane.has_room)
    scene.log.ours = True
    await scene.until(lambda: scene.log.sought == [0, 0])
    await scene.lane.stop(0.02)


async def test_what_ends_the_path_ends_the_lane(scene: Scene) -> None:
    await scene.put(chunk(0, 2))
    assert scene.lane.failure() is None
    await scene.gate.let(1, error=EngineHungError("hangs"))
    assert isinstance(scene.lane.failure(), EngineHungError)


def looked(lane: ImagingLane) -> float | None:
    lane.watch()
    return lane.stuck_since


async def test_what_other_records_do_makes_up_for_none_that_hangs(scene: Scene) -> None:
    scene.gate.away = {3: asyncio.Event()}
    before = time.perf_counter()
    await scene.put(chunk(0, 5))  # 0 hangs; 3 waits for its source; 1, 2 and 4 are done
    since = looked(scene.lane)
    assert since is not None
    assert before <= since <= time.perf_counter()
    await scene.gate.let(1, 2, 4)
    assert looked(scene.lane) == since
    await scene.gate.let(0)
    assert looked(scene.lane) is None
    scene.gate.away[3].set()
    await scene.until(lambda: looked(scene.lane) is not None)
    again = looked(scene.lane)
    assert again is not None
    assert again > since


async def test_a_step_that_ends_begins_the_next(scene: Scene) -> None:
    scene.gate.away = {0: asyncio.Event()}
    await scene.put(chunk(0, 1))
    assert looked(scene.lane) is None
    scene.gate.away[0].set()
    await scene.until(lambda: looked(scene.lane) is not None)


async def test_records_that_do_not_come_are_a_standstill_unless_there_is_no_room_for_them(
    scene: Scene,
) -> None:
    since = looked(scene.lane)
    assert since is not None
    assert looked(scene.lane) == since
    scene.room.held = 1000
    assert looked(scene.lane) is None
    scene.room.held = 0
    again = looked(scene.lane)
    assert again is not None
    assert again > since
    scene.log.end = 0
    assert looked(scene.lane) is None
