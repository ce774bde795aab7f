"""What one chunk does, on its way through the path."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from schemas.messages import Rejection
from worker.decide import Step
from worker.decode import Record
from worker.early_warning import Warned
from worker.feedback import Said
from worker.findings import Imaged
from worker.messages import Voice
from worker.patient import Patient
from worker.plan import Plan

Fate = Literal["scored", "stored", "duplicate", "dead_lettered", "skipped"]
"""`skipped` is a record that an earlier owner has already given its fate."""


class Lapse(NamedTuple):
    """An expiry of a patient that starts anew with the record at position `at` of the chunk.

    voice: who speaks, of an imaging latch; None for those whose voice every patient's alerts have.
    """

    at: int
    patient_id: str
    step: Step
    voice: Voice | None


class Change:
    """What a chunk did to the patients: a plan to compute, and every record's fate so far.

    beside: rows of records that change a patient but nothing that the model reads: for NEWS2 alone.
    risks: float32[scored], of the plan's scores, once the model has answered.
    steps: by number of the score in the plan, the transitions it caused.
    warned: NEWS2's transitions.
    imaged: transitions of the imaging model's.
    said: feedback on alerts, of all latches but the imaging one, which has heard it.
    renewed: (position, patient as it was) of patients that start anew with a record of the chunk.
    """

    def __init__(self, chunk: Sequence[Record], *, keeps_windows: bool) -> None:
        self.plan = Plan(len(chunk), keeps_windows=keeps_windows)
        self.beside = Plan(len(chunk))
        self.fates: list[Fate] = ["dead_lettered"] * len(chunk)
        self.rejections: dict[int, list[Rejection]] = {}
        self.accepted: list[int] = [0] * len(chunk)
        self.risks = np.zeros(0, dtype=np.float32)
        self.steps: dict[int, list[Step]] = {}
        self.warned: list[Warned] = []
        self.imaged: list[Imaged] = []
        self.said: list[Said] = []
        self.renewed: list[tuple[int, Patient]] = []
