"""How a graph ends: its activation, and the last linear layer with the feature map that it sees the mean of.

Works on plain records of a graph's nodes; ``package.graph`` makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stepwedge.records import FloatArray

Activation = Literal["none", "sigmoid", "softmax"]
Values = NDArray[Any]

# Nodes that leave the values of scores and pooled features as they are, the second kind within quantisation.
_PASSING = frozenset({"Identity", "Dropout", "Cast", "Flatten", "Reshape", "Squeeze", "Unsqueeze"})
_QUANTISING = frozenset({"QuantizeLinear", "DequantizeLinear"})
_ACTIVATIONS: Mapping[str, Activation] = {"Softmax": "softmax", "Sigmoid": "sigmoid"}


@dataclass(frozen=True, kw_only=True)
class Node:
    """One operation of a graph."""

    type: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Wiring:
    """A graph's nodes by what they make, its constants, and the sizes of its tensors as far as they are known."""

    made_by: Mapping[str, Node]
    constants: Mapping[str, Callable[[], Values]]
    sizes: Mapping[str, Sequence[int]]  # 0 stands for any


@dataclass(frozen=True, kw_only=True)
class Head:
    """The last linear layer before an output: scores = weights · features + bias."""

    features: str  # the tensor that goes in, (batch, features) with any number of sizes 1 behind, or a map
    feature_map: str | None  # (batch, features, rows, columns), where the scores are linear in its mean
    weights: FloatArray | None  # (classes, features), where they are constant
    bias: FloatArray | None  # (classes,)
    pooled_after: bool  # the layer is a 1 × 1 convolution of the map, and its output is pooled
    exact: bool  # nothing is quantised between the map and the scores


@dataclass(frozen=True, kw_only=True)
class _Linear:
    features: str
    weights: FloatArray | None
    bias: FloatArray | None


def activation(wiring: Wiring, output: str) -> Activation:
    """The activation that an output's values went through last."""
    node, _ = _back(wiring, output, _PASSING | _QUANTISING)
    return _ACTIVATIONS.get(node.type, "none") if node is not None else "none"


def quantisation_step(wiring: Wiring, output: str) -> float | None:
    """The step of an output's quantisation, where it is quantised at the end."""
    node = wiring.made_by.get(output)
    scale = constant(wiring, node.inputs[1]) if node is not None and node.type == "DequantizeLinear" else None
    return None if scale is None else float(np.max(scale))


def find_head(wiring: Wiring, scores: str) -> Head | None:
    """The last linear layer before an output, or None where the graph does not end in one that is recognised."""
    node, exact = _back(wiring, scores, _PASSING | _QUANTISING | _ACTIVATIONS.keys())
    if node is None:
        return None
    pooled = _pooled(wiring, node)
    if pooled is not None:
        node, exact_map = _back(wiring, pooled, _QUANTISING | {"Identity", "Dropout", "Cast"})
        exact &= exact_map
    linear = _linear(wiring, node) if node is not None else None
    if linear is None:
        return None
    if pooled is not None:
        feature_map: str | None = linear.features
    else:
        before, exact_features = _back(wiring, linear.features, _PASSING | _QUANTISING)
        feature_map = _pooled(wiring, before) if before is not None else None
        exact &= exact_features
    return Head(
        features=linear.features,
        feature_map=feature_map,
        weights=linear.weights,
        bias=linear.bias,
        pooled_after=pooled is not None,
        exact=exact,
    )


def constant(wiring: Wiring, name: str) -> Values | None:
    """The value of a tensor that does not depend on the input, where it is simply made."""
    if name in wiring.constants:
        return wiring.constants[name]()
    node = wiring.made_by.get(name)
    if node is None or node.type not in ("Identity", "Transpose", "DequantizeLinear"):
        return None
    parts = [part for name in node.inputs if name and (part := constant(wiring, name)) is not None]
    if len(parts) < sum(1 for name in node.inputs if name):
        return None
    if node.type == "Transpose":
        return np.transpose(parts[0], node.attributes.get("perm"))
    return parts[0] if node.type == "Identity" else _dequantised(parts, node.attributes.get("axis", 1))


def _back(wiring: Wiring, name: str, through: frozenset[str]) -> tuple[Node | None, bool]:
    """The first node behind a tensor that is of none of some types, and whether none of those quantises."""
    exact = True
    node = wiring.made_by.get(name)
    while node is not None and node.type in through:
        exact &= node.type not in _QUANTISING
        node = wiring.made_by.get(node.inputs[0])
    return node, exact


def _linear(wiring: Wiring, node: Node) -> _Linear | None:
    if node.type == "Add":
        return _with_added_bias(wiring, node)
    attributes = node.attributes
    plain = node.type in ("Gemm", "MatMul") and not attributes.get("transA", 0)
    if not plain and not (node.type == "Conv" and _pointwise(node)):
        return None
    weights = constant(wiring, node.inputs[1])
    if weights is not None:
        if node.type == "MatMul" or (node.type == "Gemm" and not attributes.get("transB", 0)):
            weights = weights.T
        weights = weights.reshape(len(weights), -1) * np.float32(attributes.get("alpha", 1.0))
    bias = constant(wiring, node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
    if bias is not None:
        bias = bias.ravel() * np.float32(attributes.get("beta", 1.0))
    return _Linear(features=node.inputs[0], weights=_float32(weights), bias=_float32(bias))


def _with_added_bias(wiring: Wiring, node: Node) -> _Linear | None:
    first, second = node.inputs
    for product, other in ((first, second), (second, first)):
        made, _ = _back(wiring, product, _QUANTISING)
        bias = constant(wiring, other)
        if made is not None and made.type in ("MatMul", "Gemm", "Conv") and bias is not None:
            found = _linear(wiring, made)
            if found is not None and found.bias is None:
                return _Linear(features=found.features, weights=found.weights, bias=_float32(bias.ravel()))
    return None


def _pooled(wiring: Wiring, node: Node) -> str | None:
    """The feature map whose mean over all places a node takes, or None."""
    source = node.inputs[0] if node.inputs else ""
    if node.type == "GlobalAveragePool":
        return source
    if node.type == "ReduceMean":
        axes = node.attributes.get("axes")
        given = constant(wiring, node.inputs[1]) if axes is None and len(node.inputs) > 1 else None
        axes = axes if given is None else given.ravel().tolist()
        return source if axes and {int(axis) % 4 for axis in axes} == {2, 3} else None
    if node.type == "AveragePool":
        whole = list(wiring.sizes.get(source, ()))[2:] == list(node.attributes.get("kernel_shape", ()))
        return source if whole and not any(node.attributes.get("pads", ())) else None
    return None


def _pointwise(node: Node) -> bool:
    once = all(set(node.attributes.get(name, (1,))) == {1} for name in ("kernel_shape", "strides"))
    return once and node.attributes.get("group", 1) == 1 and not any(node.attributes.get("pads", ()))


def _dequantised(parts: Sequence[Values], axis: int) -> Values:
    """Of the inputs of DequantizeLinear: values, scale and, where there is one, zero point."""
    values, scale = parts[0].astype(np.float32), parts[1].astype(np.float32)
    zero = parts[2].astype(np.float32) if len(parts) > 2 else np.zeros_like(scale)
    if scale.size > 1:
        shape = [-1 if place == axis % values.ndim else 1 for place in range(values.ndim)]
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return np.asarray((values - zero) * scale)


def _float32(values: Values | None) -> FloatArray | None:
    return None if values is None else np.ascontiguousarray(values, dtype=np.float32)
