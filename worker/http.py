"""/metrics, /health/live and /health/ready on an own HTTP server.

Live fails only when there is something to do and nothing moves. Ready says whether every dependency is
there: a worker that is not ready may still be alerting from memory.
"""

import asyncio
import enum
import os
from collections.abc import Callable
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout, web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from worker.errors import FatalError


class Health:
    """What the endpoints report; filled by the app.

    live: (alive, reason). ready: (ready, one entry for each dependency).
    """

    def __init__(
        self, live: Callable[[], tuple[bool, str]], ready: Callable[[], tuple[bool, dict[str, Any]]]
    ) -> None:
        self.live = live
        self.ready = ready


async def serve(host: str, port: int, health: Health) -> tuple[web.AppRunner, int]:
    """Start the server.

    Returns:
        The runner, to be cleaned up, and the port that it listens on.

    Raises:
        FatalError: the address cannot be had.
    """

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def live(_: web.Request) -> web.Response:
        alive, reason = health.live()
        return web.json_response({"live": alive, "reason": reason}, status=200 if alive else 503)

    async def ready(_: web.Request) -> web.Response:
        is_ready, state = health.ready()
        return web.json_response({"ready": is_ready, **state}, status=200 if is_ready else 503)

    app = web.Application()
    app.add_routes(
        [web.get("/metrics", metrics), web.get("/health/live", live), web.get("/health/ready", ready)]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    try:
        await site.start()
    except OSError as error:
        await runner.cleanup()
        why = os.strerror(error.errno) if error.errno else type(error).__name__
        raise FatalError(
            f"cannot listen on {host}:{port}: {why}; set RISKSTREAM_HTTP_PORT or RISKSTREAM_HTTP_HOST"
        ) from None
    return runner, runner.addresses[0][1]


class Occupant(enum.Enum):
    """Who has an address: nobody, a worker, or somebody else."""

    NOBODY = enum.auto()
    READY = enum.auto()
    NOT_READY = enum.auto()
    OTHER = enum.auto()


async def occupant(host: str, port: int, seconds: float = 2.0) -> Occupant:
    """Ask who listens on an address that a worker would take; a refused connection means nobody.

    An address that is not this machine's counts as somebody else's.
    """
    try:
        server = await asyncio.get_running_loop().create_server(asyncio.Protocol, host, port)
    except OSError:
        return await _answering(host, port, seconds)
    server.close()
    await server.wait_closed()
    return Occupant.NOBODY


async def _answering(host: str, port: int, seconds: float) -> Occupant:
    asked = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    try:
        async with (
            ClientSession(timeout=ClientTimeout(total=seconds)) as session,
            session.get(f"http://{asked}:{port}/health/ready") as response,
        ):
            state = await response.json()
            is_ready = state["ready"] if isinstance(state, dict) else None
    except (ClientError, OSError, TimeoutError, ValueError, KeyError):
        return Occupant.OTHER
    if not isinstance(is_ready, bool):
        return Occupant.OTHER
    return Occupant.READY if is_ready else Occupant.NOT_READY
