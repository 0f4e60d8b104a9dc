"""The gradient of a model's scores with respect to its input, as an ONNX graph of its own.

Attacks need gradients, and nothing that computes them is among the test dependencies: so the backward pass of the
operators that small convolutional networks are made of is written out here, node by node, and run by ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, shape_inference
from stepwedge.manifest import FindingSpec, Manifest, Output

COTANGENT, GRADIENT = "cotangent", "gradient"

Attributes = dict[str, Any]
Shapes = Mapping[str, Sequence[int]]  # 0 for a size that is not fixed

# As in ``decision.calibrate``.
_SMALLEST_PROBABILITY = 1e-7

_SAME_ELEMENTS = ("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Dropout")


class _Backward:
    """The nodes of a backward pass as they are written."""

    def __init__(self, model: onnx.ModelProto) -> None:
        inferred = shape_inference.infer_shapes(model)
        self.constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant":
                self.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
        self.shapes: dict[str, list[int]] = {
            value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values
        }
        self.shapes |= {name: list(array.shape) for name, array in self.constants.items()}
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.opset = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))

    def add(self, kind: str, inputs: Sequence[str], **attributes: object) -> str:
        name = f"backward/{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, values: NDArray[Any]) -> str:
        name = f"backward/constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def like(self, cotangent: str, name: str) -> str:
        """Reshaped to the shape of ``name``."""
        return self.add("Reshape", [cotangent, self.add("Shape", [name])])

    def unbroadcast(self, cotangent: str, name: str, result: str) -> str:
        """Summed over what broadcasting ``name`` to ``result`` has repeated."""
        shape, wide = self.shapes[name], self.shapes[result]
        aligned = [1] * (len(wide) - len(shape)) + list(shape)
        axes = [axis for axis, (have, want) in enumerate(zip(aligned, wide, strict=True)) if have == 1 and want != 1]
        if axes:
            cotangent = self.add("ReduceSum", [cotangent, self.constant(np.asarray(axes, np.int64))], keepdims=1)
        return self.like(cotangent, name) if len(shape) != len(wide) else cotangent


def gradient_model(
    model: onnx.ModelProto,
    image: str,
    scores: str,
    cotangent: Callable[[str, str], Sequence[onnx.NodeProto]] | None = None,
) -> onnx.ModelProto:
    """The model with a backward pass behind it.

    Parameters
    ----------
    image, scores
        Names of the input and of the output (batch, classes).
    cotangent
        Nodes that compute the cotangent (second name) from the scores (first name), such as ``log_odds``. Left out,
        the cotangent (batch, classes) is an input of its own.

    Returns
    -------
    A model with the inputs ``image`` and maybe ``cotangent`` and the outputs ``scores`` and ``gradient``, of the shape
    of ``image``: the gradient of the sum of cotangent × scores.

    Raises
    ------
    NotImplementedError
        If an operator between the two is not known here; it is named.
    """
    backward = _Backward(model)
    nodes = _between(model.graph, image, scores)
    pending: dict[str, list[str]] = {scores: [COTANGENT]}
    wanted = {image, *(name for node in nodes for name in node.output)}
    for node in reversed(nodes):
        rule = _RULES.get(node.op_type)
        if rule is None:
            raise NotImplementedError(f"no backward pass for the operator {node.op_type} ({node.name})")
        parts = pending.pop(node.output[0], [])
        if not parts:
            continue
        arriving = parts[0] if len(parts) == 1 else backward.add("Sum", parts)
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        for name, part in rule(backward, node, attributes, arriving):
            if name in wanted:
                pending.setdefault(name, []).append(part)
    parts = pending[image]
    backward.nodes.append(helper.make_node("Sum", parts, [GRADIENT]))
    graph = onnx.GraphProto()
    graph.CopyFrom(model.graph)
    kept = next(item for item in graph.output if item.name == scores)
    shape = [dim.dim_value or dim.dim_param for dim in kept.type.tensor_type.shape.dim]
    source = next(item for item in graph.input if item.name == image)
    size = [dim.dim_value or dim.dim_param for dim in source.type.tensor_type.shape.dim]
    del graph.output[:]
    graph.output.extend([kept, helper.make_tensor_value_info(GRADIENT, TensorProto.FLOAT, size)])
    if cotangent is None:
        graph.input.append(helper.make_tensor_value_info(COTANGENT, TensorProto.FLOAT, shape))
    else:
        graph.node.extend(cotangent(scores, COTANGENT))
    graph.initializer.extend(backward.initializers)
    graph.node.extend(backward.nodes)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def log_odds(output: Output, finding: FindingSpec) -> Callable[[str, str], list[onnx.NodeProto]]:
    """The slope of a finding's log-odds (``decision.calibrate.finding_scores``) over the graph's scores."""
    column = {name: index for index, name in enumerate(output.classes)}
    independent = output.kind == "independent"
    positive = [column[name] for name in finding.positive]
    rest = [] if independent else [column[n] for n in finding.among or output.classes if n not in finding.positive]

    def nodes(scores: str, result: str) -> list[onnx.NodeProto]:
        made: list[onnx.NodeProto] = []

        def add(kind: str, *inputs: str, **attributes: object) -> str:
            made.append(helper.make_node(kind, list(inputs), [f"odds/{kind}_{len(made)}"], **attributes))
            return str(made[-1].output[0])

        def constant(values: NDArray[Any]) -> str:
            return add("Constant", value=numpy_helper.from_array(np.asarray(values, np.float32)))

        def share(columns: list[int], values: str) -> str:
            """Softmax among some of the classes: the slope of their log of summed exponentials."""
            hidden = np.full((1, len(column)), -1e9, np.float32)
            hidden[:, columns] = 0
            return add("Softmax", add("Add", values, constant(hidden)), axis=-1)

        values = scores
        if output.activation == "softmax":
            values = add("Log", add("Max", scores, constant(np.asarray(_SMALLEST_PROBABILITY))))
        if independent:
            one = np.zeros((1, len(column)), np.float32)
            one[:, positive] = 1
            slope = add("Add", add("Mul", scores, constant(np.asarray(0.0))), constant(one))
            if output.activation == "sigmoid":
                spread = add("Mul", scores, add("Sub", constant(np.asarray(1.0)), scores))
                slope = add("Div", slope, add("Max", spread, constant(np.asarray(_SMALLEST_PROBABILITY))))
        else:
            slope = add("Sub", share(positive, values), share(rest, values))
            if output.activation == "softmax":
                slope = add("Div", slope, add("Max", scores, constant(np.asarray(_SMALLEST_PROBABILITY))))
        made.append(helper.make_node("Identity", [slope], [result]))
        return made

    return nodes


def open_gradient(
    model: Path, manifest: Manifest, finding: FindingSpec
) -> Callable[[NDArray[np.float32]], tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """A function from input tensors to the scores and the gradient of a finding's log-odds. One thread."""
    image, scores = manifest.input.name, manifest.output.scores
    made = gradient_model(onnx.load(model), image, scores, log_odds(manifest.output, finding))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        found = session.run([scores, GRADIENT], {image: inputs})
        return found[0], found[1]

    return run


def _between(graph: onnx.GraphProto, image: str, scores: str) -> list[onnx.NodeProto]:
    """The nodes on any way from the image to the scores, in order."""
    reached = {image}
    for node in graph.node:
        if reached & set(node.input):
            reached |= set(node.output)
    needed = {scores}
    kept = []
    for node in reversed(graph.node):
        if needed & set(node.output) and reached & set(node.output):
            needed |= set(node.input)
            kept.append(node)
    return kept[::-1]


# --- The rules: a node and the cotangent of its output, to those of its inputs --------------------------------------

Parts = list[tuple[str, str]]


def _conv(b: _Backward, node: onnx.NodeProto, attributes: Attributes, cotangent: str) -> Parts:
    weight = b.shapes[node.input[1]]
    kept = {k: v for k, v in attributes.items() if k in ("strides", "pads", "dilations", "group", "kernel_shape")}
    padding = _output_padding(b, node, attributes, weight[2:])
    return [(node.input[0], b.add("ConvTranspose", [cotangent, node.input[1]], output_padding=padding, **kept))]


def _average_pool(b: _Backward, node: onnx.NodeProto, attributes: Attributes, cotangent: str) -> Parts:
    side = attributes["kernel_shape"]
    if any(attributes.get("pads", [0])) and not attributes.get("count_include_pad", 0):
        raise NotImplementedError("no backward pass for an AveragePool that leaves its padding out of the count")
    channels = b.shapes[node.input[0]][1]
    weight = b.constant(np.full((channels, 1, *side), 1 / np.prod(side), np.float32))
    kept = {k: v for k, v in attributes.items() if k in ("strides", "pads")}
    padding = _output_padding(b, node, attributes, side)
    spread = b.add("ConvTranspose", [cotangent, weight], output_padding=padding, group=channels, **kept)
    return [(node.input[0], spread)]


def _output_padding(b: _Backward, node: onnx.NodeProto, attributes: Attributes, kernel: Sequence[int]) -> list[int]:
    """What the transposed convolution must add at the far edges to give the input's size back."""
    axes = len(kernel)
    strides, dilations = attributes.get("strides", [1] * axes), attributes.get("dilations", [1] * axes)
    pads = attributes.get("pads", [0] * 2 * axes)
    have, want = b.shapes[node.output[0]][2:], b.shapes[node.input[0]][2:]
    return [
        want[i] - ((have[i] - 1) * strides[i] - pads[i] - pads[i + axes] + dilations[i] * (kernel[i] - 1) + 1)
        for i in range(axes)
    ]


def _max_pool(b: _Backward, node: onnx.NodeProto, attributes: Attributes, cotangent: str) -> Parts:
    side = list(attributes["kernel_shape"])
    size = b.shapes[node.input[0]]
    if list(attributes.get("strides", [])) != side or any(attributes.get("pads", [0])):
        raise NotImplementedError("no backward pass for a MaxPool whose windows overlap")
    if any(have % step for have, step in zip(size[2:], side, strict=True)):
        raise NotImplementedError("no backward pass for a MaxPool that leaves an edge out")
    scales = b.constant(np.asarray([1, 1, *side], np.float32))
    how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    largest, spread = (b.add("Resize", [name, "", scales], **how) for name in (node.output[0], cotangent))
    here = b.add("Cast", [b.add("Equal", [node.input[0], largest])], to=TensorProto.FLOAT)
    return [(node.input[0], b.add("Mul", [here, spread]))]


def _relu(b: _Backward, node: onnx.NodeProto, attributes: Attributes, cotangent: str) -> Parts:
    return [(node.input[0], b.add("Mul", [cotangent, b.add("Sign", [node.output[0]])]))]


def _sigmoid(b: _Backward, node: onnx.NodeProto, attributes: Attributes, cotangent: str) -> Parts:
    one = b.constant(np.ones((), np.float32))
    slope = b.add("Mul", [node.output[0], b.add("Sub", [one, node.output[0]])])
    return [(node.input[0], b.add("Mul", [cotangent, slope]))]


def _softmax(b: _Backward, node: onnx.NodeProto, attributes: Attributes, cotangent: str) -> Parts:
    axis = b.constant(np.asarray([attributes.get("axis", -1)], np.int64))
    weighted = b.add("Mul", [cotangent, node.output[0]])
    total = b.add("ReduceSum", [weighted, axis], keepdims=1)
    return [(node.input[0], b.add("Sub", [weighted, b.add("Mul", [node.output[0], total])]))]


def _add(b: _Backward, node: onnx.NodeProto, attributes: Attributes, cotangent: str) -> Parts:
    return [(name, b.unbroadcast(cotangent, name, node.output[0])) for name in node.input if name not in b.constants]


def _sub(b: _Backward, node: onnx.NodeProto, attributes: Attributes, cotangent: str) -> Parts:
    parts = [cotangent, b.add("Neg", [cotangent])]
    return [
        (name, b.unbroadcast(part, name, node.output[0]))
        for name, part in zip(node.input, parts, strict=True)
        if name not in b.constants
    ]


def _mul(b: _Backward, node: onnx.NodeProto, attributes: Attributes, cotangent: str) -> Parts:
    first, second = node.input
    return [
        (name, b.unbroadcast(b.add("Mul", [cotangent, other]), name, node.output[0]))
        for name, other in ((first, second), (second, first))
        if name not in b.constants
    ]


def _div(b: _Backward, node: onnx.NodeProto, attributes: Attributes, cotangent: str) -> Parts:
    first, second = node.input
    if second not in b.constants:
        raise NotImplementedError("no backward pass for a division by what is not constant")
    return [(first, b.unbroadcast(b.add("Div", [cotangent, second]), first, node.output[0]))]


def _mean(b: _Backward, node: onnx.NodeProto, attributes: Attributes, cotangent: str) -> Parts:
    shape = b.shapes[node.input[0]]
    if node.op_type == "GlobalAveragePool":
        axes = list(range(2, len(shape)))
    else:
        given = attributes.get("axes")
        axes = [int(a) % len(shape) for a in (b.constants[node.input[1]] if given is None else given)]
    size = b.constant(np.asarray([1 if i in axes else (n or -1) for i, n in enumerate(shape)], np.int64))
    share = b.constant(np.asarray(1 / np.prod([shape[axis] for axis in axes]), np.float32))
    small = b.add("Mul", [b.add("Reshape", [cotangent, size]), share])
    return [(node.input[0], b.add("Expand", [small, b.add("Shape", [node.input[0]])]))]


def _gemm(b: _Backward, node: onnx.NodeProto, attributes: Attributes, cotangent: str) -> Parts:
    if attributes.get("transA", 0):
        raise NotImplementedError("no backward pass for a Gemm with transA")
    alpha, transposed = attributes.get("alpha", 1.0), attributes.get("transB", 0)
    return [(node.input[0], b.add("Gemm", [cotangent, node.input[1]], alpha=alpha, transB=1 - transposed))]


def _matmul(b: _Backward, node: onnx.NodeProto, attributes: Attributes, cotangent: str) -> Parts:
    weight = b.constant(b.constants[node.input[1]].T)
    return [(node.input[0], b.add("MatMul", [cotangent, weight]))]


def _batch_normalisation(b: _Backward, node: onnx.NodeProto, attributes: Attributes, cotangent: str) -> Parts:
    scale, variance = b.constants[node.input[1]], b.constants[node.input[4]]
    slope = scale / np.sqrt(variance + attributes.get("epsilon", 1e-5))
    return [(node.input[0], b.add("Mul", [cotangent, b.constant(slope[:, None, None].astype(np.float32))]))]


def _same_elements(b: _Backward, node: onnx.NodeProto, attributes: Attributes, cotangent: str) -> Parts:
    return [(node.input[0], b.like(cotangent, node.input[0]))]


_RULES: dict[str, Callable[[_Backward, onnx.NodeProto, Attributes, str], Parts]] = {
    "Add": _add,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalisation,
    "Conv": _conv,
    "Div": _div,
    "Gemm": _gemm,
    "GlobalAveragePool": _mean,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Mul": _mul,
    "ReduceMean": _mean,
    "Relu": _relu,
    "Sigmoid": _sigmoid,
    "Softmax": _softmax,
    "Sub": _sub,
    **dict.fromkeys(_SAME_ELEMENTS, _same_elements),
}
