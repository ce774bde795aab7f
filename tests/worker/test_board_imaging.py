"""Findings of pictures on the ward page: which are kept, whose pictures are served, and to whom."""

import itertools
import json

import aiohttp
import pytest

from schemas.messages import ModelReference
from tests.worker.test_board_http import TOKEN, served, status
from tests.worker.test_board_ward import detail, rows, take, ward
from tests.worker.ward import NOON_MS, finding, picture, score
from worker.board_http import HEADERS
from worker.board_imaging import KEPT_FINDINGS, MAX_SIDE, Pictures, is_png
from worker.board_rows import Imaging


def test_a_patient_with_only_a_finding_is_shown_and_counts_as_not_measured() -> None:
    of = ward(finding("p", quality=("low-contrast", "rotated")))
    row = rows(of)["p"]
    assert row.imaging == Imaging("pneumonia", 0.87, NOON_MS, 2, "DX", "CHEST")
    assert (row.rank, row.risk, row.seen, of.last_ms, of.event) == (0, None, 0, None, None)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_findings_in_any_order_and_twice_are_the_newest_pictures(order: tuple[int, ...]) -> None:
    sent = [finding("p", f"f-{n}", n, activation_png=picture()) for n in range(3)]
    of = ward(*(sent[n] for n in order), *sent)
    told = detail(of, "p").findings
    assert [(one.finding.id, one.picture, one.finding.activation_png) for one in told] == [
        (f"f-{n}", True, None) for n in (2, 1, 0)
    ]
    assert {of.picture(rows(of)["p"].key, one.number) for one in told} == {picture()}


def test_of_one_picture_the_newest_model_is_first() -> None:
    later = finding("p", "a", model=ModelReference("pneumonia", 3, "f" * 64))
    told = detail(ward(later, finding("p", "b")), "p").findings
    assert [one.finding.model.version for one in told] == [3, 2]


def test_a_second_finding_with_an_id_changes_nothing() -> None:
    of = ward(finding("p"), finding("p", hours=1, risk=0.1))
    assert [one.finding.risk for one in detail(of, "p").findings] == [0.87]


def test_findings_are_bounded_and_those_that_go_take_their_pictures() -> None:
    of = ward(*(finding("p", f"f-{n}", n, activation_png=picture()) for n in range(KEPT_FINDINGS)))
    oldest = detail(of, "p").findings[-1].number
    key = rows(of)["p"].key
    assert of.picture(key, oldest) == picture()
    take(of, finding("p", "f-new", 50))
    take(of, finding("p", "f-old", -50, activation_png=picture()))
    assert [one.finding.id for one in detail(of, "p").findings] == ["f-new", "f-3", "f-2", "f-1"]
    assert of.picture(key, oldest) is None


def test_pictures_of_all_patients_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.board_imaging.KEPT_PICTURE_BYTES", 2 * len(picture()))
    of = ward(*(finding(f"p{n}", activation_png=picture()) for n in range(3)))
    assert [detail(of, f"p{n}").findings[0].picture for n in range(3)] == [False, True, True]


def test_the_room_of_a_picture_that_went_is_free_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.board_imaging.KEPT_PICTURE_BYTES", 2 * len(picture()))
    kept = Pictures()
    numbers = [kept.add(picture()) for _ in range(2)]
    kept.drop(numbers[1])
    kept.drop(numbers[1])
    kept.add(picture())
    assert kept.get(numbers[0]) == picture()


def test_a_picture_is_its_own_patients() -> None:
    of = ward(finding("a", activation_png=picture()), finding("b", activation_png=picture(32)))
    numbers = {name: detail(of, name).findings[0].number for name in "ab"}
    assert of.picture(rows(of)["a"].key, numbers["a"]) == picture()
    assert of.picture(rows(of)["a"].key, numbers["b"]) is None
    assert of.picture(99, numbers["a"]) is None


def test_pictures_go_with_their_patient() -> None:
    of = ward(finding("gone", activation_png=picture()), score("here", 0.1, 25))
    key, number = rows(of)["gone"].key, detail(of, "gone").findings[0].number
    of.sweep(loading=True)
    assert of.picture(key, number) == picture()  # a topic that is read later may tell of the patient
    of.sweep()
    assert set(rows(of)) == {"here"}
    assert of.picture(key, number) is None


PNG = picture()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        PNG[:8],
        PNG[:-1],
        b"GIF89a" + PNG[6:],
        b"<svg onload='alert(1)'/>" + PNG[24:],
        PNG[:16] + (MAX_SIDE + 1).to_bytes(4, "big") + PNG[20:],
        PNG[:20] + (0).to_bytes(4, "big") + PNG[24:],
        PNG[:12] + b"IDAT" + PNG[16:],
        PNG[:-12] + bytes(1 << 18) + PNG[-12:],
    ],
)
def test_what_is_no_png_is_not_kept(data: bytes) -> None:
    assert is_png(PNG)
    of = ward(finding("p", activation_png=data))
    (told,) = detail(of, "p").findings
    assert (told.picture, of.picture(rows(of)["p"].key, told.number)) == (False, None)


async def test_a_findings_picture_is_told_by_its_number() -> None:
    async with served() as board, aiohttp.ClientSession() as http:
        board.ward.finding(finding("p<1>", activation_png=PNG), NOON_MS)
        board.ward.finding(finding("p<1>", "f-2", 1, activation_png=b"<script>alert(1)</script>"), NOON_MS)
        async with http.get(f"{board.url}/api/patients/1") as answer:
            body = await answer.text()
        assert "iVBOR" not in body
        newest, older = json.loads(body)["findings"]
        assert (newest["picture"], older["picture"]) == (False, True)
        base = f"{board.url}/api/patients/1/findings"
        async with http.get(f"{base}/{older['number']}.png") as answer:
            told = (answer.status, answer.headers["Content-Type"], await answer.read())
            assert told == (200, "image/png", PNG)
            assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS
        for path in (f"{newest['number']}.png", "99.png", "x.png", f"{older['number']}"):
            assert await status(http, f"{base}/{path}") == 404
        assert await status(http, f"{board.url}/api/patients/2/findings/{older['number']}.png") == 404


async def test_with_the_token_a_picture_is_told_and_without_it_none() -> None:
    async with served(board_token=TOKEN) as board, aiohttp.ClientSession() as http:
        board.ward.finding(finding("p", activation_png=PNG), NOON_MS)
        url = f"{board.url}/api/patients/1/findings/1.png"
        assert await status(http, url) == 401
        assert await status(http, url, Authorization=f"Bearer {TOKEN}") == 200
