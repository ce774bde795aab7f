"""Metric names and labels keep to base units, and to labels that name nobody."""

import re

import pytest
from prometheus_client.metrics import MetricWrapperBase

from worker import metrics

DECLARED: list[MetricWrapperBase] = [m for m in vars(metrics).values() if isinstance(m, MetricWrapperBase)]
LABELS = {
    *("topic", "partition", "fate", "outcome", "stage", "reason", "model", "version", "backend"),
    *("transition", "severity", "feature", "how", "action", "source", "reference", "bin"),
}
UNITS = ("_seconds", "_bytes", "_ratio", "_rows", "_records", "_info")


@pytest.mark.parametrize("metric", DECLARED, ids=lambda metric: metric._name)
def test_name_and_labels(metric: MetricWrapperBase) -> None:
    assert re.fullmatch(r"riskstream_[a-z0-9_]+", metric._name)
    assert not re.search(r"_(ms|millis|milliseconds|minutes|hours|mb|kb|percent)(_|$)", metric._name)
    assert set(metric._labelnames) <= LABELS
    if metric._type == "histogram":
        assert metric._name.endswith(UNITS)
    if metric._type == "gauge":
        assert not metric._name.endswith("_total")


def test_names_are_used_once() -> None:
    names = [metric._name for metric in DECLARED]
    assert len(names) == len(set(names)) > 20
