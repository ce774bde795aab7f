"""Writes cardiac.onnx: a sequence model that reads the whole window of 48 hours at once.

    python examples/cardiac.py cardiac.onnx

A convolution over the hours finds falling pressures and rising rates; the last hours count most. The weights
are invented, to show the way and nothing else. A network exported by PyTorch or Keras takes the same place.
"""

import sys

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

#         heart_rate  systolic  mean  oxygen_saturation  troponin_i  troponin_t
CENTRE = [85.0, 120.0, 80.0, 97.0, 2.0, 0.1]
SCALE = [20.0, 20.0, 15.0, 4.0, 8.0, 0.5]
LEVEL = [0.5, -0.6, -0.6, -0.4, 0.5, 0.5]
"""Weight of where a value stands."""
CHANGE = [0.3, -0.3, -0.3, -0.1, 0.1, 0.1]
"""Weight of its change over two hours."""
INTERCEPT = -2.0
HOURS, FEATURES, NEVER = 48, len(CENTRE), 48.0


def float32(name, values):
    return numpy_helper.from_array(np.array(values, dtype=np.float32), name)


def main(path):
    kernel = [[[-change, 0.0, level + change] for level, change in zip(LEVEL, CHANGE, strict=True)]]
    recency = 0.7 ** np.arange(HOURS)[::-1]
    nodes = [
        helper.make_node("Sub", ["values", "centre"], ["offset"]),
        helper.make_node("Div", ["offset", "scale"], ["z"]),
        helper.make_node("Clip", ["z", "least", "most"], ["bounded"]),
        helper.make_node("Less", ["elapsed", "never"], ["measured"]),
        helper.make_node("Cast", ["measured"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["bounded", "mask"], ["known"]),
        helper.make_node("Transpose", ["known"], ["series"], perm=[0, 2, 1]),
        helper.make_node("Conv", ["series", "kernel"], ["found"], kernel_shape=[3], pads=[2, 0]),
        helper.make_node("Mul", ["found", "recency"], ["recent"]),
        helper.make_node("ReduceSum", ["recent", "axes"], ["score"], keepdims=0),
        helper.make_node("Add", ["score", "intercept"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["risk"]),
    ]
    constants = [
        float32("centre", CENTRE),
        float32("scale", SCALE),
        float32("least", -4.0),
        float32("most", 4.0),
        float32("never", NEVER),
        float32("kernel", kernel),
        float32("recency", recency / recency.sum()),
        float32("intercept", INTERCEPT),
        numpy_helper.from_array(np.array([1, 2]), "axes"),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", HOURS, FEATURES])
        for name in ("values", "elapsed")
    ]
    outputs = [helper.make_tensor_value_info("risk", TensorProto.FLOAT, ["batch"])]
    graph = helper.make_graph(nodes, "cardiac", inputs, outputs, constants)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)


if __name__ == "__main__":
    main(sys.argv[1])
