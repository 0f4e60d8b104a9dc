"""From a model's outputs to calibrated probabilities at the site's prevalence."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stepwedge.manifest import FindingCalibration, FindingSpec, Output

# Probabilities inside a graph saturate in float32; beyond this their log-odds carry nothing.
_SMALLEST_PROBABILITY = 1e-7


def finding_scores(outputs: NDArray[np.float32], output: Output, finding: FindingSpec) -> NDArray[np.float64]:
    """The log-odds of a finding from the graph's scores.

    Parameters
    ----------
    outputs
        (n, classes), logits or probabilities as ``output.activation`` says.

    Returns
    -------
    (n,) log-odds: for exclusive classes, of ``positive`` against the rest of ``among``; for independent ones, of
    the class itself.
    """
    values = np.asarray(outputs, dtype=np.float64)
    column = {name: index for index, name in enumerate(output.classes)}
    if output.kind == "independent":
        score = values[:, column[finding.positive[0]]]
        if output.activation == "sigmoid":
            return _logit(score)
        return np.asarray(score)
    if output.activation == "softmax":
        values = np.log(np.clip(values, _SMALLEST_PROBABILITY, 1.0))
    among = finding.among or output.classes
    positive = [column[name] for name in finding.positive]
    rest = [column[name] for name in among if name not in finding.positive]
    return _log_sum_exp(values[:, positive]) - _log_sum_exp(values[:, rest])


def calibrated(scores: NDArray[np.float64], calibration: FindingCalibration) -> NDArray[np.float64]:
    """Probabilities at the prevalence of the fold that the calibration was fitted on, strictly between 0 and 1.

    ``sigmoid`` (Platt 1999), ``temperature`` (Guo 2017) and ``none`` are a sigmoid of slope × score + intercept;
    ``isotonic`` (Zadrozny 2002) is linear between its points and constant beyond them.
    """
    values = np.asarray(scores, dtype=np.float64)
    if calibration.method == "isotonic":
        at, probabilities = np.asarray(calibration.points, dtype=np.float64).T
        return _inside(np.interp(values, at, probabilities))
    return _inside(_sigmoid(calibration.slope * values + calibration.intercept))


def at_prevalence(
    probabilities: NDArray[np.float64], fitted_prevalence: float, prevalence: float
) -> NDArray[np.float64]:
    """Probabilities carried from one prevalence to another, for equal class-conditional scores (Saerens 2002)."""
    shift = _logit(np.asarray(prevalence)) - _logit(np.asarray(fitted_prevalence))
    return _inside(_sigmoid(_logit(np.asarray(probabilities, dtype=np.float64)) + shift))


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))


def _logit(p: NDArray[np.float64]) -> NDArray[np.float64]:
    clipped = _inside(p)
    return np.asarray(np.log(clipped) - np.log1p(-clipped))


def _inside(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.clip(p, _SMALLEST_PROBABILITY, 1.0 - _SMALLEST_PROBABILITY)


def _log_sum_exp(x: NDArray[np.float64]) -> NDArray[np.float64]:
    top = x.max(axis=1, keepdims=True)
    return np.asarray((top + np.log(np.exp(x - top).sum(axis=1, keepdims=True)))[:, 0])
