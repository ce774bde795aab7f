"""Metrics against cases worked by hand."""

import numpy as np
import pytest

from engines import metrics

DIED = np.array([0, 0, 1, 1])
RISK = np.array([0.1, 0.4, 0.35, 0.8])


def test_auroc() -> None:
    # Of four pairs of a death and a survivor, the death has the greater risk in three.
    assert metrics.auroc(DIED, RISK) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("risk", "expected"),
    [([0, 0, 1, 1], 1.0), ([1, 1, 0, 0], 0.0), ([5, 5, 5, 5], 0.5), ([0, 1, 1, 2], 0.875)],
)
def test_auroc_at_its_ends_and_with_ties(risk: list[int], expected: float) -> None:
    assert metrics.auroc(DIED, np.array(risk)) == pytest.approx(expected)


def test_auprc() -> None:
    # Falling thresholds: precision 1 at recall 1/2, 1/2 at 1/2, 2/3 at 1.
    assert metrics.auprc(DIED, RISK) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_auprc_takes_tied_risks_together() -> None:
    # All tied: one threshold, precision is the prevalence.
    assert metrics.auprc(np.array([1, 0, 0, 0]), np.full(4, 0.3)) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("threshold", "sensitivity", "predictivity"),
    [(0.35, 1.0, 2 / 3), (0.36, 0.5, 0.5), (0.8, 0.5, 1.0), (0.9, 0.0, 0.0)],
)
def test_event1(threshold: float, sensitivity: float, predictivity: float) -> None:
    assert metrics.sensitivity(DIED, RISK, threshold) == pytest.approx(sensitivity)
    assert metrics.positive_predictivity(DIED, RISK, threshold) == pytest.approx(predictivity)
    assert metrics.event1(DIED, RISK, threshold) == pytest.approx(min(sensitivity, predictivity))


def test_best_event1_threshold() -> None:
    assert metrics.best_event1_threshold(DIED, RISK) == pytest.approx(0.35)


def test_brier() -> None:
    assert metrics.brier(DIED, RISK) == pytest.approx((0.01 + 0.16 + 0.4225 + 0.04) / 4)


def test_expected_calibration_error() -> None:
    # Two groups by risk: {0.1, 0.35} with one death, {0.4, 0.8} with one death.
    expected = (abs(0.225 - 0.5) * 2 + abs(0.6 - 0.5) * 2) / 4
    assert metrics.expected_calibration_error(DIED, RISK, groups=2) == pytest.approx(expected)


def test_a_calibrated_risk_has_no_calibration_error() -> None:
    died = np.array([1, 0, 0, 0] * 10)
    assert metrics.expected_calibration_error(died, np.full(40, 0.25), groups=1) == pytest.approx(0)
