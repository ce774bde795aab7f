"""Stored pixels of one frame of a DICOM file, decoded after all that they claim was held together.

A header and a compressed stream each state a size; memory is taken by the one and by the other. Nothing is
decoded before both are known, agree, and are allowed.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines import codestream
from engines.errors import ImageError
from engines.limits import MAX_FRAMES, check_size

if TYPE_CHECKING:
    from pydicom import Dataset

NATIVE = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"})
"""Not compressed: implicit and explicit little endian, explicit big endian."""

JPEG = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70))
JPEG_LS = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (80, 81))
JPEG_2000 = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (90, 91))
RLE = frozenset({"1.2.840.10008.1.2.5"})
SYNTAXES = NATIVE | JPEG | JPEG_LS | JPEG_2000 | RLE

UNSUPPORTED = "a DICOM file that is deflated, a video or otherwise packed: export it uncompressed"

LOSSY = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 81, 91))
"""Transfer syntaxes that lose something, or may."""

GREY = frozenset({"MONOCHROME1", "MONOCHROME2"})
YBR = frozenset({"YBR_FULL", "YBR_FULL_422"})
J2K_COLOURS = frozenset({"YBR_ICT", "YBR_RCT"})
COLOURS = YBR | J2K_COLOURS | {"RGB"}
PALETTE = "PALETTE COLOR"


class Layout(NamedTuple):
    """How pixels are stored, checked: `frames` of height x width, `samples` of `stored` bits each."""

    height: int
    width: int
    frames: int
    samples: int
    allocated: int
    stored: int
    high: int
    signed: bool
    kind: str


def layout(dataset: "Dataset", syntax: str) -> Layout:
    """How a file says its pixels are stored.

    Raises:
        ImageError: an attribute is missing, contradicts another or is not handled, or it is all too large.
    """
    if syntax not in SYNTAXES:
        raise ImageError("unsupported-syntax", UNSUPPORTED)
    height, width = _whole(dataset, "Rows"), _whole(dataset, "Columns")
    check_size(height, width)
    frames = _whole(dataset, "NumberOfFrames", 1) or 1
    if not 0 < frames <= MAX_FRAMES:
        raise ImageError("too-large", f"a DICOM file of {frames:,} frames; {MAX_FRAMES:,} are taken")
    allocated, stored = _whole(dataset, "BitsAllocated"), _whole(dataset, "BitsStored")
    found = Layout(
        height,
        width,
        frames,
        _whole(dataset, "SamplesPerPixel"),
        allocated,
        stored,
        _whole(dataset, "HighBit"),
        bool(_whole(dataset, "PixelRepresentation")),
        str(dataset.get("PhotometricInterpretation") or "").strip().upper(),
    )
    _check(found, syntax)
    return found


def pixels(dataset: "Dataset", syntax: str, found: Layout, frame: int) -> NDArray[np.integer[Any]]:
    """One frame (from 1) as stored: [height, width], or [height, width, 3] as red, green, blue.

    Raises:
        ImageError: the data are not of the size that the header says.
    """
    from pydicom.pixels.utils import pixel_array

    if found.allocated == 1:
        _check_length(len(dataset.PixelData), found)
        return _bits(dataset.PixelData, found, frame)
    options: dict[str, Any] = {"index": frame - 1}
    if syntax in NATIVE:
        _check_length(len(dataset.PixelData), found)
    else:
        _check_stream(dataset, syntax, found, frame)
        options["decoding_plugin"] = "pylibjpeg"  # the same everywhere, whatever else is installed
    raw = syntax in NATIVE | RLE
    if raw:
        options["correct_unused_bits"] = False
    array: NDArray[np.integer[Any]] = pixel_array(dataset, **options)
    wanted = (found.height, found.width, 3) if found.samples == 3 else (found.height, found.width)
    if array.shape != wanted:
        raise ImageError("size-mismatch")
    return _aligned(array, found) if raw else array


def _bits(data: bytes, found: Layout, frame: int) -> NDArray[np.uint8]:
    """Single bits of one frame, which may begin and end within a byte."""
    size = found.height * found.width
    start = (frame - 1) * size
    whole = np.frombuffer(data[start // 8 : (start + size + 7) // 8], dtype=np.uint8)
    bits = np.unpackbits(whole, bitorder="little")[start % 8 : start % 8 + size]
    return bits.reshape(found.height, found.width)


def _aligned(array: NDArray[np.integer[Any]], found: Layout) -> NDArray[np.integer[Any]]:
    """Values without the bits around them, which may hold anything, such as an old overlay."""
    above, unused = found.allocated - 1 - found.high, found.allocated - found.stored
    if not unused:
        return array
    array = array if array.flags.writeable else array.copy()
    np.left_shift(array, above, out=array)
    np.right_shift(array, unused, out=array)
    return array


def _check(found: Layout, syntax: str) -> None:
    samples = 1 if found.kind in GREY or found.kind == PALETTE else 3
    if found.kind not in GREY | COLOURS | {PALETTE} or (
        found.kind in J2K_COLOURS and syntax not in JPEG_2000
    ):
        raise ImageError("unsupported-photometric")
    if found.samples != samples:
        raise ImageError("unsupported-photometric", "samples and photometric interpretation disagree")
    if found.allocated not in (1, 8, 16, 32) or not 1 <= found.stored <= found.allocated:
        raise ImageError("unsupported-pixels", "pixels that are not stored in 1, 8, 16 or 32 bits")
    if not found.stored - 1 <= found.high < found.allocated:
        raise ImageError("unsupported-pixels", "High Bit does not fit Bits Stored and Bits Allocated")
    if found.high != found.stored - 1 and syntax not in NATIVE | RLE:
        raise ImageError("unsupported-pixels", "compressed pixels whose bits are not at the low end")
    if found.allocated == 1 and (found.kind not in GREY or found.signed or syntax not in NATIVE):
        raise ImageError("unsupported-pixels", "single bits that are signed, coloured or compressed")
    if found.kind not in GREY and (found.signed or found.allocated == 32):
        raise ImageError("unsupported-pixels", "colours that are signed or of 32 bits")
    if found.kind in COLOURS - {"RGB"} and found.stored != 8:
        raise ImageError("unsupported-pixels", "YBR colours that are not of 8 bits")


def _check_length(came: int, found: Layout) -> None:
    """Native pixels: short ones are cut off; a whole frame more means that the header is wrong."""
    bits = found.height * found.width * found.samples * found.allocated
    bits = bits * 2 // 3 if found.kind == "YBR_FULL_422" else bits
    wanted = -(-bits * found.frames // 8)
    if came < wanted:
        raise ImageError("damaged-pixels", f"pixel data of {came:,} bytes; the header asks for {wanted:,}")
    if came - wanted > 1 and came - wanted >= bits // 8:
        raise ImageError("size-mismatch", f"pixel data of {came:,} bytes; the header asks for {wanted:,}")


def _check_stream(dataset: "Dataset", syntax: str, found: Layout, frame: int) -> None:
    """Hold the compressed frame's own claims to the header's."""
    from pydicom.encaps import get_frame

    offsets = (dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths"))
    stream = get_frame(
        dataset.PixelData,
        frame - 1,
        number_of_frames=found.frames,
        extended_offsets=offsets if all(offsets) else None,
    )
    if syntax in RLE:
        codestream.check_rle(stream, found.samples * found.allocated // 8)
        return
    codestream.check_end(stream)
    claim = codestream.jpeg_2000(stream) if syntax in JPEG_2000 else codestream.jpeg(stream)
    if claim[:3] != (found.height, found.width, found.samples) or claim.bits > found.allocated:
        raise ImageError(
            "size-mismatch",
            f"a stream of {claim.width} x {claim.height} pixels, {claim.samples} of {claim.bits} bits; "
            f"the header says {found.width} x {found.height}, {found.samples} of {found.allocated}",
        )
    codestream.check_length(stream, claim)


def _whole(dataset: "Dataset", attribute: str, default: int | None = None) -> int:
    value = dataset.get(attribute)
    value = default if value is None else value
    try:
        number = int(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ImageError("damaged-header", f"DICOM {attribute} is missing or no whole number") from error
    return number
