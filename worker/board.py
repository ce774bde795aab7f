"""The ward page as a process: a feed into a ward, and a site that shows it.

    Kafka -> feed -> ward -> site -> pages

It stands beside the worker: it neither joins its group nor reads Redis, so it can be started, stopped and run
more than once without anybody noticing.
"""

import asyncio
import signal
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

import structlog

from engines import repository
from engines.errors import EngineError
from worker import board_ward
from worker.board_access import Access, is_loopback
from worker.board_feed import Feed, every
from worker.board_http import Site, serve
from worker.board_rows import Facts, Level
from worker.board_ward import Bounds, Ward
from worker.config import Settings
from worker.errors import FatalError

log = structlog.get_logger("riskstream.board")

SWEEP_S = 1.0
"""Between two looks for patients who leave."""

HOUR_MS = 3_600_000


async def run(settings: Settings, announce: Callable[[str], None]) -> None:
    """Serve the page until SIGTERM or Ctrl-C.

    Args:
        settings: broker, topics and the `board_*` settings.
        announce: called with the page's URL once it answers.

    Raises:
        FatalError: off loopback without a token, the address cannot be had, or the brokers refuse.
    """
    require_token(settings)
    bounds = Bounds(
        round(settings.board_history_h * HOUR_MS),
        round(max(settings.board_history_h, settings.board_alerts_h) * HOUR_MS),
        settings.board_patients,
    )
    ward = Ward(bounds)
    feed = Feed(settings, ward)
    access = Access(settings.board_token.get_secret_value(), lambda: datetime.now(UTC).timestamp())
    runner, port = await serve(settings, Site(settings, ward, feed, facts(settings), access).application())
    try:
        announce(url(settings, port))
        await _until_stopped(feed, ward)
    finally:
        await runner.cleanup()


def require_token(settings: Settings) -> None:
    """Refuse to show patients to a network without a token.

    Raises:
        FatalError: the address is not loopback and there is no token.
    """
    if is_loopback(settings.board_host):
        return
    if not settings.board_token.get_secret_value():
        raise FatalError(
            f"RISKSTREAM_BOARD_HOST is {settings.board_host}, which other machines can reach: set "
            "RISKSTREAM_BOARD_TOKEN to at least 16 random characters (openssl rand -hex 24), or listen on "
            "127.0.0.1"
        )
    if settings.board_cert_file is None:
        log.warning("the page is served without TLS; set board_cert_file, or put a proxy with TLS before it")


def facts(settings: Settings) -> Facts:
    """What a page is told once."""
    return Facts(
        boot=uuid.uuid4().hex,
        quiet_s=settings.board_quiet_s,
        stale_s=settings.board_stale_h * 3600,
        history_s=settings.board_history_h * 3600,
        levels=_levels(settings),
        token=bool(settings.board_token.get_secret_value()),
    )


def url(settings: Settings, port: int) -> str:
    """Where the page is."""
    scheme = "https" if settings.board_cert_file else "http"
    host = f"[{settings.board_host}]" if ":" in settings.board_host else settings.board_host
    return f"{scheme}://{host}:{port}/"


def _levels(settings: Settings) -> tuple[Level, ...]:
    """Thresholds of the served model's policy; none where its folder is not on this machine."""
    try:
        policy = repository.read_config(settings.model_repository, settings.model).policy
    except EngineError:
        return ()
    return tuple(Level(one.severity, board_ward.rank(one.severity), one.enter) for one in policy.levels)


async def _until_stopped(feed: Feed, ward: Ward) -> None:
    """Feed the ward until a signal comes; an error of the feed's ends it too."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    tasks = [
        asyncio.create_task(feed.run()),
        asyncio.create_task(every(SWEEP_S, lambda: ward.sweep(loading=feed.loading))),
        asyncio.create_task(stop.wait()),
    ]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
