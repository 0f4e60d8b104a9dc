"""DenseNet-121, which the GPU benchmark runs beside the shipped model, and how much arithmetic a model takes.

The shipped model is too small to fill a GPU. DenseNet-121 (Huang et al., CVPR 2017) is what most published chest
radiograph classifiers are; here with random weights, since only its arithmetic is measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import NodeProto, TensorProto, helper, numpy_helper, shape_inference
from packages import CLASSES, EMBEDDING, INPUT, LOGITS, seal, write_package
from stepwedge.manifest import GOLDEN

_GROWTH, _BLOCKS, _STEM, _BOTTLENECK = 32, (6, 12, 24, 16), 64, 128
_GOLDEN_TOLERANCE = 0.002  # the shipped package's


class _Builder:
    """Nodes and random weights, as they are added."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []
        self._rng = np.random.default_rng(0)

    def add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: np.ndarray[Any, Any]) -> str:
        self.weights.append(numpy_helper.from_array(value.astype(np.float32), name))
        return name

    def convolution(self, x: str, name: str, channels: tuple[int, int], side: int, stride: int = 1) -> str:
        inputs, outputs = channels
        weight = self._rng.normal(0, math.sqrt(2 / (inputs * side * side)), (outputs, inputs, side, side))
        pads = [side // 2] * 4
        return self.add("Conv", [x, self.constant(f"{name}.weight", weight)], name, pads=pads, strides=[stride] * 2)

    def normalised(self, x: str, name: str, channels: int) -> str:
        ones, zeros = np.ones(channels), np.zeros(channels)
        values = (("scale", ones), ("bias", zeros), ("mean", zeros), ("variance", ones))
        constants = [self.constant(f"{name}.{part}", value) for part, value in values]
        return self.add("Relu", [self.add("BatchNormalization", [x, *constants], f"{name}.norm")], f"{name}.relu")


def densenet121(rows: int, columns: int) -> onnx.ModelProto:
    """``image``, float32 (batch, 1, rows, columns), to ``logits`` (batch, 2) and ``embedding`` (batch, 1024)."""
    net = _Builder()
    x = net.convolution(INPUT, "stem", (1, _STEM), 7, stride=2)
    x = net.normalised(x, "stem.n", _STEM)
    x = net.add("MaxPool", [x], "stem.pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = _STEM
    for block, layers in enumerate(_BLOCKS):
        for layer in range(layers):
            name = f"b{block}.{layer}"
            y = net.normalised(x, f"{name}.1", channels)
            y = net.convolution(y, f"{name}.c1", (channels, _BOTTLENECK), 1)
            y = net.normalised(y, f"{name}.2", _BOTTLENECK)
            y = net.convolution(y, f"{name}.c2", (_BOTTLENECK, _GROWTH), 3)
            x = net.add("Concat", [x, y], f"{name}.out", axis=1)
            channels += _GROWTH
        if block < len(_BLOCKS) - 1:
            y = net.normalised(x, f"t{block}", channels)
            channels //= 2
            y = net.convolution(y, f"t{block}.c", (channels * 2, channels), 1)
            x = net.add("AveragePool", [y], f"t{block}.pool", kernel_shape=[2, 2], strides=[2, 2])
    x = net.normalised(x, "last", channels)
    net.add("Flatten", [net.add("GlobalAveragePool", [x], "pooled")], EMBEDDING, axis=1)
    head = np.random.default_rng(1).normal(0, 1 / math.sqrt(channels), (len(CLASSES), channels))
    net.add("Gemm", [EMBEDDING, net.constant("head", head)], LOGITS, transB=1)
    graph = helper.make_graph(
        net.nodes,
        "densenet121",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", 1, rows, columns])],
        [
            helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["batch", len(CLASSES)]),
            helper.make_tensor_value_info(EMBEDDING, TensorProto.FLOAT, ["batch", channels]),
        ],
        initializer=net.weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def write_densenet_package(folder: Path, side: int) -> Path:
    """A package of it that the server loads; its golden outputs come from the CPU."""
    name = f"densenet121-{side}"
    write_package(folder, name=name, rows=side, columns=side, manifest={"golden_tolerance": _GOLDEN_TOLERANCE})
    onnx.save(densenet121(side, side), folder / "model.onnx")
    session = ort.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(2).random((3, 1, side, side), dtype=np.float32)
    logits, embedding = session.run([LOGITS, EMBEDDING], {INPUT: images})
    arrays = {f"input.{INPUT}": images, f"output.{LOGITS}": logits, f"output.{EMBEDDING}": embedding}
    np.savez(folder / GOLDEN, allow_pickle=False, **arrays)
    seal(folder)
    return folder


def multiply_adds(file: Path) -> int:
    """Multiplications with additions for one image, of convolutions and linear layers; the rest is little."""
    model = onnx.load(file)
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    model = shape_inference.infer_shapes(model)
    sizes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in [*model.graph.value_info, *model.graph.output]
    }
    weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    total = 0
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in weights:
            continue
        weight = weights[node.input[1]]
        if node.op_type == "Conv":
            total += math.prod(weight) * math.prod(sizes[node.output[0]][2:])
        else:
            total += math.prod(weight)
    return total
