"""What a chunk adds to the metrics, once its messages are confirmed."""

import time
from collections.abc import Container, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from engines.steps import SeriesModel
from schemas.model_config import NEWS2
from schemas.window import NEVER
from worker import metrics
from worker.change import Change
from worker.decide import Step
from worker.decode import Record
from worker.feedback import Said

F32 = NDArray[np.float32]

OTHER = "other"
"""Label of severities that no shipped policy has."""


def count_warnings(chunk: Sequence[Record], change: Change, severities: Container[str]) -> None:
    """Count NEWS2's alerts, and how long after their records they were confirmed."""
    _count_alerts(NEWS2, [warned.step for warned in change.warned], severities)
    now_ms = time.time_ns() // 1_000_000
    for index in {warned.plan.scored[warned.i].at for warned in change.warned}:
        metrics.end_to_end.labels(NEWS2).observe(max(now_ms - chunk[index].timestamp, 0) / 1000)


def count_imaged(chunk: Sequence[Record], change: Change, severities: Container[str]) -> None:
    """Count alerts of findings, and how long after their records they were confirmed."""
    now_ms = time.time_ns() // 1_000_000
    for imaged in change.imaged:
        name = imaged.voice.model.name
        _count_alerts(name, [imaged.step], severities)
        metrics.end_to_end.labels(name).observe(max(now_ms - chunk[imaged.at].timestamp, 0) / 1000)


def count(topic: str, change: Change, model: str, severities: Container[str]) -> None:
    """Count fates, refusals and the model's alerts; the one place where records are accounted for."""
    for fate in ("scored", "stored", "duplicate", "dead_lettered"):
        number = change.fates.count(fate)
        if number:
            metrics.records.labels(topic, fate).inc(number)
    _count_alerts(model, [step for steps in change.steps.values() for step in steps], severities)
    accepted = sum(change.accepted)
    metrics.observations.labels("accepted").inc(accepted)
    for rejections in change.rejections.values():
        for rejection in rejections:
            stage = "observation" if rejection.path.startswith("$.observations[") else "record"
            metrics.rejections.labels(stage, rejection.reason).inc()
            if stage == "observation":
                metrics.observations.labels("rejected").inc()


def observe(chunk: Sequence[Record], change: Change, risks: F32, model: SeriesModel) -> None:
    """Ages, risks and missing features of a chunk's scores, once published."""
    now_ms = time.time_ns() // 1_000_000
    scored = change.plan.scored
    for i, score in enumerate(scored):
        metrics.event_age.observe(max(now_ms - score.time_ms, 0) / 1000)
        if not np.isnan(risks[i]):
            metrics.risk.observe(float(risks[i]))
    for index in {scored[i].at for i in change.steps}:
        metrics.end_to_end.labels(model.config.name).observe(max(now_ms - chunk[index].timestamp, 0) / 1000)
    missing = (change.plan.rows.elapsed[: len(scored), model.columns] >= NEVER).sum(axis=0)
    for name, count in zip(model.config.features, missing, strict=True):
        if count:
            metrics.feature_missing.labels(name).inc(int(count))


def count_feedback(said: Iterable[Said]) -> None:
    """Count what was said of alerts, and how long after them."""
    for each in said:
        record = each.record
        metrics.feedback.labels(record.alert.model.name, record.action, record.reason or "").inc()
        if record.action == "acknowledged":
            delay = (record.time - record.alert.time).total_seconds()
            metrics.time_to_acknowledgement.labels(record.alert.model.name).observe(max(delay, 0.0))


def _count_alerts(model: str, steps: Iterable[Step], severities: Container[str]) -> None:
    """By the shipped policy's severities: a change may name others, for each patient its own."""
    for step in steps:
        severity = step.episode.severity if step.episode.severity in severities else OTHER
        metrics.alerts.labels(model, step.transition, severity).inc()
