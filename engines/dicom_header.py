"""Whose picture a DICOM file is, and of when: for those who announce pictures, not for who scores them."""

import io
import logging
import warnings
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import TYPE_CHECKING, NamedTuple

from engines.dicom_start import part10
from engines.errors import ExtraError, ImageError

if TYPE_CHECKING:
    from pydicom import Dataset

_TIMES = (
    ("AcquisitionDate", "AcquisitionTime"),
    ("ContentDate", "ContentTime"),
    ("SeriesDate", "SeriesTime"),
    ("StudyDate", "StudyTime"),
)
"""Dates and times that say when a picture was taken, the most exact first."""

_TAGS = [
    *("PatientID", "Modality", "BodyPartExamined", "ViewPosition"),
    *("AcquisitionDateTime", "TimezoneOffsetFromUTC", *(tag for pair in _TIMES for tag in pair)),
]


class Header(NamedTuple):
    """What an imaging event says of a DICOM file; empty, or None, where the file says nothing."""

    patient: str
    time: datetime | None
    modality: str
    body_part: str
    view: str


def read_header(content: bytes, zone: tzinfo = UTC) -> Header:
    """The header of a DICOM file; its pixels are not looked at.

    Args:
        content: the whole file, or its beginning up to the pixels.
        zone: of times in a file that does not state its own.

    Raises:
        ImageError: it cannot be read.
        ExtraError: pydicom is not installed.
    """
    try:
        import pydicom
    except ModuleNotFoundError as error:
        raise ExtraError("DICOM files need pydicom: pip install 'riskstream[dicom]'") from error
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)  # its lines quote attribute values
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(
                io.BytesIO(part10(content)), stop_before_pixels=True, specific_tags=_TAGS
            )
            return _header(dataset, zone)
        except Exception as error:  # pydicom's errors have no common base
            raise ImageError("damaged-header", f"a DICOM header: {type(error).__name__}") from None


def time_of(date: str, time: str, zone: tzinfo) -> datetime | None:
    """A DICOM date (DA) and time (TM) in a zone; None where they are none."""
    digits = time.split(".", maxsplit=1)[0].strip().ljust(6, "0")[:6] or "000000"
    try:
        return datetime.strptime(date.strip() + digits, "%Y%m%d%H%M%S").replace(tzinfo=zone)
    except ValueError:
        return None


def _header(dataset: "Dataset", zone: tzinfo) -> Header:
    def word(name: str) -> str:
        return str(dataset.get(name) or "").strip()

    zone = zone_of(word("TimezoneOffsetFromUTC")) or zone
    pairs = ((word(date), word(time)) for date, time in _TIMES)
    found = (time_of(date, time, zone) for date, time in pairs if date)
    return Header(
        word("PatientID"),
        _moment(word("AcquisitionDateTime"), zone)
        or next((time for time in found if time is not None), None),
        word("Modality")[:16],
        word("BodyPartExamined")[:64],
        word("ViewPosition")[:16],
    )


def _moment(text: str, zone: tzinfo) -> datetime | None:
    """A DICOM date time (DT), whose own offset from UTC counts before `zone`; None for none."""
    own = zone_of(text[-5:])
    text = text[:-5] if own else text
    return time_of(text[:8], text[8:14], own or zone)


def zone_of(offset: str) -> tzinfo | None:
    """The zone of `+0100` and the like; None for none."""
    if len(offset) != 5 or offset[0] not in "+-" or not offset[1:].isdigit():
        return None
    minutes = int(offset[1:3]) * 60 + int(offset[3:])
    return timezone(timedelta(minutes=minutes if offset[0] == "+" else -minutes)) if minutes < 1440 else None
