"""Who may read the ward page: a token, or a cookie that signing in with the token gives.

The cookie holds its end and a signature by the token, so it outlives a restart of the page and dies with
the token. Both are compared in constant time. A wrong one costs its sender time, and all senders of wrong
ones wait in one line, so guessing goes at two tries a second however many connections are opened.
"""

import asyncio
import hmac
import ipaddress
from collections.abc import Callable
from hashlib import sha256
from typing import Literal
from urllib.parse import urlsplit

COOKIE = "riskstream-board"

SIGNED_IN_S = 12 * 3600
"""A shift: after it the token is asked for again."""

WRONG_S = 0.5
"""What a wrong token or cookie costs."""

MAX_WAITING = 16
"""Senders of wrong tokens in the line; more are told to come again later."""

Verdict = Literal["yes", "no", "wrong"]
"""Allowed; shows nothing, or a cookie that has run out; shows something that is wrong."""


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_own_name(host_header: str | None, bound: str) -> bool:
    """Whether a Host header names this machine's loopback, or the address that was bound.

    A page of another site whose name was made to point here (DNS rebinding) sends that name.
    """
    try:
        name = urlsplit(f"//{host_header or ''}").hostname
    except ValueError:
        return False
    return name is not None and (name == bound or is_loopback(name))


class Access:
    """Judges credentials. An empty token lets everybody in.

    Args:
        token: what readers must show.
        now_s: seconds since the epoch.
    """

    def __init__(self, token: str, now_s: Callable[[], float]) -> None:
        self.open = not token
        self._token = token.encode()
        self._now_s = now_s
        self._line = asyncio.Lock()
        self._waiting = 0

    def judge(self, authorization: str | None, cookie: str | None) -> Verdict:
        """What a request's `Authorization` header and cookie are worth."""
        if self.open:
            return "yes"
        if authorization is not None:
            scheme, _, given = authorization.partition(" ")
            return "yes" if scheme.lower() == "bearer" and self.is_token(given.strip()) else "wrong"
        return "no" if cookie is None else self._judge_cookie(cookie)

    def is_token(self, given: str) -> bool:
        """Whether it is the token."""
        # Digests have one length, so the time tells nothing of the token's.
        return hmac.compare_digest(
            sha256(given.encode(errors="surrogatepass")).digest(), sha256(self._token).digest()
        )

    def cookie(self) -> str:
        """The value of a new cookie."""
        ends = str(int(self._now_s()) + SIGNED_IN_S)
        return f"{ends}.{self._sign(ends)}"

    async def punish(self) -> bool:
        """Wait for a wrong token; False, at once, where too many wait already."""
        if self._waiting >= MAX_WAITING:
            return False
        self._waiting += 1
        try:
            async with self._line:
                await asyncio.sleep(WRONG_S)
        finally:
            self._waiting -= 1
        return True

    def _judge_cookie(self, cookie: str) -> Verdict:
        ends, _, signature = cookie.partition(".")
        right = self._sign(ends).encode()
        if not hmac.compare_digest(signature.encode(errors="replace"), right):
            return "wrong"
        return "yes" if int(ends) > self._now_s() else "no"

    def _sign(self, ends: str) -> str:
        text = b"riskstream-board-1|" + ends.encode(errors="replace")
        return hmac.new(self._token, text, sha256).hexdigest()
