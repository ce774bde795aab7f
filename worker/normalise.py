"""Coded value and unit -> a feature value in its canonical unit, or the reason why not. Pure.

A quantity of a feature is the same whatever unit it came in; dates are judged against the record's own
timestamp, so that the same log always gives the same answer.
"""

from functools import lru_cache
from typing import NamedTuple

from schemas import units
from schemas.errors import UnitError
from schemas.features import BY_LOINC, BY_MDC, FEATURES, LOINC, MDC
from schemas.messages import Rejection
from worker.decode import Event, milliseconds

_SYSTEMS = {LOINC: BY_LOINC, MDC: BY_MDC}

CORRECTED = frozenset({"amended", "corrected"})
WITHDRAWN = frozenset({"entered-in-error", "cancelled"})


class Measurement(NamedTuple):
    """One accepted observation.

    path: its place in the message.
    channel: position in the feature table.
    value: in the feature's canonical unit.
    status: FHIR observation status.
    """

    path: str
    channel: int
    value: float
    time_ms: int
    status: str


class _Scale(NamedTuple):
    channel: int
    scale: float
    offset: float
    low: float
    high: float


def normalise(
    event: Event, timestamp_ms: int, past_ms: int, future_ms: int
) -> tuple[list[Measurement], list[Rejection]]:
    """The measurements of an event, in message order, and why the others were refused.

    Args:
        event: a decoded record.
        timestamp_ms: the record's timestamp.
        past_ms: how far before it an observation may lie.
        future_ms: how far after it.
    """
    accepted: list[Measurement] = []
    rejected = list(event.rejections)
    for position, observation in event.observations:
        path = f"$.observations[{position}]"
        time_ms = event.time_ms if observation.time is None else milliseconds(observation.time)
        if not plausible(time_ms, timestamp_ms, past_ms, future_ms):
            rejected.append(Rejection("implausible-time", path + ".time"))
            continue
        try:
            channel, scale, offset, low, high = _scale(observation.system, observation.code, observation.unit)
            value = observation.value * scale + offset
            if observation.status not in WITHDRAWN and not low <= value <= high:
                units.accept(channel, observation.value, observation.unit)
        except UnitError as error:
            rejected.append(Rejection(error.reason, path + error.path))
            continue
        accepted.append(Measurement(path, channel, value, time_ms, observation.status))
    return accepted, rejected


def plausible(time_ms: int, timestamp_ms: int, past_ms: int, future_ms: int) -> bool:
    """Whether a time is near enough to its record's timestamp."""
    return timestamp_ms - past_ms <= time_ms <= timestamp_ms + future_ms


@lru_cache(maxsize=4096)
def _scale(system: str, code: str, unit: str) -> _Scale:
    codes = _SYSTEMS.get(system)
    if codes is None:
        raise UnitError("the code system is not known", reason="unknown-code-system", path=".system")
    channel = codes.get(code)
    if channel is None:
        raise UnitError("the code is not in the feature table", reason="unknown-code", path=".code")
    feature = FEATURES[channel]
    return _Scale(channel, *units.conversion(channel, unit), feature.low, feature.high)
