"""Small ONNX models as other people's exporters write them, for tests of what a package is made from.

All look at one thing, so that a test decides what they say by what it draws: the first feature map is the image
itself, its mean is pooled, and the log-odds of `ill` are ``STEEPNESS`` · (mean − one half).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

STEEPNESS = 20.0
CLASSES = ("normal", "ill")
SIDE = 32  # rows and columns of the input
_FEATURES = 4

Array = NDArray[np.generic]
# Nodes from "map" (batch, 4, rows, columns) to "scores", with their constants.
Part = Callable[[], tuple[list[NodeProto], dict[str, Array]]]


def node(kind: str, inputs: Sequence[str], output: str, *, name: str = "", **attributes: object) -> NodeProto:
    """A node with one output, named after it."""
    return helper.make_node(kind, list(inputs), [output], name=name or output, **attributes)


def weights() -> NDArray[np.float32]:
    """Of the last layer, (classes, features): only the first feature counts."""
    values = np.zeros((len(CLASSES), _FEATURES), np.float32)
    values[:, 0] = -STEEPNESS / 2, STEEPNESS / 2
    return values


def bias() -> NDArray[np.float32]:
    """Of the last layer, (classes,)."""
    return np.array([STEEPNESS / 4, -STEEPNESS / 4], np.float32)


def gemm_head() -> tuple[list[NodeProto], dict[str, Array]]:
    """As torchvision's ResNet: pooling, flattening, a Gemm with transposed weights."""
    nodes = [
        node("GlobalAveragePool", ["map"], "pooled"),
        node("Flatten", ["pooled"], "flat", axis=1),
        node("Gemm", ["flat", "fc.weight", "fc.bias"], "scores", transB=1),
    ]
    return nodes, {"fc.weight": weights(), "fc.bias": bias()}


def matmul_head() -> tuple[list[NodeProto], dict[str, Array]]:
    """As Keras: the mean over the places, then MatMul and Add."""
    nodes = [
        node("ReduceMean", ["map", "places"], "pooled", keepdims=0),
        node("MatMul", ["pooled", "kernel"], "product"),
        node("Add", ["product", "fc.bias"], "scores"),
    ]
    return nodes, {"places": np.array([2, 3]), "kernel": np.ascontiguousarray(weights().T), "fc.bias": bias()}


def convolutional_head() -> tuple[list[NodeProto], dict[str, Array]]:
    """A 1 × 1 convolution of the map, pooled afterwards."""
    nodes = [
        node("Conv", ["map", "fc.weight", "fc.bias"], "class_map", kernel_shape=[1, 1]),
        node("GlobalAveragePool", ["class_map"], "pooled"),
        node("Flatten", ["pooled"], "scores", axis=1),
    ]
    return nodes, {"fc.weight": weights()[:, :, None, None], "fc.bias": bias()}


def pooled_convolution_head() -> tuple[list[NodeProto], dict[str, Array]]:
    """Pooling, then a 1 × 1 convolution for a linear layer, then squeezed."""
    nodes = [
        node("AveragePool", ["map"], "pooled", kernel_shape=[SIDE, SIDE]),
        node("Conv", ["pooled", "fc.weight", "fc.bias"], "scored", kernel_shape=[1, 1]),
        node("Squeeze", ["scored", "last"], "scores"),
    ]
    return nodes, {"fc.weight": weights()[:, :, None, None], "fc.bias": bias(), "last": np.array([2, 3])}


def quantised_head() -> tuple[list[NodeProto], dict[str, Array]]:
    """A head in QDQ form: int8 weights, and the pooled features through a quantiser."""
    step = float(np.abs(weights()).max()) / 127
    nodes = [
        node("GlobalAveragePool", ["map"], "pooled"),
        node("Flatten", ["pooled"], "flat", axis=1),
        node("QuantizeLinear", ["flat", "flat.scale", "flat.zero"], "flat.quantised"),
        node("DequantizeLinear", ["flat.quantised", "flat.scale", "flat.zero"], "flat.float"),
        node("DequantizeLinear", ["weight.int8", "weight.scale", "weight.zero"], "weight.float"),
        node("Gemm", ["flat.float", "weight.float", "fc.bias"], "scores", transB=1),
    ]
    constants = {
        "flat.scale": np.float32(1 / 255),
        "flat.zero": np.uint8(0),
        "weight.int8": np.round(weights() / step).astype(np.int8),
        "weight.scale": np.float32(step),
        "weight.zero": np.int8(0),
        "fc.bias": bias(),
    }
    return nodes, {name: np.asarray(value) for name, value in constants.items()}


def hidden_layer_head() -> tuple[list[NodeProto], dict[str, Array]]:
    """Two linear layers with a ReLU between: no activation map can be had from it."""
    hidden = np.eye(_FEATURES, dtype=np.float32)
    nodes = [
        node("GlobalAveragePool", ["map"], "pooled"),
        node("Flatten", ["pooled"], "flat", axis=1),
        node("Gemm", ["flat", "hidden.weight"], "hidden", transB=1),
        node("Relu", ["hidden"], "active"),
        node("Gemm", ["active", "fc.weight", "fc.bias"], "scores", transB=1),
    ]
    return nodes, {"hidden.weight": hidden, "fc.weight": weights(), "fc.bias": bias()}


def model(
    head: Part = gemm_head,
    *,
    activation: str | None = None,
    batch: int | str = "batch",
    extra: Sequence[NodeProto] = (),
    opset: int = 18,
    change: Callable[[dict[str, Array]], None] | None = None,
) -> onnx.ModelProto:
    """A model: ``image`` (batch, 1, 32, 32) on 0…1 to ``logits`` (batch, 2).

    Parameters
    ----------
    activation
        An operator that is applied to the scores inside the graph, e.g. Softmax.
    batch
        The first dimension, fixed where it is a number.
    extra
        Further nodes at the end.
    change
        What a test does to the constants before they are written.
    """
    nodes, constants = head()
    features = np.zeros((_FEATURES, 1, 1, 1), np.float32)
    features[:, 0, 0, 0] = 1.0, 0.5, -0.5, 2.0
    constants = {"stem.weight": features, **constants}
    if change is not None:
        change(constants)
    stem = [
        node("Conv", ["image", "stem.weight"], "stem", kernel_shape=[1, 1]),
        node("Relu", ["stem"], "map"),
    ]
    end = node(activation or "Identity", ["scores"], "logits", **({"axis": 1} if activation == "Softmax" else {}))
    graph = helper.make_graph(
        [*stem, *nodes, end, *extra],
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, len(CLASSES)])],
        initializer=[numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def write_model(file: Path, built: onnx.ModelProto | None = None, *, external: str | None = None) -> Path:
    """Write a model, its weights into a file of their own where ``external`` names one; the model's file."""
    built = model() if built is None else built
    if external is None:
        onnx.save(built, file)
    else:
        onnx.save(built, file, save_as_external_data=True, location=external, size_threshold=0)
    return file
