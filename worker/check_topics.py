"""What each topic must be like, and what this user must be allowed, judged by what the brokers told."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from worker.cluster_facts import CREATE, ClusterFacts
from worker.config import Settings
from worker.errors import WorkerError
from worker.finding import Finding, failed, ok, warning
from worker.logs import KafkaErrors
from worker.topic_facts import READ, WRITE, Facts, TopicFacts

DEAD_LETTER_BYTES = 448 * 1024
"""A dead letter holds 256 KiB of the original in base64, its headers and its reasons."""

FINDING_BYTES = 384 * 1024
"""A finding holds an activation map of up to 256 KiB in base64, and some KiB beside it."""

EPISODE_DAYS = 30.0
"""Longest stay to count on: a rebuild reads from the alert topic which episodes are open."""

FUTURE_MS = 24 * 3_600_000
"""A record stamped further ahead than this moves stream time for a whole partition."""

DAY_MS = 86_400_000.0


class _Role(NamedTuple):
    """What a topic is for: the rights that it needs, and what is looked at beside what all topics share."""

    rights: int
    look: Callable[[Settings, TopicFacts, Mapping[str, str]], Iterator[Finding]]


def check_topics(settings: Settings, facts: Facts, imaging: bool = False) -> list[Finding]:
    """One finding for each thing that is not well in a topic; one that says so for a topic without.

    Of the topics and the group of the vitals role, or of the imaging role.
    """
    findings: list[Finding] = []
    group = settings.imaging_group if imaging else settings.group
    for name, role in (_imaging_roles(settings) if imaging else _roles(settings)).items():
        topic = facts.topics.get(name)
        if topic is not None:
            findings += [*_look(settings, topic, role)] or [ok(f"topic {name}", _told(topic))]
    if facts.group_refused:
        findings.append(
            failed(
                f"group {group}",
                "this user may not see the group",
                "grant READ on the group, which lets a worker join it and commit",
            )
        )
    return findings


def unreachable(subject: str, error: WorkerError, heard: KafkaErrors) -> Finding:
    """That the brokers did not answer, with the cause as far as aiokafka's log has named it."""
    why = f": {heard.last}" if heard.last else ""
    return failed(subject, f"{error}{why}", "check RISKSTREAM_BROKER, TLS and credentials")


def check_creation(
    settings: Settings, new: Mapping[str, int], cluster: ClusterFacts, subject: str
) -> list[Finding]:
    """What becomes of the topics that a worker makes when it starts; none where there are none to make.

    Args:
        new: partitions of each.
        cluster: what the brokers told of it. Whether a topic can be made is not tried.
    """
    if not new:
        return []
    wide = ", ".join(f"{name} ({count} partition{'s' * (count != 1)})" for name, count in new.items())
    told = f"a worker creates when it starts, with replication {settings.replication}: {wide}"
    if settings.replication > cluster.brokers:
        there = f"brokers: {cluster.brokers}"
        return [failed(subject, f"{told}; {there}", "lower RISKSTREAM_REPLICATION, or add brokers")]
    if cluster.rights is None:
        return [ok(subject, f"{told}; the brokers do not tell whether this user may")]
    if not cluster.rights & CREATE:
        return [
            warning(
                subject,
                f"{told}; this user lacks CREATE on the cluster",
                "grant it there or on these topics, which cannot be asked before; or create them by hand",
            )
        ]
    return [ok(subject, told)]


def role_names(settings: Settings) -> list[str]:
    """The topics that are looked at, where they exist."""
    return list(_roles(settings))


def _roles(settings: Settings) -> dict[str, _Role]:
    carries = bool(settings.topic_feedback or settings.topic_findings)
    roles = {
        settings.topic_vitals: _Role(READ | (WRITE if carries else 0), _vitals),
        settings.topic_alerts: _Role(READ | WRITE, _alerts),
        settings.topic_dead_letters: _Role(WRITE, _dead_letters),
    }
    if settings.publish_scores:
        roles[settings.topic_scores] = _Role(WRITE, _anything)
    if settings.topic_policies:
        roles[settings.topic_policies] = _Role(READ, _policies)
    if settings.topic_feedback:
        roles[settings.topic_feedback] = _Role(READ, _feedback)
    if settings.topic_findings:
        roles[settings.topic_findings] = _Role(READ, _findings)
    return roles


def _imaging_roles(settings: Settings) -> dict[str, _Role]:
    return {
        settings.topic_imaging: _Role(READ, _imaging),
        settings.topic_findings: _Role(WRITE, _findings),
        settings.topic_dead_letters: _Role(WRITE, _dead_letters),
    }


def _look(settings: Settings, topic: TopicFacts, role: _Role) -> Iterator[Finding]:
    yield from _rights(topic, role.rights)
    if topic.configs is None:
        yield warning(
            f"topic {topic.name}",
            f"{_told(topic)}; the brokers do not tell its configuration",
            "grant DESCRIBE_CONFIGS on the topic, or compare it with docs/runbook.md by hand",
        )
        return
    yield from _replicas(topic, topic.configs)
    yield from role.look(settings, topic, topic.configs)


def _told(topic: TopicFacts) -> str:
    return f"{topic.partitions} partitions, {topic.replicas} replicas"


def _rights(topic: TopicFacts, needed: int) -> Iterator[Finding]:
    lacking = (
        []
        if topic.rights is None
        else [
            name
            for name, bit in (("READ", READ), ("WRITE", WRITE))
            if needed & bit and not topic.rights & bit
        ]
    )
    if lacking:
        yield failed(
            f"topic {topic.name}: rights",
            f"this user lacks {' and '.join(lacking)}",
            f"grant {' and '.join(lacking)} on the topic",
        )


def _replicas(topic: TopicFacts, configs: Mapping[str, str]) -> Iterator[Finding]:
    subject, insync = f"topic {topic.name}: replicas", _number(configs, "min.insync.replicas", 1)
    if topic.replicas < insync:
        yield failed(
            subject,
            f"{topic.replicas} replicas, min.insync.replicas is {insync:g}",
            "add replicas: nothing can be published",
        )
    elif topic.replicas < 2 or insync < 2:
        yield warning(
            subject,
            f"{topic.replicas} replicas, min.insync.replicas is {insync:g}",
            "use 3 and 2: a confirmed alert is on one disk alone otherwise",
        )
    elif topic.replicas == insync:
        yield warning(
            subject,
            f"{topic.replicas} replicas, min.insync.replicas is {insync:g}",
            "add a replica: publishing stops while one broker is away",
        )


def _vitals(settings: Settings, topic: TopicFacts, configs: Mapping[str, str]) -> Iterator[Finding]:
    yield from _not_compacted(topic, configs, "records of a patient would be lost")
    horizon_ms, kept_ms = settings.rebuild_horizon_h * 3_600_000, _retention_ms(configs)
    if kept_ms < horizon_ms:
        yield failed(
            f"topic {topic.name}: retention",
            f"retention.ms keeps {kept_ms / DAY_MS:.3g} days, rebuild_horizon_h is {horizon_ms / DAY_MS:.3g}",
            "raise retention.ms above the horizon: state is rebuilt from the log when Redis has lost it",
        )
    if _number(configs, "retention.bytes", -1) >= 0:
        yield warning(
            f"topic {topic.name}: retention",
            f"retention.bytes is {configs['retention.bytes']}",
            "set it to -1: a busy day must not shorten what a rebuild reads",
        )
    ahead_ms = _number(configs, "message.timestamp.after.max.ms", FUTURE_MS)
    if configs.get("message.timestamp.type") != "LogAppendTime" and ahead_ms > FUTURE_MS:
        yield warning(
            f"topic {topic.name}: timestamps",
            "message.timestamp.after.max.ms lets records be stamped more than a day ahead",
            "set it to 3600000: two devices with clocks ahead would move a partition's time",
        )


def _alerts(settings: Settings, topic: TopicFacts, configs: Mapping[str, str]) -> Iterator[Finding]:
    yield from _not_compacted(topic, configs, "a rebuild would not find every alert of an episode")
    kept_ms, horizon_ms = _retention_ms(configs), settings.rebuild_horizon_h * 3_600_000
    subject, detail = f"topic {topic.name}: retention", f"retention.ms keeps {kept_ms / DAY_MS:.3g} days"
    if kept_ms < horizon_ms:
        yield failed(
            subject,
            f"{detail}, rebuild_horizon_h is {horizon_ms / DAY_MS:.3g}",
            "raise it: a rebuild would alert again on episodes that are open",
        )
    elif kept_ms < EPISODE_DAYS * DAY_MS:
        yield warning(
            subject,
            detail,
            f"raise it to {EPISODE_DAYS:g} days or more: an episode may last as long as a stay",
        )


def _dead_letters(settings: Settings, topic: TopicFacts, configs: Mapping[str, str]) -> Iterator[Finding]:
    most = _number(configs, "max.message.bytes", 1 << 20)
    if most < DEAD_LETTER_BYTES:
        yield failed(
            f"topic {topic.name}: size",
            f"max.message.bytes is {most:g}, a dead letter may have {DEAD_LETTER_BYTES}",
            "raise it: a worker whose dead letter is refused stops",
        )


def _policies(settings: Settings, topic: TopicFacts, configs: Mapping[str, str]) -> Iterator[Finding]:
    if "compact" not in configs.get("cleanup.policy", "delete"):
        yield failed(
            f"topic {topic.name}: cleanup",
            f"cleanup.policy is {configs.get('cleanup.policy', 'delete')}",
            "set it to compact: changes of policies would be forgotten when they grow old",
        )


def _feedback(settings: Settings, topic: TopicFacts, configs: Mapping[str, str]) -> Iterator[Finding]:
    yield from _not_compacted(topic, configs, "what people said of an alert would be lost")


def _imaging(settings: Settings, topic: TopicFacts, configs: Mapping[str, str]) -> Iterator[Finding]:
    yield from _not_compacted(topic, configs, "pictures of a patient would be lost")
    most = _number(configs, "max.message.bytes", 1 << 20)
    if most > settings.imaging_max_record_bytes:
        yield warning(
            f"topic {topic.name}: size",
            f"max.message.bytes is {most:g}, imaging_max_record_bytes is {settings.imaging_max_record_bytes}",
            "make them equal: a picture between the two is taken by the broker and dead-lettered",
        )


def _findings(settings: Settings, topic: TopicFacts, configs: Mapping[str, str]) -> Iterator[Finding]:
    yield from _not_compacted(topic, configs, "findings not carried yet would be lost")
    most = _number(configs, "max.message.bytes", 1 << 20)
    if most < FINDING_BYTES:
        yield failed(
            f"topic {topic.name}: size",
            f"max.message.bytes is {most:g}, a finding may have {FINDING_BYTES}",
            "raise it: a worker whose finding is refused stops",
        )


def _anything(settings: Settings, topic: TopicFacts, configs: Mapping[str, str]) -> Iterator[Finding]:
    yield from ()


def _not_compacted(topic: TopicFacts, configs: Mapping[str, str], why: str) -> Iterator[Finding]:
    if "compact" in configs.get("cleanup.policy", "delete"):
        yield failed(
            f"topic {topic.name}: cleanup",
            f"cleanup.policy is {configs['cleanup.policy']}",
            f"set it to delete: {why}",
        )


def _retention_ms(configs: Mapping[str, str]) -> float:
    kept = _number(configs, "retention.ms", 7 * DAY_MS)
    return kept if kept >= 0 else float("inf")


def _number(configs: Mapping[str, str], name: str, default: float) -> float:
    try:
        return float(configs.get(name, default))
    except ValueError:
        return default
