"""Planned steps and rows -> predictions. The arithmetic of a chunk, for every kind of series model.

A step graph's closed bins are stepped over in lockstep over patients, then all rows are scored at once. A
model of kind `features` scores the rows alone, and one of whole windows the windows that the plan has kept.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from engines.steps import Prediction, SeriesModel, predicted
from schemas.window import Rows, rows, whole
from worker.patient import Patient
from worker.plan import Chain, Plan, Scored

WINDOWS_AT_ONCE = 256
"""Whole windows made into tensors at a time: of all features each takes 24 KB."""

F32 = NDArray[np.float32]
Run = Callable[[Mapping[str, F32]], Awaitable[dict[str, F32]]]


async def infer(plan: Plan, model: SeriesModel, run: Run) -> Prediction:
    """Step every chain, then score every row; leave each patient its newest recurrent state.

    Args:
        plan: of one chunk; it keeps windows if the model reads whole ones.
        model: the model's layout.
        run: graph inputs -> graph outputs, any number of rows.

    Returns:
        Arrays of len(plan.scored) rows; NaN where the engine fails on a row.
    """
    before = await _states(plan, model, run)
    if not plan.scored:
        return Prediction(np.zeros(0, dtype=np.float32), None, None)
    if model.whole:
        return await _infer_windows(plan.scored, model, run)
    rows = model.chosen(Rows(*(array[: len(plan.scored)] for array in plan.rows)))
    return predicted(await run(model.inputs(rows, before)))


async def _states(plan: Plan, model: SeriesModel, run: Run) -> F32:
    """Step over the closed bins; the state before each row to score, float32[scored, width]."""
    before = np.zeros((len(plan.scored), model.width), dtype=np.float32)
    if not model.stateful:
        return before
    chains = list(plan.chains.values())
    states, first = await _step(chains, model, run)
    for chain, base in zip(chains, first, strict=True):
        _keep(chain.patient, states[base + chain.length])
    base_of = {chain.patient: int(base) for chain, base in zip(chains, first, strict=True)}
    for i, scored in enumerate(plan.scored):
        base = base_of.get(scored.patient)
        if base is not None:
            before[i] = states[base + scored.state]
        elif scored.patient.hidden is not None:
            before[i] = scored.patient.hidden
    return before


async def _infer_windows(scored: list[Scored], model: SeriesModel, run: Run) -> Prediction:
    parts = []
    nothing = np.zeros((0, model.width), dtype=np.float32)
    for at in range(0, len(scored), WINDOWS_AT_ONCE):
        windows = [window_of(score, model) for score in scored[at : at + WINDOWS_AT_ONCE]]
        rows = Rows(*(np.stack(arrays) for arrays in zip(*windows, strict=True)))
        parts.append(await run(model.inputs(rows, nothing)))
    return predicted({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def window_of(scored: Scored, model: SeriesModel) -> Rows:
    """What the model reads of a score's window, oldest row first: float32[rows, features] each.

    A step graph reads a row for each bin of the window, a model of whole windows 48, one of `features` one.
    """
    assert scored.window is not None
    rows = scored.window.rows()
    if model.whole:
        rows = whole(rows)
    elif not model.stateful:
        rows = Rows(*(array[-1:] for array in rows))
    return model.chosen(rows)


async def encode(patients: Sequence[Patient], model: SeriesModel, run: Run) -> list[F32]:
    """The states before the open bins, float32[width] each, from zeros; the patients stay as they are."""
    chains = [Chain(patient) for patient in patients]
    for chain in chains:
        chain.initial = None
        chain.extend(rows(*chain.patient.window(), chain.patient.statics))
    states, first = await _step(chains, model, run)
    return [states[base + chain.length].copy() for chain, base in zip(chains, first, strict=False)]


def _keep(patient: Patient, hidden: F32) -> None:
    """Leave a patient its newest state; one that the engine failed on is computed anew at the next record."""
    if np.isfinite(hidden).all():
        patient.hidden = hidden.copy()
    else:
        patient.outdate()


async def _step(chains: list[Chain], model: SeriesModel, run: Run) -> tuple[F32, NDArray[np.intp]]:
    """All states of all chains, float32[states, width], and the number of each chain's first."""
    lengths = np.array([chain.length for chain in chains], dtype=np.intp)
    first = np.concatenate([[0], np.cumsum(lengths + 1)]).astype(np.intp)
    states = np.zeros((first[-1], model.width), dtype=np.float32)
    # rows[first[c] + k] is the input of step k of chain c; the row after a chain's last step is not used.
    rows = [np.zeros((first[-1], len(model.columns)), dtype=np.float32) for _ in range(3)]
    live = np.zeros(first[-1], dtype=bool)
    for chain, base in zip(chains, first, strict=False):
        if chain.initial is not None:
            states[base] = chain.initial
        at = base
        for steps in chain.steps:
            if steps is None:
                at += 1
                continue
            span = slice(at, at + len(steps.values))
            for target, source in zip(rows, steps, strict=True):
                target[span] = source[:, model.columns]
            live[span] = True
            at = span.stop
    for k in range(int(lengths.max(initial=0))):
        current = first[:-1][lengths > k] + k
        current = current[live[current]]
        if len(current):
            out = await run(model.inputs(Rows(*(array[current] for array in rows)), states[current]))
            states[current + 1] = model.states(out)
    return states, first[:-1]
