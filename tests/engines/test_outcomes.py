"""Risks beside the outcomes that came."""

import numpy as np
import pytest

from engines import judge, outcomes


def test_bands_hold_every_patient_once() -> None:
    found = outcomes.beside([0.0, 0.01, 0.05, 0.15, 0.39, 0.4, 1.0], [0, 0, 0, 1, 0, 1, 1])
    bands = {(band["from"], band["to"]): band for band in found["bands"]}
    assert {edges: band["patients"] for edges, band in bands.items()} == {
        (0.0, 0.05): 2,
        (0.05, 0.1): 1,
        (0.1, 0.2): 1,
        (0.2, 0.4): 1,
        (0.4, 1.0): 2,
    }
    assert bands[0.4, 1.0]["expected"] == 0.7
    assert bands[0.4, 1.0]["observed"] == 1.0
    assert bands[0.4, 1.0]["interval"] == judge.wilson(1.0, 2)
    assert (found["patients"], found["positives"], found["observed"]) == (
        7,
        3,
        pytest.approx(3 / 7, abs=1e-4),
    )


def test_true_risks_are_found_true_and_doubled_ones_too_high() -> None:
    rng = np.random.default_rng(0)
    risks = rng.beta(1, 6, 3000)
    died = (rng.random(3000) < risks).astype(int)
    good = outcomes.beside(risks.tolist(), died.tolist())
    low, high = good["figures"]["intervals"]["calibration_in_the_large"]
    assert low < 0 < high
    assert all(band["interval"][0] <= band["expected"] <= band["interval"][1] for band in good["bands"])
    bad = outcomes.beside(np.minimum(2 * risks, 1).tolist(), died.tolist())
    assert bad["figures"]["intervals"]["calibration_in_the_large"][0] > 0.05
    assert bad["figures"]["auroc"] == pytest.approx(good["figures"]["auroc"], abs=1e-3)


def test_one_outcome_alone_gives_no_figures() -> None:
    found = outcomes.beside([0.1, 0.2], [0, 0])
    assert found["figures"] is None
    assert found["observed"] == 0
    assert found["interval"][1] > 0.5
