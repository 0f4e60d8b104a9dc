"""Which stage moved, and by how much of its tolerance."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from packages import write_package
from stepwedge.constancy.accepted import Answer
from stepwedge.constancy.compare import CHANGED, Decided, compare, compare_decided, first_moved
from stepwedge.manifest import Package, load_package

ACCEPTED = Answer(
    state="answered",
    gate="accept",
    tamper="pass",
    prints={"decoded": (0.5, 0.1), "input.image": (0.2, 0.05)},
    scores={"normal": -1.0, "ill": 1.0},
    findings={"ill": 2.0},
    probabilities={"ill": 0.8},
)
SAME = {"ill": 0.5}  # the prevalence of the package


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return load_package(write_package(tmp_path / "package"))


def test_the_same_answer_has_not_moved(package: Package) -> None:
    found = compare(ACCEPTED, ACCEPTED, package, SAME)
    assert max(found.values()) == pytest.approx(0, abs=1e-9)
    assert first_moved(found) == ""


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        ({"prints": {"decoded": (0.5002, 0.1), "input.image": (0.2, 0.05)}}, "decode"),
        ({"prints": {"decoded": (0.5, 0.1), "input.image": (0.2, 0.0502)}}, "preprocessing"),
        ({"prints": {"input.image": (0.2, 0.05)}}, "decode"),
        ({"prints": {"decoded": (0.5, 0.1), "input.image": (0.2,)}}, "preprocessing"),
        ({"gate": "defer"}, "gate"),
        ({"gate_reasons": ("image_dark",)}, "gate"),
        ({"tamper": "flagged"}, "gate"),
        ({"scores": {"normal": -1.0, "ill": 1.01}}, "scores"),
        ({"scores": {"normal": -1.0, "ill": math.nan}}, "scores"),
        ({"scores": {}}, "scores"),
        ({"probabilities": {"ill": 0.81}}, "calibration"),
    ],
)
def test_each_change_is_seen_at_its_stage_alone(change: dict[str, object], stage: str, package: Package) -> None:
    found = compare(ACCEPTED, replace(ACCEPTED, **change), package, SAME)  # type: ignore[arg-type]
    assert {name for name, value in found.items() if value > 1} == {stage}
    assert first_moved(found) == stage


def test_differences_within_the_golden_tolerance_are_constant(package: Package) -> None:
    within = package.manifest.golden_tolerance * 0.9
    now = replace(ACCEPTED, scores={"normal": -1.0, "ill": 1.0 + within})
    assert compare(ACCEPTED, now, package, SAME)["scores"] == pytest.approx(0.9)


def test_a_probability_at_another_prevalence_is_expected_to_be_another(package: Package) -> None:
    odds = 0.8 / 0.2 * (0.1 / 0.9)  # from a half to a tenth
    now = replace(ACCEPTED, probabilities={"ill": odds / (1 + odds)})
    assert compare(ACCEPTED, now, package, {"ill": 0.1})["calibration"] == pytest.approx(0, abs=1e-6)


def test_the_first_stage_in_the_order_of_the_pipeline_is_named() -> None:
    assert first_moved({"thresholds": 9, "scores": 5.0, "preprocessing": 2.0, "decode": 1.0}) == "preprocessing"


def test_thresholds_and_prevalences_are_held_against_the_accepted_ones() -> None:
    accepted = {"ill": Decided(prevalence=0.1, clear_below=0.03, act_from=0.7)}
    assert compare_decided(accepted, accepted) == 0
    for change in ({"prevalence": 0.2}, {"clear_below": 0.031}, {"act_from": 0.69}, {"act_from": None}):
        assert compare_decided(accepted, {"ill": replace(accepted["ill"], **change)}) > 1  # type: ignore[arg-type]
    assert compare_decided(accepted, {}) == CHANGED


def test_a_threshold_that_is_no_number_has_moved() -> None:
    accepted = Decided(prevalence=0.1, clear_below=0.03, act_from=0.7)
    assert compare_decided({"ill": accepted}, {"ill": replace(accepted, act_from=math.nan)}) == CHANGED
