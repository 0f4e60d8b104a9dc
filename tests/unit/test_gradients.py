"""The gradients that attacks follow are those of the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from attacks import target_of
from gradients import COTANGENT, GRADIENT, gradient_model, log_odds
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from stepwedge.decision.calibrate import finding_scores
from stepwedge.manifest import GOLDEN, FindingSpec, Output, load_package
from stepwedge.records import FloatArray

MODELS = Path(__file__).parents[2] / "models" / "chest-pneumonia"


def test_the_gradient_of_the_shipped_model_is_its_slope() -> None:
    package = load_package(max(file.parent for file in MODELS.glob("*.*.*/model.yaml")))
    spec = package.manifest.input
    target = target_of(package.model_file, package.manifest, package.manifest.findings[0])
    with np.load(package.path / GOLDEN) as golden:
        inputs = golden[f"input.{spec.name}"][:6]
    inside = np.clip(inputs[:, 0] * spec.sd[0] + spec.mean[0], 0.05, 0.95).astype(np.float32)
    scores, slope = target.gradient(inside)
    assert scores == pytest.approx(target.score(inside), abs=1e-4)
    way = slope / np.sqrt(np.square(slope).sum(axis=(1, 2), keepdims=True))
    step = 2e-2
    measured = (target.score(inside + step * way) - target.score(inside - step * way)) / (2 * step)
    assert (slope * way).sum(axis=(1, 2)) == pytest.approx(measured, rel=0.1)


def test_the_gradient_is_right_through_every_operator() -> None:
    """In float64 nothing could be run; in float32 a piecewise smooth graph is followed to a hundredth."""
    model = _every_operator()
    made = gradient_model(model, "image", "scores")
    onnx.checker.check_model(made)
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(4)
    image = rng.random((3, 2, 9, 8), dtype=np.float32)
    cotangent = rng.standard_normal((3, 3), dtype=np.float32)
    _, slope = session.run(["scores", GRADIENT], {"image": image, COTANGENT: cotangent})

    def value(at: FloatArray) -> NDArray[np.float64]:
        scores = session.run(["scores"], {"image": at, COTANGENT: cotangent})[0]
        return np.asarray((scores.astype(np.float64) * cotangent).sum(axis=1))

    way = slope / np.sqrt(np.square(slope).sum(axis=(1, 2, 3), keepdims=True))
    measured = (value(image + 5e-3 * way) - value(image - 5e-3 * way)) / 1e-2
    assert (slope * way).sum(axis=(1, 2, 3)) == pytest.approx(measured, rel=0.02)
    other = rng.standard_normal(image.shape, dtype=np.float32)
    across = (value(image + 2e-3 * other) - value(image - 2e-3 * other)) / 4e-3
    assert (slope * other).sum(axis=(1, 2, 3)) == pytest.approx(across, rel=0.1, abs=0.02)


def test_an_operator_without_a_backward_pass_is_named() -> None:
    nodes = [helper.make_node("Cos", ["image"], ["scores"])]
    with pytest.raises(NotImplementedError, match="Cos"):
        gradient_model(_model(nodes, [], [2]), "image", "scores")


@pytest.mark.parametrize(
    ("output", "finding"),
    [
        (Output(scores="s", classes=["a", "b", "c"], kind="exclusive"), ["b", "c"]),
        (Output(scores="s", classes=["a", "b", "c"], kind="exclusive", activation="softmax"), ["b"]),
        (Output(scores="s", classes=["a", "b", "c"], kind="independent"), ["c"]),
        (Output(scores="s", classes=["a", "b", "c"], kind="independent", activation="sigmoid"), ["a"]),
    ],
)
def test_the_log_odds_that_are_attacked_are_those_that_are_decided_on(output: Output, finding: list[str]) -> None:
    """Their slope over the scores, against differences of what the decision layer reads."""
    spec = FindingSpec(name="f", code={"value": "1", "scheme": "99TEST", "meaning": "f"}, positive=finding)
    graph = helper.make_graph(
        log_odds(output, spec)("scores", "slope"),
        "test",
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("slope", TensorProto.FLOAT, ["batch", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    scores = np.random.default_rng(1).uniform(0.1, 0.3, (4, 3)).astype(np.float32)
    (slope,) = session.run(["slope"], {"scores": scores})
    for column in range(3):
        step = np.zeros(3)
        step[column] = 1e-4
        ahead, behind = (finding_scores(scores + sign * step, output, spec) for sign in (1, -1))
        assert slope[:, column] == pytest.approx((ahead - behind) / 2e-4, rel=2e-3, abs=2e-3)


def _every_operator() -> onnx.ModelProto:
    """A graph with a squeeze-and-excitation block, pooling of all kinds, both kinds of linear layer, and a softmax."""
    rng = np.random.default_rng(3)

    def weights(*shape: int) -> NDArray[np.float32]:
        return (rng.standard_normal(shape) * 0.5).astype(np.float32)

    constants = {
        "w1": weights(4, 2, 3, 3),
        "b1": weights(4),
        "w2": weights(4, 2, 3, 3),  # in two groups
        "scale": weights(4),
        "shift": weights(4),
        "mean": weights(4),
        "variance": np.abs(weights(4)) + np.float32(0.5),
        "squeeze": weights(4, 4, 1, 1),
        "half": np.float32(0.5),
        "linear": weights(4, 5),
        "head": weights(3, 5),
        "bias": weights(3),
        "axes": np.asarray([1], np.int64),
    }
    nodes = [
        helper.make_node("Sub", ["image", "half"], ["centred"]),
        helper.make_node("Div", ["centred", "half"], ["normal"]),
        helper.make_node("Conv", ["normal", "w1", "b1"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "variance"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Conv", ["c", "w2"], ["d"], group=2, pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Conv", ["e", "squeeze"], ["f"], kernel_shape=[1, 1]),
        helper.make_node("Sigmoid", ["f"], ["g"]),
        helper.make_node("Mul", ["d", "g"], ["h"]),
        helper.make_node("Add", ["h", "c"], ["i"]),
        helper.make_node("AveragePool", ["i"], ["j"], kernel_shape=[2, 1], strides=[1, 1]),
        helper.make_node("MaxPool", ["j"], ["k"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("ReduceMean", ["k"], ["l"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["l", "linear"], ["m"]),
        helper.make_node("Unsqueeze", ["m", "axes"], ["n"]),
        helper.make_node("Flatten", ["n"], ["o"], axis=1),
        helper.make_node("Gemm", ["o", "head", "bias"], ["p"], alpha=2.0, transB=1),
        helper.make_node("Softmax", ["p"], ["scores"], axis=1),
    ]
    initializers = [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()]
    return _model(nodes, initializers, [3])


def _model(
    nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto], outside: list[int | str]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 2, 9, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", *outside])],
        initializer=initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
