"""Planned steps and rows -> risks. The recurrent arithmetic of a chunk, in lockstep over patients."""

from collections.abc import Awaitable, Callable, Mapping
from math import prod

import numpy as np
from numpy.typing import NDArray

from engines.steps import columns
from schemas.model_config import ModelConfig
from schemas.window import Rows
from worker.patient import Patient
from worker.plan import Chain, Plan

F32 = NDArray[np.float32]
Run = Callable[[Mapping[str, F32]], Awaitable[dict[str, F32]]]


class StepModel:
    """How a windowed-series model's tensors map to the feature table and to one flat state vector.

    columns: channel of each of the model's features.
    width: length of the flat state.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.columns = columns(config)
        self.channels = frozenset(int(channel) for channel in self.columns)
        self._pairs: list[tuple[str, str, tuple[int, ...], slice]] = []
        at = 0
        for pair in config.state:
            size = prod(pair.dims)
            self._pairs.append((pair.input, pair.output, pair.dims, slice(at, at + size)))
            at += size
        self.width = at

    def inputs(self, rows: Rows, states: F32) -> dict[str, F32]:
        """The graph's inputs from rows, float32[n, features] each, and states float32[n, width]."""
        tensors: dict[str, F32] = rows._asdict()
        for name, _, dims, part in self._pairs:
            tensors[name] = np.ascontiguousarray(states[:, part]).reshape(-1, *dims)
        return tensors

    def states(self, outputs: Mapping[str, F32]) -> F32:
        """The flat states, float32[n, width], from the graph's outputs."""
        return np.concatenate(
            [outputs[name].reshape(len(outputs[name]), -1) for _, name, _, _ in self._pairs], axis=1
        )


async def infer(plan: Plan, model: StepModel, run: Run) -> F32:
    """Step every chain, then score every row; leave each patient its newest recurrent state.

    Args:
        plan: of one chunk.
        model: the model's layout.
        run: graph inputs -> graph outputs, any number of rows.

    Returns:
        float32[len(plan.scored)], calibrated risks; NaN where the engine fails on a row.
    """
    chains = list(plan.chains.values())
    states, first = await _step(chains, model, run)
    for chain, base in zip(chains, first, strict=True):
        _keep(chain.patient, states[base + chain.length])
    n = len(plan.scored)
    if not n:
        return np.zeros(0, dtype=np.float32)
    base_of = {chain.patient: int(base) for chain, base in zip(chains, first, strict=True)}
    before = np.zeros((n, model.width), dtype=np.float32)
    for i, scored in enumerate(plan.scored):
        base = base_of.get(scored.patient)
        if base is not None:
            before[i] = states[base + scored.state]
        elif scored.patient.hidden is not None:
            before[i] = scored.patient.hidden
    rows = Rows(*(np.ascontiguousarray(array[:n, model.columns]) for array in plan.rows))
    return (await run(model.inputs(rows, before)))["risk"]


def _keep(patient: Patient, hidden: F32) -> None:
    """Leave a patient its newest state; one that the engine failed on is computed anew at the next record."""
    if np.isfinite(hidden).all():
        patient.hidden = hidden.copy()
    else:
        patient.hidden, patient.failed = None, True


async def _step(chains: list[Chain], model: StepModel, run: Run) -> tuple[F32, NDArray[np.intp]]:
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
