"""DICOM pictures: which frame, what the file says of itself, what a screen would show (extra `dicom`).

    bytes -> the attributes in `TAGS`, no other -> layout -> stored pixels -> grey or colours in [0, 1]

Nothing but pixels, an identity and the words and flags of `decoded.py` leaves this file. Padding becomes
black.
"""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines import dicom_pixels
from engines.decoded import Picture, Words, accept, identity_of, levels
from engines.dicom_grey import BAND, look_of, look_up, shown, table
from engines.dicom_pixels import Layout
from engines.dicom_start import part10
from engines.engine import F32
from engines.errors import ExtraError, ImageError
from schemas.model_config import ImageInput

if TYPE_CHECKING:
    from pydicom import Dataset

_PALETTE = [
    f"{colour}PaletteColorLookupTable{part}"
    for colour in ("Red", "Green", "Blue")
    for part in ("Descriptor", "Data")
]
TAGS = [
    *("SOPInstanceUID", "Modality", "BodyPartExamined", "ViewPosition", "AnatomicRegionSequence"),
    *("ViewCodeSequence", "BurnedInAnnotation", "LossyImageCompression", "PresentationIntentType"),
    *("PresentationLUTShape", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated"),
    *("BitsStored", "HighBit", "PixelRepresentation", "PhotometricInterpretation", "PlanarConfiguration"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept"),
    *("ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence", *_PALETTE),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelData"),
]
"""The attributes that are read: no name, number or date of a patient is among them."""

PATIENT = "PatientID"
"""Read only where it is to be held to the patient of an event; it leaves this file in no way."""

MISSING = "DICOM files need pydicom: pip install 'riskstream[dicom]'"

PANIC = "PanicException"
"""What the RLE decoder, written in Rust, raises for a damaged stream: it is no `Exception`."""

VIEWS = {
    "ANTERO-POSTERIOR": "AP",
    "POSTERO-ANTERIOR": "PA",
    "LEFT LATERAL": "LL",
    "RIGHT LATERAL": "RL",
    "LATERAL": "LATERAL",
}
"""View Position for the code meanings of the view, DICOM CID 4010."""


def decode_dicom(
    content: bytes,
    accepted: ImageInput | None,
    *,
    frame: int | None = None,
    hints: Words | None = None,
    allow_burned_in: bool = False,
    patient: str = "",
) -> Picture:
    """The picture of a DICOM file; see `images.read`.

    Raises:
        ImageError: the file cannot be read, its pixels cannot be decoded, or it is not accepted.
        ExtraError: pydicom is not installed.
    """
    try:
        import pydicom
    except ModuleNotFoundError as error:
        raise ExtraError(MISSING) from error
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)  # its lines quote attribute values
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote attribute values too
        with _as("damaged-header"):
            file = part10(content)
            syntax = _syntax(file)
            if syntax not in dicom_pixels.SYNTAXES:  # before the rest is inflated, if it is deflated
                raise ImageError("unsupported-syntax", dicom_pixels.UNSUPPORTED)
            if patient:
                dataset = _named_once(file)
                _check_patient(dataset, patient)
            else:
                dataset = pydicom.dcmread(io.BytesIO(file), specific_tags=TAGS)
            if "PixelData" not in dataset:  # pydicom leaves out an element that does not end
                raise ImageError("damaged-pixels" if _mentions_pixels(content) else "no-pixels")
            found = dicom_pixels.layout(dataset, syntax)
            number = _frame(found, frame)
            words = accept(_words(dataset), hints, accepted)
            flags = set(_flags(dataset, syntax, number, allow_burned_in))
            identity = identity_of(content, str(dataset.get("SOPInstanceUID") or ""), number)
        with _as("damaged-pixels"):
            stored = dicom_pixels.pixels(dataset, syntax, found, number)
        with _as("damaged-header"):
            picture = _picture(stored, dataset, found, number)
    return Picture(picture, words, identity, tuple(sorted(flags)))


def sample() -> bytes:
    """A file of 2 x 2 pixels, to load pydicom and its decoders with.

    Raises:
        ExtraError: pydicom is not installed.
    """
    try:
        from pydicom.dataset import Dataset, FileMetaDataset
        from pydicom.pixels.decoders.base import get_decoder
        from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage
    except ModuleNotFoundError as error:
        raise ExtraError(MISSING) from error
    for syntax in dicom_pixels.SYNTAXES:
        get_decoder(syntax)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2"
    dataset.Rows = dataset.Columns = dataset.WindowCenter = dataset.WindowWidth = 2
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.PixelRepresentation = 1, 0, 0
    dataset.NumberOfFrames, dataset.PixelData = 1, bytes(4)
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


@contextmanager
def _as(reason: str) -> Iterator[None]:
    """What pydicom and its decoders raise, which has no common base, as one reason."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise
        raise ImageError(
            reason,
            f"a DICOM file that cannot be decoded ({type(error).__name__}): export it again, or install "
            "the decoder of its transfer syntax: pip install 'riskstream[dicom]'",
        ) from error


def _syntax(content: bytes) -> str:
    """The transfer syntax, from the file's meta information alone."""
    from pydicom.filereader import read_dataset

    file = io.BytesIO(content)
    file.seek(132)
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    return str(meta.get("TransferSyntaxUID") or "")


def _mentions_pixels(content: bytes) -> bool:
    """Whether the tag of Pixel Data stands anywhere, in either byte order."""
    return b"\xe0\x7f\x10\x00" in content or b"\x7f\xe0\x00\x10" in content


def _named_once(file: bytes) -> "Dataset":
    """The attributes and the patient; of two Patient IDs pydicom would give the last, and not tell."""
    from pydicom.filereader import read_partial
    from pydicom.tag import Tag

    names, wanted = 0, Tag(PATIENT)

    def count(tag: int, vr: str | None, length: int) -> bool:
        nonlocal names
        names += tag == wanted
        return False

    dataset = read_partial(io.BytesIO(file), count, specific_tags=[Tag(name) for name in [*TAGS, PATIENT]])
    if names > 1:
        raise ImageError("damaged-header", "a DICOM file that names its patient twice: export it again")
    return dataset


def _check_patient(dataset: "Dataset", patient: str) -> None:
    """Refuse a file that names another patient; one that names none is taken."""
    value: Any = dataset.get(PATIENT)
    named = "\\".join(value) if hasattr(value, "append") else str(value or "")
    if named.strip(" \0") not in ("", patient.strip()):
        raise ImageError("other-patient")


def _frame(found: Layout, frame: int | None) -> int:
    if frame is None and found.frames > 1:
        raise ImageError("several-frames", f"a DICOM file of several frames ({found.frames}): choose one")
    if frame is not None and not 1 <= frame <= found.frames:
        raise ImageError("wrong-frame", f"frame {frame} of {found.frames}")
    return frame or 1


def _words(dataset: "Dataset") -> Words:
    view = _text(dataset.get("ViewPosition")) or _meaning(dataset, "ViewCodeSequence")
    return Words(
        _text(dataset.get("Modality")),
        _text(dataset.get("BodyPartExamined")) or _meaning(dataset, "AnatomicRegionSequence"),
        VIEWS.get(view.replace("POSTERO ANTERIOR", "POSTERO-ANTERIOR"), view),
    )


def _text(value: Any) -> str:
    """The first of one or several words, in upper case."""
    value = value[0] if hasattr(value, "append") and value else value
    return str(value or "").strip().upper()


def _meaning(dataset: "Dataset", sequence: str) -> str:
    items = dataset.get(sequence)
    return _text(items[0].get("CodeMeaning")) if items else ""


def _flags(dataset: "Dataset", syntax: str, frame: int, allow_burned_in: bool) -> Iterator[str]:
    if _text(dataset.get("BurnedInAnnotation")) == "YES":
        if not allow_burned_in:
            raise ImageError("burned-in")
        yield "burned-in"
    if syntax in dicom_pixels.LOSSY or _text(dataset.get("LossyImageCompression")) == "01":
        yield "lossy"
    if _text(dataset.get("PresentationIntentType")) == "FOR PROCESSING":
        yield "for-processing"
    kind = _text(dataset.PhotometricInterpretation)
    if kind in dicom_pixels.GREY:
        shape = _text(dataset.get("PresentationLUTShape"))
        if shape in ("INVERSE", "IDENTITY") and (shape == "INVERSE") != (kind == "MONOCHROME1"):
            yield "polarity"
        look = look_of(dataset, frame, inverted=False)
        if look.voi is None and look.window is None:
            yield "no-window"


def _picture(stored: NDArray[np.integer[Any]], dataset: "Dataset", found: Layout, frame: int) -> F32:
    if found.kind in dicom_pixels.GREY:
        inverse = _text(dataset.get("PresentationLUTShape")) == "INVERSE"
        return shown(stored, look_of(dataset, frame, inverted=inverse or found.kind == "MONOCHROME1"))
    if found.kind == dicom_pixels.PALETTE:
        return _coloured(stored, dataset)
    return levels(stored, 2**found.stored - 1)


def _coloured(stored: NDArray[np.integer[Any]], dataset: "Dataset") -> F32:
    """Stored[height, width] through the three tables of a palette."""
    picture = np.empty((*stored.shape, 3), dtype=np.float32)
    big_endian = not dataset.original_encoding[1]
    step = max(1, BAND // stored.shape[1])
    for place, colour in enumerate(("Red", "Green", "Blue")):
        name = f"{colour}PaletteColorLookupTable"
        if f"{name}Data" not in dataset:
            raise ImageError("unsupported-photometric", "a palette that is missing or in segments")
        colours = table(dataset[f"{name}Descriptor"].value, dataset[f"{name}Data"].value, big_endian)
        for top in range(0, len(stored), step):
            rows = slice(top, top + step)
            picture[rows, :, place] = look_up(stored[rows], colours) / (2.0**colours.bits - 1)
    return picture
