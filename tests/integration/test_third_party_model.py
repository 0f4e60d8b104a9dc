"""A model that nobody here made becomes a package by one command and a description: no code, no special case.

The model is an int8 MobileNetV3 with a softmax over fifteen labels and no embedding; the images are NIH radiographs.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml
from stepwedge.cli import main
from stepwedge.inference.engine import OnnxEngine
from stepwedge.manifest import load_package

MODEL = "mobilenetv3s_nih15_int8.onnx"
# In the order of the graph's output, as its makers say.
CLASSES = [
    "No Finding",
    "Infiltration",
    "Atelectasis",
    "Effusion",
    "Nodule",
    "Pneumothorax",
    "Mass",
    "Consolidation",
    "Pleural_Thickening",
    "Cardiomegaly",
    "Emphysema",
    "Fibrosis",
    "Edema",
    "Pneumonia",
    "Hernia",
]
EVERY = 7  # of the images: enough for a few findings, and for some to be too rare


@pytest.fixture(scope="module")
def folder(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package, built from a seventh of the images, without the gates that need more."""
    folder = tmp_path_factory.mktemp("third-party")
    with (shared / "data" / "nih" / "labels.csv").open(encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows[::EVERY]])
    manifest = folder / "model.yaml"
    model = str(shared / "models" / MODEL)
    labels = str(folder / "labels.csv")
    assert main(["package", "init", model, "--labels", labels, "--out", str(manifest)]) == 0
    fill_in(manifest)
    data = ["--data", str(shared / "data" / "nih"), "--labels", labels]
    target = ["--manifest", str(manifest), "--out", str(folder / "nih"), "--key", str(folder / "key.pem")]
    assert main(["package", "build", model, *data, *target, "--no-content-gate", "--heat-maps", "1"]) == 0
    return folder


def fill_in(manifest: Path) -> None:
    """What a person has to: texts, preprocessing as in training, the order of the classes, missing codes."""
    contents = yaml.safe_load(manifest.read_text(encoding="utf-8"))
    contents |= {"description": "Fifteen labels on frontal chest radiographs.", "licence": "not named by its source"}
    contents["intended_use"]["summary"] = "Tests only"
    contents["input"] |= {"presentation": {"kind": "range"}, "mean": [0.485], "sd": [0.229]}
    assert set(contents["output"]["classes"][1:]) == set(CLASSES)
    contents["output"]["classes"] = CLASSES
    for finding in contents["findings"]:
        if finding["code"]["value"] == "FILL-IN":
            finding["code"] = {"value": finding["name"][:16], "scheme": "99TEST", "meaning": finding["name"]}
    manifest.write_text(yaml.safe_dump(contents, sort_keys=False), encoding="utf-8")


def test_it_is_signed_and_answers_as_built(folder: Path) -> None:
    package = load_package(folder / "nih")
    assert package.signer is not None
    assert OnnxEngine(package, "cpu", 1).golden_error <= package.manifest.golden_tolerance


def test_what_its_graph_lacks_is_taken_from_it_or_made_up_for(folder: Path) -> None:
    """Two linear layers with an activation between them: an embedding can be had, an activation map cannot."""
    manifest = load_package(folder / "nih").manifest
    assert manifest.output.embedding == "embedding"
    assert manifest.explanation.kind == "occlusion"


def test_rare_findings_are_inconclusive_and_the_card_says_so(folder: Path) -> None:
    fitted = load_package(folder / "nih").calibration.findings
    assert "positive patients" in fitted["hernia"].inconclusive
    assert not fitted["pneumonia"].inconclusive
    assert "hernia" in (folder / "nih" / "CARD.md").read_text(encoding="utf-8")


def test_it_answers_for_files(folder: Path, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = next((shared / "data" / "nih" / "images").glob("*.jpg"))
    assert main(["predict", str(image), "--package", str(folder / "nih"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["findings"]) == 14
    assert {finding["decision"] for finding in answer["findings"]} <= {"none", "inconclusive"}
