"""The draft of a description holds what graph and labels say; what a person must decide is marked, and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import graphs
import numpy as np
import pytest
import yaml
from graphs import write_model
from onnx import TensorProto, helper
from stepwedge.errors import PackageError
from stepwedge.manifest import read_manifest
from stepwedge.package.init import UNFINISHED, refuse_unfinished, write_draft

LABELS = "file,patient,label\na.png,a,Pneumothorax\nb.png,b,No Finding\n"


def draft(folder: Path, *, labels: str = "", **changes: Any) -> tuple[Path, list[str]]:
    model = write_model(folder / "Some model (2).onnx", graphs.model(**changes))
    table = folder / "labels.csv"
    table.write_text(labels)
    out = folder / "model.yaml"
    return out, write_draft(model, out, labels=table if labels else None)


def test_what_the_graph_and_the_labels_say_is_filled_in(tmp_path: Path) -> None:
    out, _ = draft(tmp_path, labels=LABELS)
    contents = yaml.safe_load(out.read_text(encoding="utf-8"))
    assert contents["name"] == "some-model-2"
    assert {key: contents["input"][key] for key in ("name", "rows", "columns", "channels")} == {
        "name": "image",
        "rows": 32,
        "columns": 32,
        "channels": 1,
    }
    assert contents["output"]["scores"] == "logits"
    assert contents["output"]["classes"][1:] == ["No Finding", "Pneumothorax"]
    assert contents["output"]["kind"] == "exclusive"
    assert contents["findings"] == [
        {
            "name": "pneumothorax",
            "code": {"value": "36118008", "scheme": "SCT", "meaning": "Pneumothorax"},
            "positive": ["Pneumothorax"],
        }
    ]


def test_what_a_person_must_decide_is_named_and_refused(tmp_path: Path) -> None:
    out, fields = draft(tmp_path, labels=LABELS.replace("Pneumothorax", "Rare thing"))
    assert fields == [
        "description",
        "licence",
        "intended_use.summary",
        "input.presentation",
        "input.mean",
        "input.sd",
        "output.classes[0]",
        "findings[0].code.value",
        "findings[0].code.meaning",
    ]
    with pytest.raises(
        PackageError, match=r"not finished: FILL-IN stands at description, licence, intended_use\.summary"
    ):
        refuse_unfinished(out)


def test_a_filled_in_draft_is_a_description(tmp_path: Path) -> None:
    out, _ = draft(tmp_path, labels=LABELS)
    contents = yaml.safe_load(out.read_text(encoding="utf-8"))
    contents["description"] = contents["licence"] = contents["intended_use"]["summary"] = "Said."
    contents["input"] |= {"presentation": {"kind": "range"}, "mean": [0.0], "sd": [1.0]}
    del contents["output"]["classes"][0]
    out.write_text(yaml.safe_dump(contents))
    refuse_unfinished(out)
    assert read_manifest(out).output.classes == ["No Finding", "Pneumothorax"]


def test_classes_are_numbered_where_the_labels_do_not_tell(tmp_path: Path) -> None:
    contents = yaml.safe_load(draft(tmp_path)[0].read_text(encoding="utf-8"))
    assert contents["output"]["classes"][1:] == ["class_1", "class_2"]
    assert UNFINISHED in contents["output"]["classes"][0]


@pytest.mark.parametrize(
    ("activation", "kind", "declared"), [("Softmax", "exclusive", "softmax"), ("Sigmoid", "independent", "sigmoid")]
)
def test_the_activation_in_the_graph_says_what_the_classes_are(
    tmp_path: Path, activation: str, kind: str, declared: str
) -> None:
    output = yaml.safe_load(draft(tmp_path, activation=activation)[0].read_text(encoding="utf-8"))["output"]
    assert (output["kind"], output["activation"]) == (kind, declared)


def test_a_quantised_graph_is_allowed_steps_of_its_quantisation(tmp_path: Path) -> None:
    model = graphs.model()
    model.graph.node[-1].output[0] = "float"
    model.graph.node.append(graphs.node("QuantizeLinear", ["float", "scale", "zero"], "int8"))
    model.graph.node.append(graphs.node("DequantizeLinear", ["int8", "scale", "zero"], "logits"))
    for name, value in (("scale", np.float32(0.25)), ("zero", np.int8(0))):
        model.graph.initializer.append(graphs.numpy_helper.from_array(np.asarray(value), name))
    write_draft(write_model(tmp_path / "in.onnx", model), tmp_path / "model.yaml")
    assert yaml.safe_load((tmp_path / "model.yaml").read_text(encoding="utf-8"))["golden_tolerance"] == 0.5


def test_every_line_that_asks_for_a_choice_says_which_there_are(tmp_path: Path) -> None:
    text = draft(tmp_path)[0].read_text(encoding="utf-8")
    for said in ("kind: percentile", "kind: window", "stretch, crop", "bicubic", "exclusive:", "0018,5101", "RADLEX"):
        assert said in text


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    out, _ = draft(tmp_path)
    out.write_text("mine")
    with pytest.raises(PackageError, match="is not overwritten"):
        write_draft(tmp_path / "Some model (2).onnx", out)
    assert out.read_text() == "mine"


def test_a_graph_that_takes_no_image_is_refused(tmp_path: Path) -> None:
    nodes = [graphs.node("Identity", ["x"], "y")]
    shape = ["batch", 7]
    graph = helper.make_graph(
        nodes,
        "flat",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    with pytest.raises(
        PackageError, match=r"no input is of the shape \(batch, channels, rows, columns\); found x \(batch, 7\)"
    ):
        write_draft(write_model(tmp_path / "in.onnx", model), tmp_path / "model.yaml")
    assert not (tmp_path / "model.yaml").exists()
