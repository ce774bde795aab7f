"""One input partition while this worker owns it."""

import asyncio
from typing import NamedTuple

from worker.state import FORGET_MS, Patient


class Place(NamedTuple):
    """A partition's place in the input log; names its episodes."""

    cluster: str
    topic: str
    partition: int


class Partition:
    """Memory and progress of one partition.

    patients: by patient id.
    position: offset after the last record whose publishes are confirmed.
    live_from: records before it only rebuild state and publish nothing.
    newest_ms: newest record timestamp seen; the partition's stream time.
    dirty: ids of patients changed since the last checkpoint.
    gone: ids of patients forgotten since the last checkpoint.
    token: the fencing token in Redis; None while there is none.
    whole: false while a chunk is being applied; state that stayed so is never stored.
    lock: held while a chunk is handled; a checkpoint takes its snapshot between chunks.
    checkpointing: held during a checkpoint, so that an older snapshot never follows a newer one.
    """

    def __init__(self, place: Place, position: int, live_from: int) -> None:
        self.place = place
        self.patients: dict[str, Patient] = {}
        self.position = position
        self.live_from = live_from
        self.newest_ms = 0
        self.dirty: set[str] = set()
        self.gone: set[str] = set()
        self.token: str | None = None
        self.expired_early: set[str] = set()
        self.committed = -1
        self.whole = True
        self.lock = asyncio.Lock()
        self.checkpointing = asyncio.Lock()

    @property
    def replaying(self) -> bool:
        """Whether the next record only rebuilds state."""
        return self.position < self.live_from

    def patient(self, patient_id: str, timestamp_ms: int) -> Patient:
        """The patient as a record finds it: known, or new and not yet in `patients`.

        One that was silent for too long for anything to be left starts anew, whether or not a checkpoint
        has dropped it meanwhile.
        """
        known = self.patients.get(patient_id)
        if known is None:
            return Patient(patient_id)
        if timestamp_ms <= known.touched_ms + FORGET_MS:
            return known
        anew = Patient(patient_id)
        anew.stored_bins = known.stored_bins
        return anew

    def forget_silent(self) -> None:
        """Drop patients silent for so long, in record time, that nothing of them matters any more.

        One with an open episode stays until its expiry has been published.
        """
        limit = self.newest_ms - FORGET_MS
        for key in [key for key, patient in self.patients.items() if patient.touched_ms < limit]:
            episode = self.patients[key].latch.episode
            if episode is None or not episode.active or key in self.expired_early:
                del self.patients[key]
                self.dirty.discard(key)
                self.expired_early.discard(key)
                self.gone.add(key)
