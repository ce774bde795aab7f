"""DICOM pictures, decoded; the only home of pydicom (extra `dicom`).

    stored pixels -> modality LUT or rescale -> VOI LUT or window -> MONOCHROME1 turned over -> [0, 1]

Of several windows the first counts. Where a file has none, its least value becomes black and its greatest
white. Padding becomes black. Nothing but pixels and the few attributes that are checked leaves this file.
"""

import io
import logging
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.engine import F32
from engines.errors import ExtraError, ImageError
from engines.images import check_size, from_bytes
from schemas.model_config import ImageInput

if TYPE_CHECKING:
    from pydicom import Dataset

DEFLATED = b"1.2.840.10008.1.2.1.99"
"""A transfer syntax whose whole data set is inflated before its size can be known."""

Values = NDArray[np.float64]


def decode_dicom(content: bytes, accepted: ImageInput | None) -> F32:
    """The picture of a DICOM file; see `images.decode`.

    Raises:
        ImageError: the file cannot be read, its pixels cannot be decoded, or it is not accepted.
        ExtraError: pydicom is not installed.
    """
    try:
        import pydicom
    except ModuleNotFoundError as error:
        raise ExtraError("DICOM files need pydicom: pip install 'riskstream[dicom]'") from error
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)  # its lines quote attribute values
    if DEFLATED in content[:2048]:
        raise ImageError("a deflated DICOM file: export it without deflate")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote attribute values too
        try:
            dataset = pydicom.dcmread(io.BytesIO(content))
            _check(dataset, accepted)
            return _picture(dataset)
        except ImageError:
            raise
        except Exception as error:  # pydicom and its decoders have no common base of errors
            raise ImageError(
                f"a DICOM file that cannot be decoded ({type(error).__name__}): export it again, or install "
                "the decoder of its transfer syntax: pip install 'riskstream[dicom]'"
            ) from error


def _check(dataset: "Dataset", accepted: ImageInput | None) -> None:
    if "PixelData" not in dataset:
        raise ImageError("a DICOM file without pixels")
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise ImageError("a DICOM file of several frames; one is taken: split it and choose one")
    check_size(int(dataset.Rows), int(dataset.Columns))
    if accepted is None:
        return
    wanted = (
        ("Modality", accepted.modality),
        ("BodyPartExamined", accepted.body_part),
        ("ViewPosition", accepted.view),
    )
    for attribute, values in wanted:
        came = str(dataset.get(attribute) or "").strip().upper()
        if values and came not in {value.upper() for value in values}:
            raise ImageError(f"DICOM {attribute} must be one of {list(values)}, and is not")


def _picture(dataset: "Dataset") -> F32:
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
    from pydicom.pixels.utils import pixel_array

    stored = pixel_array(dataset)
    kind = dataset.PhotometricInterpretation
    if kind == "PALETTE COLOR":
        colours = apply_color_lut(stored, dataset)[:, :, :3]
        return (colours / np.iinfo(colours.dtype).max).astype(np.float32)
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        if stored.dtype != np.uint8:
            raise ImageError(f"DICOM colours of {stored.dtype}; 8 bits each are taken")
        return from_bytes(stored)
    shown = _windowed(apply_modality_lut(stored, dataset).astype(np.float64), stored, dataset)
    if kind == "MONOCHROME1":
        shown = 1 - shown
    shown[_padding(stored, dataset)] = 0
    return shown.astype(np.float32)[:, :, None]


def _windowed(values: Values, stored: NDArray[np.integer], dataset: "Dataset") -> Values:
    """Values after the modality LUT, in [0, 1]."""
    from pydicom.pixels.processing import apply_voi

    if dataset.get("VOILUTSequence"):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        looked_up = apply_voi(values.astype(np.int64), dataset)
        return np.clip(looked_up / (2.0**bits - 1), 0, 1)
    if dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        centre, width = _first(dataset.WindowCenter), _first(dataset.WindowWidth)
        return window(values, centre, width, dataset.get("VOILUTFunction", "LINEAR"))
    inside = values[~_padding(stored, dataset)]
    low, high = (float(inside.min()), float(inside.max())) if inside.size else (0.0, 0.0)
    return np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)


def window(values: Values, centre: float, width: float, function: str) -> Values:
    """Values through a window, in [0, 1]: DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3.

    Raises:
        ImageError: the window has no width, or its function is unknown.
    """
    if function == "SIGMOID" and width > 0:
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700))))
    if function == "LINEAR_EXACT" and width > 0:
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if function == "LINEAR" and width >= 1:
        if width == 1:
            return np.asarray(values > centre - 0.5, dtype=np.float64)
        return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
    raise ImageError("a DICOM window that is not LINEAR, LINEAR_EXACT or SIGMOID with a positive width")


def _padding(stored: NDArray[np.integer], dataset: "Dataset") -> NDArray[np.bool_]:
    if dataset.get("PixelPaddingValue") is None:
        return np.zeros(stored.shape, dtype=bool)
    one = int(dataset.PixelPaddingValue)
    other = int(dataset.get("PixelPaddingRangeLimit", one))
    return np.asarray((stored >= min(one, other)) & (stored <= max(one, other)))


def _first(value: Any) -> float:
    """The first of one or several numbers."""
    return float(value[0] if hasattr(value, "append") else value)
