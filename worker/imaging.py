"""The path of one imaging record, from its bytes to its confirmed finding.

    record --read_event--> event --fetch--> bytes --decode--> picture --infer--> outputs --publish--> fate

Fetching waits for other machines, decoding runs in child processes, the engine in a thread of its own; what
else takes CPU time (JSON with a picture in it, digests, the overlay) runs in threads. So an event loop that
the vitals role shares is never held up. Many records are on their way at once, in no promised order.

A record that is at fault becomes a dead letter. A source that is away, a decoder that is not installed or
does not start, and an engine that does not answer are waited for without limit: nothing is lost, and lag and
readiness say so.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Literal, NamedTuple, Protocol
from uuid import uuid5

import msgspec
import numpy as np

from engines.activation import evidence
from engines.decoded import Decoded, identity_of
from engines.engine import F32
from engines.images import overlay
from schemas.imaging import DicomwebImage, ImagingEvent
from schemas.messages import (
    MAX_ACTIVATION_BYTES,
    NAMESPACE,
    ClassProbability,
    Finding,
    Rejection,
    Source,
)
from schemas.model_config import ImageInput, ModelConfig
from worker import metrics
from worker.decode import Record, Refusal
from worker.errors import EngineDownError, EngineHungError
from worker.imaging_event import instance_of, read_event
from worker.imaging_memory import ScoredImages
from worker.imaging_steps import begins, waiting
from worker.intake import Limits
from worker.messages import Author, model_voice
from worker.partition import Place
from worker.publish import Outgoing, cloud_event
from worker.served import Answering, Served

OVERLAY_SIDES = (224, 160, 112)
"""Pixels of the activation map's longer side, tried in turn until the PNG is small enough to send."""

RETRY_S = 1.0
"""Between two questions whether the engine answers again."""

Fate = Literal["scored", "duplicate", "dead_lettered"]

_encode = msgspec.json.Encoder().encode


class Original(NamedTuple):
    """A picture's bytes as they came.

    sha256: of `content`, in hex.
    frame: of a DICOM instance, from 1; None where none is asked for.
    """

    content: bytes
    sha256: str
    frame: int | None = None


class Sources(Protocol):
    """Where pictures come from, and what opens them; a refusal says why a picture cannot be had."""

    @property
    def away(self) -> int:
        """Pictures that wait for a source that is away."""
        ...

    @property
    def decoders_up(self) -> bool:
        """Whether what opens pictures is there."""
        ...

    def fetched(self, event: ImagingEvent) -> AbstractAsyncContextManager[Original | Refusal]:
        """The picture's bytes, of which few are held at once; waits for a source that is away."""
        ...

    async def decode(self, original: Original, event: ImagingEvent, wanted: ImageInput) -> Decoded | Refusal:
        """The picture as a model takes it."""
        ...


class Outlets(NamedTuple):
    """Where messages go."""

    publish: Callable[[Sequence[Outgoing]], Awaitable[None]]
    findings: str
    dead_letters: str


class Picture(NamedTuple):
    """A decoded picture, with the name under which its finding goes, and what it was decoded for."""

    finding_id: str
    sha256: str
    decoded: Decoded
    wanted: ImageInput


class Answer(NamedTuple):
    """What an engine gave for a picture, and which one."""

    served: Served
    outputs: Mapping[str, F32]


class ImagingPath:
    """Takes records of any partition; safe for many tasks of one event loop.

    in_flight: records on their way. engine_away: whether records wait for the engine.
    """

    def __init__(
        self,
        serving: Answering,
        sources: Sources,
        outlets: Outlets,
        scored: ScoredImages,
        limits: Limits,
    ) -> None:
        self.in_flight = 0
        self.engine_away = False
        self._serving = serving
        self._sources = sources
        self._outlets = outlets
        self._scored = scored
        self._limits = limits
        self._asking = asyncio.Lock()
        self._answered_at = 0.0

    async def take(self, place: Place, record: Record) -> Fate:
        """Bring one record to its fate; what it leads to is confirmed then.

        Raises:
            EngineHungError, FatalError: the process must stop.
        """
        self.in_flight += 1
        metrics.imaging_in_flight.inc()
        try:
            fate = await self._take(place, record)
        finally:
            self.in_flight -= 1
            metrics.imaging_in_flight.dec()
        if fate == "scored":
            age_ms = max(time.time_ns() // 1_000_000 - record.timestamp, 0)
            metrics.imaging_end_to_end.observe(age_ms / 1000)
        return fate

    async def _take(self, place: Place, record: Record) -> Fate:
        event = await asyncio.to_thread(read_event, record, self._limits)
        if isinstance(event, Refusal):
            return await self._refuse(place, record, "event", event)
        named = self._named(event)
        if named is not None and await self._scored.has(named):
            return "duplicate"
        picture = await self._picture(event, place, record)
        if not isinstance(picture, Picture):
            return picture
        async with self._scored.turn(picture.finding_id):
            if await self._scored.has(picture.finding_id):
                return "duplicate"
            with _timed("score"):
                answer = await self._infer(picture)
            if answer is not None:
                return await self._tell(place, record, event, picture, answer)
        # A version that takes pictures of another size came meanwhile: fetched and decoded anew for it.
        return await self._take(place, record)

    def _named(self, event: ImagingEvent) -> str | None:
        """The finding's id as far as the reference tells which image it leads to; None where it does not."""
        if not isinstance(event.image, DicomwebImage):
            return None
        instance, frame = instance_of(event.image)
        return self._finding_id(identity_of(b"", instance, frame), event.patient) if instance else None

    def _finding_id(self, image: str, patient: str) -> str:
        return finding_id(image, patient, self._serving.current.config.name)

    async def _picture(self, event: ImagingEvent, place: Place, record: Record) -> Picture | Fate:
        """The decoded picture; its bytes are let go of before it waits for the engine."""
        started = time.perf_counter()
        async with self._sources.fetched(event) as original:
            _observe("fetch", started)
            if isinstance(original, Refusal):
                return await self._refuse(place, record, "fetch", original)
            wanted = _wanted(self._serving.current)
            with _timed("decode"):
                decoded = await self._sources.decode(original, event, wanted)
            if isinstance(decoded, Refusal):
                return await self._refuse(place, record, "decode", decoded)
            digest = original.sha256
        rendered = isinstance(event.image, DicomwebImage) and event.image.rendered
        named = self._named(event) if rendered else None
        return Picture(named or self._finding_id(decoded.identity, event.patient), digest, decoded, wanted)

    async def _tell(
        self, place: Place, record: Record, event: ImagingEvent, picture: Picture, answer: Answer
    ) -> Fate:
        with _timed("write"):
            source = Source(*place, record.offset)
            finding = await asyncio.to_thread(write_finding, answer, event, picture, source)
        if isinstance(finding, Refusal):
            return await self._refuse(place, record, "score", finding)
        with _timed("publish"):
            await self._outlets.publish([_outgoing(self._outlets.findings, finding, place, record.timestamp)])
        await self._scored.add(finding.id)
        return "scored"

    async def _infer(self, picture: Picture) -> Answer | None:
        """What whatever serves says of a picture; waits while nothing answers.

        None if what serves now takes pictures of another size.
        """
        inputs = {"image": picture.decoded.image[None]}
        while True:
            served = self._serving.current
            if _wanted(served) != picture.wanted:
                return None
            try:
                with served.held(), waiting():  # a batcher bounds its calls, and says when one hangs
                    return Answer(served, await served.run(inputs))
            except (EngineDownError, EngineHungError) as error:
                metrics.engine_failures.labels(served.config.name, error.reason).inc()
                if await self._serving.instead(served, error.reason) is None:
                    if isinstance(error, EngineHungError):
                        raise
                    with waiting():
                        await self._until_it_answers()

    async def _until_it_answers(self) -> None:
        """One task asks, the others wait for it: golden data cost the engine as much as pictures do."""
        async with self._asking:
            if time.perf_counter() - self._answered_at < RETRY_S:
                return
            self.engine_away = True
            try:
                while True:
                    if await self._serving.answers():
                        break
                    await asyncio.sleep(RETRY_S)
            finally:
                self.engine_away = False
            self._answered_at = time.perf_counter()

    async def _refuse(self, place: Place, record: Record, stage: str, refusal: Refusal) -> Fate:
        author = Author(place, {}, ("", "", self._outlets.dead_letters))
        rejections = [Rejection(refusal.reason, refusal.path)]
        letter = await asyncio.to_thread(author.dead_letter, record, rejections, 0)
        await self._outlets.publish([letter])
        metrics.rejections.labels(stage, refusal.reason).inc()
        return "dead_lettered"


def finding_id(image: str, patient: str, model: str) -> str:
    """UUIDv5 of image, patient and model name: a digest, from which none of them can be read.

    The patient is part of it, so that one file sent for two patients by mistake gives each a finding; the
    model's version is not, so that a new version scores no old picture again.
    """
    return str(uuid5(NAMESPACE, f"finding|{image}|{patient}|{model}"))


def _wanted(served: Served) -> ImageInput:
    assert served.config.image is not None
    return served.config.image


def write_finding(answer: Answer, event: ImagingEvent, picture: Picture, source: Source) -> Finding | Refusal:
    """The finding of one picture; a refusal where the engine gave no probabilities. Takes milliseconds."""
    (served, outputs), config = answer, answer.served.config
    voice = model_voice(config, served.backend)
    probability = np.round(outputs["probability"][0].astype(np.float64), 6)
    if not (np.isfinite(probability).all() and probability.min() >= 0 and probability.max() <= 1):
        return Refusal("inference-failed")
    inside = np.isin(config.classes, config.findings)
    decoded = picture.decoded
    return Finding(
        id=picture.finding_id,
        patient=event.patient,
        time=event.time,
        outcome=voice.outcome,
        risk=min(round(float(probability[inside].sum()), 6), 1.0),
        classes=tuple(
            ClassProbability(name, float(value))
            for name, value in zip(config.classes, probability, strict=True)
        ),
        findings=tuple(name for name in config.classes if name in config.findings),
        model=voice.model,
        backend=voice.backend,
        source=source,
        image_sha256=picture.sha256,
        modality=decoded.modality or event.modality,
        body_part=decoded.body_part or event.body_part,
        view=decoded.view or event.view,
        quality=tuple(decoded.flags),
        activation_png=_activation(config, decoded.image, outputs),
    )


def _activation(config: ModelConfig, tensor: F32, outputs: Mapping[str, F32]) -> bytes | None:
    """The class-activation map over the picture, as large as may be sent; None where the model has none."""
    if "activation" not in outputs:
        return None
    seen = evidence(config, outputs["probability"][0], outputs["activation"][0])
    for side in OVERLAY_SIDES:
        png = overlay(tensor, seen, side)
        if len(png) <= MAX_ACTIVATION_BYTES:
            return png
    return None


def _outgoing(topic: str, finding: Finding, place: Place, timestamp_ms: int) -> Outgoing:
    """The finding's record; its timestamp is the imaging event's, a replayed past stays in the past."""
    headers = cloud_event(
        "finding", finding.id, f"/riskstream/{place.cluster}/{place.topic}/{place.partition}"
    )
    key = finding.patient.encode()
    return Outgoing(topic, key, _encode(finding), headers, timestamp_ms=timestamp_ms)


@contextmanager
def _timed(stage: str) -> Iterator[None]:
    started = time.perf_counter()
    begins()
    try:
        yield
    finally:
        begins()
        _observe(stage, started)


def _observe(stage: str, started: float) -> None:
    metrics.imaging_stage_duration.labels(stage).observe(time.perf_counter() - started)
