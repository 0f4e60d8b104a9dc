"""Figures of a fold with intervals: patients, not images, are drawn again for the bootstrap.

Every figure here takes weights, (resamples, images): how often each image counts in each resample. Drawing patients
again is then a matter of weights, carrying a figure to another prevalence too, and a subset has weight zero elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stepwedge.package.figures import Estimate

Floats = NDArray[np.float64]
Labels = NDArray[np.bool_]
Figure = Callable[[Floats], Floats]  # weights (resamples, images) to a figure of each resample; not a number: none

SAMPLES = 1000  # resamples: the ends of a 95 % interval then move by a fortieth of its width from seed to seed
SEED = 7
_BINS = 10  # of equal number of images, for the calibration error
_CHUNK = 4_000_000  # weights at a time, so that a large fold does not fill the memory: 32 MB
_LEAST_SHARE = 0.9  # of the resamples; an interval from those few that can be computed would be of another question
DIGITS = 5  # kept of a figure: beyond any interval
_BISECTIONS = 40  # halvings of 0…1: to 1e-12


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """Which patient each image is of, and how often each patient is drawn in each resample."""

    patient: NDArray[np.intp]  # (images,), index of the patient
    counts: NDArray[np.int64]  # (resamples, patients)

    @property
    def patients(self) -> int:
        return int(self.counts.shape[1])

    def weights(self) -> Iterator[Floats]:
        """Weights of the images, some resamples at a time: (some, images)."""
        step = max(1, _CHUNK // max(1, len(self.patient)))
        for start in range(0, len(self.counts), step):
            yield self.counts[start : start + step, self.patient].astype(np.float64)


def bootstrap(patients: Sequence[str], *, samples: int = SAMPLES, seed: int = SEED) -> Bootstrap:
    """Draw the patients of a fold again, with all their images, ``samples`` times (Efron 1979; Davison 1997).

    Parameters
    ----------
    patients
        Of each image.
    """
    names, index = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=samples)
    return Bootstrap(patient=index, counts=drawn)


def estimate(resampled: Bootstrap, figure: Figure) -> Estimate | None:
    """A figure of the images with its 95 % interval (percentiles of the bootstrap over patients).

    None if the figure cannot be computed, or not in nine tenths of the resamples (no positive image, say).
    """
    value = figure(np.ones((1, len(resampled.patient))))[0]
    values = np.concatenate([figure(weights) for weights in resampled.weights()])
    known = values[np.isfinite(values)]
    if not np.isfinite(value) or len(known) < _LEAST_SHARE * len(values):
        return None
    low, high = np.percentile(known, [2.5, 97.5])
    return _rounded(float(value), float(low), float(high))


def share(resampled: Bootstrap, hit: Labels, among: Labels | None = None) -> Estimate | None:
    """The share of images that are ``hit`` among those that are ``among`` (default all), with its 95 % interval.

    Where all or none are hit every resample says the same, and the interval is the exact one (Clopper and Pearson
    1934) for as many patients instead. None where no image is among them.
    """
    among = np.ones(len(hit), bool) if among is None else among
    found = estimate(resampled, lambda weights: mean(hit.astype(np.float64), weights * among))
    if found is None or 0 < found.value < 1:
        return found
    patients = len(np.unique(resampled.patient[among]))
    bound = 1 - 0.025 ** (1 / patients)  # of a share of which none of so many were seen
    return _rounded(0.0, 0.0, bound) if found.value == 0 else _rounded(1.0, 1.0 - bound, 1.0)


def _rounded(value: float, low: float, high: float) -> Estimate:
    return Estimate(value=round(value, DIGITS), low=round(low, DIGITS), high=round(high, DIGITS))


# --- Figures of weighted images: all take weights (resamples, images) and give (resamples,) -------------------------


def mean(values: Floats, weights: Floats) -> Floats:
    """Weighted mean; not a number where nothing has weight."""
    with np.errstate(invalid="ignore"):
        return np.asarray((weights @ values) / weights.sum(axis=1))


def carried(truth: Labels, prevalence: float, weights: Floats) -> Floats:
    """The weights, summing to one in each resample, were ``prevalence`` of the images positive."""
    with np.errstate(invalid="ignore", divide="ignore"):
        positive = prevalence * truth / (weights @ truth.astype(np.float64))[:, None]
        negative = (1 - prevalence) * ~truth / (weights @ (~truth).astype(np.float64))[:, None]
        return np.asarray(weights * (positive + negative))


def mean_at(truth: Labels, values: Floats, prevalence: float, weights: Floats) -> Floats:
    """Weighted mean were ``prevalence`` of the images positive."""
    return prevalence * mean(values, weights * truth) + (1 - prevalence) * mean(values, weights * ~truth)


def auroc(truth: Labels, score: Floats, weights: Floats) -> Floats:
    """The share of pairs of a positive and a negative image that the score puts in order; ties count half."""
    positive, negative = _by_score(truth, score, weights)
    below = np.cumsum(negative, axis=1) - negative
    pairs = (positive * (below + negative / 2)).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray(pairs / (positive.sum(axis=1) * negative.sum(axis=1)))


def auprc(truth: Labels, score: Floats, weights: Floats) -> Floats:
    """Average precision: the mean over the positive images of the precision at their own score."""
    positive, negative = (group[:, ::-1] for group in _by_score(truth, score, weights))
    found = np.cumsum(positive, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.nan_to_num(found / (found + np.cumsum(negative, axis=1)))
        return np.asarray((positive * precision).sum(axis=1) / found[:, -1])


def _by_score(truth: Labels, score: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Weight of positive and of negative images at each distinct score, rising: (resamples, scores) each."""
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf))
    ordered = weights[:, order]
    positive = np.add.reduceat(ordered * truth[order], starts, axis=1)
    return positive, np.add.reduceat(ordered, starts, axis=1) - positive


def brier(truth: Labels, probability: Floats, weights: Floats) -> Floats:
    """Mean squared difference of probability and truth (Brier 1950)."""
    return mean(np.square(probability - truth), weights)


def log_losses(truth: Labels, probability: Floats) -> Floats:
    """Log loss of each image, (images,), in nats; probabilities strictly between 0 and 1."""
    return np.asarray(-np.log(np.where(truth, probability, 1 - probability)))


def calibration_error(truth: Labels, probability: Floats, weights: Floats) -> Floats:
    """Expected calibration error over ten bins of equal weight (Naeini 2015)."""
    order = np.argsort(probability, kind="stable")
    ordered = weights[:, order]
    total = ordered.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        middle = (np.cumsum(ordered, axis=1) - ordered / 2) / total  # of each image's place, 0…1
    edges = np.array([np.searchsorted(row, np.arange(_BINS) / _BINS) for row in middle])
    excess = np.cumsum(ordered * (truth - probability)[order], axis=1)
    upto = np.concatenate([np.zeros((len(weights), 1)), excess], axis=1)
    ends = np.concatenate([edges[:, 1:], np.full((len(weights), 1), len(order))], axis=1)
    sums = np.take_along_axis(upto, ends, axis=1) - np.take_along_axis(upto, edges, axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.abs(sums).sum(axis=1) / total[:, 0])


def calibration_error_by_chance(probability: Floats, *, samples: int = SAMPLES, seed: int = SEED) -> float:
    """The calibration error that probabilities which are exactly true stay below in 95 of 100 folds of this size."""
    order = np.sort(probability)
    random = np.random.default_rng(seed)
    ones = np.ones((1, len(order)))
    errors = [calibration_error(random.random(len(order)) < order, order, ones)[0] for _ in range(samples)]
    return round(float(np.percentile(errors, 95)), DIGITS)


def prevalence_by_em(probability: Floats, fitted_prevalence: float, weights: Floats) -> Floats:
    """The prevalence under which unlabelled images are likeliest (Saerens 2002).

    Parameters
    ----------
    probability
        (images,), calibrated at ``fitted_prevalence``, strictly between 0 and 1.

    Returns
    -------
    (resamples,). It is the point that the EM algorithm climbs to; the likelihood has one maximum, so it is found by
    bisection. Holds as far as ill and well patients look as they did where the calibration was fitted.
    """
    ill, well = probability / fitted_prevalence, (1 - probability) / (1 - fitted_prevalence)
    low, high = np.zeros(len(weights)), np.ones(len(weights))
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        slope = (weights * (ill - well) / (middle[:, None] * ill + (1 - middle[:, None]) * well)).sum(axis=1)
        low, high = np.where(slope > 0, middle, low), np.where(slope > 0, high, middle)
    return np.asarray(np.where(weights.sum(axis=1) > 0, (low + high) / 2, np.nan))


def estimate_prevalence(
    probability: Floats, fitted_prevalence: float, patients: Sequence[str], *, samples: int = SAMPLES
) -> Estimate | None:
    """The present prevalence from calibrated probabilities alone, with its 95 % interval by patient.

    It is for people to see; what is applied changes only by a new policy.
    """
    return estimate(bootstrap(patients, samples=samples), lambda w: prevalence_by_em(probability, fitted_prevalence, w))
