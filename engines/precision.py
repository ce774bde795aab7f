"""An fp32 graph -> the same graph computed in fp16, its inputs and outputs still fp32.

Matrix products and convolutions, and what lies between them, are computed in fp16 on fp16 weights. What
comes before the first of them and after the last stays fp32: fp16 has eleven bits, so it knows an ALT of
10,000 U/L to 8 and a sodium of 140 mmol/L to 0.125, and calibrated probabilities lie close together. A
TensorRT network is strongly typed: these types are the plan's.

The converters that exist (`onnxruntime.transformers.float16`, `onnxconverter_common.float16`) send every
input through fp16 first, and the former gives two casts one name once a tensor has two readers that are kept
in fp32, so the casts are placed here; what a node may be comes from the ONNX schemas.
"""

from collections.abc import Iterable
from types import ModuleType
from typing import Any, Literal

import numpy as np

from engines.errors import ExtraError, GraphError

Precision = Literal["fp32", "fp16"]
"""What a plan computes in: the graph as it is, or what `to_fp16` makes of it."""

PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum"})
"""Where fp16 pays, and what marks the fp16 part of a graph."""

KEPT = frozenset({"GRU", "LSTM", "RNN"})
"""Kept in fp32: ONNX Runtime 1.31.1 has crashed loading a whole-window GRU in fp16, though it loads others.
Step graphs hold none of them."""

LARGEST = float(np.finfo(np.float16).max)
"""Weights beyond it saturate; masks of -1e9 are such."""


def to_fp16(graph: bytes) -> bytes:
    """Convert a graph; the same bytes in give the same bytes out.

    Args:
        graph: an ONNX model with float32 inputs and outputs, in one file.

    Raises:
        ExtraError: `onnx` is not installed.
        GraphError: it is no ONNX model, has no matrix product to convert, or does not type-check.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise ExtraError(f"fp16 needs {error.name}: pip install '{error.name}'") from error
    try:
        model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(graph), strict_mode=True)
    except Exception as error:  # onnx and protobuf raise classes without a common base of their own
        raise GraphError(f"onnx {onnx.__version__} cannot read the graph: {error}") from error
    changed = _Conversion(onnx, model).converted()
    try:
        onnx.checker.check_model(changed, full_check=True)
    except Exception as error:  # as above
        raise GraphError(f"the graph cannot be converted to fp16: {error}") from error
    return bytes(changed.SerializeToString(deterministic=True))


class _Conversion:
    """One graph on its way. A tensor keeps its name in fp32 and has `_FP16` appended in fp16."""

    _FP16 = "__fp16"

    def __init__(self, onnx: ModuleType, model: Any) -> None:
        self.onnx = onnx
        self.model = model
        graph = model.graph
        self.opset = {entry.domain: entry.version for entry in model.opset_import}
        float32 = onnx.TensorProto.FLOAT
        described = [*graph.input, *graph.output, *graph.value_info]
        self.floats = {v.name for v in described if v.type.tensor_type.elem_type == float32}
        self.weights = {w.name: w for w in graph.initializer if w.data_type == float32}
        self.floats |= self.weights.keys()
        self.nodes: list[Any] = []
        self.made: list[Any] = []
        self.fp16: set[str] = set()  # tensors that exist in fp16
        self.fp32 = {v.name for v in graph.input} | {w.name for w in graph.initializer}

    def converted(self) -> Any:
        """The model with an fp16 middle."""
        graph = self.model.graph
        chosen = _between(graph)
        if not chosen:
            raise GraphError("the graph holds no matrix product or convolution: fp16 would change nothing")
        for number, node in enumerate(graph.node):
            if number in chosen and self._convertible(node):
                self._halve(node)
            else:
                for name in node.input:
                    self._need_fp32(name)
                self.nodes.append(node)
                self.fp32.update(node.output)
        for tensor in graph.output:
            self._need_fp32(tensor.name)
        read = {name for node in self.nodes for name in node.input}
        weights = [w for w in [*graph.initializer, *self.made] if w.name in read]
        made = self.onnx.helper.make_graph(self.nodes, graph.name, graph.input, graph.output, weights)
        return self.onnx.helper.make_model(
            made, opset_imports=self.model.opset_import, ir_version=self.model.ir_version
        )

    def _convertible(self, node: Any) -> bool:
        """Whether the node takes its type from its inputs, and may be fp16."""
        plain = node.domain in {"", "ai.onnx"} and node.op_type not in KEPT
        typed = {"to", "dtype", "body", "then_branch", "else_branch"}
        return plain and not any(a.name in typed for a in node.attribute) and bool(self._types(node))

    def _types(self, node: Any) -> set[str]:
        """The schema's type variables that are float here and may be float16."""
        schema = self.onnx.defs.get_schema(node.op_type, self.opset.get(node.domain, 1), node.domain)
        half = {c.type_param_str for c in schema.type_constraints if "tensor(float16)" in c.allowed_type_strs}
        last = len(schema.inputs) - 1
        slots = [(schema.inputs[min(i, last)].type_str, name) for i, name in enumerate(node.input)]
        return {variable for variable, name in slots if variable in half and name in self.floats}

    def _halve(self, node: Any) -> None:
        schema = self.onnx.defs.get_schema(node.op_type, self.opset.get(node.domain, 1), node.domain)
        variables = self._types(node)
        halved = self.onnx.NodeProto()
        halved.CopyFrom(node)
        for i, name in enumerate(node.input):
            slot = schema.inputs[min(i, len(schema.inputs) - 1)].type_str
            if slot in variables and name in self.floats:
                halved.input[i] = self._need_fp16(name)
            else:
                self._need_fp32(name)
        for i, name in enumerate(node.output):
            slot = schema.outputs[min(i, len(schema.outputs) - 1)].type_str
            if name and slot in variables:
                halved.output[i] = name + self._FP16
                self.fp16.add(name)
            else:
                self.fp32.add(name)
        self.nodes.append(halved)

    def _need_fp16(self, name: str) -> str:
        half = name + self._FP16
        if name not in self.fp16:
            self.fp16.add(name)
            if name in self.weights:
                array = np.clip(self.onnx.numpy_helper.to_array(self.weights[name]), -LARGEST, LARGEST)
                self.made.append(self.onnx.numpy_helper.from_array(array.astype(np.float16), half))
            else:
                self.nodes.append(
                    self.onnx.helper.make_node("Cast", [name], [half], half, to=self.onnx.TensorProto.FLOAT16)
                )
        return half

    def _need_fp32(self, name: str) -> None:
        if name in self.fp16 and name not in self.fp32:
            self.fp32.add(name)
            half = name + self._FP16
            self.nodes.append(
                self.onnx.helper.make_node(
                    "Cast", [half], [name], name + "__fp32", to=self.onnx.TensorProto.FLOAT
                )
            )


def _between(graph: Any) -> set[int]:
    """Numbers of the nodes that are products, or have one both before and after them."""
    numbered = list(enumerate(graph.node))
    after = _reached([(n, node, node.input, node.output) for n, node in numbered])
    before = _reached([(n, node, node.output, node.input) for n, node in reversed(numbered)])
    return after & before


def _reached(walk: Iterable[tuple[int, Any, list[str], list[str]]]) -> set[int]:
    tensors: set[str] = set()
    nodes: set[int] = set()
    for number, node, sources, targets in walk:
        if node.op_type in PRODUCTS or not tensors.isdisjoint(sources):
            nodes.add(number)
            tensors.update(name for name in targets if name)
    return nodes
