"""A model folder's `config.json`, in Triton's words, with the alert policy that goes with the model."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Protocol

import msgspec
from msgspec import Meta, Struct

from schemas.errors import ModelConfigError
from schemas.features import CHANNEL
from schemas.window import WINDOW_BINS

NEWS2 = "news2"
"""What alerts of the early warning score's own name as their model; no model may be called so."""

Probability = Annotated[float, Meta(ge=0.0, le=1.0)]
Seconds = Annotated[float, Meta(ge=0.0)]
TensorName = Annotated[str, Meta(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$")]


class AlertLevel(Protocol):
    """One severity of any policy; fields as in `Level`, `enter` in the policy's own unit."""

    @property
    def severity(self) -> str: ...
    @property
    def enter(self) -> float: ...
    @property
    def persistence_s(self) -> float: ...


class AlertPolicy(Protocol):
    """What deciding needs of any policy, over risks or points; fields as in `Policy`."""

    @property
    def version(self) -> str: ...
    @property
    def levels(self) -> Sequence[AlertLevel]: ...
    @property
    def exit(self) -> float: ...
    @property
    def resolve_s(self) -> float: ...
    @property
    def refractory_s(self) -> float: ...
    @property
    def update_delta(self) -> float: ...
    @property
    def expiry_s(self) -> float: ...
    @property
    def memory_s(self) -> float: ...


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
        return memory_s(self)


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


class Forecast(Struct, frozen=True, forbid_unknown_fields=True):
    """What the output `forecast` holds: each feature's next value, in its canonical unit.

    features: names from the feature table, in the order of the output's last axis.
    horizon_s: how far ahead the value is meant, seconds.
    """

    features: Annotated[tuple[str, ...], Meta(min_length=1)]
    horizon_s: Annotated[float, Meta(gt=0.0)] = 3600.0


class ImageInput(Struct, frozen=True, forbid_unknown_fields=True):
    """How a picture becomes the input `image`, float32[batch, channels, height, width], 0 black to 1 white.

    channels: 1 for grey, 3 for red, green, blue.
    height, width: pixels.
    fit: `stretch` to the size, `pad` with black to its shape first, or `crop` the middle to its shape first.
    modality, body_part, view: DICOM values that are accepted; empty for any.
    """

    height: Annotated[int, Meta(ge=8, le=1024)]
    width: Annotated[int, Meta(ge=8, le=1024)]
    channels: Literal[1, 3] = 1
    fit: Literal["stretch", "pad", "crop"] = "pad"
    modality: tuple[str, ...] = ()
    body_part: tuple[str, ...] = ()
    view: tuple[str, ...] = ()

    @property
    def dims(self) -> tuple[int, int, int]:
        """Dims of the input `image`, without the batch axis."""
        return self.channels, self.height, self.width


class ModelConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """One model of the repository.

    kind: what the model reads.
        `windowed-series`: the patient window. With `state`, the graph is one recurrent step over `values`,
        `elapsed` and `counts`, float32[batch, len(features)], and the state; without, it reads the whole
        window, float32[batch, 48, len(features)].
        `features`: the newest row of the window alone, float32[batch, len(features)].
        `image`: one picture, made into the input `image` as `image` says.
        A series model takes `values` and may leave out `elapsed` and `counts`.
    features: names from the feature table, in the order of the tensors' last axis.
    outcome: what the risk is the probability of, in words.
    output: of a series model `risk`, float32[batch], a calibrated probability; the state outputs; and if it
        has them `spread`, float32[batch], the standard deviation of its members' risks, and `forecast`.
        Of an image model `probability`, float32[batch, len(classes)], calibrated, and if it has one
        `activation`, float32[batch, len(classes), height, width]: where each class was seen.
    classes: of an image model, one of which holds.
    findings: the classes that are the outcome: the risk is the sum of their probabilities.
    digest: SHA-256 of this version's model.onnx, in hex.
    golden_tolerance: how far any output may lie from the golden data.
    golden_tolerance_fp16: the same of what a plan of fp16 computes; `risk` and `probability`, which decide,
        may lie a tenth of it off.
    """

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
    kind: Literal["windowed-series", "features", "image"]
    version: Annotated[int, Meta(ge=1)]
    outcome: str
    input: tuple[Tensor, ...]
    output: tuple[Tensor, ...]
    digest: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
    policy: Policy
    features: tuple[str, ...] = ()
    state: tuple[StatePair, ...] = ()
    forecast: Forecast | None = None
    image: ImageInput | None = None
    classes: tuple[Annotated[str, Meta(min_length=1, max_length=64)], ...] = ()
    findings: tuple[str, ...] = ()
    dynamic_batching: Batching = Batching()
    golden_tolerance: Annotated[float, Meta(gt=0.0, le=0.01)] = 1e-4
    golden_tolerance_fp16: Annotated[float, Meta(gt=0.0, le=0.05)] = 5e-3


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


def memory_s(policy: AlertPolicy) -> float:
    """How far back, in seconds of event time, a decision under a policy looks."""
    return max(policy.resolve_s, *(level.persistence_s for level in policy.levels))


def policy_complaints(policy: AlertPolicy) -> list[str]:
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
    reserved = [f"name: `{NEWS2}` is the early warning score's own"] if config.name == NEWS2 else []
    return [*reserved, *policy_complaints(config.policy)] + (
        _image_complaints(config) if config.kind == "image" else _series_complaints(config)
    )


def _image_complaints(config: ModelConfig) -> list[str]:
    complaints = []
    if config.features or config.state or config.forecast:
        complaints.append("an image model has no features, state or forecast")
    if config.image is None:
        return [*complaints, "an image model needs `image`, which says how pictures are prepared"]
    classes = len(config.classes)
    if classes < 2 or len(set(config.classes)) < classes:
        complaints.append(f"classes must be two or more different names, came {list(config.classes)}")
    if not config.findings or not set(config.findings) < set(config.classes):
        complaints.append(f"findings must be some of the classes {list(config.classes)}, not all")
    complaints += _tensor_complaints("input", config.input, {"image": config.image.dims}, {})
    found = {tensor.name: tensor.dims for tensor in config.output}
    map_dims = found.get("activation", ())
    if "activation" in found and (len(map_dims) != 3 or map_dims[0] != classes or min(map_dims) < 1):
        complaints.append(f"output activation must have dims [{classes}, height, width]")
    optional = {"activation": map_dims}
    return complaints + _tensor_complaints("output", config.output, {"probability": (classes,)}, optional)


def _series_complaints(config: ModelConfig) -> list[str]:
    complaints = []
    if config.image or config.classes or config.findings:
        complaints.append("only an image model has image, classes or findings")
    named = [*config.features, *(config.forecast.features if config.forecast else ())]
    unknown = sorted({name for name in named if name not in CHANNEL})
    if unknown:
        complaints.append(f"features not in the feature table: {unknown}; it has {sorted(CHANNEL)}")
    if not config.features or len(set(config.features)) < len(config.features):
        complaints.append("features must be one or more names, each once")
    if config.kind == "features" and config.state:
        complaints.append("a model of kind features carries no state")
    row = (len(config.features),)
    whole = config.kind == "windowed-series" and not config.state
    dims = (WINDOW_BINS, *row) if whole else row
    states_in = {pair.input: pair.dims for pair in config.state}
    states_out = {pair.output: pair.dims for pair in config.state}
    forecast = {"forecast": (len(config.forecast.features),)} if config.forecast else {}
    complaints += _tensor_complaints(
        "input", config.input, {"values": dims} | states_in, {"elapsed": dims, "counts": dims}
    )
    return complaints + _tensor_complaints(
        "output", config.output, {"risk": ()} | states_out | forecast, {"spread": ()}
    )


Dims = dict[str, tuple[int, ...]]


def _tensor_complaints(side: str, tensors: tuple[Tensor, ...], needed: Dims, optional: Dims) -> list[str]:
    """What is wrong with the names and dims of one side's tensors."""
    names = [tensor.name for tensor in tensors]
    known = needed | optional
    if len(set(names)) < len(names) or not needed.keys() <= set(names) <= known.keys():
        also = f", and may have {sorted(optional)}" if optional else ""
        return [f"{side} tensors must be {list(needed)}{also}, came {names}"]
    return [
        f"{side} {tensor.name} must have dims {list(known[tensor.name])}, came {list(tensor.dims)}"
        for tensor in tensors
        if tensor.dims != known[tensor.name]
    ]
