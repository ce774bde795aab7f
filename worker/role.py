"""What every role does alike: wait for its dependencies, run its Faust app, let go of its partitions."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import structlog

from worker.assignment import Lanes
from worker.config import Settings
from worker.deadlines import STOP_S
from worker.errors import FatalError, RetryError

RETRY_S = 2.0
"""Between two tries to reach a dependency at start."""

T = TypeVar("T")

log = structlog.get_logger("riskstream.app")


async def until_up(stop: asyncio.Event, what: str, connect: Callable[[], Awaitable[T]]) -> T | None:
    """Try until it works or the process is told to stop (then None)."""
    while not stop.is_set():
        try:
            return await connect()
        except RetryError as error:
            log.warning("waiting for a dependency", dependency=what, why=str(error))
            try:
                await asyncio.wait_for(stop.wait(), RETRY_S)
            except TimeoutError:
                continue
    return None


async def unless_stopped(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Whether something slow ended before the process was told to stop; if not, it is given up.

    Raises what it raised.
    """
    doing, stopped = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait((doing, stopped), return_when=asyncio.FIRST_COMPLETED)
    ended = doing.done()
    for task in (doing, stopped):
        task.cancel()
    await asyncio.gather(stopped, *(() if ended else (doing,)), return_exceptions=True)
    if ended:
        doing.result()
    return ended


async def serve_app(
    settings: Settings,
    app: Any,
    lanes: Lanes[Any],
    stop: asyncio.Event,
    beside: Sequence[Coroutine[Any, Any, None]],
) -> None:
    """Run a Faust app, its lanes and what goes on beside them until it is to stop; then let go, orderly.

    Raises:
        FatalError: the app stopped by itself; or whatever ended a lane or one of those beside.
    """
    try:
        await app.start()
        stopped = asyncio.create_task(stop.wait())
        crash = asyncio.create_task(app.wait_until_stopped())
        tasks = (stopped, crash, asyncio.create_task(lanes.run()), *map(asyncio.create_task, beside))
        await first_of(tasks)
        if not stop.is_set():
            raise FatalError("the Faust app stopped by itself")
    finally:
        await lanes.stop(settings.rebalance_timeout_s / 2)
        # Not `wait_for`, which waits on for what takes no notice of being cancelled, as Faust's services do.
        stopping = asyncio.create_task(app.stop())
        await asyncio.wait({stopping}, timeout=STOP_S)
        if stopping.done():
            stopping.result()
        else:
            log.warning("Faust did not stop in time")


async def first_of(tasks: "Sequence[asyncio.Task[Any]]") -> None:
    """Wait until one task ends, end the others; raises what one of them raised."""
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result


async def together(stop: asyncio.Event, roles: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run roles until all have ended; one that fails has the others stop in order, and is raised then."""
    tasks = [asyncio.create_task(role) for role in roles]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    stop.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
