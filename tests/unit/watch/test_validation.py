"""A challenger is compared with the champion patient by patient."""

from __future__ import annotations

from typing import Any

import pytest
from stepwatch.errors import WatchError
from stepwatch.settings import Retrain
from stepwatch.validation import compare

COSTS = {"miss": 10.0, "false_alarm": 1.0, "deferral": 0.3, "prevalence": 0.5}


def _cases(count: int, *, wrong: int = 0, level: str = "F") -> list[dict[str, Any]]:
    return [
        {
            "patient": n,
            "subgroups": {"sex": level if n % 2 else "M"},
            "findings": {
                "ill": {"truth": n % 4 < 2, "decision": "act" if (n % 4 < 2) != (n < wrong) else "clear", **COSTS}
            },
        }
        for n in range(count)
    ]


def test_the_same_answers_are_not_worse() -> None:
    outcome = compare(_cases(200), _cases(200), Retrain())
    assert outcome.state == "validated"
    assert [each.where for each in outcome.compared] == ["overall", "sex=F", "sex=M"]


def test_many_misses_more_are_declined() -> None:
    outcome = compare(_cases(200), _cases(200, wrong=80), Retrain())
    assert outcome.state == "declined"
    assert "overall" in outcome.because


def test_a_few_differences_are_inconclusive_and_so_are_too_few_patients() -> None:
    assert compare(_cases(200), _cases(200, wrong=1), Retrain()).state == "inconclusive"
    assert compare(_cases(12), _cases(12), Retrain()).state == "inconclusive"


def test_other_cases_are_not_compared() -> None:
    with pytest.raises(WatchError, match="same cases"):
        compare(_cases(200), _cases(201), Retrain())


def _two(count: int, *, wrong_of_girls: int = 0, rare: int = 0) -> list[dict[str, Any]]:
    """Girls and boys, and a second finding that only so many have."""
    cases = _cases(count)
    girls = [case for case in cases if case["subgroups"]["sex"] == "F" and case["findings"]["ill"]["truth"]]
    for case in girls[:wrong_of_girls]:
        case["findings"]["ill"]["decision"] = "clear"
    for n, case in enumerate(cases):
        case["findings"]["rare"] = {"truth": n < rare, "decision": "clear", **COSTS}
    return cases


def test_a_subgroup_that_gets_worse_declines_a_candidate_that_is_well_overall() -> None:
    settings = Retrain(worse_by=5.0)
    outcome = compare(_two(400), _two(400, wrong_of_girls=60), settings)
    assert outcome.state == "declined"
    assert outcome.because == "worse than the margin: sex=F"


def test_what_too_few_have_is_named_and_can_be_asked_for() -> None:
    outcome = compare(_two(200, rare=6), _two(200, rare=6), Retrain())
    assert outcome.state == "validated"
    assert "rare (overall)" in outcome.because
    assert outcome.compared[0].left_out == ("rare",)
    strict = compare(_two(200, rare=6), _two(200, rare=6), Retrain(every_subgroup=True))
    assert strict.state == "inconclusive"
    assert "every_subgroup" in strict.because
