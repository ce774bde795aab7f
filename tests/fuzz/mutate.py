"""Changes to picture files that a random editor would hardly find: to tags, lengths, sizes and streams.

files = Files(seed); files.case(number) -> Case    the same case for the same two numbers, always
"""

import io
import random
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import NamedTuple

from pydicom import dcmread

from engines.dicom import TAGS
from engines.dicom_pixels import SYNTAXES
from tests.engines.dicom_files import seeds

VRS = (
    b"US",
    b"SS",
    b"UL",
    b"OB",
    b"OW",
    b"SQ",
    b"UN",
    b"CS",
    b"DS",
    b"IS",
    b"UI",
    b"FD",
    b"AT",
    b"UT",
    b"ZZ",
)
KINDS = (
    "MONOCHROME1",
    "MONOCHROME2",
    "RGB",
    "YBR_FULL",
    "YBR_FULL_422",
    "YBR_ICT",
    "PALETTE COLOR",
    "HSV",
    "",
)
NUMBERS = (0, 1, 2, 3, 7, 8, 12, 15, 16, 31, 32, 255, 256, 4096, 32767, 32768, 60000, 65535)
WORDS = (
    "",
    "0",
    "1",
    "-1",
    "1e308",
    "-1e308",
    "nan",
    "inf",
    "1e-308",
    "0.5",
    "1\\2",
    "99999999999",
    "x" * 70,
)
SIZES = (
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "SamplesPerPixel",
)
TEXTS = ("NumberOfFrames", "WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept")
PIXELS = b"\xe0\x7f\x10\x00"
SIZ, SOFS = b"\xff\x51", tuple(bytes([0xFF, kind]) for kind in (0xC0, 0xC1, 0xC2, 0xC3, 0xF7))


class Case(NamedTuple):
    """A changed file: what it was made of, how, and which frame to ask for."""

    seed: str
    changes: tuple[str, ...]
    content: bytes
    frame: int | None


class Files:
    """Cases, by number."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._names = sorted(seeds())

    def case(self, number: int) -> Case:
        """One to three changes to one seed."""
        rng = random.Random(f"{self._seed}/{number}")
        name = rng.choice(self._names)
        content = seeds()[name]
        changes = rng.choices(CHANGES, k=rng.choice((1, 1, 2, 3)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom tells of what it is asked to write
            for change in changes:
                content = change(content, rng)
        frame = rng.choice((None, None, None, 1, 1, 2))
        return Case(name, tuple(change.__name__ for change in changes), content, frame)


def flip(content: bytes, rng: random.Random) -> bytes:
    """A few bytes become others."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 2, 8))):
        changed[rng.randrange(len(changed))] = rng.choice((0, 0xFF, 0x7F, 0x80, rng.randrange(256)))
    return bytes(changed)


def flip_pixels(content: bytes, rng: random.Random) -> bytes:
    """As `flip`, behind the header of the pixel data: a valid header, a damaged stream."""
    start = max(content.rfind(PIXELS), 0) + 8
    return content[:start] + flip(content[start:] or b"\0", rng)


def truncate(content: bytes, rng: random.Random) -> bytes:
    """The end is missing."""
    return content[: rng.randrange(1, len(content) + 1)] or b"\0"


def splice(content: bytes, rng: random.Random) -> bytes:
    """A piece is removed, doubled or replaced by noise."""
    start = rng.randrange(len(content))
    end = min(len(content), start + rng.choice((1, 4, 64, 1024)))
    piece = rng.choice((b"", content[start:end] * 2, rng.randbytes(end - start)))
    return content[:start] + piece + content[end:] or b"\0"


def tag(content: bytes, rng: random.Random) -> bytes:
    """An element becomes another one."""
    place = _element(content, rng)
    return _put(content, place, rng.choice((_tag(rng), PIXELS, b"\xfe\xff\xdd\xe0", rng.randbytes(4))))


def vr(content: bytes, rng: random.Random) -> bytes:
    """An element has another value representation."""
    return _put(content, _element(content, rng) + 4, rng.choice(VRS))


def length(content: bytes, rng: random.Random) -> bytes:
    """An element or an item has another length."""
    place = _element(content, rng) + rng.choice((4, 6, 8))
    lengths = (0, 1, 2, 0xFF, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF, rng.randrange(1 << 24))
    size = rng.choice((2, 4))
    return _put(content, place, (rng.choice(lengths) & ((1 << 8 * size) - 1)).to_bytes(size, "little"))


def attribute(content: bytes, rng: random.Random) -> bytes:
    """A well-formed file with a value that contradicts the others."""
    try:
        dataset = dcmread(io.BytesIO(content))
        for _ in range(rng.choice((0, 1, 1, 2))):
            setattr(dataset, rng.choice(SIZES), rng.choice(NUMBERS))
        if rng.random() < 0.3:
            dataset.PhotometricInterpretation = rng.choice(KINDS)
        if rng.random() < 0.3:
            setattr(dataset, rng.choice(TEXTS), rng.choice(WORDS))
        file = io.BytesIO()
        dataset.save_as(file)
        return file.getvalue()
    except Exception:  # of a file that other changes have damaged, or a value that pydicom does not write
        return flip(content, rng)


def syntax(content: bytes, rng: random.Random) -> bytes:
    """The same bytes under another transfer syntax."""
    found = [one for one in SYNTAXES if one.encode() + b"\0" in content[:1024]]
    if not found:
        return flip(content, rng)
    other = rng.choice(sorted(SYNTAXES))
    old, new = (text.encode() + b"\0" * (len(text) % 2) for text in (max(found, key=len), other))
    place = content.find(old)
    size = struct.pack("<H", len(new))
    return content[: place - 2] + size + new + content[place + len(old) :]


def stream(content: bytes, rng: random.Random) -> bytes:
    """Another size, depth or number of components in the compressed stream; sometimes in the header too."""
    for marker in rng.sample((SIZ, *SOFS), k=6):
        place = content.rfind(marker)
        if place > 0:
            break
    else:
        return flip_pixels(content, rng)
    if marker == SIZ:
        return _put(
            content, place + rng.randrange(4, 44), rng.choice((b"\0\0", b"\xff\xff", rng.randbytes(4)))
        )
    height, width = rng.choice(NUMBERS), rng.choice(NUMBERS)
    changed = _put(content, place + 5, height.to_bytes(2) + width.to_bytes(2))
    if rng.random() < 0.2:
        changed = _put(changed, place + 4, bytes([rng.choice((1, 2, 8, 12, 16, 17, 255))]))
    if rng.random() < 0.5:
        for number, value in ((0x10, height), (0x11, width)):
            changed = _put(
                changed, changed.find(struct.pack("<HH", 0x28, number)) + 8, struct.pack("<H", value)
            )
    return changed


def segments(content: bytes, rng: random.Random) -> bytes:
    """Numbers right behind the pixel data's tag: lengths, offset tables, an RLE frame's table."""
    place = content.rfind(PIXELS) + rng.choice((4, 8, 12, 16, 20, 24, 28, 32))
    return _put(content, place, rng.choice(NUMBERS).to_bytes(4, "little"))


def chunk(content: bytes, rng: random.Random) -> bytes:
    """A PNG with another header whose checksum is right."""
    if not content.startswith(b"\x89PNG") or len(content) < 33:
        return flip(content, rng)
    head = bytearray(content[12:29])
    for place in rng.sample(range(4, 17), k=2):
        head[place] = rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
    return content[:12] + bytes(head) + zlib.crc32(head).to_bytes(4) + content[33:]


Change = Callable[[bytes, random.Random], bytes]
CHANGES: tuple[Change, ...] = (
    *(flip, flip_pixels, flip_pixels, truncate, splice, tag, vr, length),
    *(attribute, attribute, syntax, stream, stream, segments, chunk),
)


def _tag(rng: random.Random) -> bytes:
    from pydicom.datadict import tag_for_keyword

    number = tag_for_keyword(rng.choice(TAGS)) or 0
    return struct.pack("<HH", number >> 16, number & 0xFFFF)


def _element(content: bytes, rng: random.Random) -> int:
    """Where an element that the decoder reads begins; anywhere if the one that was drawn is not there."""
    place = content.find(_tag(rng))
    return place if place >= 0 else rng.randrange(len(content))


def _put(content: bytes, place: int, piece: bytes) -> bytes:
    place = min(max(place, 0), len(content) - 1)
    return content[:place] + piece + content[place + len(piece) :]
