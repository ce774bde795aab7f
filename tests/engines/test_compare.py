"""How the difference of two engines is counted, and what fp16 does to the shipped models."""

from pathlib import Path

import numpy as np
import pytest

from engines import compare, repository
from engines.errors import DatasetError
from tests import kinds

SHIPPED = [config.name for config in repository.list_models()]


def test_decisions_are_counted_at_each_level() -> None:
    config, _ = kinds.model_of("features")  # enters at 0.3 and 0.6
    reference = np.array([[0.1, 0.30], [0.59, 0.61]], np.float32)
    other = np.array([[0.1, 0.29], [0.60, 0.61]], np.float32)
    content = compare.risk_drift(config, reference, other)
    assert [(d["severity"], d["changed"], d["of"]) for d in content["decisions"]] == [
        ("elevated", 1, 4),
        ("high", 1, 4),
    ]
    assert content["risk"]["max"] == pytest.approx(0.01, abs=1e-6)
    assert content["risk"]["mean"] == pytest.approx(0.005, abs=1e-6)


@pytest.mark.parametrize("name", SHIPPED)
def test_fp16_keeps_the_shipped_models_risks(name: str) -> None:
    pair = compare.fp16_pair(repository.SHIPPED, name)
    outputs = compare.on_golden(pair, repository.SHIPPED)["outputs"]
    assert 0 < outputs["probability" if pair.reference.config.kind == "image" else "risk"]["max"] < 0.005


def test_data_of_another_kind_are_refused(tmp_path: Path) -> None:
    pair = compare.fp16_pair(repository.SHIPPED, "vitals")
    with pytest.raises(DatasetError, match="vitals is of kind windowed-series: medmnist does not fit it"):
        compare.on_data(pair, f"medmnist:{tmp_path}", lambda *_: None)
