"""What leaves a decoder: pixels, an identity, a few words and flags; nothing else of a file.

picture -> Picture    as the file shows it
Picture -> Decoded    as a model's input
"""

import hashlib
import re
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.engine import F32
from engines.errors import ImageError
from schemas.model_config import ImageInput

FLAGS = {
    "lossy": "compressed with loss, now or earlier: by its transfer syntax, Lossy Image Compression, or JPEG",
    "low-contrast": "98% of its pixels lie within a tenth of the range from black to white",
    "saturated": "over a quarter of its pixels are fully white, or over three quarters fully black",
    "burned-in": "Burned In Annotation is YES, and that was allowed",
    "no-window": "grey DICOM without a window or VOI LUT: shown from its least to its greatest value",
    "small": "fewer rows or columns than the model's input: it was enlarged",
    "polarity": "Photometric Interpretation and Presentation LUT Shape disagree about what is black",
    "for-processing": "Presentation Intent Type is FOR PROCESSING: raw values of the detector",
}
"""Every quality flag, and when it is set."""

MOST_SAMPLED = 1 << 20
"""Pixels that contrast and saturation are judged on, about, evenly spaced."""

_WORD = re.compile(r"[A-Z0-9][A-Z0-9 _./-]{0,63}")
_UID = re.compile(r"[0-9][0-9.]{0,63}")


class Words(NamedTuple):
    """What kind of picture it is, in DICOM's words, upper case; empty where nothing is said."""

    modality: str = ""
    body_part: str = ""
    view: str = ""


class Picture(NamedTuple):
    """A picture as its file shows it.

    pixels: float32[height, width, 1 | 3] in [0, 1].
    words: what was found or hinted at.
    identity: see `Decoded`.
    flags: those of the file; those of pixels and size come later.
    """

    pixels: F32
    words: Words
    identity: str
    flags: tuple[str, ...]


class Decoded(NamedTuple):
    """A picture as a model's input.

    image: float32[channels, height, width] in [0, 1].
    height, width: pixels of the picture in the file.
    modality, body_part, view: DICOM's words, upper case; for findings, never for labels or logs.
    identity: SHA-256, in hex, of the SOP Instance UID and the frame, or of the file where it has none.
    flags: of `FLAGS`, sorted.
    """

    image: F32
    height: int
    width: int
    modality: str
    body_part: str
    view: str
    identity: str
    flags: tuple[str, ...]


def identity_of(content: bytes, uid: str = "", frame: int | None = None) -> str:
    """What names an image: SHA-256 in hex of `UID/frame` (frame 1 if none), or of the whole file."""
    if _UID.fullmatch(uid):
        return hashlib.sha256(f"{uid}/{frame or 1}".encode()).hexdigest()
    return hashlib.sha256(content).hexdigest()


def accept(found: Words, hints: Words | None, accepted: ImageInput | None) -> Words:
    """The words of a picture, after they were held to what a model takes.

    Args:
        found: what the file says of itself.
        hints: what the event says, used where the file says nothing.
        accepted: the model's words; None, or an empty tuple, takes any.

    Raises:
        ImageError: a word is not among the model's, or nothing is said where it asks.
    """
    hints = hints or Words()
    words = Words(*(normal(own) or normal(hint) for own, hint in zip(found, hints, strict=True)))
    if accepted is None:
        return words
    wanted = (("modality", accepted.modality), ("body_part", accepted.body_part), ("view", accepted.view))
    for (name, values), word in zip(wanted, words, strict=True):
        if values and word not in {normal(value) for value in values}:
            came = "is another" if word else "is not stated"
            reason = f"wrong-{name.replace('_', '-')}"
            raise ImageError(reason, f"{name} must be one of {list(values)}, and {came}")
    return words


def normal(word: str) -> str:
    """A word in upper case with single spaces; empty if it is none."""
    word = " ".join(word.split()).upper()
    return word if _WORD.fullmatch(word) else ""


def levels(array: NDArray[np.integer[Any]], white: int) -> F32:
    """Whole numbers from 0 to `white` as float32 in [0, 1], without a second copy of a large picture."""
    picture = array.astype(np.float32)
    picture /= np.float32(white)
    return np.minimum(picture, 1, out=picture)


def flags_of(pixels: F32, wanted: ImageInput) -> set[str]:
    """The flags that pixels, float32[height, width, 1 | 3], and their number call for."""
    height, width = pixels.shape[:2]
    step = max(1, int((height * width / MOST_SAMPLED) ** 0.5))
    sample = pixels[::step, ::step]
    low, high = np.percentile(sample, (1, 99))
    flags = {"small"} if height < wanted.height or width < wanted.width else set()
    if high - low < 0.1:
        flags.add("low-contrast")
    if (sample >= 1).mean() > 0.25 or (sample <= 0).mean() > 0.75:
        flags.add("saturated")
    return flags
