"""Bets that labels no longer go with the probabilities as they did in the baseline.

How labels go with a probability p is a logistic line in its log-odds, fitted on the baseline's labels (Cox 1958); where
it has too few, p is taken at its word. Each bet says that the line has become flatter, by a stated factor, at the same
overall share of positives: the model tells ill from well worse than it did. A line that only moves up or down is what
another prevalence makes, which has bets of its own. The likelihood ratio of one label under a flatter line against the
baseline's does not depend on what came before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FLATTER = (0.65, 0.4)  # of the baseline's slope
BETS = tuple(f"slope × {factor:g}" for factor in FLATTER)
_LEAST_LABELS = 200  # of the baseline, to fit a line
_LEAST_POSITIVE = 20
_LARGEST_ODDS = 13.0  # log-odds


@dataclass(frozen=True, kw_only=True)
class Line:
    """Log-odds of a label: intercept + slope × log-odds of the probability."""

    intercept: float
    slope: float

    def shares(self, odds: Floats) -> Floats:
        """The label's probability at log-odds of the model's."""
        return np.asarray(1 / (1 + np.exp(-np.clip(self.intercept + self.slope * odds, -30, 30))))


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The baseline's line, and the lines that are bet on, in the order of ``BETS``."""

    usual: Line
    changed: tuple[Line, ...]

    def log_ratios(self, probabilities: Floats, labels: Floats) -> Floats:
        """For each study, (n, bets), the log likelihood ratio of its label; NaN where it has none."""
        odds = log_odds(probabilities)
        yes = labels[:, None]
        usual = self.usual.shares(odds)[:, None]
        changed = np.stack([line.shares(odds) for line in self.changed], axis=1)
        return np.asarray(yes * np.log(changed / usual) + (1 - yes) * np.log((1 - changed) / (1 - usual)))


def fit_calibration(probabilities: Floats, labels: Floats) -> Calibration:
    """Fit on a baseline; NaN where a study has no probability or label."""
    present = ~np.isnan(probabilities)
    odds = log_odds(probabilities[present])
    labelled = ~np.isnan(labels[present])
    truth = labels[present][labelled]
    line = Line(intercept=0.0, slope=1.0)
    if len(truth) >= _LEAST_LABELS and min(truth.sum(), len(truth) - truth.sum()) >= _LEAST_POSITIVE:
        line = _logistic_line(odds[labelled], truth)
    share = float(line.shares(odds).mean()) if len(odds) else 0.5
    return Calibration(usual=line, changed=tuple(_at_share(odds, line.slope * factor, share) for factor in FLATTER))


def log_odds(probabilities: Floats) -> Floats:
    """Log-odds, within ±13."""
    inside = np.clip(probabilities, 1e-9, 1 - 1e-9)
    return np.asarray(np.clip(np.log(inside) - np.log1p(-inside), -_LARGEST_ODDS, _LARGEST_ODDS))


def _logistic_line(odds: Floats, truth: Floats) -> Line:
    """Maximum likelihood, by Newton's steps."""
    design = np.stack([np.ones_like(odds), odds], axis=1)
    found = np.array([0.0, 1.0])
    for _ in range(50):
        share = 1 / (1 + np.exp(-np.clip(design @ found, -30, 30)))
        slope = design.T @ (truth - share)
        curve = (design * (share * (1 - share))[:, None]).T @ design + 1e-6 * np.eye(2)
        step = np.linalg.solve(curve, slope)
        found = found + np.clip(step, -1, 1)
        if np.abs(step).max() < 1e-8:
            break
    return Line(intercept=float(found[0]), slope=max(float(found[1]), 0.05))


def _at_share(odds: Floats, slope: float, share: float) -> Line:
    """The line of a slope whose mean over the baseline is ``share``, by bisection."""
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        if len(odds) and float(Line(intercept=middle, slope=slope).shares(odds).mean()) < share:
            low = middle
        else:
            high = middle
    return Line(intercept=(low + high) / 2, slope=slope)
