"""A policy that was chosen on data, put into the model's folder with what it is known to do.

config.json                                   the policy, under the next version
backtest.json                                 its figures, NEWS2's beside them, and how they came about
evaluation.json, MODEL_CARD.md, evaluation.html   the figures that they tell of the policy, told anew
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from engines import card_text, versions
from engines.errors import RepositoryError
from engines.evaluate import pretty
from engines.repository import BACKTEST, CARD, CONFIG, EVALUATION, PAGE
from schemas.model_config import ModelConfig, Policy


def ship(folder: Path, config: ModelConfig, policy: Policy, content: Mapping[str, Any]) -> ModelConfig:
    """Put a backtest's chosen policy into a model's folder; if it is there already, its figures alone.

    Args:
        folder: of the model. config: as it stands there. policy: the chosen one.
        content: of the backtest's report; one is chosen.

    Returns:
        The config as written.

    Raises:
        RepositoryError: the policy's version is no number, or the folder's evaluation cannot be read.
        ExtraError: there is a page to draw and the extra `report` is missing.
    """
    evaluation = _evaluation(folder)
    version = config.policy.version if policy == config.policy else next_version(config.policy)
    shipped = msgspec.structs.replace(config, policy=msgspec.structs.replace(policy, version=version))
    chosen = content["policies"][content["chosen"]]
    told = {
        level.severity: {
            "enter": level.enter,
            "recall": chosen["levels"][level.severity]["recall"],
            "precision": chosen["levels"][level.severity]["ppv_patients"],
            "survivors_alerted": chosen["levels"][level.severity]["survivors_alerted"],
        }
        for level in policy.levels
    }
    kept = {key: value for key, value in content.items() if key not in ("policies", "front", "chosen")}
    named = {"role": "shipped", "policy": msgspec.to_builtins(shipped.policy)}
    before = _kept_before(folder, content) if policy == config.policy else _before(content)
    kept |= {"policy": chosen | named, "before": before, "tried": len(content["policies"])}
    if evaluation is not None:
        evaluation |= {"policy": told, "policy_basis": _basis(content)}
        _tell(folder, shipped, evaluation)
    (folder / BACKTEST).write_bytes(pretty(kept))
    versions.write_whole(folder / CONFIG, pretty(shipped))  # workers may be looking at it
    return shipped


def _before(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Figures of the policy that is replaced."""
    return [
        policy | {"name": "the one before"} for policy in content["policies"] if policy["role"] == "shipped"
    ]


def _kept_before(folder: Path, content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the folder says of the policy before this one, if it was found on the same records."""
    try:
        held = msgspec.json.decode((folder / BACKTEST).read_bytes(), type=dict[str, Any])
        same = all(held[part] == content[part] for part in ("source", "model", "risks"))
        return list(held["before"]) if same else []
    except (OSError, msgspec.MsgspecError, KeyError, TypeError):
        return []


def check(folder: Path, config: ModelConfig) -> None:
    """Find what would keep a policy from being shipped, before one is chosen.

    Raises:
        RepositoryError: the policy's version is no number, the evaluation cannot be read, or a change
            of the served version was stopped half-way and cannot be settled.
        ExtraError: there is a page to draw and the extra `report` is missing.
    """
    versions.settle(folder)
    next_version(config.policy)
    _evaluation(folder)
    if (folder / PAGE).is_file():
        from engines import report as _  # noqa: F401  # says which extra is missing


def next_version(policy: Policy) -> str:
    """The version after a policy's.

    Raises:
        RepositoryError: its version is no number.
    """
    if not policy.version.isdigit():
        raise RepositoryError(
            f"the policy's version is {policy.version!r}, which has no next one; make it a number, or take "
            "--write instead of --ship"
        )
    return str(int(policy.version) + 1)


def _evaluation(folder: Path) -> dict[str, Any] | None:
    file = folder / EVALUATION
    if not file.is_file():
        return None
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError) as error:
        raise RepositoryError(f"cannot read {file}: {error}") from error


def _basis(content: Mapping[str, Any]) -> str:
    cohort = content["cohort"]
    return (
        f"Figures are of `riskstream backtest`: every record of {cohort['patients']:,} patients, decided on "
        f"as a worker does; {content['risks']['words']}. The rule: {content['rule']}"
    )


def _tell(folder: Path, config: ModelConfig, evaluation: dict[str, Any]) -> None:
    """The files that tell of the policy."""
    if (folder / PAGE).is_file():
        from engines import report

        report.write_page(evaluation, folder / PAGE, folder)
    (folder / EVALUATION).write_bytes(pretty(evaluation))
    card = folder / CARD
    if card.is_file():
        section = "\n\n".join(card_text.policy_parts(config, evaluation)) + "\n\n"
        text = re.sub(
            rf"(?<={re.escape(card_text.POLICY)}\n\n).*?(?=^## )",
            lambda _: section,
            card.read_text(),
            count=1,
            flags=re.DOTALL | re.MULTILINE,
        )
        card.write_text(text)
