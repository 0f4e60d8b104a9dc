"""The card says what was measured, on which fold, and that a demonstration is one."""

from __future__ import annotations

from pathlib import Path

import pytest
from stepwedge.manifest import load_package
from stepwedge.package.card import CARD, EVALUATION, Evaluation, card

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
