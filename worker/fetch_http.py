"""Pictures of DICOMweb services, by WADO-RS over HTTP.

    target -> checked address -> response head -> body, within size, time and pace -> its one part

Nothing is followed, decompressed or believed: redirects and encodings are refused, names are resolved for
each connection and their addresses checked, proxies of the environment and cookies are not used. A failure
after the connection is doubtful: whether the object or the server is at fault, a short GET of the base tells.
"""

import asyncio
import socket
import ssl
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from functools import partial
from typing import NamedTuple

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from worker.errors import (
    FetchError,
    FetchFailedError,
    FetchRefusedError,
    SourceAwayError,
    SourceDeniedError,
    SourceUntrustedError,
)
from worker.fetch_allowed import Base, Target, is_literal, is_reachable, target
from worker.fetch_multipart import MAX_ENVELOPE_BYTES, only_part
from worker.fetch_threads import NoThreadError, Threads
from worker.imaging_steps import turn

DICOM = "application/dicom"

PNG = "image/png"

_ACCEPT_DICOM = f'multipart/related; type="{DICOM}"; transfer-syntax=*'
"""As it is stored: a server must otherwise decompress it, which takes its time and changes the digest."""

_AWAY = frozenset({429, 502, 503, 504})
"""What a server, or the proxy before it, says while it cannot serve anybody."""

_PIECE_BYTES = 1 << 16


class Limits(NamedTuple):
    """Of one fetch. bytes_per_s: the least that must come once the response has begun."""

    max_bytes: int
    connect_s: float
    silence_s: float
    total_s: float
    bytes_per_s: int


class DicomwebSource:
    """Fetches from the allowed services. Made in the event loop that uses it."""

    def __init__(
        self,
        bases: Sequence[Base],
        internal_hosts: Sequence[str],
        credentials: Mapping[Base, str],
        limits: Limits,
        *,
        concurrency: int,
        tls: ssl.SSLContext,
    ) -> None:
        """
        Args:
            internal_hosts: hosts that may have private and loopback addresses.
            credentials: value of the header Authorization, for each base that wants one.
            concurrency: fetches under way at a service, at most; others wait.
        """
        self._bases = bases
        self._internal = frozenset(internal_hosts)
        self._credentials = credentials
        self._limits = limits
        self._slots: defaultdict[Base, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(concurrency)
        )
        resolver = CheckedResolver(self._internal, threads=concurrency, seconds=limits.connect_s)
        self._session = aiohttp.ClientSession(
            # The slots bound the connections; in a pool that did, a probe would wait behind what it probes.
            connector=aiohttp.TCPConnector(ssl=tls, resolver=resolver, use_dns_cache=False, limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                connect=limits.connect_s, sock_connect=limits.connect_s, sock_read=limits.silence_s
            ),
            auto_decompress=False,
            headers={"Accept-Encoding": "identity", "User-Agent": "riskstream"},
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def read(self, url: str, *, rendered: bool) -> tuple[bytes, str, int | None]:
        """The picture, its media type, and the frame to choose from it.

        Raises:
            FetchRefusedError: `invalid-reference`, `host-not-allowed`, `private-address`, `redirected`,
                `image-too-large`, `encoded-response`, `wrong-media-type`, `several-images`.
            FetchFailedError: `not-found`, `forbidden`, `server-error`, `unexpected-status`, `too-slow`,
                `connection-closed`, `broken-response`.
            SourceAwayError: the server is away, does not take our credentials or is not to be trusted.
        """
        asked = target(self._bases, url, rendered=rendered)
        if is_literal(asked.base.host):
            _check_address(asked.base.host, asked.base.host in self._internal)
        async with turn(self._slots[asked.base]):
            try:
                content, media_type = await self._get(asked)
            except _DoubtfulError as doubt:
                if await self._answers(asked.base):
                    raise FetchFailedError(str(doubt), reason=doubt.reason) from None
                raise SourceAwayError("the server of imaging_hosts has stopped answering") from None
        return content, media_type, asked.frame

    async def _get(self, asked: Target) -> tuple[bytes, str]:
        headers = {"Accept": PNG if asked.rendered else _ACCEPT_DICOM, **self._authorization(asked.base)}
        async with (
            _translated(),
            asyncio.timeout(self._limits.total_s),
            self._session.get(asked.url, headers=headers, allow_redirects=False) as response,
        ):
            _check_status(response)
            _check_head(response, self._limits.max_bytes)
            expected = PNG if asked.rendered else DICOM
            if response.content_type == "multipart/related" and not asked.rendered:
                body = await _body(response, self._limits, MAX_ENVELOPE_BYTES)
                came, content = only_part(response.headers["Content-Type"], body)
                _check_size(len(content), self._limits.max_bytes)
                _check_media_type(came, expected)
                return content, expected
            _check_media_type(response.content_type, expected)
            return bytes(await _body(response, self._limits, 0)), expected

    async def _answers(self, base: Base) -> bool:
        """Whether the server says anything at all that is no apology, within the time of a connection."""
        try:
            async with (
                asyncio.timeout(self._limits.connect_s),
                self._session.get(
                    base.url + "/", headers=self._authorization(base), allow_redirects=False
                ) as response,
            ):
                return response.status not in _AWAY
        except (aiohttp.ClientError, FetchError, OSError):
            return False

    def _authorization(self, base: Base) -> dict[str, str]:
        value = self._credentials.get(base)
        return {"Authorization": value} if value else {}


class CheckedResolver(AbstractResolver):
    """Resolves a name and refuses it if any of its addresses must not be connected to.

    The connection goes to the addresses that were checked: nobody resolves the name again in between.
    """

    def __init__(self, internal: frozenset[str], *, threads: int, seconds: float) -> None:
        """seconds: how long an answer may take; the C library may go on asking in its thread."""
        self._internal = internal
        self._threads = Threads("dicomweb", threads)
        self._seconds = seconds

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """As aiohttp asks.

        Raises:
            FetchRefusedError: `private-address`.
            OSError: the name cannot be resolved.
        """
        ask = partial(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        try:
            found = await self._threads.call(ask, self._seconds)
        except NoThreadError:
            raise OSError("every thread that resolves names hangs") from None
        for *_, address in found:
            _check_address(str(address[0]), host in self._internal)
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        """Nothing is open."""


class _DoubtfulError(Exception):
    """Something went wrong after the connection: the object's fault, or the server's."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def _check_address(address: str, internal: bool) -> None:
    if not is_reachable(address, internal=internal):
        raise FetchRefusedError(
            "the host has an address that is private, link-local or reserved; imaging_internal_hosts lists "
            "hosts that may have a private one",
            reason="private-address",
        )


def _check_status(response: aiohttp.ClientResponse) -> None:
    status = response.status
    if status == 200:
        return
    if status in _AWAY:
        raise SourceAwayError(f"the server answers {status}", retry_after_s=_retry_after(response))
    if status == 401:
        raise SourceDeniedError("the server does not take our credentials")
    if 300 <= status < 400:
        raise FetchRefusedError("the server redirects; nothing is followed", reason="redirected")
    if status in (404, 410):
        raise FetchFailedError("the server has no such picture", reason="not-found")
    if status == 403:
        raise FetchFailedError("the server forbids this picture", reason="forbidden")
    if status >= 500:
        raise FetchFailedError(f"the server answers {status}", reason="server-error")
    raise FetchFailedError(f"the server answers {status}", reason="unexpected-status")


def _check_head(response: aiohttp.ClientResponse, max_bytes: int) -> None:
    _check_size(response.content_length or 0, max_bytes + MAX_ENVELOPE_BYTES)
    if response.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise FetchRefusedError("a compressed response, which may be a bomb", reason="encoded-response")


def _check_size(came: int, most: int) -> None:
    if came > most:
        raise FetchRefusedError("the picture exceeds imaging_max_bytes", reason="image-too-large")


def _check_media_type(came: str, expected: str) -> None:
    if came != expected:
        raise FetchRefusedError(f"the server sends something else than {expected}", reason="wrong-media-type")


async def _body(response: aiohttp.ClientResponse, limits: Limits, envelope_bytes: int) -> bytearray:
    """The whole body, within size and pace; `envelope_bytes` may come beside the picture."""
    began = time.perf_counter()
    content = bytearray()
    async for piece in response.content.iter_chunked(_PIECE_BYTES):
        content += piece
        _check_size(len(content), limits.max_bytes + envelope_bytes)
        elapsed = time.perf_counter() - began
        if elapsed > limits.silence_s and len(content) < elapsed * limits.bytes_per_s:
            raise _DoubtfulError("the picture came too slowly", reason="too-slow")
    return content


@asynccontextmanager
async def _translated() -> AsyncIterator[None]:
    """aiohttp's errors into ours, without their texts, which hold URLs."""
    try:
        yield
    except aiohttp.ConnectionTimeoutError:
        raise SourceAwayError("no connection in time") from None
    except TimeoutError:
        raise _DoubtfulError("the picture took too long", reason="too-slow") from None
    except aiohttp.ClientSSLError:
        raise SourceUntrustedError("TLS with the server fails") from None
    except aiohttp.ClientConnectorError:
        raise SourceAwayError("no connection to the server") from None
    except aiohttp.InvalidURL:
        raise FetchRefusedError("not a URL that can be asked for", reason="invalid-reference") from None
    except aiohttp.ClientResponseError:
        raise FetchFailedError("the response is not HTTP", reason="broken-response") from None
    except (aiohttp.ClientError, OSError):
        raise _DoubtfulError("the connection was closed midway", reason="connection-closed") from None


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    """Seconds that a server asks us to wait; a date counts from the server's own clock."""
    asked = response.headers.get("Retry-After", "").strip()
    if asked.isascii() and asked.isdigit():
        return float(asked[:9])
    try:
        until = parsedate_to_datetime(asked)
        return max(0.0, (until - parsedate_to_datetime(response.headers.get("Date", ""))).total_seconds())
    except (ValueError, TypeError):
        return None
