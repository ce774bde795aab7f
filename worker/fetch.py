"""The picture of an imaging event -> its bytes, whatever it is kept in.

    event -> inline | file | DICOMweb | object -> size and digest -> bytes

Each source says what it refuses; `fetch_patience` decides what is tried again.
"""

import asyncio
from hashlib import sha256
from typing import NamedTuple

from schemas.imaging import DicomwebImage, FileImage, ImagingEvent, InlineImage, ObjectImage
from worker.config import Settings
from worker.errors import FetchFailedError, FetchRefusedError
from worker.fetch_allowed import parse_base, parse_bucket
from worker.fetch_file import FileSource
from worker.fetch_http import DicomwebSource, Limits
from worker.fetch_object import ObjectSource
from worker.fetch_threads import longest_s as threads_s


class Fetched(NamedTuple):
    """A picture's bytes.

    content: the whole file; never empty.
    media_type: application/dicom or image/png as a server said; empty where nobody said, then the bytes tell.
    frame: which frame of a DICOM instance is meant, from 1; None where the event names none.
    """

    content: bytes
    media_type: str = ""
    frame: int | None = None


def longest_s(settings: Settings) -> float:
    """The longest try of a picture from any source, its turn apart: one that reads in vain, then a probe.

    Those in threads wait for a thread as well. DICOMweb is asked within the same times.
    """
    return threads_s(settings.imaging_fetch_timeout_s) + threads_s(settings.imaging_connect_timeout_s)


class Fetcher:
    """Fetches pictures from wherever the settings allow. Made in the event loop that uses it."""

    def __init__(self, settings: Settings) -> None:
        """
        Raises:
            ExtraError: buckets are allowed, and the extra `objects` is not installed.
        """
        self._max_bytes = settings.imaging_max_bytes
        threads, seconds = settings.imaging_fetch_concurrency, settings.imaging_fetch_timeout_s
        probe_s = settings.imaging_connect_timeout_s
        self._files = FileSource(
            settings.imaging_roots,
            max_bytes=self._max_bytes,
            threads=threads,
            seconds=seconds,
            probe_s=probe_s,
        )
        self._objects = ObjectSource(
            [parse_bucket(text) for text in settings.imaging_buckets],
            max_bytes=self._max_bytes,
            threads=threads,
            seconds=seconds,
            probe_s=probe_s,
        )
        self._dicomweb = DicomwebSource(
            [parse_base(text) for text in settings.imaging_hosts],
            settings.imaging_internal_hosts,
            settings.imaging_authorizations(),
            Limits(
                max_bytes=self._max_bytes,
                connect_s=probe_s,
                silence_s=settings.imaging_silence_timeout_s,
                total_s=seconds,
                bytes_per_s=settings.imaging_min_bytes_per_s,
            ),
            concurrency=settings.imaging_fetch_concurrency,
            tls=settings.imaging_ssl_context(),
        )

    async def close(self) -> None:
        """Close all connections. Threads that hang are left behind; they end with the process."""
        await self._dicomweb.close()

    async def fetch(self, event: ImagingEvent) -> Fetched:
        """The bytes of an event's picture, checked against the event.

        Raises:
            FetchRefusedError: it must not be fetched, or is not what the event says.
            FetchFailedError: it is not there, or did not come whole.
            SourceAwayError: where it is kept does not answer.
        """
        fetched = await self._from_source(event)
        if not fetched.content:
            raise FetchFailedError("the picture has no bytes", reason="truncated")
        await asyncio.to_thread(_check, event, fetched.content)
        return fetched

    async def _from_source(self, event: ImagingEvent) -> Fetched:
        match event.image:
            case InlineImage(content):
                if len(content) > self._max_bytes:
                    raise FetchRefusedError("the picture exceeds imaging_max_bytes", reason="image-too-large")
                return Fetched(content)
            case FileImage(path):
                return Fetched(await self._files.read(path, event.size))
            case DicomwebImage(url, rendered):
                return Fetched(*await self._dicomweb.read(url, rendered=rendered))
            case ObjectImage(url):
                return Fetched(await self._objects.read(url))


def _check(event: ImagingEvent, content: bytes) -> None:
    if event.size is not None and len(content) != event.size:
        raise FetchRefusedError("the picture has another size than its event says", reason="wrong-size")
    if event.sha256 is not None and sha256(content).hexdigest() != event.sha256:
        raise FetchRefusedError("the picture has another digest than its event says", reason="wrong-digest")
