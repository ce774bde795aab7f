"""Imaging records for tests, and sources that say at once what they have."""

from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

import msgspec
import numpy as np

from engines import images
from engines.decoded import Decoded, Words
from engines.errors import ImageError
from schemas.imaging import ImagingEvent, InlineImage
from schemas.model_config import ImageInput
from tests.engines.pictures import encoded, of_class
from tests.worker.records import Record, rfc3339
from worker.decode import Refusal
from worker.imaging import Original

T0 = 1_700_000_000_000

PACS = "http://pacs.test/studies/1.2/series/1.3/instances"


def png(seed: int, label: int = 1, side: int = 28) -> bytes:
    """A small PNG; another seed is another picture."""
    return encoded(of_class(label, side, np.random.default_rng(seed)))


def inline(content: bytes) -> dict[str, Any]:
    """The image of an event, inline."""
    return {"type": "inline", "content": b64encode(content).decode()}


def dicomweb(instance: str, rendered: bool = False) -> dict[str, Any]:
    """The image of an event, in a PACS."""
    return {"type": "dicomweb", "url": f"{PACS}/{instance}", "rendered": rendered}


def record(offset: int, image: dict[str, Any], patient: str = "p1", **more: Any) -> Record:
    """A record of the imaging topic."""
    event = {"event_id": f"e{offset}", "patient": patient, "time": rfc3339(T0), "image": image, **more}
    return Record(offset, T0, patient.encode(), msgspec.json.encode(event))


class FakeSources:
    """Gives inline pictures their bytes, and of references what `held` says; decodes in this process.

    held: by instance. hook: awaited before each fetch, told the event.
    """

    def __init__(self, held: dict[str, bytes] | None = None) -> None:
        self.away = 0
        self.decoders_up = True
        self.held = held or {}
        self.asked: list[str] = []
        self.hook: Callable[[ImagingEvent], Any] | None = None

    @asynccontextmanager
    async def fetched(self, event: ImagingEvent) -> AsyncIterator[Original | Refusal]:
        yield await self._fetch(event)

    async def _fetch(self, event: ImagingEvent) -> Original | Refusal:
        if self.hook is not None:
            await self.hook(event)
        if isinstance(event.image, InlineImage):
            content = event.image.content
        else:
            name = msgspec.to_builtins(event.image)["url"].rsplit("/", 1)[-1]
            self.asked.append(name)
            if name not in self.held:
                return Refusal("not-found", "$.image")
            content = self.held[name]
        return Original(content, sha256(content).hexdigest())

    async def decode(self, original: Original, event: ImagingEvent, wanted: ImageInput) -> Decoded | Refusal:
        try:
            return images.read(original.content, wanted, hints=Words(event.modality, event.body_part))
        except ImageError as error:
            return Refusal(error.reason, "$.image")
