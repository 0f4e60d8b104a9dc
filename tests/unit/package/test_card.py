"""The card says what was measured, on which fold, and that a demonstration is one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from stepwedge.manifest import load_package
from stepwedge.package.card import CARD, EVALUATION, Evaluation, card, read_notes
from stepwedge.package.figures import KNOWING, Measured

PACKAGE = Path(__file__).parents[3] / "models" / "chest-pneumonia" / "1.1.0"


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return Evaluation.model_validate_json((PACKAGE / EVALUATION).read_bytes())


def test_the_shipped_card_is_what_its_figures_give(evaluation: Evaluation) -> None:
    package = load_package(PACKAGE)
    assert card(package.manifest, package.calibration, evaluation) == (PACKAGE / CARD).read_text(encoding="utf-8")


def test_every_figure_names_its_fold_and_its_interval(evaluation: Evaluation) -> None:
    for figures in evaluation.findings.values():
        assert figures.fold in evaluation.folds
        assert figures.auroc is not None
        assert figures.auroc.low <= figures.auroc.value <= figures.auroc.high
    for check in evaluation.notes.confounders:
        assert check.fold in evaluation.folds
        assert check.value.low <= check.value.value <= check.value.high


def test_a_demonstration_model_says_so_at_the_top() -> None:
    head = (PACKAGE / CARD).read_text(encoding="utf-8").split("## ")[0]
    assert "not for clinical use" in head


def test_a_model_for_use_does_not_say_that_it_is_a_demonstration(evaluation: Evaluation) -> None:
    package = load_package(PACKAGE)
    manifest = package.manifest.model_copy(update={"demonstration_only": False})
    assert "This model demonstrates" not in card(manifest, package.calibration, evaluation)


def test_the_card_shows_attacks_and_says_who_gets_through(evaluation: Evaluation) -> None:
    package = load_package(PACKAGE)
    attacks = [
        Measured(what="PGD, eps 4/255", n=90, value=0.98889, low=0.93974, high=0.99804, note="90 of 96 succeeded"),
        Measured(what=f"{KNOWING}, eps 4/255", n=23, value=0.04348, low=0.00772, high=0.20991),
        Measured(what=f"{KNOWING}, eps 8/255", n=39, value=0.02564, low=0.00454, high=0.13181),
    ]
    notes = evaluation.notes.model_copy(update={"tamper_attacks": attacks})
    text = card(package.manifest, package.calibration, evaluation.model_copy(update={"notes": notes}))
    section = text.split("## Tamper check")[1].split("\n## ")[0]
    assert "| PGD, eps 4/255 | 90 | 0.989 (0.940–0.998) | 90 of 96 succeeded |" in section
    assert "An attacker who knows the check gets through** (2 of 62 such attacks were flagged)" in section
    assert "digest" in section


def test_a_card_without_attacks_says_that_none_was_measured(evaluation: Evaluation) -> None:
    package = load_package(PACKAGE)
    notes = evaluation.notes.model_copy(update={"tamper_attacks": []})
    text = card(package.manifest, package.calibration, evaluation.model_copy(update={"notes": notes}))
    assert "Which attacks it catches was not measured." in text


def test_the_card_shows_what_the_gate_refuses(evaluation: Evaluation) -> None:
    package = load_package(PACKAGE)
    row = Measured(what="photographs", n=50, value=1.0, low=0.92865, high=1.0)
    notes = evaluation.notes.model_copy(update={"content_detection": [row]})
    text = card(package.manifest, package.calibration, evaluation.model_copy(update={"notes": notes}))
    assert "| photographs | 50 | 1.000 (0.929–1.000) |  |" in text.split("## Validity gate")[1].split("\n## ")[0]


def test_notes_bring_the_rows_that_a_benchmark_writes(tmp_path: Path) -> None:
    row = {"what": "PGD, eps 4/255", "n": 90, "value": 0.98889, "low": 0.93974, "high": 0.99804, "note": ""}
    file = tmp_path / "notes.yaml"
    file.write_text(yaml.safe_dump({"tamper_attacks": [row], "content_detection": [row]}), encoding="utf-8")
    notes = read_notes(file)
    assert notes.tamper_attacks == notes.content_detection == [Measured(**row)]
