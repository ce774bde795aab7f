"""What people say of alerts, on its way to the latches.

Feedback is a record of the vitals topic, in the patient's own partition, so its place among the patient's
records is in the log, and what it keeps quiet is the same whenever the log is read. `feedback_topic.py`
brings what is sent to the feedback topic there.
"""

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from schemas.latch import Quiet, Which
from schemas.messages import AlertReference, FeedbackRecord
from worker.partition import Place
from worker.patient import Patient

FEEDBACK_IDS = b"feedback"
"""Whose event ids feedback's are."""


class Said(NamedTuple):
    """Feedback at position `at` of a chunk, for one of a patient's latches."""

    at: int
    patient: Patient
    which: Which
    quiet: Quiet
    record: FeedbackRecord


def place_of(alert: AlertReference) -> tuple[Place, int] | None:
    """The partition whose records an alert rests on and the offset that opened its episode; None for none."""
    parts = alert.episode.rsplit("/", 2)
    name, _, topic = parts[0].rpartition("/")
    if len(parts) < 3 or not name or not topic or not all(p.isascii() and p.isdigit() for p in parts[1:]):
        return None
    if max(map(len, parts[1:])) > 18:
        return None
    return Place(name, topic, int(parts[1])), int(parts[2])


def quiet_of(said: FeedbackRecord, place: Place, offset: int) -> Quiet | None:
    """What feedback at an offset keeps quiet; None if its alert is of no earlier record of its partition."""
    found = place_of(said.alert)
    if found is None or found[0] != place or found[1] >= offset:
        return None
    return Quiet(found[1], said.alert.sequence, said.action == "dismissed")


def hear(said: Said) -> None:
    """Give feedback to its latch; late, on an older alert, it takes nothing back of what a newer one got."""
    _, patient, which, quiet, _ = said
    latch = patient.latches[which]
    if latch.quiet is None or quiet[:2] >= latch.quiet[:2]:
        patient.latches[which] = latch._replace(quiet=quiet)


class Hearing:
    """Gives a chunk's feedback to the latches of one kind, each in its turn among the records."""

    def __init__(self, said: Iterable[Said], which: Which) -> None:
        self._left = deque(each for each in said if each.which == which)

    def until(self, at: int | None) -> None:
        """Hear what stands before position `at`, or all that is left."""
        while self._left and (at is None or self._left[0].at < at):
            hear(self._left.popleft())
