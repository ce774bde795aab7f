"""From a trained network to the files that are served: model.onnx and golden.npz."""

import io
import logging
import warnings

import numpy as np
import onnx
import torch

from engines.engine import F32
from engines.train.network import Step
from schemas.features import FEATURES
from schemas.window import Rows

INPUTS = ("values", "elapsed", "counts", "state")
OUTPUTS = ("risk", "state_out")
OPSET = 18


def to_onnx(step: Step) -> bytes:
    """The step graph with a free batch axis; the bytes depend on the weights alone."""
    example = (*(torch.ones(2, len(FEATURES)) for _ in range(3)), torch.zeros(2, step.width))
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


def network_risks(step: Step, stays: Rows) -> F32:
    """Risk after every step of whole stays by the training path, float32[stays, steps]."""
    tensors = [torch.from_numpy(array) for array in stays]
    with torch.no_grad():
        logits = [member(*tensors)[0] for member in step.members]
        mean = sum(logits[1:], logits[0]) / len(logits)
        return np.asarray(torch.sigmoid(mean * step.slope + step.intercept), dtype=np.float32)


def golden(step: Step, stays: Rows) -> bytes:
    """golden.npz: one step with states from the middle of stays, and a whole stay beside it.

    `stay/values`, `stay/elapsed`, `stay/counts` are float32[stays, steps, channels] and `stay/risk` the
    training network's risks, so that streaming can be compared with training where torch is absent.
    """
    middle = stays.values.shape[1] // 2
    state = torch.zeros(len(stays.values), step.width)
    with torch.no_grad():
        for hour in range(middle):
            _, state = step(*(torch.from_numpy(array[:, hour]) for array in stays), state)
        inputs = dict(zip(INPUTS, [*(array[:, middle] for array in stays), state.numpy()], strict=True))
        risk, after = step(*map(torch.from_numpy, inputs.values()))
    arrays = {f"in/{name}": array for name, array in inputs.items()}
    arrays |= {"out/risk": risk.numpy(), "out/state_out": after.numpy()}
    arrays |= {f"stay/{name}": array for name, array in stays._asdict().items()}
    arrays["stay/risk"] = network_risks(step, stays)
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()
