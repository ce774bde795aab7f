"""A shadow: the ordinary worker with another version of the model, its own group and its own output topics.

It is a process of its own, so that nothing it does can slow, stop or change the path that alerts.
"""

import structlog

from engines import repository
from schemas.model_config import ModelConfig
from worker import metrics
from worker.config import ConfigError, Role, Settings

MAX_GROUP = 200
"""Longest consumer group, characters; as the setting `group` allows."""

log = structlog.get_logger("riskstream.shadow")


def shadowed(settings: Settings, role: Role = Role.VITALS) -> Settings:
    """The settings of the shadow that `shadow_version` asks for; the settings themselves where it is unset.

    The group, and with it commits and the keys in Redis, are the shadow's own, and so is every topic that it
    writes to. It makes no findings, and carries no feedback into the vitals topic, where it reads what the
    workers that serve have carried.

    Raises:
        ConfigError: the role has no shadow; a shadow's topic is another's too, or has no name; the group's
            name grows too long.
    """
    version = settings.shadow_version
    if version is None:
        return settings
    if role is not Role.VITALS:
        raise ConfigError(f"a shadow has the role vitals, not {role.value}: image models have no shadow")
    _refuse_served_topics(settings)
    group = f"{settings.group}-shadow-{version}"
    if len(group) > MAX_GROUP:
        raise ConfigError(f"group: a shadow's is {group}, over {MAX_GROUP} characters; shorten the setting")
    return settings.model_copy(
        update={
            "group": group,
            "instance": f"{settings.instance}-shadow-{version}",
            "topic_alerts": settings.topic_shadow_alerts,
            "topic_scores": settings.topic_shadow_scores,
            "topic_dead_letters": settings.topic_shadow_dead_letters,
            "topic_feedback": "",
            "topic_findings": "",
            "publish_scores": True,
        }
    )


def _refuse_served_topics(settings: Settings) -> None:
    topics = {name: value for name, value in settings.model_dump().items() if name.startswith("topic_")}
    own = {name: topics.pop(name) for name in list(topics) if name.startswith("topic_shadow_")}
    for name, topic in own.items():
        if not topic:
            raise ConfigError(f"{name} is empty; a shadow needs a topic of its own")
        for other, taken in topics.items():
            if topic == taken:
                raise ConfigError(f"{name} and {other} are both {topic}; a shadow needs topics of its own")
        topics[name] = topic


def announce(settings: Settings, config: ModelConfig) -> None:
    """Say in the metrics and the log that this worker is a shadow, if it is one.

    Args:
        settings: the worker's.
        config: of the version that it loaded.
    """
    if settings.shadow_version is None:
        return
    metrics.shadow.labels(config.name, str(config.version)).set(1)
    served = repository.read_config(settings.model_repository, config.name).version
    log.info("scoring as a shadow", model=config.name, version=config.version, served=served)
    if served == config.version:
        log.warning("this version is the served one: the shadow says what the served workers say")
