"""Measured on labels and estimated without them, side by side."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import pytest
from labelling import FINDING, cases_of, label_of, labels_of
from stepwatch.audit import is_drawn
from stepwatch.figures import MEASURES, Figure, Performance
from stepwatch.measures import Costs
from stepwatch.performance import (
    CANNOT_SEE,
    Case,
    Terms,
    age_band,
    between,
    case_of,
    in_window,
    performance,
    prevalence_now,
)
from stepwedge.observation import Label, Observation
from watched import shipped_rows

TERMS = {FINDING: Terms(costs=Costs(miss=10, false_alarm=1, deferral=0.3), prevalence=0.15)}
SHARE = 0.1


def figure(found: Performance, measure: str, how: str = "measured") -> Figure:
    return next(f for f in found.figures if (f.measure, f.how) == (measure, how))


def known(cases: list[Case], labels: list[Label]) -> Performance:
    return performance(cases, labels, [FINDING], TERMS)


def test_where_probabilities_are_right_measured_and_estimated_agree() -> None:
    cases, ill = cases_of(2000)
    found = known(cases, labels_of(cases, ill))
    assert {(f.measure, f.how) for f in found.figures} == {(m, h) for m in MEASURES for h in ("measured", "estimated")}
    assert all(f.low <= f.value <= f.high for f in found.figures)
    assert found.parted() == []
    assert figure(found, "auroc").value == pytest.approx(0.92, abs=0.02)  # Φ(2 / √2)
    assert found.labelled == {FINDING: 2000}


def test_figures_are_what_counting_gives() -> None:
    cases, ill = cases_of(500)
    acted = np.array([case.decisions[FINDING] == "act" for case in cases])
    found = known(cases, labels_of(cases, ill))
    assert figure(found, "sensitivity").value == pytest.approx(acted[ill].mean())
    assert figure(found, "specificity").value == pytest.approx((~acted)[~ill].mean())
    assert figure(found, "ppv").value == pytest.approx(ill[acted].mean())
    assert figure(found, "npv").value == pytest.approx((~ill)[~acted].mean())
    cost = (10 * (ill & ~acted) + (~ill & acted)).mean()
    assert figure(found, "expected_cost").value == pytest.approx(cost)


def test_a_deferred_study_is_neither_acted_on_nor_cleared_and_costs_its_price() -> None:
    cases, ill = cases_of(400)
    deferred = [replace(case, decisions={FINDING: "defer"}) for case in cases]
    found = known(deferred, labels_of(deferred, ill))
    assert figure(found, "sensitivity").value == 0
    assert figure(found, "specificity").value == 0
    assert figure(found, "expected_cost").value == pytest.approx(0.3)
    assert not any(f.measure == "ppv" for f in found.figures)


def test_when_labels_no_longer_go_with_probabilities_the_estimate_is_not_to_be_believed() -> None:
    cases, ill = cases_of(2000)
    # The same looks mean something else now: a third of all studies have a truth of their own.
    random = np.random.default_rng(7)
    other = np.where(random.random(len(ill)) < 0.35, random.random(len(ill)) < ill.mean(), ill)
    found = known(cases, labels_of(cases, other))
    assert {(FINDING, "auroc"), (FINDING, "sensitivity"), (FINDING, "expected_cost"), (FINDING, "ece")} <= set(
        found.parted()
    )
    assert "cannot see concept drift" in CANNOT_SEE


def test_the_estimate_does_not_part_by_chance() -> None:
    apart = []
    for seed in range(20):
        cases, ill = cases_of(600, seed=seed)
        apart += known(cases, labels_of(cases[:200], ill[:200])).parted()
    assert len(apart) <= 2  # of 160


def test_intervals_hold_what_they_say() -> None:
    held = []
    for seed in range(40):
        cases, ill = cases_of(300, seed=100 + seed)
        auroc = figure(known(cases, labels_of(cases, ill)), "auroc")
        held.append(auroc.low <= 0.9214 <= auroc.high)
    assert np.mean(held) >= 0.85


def test_all_right_among_few_is_not_right_for_certain() -> None:
    cases, _ = cases_of(60)
    sure = [
        replace(
            case, probabilities={FINDING: 0.99 if n < 8 else 0.01}, decisions={FINDING: "act" if n < 8 else "clear"}
        )
        for n, case in enumerate(cases)
    ]
    sensitivity = figure(known(sure, [label_of(c, float(n < 8)) for n, c in enumerate(sure)]), "sensitivity")
    assert sensitivity.value == sensitivity.high == 1
    assert sensitivity.low < 0.85


def test_too_few_labels_measure_nothing() -> None:
    cases, ill = cases_of(500)
    found = known(cases, labels_of(cases[:29], ill[:29]))
    assert {f.how for f in found.figures} == {"estimated"}
    assert found.labelled == {FINDING: 29}


def test_without_an_ill_study_nothing_is_said_of_finding_them() -> None:
    cases, _ = cases_of(200)
    found = known(cases, [label_of(case, 0.0) for case in cases])
    measured = {f.measure for f in found.figures if f.how == "measured"}
    assert measured.isdisjoint({"auroc", "auprc", "sensitivity"})
    assert {"specificity", "expected_cost"} <= measured


def test_without_a_policy_there_is_no_cost() -> None:
    cases, ill = cases_of(200)
    found = performance(cases, labels_of(cases, ill), [FINDING])
    assert not any(f.measure == "expected_cost" for f in found.figures)


def follow_the_answer(seed: int) -> tuple[list[Case], np.ndarray, list[Label]]:
    """Labels of nine in ten of the studies that the model acted on and one in 50 others; and those of the audit."""
    cases, ill = cases_of(4000, seed=seed, separation=1.5)
    random = np.random.default_rng(seed)
    labels = []
    for case, truth in zip(cases, ill, strict=True):
        if random.random() < (0.9 if case.decisions[FINDING] == "act" else 0.02):
            labels.append(label_of(case, float(truth)))
        if is_drawn(case.study, SHARE):
            labels.append(label_of(case, float(truth), reader="r2", audit=True, probability_drawn=SHARE))
    return cases, ill, labels


def test_labels_that_follow_the_model_flatter_it_and_the_audit_does_not() -> None:
    naive, weighted, held = [], [], []
    for seed in range(12):
        cases, ill, labels = follow_the_answer(seed)
        acted = np.array([case.decisions[FINDING] == "act" for case in cases])
        truth = acted[ill].mean()
        honest = figure(known(cases, labels), "sensitivity")
        naive.append(figure(known(cases, [x for x in labels if not x.audit]), "sensitivity").value - truth)
        weighted.append(honest.value - truth)
        held.append(honest.low <= truth <= honest.high)
    assert min(naive) > 0.2
    assert abs(np.mean(weighted)) < 0.03
    assert np.mean(held) >= 0.8


def test_a_late_label_corrects_the_figures_of_its_time() -> None:
    cases, ill = cases_of(400)
    labels = labels_of(cases, ill)
    morning = between(cases, None, datetime.fromisoformat(cases[200].time))
    before = known(morning, labels)
    late = (datetime.fromisoformat(cases[0].time) + timedelta(days=90)).isoformat()
    wrong = [c for c, t in zip(morning, ill, strict=False) if t and c.decisions[FINDING] == "act"][:5]
    after = known(morning, [*labels, *(label_of(case, 0.0, time=late) for case in wrong)])
    assert len(morning) == 200
    assert figure(after, "ppv").value < figure(before, "ppv").value
    assert after.labelled == before.labelled


def test_of_several_answers_to_a_study_the_last_counts_and_the_window_is_bounded() -> None:
    cases, _ = cases_of(10)
    again = replace(cases[0], decisions={FINDING: "defer"})
    found = in_window([*cases, again], 4)
    assert [case.study for case in found] == [c.study for c in (*cases[7:], again)]
    assert found[-1].decisions == {FINDING: "defer"}


def test_prevalence_is_found_without_labels() -> None:
    cases, ill = cases_of(4000, prevalence=0.3)
    odds = np.array([c.probabilities[FINDING] for c in cases])
    # As calibrated for a department where one in ten is ill.
    at_ten = odds / 0.3 * 0.1 / (odds / 0.3 * 0.1 + (1 - odds) / 0.7 * 0.9)
    assert prevalence_now(at_ten, 0.1) == pytest.approx(ill.mean(), abs=0.03)
    found = performance(cases, labels_of(cases, ill), [FINDING], baseline={FINDING: 0.2})
    said = {p.how: p.value for p in found.prevalences}
    assert said["baseline"] == 0.2
    assert said["labelled"] == pytest.approx(ill.mean())


def test_what_was_rejected_is_no_case() -> None:
    row: Observation = shipped_rows()[0]
    assert case_of(replace(row, state="rejected")) is None
    case = case_of(replace(row, state="reported", sex="", scanner="DX-1", manufacturer="Acme", age_years=3.0))
    assert case is not None
    assert case.groups == {"sex": "missing", "age": "2–5", "scanner": "Acme DX-1"} | {
        name: case.groups[name] for name in ("sender", "view")
    }


@pytest.mark.parametrize(("years", "band"), [(None, ""), (float("nan"), ""), (0.5, "0–1"), (17.9, "6–17"), (90, "65+")])
def test_age_bands(years: float | None, band: str) -> None:
    assert age_band(years) == band
