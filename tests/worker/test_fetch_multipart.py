"""Any bytes are one part or an error; a part comes out as it went in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.worker.pacs import multipart
from worker.errors import FetchError
from worker.fetch_allowed import parse_base, target
from worker.fetch_multipart import MAX_ENVELOPE_BYTES, only_part

KIND = "multipart/related; boundary=edge"
PIECES = st.sampled_from(
    [b"--edge", b"--", b"\r\n", b"\r\n\r\n", b"Content-Type: a/b", b"Content-Length: 2", b"\xff", b"ab", b":"]
)


@given(st.lists(PIECES, max_size=20).map(b"".join))
def test_any_bytes_are_a_part_or_an_error(body: bytes) -> None:
    try:
        media_type, content = only_part(KIND, body)
    except FetchError:
        return
    assert content in body
    assert b"\r\n--edge" not in content
    assert media_type.count("/") == 1


@given(st.binary(max_size=200).filter(lambda content: b"--edge" not in content))
def test_a_part_comes_out_as_it_went_in(content: bytes) -> None:
    for body in (multipart(content), bytearray(multipart(content)[2:])):
        assert only_part(KIND, body) == ("application/dicom", content)


@pytest.mark.parametrize(
    "kind",
    [
        "multipart/related",
        "multipart/related; boundary=",
        "multipart/related; boundary=éß",
        f"multipart/related; boundary={'e' * 71}",
        "multipart/related; boundary=other",
    ],
)
def test_a_boundary_that_cannot_be(kind: str) -> None:
    with pytest.raises(FetchError) as caught:
        only_part(kind, multipart(b"x"))
    assert caught.value.reason == "broken-response"


def test_a_quoted_boundary_and_a_binary_part() -> None:
    body = multipart(b"x", headers="CONTENT-TYPE: Application/Dicom\r\nContent-Transfer-Encoding: Binary\r\n")
    assert only_part('Multipart/Related; type="application/dicom"; boundary="edge"', body) == (
        "application/dicom",
        b"x",
    )


def test_a_header_that_is_not_ascii() -> None:
    body = multipart(b"x", headers="Content-Type: a/b\r\nContent-Length: é\r\n")
    with pytest.raises(FetchError) as caught:
        only_part(KIND, body)
    assert caught.value.reason == "broken-response"


def test_a_preamble_beyond_the_envelope() -> None:
    with pytest.raises(FetchError) as caught:
        only_part(KIND, b"x" * (MAX_ENVELOPE_BYTES + 1) + multipart(b"x"))
    assert caught.value.reason == "broken-response"


@given(st.text("0123456789./%?#@\\:-é\n ", max_size=40), st.booleans())
def test_what_is_asked_for_lies_under_the_base(rest: str, rendered: bool) -> None:
    base = parse_base("https://pacs.example/dicom-web")
    for url in (rest, f"{base.url}{rest}", f"{base.url}/studies/1/series/2/instances/{rest}"):
        try:
            asked = target([base], url, rendered=rendered)
        except FetchError:
            continue
        assert asked.url.startswith("https://pacs.example/dicom-web/studies/1/series/2/instances/")
        assert asked.url.isascii()
        assert not set(asked.url) & set("%?#@\\ ")
