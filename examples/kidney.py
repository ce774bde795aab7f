"""Writes kidney.onnx: a model of kind `features`, which reads the newest values alone.

    python examples/kidney.py kidney.onnx

A logistic regression on laboratory values and age. The weights are invented, to show the way and nothing
else. Normalisation, and what becomes of a value that was never measured, stand inside the graph, so that no
program that runs it can get them wrong.
"""

import sys

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

#            age  creatinine  urea_nitrogen  potassium  bicarbonate  lactate
CENTRE = [65.0, 1.0, 20.0, 4.1, 24.0, 1.5]
SCALE = [15.0, 0.6, 14.0, 0.6, 4.0, 1.5]
WEIGHTS = [0.3, 0.9, 0.6, 0.4, -0.5, 0.4]
INTERCEPT = -2.2
NEVER = 48.0

FEATURES = len(WEIGHTS)


def float32(name, values):
    return numpy_helper.from_array(np.array(values, dtype=np.float32), name)


def main(path):
    nodes = [
        helper.make_node("Sub", ["values", "centre"], ["offset"]),
        helper.make_node("Div", ["offset", "scale"], ["z"]),
        helper.make_node("Clip", ["z", "least", "most"], ["bounded"]),
        helper.make_node("Less", ["elapsed", "never"], ["measured"]),
        helper.make_node("Cast", ["measured"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["bounded", "mask"], ["known"]),
        helper.make_node("MatMul", ["known", "weights"], ["weighted"]),
        helper.make_node("Add", ["weighted", "intercept"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["column"]),
        helper.make_node("Squeeze", ["column", "last"], ["risk"]),
    ]
    constants = [
        float32("centre", CENTRE),
        float32("scale", SCALE),
        float32("least", -4.0),
        float32("most", 4.0),
        float32("never", NEVER),
        float32("weights", [[weight] for weight in WEIGHTS]),
        float32("intercept", INTERCEPT),
        numpy_helper.from_array(np.array([1]), "last"),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", FEATURES])
        for name in ("values", "elapsed")
    ]
    outputs = [helper.make_tensor_value_info("risk", TensorProto.FLOAT, ["batch"])]
    graph = helper.make_graph(nodes, "kidney", inputs, outputs, constants)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)


if __name__ == "__main__":
    main(sys.argv[1])
