"""Evidence that a subgroup fares worse: it may be looked at at any time, and is not worn out by looking."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from stepwatch import fairness
from stepwatch.fairness import Fairness, Offsets, Rates, believed, e_bh, known_levels

LEVELS = {"sex": ("F", "M"), "scanner": tuple(f"S{n}" for n in range(6))}
TWENTY = math.log(20)


def rates(right: np.ndarray, within: np.ndarray) -> Rates:
    found = Rates()
    for is_right, is_own in zip(right.tolist(), within.tolist(), strict=True):
        found.take(right=is_right, within=is_own)
    return found


def test_no_number_of_looks_makes_a_gap_of_chance() -> None:
    worse = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        found = Rates()
        ever = False
        for is_right, is_own in zip(random.random(600) < 0.8, random.random(600) < 0.3, strict=True):
            found.take(right=bool(is_right), within=bool(is_own))
            ever = ever or found.log_evidence >= TWENTY
        worse += ever
    assert worse <= 10  # of 200: the bound is 5 %


def test_a_decay_of_all_is_not_booked_on_a_scanner_that_comes_after_it() -> None:
    worse = 0
    for seed in range(50):
        random = np.random.default_rng(seed)
        found = rates(random.random(400) < 0.9, np.zeros(400, bool))
        ever = False
        for is_right, is_own in zip(random.random(600) < 0.7, random.random(600) < 0.3, strict=True):
            found.take(right=bool(is_right), within=bool(is_own))
            ever = ever or found.log_evidence >= TWENTY
        worse += ever
    assert worse <= 9  # with the oldest readings of others in each block it were 30


def test_no_number_of_looks_makes_probabilities_that_are_right_wrong() -> None:
    wrong = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        found = Offsets()
        ever = False
        for p in random.beta(0.6, 2, 500):
            found.take(float(p), float(random.random() < p))
            ever = ever or found.log_evidence >= TWENTY
        wrong += ever
    assert wrong <= 10


def test_a_group_that_is_better_is_no_evidence_that_it_is_worse() -> None:
    random = np.random.default_rng(2)
    within = random.random(2000) < 0.5
    right = random.random(2000) < np.where(within, 0.95, 0.7)
    assert rates(right, within).log_evidence <= 0
    assert rates(right, ~within).log_evidence > math.log(1e6)


def test_of_a_rare_level_each_case_is_compared_with_several_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def evidence() -> float:
        total = 0.0
        for seed in range(20):
            random = np.random.default_rng(seed)
            within = random.random(1200) < 0.15
            total += rates(random.random(1200) < np.where(within, 0.7, 0.9), within).log_evidence
        return total

    several = evidence()
    monkeypatch.setattr(fairness, "_LARGEST_BLOCK", 1)
    assert several > 1.2 * evidence() > 0


def test_an_answer_that_was_left_to_a_person_is_not_a_right_one() -> None:
    found = Fairness(["a"], {"sex": ("F", "M")})
    for number in range(200):
        ill = number % 4 < 2
        deferred = number % 2 == 0
        found.take("a", {"sex": "F" if deferred else "M"}, 0.5, "defer" if deferred else "act" if ill else "clear", ill)
    worse = believed(found.evidence())
    assert {("a", "sex", "F", "sensitivity"), ("a", "sex", "F", "specificity")} <= worse
    assert not any(level == "M" for _, _, level, _ in worse)


def test_what_waits_for_the_other_side_is_bounded() -> None:
    found = rates(np.ones(5000, bool), np.ones(5000, bool))
    assert len(found.own_block) == 20


@pytest.mark.parametrize(
    ("evidence", "kept"), [([], []), ([59.0, 1.0, 1.0], []), ([60.0, 1.0, 1.0], [0]), ([1.0, 31.0, 30.0], [1, 2])]
)
def test_the_share_of_false_discoveries_is_bounded(evidence: list[float], kept: list[int]) -> None:
    assert e_bh(evidence) == kept


def departments(seed: int, readings: int, *, worse_on: str = "") -> Fairness:
    random = np.random.default_rng(seed)
    found = Fairness(["a"], LEVELS)
    for _ in range(readings):
        groups = {"sex": str(random.choice(["F", "M"])), "scanner": f"S{random.integers(6)}"}
        p = float(random.beta(0.6, 1.4))
        missed = random.random() < (0.7 if groups["scanner"] == worse_on else 0.2)
        ill = random.random() < p
        answer = ("clear" if missed else "act") if ill else ("act" if random.random() < 0.1 else "clear")
        found.take("a", groups, p, answer, float(ill))
    return found


def test_the_level_that_is_worse_is_believed_and_in_most_departments_nothing_else_is() -> None:
    assert ("a", "scanner", "S2", "sensitivity") in believed(departments(1, 3000, worse_on="S2").evidence())
    assert sum(bool(believed(departments(seed, 600).evidence())) for seed in range(40)) <= 2


def test_it_goes_on_from_what_was_saved() -> None:
    whole, half = departments(4, 400), departments(4, 400)
    kept = Fairness.from_row(json.loads(json.dumps(half.to_row())))
    assert kept.is_of(["a"], LEVELS)
    assert not kept.is_of(["a"], {"sex": ("F",)})
    for each in (whole, kept):
        each.take("a", {"sex": "F", "scanner": "S1"}, 0.4, "clear", 1.0)
    assert kept.evidence() == whole.evidence()
    assert Fairness.from_row({}).evidence() == {}


def test_levels_are_those_of_the_baseline_and_the_rest_together() -> None:
    known = known_levels([{"scanner": f"S{n % 40}", "sex": "F"} for n in range(400)])
    assert len(known["scanner"]) == 12
    assert known["age"] == ("missing",)
    found = Fairness(["a"], known)
    found.take("a", {"scanner": "never seen", "sex": "F"}, 0.2, "clear", 0.0)
    assert found.evidence()["a", "scanner", "other", "calibration"][1] == 1
    found.take("unknown finding", {}, 0.2, "clear", 0.0)
