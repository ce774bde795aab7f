"""The shipped networks in PyTorch, with the weights of model.onnx: what serving without an engine would cost.

The modules are those that training exports. Their weights are read back from the graph's initialisers, where
the exporter has kept parameters under their own names, folded each decay rate into a constant of its own, and
transposed the GRUs' matrices. Golden data say whether all of it was put together right.
"""

from collections.abc import Mapping
from itertools import count, takewhile
from typing import Any

import onnx
import torch
from torch import nn

from engines.engine import F32, Engine
from engines.errors import BackendError, GraphError
from engines.train.image_network import Ensemble
from engines.train.image_network import Member as ImageMember
from engines.train.network import Calibration, Dense, Inputs, Member, Recurrent, Step, Target
from schemas.features import FEATURES
from schemas.model_config import ModelConfig

Weights = dict[str, torch.Tensor]


class PyTorchEngine(Engine):
    """A network run eagerly by PyTorch, for comparison; nothing serves with it.

    On the CPU one thread computes, as in ONNX Runtime here: that is a setting of the whole process.
    """

    def __init__(self, config: ModelConfig, graph: bytes, device: str) -> None:
        """Build the network and put it on a device.

        Args:
            config: the model's.
            graph: content of its model.onnx, as training exports it.
            device: `cpu` or `cuda`.

        Raises:
            GraphError: the graph is not of the networks that training exports.
            BackendError: PyTorch has no such device here.
        """
        super().__init__(config, f"pytorch-{device}")
        if device == "cuda" and not torch.cuda.is_available():
            raise BackendError(
                f"pytorch-cuda cannot run here: PyTorch {torch.__version__} finds no GPU, or has been built "
                "without CUDA; see what nvidia-smi lists"
            )
        torch.set_num_threads(1)
        self._device = torch.device(device)
        self._network: nn.Module | None = network_of(config, graph).eval().to(self._device)

    def _execute(self, inputs: Mapping[str, F32], rows: int) -> dict[str, F32]:
        if self._network is None:
            raise BackendError("the engine is closed")
        with torch.inference_mode():
            given = [torch.tensor(inputs[name]).to(self._device) for name in self.input_dims]
            found = self._network(*given)
            return {name: array.cpu().numpy() for name, array in zip(self.output_dims, found, strict=True)}

    def close(self) -> None:
        """Free the weights."""
        self._network = None


def network_of(config: ModelConfig, graph: bytes) -> nn.Module:
    """The module that a shipped graph was exported from, with its weights.

    Raises:
        GraphError: the graph is of another network.
    """
    parsed = onnx.load_model_from_string(graph).graph
    weights = {tensor.name: torch.tensor(onnx.numpy_helper.to_array(tensor)) for tensor in parsed.initializer}
    try:
        return (
            _ensemble(config, parsed, weights) if config.kind == "image" else _step(config, parsed, weights)
        )
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        raise GraphError(
            f"{config.name}: PyTorch can be compared on the networks that `riskstream model train` exports, "
            f"and model.onnx is none of them ({error})"
        ) from error


def _step(config: ModelConfig, graph: Any, weights: Weights) -> Step:
    kinds = {feature.name: feature.kind for feature in FEATURES}
    series = torch.tensor([i for i, name in enumerate(config.features) if kinds[name] == "series"])
    names = config.forecast.features if config.forecast else ()
    places = torch.tensor([config.features.index(name) for name in names])
    rates = [-_operand(weights, node) for node in graph.node if _reads(node, "Mul", "elapsed", weights)]
    matrices = [weights[node.input[1]] for node in graph.node if _matrix(node, weights)]
    found = dict(weights)
    members: list[Member] = []
    for number in _numbers(weights):
        at = f"members.{number}"
        found[f"{at}.decayed.decay"] = torch.log(torch.expm1(rates[number]))
        if f"{at}.gru.bias_hh_l0" in weights:
            hidden = len(weights[f"{at}.gru.bias_hh_l0"]) // 3
            found[f"{at}.gru.weight_ih_l0"], found[f"{at}.gru.weight_hh_l0"] = (
                matrix.T for matrix in matrices[2 * number : 2 * number + 2]
            )
            members.append(Recurrent(len(config.features), len(names), hidden, dropout=0.0, noise=0.0))
        else:
            hidden = len(weights[f"{at}.layers.0.bias"])
            found[f"{at}.series"] = series
            members.append(Dense(len(config.features), series, len(names), hidden, dropout=0.0, noise=0.0))
    target = Target(places, weights["change"], weights["low"], weights["high"])
    inputs = Inputs(weights["inputs.mean"], weights["inputs.scale"], weights["inputs.logged"])
    step = Step(inputs, members, series, target, _calibration(graph, weights))
    found |= {"series": series, "feature": places}
    step.load_state_dict({name: found[name] for name in step.state_dict()})
    return step


def _ensemble(config: ModelConfig, graph: Any, weights: Weights) -> Ensemble:
    assert config.image is not None
    size = (config.image.channels, config.image.height, config.image.width)
    norms = [(weights[f"members.{n}.mean"], weights[f"members.{n}.scale"]) for n in _numbers(weights)]
    members = [
        ImageMember(*size, len(config.classes), (mean.flatten(), scale.flatten())) for mean, scale in norms
    ]
    [factor] = [_operand(weights, node) for node in graph.node if node.op_type == "Mul"]
    made = Ensemble(members, float(factor) * len(members))
    made.load_state_dict({name: weights[name] for name in made.state_dict()})
    return made


def _numbers(weights: Weights) -> list[int]:
    """Numbers of the members, which name their parameters."""
    return list(takewhile(lambda number: f"members.{number}.head.bias" in weights, count()))


def _calibration(graph: Any, weights: Weights) -> Calibration:
    """From risk = sigmoid(mean * slope + intercept), backwards."""
    by_output = {node.output[0]: node for node in graph.node}
    added = by_output[by_output["risk"].input[0]]
    return Calibration(float(_operand(weights, by_output[added.input[0]])), float(_operand(weights, added)))


def _reads(node: Any, kind: str, tensor: str, weights: Weights) -> bool:
    return node.op_type == kind and tensor in node.input and any(name in weights for name in node.input)


def _matrix(node: Any, weights: Weights) -> bool:
    return node.op_type == "MatMul" and node.input[1] in weights


def _operand(weights: Weights, node: Any) -> torch.Tensor:
    """The node's one constant operand."""
    [name] = [name for name in node.input if name in weights]
    return weights[name]
