"""Which studies to label next."""

from __future__ import annotations

from dataclasses import replace

from labelling import FINDING, cases_of, label_of
from stepwatch.audit import is_drawn
from stepwatch.worklist import queue

CASES, ILL = cases_of(400)
DRAWN = {case.study for case in CASES if is_drawn(case.study, 0.05)}


def wanted(labels: list, budget: int = 1000, cases: list = CASES) -> list:
    return queue(cases, labels, [FINDING], audit_share=0.05, budget=budget)


def test_the_audit_comes_first_and_says_nothing_of_the_answer() -> None:
    found = wanted([])
    assert {item.study for item in found[: len(DRAWN)]} == DRAWN
    assert {(item.reason, item.probability_drawn) for item in found[: len(DRAWN)]} == {("audit", 0.05)}
    assert [item.study for item in found[: len(DRAWN)]] == sorted(DRAWN)


def test_then_what_the_model_is_least_sure_of() -> None:
    probability = {case.study: case.probabilities[FINDING] for case in CASES}
    rest = [item for item in wanted([]) if item.reason != "audit"]
    assert abs(probability[rest[0].study] - 0.5) < 0.1
    assert abs(probability[rest[-1].study] - 0.5) > 0.4


def test_novel_studies_are_wanted() -> None:
    far = next(case for case in CASES if case.study not in DRAWN and case.probabilities[FINDING] < 0.01)
    cases = [replace(case, gate_distance=9.0 if case is far else 1.0) for case in CASES]
    novel = [item for item in wanted([], cases=cases) if item.reason == "novelty"]
    assert novel[0].study == far.study


def test_readers_who_disagree_are_wanted_before_new_studies() -> None:
    case = next(case for case in CASES if case.study not in DRAWN)
    found = wanted([label_of(case, 1.0, reader="a"), label_of(case, 0.0, reader="b")])
    assert (found[len(DRAWN)].study, found[len(DRAWN)].reason) == (case.study, "disagreement")


def test_what_is_labelled_is_not_wanted_again_but_for_the_blinded_reading() -> None:
    labels = [label_of(case, float(ill)) for case, ill in zip(CASES, ILL, strict=True)]
    assert {item.study for item in wanted(labels)} == DRAWN
    audit = [label_of(case, 0.0, reader="r2", audit=True, probability_drawn=0.05) for case in CASES]
    assert wanted(audit) == []


def test_the_budget_is_kept() -> None:
    assert len(wanted([], budget=7)) == 7
    assert wanted([], budget=0) == []
