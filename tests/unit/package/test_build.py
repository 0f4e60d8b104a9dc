"""A package is built whole or not at all; whatever happens to a file of it afterwards is noticed and named."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import graphs
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from graphs import write_model
from labelled import picture, write_images, write_manifest
from packages import expected_outputs, write_package
from PIL import Image as Pillow
from stepwedge.errors import EngineError, PackageError, StepwedgeError
from stepwedge.inference.engine import OnnxEngine
from stepwedge.manifest import Package, load_package
from stepwedge.package import build as building
from stepwedge.package.build import Recipe, build_package, seal
from stepwedge.package.dataset import Columns
from stepwedge.package.figures import Evaluation
from stepwedge.package.golden import write_golden
from stepwedge.pipeline import equip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_package(tmp_path / "tiny")


def test_a_sealed_package_loads_with_the_same_digest(folder: Path) -> None:
    (folder / "SHA256SUMS").unlink()
    assert seal(folder).digest == load_package(folder).digest


def test_anyone_can_check_the_digests_without_the_software(folder: Path) -> None:
    seal(folder)
    subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=folder, check=True, capture_output=True)


@pytest.mark.parametrize("name", ["model.yaml", "model.onnx", "golden.npz", "calibration.json"])
def test_one_changed_byte_is_refused_and_the_file_named(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(PackageError, match=name):
        load_package(folder)


def test_a_missing_file_is_refused_and_named(folder: Path) -> None:
    (folder / "golden.npz").unlink()
    with pytest.raises(PackageError, match=r"golden\.npz is missing"):
        load_package(folder)


def test_a_file_too_many_is_refused_and_named(folder: Path) -> None:
    (folder / "notes.txt").write_text("left behind")
    with pytest.raises(PackageError, match=r"notes\.txt does not belong"):
        load_package(folder)


def test_an_incomplete_package_cannot_be_sealed(folder: Path) -> None:
    (folder / "calibration.json").unlink()
    with pytest.raises(PackageError, match=r"calibration\.json is missing"):
        seal(folder)


def test_golden_cases_are_what_the_engine_checks(folder: Path) -> None:
    inputs = {"image": np.full((3, 1, 32, 32), 0.25, np.float32)}
    write_golden(folder, lambda given: expected_outputs(given["image"]), inputs)
    assert OnnxEngine(seal(folder), "cpu", 1).golden_error < 1e-4
    write_golden(folder, lambda given: {k: v + 1 for k, v in expected_outputs(given["image"]).items()}, inputs)
    with pytest.raises(EngineError, match="golden inputs give outputs that differ"):
        OnnxEngine(seal(folder), "cpu", 1)


DATE = "1700000000"


# --- Building one -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a graph, its description, and labelled images."""
    folder = tmp_path_factory.mktemp("material")
    write_model(folder / "in.onnx")
    write_manifest(folder / "model.yaml")
    write_images(folder / "data")
    return folder


def recipe_of(material: Path, out: Path) -> Recipe:
    return Recipe(
        model=material / "in.onnx",
        manifest=material / "model.yaml",
        data=material / "data",
        labels=material / "data" / "labels.csv",
        out=out,
        key=material / "key.pem",
        content_gate=False,
        tamper_check=False,
        heat_maps=0,
    )


@pytest.fixture(scope="module")
def built(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Package:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", DATE)
        recipe = recipe_of(material, tmp_path_factory.mktemp("built") / "bright")
        return build_package(replace(recipe, tamper_check=True, heat_maps=2))


def test_a_package_is_built_signed_and_loads_as_the_service_loads_it(built: Package) -> None:
    package = load_package(built.path)
    assert package == built
    assert package.signer is not None
    assert OnnxEngine(package, "cpu", 1).golden_error <= package.manifest.golden_tolerance
    assert [file.name for file in built.path.parent.iterdir()] == ["bright"]
    assert {file.name for file in built.path.iterdir()} == {
        "CARD.md",
        "SHA256SUMS",
        "baseline.parquet",
        "calibration.json",
        "evaluation.json",
        "gate.npz",
        "golden.npz",
        "model.onnx",
        "model.sig",
        "model.yaml",
        "signer.pub",
    }


def test_what_the_graph_allows_is_in_the_description(built: Package) -> None:
    output, explanation = built.manifest.output, built.manifest.explanation
    assert (output.embedding, output.activation_map) == ("embedding", "activation_map")
    assert explanation.kind == "activation_map"


def test_each_fold_serves_what_it_is_for(built: Package) -> None:
    evaluation = Evaluation.model_validate_json((built.path / "evaluation.json").read_bytes())
    assert evaluation.fold == "test"
    assert list(evaluation.folds) == ["calibrate", "gate", "test"]
    assert sum(fold.patients for fold in evaluation.folds.values()) == 150
    found = evaluation.findings["ill"]
    assert found.auroc is not None
    assert found.auroc.value > 0.9
    fitted = built.calibration.findings["ill"]
    assert not fitted.inconclusive
    assert fitted.positives + fitted.negatives == evaluation.folds["calibrate"].total


def test_what_is_fitted_of_the_gate_is_measured_and_what_is_not_is_said(built: Package) -> None:
    evaluation = Evaluation.model_validate_json((built.path / "evaluation.json").read_bytes())
    assert evaluation.gate is None
    assert evaluation.tamper is not None
    assert evaluation.tamper.declared == 0.01
    assert evaluation.faithfulness is not None
    gate = equip(built, OnnxEngine(built, "cpu", 1), None).gate
    assert gate.content is None
    assert gate.tamper is not None


def test_the_baseline_holds_the_folds_that_were_fitted_on_and_names_no_file(built: Package) -> None:
    table = pq.read_table(built.path / "baseline.parquet")
    evaluation = Evaluation.model_validate_json((built.path / "evaluation.json").read_bytes())
    assert table.num_rows == (evaluation.folds["calibrate"].total or 0) + (evaluation.folds["gate"].total or 0)
    assert set(table["model_digest"].to_pylist()) == {""}
    assert len(set(table["unit"].to_pylist())) == table.num_rows
    assert len(table["embedding"][0].as_py()) == 4
    content = (built.path / "baseline.parquet").read_bytes()
    assert b".png" not in content
    assert b"P00" not in content


def test_a_rebuild_is_the_same_but_for_its_signature_whatever_the_columns_are_called(
    built: Package, material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", DATE)
    text = (material / "data" / "labels.csv").read_text().replace("patient", "person").replace("label", "truth")
    (tmp_path / "named.csv").write_text(text)
    recipe = replace(
        recipe_of(material, tmp_path / "out"),
        tamper_check=True,
        heat_maps=2,
        labels=tmp_path / "named.csv",
        columns=Columns(label="truth", patient="person"),
        sign=False,
    )
    again = build_package(recipe)
    assert again.signer is None
    signed = (built.path / "SHA256SUMS").read_text().splitlines()
    assert (again.path / "SHA256SUMS").read_text().splitlines() == [s for s in signed if "signer.pub" not in s]


def test_the_card_says_which_findings_are_inconclusive(material: Path, tmp_path: Path) -> None:
    """Here nobody is ill: there is nothing to calibrate on, and the package says so rather than fail."""
    labels = write_images(tmp_path / "data", patients=60, share_ill=0.0)
    recipe = recipe_of(material, tmp_path / "out")
    package = build_package(replace(recipe, data=tmp_path / "data", labels=labels))
    assert package.calibration.findings["ill"].inconclusive
    assert "inconclusive" in (package.path / "CARD.md").read_text(encoding="utf-8")


def spoil_manifest(folder: Path, **changes: object) -> Path:
    return write_manifest(folder / "other.yaml", **changes)


def in_two_folds(recipe: Recipe, folder: Path) -> Recipe:
    lines = recipe.labels.read_text().splitlines()
    lines = [lines[0] + ",fold", *(f"{line},{('gate', 'test')[number % 2]}" for number, line in enumerate(lines[1:]))]
    (folder / "labels.csv").write_text("\n".join(lines))
    return replace(recipe, labels=folder / "labels.csv")


def with_a_broken_image(recipe: Recipe, folder: Path) -> Recipe:
    labels = write_images(folder / "data", patients=60)
    (folder / "data" / "images" / "p003-0.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return replace(recipe, data=folder / "data", labels=labels)


def with_unfinished_description(recipe: Recipe, folder: Path) -> Recipe:
    return replace(recipe, manifest=spoil_manifest(folder, licence="FILL-IN: licence of the weights"))


def with_unknown_field(recipe: Recipe, folder: Path) -> Recipe:
    return replace(recipe, manifest=spoil_manifest(folder, threshold=0.5))


def with_undeclared_probabilities(recipe: Recipe, folder: Path) -> Recipe:
    """A softmax that is hidden from the graph's end, so that only the values tell."""
    model = graphs.model(activation="Softmax")
    model.graph.node[-1].output[0] = "hidden"
    model.graph.node.append(graphs.node("Mul", ["hidden", "one"], "logits", name="last"))
    model.graph.initializer.append(graphs.numpy_helper.from_array(np.float32(1), "one"))
    return replace(recipe, model=write_model(folder / "probabilities.onnx", model))


def with_nan(recipe: Recipe, folder: Path) -> Recipe:
    def spoil(constants: dict[str, graphs.Array]) -> None:
        constants["fc.bias"] = np.array([np.nan, 0], np.float32)

    return replace(recipe, model=write_model(folder / "nan.onnx", graphs.model(change=spoil)))


def with_batch_neighbours(recipe: Recipe, folder: Path) -> Recipe:
    """Scores from which the batch's mean is taken."""
    model = graphs.model()
    model.graph.node[-1].output[0] = "own"
    model.graph.node.append(graphs.node("ReduceMean", ["own", "first"], "mean", keepdims=1))
    model.graph.node.append(graphs.node("Sub", ["own", "mean"], "logits", name="last"))
    model.graph.initializer.append(graphs.numpy_helper.from_array(np.array([0]), "first"))
    return replace(recipe, model=write_model(folder / "batch.onnx", model))


BAD: dict[str, tuple[Callable[[Recipe, Path], Recipe], str]] = {
    "no description": (lambda r, f: replace(r, manifest=f / "none.yaml"), r"none\.yaml: there is no description"),
    "unfinished description": (with_unfinished_description, r"not finished: FILL-IN stands at licence"),
    "unknown field": (with_unknown_field, r"threshold: Extra inputs are not permitted \(found 0\.5\)"),
    "no graph": (lambda r, f: replace(r, model=f / "none.onnx"), r"none\.onnx: the model cannot be read"),
    "NaN weights": (with_nan, r"fc\.bias holds 1 values of 2 that are not finite"),
    "batch neighbours": (with_batch_neighbours, "another for an image alone and among others"),
    "undeclared probabilities": (with_undeclared_probabilities, "look like probabilities; wanted softmax"),
    "no labels": (lambda r, f: replace(r, labels=f / "none.csv"), r"none\.csv: the table of labels cannot be read"),
    "a patient in two folds": (in_two_folds, "the patient is in fold test here and in fold gate on line"),
    "an unreadable image": (with_a_broken_image, r"p003-0\.png: .*\n1 of \d+ images cannot be read, and 0 may be"),
    "no notes": (lambda r, f: replace(r, notes=f / "none.yaml"), r"none\.yaml: the notes cannot be read"),
    "no policy": (lambda r, f: replace(r, policy=f / "none.yaml"), r"none\.yaml"),
    "golden images that are none": (lambda r, f: replace(r, golden=r.manifest.parent), "1 to 8|cannot be read as an"),
    "a folder that is no package": (lambda r, f: replace(r, out=r.data, force=True), "is not a model package"),
    "no folder to put it in": (lambda r, f: replace(r, out=f / "a" / "b"), "there is no such folder"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD)
def test_whatever_is_wrong_is_said_and_nothing_is_left(
    material: Path, tmp_path: Path, spoil: Callable[[Recipe, Path], Recipe], message: str
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(StepwedgeError, match=message):
        build_package(spoil(recipe_of(material, target / "out"), tmp_path))
    assert list(target.iterdir()) == []


def test_an_interrupted_build_leaves_nothing(material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "write_baseline", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_package(recipe_of(material, tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_replaced_unless_asked(material: Path, folder: Path) -> None:
    with pytest.raises(PackageError, match="there is something already"):
        build_package(recipe_of(material, folder))
    assert load_package(folder).manifest.name == "tiny"


def test_all_that_can_be_asked_for(material: Path, folder: Path) -> None:
    """Replaces a package, allows an unreadable image, takes notes and golden images over, and leaves it unsigned."""
    around = folder.parent
    notes, images = around / "notes.yaml", around / "golden"
    notes.write_text(yaml.safe_dump({"limits": ["Dark rooms were not tried."]}))
    images.mkdir()
    for number in range(2):
        Pillow.fromarray(picture(0.5, np.random.default_rng(number))).save(images / f"{number}.png")
    recipe = replace(recipe_of(material, folder), force=True, notes=notes, golden=images, sign=False)
    package = build_package(replace(with_a_broken_image(recipe, around), allow_unreadable=1))
    assert load_package(folder) == package
    assert (package.manifest.name, package.signer) == ("bright", None)
    card = (folder / "CARD.md").read_text(encoding="utf-8")
    assert "Dark rooms were not tried." in card
    assert "not accepted by the gate" in card
    with np.load(folder / "golden.npz") as golden:
        assert golden["input.image"].shape == (2, 1, 32, 32)
    assert not list(around.glob(".*"))
