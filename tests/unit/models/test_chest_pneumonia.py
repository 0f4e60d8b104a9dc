"""What the shipped package promises, checked on the package as it is shipped."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
import yaml
from numpy.typing import NDArray
from stepwedge.decision.calibrate import finding_scores
from stepwedge.inference.engine import OnnxEngine
from stepwedge.manifest import Package, load_package
from stepwedge.package.card import EVALUATION, Evaluation
from stepwedge.package.figures import Notes
from stepwedge.policy import load_policy

MODEL = Path(__file__).parents[3] / "models" / "chest-pneumonia"


@pytest.fixture(scope="module")
def package() -> Package:
    return load_package(MODEL / "1.1.0")


@pytest.fixture(scope="module")
def engine(package: Package) -> OnnxEngine:
    return OnnxEngine(package, "cpu", 1)


@pytest.fixture
def confounders(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that measures the confounders, from the training scripts."""
    monkeypatch.syspath_prepend(MODEL)
    return importlib.import_module("confounders")


@pytest.fixture
def folds(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that makes the folds, from the training scripts."""
    monkeypatch.syspath_prepend(MODEL)
    return importlib.import_module("folds")


def test_it_loads_and_answers_its_golden_cases(engine: OnnxEngine) -> None:
    assert engine.golden_error < 1e-4


def test_an_image_has_the_same_answer_alone_and_in_a_batch(package: Package, engine: OnnxEngine) -> None:
    with np.load(package.path / "golden.npz") as golden:
        inputs = golden["input.image"]
    together = engine.run({"image": inputs})[0]["logits"]
    alone = np.concatenate([engine.run({"image": inputs[i : i + 1]})[0]["logits"] for i in range(len(inputs))])
    assert np.allclose(together, alone, atol=1e-4)


def test_it_is_small_and_old_enough_for_any_runtime(package: Package) -> None:
    assert package.model_file.stat().st_size < 5_000_000
    assert onnx.load(package.model_file).opset_import[0].version <= 20


def test_the_demonstration_policy_is_for_it(package: Package) -> None:
    policy = load_policy(MODEL / "policy.yaml", package.manifest)
    assert set(policy.file.findings) == {finding.name for finding in package.manifest.findings}


def test_it_is_a_demonstration_for_children_from_one_to_below_six(package: Package) -> None:
    assert package.manifest.demonstration_only
    assert package.manifest.intended_use.age_years == (1, 6)


def test_a_patient_is_in_one_fold_whatever_the_order(folds: ModuleType) -> None:
    labelled = [(f"p{i % 400}", ("normal", "viral", "bacterial")[i % 3]) for i in range(1000)]
    assert folds.split(labelled) == folds.split(labelled[::-1])
    assert set(folds.split(labelled).values()) == {"train", "calibrate", "gate", "test"}


def test_the_card_counts_the_folds_as_they_are(package: Package, folds: ModuleType, shared: Path) -> None:
    evaluation = Evaluation.model_validate_json((package.path / EVALUATION).read_bytes())
    rows = folds.read_rows(shared / "data" / "pneumonia")
    for name, fold in evaluation.folds.items():
        own = [row for row in rows if row.fold == name]
        assert fold.patients == len({row.patient for row in own})
        assert sum(fold.images.values()) == len(own)


def test_written_confounders_leave_the_rest_of_the_notes_as_it_is(
    confounders: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "notes.yaml"
    before = (MODEL / "notes.yaml").read_text(encoding="utf-8")
    file.write_text(before, encoding="utf-8")
    monkeypatch.setattr(confounders, "NOTES", file)
    known = Notes.model_validate(yaml.safe_load(before))
    confounders.write(known.confounders)
    assert file.read_text(encoding="utf-8") == before
    confounders.write(known.confounders[:1])
    after = Notes.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    assert after == known.model_copy(update={"confounders": known.confounders[:1]})


@pytest.mark.slow
def test_the_confounders_measure_as_the_notes_say(package: Package, confounders: ModuleType, shared: Path) -> None:
    noted = Notes.model_validate(yaml.safe_load((MODEL / "notes.yaml").read_text(encoding="utf-8"))).confounders
    measured = confounders.measured(shared / "data" / "pneumonia", package)
    assert [check.question for check in measured] == [check.question for check in noted]
    for found, said in zip(measured, noted, strict=True):
        assert found.images == said.images
        assert found.value.value == pytest.approx(said.value.value, abs=1e-3)
        # Ends of an interval move with the draws of the bootstrap.
        assert (found.value.low, found.value.high) == pytest.approx((said.value.low, said.value.high), abs=0.01)


@pytest.mark.slow
def test_it_tells_pneumonia_on_the_test_fold_as_well_as_its_card_says(
    package: Package, engine: OnnxEngine, folds: ModuleType, shared: Path
) -> None:
    data = shared / "data" / "pneumonia"
    rows = [row for row in folds.read_rows(data) if row.fold == "test"]
    logits = engine.run({"image": folds.tensors(data, rows, package.manifest.input)})[0]["logits"]
    score = finding_scores(logits, package.manifest.output, package.manifest.findings[0])
    measured = _auroc(folds.label_index(rows) > 0, score)
    evaluation = Evaluation.model_validate_json((package.path / EVALUATION).read_bytes())
    assert measured >= 0.985
    assert measured == pytest.approx(evaluation.findings["pneumonia"].auroc.value, abs=1e-3)


def _auroc(truth: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    above = score[truth][:, None] - score[~truth][None, :]
    return float(((above > 0) + 0.5 * (above == 0)).mean())
