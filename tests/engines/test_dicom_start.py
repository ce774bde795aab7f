"""DICOM without the preamble of part 10 is the same picture; what only looks like it is none."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines import images
from engines.decoded import identity_of
from engines.dicom_header import read_header
from engines.dicom_start import HEAD, is_dicom, part10
from engines.errors import IMAGE_REASONS, ImageError
from schemas.model_config import ImageInput
from tests.engines.dicom_files import bare, seeds

WANTED = ImageInput(height=16, width=16)
WITH_PREAMBLE = [name for name, content in seeds().items() if content[128:132] == b"DICM"]


@pytest.mark.parametrize("name", WITH_PREAMBLE)
def test_without_the_preamble_it_is_the_same_picture(name: str) -> None:
    content, frame = seeds()[name], 1 if name == "frames" else None
    assert read_or_reason(content[132:], frame) == read_or_reason(content, frame)


def read_or_reason(content: bytes, frame: int | None) -> tuple[object, ...] | str:
    """The picture's bytes and all that is known of it, or why it is refused."""
    try:
        decoded = images.read(content, WANTED, frame=frame)
    except ImageError as error:
        return error.reason
    return decoded.image.tobytes(), *decoded[1:]


@pytest.mark.parametrize("name", ["implicit", "explicit", "signed", "rgb", "palette", "32-bit", "words"])
def test_without_meta_information_the_first_elements_say_how_it_is_written(name: str) -> None:
    content = seeds()[name]
    expected, again = images.read(content, WANTED), images.read(bare(content), WANTED)
    assert again.image.tobytes() == expected.image.tobytes()
    assert again[1:] == expected[1:]
    assert read_header(bare(content)) == read_header(content)


def test_a_bare_file_that_names_no_instance_is_named_by_its_own_bytes() -> None:
    content = bare(seeds()["implicit"]).replace(b"\x08\x00\x18\x00", b"\x08\x00\x19\x00")
    named = images.read(content, WANTED).identity
    assert named == identity_of(content)


def element(group: int, number: int, kind: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", group, number, kind, len(value)) + value


DATE, TIME = element(8, 0x12, b"DA", b"20040119"), element(8, 0x13, b"TM", b"072731")
UID = element(8, 0x18, b"UI", b"1.2.3.4\0")
LIKE = {
    "the two bytes and text": b"\x08\x00" + b"once upon a time " * 100,
    "an element and text": DATE + b"once upon a time " * 100,
    "two elements": DATE + TIME,
    "falling tags": UID + TIME + DATE,
    "a value beyond the end": DATE + TIME + UID[:-2],
    "an odd length": DATE + element(8, 0x13, b"TM", b"07273") + UID,
    "an unknown representation": DATE + element(8, 0x13, b"Tm", b"072731") + UID,
    "another group": element(16, 0x10, b"PN", b"A^") + DATE + TIME + UID,
    "big endian": bare(seeds()["big-endian"]),
    "a stray byte before": b" " + bare(seeds()["explicit"]),
    "meta information that is none": b"\x02\x00\x00\x00" + bytes(400),
    "zeros": bytes(400),
    "rising numbers": struct.pack("<100Q", *range(8, 108)),
    "rising even numbers": struct.pack("<100Q", *range(8, 208, 2)),
    "numbers in steps of 65536": struct.pack("<100Q", *range(0x50008, 0x50008 + 100 * 65536, 65536)),
    "rising numbers of 4 bytes": struct.pack("<200I", *range(8, 408, 2)),
    "pairs of a number and its place": struct.pack("<200I", *(n for k in range(100) for n in (8 + k, 2 * k))),
}


@pytest.mark.parametrize("name", LIKE)
def test_what_only_looks_like_it_is_no_picture(name: str) -> None:
    content = LIKE[name]
    assert not is_dicom(content, len(content))
    assert part10(content) == content
    with pytest.raises(ImageError) as found:
        images.read(content, WANTED)
    assert found.value.reason == "not-an-image"


@pytest.mark.parametrize("name", seeds())
def test_the_beginning_of_a_file_tells(name: str) -> None:
    content = seeds()[name]
    assert is_dicom(content[:HEAD], len(content)) == is_dicom(content, len(content))


@given(st.sampled_from([b"", b"\x02\x00", b"\x08\x00", DATE, DATE + TIME, DATE + TIME + UID]), st.binary())
def test_any_bytes_are_read_or_refused(begin: bytes, rest: bytes) -> None:
    content = begin + rest
    assert part10(content)[-len(content) :] == content or not content
    with pytest.raises(ImageError) as found:
        images.read(content, WANTED)
    assert found.value.reason in IMAGE_REASONS


def test_pictures_are_what_they_were() -> None:
    assert np.isfinite(images.read(seeds()["no-preamble"], WANTED).image).all()
