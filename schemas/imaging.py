"""Imaging events: a picture of a patient, inline or by reference. JSON on the wire, as in `messages.py`."""

from typing import Annotated

from msgspec import Meta, Struct

from schemas.messages import Identifier, Time

Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]

Url = Annotated[str, Meta(min_length=1, max_length=2048)]

MAX_INLINE_BYTES = 8 << 20
"""Of a picture that travels in its event; larger ones go by reference."""


class InlineImage(Struct, frozen=True, tag="inline"):
    """The whole file: DICOM (part 10), PNG or JPEG; base64 on the wire."""

    content: Annotated[bytes, Meta(min_length=1, max_length=MAX_INLINE_BYTES)]


class FileImage(Struct, frozen=True, tag="file"):
    """A file under one of the reader's allowed roots; `path` is absolute, or from the first root."""

    path: Url


class DicomwebImage(Struct, frozen=True, tag="dicomweb"):
    """One image of a DICOMweb server, by WADO-RS.

    url: ends in /studies/{uid}/series/{uid}/instances/{uid}, with /frames/{number} for one frame of several.
    rendered: have the server render it (image/png) instead of fetching DICOM.
    """

    url: Url
    rendered: bool = False


class ObjectImage(Struct, frozen=True, tag="object"):
    """An object of a store, such as s3://bucket/key."""

    url: Url


class ImagingEvent(Struct, frozen=True):
    """A picture was taken; the record's key is `patient`, in UTF-8.

    event_id: names this event. The image, not the event, is what is scored once: by its SOP instance UID
        and frame, or by the digest of its bytes where it has none.
    time: when the picture was taken.
    sha256, size: of the bytes that the reference leads to, if known; others are refused.
    modality, body_part, view: as DICOM calls them; what a DICOM file says of itself counts first.
    """

    event_id: Identifier
    patient: Identifier
    time: Time
    image: InlineImage | FileImage | DicomwebImage | ObjectImage
    sha256: Digest | None = None
    size: Annotated[int, Meta(ge=1)] | None = None
    modality: Annotated[str, Meta(max_length=16)] = ""
    body_part: Annotated[str, Meta(max_length=64)] = ""
    view: Annotated[str, Meta(max_length=16)] = ""
