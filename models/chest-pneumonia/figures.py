"""Figures of a fold with intervals: patients, not images, are drawn again for the bootstrap."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from stepwedge.package.card import Estimate

Floats = NDArray[np.float64]
Labels = NDArray[np.bool_]

SAMPLES = 1000
_SEED = 7
_BINS = 10  # of equal number of images


def auroc(truth: Labels, score: Floats) -> float:
    """The share of pairs of a positive and a negative image that the score puts in order; ties count half."""
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    ranks = rankdata(score)
    return float((ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def calibration_error(truth: Labels, probability: Floats) -> float:
    """Expected calibration error over bins of equal number."""
    order = np.argsort(probability, kind="stable")
    parts = [part for part in np.array_split(order, _BINS) if len(part)]
    return float(sum(len(p) * abs(truth[p].mean() - probability[p].mean()) for p in parts) / len(order))


def estimate(patients: Sequence[str], figure: Callable[[NDArray[np.intp]], float]) -> Estimate:
    """A figure of the images with its 95 % interval by bootstrap over patients.

    ``figure`` gets the indices of the images to count, (m,), with repeats. Resamples in which it cannot be computed
    (no positive image, say) are left out.
    """
    rng = np.random.default_rng(_SEED)
    names, index = np.unique(np.asarray(patients), return_inverse=True)
    images = [np.flatnonzero(index == i) for i in range(len(names))]
    values = np.array(
        [figure(np.concatenate([images[i] for i in rng.integers(len(names), size=len(names))])) for _ in range(SAMPLES)]
    )
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return Estimate(value=round(figure(np.arange(len(index))), 4), low=round(float(low), 4), high=round(float(high), 4))


def weights_at(truth: Labels, prevalence: float) -> Floats:
    """Weights of the images, summing to one, under which the positive share is ``prevalence``."""
    positives = truth.sum()
    weights = np.where(truth, prevalence / max(positives, 1), (1 - prevalence) / max(len(truth) - positives, 1))
    return np.asarray(weights, np.float64)
