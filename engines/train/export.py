"""From a trained network to the files that are served: model.onnx and golden.npz."""

import io
import logging
import warnings
from typing import NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from engines.engine import F32
from engines.train.data import chosen
from engines.train.network import Step
from schemas.window import Rows

INPUTS = ("values", "elapsed", "counts", "state")
OUTPUTS = ("risk", "spread", "forecast", "state_out")
OPSET = 18


def to_onnx(step: Step) -> bytes:
    """The step graph with a free batch axis; the bytes depend on the weights alone."""
    example = (*(torch.ones(2, len(step.inputs.mean)) for _ in range(3)), torch.zeros(2, step.width))
    batch = torch.export.Dim("batch", min=1, max=4096)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        program = torch.onnx.export(
            step.eval(),
            example,
            dynamo=True,
            verbose=False,
            optimize=True,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            dynamic_shapes=tuple({0: batch} for _ in INPUTS),
        )
    return plain(program.model_proto)


def plain(proto: onnx.ModelProto) -> bytes:
    """The graph without the exporter's notes, which hold file paths and source lines."""
    del proto.metadata_props[:]
    del proto.functions[:]
    proto.graph.doc_string = ""
    del proto.graph.metadata_props[:]
    del proto.graph.value_info[:]
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for tensor in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del tensor.metadata_props[:]
    return bytes(proto.SerializeToString(deterministic=True))


class Whole(NamedTuple):
    """Outputs after every step of whole stays: float32[stays, steps], of the forecast [..., forecasts]."""

    risk: F32
    spread: F32
    forecast: F32


def network_outputs(step: Step, stays: Rows) -> Whole:
    """What the training path makes of whole stays."""
    with torch.no_grad():
        return Whole(*(array.numpy() for array in step.eval().over(*map(torch.from_numpy, stays))))


def golden(step: Step, stays: Rows, columns: NDArray[np.intp]) -> bytes:
    """golden.npz: one step with states from the middle of stays, and whole stays beside it.

    `stay/values`, `stay/elapsed`, `stay/counts` are float32[stays, steps, channels], and `stay/risk`,
    `stay/spread`, `stay/forecast` what the training network makes of them, so that streaming can be
    compared with training where torch is absent.

    Args:
        step: the network.
        stays: rows of all channels.
        columns: the channels that the network reads.
    """
    arrays = {f"stay/{name}": array for name, array in stays._asdict().items()}
    stays = chosen(stays, columns)
    middle = stays.values.shape[1] // 2
    state = torch.zeros(len(stays.values), step.width)
    step.eval()
    with torch.no_grad():
        for hour in range(middle):
            *_, state = step(*(torch.from_numpy(array[:, hour]) for array in stays), state)
        inputs = dict(zip(INPUTS, [*(array[:, middle] for array in stays), state.numpy()], strict=True))
        outputs = dict(zip(OUTPUTS, step(*map(torch.from_numpy, inputs.values())), strict=True))
    arrays |= {f"in/{name}": array for name, array in inputs.items()}
    arrays |= {f"out/{name}": array.numpy() for name, array in outputs.items()}
    arrays |= {f"stay/{name}": array for name, array in network_outputs(step, stays)._asdict().items()}
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()
