"""Episodes of a served model and of its shadow, matched by patient and time.

Memory: some 0.5 KB for each episode that is open in the stretch or began in it, and 200 bytes for each alert.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct

from schemas.messages import ModelReference, Source, Time, Transition
from schemas.model_config import NEWS2
from worker.decode import milliseconds
from worker.history import Span

HOUR_MS = 3_600_000

VOICES = ("model", NEWS2)

ENDS = frozenset({"resolved", "expired"})
PAGES = frozenset({"raised", "escalated"})
"""Transitions that would page somebody."""


class AlertHead(Struct, frozen=True):
    """What of an alert is compared; fields as in `Alert`."""

    id: str
    episode: str
    transition: Transition
    patient: str
    time: Time
    raised_at: Time
    policy_version: str
    model: ModelReference
    backend: str
    source: Source


@dataclass(slots=True)
class Episode:
    """From raised to resolved or expired, event time in ms.

    opened: offset of the record that opened it. inside: whether that lies in the stretch.
    """

    opened: int
    inside: bool
    raised_ms: int
    ended_ms: float = inf


@dataclass
class Seen:
    """Who spoke: (version, digest), backends and policy versions, each with its number of alerts."""

    models: Counter[tuple[int, str]] = field(default_factory=Counter)
    backends: Counter[str] = field(default_factory=Counter)
    policies: Counter[str] = field(default_factory=Counter)


class Alerts:
    """The alerts of one side within a stretch of the input, as they come from the alert topic.

    Args:
        spans: by partition, the stretch.
        model: name of the model; alerts of others but NEWS2 are passed over.
    """

    def __init__(self, spans: Mapping[int, Span], model: str) -> None:
        self._spans = spans
        self._voices = {model: VOICES[0], NEWS2: VOICES[1]}
        self._ids: set[str] = set()
        self.transitions: dict[str, Counter[str]] = {voice: Counter() for voice in VOICES}
        self.episodes: dict[str, dict[str, dict[int, Episode]]] = {voice: {} for voice in VOICES}
        self.seen = Seen()

    def add(self, alert: AlertHead) -> None:
        """Take the next alert; one that came before is the same alert."""
        voice, span = self._voices.get(alert.model.name), self._spans.get(alert.source.partition)
        if voice is None or span is None or alert.source.offset >= span.end or alert.id in self._ids:
            return
        self._follow(self.episodes[voice].setdefault(alert.patient, {}), alert, span)
        if alert.source.offset < span.first:
            return
        self._ids.add(alert.id)
        self.transitions[voice][alert.transition] += 1
        if voice != NEWS2:
            self.seen.models[alert.model.version, alert.model.digest] += 1
            self.seen.backends[alert.backend] += 1
            self.seen.policies[alert.policy_version] += 1

    def _follow(self, episodes: dict[int, Episode], alert: AlertHead, span: Span) -> None:
        opened = int(alert.episode.rsplit("/", 1)[1])
        if alert.transition in ENDS and alert.source.offset < span.first:
            episodes.pop(opened, None)
            return
        inside = opened >= span.first
        episode = episodes.setdefault(opened, Episode(opened, inside, milliseconds(alert.raised_at)))
        if alert.transition in ENDS:
            episode.ended_ms = milliseconds(alert.time)


class Matched(NamedTuple):
    """Episodes of both sides.

    both: pairs that overlap in time. only_served, only_shadow: episodes without a counterpart.
    carried_over: pairs and episodes of which one began before the stretch; in none of the others.
    leads_ms: of each pair in `both`, how much earlier the shadow raised it, event time.
    """

    both: int
    only_served: int
    only_shadow: int
    carried_over: int
    leads_ms: list[int]


def match(
    served: Mapping[str, Mapping[int, Episode]], shadow: Mapping[str, Mapping[int, Episode]]
) -> Matched:
    """Match the episodes of each patient in the order of time, one with one.

    Two that overlap are one deterioration, wherever each was opened. What one side tells in one episode and
    the other in two is a pair and one more: it would page once more.
    """
    found = Matched(0, 0, 0, 0, [])
    for patient in served.keys() | shadow.keys():
        ours, theirs = (_in_turn(side.get(patient, {}).values()) for side in (served, shadow))
        found = _match(ours, theirs, found)
    return found


def _in_turn(episodes: Iterable[Episode]) -> list[Episode]:
    """Latest first, to be taken from the end."""
    return sorted(episodes, key=lambda episode: (episode.raised_ms, episode.opened), reverse=True)


def _match(ours: list[Episode], theirs: list[Episode], found: Matched) -> Matched:
    both, only_served, only_shadow, carried_over, leads_ms = found
    while ours or theirs:
        if ours and theirs and _overlap(ours[-1], theirs[-1]):
            one, other = ours.pop(), theirs.pop()
            if one.inside and other.inside:
                both += 1
                leads_ms.append(one.raised_ms - other.raised_ms)
            else:
                carried_over += 1
            continue
        first_is_ours = not theirs or (bool(ours) and ours[-1].raised_ms <= theirs[-1].raised_ms)
        alone = (ours if first_is_ours else theirs).pop()
        carried_over += not alone.inside
        only_served += alone.inside and first_is_ours
        only_shadow += alone.inside and not first_is_ours
    return Matched(both, only_served, only_shadow, carried_over, leads_ms)


def _overlap(one: Episode, other: Episode) -> bool:
    return one.raised_ms <= other.ended_ms and other.raised_ms <= one.ended_ms


def leads(leads_ms: list[int]) -> dict[str, Any] | None:
    """When the shadow raised what both raised, in hours before the served model; below 0 after it."""
    if not leads_ms:
        return None
    hours = np.array(leads_ms, dtype=np.float64) / HOUR_MS
    low, median, high = (round(float(value), 2) for value in np.quantile(hours, (0.25, 0.5, 0.75)))
    return {
        "n": len(hours),
        "shadow_earlier": int((hours > 0).sum()),
        "same": int((hours == 0).sum()),
        "shadow_later": int((hours < 0).sum()),
        "median": median,
        "quartiles": [low, high],
    }


def told(alerts: Alerts, voice: str, patient_days: float) -> dict[str, Any]:
    """The alerts of one side and voice, for each patient-day too; None of that where there is no day."""
    counts = alerts.transitions[voice]
    pages = sum(counts[name] for name in PAGES)
    return {
        "transitions": dict(sorted(counts.items())),
        "alerts_per_patient_day": round(pages / patient_days, 4) if patient_days else None,
        "raised_per_patient_day": round(counts["raised"] / patient_days, 4) if patient_days else None,
    }
