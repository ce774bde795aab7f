"""Scores that alert -> the contribution of each of their inputs, by making one input ordinary at a time.

`engines/explain.py` says what a contribution is, and computes it slowly, feature by feature, to check this.
A step graph is stepped over the whole window again from zeros, once for each measured feature, in lockstep
over all variants of all alerts, so that what the state remembers of the feature is ordinary too. That takes
some hundred times the work of a score, and is done for alerts alone.

The result depends on the score's window alone, as the risk does: not on chunks, batches or other alerts.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engines.explain import ordinary
from engines.steps import SeriesModel
from schemas.window import NEVER, Rows
from worker.infer import WINDOWS_AT_ONCE, Run, window_of
from worker.plan import Plan

VARIANTS_AT_ONCE = 1024
"""Variants stepped together: engine calls of a few ms each, between which other partitions' scores run."""

F32 = NDArray[np.float32]
Numbers = NDArray[np.intp]


async def explain(plan: Plan, alerting: Sequence[int], risks: F32, model: SeriesModel, run: Run) -> F32:
    """Contributions of the model's features to some scores.

    Args:
        plan: of a chunk; keeps windows.
        alerting: numbers of the scores to explain, each once.
        risks: float32[scored], of all scores.
        model: the model's layout.
        run: graph inputs -> graph outputs, any number of rows.

    Returns:
        float32[len(alerting), features]; NaN where a feature was never measured, and where the engine fails.
    """
    found = [window_of(plan.scored[i], model) for i in alerting]
    lengths = np.array([len(window.values) for window in found], dtype=np.intp)
    windows = _stacked(found, int(lengths.max(initial=1)), len(model.columns))
    # A variant is the number of a window and the feature that is ordinary in it.
    measured = [np.flatnonzero(window.elapsed[-1] < NEVER) for window in found]
    of = np.repeat(np.arange(len(found)), [len(chosen) for chosen in measured])
    features = np.concatenate([np.zeros(0, dtype=np.intp), *measured])
    out = np.full((len(found), len(model.columns)), np.nan, dtype=np.float32)
    together = WINDOWS_AT_ONCE if model.whole else VARIANTS_AT_ONCE
    for at in range(0, len(of), together):
        n, feature = of[at : at + together], features[at : at + together]
        if model.whole:
            then = await _read(windows, n, feature, model, run)
        else:
            then = await _step(windows, lengths[n], n, feature, model, run)
        out[n, feature] = risks[np.asarray(alerting)[n]] - then
    return out


def _stacked(windows: Sequence[Rows], steps: int, features: int) -> Rows:
    """Windows one above the other, float32[windows, steps, features] each; zeros after a short one's end."""
    out = Rows(*(np.zeros((len(windows), steps, features), dtype=np.float32) for _ in range(3)))
    for i, window in enumerate(windows):
        for target, array in zip(out, window, strict=True):
            target[i, : len(array)] = array
    return out


async def _step(
    windows: Rows, lengths: Numbers, of: Numbers, feature: Numbers, model: SeriesModel, run: Run
) -> F32:
    """Risk at the end of each variant, stepped from zeros in lockstep; lengths are the variants'."""
    states = np.zeros((len(of), model.width), dtype=np.float32)
    risks = np.full(len(of), np.nan, dtype=np.float32)
    for k in range(int(lengths.max(initial=0))):
        live = np.flatnonzero(lengths > k)
        rows = ordinary(Rows(*(array[of[live], k] for array in windows)), feature[live], model)
        out = await run(model.inputs(rows, states[live]))
        states[live], risks[live] = model.states(out), out["risk"]
    return risks


async def _read(windows: Rows, of: Numbers, feature: Numbers, model: SeriesModel, run: Run) -> F32:
    """Risk of each variant of whole windows."""
    rows = ordinary(Rows(*(array[of] for array in windows)), feature, model)
    return (await run(model.inputs(rows, np.zeros((len(of), 0), dtype=np.float32))))["risk"]
