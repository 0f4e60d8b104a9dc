"""The action of least expected cost: act, clear, or leave it to a person (Chow 1970; Elkan 2001)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stepwedge.records import Costs, Decision, Thresholds

# A deferral cost must lie above, not at, what the next image's error is expected to cost: this much, relatively, so
# that rounding in the thresholds does not turn it round.
_ABOVE = 1e-9


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


def weights_at(truth: NDArray[np.bool_], prevalence: float) -> NDArray[np.float64]:
    """Weights of images, (n,), summing to one, under which ``prevalence`` of them are positive.

    Raises ValueError where there is no positive or no negative image.
    """
    positives = int(truth.sum())
    if positives == 0 or positives == len(truth):
        raise ValueError("images of both kinds are needed to weight them to a prevalence; there is only one kind")
    return np.asarray(np.where(truth, prevalence / positives, (1 - prevalence) / (len(truth) - positives)))


def deferral_cost_for(
    cap: float,
    probabilities: NDArray[np.float64],
    truth: NDArray[np.bool_] | None,
    costs: Costs,
    prevalence: float,
) -> float:
    """The smallest cost of a deferral, no smaller than ``costs.deferral``, under which at most ``cap`` is deferred.

    A cap on the workload is thus turned, once and offline, into a price of a person's time that the decisions then
    pay; nothing counts deferrals by the day.

    Parameters
    ----------
    cap
        Largest share of images deferred, 0…1.
    probabilities
        (n,), calibrated, at ``prevalence``.
    truth
        (n,), by which images are weighted to ``prevalence``. None for images that come at it: all count the same.

    Returns
    -------
    In the unit of ``costs``. The cap is kept on the images given; on others, as nearly as they are like these.

    Raises
    ------
    ValueError
        If ``cap`` is not a share, there is no image, or none of one kind.
    """
    if not 0 <= cap <= 1:
        raise ValueError(f"the share that may be deferred is {cap}; wanted 0 to 1")
    if len(probabilities) == 0:
        raise ValueError("there is no image to find the deferral cost on")
    weights = np.full(len(probabilities), 1 / len(probabilities)) if truth is None else weights_at(truth, prevalence)
    # An image is deferred as long as that costs no more than the cheaper error is expected to.
    error = np.minimum(probabilities * costs.miss, (1 - probabilities) * costs.false_alarm)
    order = np.argsort(-error, kind="stable")
    over = np.flatnonzero(np.cumsum(weights[order]) > cap * (1 + _ABOVE))
    if len(over) == 0:
        return costs.deferral
    return max(costs.deferral, float(error[order][over[0]]) * (1 + _ABOVE))
