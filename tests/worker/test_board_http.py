"""The ward page over HTTP: who may read, what every answer carries, and the stream. No broker, no browser."""

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
import trustme

from tests.worker.ward import HOUR_MS, NOON_MS, alert, score
from worker import board, board_access, board_http, config
from worker.board_access import COOKIE, SIGNED_IN_S, Access, is_loopback, is_own_name
from worker.board_feed import Feed
from worker.board_http import MAX_STREAMS, PAGE, Site, serve
from worker.board_ward import Bounds, Ward
from worker.config import ConfigError, Settings
from worker.errors import FatalError

TOKEN = "correct horse battery"
PATHS = (
    "/",
    "/sign-in",
    "/parts/board.js",
    "/parts/none.js",
    "/api/ward",
    "/api/patients/999",
    "/api/patients/999/findings/1.png",
    "/health/live",
)
DATA = ("/", "/api/ward", "/api/stream", "/api/session", "/api/patients/1", "/api/patients/1/findings/1.png")


class Board:
    """A page that is served, without a broker behind it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ward = Ward(Bounds(24 * HOUR_MS, 168 * HOUR_MS, 100))
        self.feed = Feed(settings, self.ward)
        self.now_s = 1000.0
        self.url = ""
        access = Access(settings.board_token.get_secret_value(), lambda: self.now_s)
        self.site = Site(settings, self.ward, self.feed, board.facts(settings), access)


@asynccontextmanager
async def served(**settings: Any) -> AsyncIterator[Board]:
    made = Board(config.load(board_port=0, **settings))
    runner, port = await serve(made.settings, made.site.application())
    made.url = f"http://127.0.0.1:{port}"
    try:
        yield made
    finally:
        await runner.cleanup()


@pytest.fixture
async def open_board() -> AsyncIterator[Board]:
    async with served() as made:
        yield made


@pytest.fixture
async def guarded(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Board]:
    monkeypatch.setattr(board_access, "WRONG_S", 0.02)
    async with served(board_token=TOKEN) as made:
        yield made


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    jar = aiohttp.CookieJar(unsafe=True)  # takes cookies of an address
    async with aiohttp.ClientSession(cookie_jar=jar, timeout=aiohttp.ClientTimeout(total=20)) as session:
        yield session


async def status(http: aiohttp.ClientSession, url: str, **headers: str) -> int:
    async with http.get(url, headers=headers, allow_redirects=False) as answer:
        return answer.status


async def events(answer: aiohttp.ClientResponse, count: int) -> list[tuple[str, dict[str, Any]]]:
    """The next events of a stream."""
    found: list[tuple[str, dict[str, Any]]] = []
    while len(found) < count:
        kind = (await answer.content.readuntil(b"\n")).decode().removeprefix("event: ").strip()
        data = json.loads((await answer.content.readuntil(b"\n\n")).decode().removeprefix("data: "))
        found.append((kind, data))
    return found


@pytest.mark.parametrize("path", PATHS)
async def test_every_answer_is_guarded(open_board: Board, http: aiohttp.ClientSession, path: str) -> None:
    async with http.get(open_board.url + path) as answer:
        assert {name: answer.headers.get(name) for name in board_http.HEADERS} == board_http.HEADERS
    policy = board_http.HEADERS["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert "*" not in policy


def test_the_page_holds_no_script_style_or_address_of_its_own() -> None:
    for file in PAGE.glob("*.html"):
        text = file.read_text()
        assert "<style" not in text
        assert "style=" not in text
        assert not re.search(r"<[^>]*\son\w+=", text)
        assert text.count("<script") == text.count('<script type="module" src="/parts/')
        assert "http:" not in text
        assert "https:" not in text
    for file in PAGE.glob("*.js"):
        for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "DOMParser"):
            assert way not in file.read_text()
        assert len(file.read_text().splitlines()) < 400


async def test_every_part_that_the_page_names_is_served(
    open_board: Board, http: aiohttp.ClientSession
) -> None:
    for name in sorted(path.name for path in PAGE.iterdir() if path.suffix != ".html"):
        async with http.get(f"{open_board.url}/parts/{name}") as answer:
            assert (answer.status, answer.content_type) == (
                200,
                board_http.TYPES[f".{name.rpartition('.')[2]}"],
            )
    assert await status(http, f"{open_board.url}/parts/..%2fboard_http.py") == 404
    assert await status(http, f"{open_board.url}/parts/index.html") == 404


async def test_the_ward_and_a_patient_are_told(open_board: Board, http: aiohttp.ClientSession) -> None:
    open_board.ward.score(score("p<1>", 0.2), NOON_MS)
    open_board.ward.alert(alert("p<1>"), NOON_MS)
    async with http.get(f"{open_board.url}/api/ward") as answer:
        told = await answer.json()
    (row,) = told["rows"]
    assert (row["patient"], row["rank"]) == ("p<1>", 3)
    assert (told["facts"]["token"], told["feed"]["kafka_up"], told["feed"]["loading"]) == (False, False, True)
    assert [level["severity"] for level in told["facts"]["levels"]] == ["elevated", "high"]
    async with http.get(f"{open_board.url}/api/patients/{row['key']}") as answer:
        (basis,) = (await answer.json())["alerts"]
    assert (basis["policy_version"], basis["missing"], basis["inputs"][0]["contribution"]) == (
        "3",
        ["troponin_t"],
        0.21,
    )
    assert await status(http, f"{open_board.url}/api/patients/99") == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", DATA)
async def test_nothing_can_be_changed(
    open_board: Board, http: aiohttp.ClientSession, method: str, path: str
) -> None:
    async with http.request(method, open_board.url + path) as answer:
        assert answer.status == 405


@pytest.mark.parametrize("path", DATA)
async def test_without_a_token_nothing_of_the_ward_is_told(
    guarded: Board, http: aiohttp.ClientSession, path: str
) -> None:
    async with http.get(guarded.url + path, allow_redirects=False) as answer:
        assert answer.status == (303 if path == "/" else 401)
        assert answer.headers.get("Location", "/sign-in") == "/sign-in"
    assert await status(http, guarded.url + path, Authorization="Bearer wrong") in (303, 401)
    assert await status(http, guarded.url + path, Cookie=f"{COOKIE}=99999.{'0' * 64}") in (303, 401)
    assert await status(http, guarded.url + path, Cookie=f"{COOKIE}=é") in (303, 401)


async def test_the_token_as_bearer_opens(guarded: Board, http: aiohttp.ClientSession) -> None:
    for scheme in ("Bearer", "bearer"):
        assert await status(http, f"{guarded.url}/api/ward", Authorization=f"{scheme} {TOKEN}") == 200
    assert await status(http, f"{guarded.url}/api/ward", Authorization=f"Basic {TOKEN}") == 401
    assert await status(http, f"{guarded.url}/api/ward?token={TOKEN}") == 401


async def test_signing_in_gives_a_cookie_that_scripts_cannot_read_and_that_ends(
    guarded: Board, http: aiohttp.ClientSession
) -> None:
    async with http.post(
        f"{guarded.url}/sign-in", data={"token": f" {TOKEN} "}, allow_redirects=False
    ) as answer:
        assert (answer.status, answer.headers["Location"]) == (303, "/")
        cookie = answer.cookies[COOKIE]
    assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "Strict", "/")
    assert TOKEN not in cookie.value
    assert await status(http, f"{guarded.url}/api/ward") == 200
    guarded.now_s += SIGNED_IN_S
    assert await status(http, f"{guarded.url}/api/ward") == 401


async def test_signing_out_takes_the_cookie_back(guarded: Board, http: aiohttp.ClientSession) -> None:
    await http.post(f"{guarded.url}/sign-in", data={"token": TOKEN})
    assert await status(http, f"{guarded.url}/api/session") == 204
    await http.post(f"{guarded.url}/sign-out")
    assert await status(http, f"{guarded.url}/api/session") == 401


@pytest.mark.parametrize("data", [{"token": "wrong"}, {}, {"token": ""}])
async def test_a_wrong_token_is_said(
    guarded: Board, http: aiohttp.ClientSession, data: dict[str, str]
) -> None:
    async with http.post(f"{guarded.url}/sign-in", data=data, allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (303, "/sign-in?wrong")
        assert COOKIE not in answer.cookies


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Content-Type": "application/x-www-form-urlencoded; charset=none"}, b"token=a"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"token=\xff"),
        ({"Content-Type": "multipart/form-data"}, b"token=a"),
        ({"Content-Type": "multipart/form-data; boundary=x"}, b"token=a"),
    ],
)
async def test_what_is_no_form_is_refused_and_not_logged(
    guarded: Board,
    http: aiohttp.ClientSession,
    caplog: pytest.LogCaptureFixture,
    headers: dict[str, str],
    body: bytes,
) -> None:
    async with http.post(f"{guarded.url}/sign-in", data=body, headers=headers) as answer:
        assert answer.status == 400
        assert {name: answer.headers.get(name) for name in board_http.HEADERS} == board_http.HEADERS
    assert caplog.records == []


async def test_guessing_is_slow_and_does_not_keep_the_right_token_waiting(
    guarded: Board, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board_access, "WRONG_S", 30.0)
    url = f"{guarded.url}/api/ward"
    wrong = [asyncio.create_task(status(http, url, Authorization=f"Bearer {n}")) for n in range(20)]
    refused, waiting = await asyncio.wait(wrong, return_when=asyncio.FIRST_COMPLETED)
    assert await status(http, url, Authorization=f"Bearer {TOKEN}") == 200
    while len(refused) < 20 - board_access.MAX_WAITING:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        refused |= done
    assert {task.result() for task in refused} == {429}
    assert len(waiting) == board_access.MAX_WAITING
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


@pytest.mark.parametrize("name", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[x"])
async def test_on_loopback_another_name_is_refused(
    open_board: Board, http: aiohttp.ClientSession, name: str
) -> None:
    assert await status(http, f"{open_board.url}/api/ward", Host=name) == 421


def test_names_of_this_machine() -> None:
    for name in ("127.0.0.1:8090", "localhost", "localhost:1", "[::1]:8090", "127.0.0.9"):
        assert is_own_name(name, "127.0.0.1")
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost")] == [True] * 3
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "ward", "")] == [False] * 5
    assert not is_own_name(None, "127.0.0.1")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "ward.example"])
def test_off_loopback_a_token_is_required(host: str) -> None:
    with pytest.raises(FatalError, match=r"set RISKSTREAM_BOARD_TOKEN to at least 16 random characters"):
        board.require_token(config.load(board_host=host))
    board.require_token(config.load(board_host=host, board_token=TOKEN))


def test_a_short_token_and_half_a_certificate_are_refused() -> None:
    with pytest.raises(ConfigError, match="board_token must have at least 16 characters") as caught:
        config.load(board_token="short-secret")
    assert "short-secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="board_cert_file and board_key_file go together"):
        config.load(board_cert_file=__file__)


async def test_the_stream_tells_the_ward_then_what_changes(
    open_board: Board, http: aiohttp.ClientSession
) -> None:
    open_board.ward.score(score("a", 0.1), NOON_MS)
    async with http.get(f"{open_board.url}/api/stream") as answer:
        assert answer.content_type == "text/event-stream"
        ((kind, data),) = await events(answer, 1)
        assert (kind, [row["patient"] for row in data["rows"]]) == ("ward", ["a"])
        for risk in (0.2, 0.3):
            open_board.ward.score(score("b", risk, risk), NOON_MS)
        ((kind, data),) = await events(answer, 1)
        assert (kind, [(row["patient"], row["risk"]) for row in data["rows"]]) == ("change", [("b", 0.3)])
        open_board.ward.score(score("c", 0.3, 30), NOON_MS + 30 * HOUR_MS)
        open_board.ward.sweep()
        ((_, data),) = await events(answer, 1)
        assert ([row["patient"] for row in data["rows"]], len(data["gone"])) == (["c"], 2)


async def test_a_stream_has_no_head(open_board: Board, http: aiohttp.ClientSession) -> None:
    async with http.head(f"{open_board.url}/api/stream") as answer:
        assert answer.status == 405


async def test_a_quiet_stream_beats(
    open_board: Board, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board_http, "TICK_S", 0.01)
    monkeypatch.setattr(board_http, "BEAT_S", 0.05)
    async with http.get(f"{open_board.url}/api/stream") as answer:
        assert [(kind, data["rows"]) for kind, data in await events(answer, 3)] == [
            ("ward", []),
            ("change", []),
            ("change", []),
        ]


async def test_a_reader_that_takes_nothing_is_dropped(
    open_board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board_http, "TICK_S", 0.001)
    monkeypatch.setattr(board_http, "DRAIN_S", 0.05)
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", int(open_board.url.rpartition(":")[2]), limit=1
    )
    writer.write(b"GET /api/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.read(1)
    assert open_board.site.streams == 1
    for n in range(4000):
        for patient in range(90):
            open_board.ward.score(score(f"{patient}" * 60, 0.1, n, n), NOON_MS)
        await asyncio.sleep(0.002)
        if not open_board.site.streams:
            break
    assert open_board.site.streams == 0
    writer.close()


async def test_too_many_streams_are_refused(open_board: Board, http: aiohttp.ClientSession) -> None:
    open_board.site.streams = MAX_STREAMS
    assert await status(http, f"{open_board.url}/api/stream") == 503


async def test_the_page_ends_while_a_reader_listens(http: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(5):
        async with served() as made:
            answer = await http.get(f"{made.url}/api/stream")
            await events(answer, 1)
        assert await answer.content.read() == b""


async def test_with_a_certificate_the_page_speaks_tls(tmp_path: Any, http: aiohttp.ClientSession) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    (tmp_path / "cert.pem").write_bytes(issued.cert_chain_pems[0].bytes())
    (tmp_path / "key.pem").write_bytes(issued.private_key_pem.bytes())
    files = {"board_cert_file": tmp_path / "cert.pem", "board_key_file": tmp_path / "key.pem"}
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with served(board_token=TOKEN, **files) as made:
        url = made.url.replace("http", "https")
        async with http.post(
            f"{url}/sign-in", data={"token": TOKEN}, ssl=context, allow_redirects=False
        ) as answer:
            assert answer.cookies[COOKIE]["secure"]
    (tmp_path / "key.pem").write_text("none")
    with pytest.raises(FatalError, match="no certificate and its key"):
        async with served(board_token=TOKEN, **files):
            pass


async def test_a_taken_port_is_named(open_board: Board) -> None:
    port = int(open_board.url.rpartition(":")[2])
    settings = config.load(board_port=port)
    with pytest.raises(FatalError, match=rf"cannot listen on 127.0.0.1:{port}: .*RISKSTREAM_BOARD_PORT"):
        await serve(settings, open_board.site.application())
