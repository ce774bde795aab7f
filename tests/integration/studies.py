"""Chest films as studies of a PACS: DICOM files of several sizes, transfer syntaxes and grey scales."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.uid import (
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from tests.engines.dicom_files import with_syntax, wrapped
from tests.engines.pictures import dicom, encoded
from tests.integration.orthanc import OrthancServer
from worker.films import film

TWELVE: dict[str, Any] = {"BitsStored": 12, "HighBit": 11, "WindowCenter": 2048, "WindowWidth": 4096}

SIZES = ((256, 256), (300, 240), (192, 320), (420, 410))
"""Width and height in pixels."""

SYNTAXES_OF_ORTHANC = {7: JPEGLSLossless, 8: JPEGLosslessSV1}
"""Of the kinds of file: those that Orthanc compresses, because no encoder of Python's is at hand."""

KINDS = 9

Grey = NDArray[np.uint16]


@dataclass(frozen=True)
class Study:
    """A patient's film in a file, taken at a time; all identifiers follow from its number."""

    number: int
    patient: str
    time: datetime
    file: bytes

    @property
    def path(self) -> str:
        """Of its one instance, below a DICOMweb service."""
        return (
            f"/studies/1.2.826.{self.number}/series/1.2.826.{self.number}.1/instances/1.2.826.{self.number}.2"
        )

    @property
    def digest(self) -> str:
        return sha256(self.file).hexdigest()


async def make(number: int, patient: str, time: datetime, orthanc: OrthancServer, **more: Any) -> Study:
    """A study: clear lungs or a consolidation by turns, in one of `KINDS` kinds of file."""
    picture = film(20_261_121, number, level=1.0 if number % 2 else 0.0)[:, :, 0]
    size = SIZES[number % len(SIZES)]
    scaled = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))
    pixels = (scaled.clip(0, 1) * 4095).astype(np.uint16)
    moment, kind = time.astimezone(UTC), number % KINDS
    attributes = {
        "PatientID": patient,
        "StudyInstanceUID": f"1.2.826.{number}",
        "SeriesInstanceUID": f"1.2.826.{number}.1",
        "SOPInstanceUID": f"1.2.826.{number}.2",
        "StudyDate": moment.strftime("%Y%m%d"),
        "StudyTime": moment.strftime("%H%M%S"),
        "Modality": "DX",
        "BodyPartExamined": "CHEST",
        "ViewPosition": "PA",
        **more,
    }
    file = _FORMS.get(kind, _explicit)(pixels, attributes)
    if kind in SYNTAXES_OF_ORTHANC:
        file = await orthanc.compressed(file, SYNTAXES_OF_ORTHANC[kind])
    return Study(number, patient, time, file)


def _explicit(pixels: Grey, attributes: dict[str, Any]) -> bytes:
    return dicom(pixels, **TWELVE, **attributes)


def _negative(pixels: Grey, attributes: dict[str, Any]) -> bytes:
    return dicom(4095 - pixels, **TWELVE, **attributes, PhotometricInterpretation="MONOCHROME1")


def _implicit(pixels: Grey, attributes: dict[str, Any]) -> bytes:
    return dicom(pixels, ImplicitVRLittleEndian, **TWELVE, **attributes)


def _big_endian(pixels: Grey, attributes: dict[str, Any]) -> bytes:
    return dicom(pixels.astype(">u2"), ExplicitVRBigEndian, **TWELVE, **attributes)


def _jpeg_2000(pixels: Grey, attributes: dict[str, Any]) -> bytes:
    return with_syntax(_explicit(pixels, attributes), JPEG2000Lossless)


def _rle(pixels: Grey, attributes: dict[str, Any]) -> bytes:
    return with_syntax(_negative(pixels, attributes), RLELossless)


def _jpeg(pixels: Grey, attributes: dict[str, Any]) -> bytes:
    eight = (pixels >> 4).astype(np.uint8)
    return wrapped(encoded(eight, "JPEG", quality=95), eight, JPEGBaseline8Bit, **attributes)


_FORMS: dict[int, Callable[[Grey, dict[str, Any]], bytes]] = {
    1: _negative,
    2: _implicit,
    3: _big_endian,
    4: _jpeg_2000,
    5: _rle,
    6: _jpeg,
}
"""Kind -> the file; the others are explicit little endian, as far as the tests make them."""
