"""Risk + policy + latch -> alert transitions. A pure function: it reads no clock but event time.

The same machine serves risks in [0, 1] under a model's policy and points under NEWS2's; "risk" is either.

A latch has two halves. The *trace* depends only on the recent risks: since when the risk has been above
each level and below the exit, clamped to the times the policy asks for, so that it can be rebuilt from a
bounded stretch of the log. The *episode* changes only with an alert, so it can be rebuilt from the alerts.

What a person says of an alert keeps its episode *quiet*: no update until the risk is worse by as much as
updates ask for, or, if the alert was dismissed and there is a higher severity, until the severity rises. That
it ends is always told.

Time is the patient's newest event time, so it never runs backwards.
"""

from typing import NamedTuple

from schemas.latch import Episode, Latch, Quiet, Trace
from schemas.messages import Transition
from schemas.model_config import AlertPolicy

TREND_MS = 6 * 3_600_000
"""How long the trend in an alert reaches back."""


class Step(NamedTuple):
    """One transition to publish: the episode after it, the score it rests on, its event time, its policy."""

    transition: Transition
    episode: Episode
    trace: Trace
    time: int
    policy: AlertPolicy


def decide(
    policy: AlertPolicy,
    latch: Latch,
    time: int,
    risk: float,
    offset: int,
    held: float | None = None,
    *,
    before: AlertPolicy | None = None,
) -> tuple[Latch, list[Step]]:
    """The latch after one more score, and the transitions that it causes, in order.

    Args:
        policy: the policy in force.
        latch: the latch before.
        time: event time of the score, ms; not before the latch's.
        risk: calibrated probability, or points.
        offset: of the record that was scored.
        held: what must be below the exit for the episode to resolve, where that is not the risk itself.
        before: the policy in force at the patient's record before, where it is another: whether the episode
            has expired since is for that one to say, as it is for a timer, which knows no later record.
    """
    steps: list[Step] = []
    latch, expired = expire(before or policy, latch, time)
    if expired is not None:
        steps.append(expired)
    latch = fitted(policy, latch)
    trace = _extend(policy, latch.trace, time, risk, offset, risk if held is None else held)
    known = remembered(policy, latch.episode, time)
    transition = _transition(policy, known, trace, latch.quiet)
    if transition is None:
        return Latch(trace, known, latch.quiet), steps
    level = _level(policy, trace)
    if transition == "raised" or known is None:
        reached = policy.levels[level]
        after = Episode(offset, level, 0, time, time, risk, True, reached.severity, float(reached.enter))
    else:
        level = max(level, told_level(policy, known))
        after = Episode(
            known.opened,
            level,
            known.sequence + 1,
            known.raised,
            time,
            risk,
            transition != "resolved",
            *_named(policy, level, known, transition),
        )
    steps.append(Step(transition, after, trace, time, policy))
    return Latch(trace, after, latch.quiet), steps


def expire(policy: AlertPolicy, latch: Latch, now: int) -> tuple[Latch, Step | None]:
    """Forget a latch whose patient has been silent for the expiry time at `now`, ms of event time.

    An open episode gives an `expired` transition, dated at the expiry.
    """
    trace, episode, _ = latch
    if trace is None or now <= trace.time + seconds_ms(policy.expiry_s):
        return latch, None
    if episode is None or not episode.active:
        return Latch(), None
    at = trace.time + seconds_ms(policy.expiry_s)
    ended = episode._replace(sequence=episode.sequence + 1, alerted=at, active=False)
    return Latch(), Step("expired", ended, trace, at, policy)


def fitted(policy: AlertPolicy, latch: Latch) -> Latch:
    """A latch under a policy that may have other levels than the last: its trace begins anew then."""
    levels, trace = len(policy.levels), latch.trace
    if trace is None or len(trace.above) == levels:
        return latch
    return latch._replace(trace=trace._replace(above=(None,) * levels, below=None))


def told_level(policy: AlertPolicy, episode: Episode) -> int:
    """The level that an episode has reached, under a policy that may not be the one that said so.

    It is that of the same severity, else the highest whose entry is not above the threshold that was told; -1
    for none. So whatever a changed policy newly calls for is told, however many levels the one before had.
    """
    under = -1
    for i, level in enumerate(policy.levels):
        if level.severity == episode.severity:
            return i
        if level.enter <= episode.threshold:
            under = i
    return under


def _named(policy: AlertPolicy, level: int, known: Episode, transition: Transition) -> tuple[str, float]:
    """Severity and threshold of a level reached, or those that were told where no other level was."""
    there = policy.levels[level]
    if transition == "escalated" or (level >= 0 and there.severity == known.severity):
        return there.severity, float(there.enter)
    return known.severity, known.threshold


def remembered(policy: AlertPolicy, episode: Episode | None, time: int) -> Episode | None:
    """The episode as far as it matters at `time`: a closed one only while its refractory time runs."""
    if episode is None or episode.active or time < episode.alerted + seconds_ms(policy.refractory_s):
        return episode
    return None


def _transition(
    policy: AlertPolicy, episode: Episode | None, trace: Trace, quiet_for: Quiet | None
) -> Transition | None:
    level = _level(policy, trace)
    quiet = episode is not None and trace.time < episode.alerted + seconds_ms(policy.refractory_s)
    told = -1 if episode is None else told_level(policy, episode)
    if episode is None or not episode.active:
        return "raised" if level >= 0 and (not quiet or level > told) else None
    if level > told:
        return "escalated"
    if quiet:
        return None
    if trace.below is not None and trace.time - trace.below >= seconds_ms(policy.resolve_s):
        return "resolved"
    change = trace.risk - episode.alerted_risk
    if quiet_for is not None and (quiet_for.opened, quiet_for.sequence) == (episode.opened, episode.sequence):
        # Whoever has seen it hears of it again when it is worse; a dismissed one in a higher severity, where
        # there is one.
        can_rise = told < len(policy.levels) - 1
        change = 0.0 if quiet_for.dismissed and can_rise else max(change, 0.0)
    return "updated" if abs(change) >= policy.update_delta else None


def _level(policy: AlertPolicy, trace: Trace) -> int:
    """Highest level whose persistence is reached; -1 for none."""
    reached = -1
    for i, (level, since) in enumerate(zip(policy.levels, trace.above, strict=True)):
        if since is not None and trace.time - since >= seconds_ms(level.persistence_s):
            reached = i
    return reached


def _extend(
    policy: AlertPolicy, trace: Trace | None, time: int, risk: float, offset: int, held: float
) -> Trace:
    hour = time // 3_600_000
    trend: tuple[tuple[int, float], ...] = ()
    above: tuple[int | None, ...] = (None,) * len(policy.levels)
    below: int | None = None
    if trace is not None:
        above, below = trace.above, trace.below
        trend = tuple(
            point for point in trace.trend if point[0] != hour and point[0] * 3_600_000 > time - TREND_MS
        )
    return Trace(
        tuple(
            _since(since, risk >= level.enter, time, seconds_ms(level.persistence_s))
            for since, level in zip(above, policy.levels, strict=True)
        ),
        _since(below, held < policy.exit, time, seconds_ms(policy.resolve_s)),
        time,
        risk,
        offset,
        (*trend, (hour, risk)),
    )


def _since(since: int | None, holds: bool, time: int, enough: int) -> int | None:
    """Since when a condition has held, not further back than is `enough` to know."""
    if not holds:
        return None
    return time if since is None else max(since, time - enough)


def seconds_ms(seconds: float) -> int:
    """Seconds in whole milliseconds."""
    return round(seconds * 1000)
