"""One input partition while this worker owns it."""

import asyncio
import heapq
import secrets
import time
from collections.abc import Iterable
from typing import NamedTuple

from schemas.latch import LATCHES, Which
from worker.patient import F32, FORGET_MS, Patient

QUIET_S = 3600.0
"""A patient of whom this process took a record within this time is not silent, whatever timestamps say."""


class Place(NamedTuple):
    """A partition's place in the input log; names its episodes."""

    cluster: str
    topic: str
    partition: int


class Lease:
    """The right to write a partition's state: a token that changes with every checkpoint."""

    __slots__ = ("token",)

    def __init__(self) -> None:
        self.token = secrets.token_hex(8)


class Prepared(NamedTuple):
    """Recurrent states under a model that is about to serve.

    model: its fingerprint.
    states: by patient, the state from which nothing may have changed since, the very object, and the new one.
    """

    model: str
    states: dict[str, tuple[F32, F32]]


class Partition:
    """Memory and progress of one partition.

    patients: by patient id.
    model: fingerprint of the model that the patients' recurrent states belong to.
    prepared: states under a model that is about to serve, if there are any.
    position: offset after the last record whose publishes are confirmed.
    live_from: records before it only rebuild state and publish nothing.
    seen_s: when this process last took a record of a patient, `perf_counter` seconds; housekeeping only.
    dirty: ids of patients changed since the last checkpoint.
    gone: ids of patients forgotten since the last checkpoint.
    expired_early: patient and latch whose expiry a timer has published, and no record of theirs since.
    unanswered: offset of the first record that the model has not answered, while NEWS2 answers alone.
    warned: NEWS2's alerts of records before this offset were confirmed before the memory was made.
    lease: the right to write the state in Redis; None while there is none.
    whole: false while a chunk is being applied; state that stayed so is never stored.
    lock: held while a chunk is handled; a checkpoint takes its snapshot between chunks.
    checkpointing: held during a checkpoint, so that an older snapshot never follows a newer one.
    """

    def __init__(self, place: Place, position: int, live_from: int) -> None:
        self.place = place
        self.patients: dict[str, Patient] = {}
        self.model = ""
        self.prepared: Prepared | None = None
        self.position = position
        self.live_from = live_from
        self.dirty: set[str] = set()
        self.gone: set[str] = set()
        self.lease: Lease | None = None
        self.began_s = time.perf_counter()
        self.seen_s: dict[str, float] = {}
        self.expired_early: set[tuple[str, Which]] = set()
        self.unanswered: int | None = None
        self.warned = 0
        self.committed = -1
        self.metadata = ""
        self.whole = True
        self.lock = asyncio.Lock()
        self.checkpointing = asyncio.Lock()

    @property
    def answered(self) -> int:
        """Offset up to which the model has answered."""
        return self.position if self.unanswered is None else self.unanswered

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

    def belong(self, model: str) -> None:
        """Go on with a model, by its fingerprint. Another one's recurrent states mean nothing to it.

        Each patient's is the one that was prepared, or is computed anew from its window at its next record.
        """
        if model == self.model:
            return
        self.model = model
        prepared, self.prepared = self.prepared, None
        states = prepared.states if prepared is not None and prepared.model == model else {}
        for patient in self.patients.values():
            before, new = states.get(patient.id, (None, None))
            # A closed bin that was added or changed since would have made another state, in another array.
            if new is not None and before is patient.hidden and not patient.failed:
                patient.hidden = new
            else:
                patient.outdate()

    def stream_ms(self) -> int:
        """Stream time: the second newest patient's last record, ms; the only patient's where there is one.

        Two must agree, so that one device whose clock is days ahead ends nobody else's episode.
        """
        newest = heapq.nlargest(2, (patient.touched_ms for patient in self.patients.values()))
        return newest[-1] if newest else 0

    def quiet(self) -> list[Patient]:
        """Patients of whom this process has seen nothing for a while.

        A recording that is sent beside a live feed is old by stream time, but not silent.
        """
        limit = time.perf_counter() - QUIET_S
        return [p for key, p in self.patients.items() if self.seen_s.get(key, self.began_s) < limit]

    def forget_silent(self) -> None:
        """Drop patients silent for so long, in record time, that nothing of them matters any more.

        One with an open episode stays until its expiry has been published.
        """
        limit = self.stream_ms() - FORGET_MS
        for patient in self.quiet():
            key = patient.id
            if patient.touched_ms < limit and not self._open(patient):
                del self.patients[key]
                self.seen_s.pop(key, None)
                self.dirty.discard(key)
                self.came(key)
                self.gone.add(key)

    def came(self, patient_id: str, latches: Iterable[Which] = LATCHES) -> None:
        """Note that a patient is not silent, or forgotten: what expired early of these may do so again."""
        self.expired_early -= {(patient_id, which) for which in latches}

    def _open(self, patient: Patient) -> bool:
        """Whether an episode of the patient's is open whose expiry has not been published."""
        return any(
            latch.episode is not None
            and latch.episode.active
            and (patient.id, which) not in self.expired_early
            for which, latch in patient.latches.items()
        )
