"""`riskstream demo`: broker, Redis, workers and patients, all at once, and a check that nothing was lost.

    recording -> vitals topic -> workers (`riskstream run`, child processes) -> alerts, scores, dead letters
    pictures -> imaging topic -> the same workers -> findings -> vitals topic

Without `--broker` and `--redis` both are started on loopback and stopped again. On a broker of the user's
the demo works in topics and a consumer group of its own, which nobody else reads, and deletes the topics;
on a Redis of the user's it deletes that group's keys.
"""

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any

import aiohttp
import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from schemas.messages import Alert, DeadLetter, Finding, Score
from worker import embedded
from worker.config import Settings
from worker.demo_pictures import Pictures, pictures_of
from worker.demo_report import (
    Counters,
    PicturesReport,
    Report,
    Tally,
    complaints,
    percentiles,
    read_counters,
    records_of,
)
from worker.demo_setup import (
    PARTITIONS,
    DemoError,
    Options,
    create_topics,
    delete_keys,
    delete_topics,
    output_topics,
    surroundings,
)
from worker.demo_view import View
from worker.embedded import LOOPBACK, Child
from worker.recording import Recording, read
from worker.send import Sender, send

DRAIN_S = 4.0
"""Part of the demo's time that is kept for what is still under way when the last record is sent."""

READY_TIMEOUT_S = 90.0
"""Loading the libraries and the model, joining the group, restoring nothing."""

STUCK_AFTER_S = 20.0
"""The demo gives up when no further record finds a fate for this long."""

STOP_TIMEOUT_S = 40.0
"""A worker finishes its last chunk and checkpoint within this time."""

QUIET_S = 0.5
"""Nothing more is on its way when nothing has come for this long; a fetch waits a tenth of it."""

ABORT_S = 3.0
"""What a worker gets for its end when the demo is cut short; its state is thrown away anyway."""

POLL_S = 0.2

_alert = msgspec.json.Decoder(Alert).decode
_score = msgspec.json.Decoder(Score).decode
_dead_letter = msgspec.json.Decoder(DeadLetter).decode
_finding = msgspec.json.Decoder(Finding).decode


class Worker:
    """One worker process and its HTTP endpoints."""

    def __init__(self, number: int, env: dict[str, str], role: str) -> None:
        port = embedded.free_port()
        own = {"RISKSTREAM_HTTP_PORT": str(port), "RISKSTREAM_INSTANCE": f"demo-{number}"}
        self.url = f"http://{LOOPBACK}:{port}"
        command = [sys.executable, "-m", "worker.cli", "run", "--role", role]
        self.process = Child("worker", command, env | own)


def demo(options: Options, view: View) -> Report:
    """Run the demo from start to stop; whatever happens, nothing that it started is left running.

    Raises:
        SourceError: the source cannot be read.
        EmbeddedError: a server cannot be started.
        SendError: the broker refused a record.
        DemoError: a worker died, did not get ready, or a topic could not be made.
        KeyboardInterrupt: Ctrl-C or SIGTERM.
    """
    with _interruptible(), view, ExitStack() as stack:
        view.stage("reading patients")
        recording = read(options.source, options.choice)
        pictures = pictures_of(options, recording)
        view.stage("starting broker and Redis" if not options.broker else "connecting")
        settings, env = surroundings(options, stack)
        asyncio.run(create_topics(settings))
        if options.broker:
            stack.callback(lambda: asyncio.run(delete_topics(settings)))
        if options.redis:
            stack.callback(lambda: asyncio.run(delete_keys(settings)))
        role = "vitals" if pictures is None else "all"
        workers = [Worker(number, env, role) for number in range(options.workers)]
        for worker in workers:
            stack.enter_context(worker.process)
            stack.callback(worker.process.stop, ABORT_S)
            worker.process.start()
        if options.board_port is not None:
            _serve_board(options.board_port, env, stack)
        report = asyncio.run(_Demo(options, settings, recording, pictures, workers, view).run())
        view.stage("stopping")
    return report


def _serve_board(port: int, env: dict[str, str], stack: ExitStack) -> None:
    """Start the ward page of the demo's broker and wait until it answers; it is stopped with `stack`.

    Raises:
        EmbeddedError: it ended, for example because its port is taken.
    """
    own = {"RISKSTREAM_BOARD_HOST": LOOPBACK, "RISKSTREAM_BOARD_PORT": str(port)}
    command = [sys.executable, "-m", "worker.cli", "board"]
    stack.enter_context(embedded.started("ward page", command, port, env | own))


class _Demo:
    """The part of a demo between the start of the workers and their end."""

    def __init__(
        self,
        options: Options,
        settings: Settings,
        recording: Recording,
        pictures: Pictures | None,
        workers: list[Worker],
        view: View,
    ) -> None:
        self.options = options
        self.settings = settings
        self.recording = recording
        self.pictures = pictures
        self.workers = workers
        self.view = view
        self.tally = Tally(settings.imaging_model, settings.topic_imaging)
        self.stopping = asyncio.Event()
        self.received_at = time.perf_counter()

    async def run(self) -> Report:
        async with (
            _consumer(self.settings) as consumer,
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as self.http,
        ):
            receiving = asyncio.create_task(self._receive(consumer))
            watching = asyncio.create_task(self._watch())
            course = asyncio.create_task(self._course(consumer))
            try:
                await asyncio.wait({receiving, watching, course}, return_when=asyncio.FIRST_COMPLETED)
                for task in (watching, receiving, course):
                    if task.done():
                        task.result()
                return course.result()
            finally:
                for task in (receiving, watching, course):
                    task.cancel()
                await asyncio.gather(receiving, watching, course, return_exceptions=True)

    def _backend(self, health: dict[str, Any]) -> str:
        stands_in = f", which stands in for {self.settings.backend}: riskstream check says why"
        return f"{health['backend']}{stands_in if health['rung'] else ''}"

    async def _course(self, consumer: Any) -> Report:
        self.view.stage("waiting for the worker")
        health = await self._ready()
        before = await self._counters()
        self.view.stage(f"model {health['model']} version {health['version']} on {self._backend(health)}")
        started = time.perf_counter()
        confirmed, pictures = await self._send()
        await self._findings(pictures)
        logged = max(self.tally.log_length(), confirmed + len(self.tally.findings))
        counters = await self._settle(logged)
        took = time.perf_counter() - started
        self.view.stage("stopping the worker")
        await self._stop(consumer)
        cpu_s = counters.cpu_s - before.cpu_s
        return Report(
            records=records_of(counters, logged),
            scores=len(self.tally.scored),
            alerts=self.tally.alerts,
            news2_alerts=self.tally.news2_alerts,
            latency_ms=percentiles(self.tally.latencies_ms()),
            events_per_second=round(counters.total / took, 1),
            cpu_us_per_event=round(1e6 * cpu_s / counters.total, 1) if counters.total else None,
            backend=self._backend(health),
            model=f"{health['model']}/{health['version']}",
            lost=logged - counters.total,
            seconds=round(took, 2),
            patients=self.recording.patients,
            source=self.options.source,
            seed=self.options.choice.seed,
            workers=len(self.workers),
            speed=self.options.speed,
            pictures=None if self.pictures is None else self._pictures_report(pictures),
            complaints=complaints(confirmed, pictures, logged, counters, self.tally),
        )

    def _pictures_report(self, sent: int) -> PicturesReport:
        tally = self.tally
        return PicturesReport(sent, len(tally.findings), len(tally.pictures_refused), tally.imaging_alerts)

    async def _ready(self) -> dict[str, Any]:
        """Wait until every partition has a worker; the first one's readiness."""
        deadline = time.perf_counter() + READY_TIMEOUT_S
        while time.perf_counter() < deadline:
            found = [await self._readiness(worker) for worker in self.workers]
            if all(found) and sum(one["partitions_ready"] for one in found if one) == PARTITIONS:
                assert found[0] is not None
                return found[0]
            await asyncio.sleep(POLL_S)
        raise DemoError(
            f"not ready within {READY_TIMEOUT_S:.0f} s; the worker's last lines:\n"
            + self.workers[0].process.tail()
        )

    async def _readiness(self, worker: Worker) -> dict[str, Any] | None:
        try:
            async with self.http.get(f"{worker.url}/health/ready") as response:
                state: dict[str, Any] = await response.json()
                return state if response.status == 200 else None
        except aiohttp.ClientError:
            return None

    async def _counters(self) -> Counters:
        pages = []
        for worker in self.workers:
            async with self.http.get(f"{worker.url}/metrics") as response:
                pages.append(await response.text())
        return read_counters(pages, self.settings.topic_vitals)

    async def _send(self) -> tuple[int, int]:
        """Send the recording, and pictures beside it; how many of each the broker has confirmed."""
        seconds = max(self.options.seconds - DRAIN_S, 0.5 * self.options.seconds)
        speed = self.options.speed or self.recording.speed_to_fit(0.98 * seconds)
        async with Sender(self.settings, self.tally.confirmed) as sender:
            showing = asyncio.create_task(self._show_progress(sender))
            try:
                # What is fitted is sent to its end, even when the broker is slower than planned.
                _, pictures = await asyncio.gather(
                    send(sender, self.recording, speed, seconds if self.options.speed else None),
                    self._send_pictures(speed, seconds if self.options.speed else None),
                )
            finally:
                showing.cancel()
            self.view.progress(sender.sent, self.recording.count)
            return sender.confirmed, pictures

    async def _send_pictures(self, speed: float | None, seconds: float | None) -> int:
        if self.pictures is None:
            return 0
        async with Sender(self.settings, topic=self.settings.topic_imaging) as sender:
            await send(sender, self.pictures, speed, seconds)
            return sender.confirmed

    async def _findings(self, pictures: int) -> None:
        """Wait until every picture has its finding or its dead letter, or no more come."""
        moved_at, last = time.perf_counter(), -1
        while True:
            now = len(self.tally.findings) + len(self.tally.pictures_refused)
            if now != last:
                moved_at, last = time.perf_counter(), now
            if now >= pictures or time.perf_counter() - moved_at > STUCK_AFTER_S:
                return
            await asyncio.sleep(POLL_S / 4)

    async def _show_progress(self, sender: Sender) -> None:
        while True:
            self.view.progress(sender.sent, self.recording.count)
            await asyncio.sleep(POLL_S)

    async def _settle(self, logged: int) -> Counters:
        """Wait until every record has a fate and every score is here, or nothing moves any more."""
        moved_at, last = time.perf_counter(), (-1, -1)
        while True:
            counters = await self._counters()
            now = (counters.total, len(self.tally.scored))
            if now[0] >= logged and now[1] >= counters.fates["scored"]:
                return counters
            if now != last:
                moved_at, last = time.perf_counter(), now
            if time.perf_counter() - moved_at > STUCK_AFTER_S:
                return counters
            await asyncio.sleep(POLL_S / 4)

    async def _stop(self, consumer: Any) -> None:
        """Stop the workers, then receive what they published until their end."""
        self.stopping.set()
        for worker in self.workers:
            if not await asyncio.to_thread(worker.process.stop, STOP_TIMEOUT_S):
                raise DemoError(f"a worker did not stop within {STOP_TIMEOUT_S:.0f} s and was killed")
        await self._drain(consumer)

    async def _drain(self, consumer: Any) -> None:
        """Receive up to the end of the log and until all is quiet: Tansu's end offsets fall a batch short."""
        places = list(consumer.assignment())
        ends = await consumer.end_offsets(places)
        deadline = time.perf_counter() + STUCK_AFTER_S
        while self._quiet_s() < QUIET_S or any([await consumer.position(p) < ends[p] for p in places]):
            if time.perf_counter() > deadline:
                raise DemoError("the last alerts and scores could not be read from the broker")
            await asyncio.sleep(POLL_S / 4)

    def _quiet_s(self) -> float:
        return time.perf_counter() - self.received_at

    async def _receive(self, consumer: Any) -> None:
        take: dict[str, Callable[[bytes], None]] = {
            self.settings.topic_alerts: self._take_alert,
            self.settings.topic_scores: self._take_score,
            self.settings.topic_dead_letters: self._take_dead_letter,
            self.settings.topic_findings: self._take_finding,
        }
        while True:
            for place, records in (await consumer.getmany(timeout_ms=100, max_records=500)).items():
                self.received_at = time.perf_counter()
                for record in records:
                    take[place.topic](record.value)
            await asyncio.sleep(0)

    def _take_alert(self, value: bytes) -> None:
        alert = _alert(value)
        if self.tally.alert(alert):
            self.view.alert(alert)

    def _take_score(self, value: bytes) -> None:
        score = _score(value)
        self.tally.score(score)
        self.view.score(score)

    def _take_finding(self, value: bytes) -> None:
        finding = _finding(value)
        if self.tally.finding(finding):
            self.view.finding(finding)

    def _take_dead_letter(self, value: bytes) -> None:
        self.tally.dead_letter(_dead_letter(value))

    async def _watch(self) -> None:
        """Raise when a worker ends before its time."""
        while not self.stopping.is_set():
            for worker in self.workers:
                if not worker.process.running:
                    raise DemoError(
                        f"a worker ended with status {worker.process.returncode}; its last lines:\n"
                        + worker.process.tail()
                    )
            await asyncio.sleep(POLL_S)
        await asyncio.Event().wait()  # a task that ends would end the demo


@asynccontextmanager
async def _consumer(settings: Settings) -> AsyncIterator[Any]:
    """A consumer of all output partitions from their beginning, in no group."""
    consumer = AIOKafkaConsumer(
        **settings.kafka_client(),
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        fetch_max_wait_ms=50,
    )
    try:
        await consumer.start()
        consumer.assign([TopicPartition(t, p) for t in output_topics(settings) for p in range(PARTITIONS)])
        yield consumer
    finally:
        await consumer.stop()


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends like Ctrl-C, also where a shell started us with Ctrl-C ignored."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
