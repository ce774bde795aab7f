"""From a picture's bytes to the input of an image model: the same code for training and for serving.

    bytes --decode--> float32[height, width, 1 | 3] --prepare--> float32[channels, height, width]
    bytes --read--> Decoded: the latter, with what else may be known of the picture

Both ends are in [0, 1], 0 black and 1 white. What a model does beyond that (mean, spread, calibration)
is inside its graph. Decoding looks at the header first and refuses what is too large to be decoded.
"""

import io
import warnings
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from engines import codestream
from engines.decoded import Decoded, Picture, Words, accept, flags_of, identity_of, levels
from engines.dicom_start import is_dicom
from engines.engine import F32
from engines.errors import ExtraError, ImageError
from engines.limits import MAX_BYTES, MAX_PIXELS, check_size
from schemas.model_config import ImageInput

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Shares of red, green and blue in grey (ITU-R BT.601), as Pillow's `L` and DICOM's YBR have them."""

FILTER = Image.Resampling.BILINEAR
"""Pillow's triangle filter, as wide as the reduction: no moire, no overshoot, the same on every machine."""


RED = np.array([1.0, 0.1, 0.0], dtype=np.float32)
"""Of an overlay's evidence."""


def read(
    content: bytes,
    wanted: ImageInput,
    *,
    frame: int | None = None,
    hints: Words | None = None,
    allow_burned_in: bool = False,
    patient: str = "",
) -> Decoded:
    """A PNG, JPEG or DICOM file as a model's input, with what else may be known of it.

    Args:
        content: the whole file.
        wanted: how the picture is prepared, and the modalities, body parts and views that may come.
        frame: which of several, from 1; None where there is one.
        hints: what the event says of the picture, used where the file says nothing. A word that the model
            asks for and neither says is a refusal.
        allow_burned_in: whether to take a file that says it has text in its pixels.
        patient: whose picture it must be where the file says whose it is; empty for anybody's.

    Raises:
        ImageError: as `decode`.
        ExtraError: as `decode`.
    """
    picture = _picture(content, wanted, frame, hints or Words(), allow_burned_in, patient)
    height, width = picture.pixels.shape[:2]
    flags = flags_of(picture.pixels, wanted).union(picture.flags)
    image = prepare(picture.pixels, wanted)
    return Decoded(image, height, width, *picture.words, picture.identity, tuple(sorted(flags)))


def decode(content: bytes, accepted: ImageInput | None = None, *, frame: int | None = None) -> F32:
    """The picture in a PNG, JPEG or DICOM file.

    Args:
        content: the whole file.
        accepted: names the DICOM modalities, body parts and views that may come; None for any. A PNG or
            JPEG file says nothing of itself and is not held to them.
        frame: which of several, from 1; None where there is one.

    Returns:
        float32[height, width, 1] for grey, float32[height, width, 3] for red, green, blue.

    Raises:
        ImageError: the file is none of these, is damaged, too large, holds several pictures and none is
            chosen, has text burned in, or is of another modality, body part or view than accepted.
        ExtraError: it is DICOM and pydicom is not installed.
    """
    return _picture(content, accepted, frame, None, False).pixels


def warm() -> None:
    """Load what decoding needs, as far as it is installed, so that the first picture does not wait for it."""
    from engines.dicom import sample

    Image.preinit()
    with suppress(ExtraError):
        read(sample(), ImageInput(height=8, width=8))


def prepare(picture: F32, wanted: ImageInput) -> F32:
    """A decoded picture as a model's input.

    Args:
        picture: float32[height, width, 1 | 3] in [0, 1].
        wanted: channels, size, and what happens where the shape differs.

    Returns:
        float32[channels, height, width] in [0, 1]; a copy where nothing had to change.
    """
    if wanted.channels == 1 and picture.shape[2] == 3:
        picture = _grey(picture)
    planes = [_fitted(picture[:, :, plane], wanted) for plane in range(picture.shape[2])]
    return np.stack(planes * (wanted.channels // len(planes)))


def overlay(picture: F32, evidence: F32, side: int = 224) -> bytes:
    """A small PNG that shows where a class was seen: grey, with the positive evidence in red.

    Args:
        picture: float32[channels, height, width], as prepared.
        evidence: float32[map height, map width]; the greatest, for or against, would be full red, and 0 and
            less is left grey: a little evidence against much to the contrary stays faint.
        side: pixels of the longer side.
    """
    grey = picture.mean(axis=0)
    scale = side / max(grey.shape)
    size = (max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale)))
    ground = _resized(grey, size)[:, :, None]
    peak = float(np.abs(evidence).max())
    share = np.clip(evidence / peak, 0, 1) if peak > 0 else np.zeros_like(evidence)
    ink = 0.6 * _resized(share.astype(np.float32), size, Image.Resampling.BICUBIC)[:, :, None].clip(0, 1)
    mixed = ground * (1 - ink) + ink * RED
    return to_png(mixed.astype(np.float32))


def to_png(picture: F32) -> bytes:
    """A picture, float32[height, width, 1 | 3] in [0, 1], as a PNG of 8 bits."""
    levels = (picture.clip(0, 1) * 255).round().astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels[:, :, 0] if levels.shape[2] == 1 else levels).save(file, "PNG")
    return file.getvalue()


def from_bytes(array: NDArray[np.uint8]) -> F32:
    """Pixels of 8 bits, [height, width] or [height, width, 3], as a decoded picture."""
    picture = levels(array, 255)
    return picture[:, :, None] if picture.ndim == 2 else picture


def _picture(
    content: bytes,
    accepted: ImageInput | None,
    frame: int | None,
    hints: Words | None,
    allow_burned_in: bool,
    patient: str = "",
) -> Picture:
    if len(content) > MAX_BYTES:
        raise ImageError(
            "too-large", f"a picture of {len(content):,} bytes; {MAX_BYTES:,} are taken: reduce it first"
        )
    if is_dicom(content, len(content)):
        from engines.dicom import decode_dicom

        return decode_dicom(
            content, accepted, frame=frame, hints=hints, allow_burned_in=allow_burned_in, patient=patient
        )
    jpeg = content[:2] == b"\xff\xd8"
    if not jpeg and content[:4] != b"\x89PNG":
        raise ImageError("not-an-image", f"{len(content):,} bytes that are neither PNG, JPEG nor DICOM")
    if frame not in (None, 1):
        raise ImageError("wrong-frame", f"frame {frame} of a PNG or JPEG file, which has one picture")
    words = accept(Words(), hints, accepted if hints is not None else None)
    return Picture(_decode_plain(content), words, identity_of(content), ("lossy",) if jpeg else ())


def _grey(picture: F32) -> F32:
    """Plane by plane, because a matrix product may differ in its last bit with the number of threads."""
    grey = picture[:, :, 0] * LUMA[0]
    for plane in (1, 2):
        grey += picture[:, :, plane] * LUMA[plane]
    return np.asarray(grey[:, :, None], dtype=np.float32)


def _fitted(plane: F32, wanted: ImageInput) -> F32:
    height, width = plane.shape
    full = (wanted.width, wanted.height)
    across, down = wanted.width / width, wanted.height / height
    if wanted.fit == "crop":
        inside = max(across, down)
        left = max((width - wanted.width / inside) / 2, 0.0)
        top = max((height - wanted.height / inside) / 2, 0.0)
        box = (left, top, width - left, height - top)
        return _resized(plane, full, box=box)
    if wanted.fit == "stretch" or across == down:
        return _resized(plane, full)
    inside = min(across, down)
    inner = _resized(plane, (max(1, round(width * inside)), max(1, round(height * inside))))
    canvas = np.zeros((wanted.height, wanted.width), dtype=np.float32)
    top, left = (wanted.height - inner.shape[0]) // 2, (wanted.width - inner.shape[1]) // 2
    canvas[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return canvas


def _resized(
    plane: F32,
    size: tuple[int, int],
    way: Image.Resampling = FILTER,
    box: tuple[float, float, float, float] | None = None,
) -> F32:
    """float32[height, width] of the size (width, height)."""
    image = Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32))
    return np.clip(np.asarray(image.resize(size, way, box=box), dtype=np.float32), 0, 1)


def _decode_plain(content: bytes) -> F32:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own limit is above `MAX_PIXELS`
            with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
                check_size(image.height, image.width)
                if image.format == "JPEG":
                    codestream.check_length(content, codestream.jpeg(content))
                if getattr(image, "n_frames", 1) > 1:
                    raise ImageError(
                        "several-frames",
                        "a file of several pictures; one is taken: choose one and save it alone",
                    )
                return _levels(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise ImageError(
            "too-large", f"a picture of more than {MAX_PIXELS:,} pixels: reduce it first"
        ) from error
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # Pillow's plug-ins raise nearly anything for a damaged file
        raise ImageError(
            "damaged-file", f"a damaged PNG or JPEG file ({type(error).__name__}): export it again"
        ) from error


def _levels(image: Image.Image) -> F32:
    """Pixels in [0, 1]: 16-bit grey keeps its depth, what is transparent becomes black."""
    if image.mode == "1":
        return from_bytes(np.asarray(image.convert("L")))
    if image.mode == "L" and "transparency" not in image.info:
        return from_bytes(np.asarray(image))
    if image.mode.startswith("I"):
        return np.maximum(levels(np.asarray(image), 65535), 0)[:, :, None]
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        layers = from_bytes(np.asarray(image.convert("RGBA")))
        return _thin(layers[:, :, :3] * layers[:, :, 3:])
    return _thin(from_bytes(np.asarray(image.convert("RGB"))))


def _thin(colours: F32) -> F32:
    """One plane where all three are alike."""
    alike = bool((colours[:, :, :1] == colours).all())
    return np.ascontiguousarray(colours[:, :, :1] if alike else colours)


def stacked(tensors: Sequence[F32], wanted: ImageInput) -> F32:
    """float32[images, channels, height, width], also of no images at all."""
    return np.stack(tensors) if tensors else np.zeros((0, *wanted.dims), dtype=np.float32)
