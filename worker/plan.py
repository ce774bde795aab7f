"""What a chunk asks of the engine: closed bins to step over, rows to score."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.stored import KeptFinding
from schemas.window import CHANNELS, HOUR_MS, WINDOW_BINS, Rows, rows
from worker.patient import F32, Patient


class Window(NamedTuple):
    """A patient's window as it was at one record; later records of the chunk do not change it.

    start, open: first non-empty bin, and the bin in progress.
    values, counts: float32 and uint8[slots, channels], the rings of `worker.patient.Cells`.
    statics: float32[len(STATIC)].
    """

    start: int
    open: int
    values: F32
    counts: NDArray[np.uint8]
    statics: F32

    def rows(self) -> Rows:
        """Rows of the window's bins, float32[bins, channels] each, the open one last."""
        slots = np.arange(self.start, self.open + 1) % WINDOW_BINS
        return rows(self.values[slots], self.counts[slots].astype(np.float32), self.statics)


class Plan:
    """What a chunk asks of the engine: chains of steps over closed bins, and rows to score.

    keeps_windows: whether each score keeps the window it rests on, as models of whole windows and
        explanations need; some 10 KB a record.
    rows: the rows to score, float32[records, channels] each, the first `len(scored)` in use.
    times: ms from the open bin's start to each value in it, uint32[records, channels].
    """

    def __init__(self, records: int, *, keeps_windows: bool = False) -> None:
        self.keeps_windows = keeps_windows
        self.chains: dict[Patient, Chain] = {}
        self.rows = Rows(*(np.zeros((records, CHANNELS), dtype=np.float32) for _ in range(3)))
        self.times: NDArray[np.uint32] = np.zeros((records, CHANNELS), dtype=np.uint32)
        self.scored: list[Scored] = []

    def chain(self, patient: Patient) -> "Chain":
        """The patient's chain, made on first use."""
        chain = self.chains.get(patient)
        if chain is None:
            chain = self.chains[patient] = Chain(patient)
        return chain


class Chain:
    """One patient's recurrent states in this chunk: number 0 is the one it had, each step makes the next.

    A row of `None` stands for a step that sets the state to zeros.
    """

    __slots__ = ("initial", "length", "patient", "steps")

    def __init__(self, patient: Patient) -> None:
        self.patient = patient
        self.initial = patient.hidden
        self.steps: list[Rows | None] = []
        self.length = 0

    def reset(self) -> None:
        """Go on from zeros."""
        self.steps.append(None)
        self.length += 1

    def extend(self, steps: Rows) -> None:
        """Step over closed bins."""
        if len(steps.values):
            self.steps.append(steps)
            self.length += len(steps.values)


class Standing(NamedTuple):
    """What a patient's policies go by: where it lay at a record, and that one's timestamp, ms."""

    care_unit: str | None
    timestamp_ms: int


class Scored(NamedTuple):
    """A record to score, by the plan's row of the same position and state number `state` of its chain.

    time_ms: the patient's newest event time after the record; the time of the decision.
    at: position of the record in the chunk.
    open, carried_times: the patient's at this record; with the plan's times they date every input.
    window: the patient's at this record, where the plan keeps windows.
    care_unit: where the patient lay at this record.
    findings: the patient's at this record.
    before: the patient's, at its record before: by it an episode has expired meanwhile, or not.
    """

    patient: Patient
    at: int
    state: int
    time_ms: int
    open: int
    carried_times: NDArray[np.int64]
    window: Window | None
    care_unit: str | None
    findings: tuple[KeptFinding, ...]
    before: Standing


def input_times(plan: Plan, columns: NDArray[np.intp], i: int | None = None) -> NDArray[np.int64]:
    """Event times in ms of the values in a plan's rows, int64[rows, columns]; of unknown ones meaningless.

    Args:
        columns: channels.
        i: this row alone, all rows if None.
    """
    chosen = slice(0, len(plan.scored)) if i is None else slice(i, i + 1)
    scored = plan.scored[chosen]
    within = plan.times[chosen][:, columns].astype(np.int64)
    opened = np.array([[score.open] for score in scored], dtype=np.int64) * HOUR_MS
    carried = np.stack([score.carried_times for score in scored])[:, columns]
    return np.where(plan.rows.elapsed[chosen][:, columns] == 0, opened + within, carried)
