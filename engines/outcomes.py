"""Risks beside the outcomes that came: calibration by bands of risk and in the large, order."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines import judge

BANDS = (0.0, 0.05, 0.1, 0.2, 0.4, 1.0)
"""Edges of the bands of risk: a ward thinks of one patient in twenty, ten, five; the last includes 1."""


def beside(risk: Sequence[float], outcome: Sequence[int]) -> dict[str, Any]:
    """Expected and observed outcomes.

    Args:
        risk: of each patient, 0 to 1; one at least.
        outcome: of each patient, 0 or 1.

    Returns:
        "patients", "positives"; "expected": mean risk; "observed": share of positives, with "interval",
        Wilson's of 95%; "bands": the same of each band of risk with patients, with "from" and "to";
        "figures": `judge.judged` without curves (auroc, ece, calibration_in_the_large, ..., with bootstrap
        intervals), None where all patients had the same outcome.
    """
    risks, truth = np.asarray(risk, dtype=np.float64), np.asarray(outcome, dtype=np.float64)
    band = np.clip(np.searchsorted(BANDS, risks, side="right") - 1, 0, len(BANDS) - 2)
    figures = None
    if len(np.unique(truth)) == 2:
        figures = judge.judged(truth, risks, None, curves=False)
    return {
        **_share(risks, truth),
        "bands": [
            {"from": BANDS[k], "to": BANDS[k + 1], **_share(risks[band == k], truth[band == k])}
            for k in np.unique(band).tolist()
        ],
        "figures": figures,
    }


def _share(risks: NDArray[np.float64], truth: NDArray[np.float64]) -> dict[str, Any]:
    observed = float(np.mean(truth))
    return {
        "patients": len(truth),
        "positives": int(truth.sum()),
        "expected": round(float(np.mean(risks)), 4),
        "observed": round(observed, 4),
        "interval": judge.wilson(observed, len(truth)),
    }
