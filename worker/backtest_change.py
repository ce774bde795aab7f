"""A chosen policy as a change that workers take up: an entry of a policies file."""

from datetime import UTC, datetime
from pathlib import Path

from engines.evaluate import pretty
from schemas import policy_change
from schemas.model_config import Policy
from schemas.policy_change import ChangedLevel, PolicyChange


def add(file: Path, model: str, policy: Policy, reason: str) -> PolicyChange:
    """Add the policy to a file of changes, in force for everyone from now on; other changes stay.

    Its version is the next one of the changes for everyone that the file holds.

    Raises:
        PolicyError: the file is no file of changes.
        OSError: it cannot be read or written.
    """
    held = policy_change.read(file.read_bytes(), str(file)) if file.exists() and file.stat().st_size else []
    last = max((change.version for change in held if change.scope == (model, None, None)), default=0)
    change = PolicyChange(
        model=model,
        version=last + 1,
        effective_from=datetime.now(UTC).replace(microsecond=0),
        levels=tuple(
            ChangedLevel(level.severity, level.enter, level.persistence_s) for level in policy.levels
        ),
        exit=policy.exit,
        resolve_s=policy.resolve_s,
        refractory_s=policy.refractory_s,
        expiry_s=policy.expiry_s,
        update_delta=policy.update_delta,
        reason=f"riskstream backtest: {reason}"[:512],
        author="riskstream backtest",
    )
    file.write_bytes(pretty([*held, change]))
    return change
