"""A model folder's `config.json`, in Triton's words, with the alert policy that goes with the model."""

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from schemas.errors import ModelConfigError
from schemas.features import CHANNEL
from schemas.window import WINDOW_BINS

Probability = Annotated[float, Meta(ge=0.0, le=1.0)]
Seconds = Annotated[float, Meta(ge=0.0)]
TensorName = Annotated[str, Meta(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$")]


class Level(Struct, frozen=True, forbid_unknown_fields=True):
    """One severity of a policy.

    severity: its name, in alerts.
    enter: risk at or above which it applies.
    persistence_s: how long, in event time, the risk must have stayed there.
    """

    severity: Annotated[str, Meta(min_length=1, max_length=32)]
    enter: Probability
    persistence_s: Seconds = 0.0


class Policy(Struct, frozen=True, forbid_unknown_fields=True):
    """How risks become alerts; all times in seconds of event time.

    levels: severities, mildest first; `enter` rises strictly.
    exit: risk below which an episode can resolve; under the first level's `enter` (hysteresis).
    resolve_s: how long the risk must have stayed below `exit`.
    refractory_s: quiet time after an alert, broken only by a rise in severity or by expiry.
    update_delta: change of risk since the last alert that makes an `updated` alert.
    expiry_s: an episode ends when its patient has not been scored for this long.
    """

    version: Annotated[str, Meta(min_length=1, max_length=64)]
    levels: Annotated[tuple[Level, ...], Meta(min_length=1, max_length=8)]
    exit: Probability
    resolve_s: Seconds
    refractory_s: Seconds
    update_delta: Annotated[float, Meta(gt=0.0, le=1.0)]
    expiry_s: Annotated[float, Meta(gt=0.0, le=WINDOW_BINS * 3600.0)]

    @property
    def memory_s(self) -> float:
        """How far back, in event time, a decision looks at risks."""
        return max(self.resolve_s, *(level.persistence_s for level in self.levels))


class Tensor(Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor of the graph; `dims` without the batch axis, which always comes first."""

    name: TensorName
    dims: tuple[int, ...]
    data_type: Literal["TYPE_FP32"] = "TYPE_FP32"


class StatePair(Struct, frozen=True, forbid_unknown_fields=True):
    """A carried state: the input it enters by and the output it leaves by; zeros at first."""

    input: TensorName
    output: TensorName
    dims: tuple[int, ...]


class Batching(Struct, frozen=True, forbid_unknown_fields=True):
    """How requests may be batched."""

    max_batch_size: Annotated[int, Meta(ge=1, le=4096)] = 512


class ModelConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """One model of the repository.

    kind: `windowed-series` reads the patient window. With `state`, the graph is one recurrent step over
        inputs `values`, `elapsed`, `counts` (float32[batch, len(features)]) and the state.
    features: names from the feature table, in the order of the tensors' last axis.
    outcome: what the risk is the probability of, in words.
    output: `risk`, float32[batch], a calibrated probability, and the state outputs.
    digest: SHA-256 of the served version's model.onnx, in hex.
    """

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
    kind: Literal["windowed-series"]
    version: Annotated[int, Meta(ge=1)]
    outcome: str
    features: Annotated[tuple[str, ...], Meta(min_length=1)]
    input: tuple[Tensor, ...]
    output: tuple[Tensor, ...]
    digest: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
    policy: Policy
    state: tuple[StatePair, ...] = ()
    dynamic_batching: Batching = Batching()
    golden_tolerance: Annotated[float, Meta(gt=0.0, le=0.01)] = 1e-4


def load(path: Path) -> ModelConfig:
    """Read and check a `config.json`.

    Raises:
        ModelConfigError: the file is missing, is not such JSON, or contradicts itself.
    """
    try:
        config = msgspec.json.decode(path.read_bytes(), type=ModelConfig)
    except OSError as error:
        raise ModelConfigError(f"cannot read {path}: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise ModelConfigError(f"{path}: {error}") from error
    for complaint in _complaints(config):
        raise ModelConfigError(f"{path}: {complaint}")
    return config


def policy_complaints(policy: Policy) -> list[str]:
    """What is wrong with a policy beyond its types; empty when nothing is."""
    complaints = []
    enters = [level.enter for level in policy.levels]
    if any(after <= before for before, after in pairwise(enters)):
        complaints.append(f"policy.levels: `enter` must rise strictly from level to level, came {enters}")
    if policy.exit >= enters[0]:
        complaints.append(f"policy.exit must be below the first enter {enters[0]}, came {policy.exit}")
    if policy.refractory_s > policy.expiry_s:
        complaints.append(f"policy.refractory_s must not exceed expiry_s {policy.expiry_s}")
    if len({level.severity for level in policy.levels}) < len(policy.levels):
        complaints.append("policy.levels: two levels have one severity")
    return complaints


def _complaints(config: ModelConfig) -> list[str]:
    complaints = policy_complaints(config.policy)
    unknown = [name for name in config.features if name not in CHANNEL]
    if unknown:
        complaints.append(f"features not in the feature table: {unknown}; it has {sorted(CHANNEL)}")
    if len(set(config.features)) < len(config.features):
        complaints.append("a feature is named twice")
    if not config.state:
        complaints.append("state is empty; a windowed-series model is one recurrent step and carries a state")
    names = [tensor.name for tensor in config.input]
    wanted = ["values", "elapsed", "counts", *(pair.input for pair in config.state)]
    if sorted(names) != sorted(wanted):
        complaints.append(f"input tensors must be {wanted}, came {names}")
    outputs = [tensor.name for tensor in config.output]
    wanted = ["risk", *(pair.output for pair in config.state)]
    if sorted(outputs) != sorted(wanted):
        complaints.append(f"output tensors must be {wanted}, came {outputs}")
    width = len(config.features)
    for tensor in config.input:
        if tensor.name in {"values", "elapsed", "counts"} and tensor.dims != (width,):
            complaints.append(f"input {tensor.name} must have dims [{width}], came {list(tensor.dims)}")
    return complaints
