"""Where the imaging role's pictures come from and what opens them, behind one interface.

What is wrong with one picture comes back as a refusal, for its dead letter. A source that is away is waited
for, and counted meanwhile.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256

import structlog

from engines.decoded import Decoded, Words
from engines.errors import ExtraError, ImageError
from schemas.imaging import DicomwebImage, FileImage, ImagingEvent, InlineImage, ObjectImage
from schemas.model_config import ImageInput
from worker import metrics
from worker.config import Settings
from worker.decode import Refusal
from worker.decoder import Decoders
from worker.errors import DecoderError, FetchError, SourceAwayError
from worker.fetch import Fetched, Fetcher
from worker.fetch_patience import Patience, fetch_patiently
from worker.imaging import Original
from worker.imaging_steps import waiting

RETRY_S = 1.0
"""Before a decoder is asked for again."""

LACKING_S = 10.0
"""Before a picture is tried again whose decoder is not installed."""

log = structlog.get_logger("riskstream.imaging")


class _Watched(Fetcher):
    """A fetcher that bounds how many pictures are held, and notes whose source is away.

    A picture that is fetched holds its place until `let_go`; between two tries it holds none, so that what a
    source lacks keeps nothing from what it has. Events are told apart as objects: one may come twice.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.away: set[int] = set()
        self._holding: set[int] = set()
        # One for each kind of source: a PACS that hangs holds up neither files nor pictures that came inline.
        self._places = {
            kind: asyncio.Semaphore(settings.imaging_concurrency)
            for kind in (InlineImage, FileImage, DicomwebImage, ObjectImage)
        }

    async def fetch(self, event: ImagingEvent) -> Fetched:
        places = self._places[type(event.image)]
        with waiting():
            await places.acquire()
        try:
            fetched = await super().fetch(event)
        except BaseException as error:
            places.release()
            if isinstance(error, SourceAwayError):
                self.away.add(id(event))
                metrics.imaging_source_away.set(len(self.away))
            raise
        self._holding.add(id(event))
        return fetched

    def let_go(self, event: ImagingEvent) -> None:
        """The picture neither waits nor is held any more."""
        if id(event) in self._holding:
            self._holding.discard(id(event))
            self._places[type(event.image)].release()
        self.came(event)

    def came(self, event: ImagingEvent) -> None:
        """The picture waits no more."""
        self.away.discard(id(event))
        metrics.imaging_source_away.set(len(self.away))


class FetchedAndDecoded:
    """The sources that the settings allow. Made in the event loop that uses it."""

    def __init__(self, settings: Settings) -> None:
        """
        Raises:
            ExtraError: a source is allowed whose extra is not installed.
        """
        self._fetcher = _Watched(settings)
        self._patience = Patience.of(settings)
        self._decoders = Decoders.of(settings)
        self._burned_in = settings.imaging_allow_burned_in
        self._match_patient = settings.imaging_match_patient
        self._decoders_up = True
        self._lacking = 0

    @property
    def decoders_up(self) -> bool:
        """Whether a decoder could be had last time, and no picture waits for an extra."""
        return self._decoders_up and not self._lacking

    @property
    def away(self) -> int:
        """Pictures that wait for a source that is away."""
        return len(self._fetcher.away)

    @asynccontextmanager
    async def fetched(self, event: ImagingEvent) -> AsyncIterator[Original | Refusal]:
        """The picture's bytes, however long their source is away; its place is another's afterwards."""
        try:
            yield await self._original(event)
        finally:
            self._fetcher.let_go(event)

    async def _original(self, event: ImagingEvent) -> Original | Refusal:
        try:
            fetched = await fetch_patiently(self._fetcher, event, self._patience)
        except FetchError as error:
            return Refusal(error.reason, "$.image")
        self._fetcher.came(event)
        digest = await asyncio.to_thread(lambda: sha256(fetched.content).hexdigest())
        return Original(fetched.content, digest, fetched.frame)

    async def decode(self, original: Original, event: ImagingEvent, wanted: ImageInput) -> Decoded | Refusal:
        """The picture as a model takes it, decoded in a child process; waits for what is not installed."""
        hints = Words(event.modality, event.body_part, event.view)
        lacking = False
        try:
            while True:
                try:
                    decoded = await self._decoders.decode(
                        original.content,
                        wanted,
                        frame=original.frame,
                        hints=hints,
                        allow_burned_in=self._burned_in,
                        patient=event.patient if self._match_patient else "",
                    )
                except ImageError as error:
                    return Refusal(error.reason, "$.image")
                except ExtraError as error:  # what this machine lacks is no fault of the picture
                    if not lacking:
                        log.error("a picture waits for an extra that is not installed", why=str(error))
                        lacking, self._lacking = True, self._lacking + 1
                    with waiting():
                        await asyncio.sleep(LACKING_S)
                except DecoderError as error:
                    self._decoders_are(False, str(error))
                    with waiting():
                        await asyncio.sleep(RETRY_S)
                else:
                    self._decoders_are(True, "")
                    return decoded
        finally:
            self._lacking -= lacking

    def _decoders_are(self, up: bool, why: str) -> None:
        if up != self._decoders_up:
            log.warning("pictures are decoded again" if up else "pictures wait for a decoder", why=why)
        self._decoders_up = up

    async def start(self) -> None:
        """Have every decoder process ready; one that does not start is tried again when it is needed."""
        try:
            await self._decoders.start()
        except DecoderError as error:
            self._decoders_are(False, str(error))

    async def close(self) -> None:
        """Close connections and end the children."""
        await self._fetcher.close()
        await self._decoders.close()
