"""Thresholds follow from costs alone, and the action at every probability is the cheapest one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from stepwedge.decision.costs import decide, thresholds
from stepwedge.records import Costs, Decision

cost = st.floats(1e-3, 1e3, allow_nan=False)
all_costs = st.builds(Costs, miss=cost, false_alarm=cost, deferral=cost)


def expected_cost(action: Decision, probability: float, costs: Costs) -> float:
    return {
        Decision.ACT: (1 - probability) * costs.false_alarm,
        Decision.CLEAR: probability * costs.miss,
        Decision.DEFER: costs.deferral,
    }[action]


@given(all_costs)
@example(Costs(miss=10, false_alarm=1, deferral=0.3))
@example(Costs(miss=1, false_alarm=1, deferral=0.5))
def test_no_other_action_is_cheaper_at_any_probability(costs: Costs) -> None:
    limits = thresholds(costs)
    for probability in np.linspace(0, 1, 101):
        chosen = expected_cost(decide(float(probability), limits), float(probability), costs)
        actions = (Decision.ACT, Decision.CLEAR, Decision.DEFER)
        cheapest = min(expected_cost(action, float(probability), costs) for action in actions)
        assert chosen <= cheapest * (1 + 1e-9) + 1e-12


@given(all_costs)
def test_thresholds_are_probabilities_in_order(costs: Costs) -> None:
    limits = thresholds(costs)
    assert 0 < limits.clear_below <= limits.act_from + 1e-12
    assert limits.act_from < 1


@given(cost, cost, st.floats(1.0, 100))
def test_a_deferral_that_costs_more_than_any_error_is_expected_to_never_happens(
    miss: float, false_alarm: float, times: float
) -> None:
    dearest_error = miss * false_alarm / (miss + false_alarm)
    limits = thresholds(Costs(miss=miss, false_alarm=false_alarm, deferral=dearest_error * times * (1 + 1e-9)))
    assert limits.clear_below == limits.act_from == pytest.approx(false_alarm / (miss + false_alarm))
    decisions = {decide(float(probability), limits) for probability in np.linspace(0, 1, 101)}
    assert Decision.DEFER not in decisions


@given(all_costs, st.floats(1e-3, 1e3))
def test_only_the_ratios_of_the_costs_matter(costs: Costs, unit: float) -> None:
    scaled = Costs(miss=costs.miss * unit, false_alarm=costs.false_alarm * unit, deferral=costs.deferral * unit)
    one, other = thresholds(costs), thresholds(scaled)
    assert one.clear_below == pytest.approx(other.clear_below)
    assert one.act_from == pytest.approx(other.act_from)


@given(all_costs, st.floats(1.01, 100))
def test_a_dearer_miss_never_raises_the_bar_for_acting(costs: Costs, times: float) -> None:
    dearer = Costs(miss=costs.miss * times, false_alarm=costs.false_alarm, deferral=costs.deferral)
    assert thresholds(dearer).act_from <= thresholds(costs).act_from + 1e-12 or (
        # Where deferring was never the cheapest and now is, what was acted upon narrowly is left to a person.
        thresholds(costs).act_from == thresholds(costs).clear_below
    )
    assert thresholds(dearer).clear_below <= thresholds(costs).clear_below + 1e-12


def test_at_the_thresholds_themselves_the_finding_is_acted_upon_and_not_cleared() -> None:
    limits = thresholds(Costs(miss=10, false_alarm=1, deferral=0.3))
    assert limits.clear_below == pytest.approx(0.03)
    assert limits.act_from == pytest.approx(0.7)
    assert decide(limits.act_from, limits) is Decision.ACT
    assert decide(limits.clear_below, limits) is Decision.DEFER
    assert decide(np.nextafter(limits.clear_below, 0), limits) is Decision.CLEAR
