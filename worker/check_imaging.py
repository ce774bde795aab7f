"""`riskstream check --role imaging`: what the imaging role needs beside what every role does."""

import asyncio
import importlib.util
from collections.abc import Coroutine
from typing import Any

from engines import repository
from engines.errors import EngineError
from worker.check_engine import loaded
from worker.check_topics import check_creation, check_topics, unreachable
from worker.cluster import describe_imaging, imaging_complaints, imaging_topics, to_create
from worker.config import Settings
from worker.decoder import Decoders
from worker.errors import DecoderError, WorkerError
from worker.finding import Finding, failed, ok, warning
from worker.imaging_app import image_settings, require_image
from worker.logs import KafkaErrors
from worker.topic_facts import gather_facts


def check_imaging(settings: Settings, heard: KafkaErrors) -> dict[str, Coroutine[Any, Any, list[Finding]]]:
    """The checks by subject, not begun."""
    return {
        "imaging: kafka": _kafka(settings, heard),
        "imaging: model": _model(settings),
        "imaging: decoders": _decoders(settings),
        "imaging: sources": _sources(settings),
    }


async def _kafka(settings: Settings, heard: KafkaErrors) -> list[Finding]:
    subject = "imaging: kafka"
    try:
        cluster = await describe_imaging(settings, create=False)
        new = to_create(settings, cluster)
        partitions = cluster.partitions | new
        found = imaging_complaints(settings, cluster._replace(partitions=partitions))
        own = settings.model_copy(update={"group": settings.imaging_group})
        facts = await gather_facts(own, [name for name in imaging_topics(settings) if name])
    except WorkerError as error:
        return [unreachable(subject, error, heard)]
    first = (
        failed(subject, "; ".join(found))
        if found
        else ok(subject, f"cluster {cluster.id}, {partitions[settings.topic_imaging]} partitions")
    )
    made = check_creation(settings, new, facts.cluster, f"{subject}: topics")
    return [first, *made, *check_topics(settings, facts, imaging=True)]


async def _model(settings: Settings) -> list[Finding]:
    subject = "imaging: model"
    try:
        own = image_settings(settings)
        require_image(repository.read_config(own.model_repository, own.model))
        engine, degraded = await asyncio.to_thread(loaded, own, subject)
    except EngineError as error:
        return [failed(subject, str(error), "RISKSTREAM_IMAGING_MODEL names a model of kind image")]
    config, backend = engine.config, engine.backend
    engine.close()
    told = f"{config.name} version {config.version} on {backend}, golden data agree"
    return [ok(subject, told), *degraded]


async def _decoders(settings: Settings) -> list[Finding]:
    subject = "imaging: decoders"
    decoders = Decoders.of(settings)
    try:
        await decoders.start()
    except DecoderError as error:
        return [failed(subject, str(error))]
    finally:
        await decoders.close()
    if importlib.util.find_spec("pydicom") is None:
        return [
            warning(
                subject,
                "PNG and JPEG alone: pydicom is not installed",
                "pip install 'riskstream[dicom]': every DICOM picture would wait, and hold up commits",
            )
        ]
    return [ok(subject, f"{settings.imaging_decoders} processes start; PNG, JPEG and DICOM")]


async def _sources(settings: Settings) -> list[Finding]:
    subject = "imaging: sources"
    allowed = {
        "files": settings.imaging_roots,
        "DICOMweb": settings.imaging_hosts,
        "objects": settings.imaging_buckets,
    }
    told = [f"{len(names)} of {kind}" for kind, names in allowed.items() if names]
    missing = [str(root) for root in settings.imaging_roots if not root.is_dir()]
    if missing:
        return [failed(subject, f"no such folder: {', '.join(missing)}", "mend RISKSTREAM_IMAGING_ROOTS")]
    return [ok(subject, f"inline pictures; {', '.join(told)}" if told else "inline pictures alone")]
