"""Performance by subgroup, and which gaps are more than chance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from labelling import FINDING, cases_of, labels_of
from stepwatch.performance import Case
from stepwatch.subgroups import Subgroup, e_bh, evidence_of_worse, subgroups, worst_gaps


def mixed(seed: int, separation: float, count: int = 1500) -> tuple[list[Case], np.ndarray]:
    """Two scanners, study by study; the model tells less on the second where ``separation`` is small."""
    one, ill_one = cases_of(count, seed=seed, prevalence=0.3)
    two, ill_two = cases_of(count, seed=seed + 1000, prevalence=0.3, separation=separation, scanner="Acme DX-2")
    cases = [case for pair in zip(one, two, strict=True) for case in pair]
    return cases, np.stack([ill_one, ill_two], axis=1).ravel()


def by_place(found: list[Subgroup]) -> dict[tuple[str, str, str], Subgroup]:
    return {(item.group, item.level, item.measure): item for item in found}


def test_a_scanner_on_which_the_model_misses_more_is_called_worse_and_the_rest_is_not() -> None:
    cases, ill = mixed(1, separation=0.8)
    found = subgroups(cases, labels_of(cases, ill), [FINDING])
    places = by_place(found)
    assert places["scanner", "Acme DX-2", "sensitivity"].verdict == "worse"
    assert places["scanner", "Acme DX-1", "sensitivity"].verdict == "as_others"
    assert {item.verdict for item in found if item.group == "sex"} == {"as_others"}
    value = places["scanner", "Acme DX-2", "auroc"]
    assert value.low < value.value < value.high
    assert worst_gaps(found)[FINDING, "auroc"] > 0.1


def test_too_few_to_say_is_a_verdict() -> None:
    cases, ill = cases_of(300, prevalence=0.3)
    rare = [replace(case, groups={"sex": "O" if n < 20 else "F"}) for n, case in enumerate(cases)]
    found = by_place(subgroups(rare, labels_of(rare, ill), [FINDING]))
    assert found["sex", "O", "auroc"].verdict == "too_few"
    assert found["sex", "F", "auroc"].verdict == "as_others"
    assert {item.verdict for item in subgroups(rare, [], [FINDING])} == {"too_few"}


def test_no_number_of_looks_makes_a_gap_of_chance() -> None:
    worse = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        right, within = random.random(600) < 0.8, random.random(600) < 0.3
        worse += any(evidence_of_worse(right[:n], within[:n]) >= 20 for n in range(20, 601, 20))
    assert worse <= 10  # of 200: the bound is 5 %


def test_a_group_that_is_better_is_no_evidence_that_it_is_worse() -> None:
    random = np.random.default_rng(2)
    within = random.random(2000) < 0.5
    right = random.random(2000) < np.where(within, 0.95, 0.7)
    assert evidence_of_worse(right, within) <= 1
    assert evidence_of_worse(right, ~within) > 1e6


@pytest.mark.parametrize(
    ("evidence", "kept"), [([], []), ([59.0, 1.0, 1.0], []), ([60.0, 1.0, 1.0], [0]), ([1.0, 31.0, 30.0], [1, 2])]
)
def test_the_share_of_false_discoveries_is_bounded(evidence: list[float], kept: list[int]) -> None:
    assert e_bh(evidence) == kept


def test_rare_levels_are_taken_together() -> None:
    cases, ill = cases_of(400, prevalence=0.3)
    many = [replace(case, groups={"scanner": f"S{n % 40}"}) for n, case in enumerate(cases)]
    levels = {item.level for item in subgroups(many, labels_of(many, ill), [FINDING]) if item.group == "scanner"}
    assert len(levels) == 13
    assert "other" in levels
