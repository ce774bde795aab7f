"""What a DICOMweb service holds, by QIDO-RS: an imaging event for each image, by reference.

    {base}/studies -> {base}/studies/{uid}/instances -> {base}/studies/{uid}/series/{uid}/instances/{uid}

Studies come page by page, the service's order kept. Nothing of the pictures is fetched; their patients and
times are the service's word.
"""

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import tzinfo
from typing import Any

import aiohttp
import msgspec

from engines.dicom_header import time_of, zone_of
from schemas.imaging import DicomwebImage, ImagingEvent
from worker.config import Settings
from worker.fetch_allowed import parse_base
from worker.imaging_source import Choice
from worker.recording import SourceError

PAGE = 100
"""Studies asked for at once."""

_MOST_BYTES = 64 << 20
"""Of one answer."""

_PIECE_BYTES = 1 << 16

_EVENTS = uuid.UUID("9c9a3cf0-3a5f-5a0e-8f0a-5f5ad2f1f3b7")

_PATIENT, _STUDY, _SERIES, _INSTANCE = "00100020", "0020000D", "0020000E", "00080018"
_DATE, _TIME, _MODALITY, _BODY_PART, _ROWS = "00080020", "00080030", "00080060", "00180015", "00280010"
_ZONE = "00080201"


class Attribute(msgspec.Struct, frozen=True):
    """One of DICOM JSON; its VR, and a name's parts, are not needed."""

    Value: list[Any] = []


Attributes = Mapping[str, Attribute]


async def events(
    url: str, settings: Settings, choice: Choice, left_out: list[str]
) -> AsyncIterator[ImagingEvent]:
    """The events of a service's images.

    Args:
        url: of the service, such as https://pacs.example/dicom-web.
        settings: credentials and TLS for it, as a worker has them.
        choice: patient, time, zone and number as for other sources.
        left_out: takes why an image cannot be sent, as one without patient or time.

    Raises:
        SourceError: the service cannot be asked.
    """
    base = url.rstrip("/")
    try:
        known = settings.imaging_authorizations().get(parse_base(base))
    except ValueError as error:
        raise SourceError(f"dicomweb: {error}") from None
    headers = {"Accept": "application/dicom+json"} | ({"Authorization": known} if known else {})
    timeout = aiohttp.ClientTimeout(total=settings.imaging_fetch_timeout_s)
    connector = aiohttp.TCPConnector(ssl=settings.imaging_ssl_context())
    found = 0
    async with aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector) as session:
        offset = 0
        before: Sequence[Attributes] | None = None
        # Until nothing new comes: a service may give fewer than asked for, or the same page for ever.
        while (studies := await _asked(session, f"{base}/studies?limit={PAGE}&offset={offset}")) != before:
            for study in studies:
                uid = _text(study, _STUDY)
                fields = f"includefield={_MODALITY}&includefield={_BODY_PART}&includefield={_SERIES}"
                for instance in await _asked(session, f"{base}/studies/{uid}/instances?{fields}"):
                    if _ROWS in instance and not _text(instance, _ROWS):
                        continue  # a report or a measurement: no picture
                    event = _event(base, {**study, **instance}, choice)
                    if isinstance(event, str):
                        left_out.append(event)
                        continue
                    yield event
                    found += 1
                    if found == choice.limit:
                        return
            if not studies:
                return
            offset, before = offset + len(studies), studies


async def _asked(session: aiohttp.ClientSession, url: str) -> Sequence[Attributes]:
    try:
        async with session.get(url, allow_redirects=False) as response:
            if response.status == 204:
                return []
            if response.status != 200:
                raise SourceError(f"dicomweb: the service answers {response.status}")
            body = bytearray()
            async for piece in response.content.iter_chunked(_PIECE_BYTES):
                body += piece
                if len(body) > _MOST_BYTES:
                    raise SourceError(f"dicomweb: an answer of more than {_MOST_BYTES:,} bytes")
    except (aiohttp.ClientError, TimeoutError) as error:
        raise SourceError(f"dicomweb: the service cannot be asked: {type(error).__name__}") from None
    try:
        return msgspec.json.decode(body, type=list[dict[str, Attribute]])
    except msgspec.MsgspecError:
        raise SourceError("dicomweb: the service's answer is not DICOM JSON") from None


def _event(base: str, told: Attributes, choice: Choice) -> ImagingEvent | str:
    """The event of one image, or why there is none."""
    study, series, instance = (_text(told, tag) for tag in (_STUDY, _SERIES, _INSTANCE))
    patient = choice.patient or _text(told, _PATIENT)
    time = choice.time or _time(told, choice.zone)
    if not (study and series and instance):
        return "dicomweb: the service names an image without its study, series or instance"
    if not patient or time is None:
        return "dicomweb: an image without patient or date; give --patient, --time"
    url = f"{base}/studies/{study}/series/{series}/instances/{instance}"
    event_id = str(uuid.uuid5(_EVENTS, f"{patient}/{instance}"))
    event = ImagingEvent(
        event_id,
        patient,
        time,
        DicomwebImage(url),
        modality=_text(told, _MODALITY)[:16],
        body_part=_text(told, _BODY_PART)[:64],
    )
    try:
        return msgspec.convert(msgspec.structs.asdict(event), ImagingEvent)
    except msgspec.ValidationError:
        return "dicomweb: an image whose patient's id or address is longer than events may hold"


def _time(told: Attributes, zone: tzinfo) -> Any:
    return time_of(_text(told, _DATE), _text(told, _TIME), zone_of(_text(told, _ZONE)) or zone)


def _text(told: Attributes, tag: str) -> str:
    """The first value of an attribute of DICOM JSON, as text; empty where there is none."""
    values = told[tag].Value if tag in told else []
    return str(values[0]).strip() if values and values[0] is not None else ""
