"""How large a picture may be; checked before anything is decoded."""

from engines.errors import ImageError

MAX_BYTES = 128 << 20
"""Of one file. A full-field radiograph is some 20 MB uncompressed; more is not a single picture."""

MAX_PIXELS = 64_000_000
"""Of one picture; a chest radiograph has some 9 million. Decoded it takes up to 12 bytes a pixel."""

MAX_FRAMES = 10_000
"""Of one file, one of which is taken; a long angiography has some hundred."""


def check_size(height: int, width: int) -> None:
    """Refuse a picture before it is decoded.

    Raises:
        ImageError: it has no pixels or too many.
    """
    if height < 1 or width < 1:
        raise ImageError("damaged-header", f"a picture of {width} x {height} pixels")
    if height * width > MAX_PIXELS:
        raise ImageError(
            "too-large", f"a picture of {width} x {height} pixels; {MAX_PIXELS:,} are taken: reduce it first"
        )
