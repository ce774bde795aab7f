"""Requests of all partitions -> batches of the engine, which runs in threads of its own.

Work-conserving: while the engine has room for a batch, the next starts at once with whatever waits; while it
has none, rows collect up to the largest batch. Nothing ever waits for company. Bounded, because each
partition has one request under way at a time. An engine that copies while it computes has room for two.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from engines.engine import Engine
from engines.errors import EngineError
from worker import metrics
from worker.errors import EngineDownError, EngineHungError, EngineSilentError

F32 = NDArray[np.float32]
Tensors = Mapping[str, F32]
T = TypeVar("T")

REPLACED = "the engine has been replaced"

FAILURES = (EngineError, MemoryError)
"""What a call fails with where an engine is at fault, the machine, or a row."""


class _Request(NamedTuple):
    inputs: Tensors
    rows: int
    done: asyncio.Future[dict[str, F32]]
    since: float


class Batcher:
    """Runs one engine for many callers.

    A row that the engine fails on comes back as NaN, and fails no other row: the batch is halved until
    the row is found. Order between callers is not promised.

    A batch with outputs that are not finite makes the engine prove itself on its golden data: the rows are at
    fault if it does, the engine if not.

    While a call takes longer than the patience, every caller is refused at once, until all such calls have
    come back. Then the patience is doubled, until a call comes back within what it was at first: a slow
    engine is waited for.
    """

    def __init__(
        self,
        engine: Engine,
        verify: Callable[[], None],
        timeout_s: float,
        patience_s: float,
        turns: asyncio.Semaphore | None = None,
    ) -> None:
        """Serve an engine.

        Args:
            engine: it.
            verify: raises an EngineError when the engine no longer reproduces its golden data.
            timeout_s: an engine call that takes longer is hung for good.
            patience_s: callers wait so long for an engine call.
            turns: shared by the batchers of one device, which then take turns on it, a batch each.

        Raises:
            RuntimeError: a thread cannot be started.
        """
        self.engine = engine
        self.hung = False
        self._closed = False
        self._wrong = False
        self._room = asyncio.Semaphore(engine.in_flight)
        self._turns = turns or asyncio.Semaphore(engine.in_flight)
        self._verify = verify
        self._timeout_s = timeout_s
        self._patience_s = self._first_patience_s = patience_s
        self._calls: set[asyncio.Future[Any]] = set()
        self._late: dict[asyncio.Future[Any], asyncio.Task[None]] = {}
        self._largest = engine.config.dynamic_batching.max_batch_size
        self._waiting: deque[_Request] = deque()
        self._runners: set[asyncio.Task[None]] = set()
        self._threads = _started(engine.in_flight)

    async def infer(self, inputs: Tensors) -> dict[str, F32]:
        """Outputs for any number of rows, in order.

        Raises:
            EngineDownError: the engine fails even its golden data, or takes long; worth trying again later.
            EngineHungError: a call has outlived its deadline; this engine is lost.
        """
        self._refuse_if_out()
        self._refuse_if_wrong()
        rows = len(next(iter(inputs.values())))
        parts = [
            self._submit({name: array[at : at + self._largest] for name, array in inputs.items()})
            for at in range(0, rows, self._largest)
        ]
        outputs = await asyncio.gather(*parts)
        if len(outputs) == 1:
            return outputs[0]
        return {name: np.concatenate([part[name] for part in outputs]) for name in outputs[0]}

    @property
    def busy(self) -> bool:
        """Whether a call that nobody waits for any more has not come back."""
        return bool(self._late)

    async def close(self) -> None:
        """Stop, and refuse whoever waits or still comes.

        Calls under way are waited for within the patience; a thread whose call does not come back is left.
        """
        self._closed = True
        for runner in self._runners:
            runner.cancel()
        await asyncio.gather(*self._runners, return_exceptions=True)
        _refuse(self._waiting, EngineDownError(REPLACED))
        self._waiting.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)
        if in_time := self._calls - self._late.keys():
            await asyncio.wait(in_time, timeout=self._patience_s)

    def _submit(self, inputs: Tensors) -> asyncio.Future[dict[str, F32]]:
        done: asyncio.Future[dict[str, F32]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Request(inputs, len(next(iter(inputs.values()))), done, time.perf_counter()))
        self._runners = {runner for runner in self._runners if not runner.done()}
        if len(self._runners) < self.engine.in_flight:
            self._runners.add(asyncio.create_task(self._run()))
        return done

    async def _run(self) -> None:
        """Batch after batch, as long as anything waits; another runner may take it all meanwhile."""
        while self._waiting:
            async with self._turn():
                if self._waiting:
                    await self._answer(self._take())

    async def _answer(self, batch: list[_Request]) -> None:
        started = time.perf_counter()
        for request in batch:
            metrics.queue_delay.observe(started - request.since)
        try:
            self._refuse_if_wrong()
            names = batch[0].inputs
            inputs = {name: np.concatenate([request.inputs[name] for request in batch]) for name in names}
            outputs = await self._in_thread(partial(self._run_sparing, inputs))
            self._refuse_if_wrong()
        except asyncio.CancelledError:
            _refuse(batch, EngineDownError(REPLACED))
            raise
        except Exception as error:  # whatever it is, whoever waits must hear of it
            _refuse(batch, error)
            return
        self._observe(sum(request.rows for request in batch), time.perf_counter() - started)
        at = 0
        for request in batch:
            if not request.done.done():
                request.done.set_result(
                    {name: array[at : at + request.rows] for name, array in outputs.items()}
                )
            at += request.rows

    def _take(self) -> list[_Request]:
        batch = [self._waiting.popleft()]
        rows = batch[0].rows
        while self._waiting and rows + self._waiting[0].rows <= self._largest:
            batch.append(self._waiting.popleft())
            rows += batch[-1].rows
        reason = "full" if rows == self._largest else "next-too-large" if self._waiting else "idle"
        metrics.batch_flushes.labels(self.engine.config.name, reason).inc()
        return batch

    async def answers(self) -> bool:
        """Whether the engine reproduces its golden data, in time; one that does not serves nobody.

        Raises:
            EngineHungError: the engine is lost.
        """
        # Whoever asks may be cancelled. The call cannot: it is waited for all the same, or found to be late.
        return await asyncio.shield(asyncio.create_task(self._proof()))

    async def _proof(self) -> bool:
        try:
            self._refuse_if_out()
            async with self._turn():
                await self._in_thread(self._verify)
        except EngineDownError:
            return False
        except FAILURES:
            self._wrong = True
            return False
        self._wrong = False
        return True

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """The engine has room for a batch, and it is its turn on the device."""
        async with self._room, self._turns:
            yield

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Do something in a thread of the engine, within the patience."""
        self._refuse_if_out()
        started, patience_s = time.perf_counter(), self._patience_s
        call = asyncio.get_running_loop().run_in_executor(self._threads, work)
        self._calls.add(call)
        call.add_done_callback(self._ended)
        await asyncio.wait({call}, timeout=min(patience_s, self._timeout_s))
        if call.cancelled():
            raise EngineDownError(REPLACED)
        if call.done():
            if time.perf_counter() - started <= self._first_patience_s:
                self._patience_s = self._first_patience_s
            return call.result()
        self._late[call] = asyncio.create_task(self._come_back(call, patience_s))
        late: Exception = EngineSilentError(f"an engine call takes more than {patience_s} s")
        if patience_s >= self._timeout_s:
            self.hung = True
            late = EngineHungError(f"an engine call took more than {self._timeout_s} s")
        _refuse(self._waiting, late)
        self._waiting.clear()
        raise late

    async def _come_back(self, call: asyncio.Future[T], waited_s: float) -> None:
        """Wait on for a late call; nobody waits for its result any more."""
        await asyncio.wait({call}, timeout=max(self._timeout_s - waited_s, 0.0))
        self._patience_s = max(self._patience_s, 2 * waited_s)
        if not call.done():
            self.hung = True
            await asyncio.wait({call})
        del self._late[call]

    def _ended(self, call: asyncio.Future[Any]) -> None:
        self._calls.discard(call)
        if not call.cancelled():
            call.exception()  # looked at, for whoever waited may be gone

    def _refuse_if_out(self) -> None:
        if self._closed:
            raise EngineDownError(REPLACED)
        if self.hung:
            raise EngineHungError("the engine hangs")
        if self.busy:
            raise EngineSilentError("an engine call has not come back yet")

    def _refuse_if_wrong(self) -> None:
        if self._wrong:
            raise EngineDownError(f"{self.engine.config.name} fails its golden data")

    def _observe(self, rows: int, seconds: float) -> None:
        labels = (self.engine.config.name, self.engine.backend)
        metrics.batch_size.labels(self.engine.config.name).observe(rows)
        metrics.inference_count.labels(*labels).inc(rows)
        metrics.execution_count.labels(*labels).inc()
        metrics.inference_duration.labels(*labels).observe(seconds)

    def _run_sparing(self, inputs: Tensors) -> dict[str, F32]:
        """Run a batch, in the engine's thread; a row that fails by itself becomes NaN."""
        try:
            outputs = self.engine.run(inputs)
        except FAILURES as error:
            metrics.engine_failures.labels(self.engine.config.name, _reason(error)).inc()
        else:
            if not all(np.isfinite(array).all() for array in outputs.values()):
                metrics.engine_failures.labels(self.engine.config.name, "not-finite").inc()
                self._prove()
            return outputs
        rows = len(next(iter(inputs.values())))
        if rows > 1:
            half = rows // 2
            first = self._run_sparing({name: array[:half] for name, array in inputs.items()})
            second = self._run_sparing({name: array[half:] for name, array in inputs.items()})
            return {name: np.concatenate([first[name], second[name]]) for name in first}
        self._prove()
        dims = self.engine.output_dims
        return {name: np.full((1, *shape), np.nan, dtype=np.float32) for name, shape in dims.items()}

    def _prove(self) -> None:
        """Raise EngineDownError if the engine does not reproduce its golden data."""
        try:
            self._verify()
        except FAILURES as broken:
            raise EngineDownError(
                f"{self.engine.config.name} fails its golden data: {_reason(broken)}"
            ) from broken


def _started(threads: int) -> ThreadPoolExecutor:
    """Threads that run already: none has to be started when a batch comes, which may fail."""
    pool, all_there = ThreadPoolExecutor(threads, thread_name_prefix="engine"), threading.Barrier(threads)
    try:
        for _ in range(threads):
            pool.submit(all_there.wait)
    except RuntimeError:
        all_there.abort()
        pool.shutdown(wait=False)
        raise
    return pool


def _refuse(requests: Iterable[_Request], error: Exception) -> None:
    for request in requests:
        if not request.done.done():
            request.done.set_exception(error)


def _reason(error: Exception) -> str:
    return error.reason if isinstance(error, EngineError) else "out-of-memory"
