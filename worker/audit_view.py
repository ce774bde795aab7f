"""What an audit found, for people and for machines. It shows patients' data to whoever asked for it."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from schemas.messages import Alert, BasisFinding, BasisInput, EarlyWarning
from worker.audit import Finding
from worker.audit_run import Result, episode_of
from worker.config import Settings
from worker.messages import moment

_REACH = {
    "whole": "the log from its beginning",
    "horizon": "the rebuild horizon before its record",
    "incomplete": "what the log still holds before its record",
}

_SAID = {
    "verified": "VERIFIED: computed again, it is the same in every byte",
    "differs": "DIFFERS: computed again, it has other contents",
    "not-reproduced": "NOT REPRODUCED: computed again, its record causes no such alert",
    "incomplete-history": "CANNOT BE VERIFIED: the log no longer holds all that it rests on",
    "other-model": "CANNOT BE VERIFIED: the model that raised it is not at hand",
    "other-log": "CANNOT BE VERIFIED: its record is not in this log",
}


def explained(finding: Finding, result: Result, settings: Settings) -> str:
    """One alert with all that it rests on, and the verdict."""
    return "\n".join([*_alert_lines(finding, result, settings), *verdict_lines(finding)])


def verdict_lines(finding: Finding) -> Iterator[str]:
    """The verdict, and why."""
    read = f" (read: {_REACH[finding.reach]})" if finding.reach in _REACH else ""
    yield _SAID[finding.verdict] + read
    yield from (f"  {note}" for note in finding.notes)
    for field, published, computed in finding.differences:
        yield f"  {field}: published {_shown(published)}, computed {_shown(computed)}"


def _alert_lines(finding: Finding, result: Result, settings: Settings) -> Iterator[str]:
    published, alert = finding.published, finding.published.alert
    yield f"alert      {alert.id}"
    yield f"           {alert.transition} at {alert.time.isoformat()}, severity {alert.severity}"
    yield f"patient    {alert.patient}"
    yield f"outcome    {alert.outcome}: {_measure(alert)}"
    model = alert.model
    yield f"raised by  {model.name} version {model.version} on {alert.backend}, digest {model.digest}"
    yield f"           policy version {alert.policy_version}"
    source = alert.source
    stamped = "not read" if finding.record is None else f"stamped {_moment(finding.record.timestamp)}"
    place = f"{source.topic}/{source.partition}/{source.offset}"
    yield f"record     {place} of cluster {source.cluster}, {stamped}"
    yield (
        f"published  {settings.topic_alerts}/{published.partition}/{published.offset}, "
        f"stamped {_moment(published.timestamp)}"
    )
    yield f"expires    {alert.expires_at.isoformat()} unless the patient is scored again"
    yield from _block("inputs", [_input(i) for i in sorted(alert.inputs, key=_weight)])
    yield from _block("missing", [", ".join(alert.missing)] if alert.missing else [])
    yield from _block("findings", [_seen(f) for f in alert.findings])
    yield from _block("bedside", list(_bedside(alert)))
    yield from _block(
        "trend", [", ".join(f"{p.hour:%H:%M} {p.risk:g}" for p in alert.trend)] if alert.trend else []
    )
    yield from _block(
        "forecast",
        [
            f"{p.feature} {p.value:g} {p.unit} in {p.horizon_s / 3600:g} h, last {p.last:g}"
            for p in alert.forecast
        ],
    )
    yield from _block("episode", [_of_episode(a, alert) for a in result.episodes.get(episode_of(alert), [])])


def _measure(alert: Alert) -> str:
    if alert.risk is None:
        return f"{alert.points:g} points (threshold {alert.threshold:g})"
    spread = "" if alert.uncertainty is None else f", spread {alert.uncertainty:g}"
    return f"risk {alert.risk:g} (threshold {alert.threshold:g}{spread})"


def _weight(measured: BasisInput) -> float:
    return -abs(measured.contribution or 0.0)


def _input(measured: BasisInput) -> str:
    unit = "" if measured.unit == "1" else f" {measured.unit}"
    when = "" if measured.time is None else f"  at {measured.time.isoformat()}"
    age = "" if measured.age_s is None else f"  {measured.age_s / 60:,.0f} min old"
    adds = "" if measured.contribution is None else f"  {measured.contribution:+.6g}"
    return f"{measured.feature:<28} {measured.value:g}{unit}{when}{age}{adds}"


def _seen(found: BasisFinding) -> str:
    seen = " ".join(word for word in (found.modality, found.body_part, found.view) if word)
    doubts = f", {', '.join(found.quality)}" if found.quality else ""
    return (
        f"{found.outcome}: risk {found.risk:g} by {found.model.name} version {found.model.version}, "
        f"{seen or 'picture'} at {found.time.isoformat()}, {found.age_s / 60:,.0f} min old{doubts}"
    )


def _bedside(alert: Alert) -> Iterator[str]:
    if alert.news2 is not None:
        yield from _news2(alert.news2)
    for name, score in (("qSOFA", alert.qsofa), ("MEWS", alert.mews)):
        if score is not None:
            missing = f", missing {', '.join(score.missing)}" if score.missing else ""
            yield f"{name} {_interval(score.low, score.high)}{missing}"


def _news2(warning: EarlyWarning) -> Iterator[str]:
    parts = ", ".join(f"{p.parameter} {_interval(p.low, p.high)}" for p in warning.parts)
    total = _interval(warning.low, warning.high)
    yield f"NEWS2 {total}, response {warning.response}, SpO2 scale {warning.scale}"
    yield f"  {parts}"
    for word, names in (("missing", warning.missing), ("stale", warning.stale)):
        if names:
            yield f"  {word} {', '.join(names)}"


def _interval(low: int, high: int) -> str:
    return f"{low}" if low == high else f"{low}-{high}"


def _of_episode(alert: Alert, this: Alert) -> str:
    value = alert.points if alert.risk is None else alert.risk
    mark = "  <- this one" if alert.id == this.id else ""
    return (
        f"{alert.sequence:>3}  {alert.time.isoformat()}  {alert.transition:<9}  {value:g}  {alert.id}{mark}"
    )


def _block(name: str, lines: list[str]) -> Iterator[str]:
    for i, line in enumerate(lines):
        yield f"{name if i == 0 else '':<11}{line}"


def summary(result: Result) -> str:
    """Counts, in a few lines."""
    verdicts = Counter(f.verdict for f in result.findings if not f.verified)
    lines = [f"{result.verified:,} of {result.alerts:,} alerts verified in {result.seconds:,.1f} s"]
    lines += [f"{count:,} {verdict}" for verdict, count in sorted(verdicts.items())]
    lines += [f"no alert at {partition}/{offset}" for partition, offset in result.unreadable]
    lines += [f"{identifier} was not found; {_looked(result)}" for identifier in result.absent]
    return "\n".join(lines)


def _looked(result: Result) -> str:
    if result.oldest_ms is None:
        return "the alert topic holds nothing there"
    read = f"{len(result.spans)} partitions read"
    return f"the alert topic reaches back to {_moment(result.oldest_ms)} in the {read}"


def as_json(result: Result, settings: Settings) -> bytes:
    """The whole result as JSON; `docs/audit.md` documents its shape."""
    verdicts = Counter(f.verdict for f in result.findings if not f.verified)
    return (
        json.dumps(
            {
                "cluster": result.cluster,
                "topic_vitals": settings.topic_vitals,
                "topic_alerts": settings.topic_alerts,
                "alerts": result.alerts,
                "verified": result.verified,
                "not_verified": dict(sorted(verdicts.items())),
                "not_found": result.absent,
                "unreadable": [{"partition": p, "offset": o} for p, o in result.unreadable],
                "oldest": None if result.oldest_ms is None else _moment(result.oldest_ms),
                "seconds": round(result.seconds, 3),
                "findings": [_finding(finding, result) for finding in result.findings],
            },
            indent=2,
        ).encode()
        + b"\n"
    )


def _finding(finding: Finding, result: Result) -> dict[str, Any]:
    published, record = finding.published, finding.record
    episode = result.episodes.get(episode_of(published.alert), [])
    return {
        "id": published.alert.id,
        "verdict": finding.verdict,
        "history": finding.reach,
        "notes": list(finding.notes),
        "differences": [difference._asdict() for difference in finding.differences],
        "published": {
            "partition": published.partition,
            "offset": published.offset,
            "timestamp": _moment(published.timestamp),
        },
        "record_timestamp": None if record is None else _moment(record.timestamp),
        "episode": [
            {"id": a.id, "sequence": a.sequence, "transition": a.transition, "time": a.time.isoformat()}
            for a in episode
        ],
        "alert": json.loads(published.value),
    }


def _moment(time_ms: int) -> str:
    return moment(time_ms).isoformat()


def _shown(value: Any) -> str:
    return json.dumps(value)
