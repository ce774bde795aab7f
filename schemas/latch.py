"""What deciding remembers of a patient; kept in Redis between records.

A patient has three latches: the model's, over risks, NEWS2's, over points, and the imaging model's, over the
risks of its findings. "Risk" below is any of them.

A latch has two halves. The *trace* depends only on the recent risks, so it can be rebuilt from a bounded
stretch of the log. The *episode* changes only with an alert, so it can be rebuilt from the alerts. What
people say of alerts comes as records of the log, and keeps an episode *quiet*.
"""

from typing import Literal, NamedTuple

Which = Literal["risk", "news2", "imaging"]
"""Which of a patient's latches."""

LATCHES: tuple[Which, ...] = ("risk", "news2", "imaging")


class Trace(NamedTuple):
    """What the recent risks left behind; times in ms since the epoch.

    above: per level, since when the risk has been at or over its entry threshold, or None.
    below: since when it has been under the exit threshold, or None.
    time: of the last score. risk: the last score. offset: of the record that caused it.
    trend: (hour number, last risk in that hour), oldest first, at most `TREND_MS` old.
    """

    above: tuple[int | None, ...]
    below: int | None
    time: int
    risk: float
    offset: int
    trend: tuple[tuple[int, float], ...]


class Episode(NamedTuple):
    """The last episode of alerts, open or resolved.

    opened: offset of the record that opened it.
    level: highest level so far, index into the levels of the policy that its last alert named; -1 for under
        all of them.
    sequence: of its last alert.
    raised, alerted: times of its first and its last alert, ms since the epoch.
    alerted_risk: risk in its last alert.
    active: whether it is open.
    severity, threshold: of the highest level so far, as its last alert told them: policies can change and
        have other levels.
    """

    opened: int
    level: int
    sequence: int
    raised: int
    alerted: int
    alerted_risk: float
    active: bool
    severity: str
    threshold: float


class Quiet(NamedTuple):
    """What a person said of an alert: it keeps its episode quiet until things worsen.

    opened: of the alert's episode. sequence: of the alert; a later alert of the episode needs its own.
    dismissed: whether the alert was dismissed; else it was acknowledged or confirmed.
    """

    opened: int
    sequence: int
    dismissed: bool


class Latch(NamedTuple):
    """What a decision remembers of a patient."""

    trace: Trace | None = None
    episode: Episode | None = None
    quiet: Quiet | None = None
