"""The size that compressed pixels claim for themselves, read before a decoder sees them.

A JPEG, JPEG-LS or JPEG 2000 stream has a size of its own, and a decoder allocates by that one, whatever the
DICOM header says. RLE has none, but a table of segments that must fit.
"""

from typing import NamedTuple

from engines.errors import ImageError

MOST_TILES = 16_384
"""Tiles of a JPEG 2000 picture: 64 million pixels in tiles of 64 x 64. A decoder keeps kilobytes for each."""

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
"""JPEG's markers that start a frame and hold its size; 0xF7 is JPEG-LS."""

_PIXELS_A_BYTE = {0xC0: 256, 0xC1: 256, 0xC3: 8}
"""At most, by kind of frame: two bits for a block of 64 where all is even, and one for a pixel if lossless.
Progressive JPEG and JPEG-LS have no such bound."""

_BARE = frozenset(range(0xD0, 0xD9)) | {0x01}
"""JPEG's markers without a length."""


class Claim(NamedTuple):
    """What a stream says of itself; `bits` of one sample, `least` bytes that it then cannot do without."""

    height: int
    width: int
    samples: int
    bits: int
    least: int = 0


def jpeg(stream: bytes) -> Claim:
    """The claim of a JPEG or JPEG-LS stream.

    Raises:
        ImageError: it has none, or leaves its height to be told later.
    """
    place = 2 if stream[:2] == b"\xff\xd8" else len(stream)
    while place + 4 <= len(stream) and stream[place] == 0xFF:
        marker = stream[place + 1]
        if marker == 0xFF or marker in _BARE:
            place += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(stream[place + 2 : place + 4])
        if marker in _FRAMES and place + 10 <= len(stream):
            bits, samples = stream[place + 4], stream[place + 9]
            height, width = (int.from_bytes(stream[at : at + 2]) for at in (place + 5, place + 7))
            return Claim(height, width, samples, bits, height * width // _PIXELS_A_BYTE.get(marker, 1 << 32))
        if length < 2 or marker in (0xDA, 0xD9):
            break
        place += 2 + length
    raise ImageError("damaged-pixels", "a JPEG stream without a frame header")


def jpeg_2000(stream: bytes) -> Claim:
    """The claim of a JPEG 2000 codestream, bare or in a JP2 file.

    Raises:
        ImageError: it has none, or is cut into absurdly many tiles.
    """
    start = _codestream(stream)
    head = stream[start : start + 45]
    if head[:4] != b"\xff\x4f\xff\x51" or len(head) < 45:
        raise ImageError("damaged-pixels", "a JPEG 2000 stream without a size")
    right, bottom, left, top, tile_width, tile_height, tile_left, tile_top = (
        int.from_bytes(head[at : at + 4]) for at in range(8, 40, 4)
    )
    samples, depth, step_x, step_y = int.from_bytes(head[40:42]), head[42], head[43], head[44]
    if not (tile_width and tile_height and step_x and step_y):
        raise ImageError("damaged-pixels", "a JPEG 2000 stream with tiles or steps of no size")
    tiles = _ceil(right - tile_left, tile_width) * _ceil(bottom - tile_top, tile_height)
    if tiles > MOST_TILES:
        raise ImageError("too-large", f"a JPEG 2000 picture of {tiles:,} tiles; {MOST_TILES:,} are taken")
    height = _ceil(bottom, step_y) - _ceil(top, step_y)
    width = _ceil(right, step_x) - _ceil(left, step_x)
    return Claim(height, width, samples, (depth & 0x7F) + 1)


def check_length(stream: bytes, claim: Claim) -> None:
    """Refuse a stream too short for its own size: decoders fill up what is missing, slowly.

    Raises:
        ImageError: it is.
    """
    if len(stream) < claim.least:
        raise ImageError(
            "size-mismatch",
            f"{len(stream):,} bytes for {claim.width} x {claim.height} pixels, which take {claim.least:,}",
        )


def check_end(stream: bytes) -> None:
    """Hold a JPEG, JPEG-LS or JPEG 2000 stream to its end marker: decoders fill up what is cut off.

    Raises:
        ImageError: it does not end; a byte of padding may follow, or zeros.
    """
    if b"\xff\xd9" not in stream.rstrip(b"\0")[-3:]:
        raise ImageError("damaged-pixels", "compressed pixels that are cut off")


def check_rle(stream: bytes, planes: int) -> None:
    """Hold the segments of an RLE frame to the number of byte planes that the header asks for.

    Raises:
        ImageError: the table of segments does not fit.
    """
    count = int.from_bytes(stream[:4], "little")
    starts = [int.from_bytes(stream[at : at + 4], "little") for at in range(4, 4 + 4 * min(count, 15), 4)]
    if count != planes:
        raise ImageError("size-mismatch", f"an RLE frame of {count} segments; its header asks for {planes}")
    if len(stream) < 64 or starts[0] < 64 or starts != sorted(starts) or starts[-1] >= len(stream):
        raise ImageError("damaged-pixels", "an RLE frame whose segments lie outside of it")


def _codestream(stream: bytes) -> int:
    """Where a JP2 file's codestream begins; 0 where the stream is bare."""
    place = 0
    while stream[:4] == b"\x00\x00\x00\x0c" and place + 16 <= len(stream):
        length, kind = int.from_bytes(stream[place : place + 4]), stream[place + 4 : place + 8]
        head = 8
        if length == 1:
            length, head = int.from_bytes(stream[place + 8 : place + 16]), 16
        if kind == b"jp2c":
            return place + head
        if length < head:
            break
        place += length
    return 0


def _ceil(value: int, by: int) -> int:
    return -(-value // by)
