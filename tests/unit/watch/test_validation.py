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
