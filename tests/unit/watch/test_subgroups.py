"""Performance by subgroup, and which gaps are more than chance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from labelling import FINDING, cases_of, labels_of
from stepwatch.fairness import Fairness, Place, known_levels
from stepwatch.performance import Case
from stepwatch.subgroups import Member, Subgroup, subgroups, worst_gaps


def mixed(seed: int, separation: float, count: int = 1500) -> tuple[list[Case], np.ndarray]:
    """Two scanners, study by study; the model tells less on the second where ``separation`` is small."""
    one, ill_one = cases_of(count, seed=seed, prevalence=0.3)
    two, ill_two = cases_of(count, seed=seed + 1000, prevalence=0.3, separation=separation, scanner="Acme DX-2")
    cases = [case for pair in zip(one, two, strict=True) for case in pair]
    return cases, np.stack([ill_one, ill_two], axis=1).ravel()


def by_place(found: list[Subgroup]) -> dict[tuple[str, str, str], Subgroup]:
    return {(item.group, item.level, item.measure): item for item in found}


def evidence(cases: list[Case], ill: np.ndarray) -> dict[Place, tuple[float, int]]:
    fairness = Fairness([FINDING], known_levels(case.groups for case in cases))
    for case, truth in zip(cases, ill, strict=True):
        fairness.take(FINDING, case.groups, case.probabilities[FINDING], case.decisions[FINDING], float(truth))
    return fairness.evidence()


def test_a_scanner_on_which_the_model_misses_more_is_called_worse_and_the_rest_is_not() -> None:
    cases, ill = mixed(1, separation=0.8)
    found = subgroups(cases, labels_of(cases, ill), [FINDING], evidence=evidence(cases, ill))
    places = by_place(found)
    assert places["scanner", "Acme DX-2", "sensitivity"].verdict == "worse"
    assert places["scanner", "Acme DX-1", "sensitivity"].verdict == "as_others"
    assert {places["sex", level, name].verdict for level in "FM" for name in ("sensitivity", "specificity")} == {
        "as_others"
    }
    assert places["sex", "F", "auroc"].verdict == "not_judged"
    value = places["scanner", "Acme DX-2", "auroc"]
    assert value.low < value.value < value.high
    assert worst_gaps(found)[FINDING, "auroc"] > 0.1


def test_a_level_that_is_oftener_ill_than_its_probabilities_say_is_miscalibrated() -> None:
    cases, ill = cases_of(1500, prevalence=0.3)
    random = np.random.default_rng(3)
    women = np.array([case.groups["sex"] == "F" for case in cases])
    ill = ill | (women & (random.random(len(ill)) < 0.3))
    found = by_place(subgroups(cases, labels_of(cases, ill), [FINDING], evidence=evidence(cases, ill)))
    women_now, men = found["sex", "F", "calibration"], found["sex", "M", "calibration"]
    assert women_now.verdict == "miscalibrated"
    assert 0.1 < women_now.low < women_now.value < women_now.high < 0.35
    assert men.verdict == "as_said"
    assert men.low < 0 < men.high


def test_too_few_to_say_is_a_verdict() -> None:
    cases, ill = cases_of(300, prevalence=0.3)
    rare = [replace(case, groups={"sex": "O" if n < 20 else "F"}) for n, case in enumerate(cases)]
    found = by_place(subgroups(rare, labels_of(rare, ill), [FINDING], evidence=evidence(rare, ill)))
    assert found["sex", "O", "auroc"].verdict == "too_few"
    assert found["sex", "F", "sensitivity"].verdict == "as_others"
    assert {item.verdict for item in subgroups(rare, [], [FINDING])} == {"too_few"}


def test_without_readings_of_the_audit_nothing_is_judged_whatever_the_figures_show() -> None:
    cases, ill = mixed(1, separation=0.5)
    found = by_place(subgroups(cases, labels_of(cases, ill), [FINDING]))
    assert found["scanner", "Acme DX-2", "sensitivity"].verdict == "too_few"
    assert found["scanner", "Acme DX-2", "sensitivity"].high < found["scanner", "Acme DX-1", "sensitivity"].low


def test_prevalence_is_compared_with_that_of_the_same_level_in_the_baseline() -> None:
    then, _ = cases_of(800, seed=1, prevalence=0.1)
    now, _ = cases_of(800, seed=2, prevalence=0.1)
    more, _ = cases_of(800, seed=3, prevalence=0.3)
    now = [one if one.groups["sex"] == "F" else other for one, other in zip(now, more, strict=True)]
    members = [Member(groups=case.groups, probabilities=case.probabilities) for case in then]
    found = by_place(subgroups(now, [], [FINDING], members=members))
    same, changed = found["sex", "F", "prevalence_gap"], found["sex", "M", "prevalence_gap"]
    assert same.low < 0 < same.high
    assert changed.low > 0.1
    assert worst_gaps(found.values())[FINDING, "prevalence_gap"] > 0.1


def test_rare_levels_are_taken_together() -> None:
    cases, ill = cases_of(400, prevalence=0.3)
    many = [replace(case, groups={"scanner": f"S{n % 40}"}) for n, case in enumerate(cases)]
    levels = {item.level for item in subgroups(many, labels_of(many, ill), [FINDING]) if item.group == "scanner"}
    assert len(levels) == 13
    assert "other" in levels
