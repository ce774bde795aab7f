"""What a demo needs around it: broker, Redis, topics of its own, and the settings that name them."""

import os
import uuid
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, for_code

from engines.errors import EngineError
from worker import config, embedded, store
from worker.config import Settings
from worker.policies import imaging_config
from worker.recording import Choice

PARTITIONS = 8

SESSION_S = 3.0
"""Session timeout on the embedded broker, which holds a first worker back for half of it."""


class DemoError(RuntimeError):
    """The demo cannot go on; the message says which part failed and shows its last output."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to show.

    seconds: of sending and draining, start and stop excluded.
    source: `simulate`, `physionet2012:DIR` or a recorded file. choice: what to take from it.
    speed: event seconds per second; None fits the recording into `seconds`.
    broker, redis: to use instead of embedded ones.
    model, model_repository: to serve instead of the settings'.
    board_port: loopback port of a ward page that is served meanwhile; None for none.
    images: where the patients' pictures come from, `simulate` or `medmnist:FILE`; None for no pictures.
    """

    seconds: float
    source: str
    choice: Choice
    speed: float | None = None
    workers: int = 1
    broker: str | None = None
    redis: str | None = None
    model: str | None = None
    model_repository: Path | None = None
    board_port: int | None = None
    images: str | None = None


def scores_pictures(model_repository: Path | None) -> bool:
    """Whether the repository, the settings' one unless given, has the model that scores pictures.

    Raises:
        ConfigError: the settings cannot be used.
    """
    settings = config.load(**({"model_repository": model_repository} if model_repository else {}))
    try:
        return imaging_config(settings) is not None
    except EngineError:
        return False


def surroundings(options: Options, stack: ExitStack) -> tuple[Settings, dict[str, str]]:
    """Settings for this process, and the environment in which workers have the same ones.

    Embedded servers are started here and stopped with `stack`.
    """
    group = f"riskstream-demo-{uuid.uuid4().hex[:12]}"
    own: dict[str, Any] = {"publish_scores": True, "group": group, "imaging_group": f"{group}-imaging"}
    if options.model:
        own["model"] = options.model
    if options.model_repository:
        own["model_repository"] = options.model_repository.resolve()
    foreign: list[str] = []
    if options.broker:
        own |= {"broker": options.broker} | _topics_of(group, pictures=options.images is not None)
    else:
        own |= {"broker": stack.enter_context(embedded.tansu()).address, "kafka_idempotence": False}
        own |= {"kafka_security_protocol": "PLAINTEXT", "replication": 1, "session_timeout_s": SESSION_S}
        foreign.append("RISKSTREAM_KAFKA_")
    if options.redis:
        own["redis"] = options.redis
    else:
        own["redis"] = f"redis://{stack.enter_context(embedded.redis()).address}/0"
        foreign.append("RISKSTREAM_REDIS_")
    settings = config.load(**own)
    env = {name: value for name, value in os.environ.items() if not name.startswith(tuple(foreign))}
    env |= {f"RISKSTREAM_{name.upper()}": str(value) for name, value in own.items()}
    root = str(Path(__file__).resolve().parent.parent)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (root, env.get("PYTHONPATH"))))
    return settings, env


def _topics_of(group: str, *, pictures: bool) -> dict[str, str]:
    return {
        "topic_vitals": f"{group}.vitals",
        "topic_alerts": f"{group}.risk-alerts",
        "topic_scores": f"{group}.risk-scores",
        "topic_dead_letters": f"{group}.dead-letters",
        "topic_imaging": f"{group}.imaging",
        "topic_findings": f"{group}.findings" if pictures else "",
        # What others say of their alerts, and how theirs are decided, is none of the demo's.
        "topic_policies": "",
        "topic_feedback": "",
    }


def output_topics(settings: Settings) -> list[str]:
    """What the demo receives."""
    findings = [settings.topic_findings] if settings.topic_findings else []
    return [settings.topic_alerts, settings.topic_scores, settings.topic_dead_letters, *findings]


def input_topics(settings: Settings) -> list[str]:
    """What the demo sends to."""
    return [settings.topic_vitals, settings.topic_imaging]


async def create_topics(settings: Settings) -> None:
    """Make the demo's topics; none of them may exist."""
    # Records carry old event times: a topic that deletes by age would delete them at once.
    keep = {"retention.ms": "-1"}
    names = [*input_topics(settings), *output_topics(settings)]
    new = [NewTopic(name, PARTITIONS, settings.replication, topic_configs=keep) for name in names]

    async def create(admin: Any) -> None:
        for topic, code, *_ in (await admin.create_topics(new)).topic_errors:
            if code:
                raise DemoError(f"topic {topic} cannot be created: {for_code(code).__name__}")

    await _administer(settings, create)


async def delete_topics(settings: Settings) -> None:
    """Delete the demo's topics."""
    names = [*input_topics(settings), *output_topics(settings)]
    await _administer(settings, lambda admin: admin.delete_topics(names))


async def delete_keys(settings: Settings) -> None:
    """Delete what workers of the demo's group have left in Redis."""
    client = store.connect(settings)
    async for key in client.scan_iter(match=f"riskstream:{{*:{settings.group}*:*", count=1000):
        await client.unlink(key)
    await client.aclose()


async def _administer(settings: Settings, act: Callable[[Any], Coroutine[Any, Any, Any]]) -> None:
    admin = AIOKafkaAdminClient(**settings.kafka_client(), client_id="riskstream-demo")
    try:
        await admin.start()
        await act(admin)
    except (KafkaError, OSError) as error:
        raise DemoError(f"the broker at {settings.broker} fails: {type(error).__name__}") from error
    finally:
        await admin.close()
