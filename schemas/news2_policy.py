"""NEWS2's own alert policy: how its points become alerts, whatever the model beside it says. Data, versioned.

What is decided on are the points of the low end, raised to the entry of the level `single` where one
parameter scores 3 for certain. So nothing is alerted on that was not observed within `fresh_s`. The way back
is stricter: an episode resolves by the points that the newest values would have at any age, because a value
that has grown too old is no sign of recovery.
"""

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from schemas.errors import PolicyError
from schemas.model_config import Seconds, memory_s, policy_complaints
from schemas.news2 import Scale
from schemas.window import WINDOW_BINS

SHIPPED = Path(__file__).parent / "policies" / "news2.json"
"""The policy that holds unless another file is named."""

Points = Annotated[int, Meta(ge=1, le=20)]


class PointsLevel(Struct, frozen=True, forbid_unknown_fields=True):
    """One severity.

    severity: its name, in alerts.
    enter: points at or above which it applies.
    persistence_s: how long, in event time, the points must have stayed there.
    """

    severity: Annotated[str, Meta(min_length=1, max_length=32)]
    enter: Points
    persistence_s: Seconds = 0.0


class News2Policy(Struct, frozen=True, forbid_unknown_fields=True):
    """How NEWS2 becomes alerts; all times in seconds of event time.

    scale: SpO2 scale of every patient. 2 only where all of them have a prescribed target of 88 to 92%.
    fresh_s: age up to which a value counts; an older one makes its parameter `stale`, an interval.
    single: severity that 3 points in one parameter call for; null where they call for none.
    levels, exit, resolve_s, refractory_s, update_delta, expiry_s: as in a model's policy, in points.
    """

    version: Annotated[str, Meta(min_length=1, max_length=64)]
    scale: Scale
    fresh_s: Annotated[float, Meta(gt=0.0, le=WINDOW_BINS * 3600.0)]
    single: str | None
    levels: Annotated[tuple[PointsLevel, ...], Meta(min_length=1, max_length=8)]
    exit: Points
    resolve_s: Seconds
    refractory_s: Seconds
    update_delta: Points
    expiry_s: Annotated[float, Meta(gt=0.0, le=WINDOW_BINS * 3600.0)]

    @property
    def memory_s(self) -> float:
        """How far back, in event time, a decision looks at points."""
        return memory_s(self)

    @property
    def single_enter(self) -> int:
        """Points that 3 in one parameter count as at least; 0 where they call for nothing by themselves."""
        return next((level.enter for level in self.levels if level.severity == self.single), 0)


def load(path: Path = SHIPPED) -> News2Policy:
    """Read and check a policy.

    Raises:
        PolicyError: the file is missing, is not such JSON, or contradicts itself.
    """
    try:
        policy = msgspec.json.decode(path.read_bytes(), type=News2Policy)
    except OSError as error:
        raise PolicyError(f"cannot read {path}: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise PolicyError(f"{path}: {error}") from error
    for complaint in complaints(policy):
        raise PolicyError(f"{path}: {complaint}")
    return policy


def complaints(policy: News2Policy) -> list[str]:
    """What is wrong with a policy beyond its types; empty when nothing is."""
    found = policy_complaints(policy)
    severities = [level.severity for level in policy.levels]
    if policy.single is not None and policy.single not in severities:
        found.append(f"policy.single must be null or one of the severities {severities}")
    return found
