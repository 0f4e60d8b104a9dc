"""How well answers go with the truth: every measure at once, over many resamples of the studies.

The truth of a study is a share of certainty, 0…1: where readers do not agree, it counts in part as ill and in part as
well. Studies count by weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stepwatch.figures import MEASURES

Floats = NDArray[np.float64]
Answers = NDArray[np.str_]  # act, clear, defer, none

ACT, CLEAR, DEFER = "act", "clear", "defer"
_BINS = 10  # of the calibration error, of equal weight, as in the package's card
_JEFFREYS = 0.5  # cases of each outcome added in resamples: all right among ten is not "right for certain"
_PROPORTIONS = ("sensitivity", "specificity", "ppv", "npv")


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """What errors cost under the site's policy; any unit."""

    miss: float
    false_alarm: float
    deferral: float


def resample(groups: NDArray[np.int64], weights: Floats, samples: int, random: np.random.Generator) -> Floats:
    """Weights of the studies in resamples, (samples, studies), by the Bayesian bootstrap (Rubin 1981).

    Within each group the weights keep their sum: how many studies are of which group is known, not drawn.
    """
    drawn = random.standard_exponential((samples, len(weights))) * weights
    for group in np.unique(groups):
        of = groups == group
        total = weights[of].sum()
        if total > 0:
            drawn[:, of] *= (total / drawn[:, of].sum(axis=1))[:, None]
    return drawn


def draw_truth(truth: Floats, samples: int, random: np.random.Generator) -> Floats:
    """What may be true, (samples, studies) of 0 and 1: drawn where the truth is uncertain."""
    return np.asarray(random.random((samples, len(truth))) < truth, dtype=np.float64)


def measure(
    probability: Floats,
    truth: Floats,
    weights: Floats,
    answers: Answers,
    costs: Costs | None,
    random: np.random.Generator | None = None,
) -> dict[str, Floats]:
    """Every measure of each resample, (samples,). NaN where there is nothing to measure it on.

    Sensitivity is the share of ill studies acted on, specificity of well studies cleared: a deferred study is in
    neither, as in the package's card. Expected cost is per study, in the policy's unit.

    Parameters
    ----------
    probability
        (studies,), calibrated.
    truth, weights
        (samples, studies).
    random
        For resamples: adds half a case of each outcome to the proportions (Jeffreys), so that their intervals keep a
        width where every case went one way. None: the plain figures.
    """
    ill, well = weights * truth, weights * (1 - truth)
    act, clear, defer = (np.asarray(answers == name, dtype=np.float64) for name in (ACT, CLEAR, DEFER))
    acted_ill, acted_well, cleared_ill, cleared_well = ill @ act, well @ act, ill @ clear, well @ clear
    answered = weights @ (act + clear + defer)
    decided = (act + clear + defer) > 0
    all_ill, all_well = (np.asarray(part @ decided.astype(np.float64)) for part in (ill, well))
    proportions = {
        "sensitivity": (acted_ill, all_ill),
        "specificity": (cleared_well, all_well),
        "ppv": (acted_ill, acted_ill + acted_well),
        "npv": (cleared_well, cleared_ill + cleared_well),
    }
    # Weight of one case: what an added one has to weigh to count as one.
    unit = (weights**2).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-300)
    found = {name: _quotient(*_added(proportions[name], unit, random)) for name in _PROPORTIONS}
    found |= _by_score(probability, ill, well)
    found["ece"] = calibration_error(probability, truth, weights)
    cost = np.full(len(weights), np.nan)
    if costs is not None:
        cost = _quotient(
            costs.miss * cleared_ill + costs.false_alarm * acted_well + costs.deferral * (weights @ defer), answered
        )
    found["expected_cost"] = cost
    return {name: found[name] for name in MEASURES}


def calibration_error(probability: Floats, truth: Floats, weights: Floats) -> Floats:
    """Expected calibration error over ten bins of equal weight (Naeini 2015), (samples,)."""
    order = np.argsort(probability, kind="stable")
    typical = weights.mean(axis=0)[order]
    middle = (np.cumsum(typical) - typical / 2) / max(typical.sum(), 1e-300)
    starts = np.unique(np.searchsorted(middle, np.arange(_BINS) / _BINS))
    starts = starts[starts < len(order)]
    excess = (weights * (truth - probability))[:, order]
    return _quotient(np.abs(np.add.reduceat(excess, starts, axis=1)).sum(axis=1), weights.sum(axis=1))


def _added(counts: tuple[Floats, Floats], unit: Floats, random: np.random.Generator | None) -> tuple[Floats, Floats]:
    right, of = counts
    if random is None:
        return right, of
    hits, errors = (unit * random.gamma(_JEFFREYS, size=len(unit)) for _ in range(2))
    return right + hits, np.where(of > 0, of + hits + errors, 0.0)


def _by_score(probability: Floats, ill: Floats, well: Floats) -> Mapping[str, Floats]:
    """AUROC (ties count half) and average precision."""
    order = np.argsort(probability, kind="stable")
    starts = np.flatnonzero(np.diff(probability[order], prepend=-np.inf))
    positive = np.add.reduceat(ill[:, order], starts, axis=1)
    negative = np.add.reduceat(well[:, order], starts, axis=1)
    all_positive, all_negative = positive.sum(axis=1), negative.sum(axis=1)
    below = np.cumsum(negative, axis=1)
    ordered = (positive * (below - negative / 2)).sum(axis=1)
    found = np.cumsum(positive[:, ::-1], axis=1)
    taken = found + np.cumsum(negative[:, ::-1], axis=1)
    precision = found / np.maximum(taken, 1e-300)
    return {
        "auroc": _quotient(ordered, all_positive * all_negative),
        "auprc": _quotient((positive[:, ::-1] * precision).sum(axis=1), all_positive),
    }


def _quotient(one: Floats, other: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(other > 0, one / other, np.nan))
