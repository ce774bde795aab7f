"""Threads for what may hang: kept for the next work, and never one that is still at work."""

import asyncio
import threading

from worker import threads


async def test_a_load_takes_the_thread_of_one_that_has_ended() -> None:
    await asyncio.gather(*(threads.in_thread(lambda: None) for _ in range(3)))
    kept = len(threads._idle)
    seen = {await threads.in_thread(threading.get_ident) for _ in range(20)}
    assert len(seen) <= kept
    assert len(threads._idle) == kept


async def test_nothing_waits_behind_a_load_that_hangs_and_was_given_up() -> None:
    free = threading.Event()
    try:
        hung = [threads.in_thread(free.wait) for _ in range(3)]
        for call in hung:
            call.cancel()
        await asyncio.sleep(0.05)
        async with asyncio.timeout(10):
            assert (
                await asyncio.gather(*(threads.in_thread(lambda: "done") for _ in range(5))) == ["done"] * 5
            )
    finally:
        free.set()
