"""The ward page over HTTP: a page, its parts, and what it shows. Nothing here changes anything.

    GET  /                      the page
    GET  /parts/NAME            its scripts, styles and icon
    GET  /api/ward              the whole ward
    GET  /api/stream            the same as server-sent events: `ward` first, then `change`
    GET  /api/session           204 for who may read, 401 else
    GET  /api/patients/KEY      one patient with the basis of the alerts, and findings
    GET  /api/patients/KEY/findings/NUMBER.png    a finding's picture
    GET, POST /sign-in          asks for the token and gives a cookie
    POST /sign-out              takes the cookie back
    GET  /health/live           whether the process answers; no data

A reader of the stream is sent what changed since the version it was sent last, at most five times a second.
So nothing waits in a queue for a slow one: it gets fewer, newer changes, and one that takes nothing for long
is dropped and begins anew with the whole ward.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
from aiohttp import web

from worker.board_access import COOKIE, SIGNED_IN_S, Access, is_loopback, is_own_name
from worker.board_feed import Feed
from worker.board_rows import Facts
from worker.board_ward import Changes, Ward
from worker.config import Settings
from worker.errors import FatalError

PAGE = Path(__file__).parent / "board_page"
"""What is served as it is; part of the package, so nothing is built and nothing fetched from elsewhere."""

TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}

TICK_S = 0.2
"""Between two changes that one reader is sent."""

BEAT_S = 2.0
"""Between two events at least, so that a page notices within seconds that nothing comes any more."""

DRAIN_S = 15.0
"""A reader that takes nothing for so long is dropped."""

MAX_STREAMS = 128
"""Pages at once; each costs a ward of JSON at its start and little afterwards."""

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "Server": "riskstream",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""On every answer. `Server` hides which versions run here."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

OPEN_PATHS = ("/sign-in", "/sign-out", "/health/live", "/parts/")
"""What is answered without a token: it holds nothing of a patient."""


class Site:
    """The routes over one ward."""

    def __init__(self, settings: Settings, ward: Ward, feed: Feed, facts: Facts, access: Access) -> None:
        self._host = settings.board_host
        self._secure = settings.board_cert_file is not None
        self._ward = ward
        self._feed = feed
        self._facts = msgspec.json.encode(facts)
        self._access = access
        self.streams = 0
        self._closing = asyncio.Event()

    def application(self) -> web.Application:
        """The routes, behind the guards."""
        app = web.Application(middlewares=[self._own_host, self._allowed], client_max_size=4096)
        app.add_routes(
            [
                web.get("/", _file("index.html", "text/html")),
                web.get("/parts/{name}", _part),
                web.get("/api/ward", self._whole),
                web.get("/api/session", _nothing),
                web.get("/api/stream", self._stream, allow_head=False),
                web.get(r"/api/patients/{key:\d{1,15}}", self._patient),
                web.get(r"/api/patients/{key:\d{1,15}}/findings/{number:\d{1,15}}.png", self._picture),
                web.get("/sign-in", _file("sign_in.html", "text/html")),
                web.post("/sign-in", self._sign_in),
                web.post("/sign-out", self._sign_out),
                web.get("/health/live", _live),
            ]
        )
        app.on_response_prepare.append(_add_headers)
        app.on_shutdown.append(self._end_streams)
        return app

    async def _end_streams(self, _: web.Application) -> None:
        self._closing.set()

    @web.middleware
    async def _own_host(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if is_loopback(self._host) and not is_own_name(request.headers.get("Host"), self._host):
            raise web.HTTPMisdirectedRequest(
                text="this name is not the page's; open it as http://localhost\n"
            )
        return await handler(request)

    @web.middleware
    async def _allowed(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith(OPEN_PATHS):
            return await handler(request)
        verdict = self._access.judge(request.headers.get("Authorization"), request.cookies.get(COOKIE))
        if verdict == "yes":
            return await handler(request)
        if verdict == "wrong":
            await self._punish()
        if request.path == "/":
            raise web.HTTPSeeOther("/sign-in")
        raise web.HTTPUnauthorized(
            text="a token is needed: Authorization: Bearer TOKEN, or sign in at /sign-in\n",
            headers={"WWW-Authenticate": "Bearer"},
        )

    async def _punish(self) -> None:
        if not await self._access.punish():
            raise web.HTTPTooManyRequests(text="too many wrong tokens; wait\n", headers={"Retry-After": "10"})

    async def _sign_in(self, request: web.Request) -> web.StreamResponse:
        token = await _token(request)
        if self._access.open:
            raise web.HTTPSeeOther("/")
        if not isinstance(token, str) or not self._access.is_token(token.strip()):
            await self._punish()
            raise web.HTTPSeeOther("/sign-in?wrong")
        answer = web.HTTPSeeOther("/")
        answer.set_cookie(
            COOKIE,
            self._access.cookie(),
            max_age=SIGNED_IN_S,
            httponly=True,
            samesite="Strict",
            secure=self._secure,
        )
        raise answer

    async def _sign_out(self, _: web.Request) -> web.StreamResponse:
        answer = web.HTTPSeeOther("/sign-in")
        answer.del_cookie(COOKIE, httponly=True, samesite="Strict", secure=self._secure)
        raise answer

    async def _whole(self, _: web.Request) -> web.StreamResponse:
        return web.Response(body=self._ward_json(), content_type="application/json")

    async def _patient(self, request: web.Request) -> web.StreamResponse:
        detail = self._ward.detail(int(request.match_info["key"]))
        if detail is None:
            raise web.HTTPNotFound(text="no such patient on this page now\n")
        return web.Response(body=msgspec.json.encode(detail), content_type="application/json")

    async def _picture(self, request: web.Request) -> web.StreamResponse:
        key, number = int(request.match_info["key"]), int(request.match_info["number"])
        picture = self._ward.picture(key, number)
        if picture is None:
            raise web.HTTPNotFound(text="no such picture on this page now\n")
        return web.Response(body=picture, content_type="image/png")

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        if self.streams >= MAX_STREAMS:
            raise web.HTTPServiceUnavailable(text=f"{MAX_STREAMS} pages are open already\n")
        # A proxy that collects what it passes on would hold changes back.
        headers = {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
        response = web.StreamResponse(headers=headers)
        self.streams += 1
        try:
            await response.prepare(request)
            await self._follow(response)
        except (ConnectionError, TimeoutError):
            pass  # the reader has gone, or takes nothing
        finally:
            self.streams -= 1
        return response

    async def _follow(self, response: web.StreamResponse) -> None:
        """Send the ward, then what changes, until the reader or the process goes."""
        version = self._ward.version
        await _send(response, "ward", self._ward_json())
        ticks = 0
        while not await self._closed_within(TICK_S):
            ticks += 1
            changes = self._ward.since(version)
            if changes is None:
                version = self._ward.version
                await _send(response, "ward", self._ward_json())
            elif changes.version != version or ticks * TICK_S >= BEAT_S:
                version, ticks = changes.version, 0
                await _send(response, "change", self._changes_json(changes))

    async def _closed_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._closing.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def _ward_json(self) -> bytes:
        rows = b",".join(self._ward.rows())
        return b'{"facts":%b,"feed":%b,"rows":[%b]}' % (self._facts, self._feed_json(), rows)

    def _changes_json(self, changes: Changes) -> bytes:
        gone = msgspec.json.encode(changes.gone)
        return b'{"feed":%b,"rows":[%b],"gone":%b}' % (self._feed_json(), b",".join(changes.rows), gone)

    def _feed_json(self) -> bytes:
        return msgspec.json.encode(self._feed.state())


async def _send(response: web.StreamResponse, event: str, data: bytes) -> None:
    """One event; JSON has no line break, so it is one line of data.

    Raises:
        ConnectionError: the reader has gone.
        TimeoutError: it takes nothing.
    """
    await asyncio.wait_for(response.write(b"event: %b\ndata: %b\n\n" % (event.encode(), data)), DRAIN_S)


async def _token(request: web.Request) -> object:
    """What a form says of the token; empty where it says nothing.

    Raises:
        HTTPBadRequest: the body is no form.
    """
    try:
        return (await request.post()).get("token", "")
    except (ValueError, LookupError, web.RequestPayloadError):
        raise web.HTTPBadRequest(text="this is no form with a token\n") from None


async def _add_headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)


def _file(name: str, kind: str) -> Handler:
    body = (PAGE / name).read_bytes()

    async def serve(_: web.Request) -> web.StreamResponse:
        return web.Response(body=body, content_type=kind, charset="utf-8")

    return serve


_PARTS = {path.name: path for path in PAGE.iterdir() if path.suffix in TYPES}


async def _part(request: web.Request) -> web.StreamResponse:
    path = _PARTS.get(request.match_info["name"])
    if path is None:
        raise web.HTTPNotFound(text="no such part\n")
    return web.Response(body=path.read_bytes(), content_type=TYPES[path.suffix], charset="utf-8")


async def _nothing(_: web.Request) -> web.StreamResponse:
    return web.Response(status=204)


async def _live(_: web.Request) -> web.StreamResponse:
    return web.json_response({"live": True})


async def serve(settings: Settings, application: web.Application) -> tuple[web.AppRunner, int]:
    """Start the server; the runner, to be cleaned up, and the port that it listens on.

    Raises:
        FatalError: the address cannot be had, or the certificate cannot be used.
    """
    host, port = settings.board_host, settings.board_port
    try:
        context = settings.board_ssl_context()
    except OSError:  # ssl.SSLError is one
        raise FatalError(
            "RISKSTREAM_BOARD_CERT_FILE and _KEY_FILE are no certificate and its key, in PEM"
        ) from None
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, ssl_context=context).start()
    except OSError as error:
        await runner.cleanup()
        why = os.strerror(error.errno) if error.errno else type(error).__name__
        raise FatalError(
            f"cannot listen on {host}:{port}: {why}; set RISKSTREAM_BOARD_PORT or RISKSTREAM_BOARD_HOST"
        ) from None
    return runner, runner.addresses[0][1]
