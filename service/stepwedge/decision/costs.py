"""The action of least expected cost: act, clear, or leave it to a person (Chow 1970; Elkan 2001)."""

from __future__ import annotations

from stepwedge.records import Costs, Decision, Thresholds


def thresholds(costs: Costs) -> Thresholds:
    """The probabilities at which the cheapest action changes.

    Acting costs (1 − p) × false alarm, clearing p × miss, deferring a fixed sum. Where deferring is never the
    cheapest, both thresholds are false alarm / (false alarm + miss).
    """
    indifferent = costs.false_alarm / (costs.false_alarm + costs.miss)
    if costs.deferral >= costs.miss * indifferent:
        return Thresholds(clear_below=indifferent, act_from=indifferent)
    return Thresholds(
        clear_below=costs.deferral / costs.miss,
        act_from=1.0 - costs.deferral / costs.false_alarm,
    )


def decide(probability: float, limits: Thresholds) -> Decision:
    """The cheapest action at a calibrated probability."""
    if probability >= limits.act_from:
        return Decision.ACT
    if probability < limits.clear_below:
        return Decision.CLEAR
    return Decision.DEFER
