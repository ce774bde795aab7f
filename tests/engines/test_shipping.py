"""What shipped models say of their policies: config, backtest, evaluation and card agree."""

import json
from pathlib import Path

import msgspec
import pytest

from engines import repository
from engines.repository import BACKTEST, CARD, EVALUATION

RECALL = {"vitals": 0.80, "bedside": 0.77}
"""Deaths that must be found; without laboratory values fewer are."""

BACKTESTED = sorted(file.parent for file in repository.SHIPPED.glob(f"*/{BACKTEST}"))


def test_the_vitals_policy_is_one_that_was_backtested() -> None:
    assert "vitals" in {folder.name for folder in BACKTESTED}


@pytest.mark.parametrize("folder", BACKTESTED, ids=lambda folder: folder.name)
def test_all_that_is_said_of_a_policy_agrees(folder: Path) -> None:
    config = repository.read_config(repository.SHIPPED, folder.name)
    found = json.loads((folder / BACKTEST).read_bytes())
    assert found["policy"]["policy"] == json.loads(msgspec.json.encode(config.policy))
    assert found["model"] == {"name": config.name, "version": config.version, "digest": config.digest}
    evaluation = json.loads((folder / EVALUATION).read_bytes())
    assert found["source"]["data"] == evaluation["data"]["digest"]
    card = (folder / CARD).read_text()
    for level in config.policy.levels:
        told, figures = evaluation["policy"][level.severity], found["policy"]["levels"][level.severity]
        assert (told["enter"], told["recall"]) == (level.enter, figures["recall"])
        assert told["survivors_alerted"] == figures["survivors_alerted"]
        assert f"| {level.severity} | {level.enter:g} | {level.persistence_s / 60:g} min |" in card


@pytest.mark.parametrize("folder", BACKTESTED, ids=lambda folder: folder.name)
def test_a_shipped_policy_alerts_on_a_third_of_the_survivors_and_finds_its_share(folder: Path) -> None:
    """On patients that no model has seen; in `held_out` nor has the choice of the threshold."""
    found = json.loads((folder / BACKTEST).read_bytes())
    assert found["risks"]["unseen"] is True
    for figures in (found["policy"], found["held_out"]):
        assert figures["recall"] >= RECALL[folder.name]
        assert figures["survivors_alerted"] <= 0.33
