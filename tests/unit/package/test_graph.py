"""What other people's graphs are made of is found in them; what cannot be served is refused and named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import graphs
import numpy as np
import onnx
import pytest
from graphs import write_model
from labelled import write_manifest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from stepwedge.errors import PackageError
from stepwedge.inference.engine import OnnxEngine
from stepwedge.manifest import Calibration, Manifest, Package, read_manifest
from stepwedge.package.graph import describe, prepare, read_model
from stepwedge.package.graph import write_model as save_model

HEADS = {
    "gemm": graphs.gemm_head,
    "matmul and add": graphs.matmul_head,
    "1 × 1 convolution, then pooling": graphs.convolutional_head,
    "pooling, then 1 × 1 convolution": graphs.pooled_convolution_head,
    "quantised": graphs.quantised_head,
}
OUTPUT = {"scores": "logits", "classes": list(graphs.CLASSES), "kind": "exclusive"}


class Unproven(OnnxEngine):
    """An engine that needs no golden cases."""

    def check_golden(self) -> float:
        return 0.0


def description(folder: Path, **changes: Any) -> Manifest:
    return read_manifest(write_manifest(folder / "model.yaml", **changes))


def images(count: int = 3) -> NDArray[np.float32]:
    return np.random.default_rng(0).random((count, 1, graphs.SIDE, graphs.SIDE), dtype=np.float32)


def run(model: onnx.ModelProto, folder: Path, manifest: Manifest, count: int = 3) -> dict[str, NDArray[np.float32]]:
    save_model(model, folder)
    package = Package(path=folder, manifest=manifest, calibration=Calibration(findings={}), digest="")
    return Unproven(package, "cpu", 1).run({"image": images(count)})[0]


def wanted(count: int = 3) -> NDArray[np.float32]:
    half = graphs.STEEPNESS / 2 * (images(count).mean(axis=(1, 2, 3)) - 0.5)
    return np.stack([-half, half], axis=1)


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_embedding_and_activation_map_are_added_and_the_scores_stay(tmp_path: Path, head: graphs.Part) -> None:
    manifest = description(tmp_path)
    prepared = prepare(read_model(write_model(tmp_path / "in.onnx", graphs.model(head))), manifest)
    assert (prepared.embedding, prepared.activation_map) == ("embedding", "activation_map")
    outputs = run(prepared.model, tmp_path, manifest)
    exact = 1e-4 if head is not graphs.quantised_head else 0.1
    np.testing.assert_allclose(outputs["logits"], wanted(), atol=exact)
    assert outputs["embedding"].shape == (3, 4)
    np.testing.assert_allclose(outputs["embedding"][:, 0], images().mean(axis=(1, 2, 3)), atol=2e-3)
    assert outputs["activation_map"].shape == (3, 2, graphs.SIDE, graphs.SIDE)
    logits = outputs["activation_map"].mean(axis=(2, 3)) + graphs.bias()
    np.testing.assert_allclose(logits, wanted(), atol=exact)


def test_a_head_with_a_hidden_layer_gives_an_embedding_but_no_map(tmp_path: Path) -> None:
    manifest = description(tmp_path)
    model = read_model(write_model(tmp_path / "in.onnx", graphs.model(graphs.hidden_layer_head)))
    prepared = prepare(model, manifest)
    assert (prepared.embedding, prepared.activation_map) == ("embedding", None)
    assert any("by occlusion" in note for note in prepared.notes)
    assert run(prepared.model, tmp_path, manifest)["embedding"].shape == (3, 4)


def test_a_graph_that_does_not_end_in_a_linear_layer_is_left_as_it_is(tmp_path: Path) -> None:
    def square() -> tuple[list[onnx.NodeProto], dict[str, graphs.Array]]:
        nodes, constants = graphs.gemm_head()
        nodes[-1].output[0] = "linear"
        return [*nodes, graphs.node("Mul", ["linear", "linear"], "scores")], constants

    prepared = prepare(read_model(write_model(tmp_path / "in.onnx", graphs.model(square))), description(tmp_path))
    assert (prepared.embedding, prepared.activation_map) == (None, None)
    assert [output.name for output in prepared.model.graph.output] == ["logits"]


def test_outputs_that_the_description_names_are_kept(tmp_path: Path) -> None:
    model = graphs.model()
    model.graph.output.append(helper.make_tensor_value_info("flat", TensorProto.FLOAT, ["batch", 4]))
    manifest = description(tmp_path, output={**OUTPUT, "embedding": "flat"}, explanation={"kind": "none"})
    prepared = prepare(read_model(write_model(tmp_path / "in.onnx", model)), manifest)
    assert (prepared.embedding, prepared.activation_map) == ("flat", None)
    assert [output.name for output in prepared.model.graph.output] == ["logits", "flat"]


def test_a_name_that_is_taken_is_not_taken_twice(tmp_path: Path) -> None:
    extra = [graphs.node("Identity", ["flat"], "embedding")]
    prepared = prepare(read_model(write_model(tmp_path / "in.onnx", graphs.model(extra=extra))), description(tmp_path))
    assert prepared.embedding == "embedding_1"


@pytest.mark.parametrize(
    ("operator", "kind", "activation"),
    [("Softmax", "exclusive", "softmax"), ("Sigmoid", "independent", "sigmoid"), (None, "exclusive", "none")],
)
def test_the_activation_is_found_and_looked_behind(
    tmp_path: Path, operator: str | None, kind: str, activation: str
) -> None:
    model = read_model(write_model(tmp_path / "in.onnx", graphs.model(activation=operator)))
    assert describe(model).activations == {"logits": activation}
    manifest = description(tmp_path, output={**OUTPUT, "kind": kind, "activation": activation})
    assert prepare(model, manifest).activation_map == "activation_map"


def test_an_activation_other_than_the_declared_one_is_refused(tmp_path: Path) -> None:
    model = read_model(write_model(tmp_path / "in.onnx", graphs.model(activation="Softmax")))
    with pytest.raises(
        PackageError, match=r"output\.activation: the graph ends in softmax, found none; wanted softmax"
    ):
        prepare(model, description(tmp_path))


def test_a_batch_fixed_to_one_is_freed(tmp_path: Path) -> None:
    def reshaped() -> tuple[list[onnx.NodeProto], dict[str, graphs.Array]]:
        nodes, constants = graphs.gemm_head()
        nodes[1] = graphs.node("Reshape", ["pooled", "flat.shape"], "flat")
        return nodes, {**constants, "flat.shape": np.array([1, 4])}

    manifest = description(tmp_path)
    prepared = prepare(read_model(write_model(tmp_path / "in.onnx", graphs.model(reshaped, batch=1))), manifest)
    assert any("batch dimension was fixed" in note for note in prepared.notes)
    np.testing.assert_allclose(run(prepared.model, tmp_path, manifest)["logits"], wanted(), atol=1e-4)


def test_a_batch_fixed_to_another_number_is_refused(tmp_path: Path) -> None:
    model = read_model(write_model(tmp_path / "in.onnx", graphs.model(batch=8)))
    with pytest.raises(PackageError, match="batches of 8 only"):
        prepare(model, description(tmp_path))


def test_external_data_is_read_and_becomes_part_of_the_package(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    model = read_model(write_model(tmp_path / "in" / "in.onnx", external="weights.bin"))
    np.testing.assert_allclose(
        run(prepare(model, description(tmp_path)).model, tmp_path, description(tmp_path))["logits"], wanted(), atol=1e-4
    )


def test_missing_external_data_is_named(tmp_path: Path) -> None:
    write_model(tmp_path / "in.onnx", external="weights.bin")
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(PackageError, match=r"its weights lie in weights\.bin, which is not beside it"):
        read_model(tmp_path / "in.onnx")


def test_external_data_cut_short_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "in.onnx", external="weights.bin")
    (tmp_path / "weights.bin").write_bytes(b"\0")
    with pytest.raises(PackageError, match=r"in\.onnx"):
        read_model(tmp_path / "in.onnx")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_refused_by_name(tmp_path: Path, value: float) -> None:
    def spoil(constants: dict[str, graphs.Array]) -> None:
        constants["fc.weight"] = np.where(constants["fc.weight"] > 0, np.float32(value), constants["fc.weight"])

    with pytest.raises(PackageError, match=r"fc\.weight holds 1 values of 8 that are not finite"):
        read_model(write_model(tmp_path / "in.onnx", graphs.model(change=spoil)))


@pytest.mark.parametrize("opset", [6, 21])
def test_an_opset_out_of_range_is_refused(tmp_path: Path, opset: int) -> None:
    with pytest.raises(PackageError, match=f"opset {opset}; wanted 7 to 20"):
        read_model(write_model(tmp_path / "in.onnx", graphs.model(opset=opset)))


def test_dynamic_quantisation_is_refused(tmp_path: Path) -> None:
    extra = [helper.make_node("DynamicQuantizeLinear", ["flat"], ["q", "s", "z"], name="dynamic")]
    with pytest.raises(
        PackageError, match=r"DynamicQuantizeLinear .* depends on the images that happen to be beside it"
    ):
        read_model(write_model(tmp_path / "in.onnx", graphs.model(extra=extra)))


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("This is no model.")
    (tmp_path / "empty.onnx").touch()
    for name in ("text.onnx", "empty.onnx"):
        with pytest.raises(PackageError, match=f"{name}: cannot be read as ONNX"):
            read_model(tmp_path / name)
    with pytest.raises(PackageError, match="cannot be read: No such file"):
        read_model(tmp_path / "none.onnx")


WRONG_DESCRIPTIONS = {
    "rows": (
        {"input": {"name": "image", "rows": 64, "columns": 32, "presentation": {"kind": "range"}}},
        r"input image of the graph is \(batch, 1, 32, 32\), model\.yaml says \(batch, 1, 64, 32\)",
    ),
    "channels": (
        {"input": {"name": "image", "rows": 32, "columns": 32, "channels": 3, "presentation": {"kind": "range"}}},
        r"model\.yaml says \(batch, 3, 32, 32\)",
    ),
    "input": (
        {"input": {"name": "x", "rows": 32, "columns": 32, "presentation": {"kind": "range"}}},
        "the graph's inputs are image, found x",
    ),
    "scores": ({"output": {**OUTPUT, "scores": "y"}}, r"output\.scores: the graph has no output 'y'; it has logits"),
    "classes": ({"output": {**OUTPUT, "classes": ["a", "ill", "c"]}}, r"names 3 classes: wanted \(batch, 3\)"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG_DESCRIPTIONS.values(), ids=WRONG_DESCRIPTIONS)
def test_a_description_of_another_graph_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    model = read_model(write_model(tmp_path / "in.onnx"))
    with pytest.raises(PackageError, match=message):
        prepare(model, description(tmp_path, **changes))


def test_an_input_of_another_type_is_refused(tmp_path: Path) -> None:
    model = graphs.model()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    model.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64), "stem.weight")
    )
    del model.graph.node[2:]
    model.graph.node.extend(
        [
            graphs.node("Cast", ["map"], "map32", to=TensorProto.FLOAT),
            graphs.node("GlobalAveragePool", ["map32"], "pooled"),
            graphs.node("Flatten", ["pooled"], "flat"),
            graphs.node("Gemm", ["flat", "fc.weight", "fc.bias"], "logits", transB=1),
        ]
    )
    with pytest.raises(PackageError, match="input image of the graph is DOUBLE; wanted FLOAT"):
        prepare(read_model(write_model(tmp_path / "in.onnx", model)), description(tmp_path))
