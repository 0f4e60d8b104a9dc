"""Choosing and fitting how scores become probabilities, finding by finding, by what cross-validation shows.

The fits are scikit-learn's; only their numbers are kept. ``stepwedge.decision.calibrate`` applies them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import StratifiedGroupKFold

from stepwedge.decision.calibrate import calibrated
from stepwedge.manifest import Calibration, CalibrationEvidence, FindingCalibration, Manifest
from stepwedge.package import statistics
from stepwedge.package.evaluate import FindingSample, Scored, sample_of
from stepwedge.package.statistics import Floats, Labels, bootstrap, estimate

Method = Literal["temperature", "sigmoid", "isotonic"]
METHODS: tuple[Method, ...] = ("temperature", "sigmoid", "isotonic")  # from the simplest: one number, two, a curve

# Patients with a positive, and with a negative, image below which nothing is decided on a finding. Of nine positive
# patients all of whom were told, one in three may be missed (exact 95 % interval); a slope from so few can be off by
# a factor of two, and a threshold by as much.
LEAST_PATIENTS = 10
# The same below which a curve is not tried: its ends rest on the few images there, and that is where another
# prevalence carries the decisions. On chest radiographs (pneumonia, 40 to 80 patients) it won the cross-validation one
# time in three and then cost half as much again as a sigmoid at a prevalence of 10 %.
LEAST_PATIENTS_ISOTONIC = 100
_SPLITS = 5  # of the patients; the smallest fold that is decided on then has two positive ones in each part
_REPEATS = 4  # of the whole cross-validation, each with other parts, so that the choice does not hang on the parts
_SEED = 11
_DIGITS = 6  # kept of a fit
_LEAST_SLOPE = 1e-3  # of what is kept: below, the score tells nothing


class _Scores(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A classifier that is fitted already: its decision function is the score itself."""

    classes_ = np.array([0, 1])

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def fit(self, scores: Floats, truth: NDArray[np.intp]) -> _Scores:  # noqa: ARG002  # scikit-learn's signature
        return self

    def decision_function(self, scores: Floats) -> Floats:
        return scores[:, 0]

    def predict(self, scores: Floats) -> NDArray[np.intp]:
        return (scores[:, 0] > 0).astype(np.intp)


def fit_calibration(scored: Scored, manifest: Manifest) -> Calibration:
    """How the scores of each finding become probabilities.

    Parameters
    ----------
    scored
        The calibrate fold.

    Returns
    -------
    For each finding the simplest method whose log loss, cross-validated by patient, is no more than one standard
    error above the best one's (Breiman 1984), over all images and over the positive and the negative ones apart:
    another prevalence weights those differently, and what is too sure of one kind must not hide behind the other.
    With it comes what each method gave. A finding with too few patients, or whose score does not tell it, is
    inconclusive: the method is ``none``.

    Raises
    ------
    PackageError
        If the outputs are not such as the model can have given.
    """
    return Calibration(
        findings={spec.name: fit_finding(sample_of(scored, manifest, spec)) for spec in manifest.findings}
    )


def fit_finding(sample: FindingSample) -> FindingCalibration:
    """The calibration of one finding."""
    reason = _too_few(sample) or _not_told(sample)
    if reason:
        return _described("none", sample, inconclusive=reason)
    losses, evidence = _cross_validated(sample)
    method = _simplest(losses, sample)
    fitted = fit_method(method, sample.score, sample.truth)
    if fitted.slope < _LEAST_SLOPE:
        reason = "the probability does not rise with the model's score"
        return _described("none", sample, inconclusive=reason, evidence=evidence)
    return _described(
        method, sample, slope=fitted.slope, intercept=fitted.intercept, points=fitted.points, evidence=evidence
    )


def fit_method(method: Method, score: Floats, truth: Labels) -> FindingCalibration:
    """Fit one method on scores (images,) with images of both kinds."""
    with warnings.catch_warnings():
        # Both warnings are of scores that already are probabilities, which log-odds within 0…1 can look like.
        warnings.simplefilter("ignore")
        # Nothing is fitted in the parts of its own cross-validation, because the classifier is frozen: two will do.
        fit = CalibratedClassifierCV(FrozenEstimator(_Scores()), method=method, cv=2).fit(score[:, None], truth * 1)
    (curve,) = fit.calibrated_classifiers_[0].calibrators
    count = {"positives": int(truth.sum()), "negatives": int((~truth).sum()), "prevalence": _prevalence(truth)}
    if method == "isotonic":
        return FindingCalibration(method=method, points=_points(curve, truth), **count)
    # scikit-learn's sigmoid is of −(a × score + b), its temperature of the two-class logits (−score, score).
    slope, intercept = (-curve.a_, -curve.b_) if method == "sigmoid" else (2 * curve.beta_, 0.0)
    return FindingCalibration(
        method=method,
        slope=max(round(float(slope), _DIGITS), 10.0**-_DIGITS),
        intercept=round(float(intercept), _DIGITS),
        **count,
    )


def _points(curve: Any, truth: Labels) -> list[tuple[float, float]]:
    """The corners of the isotonic curve, never surer than so many images allow (Platt's targets)."""
    positives, negatives = int(truth.sum()), int((~truth).sum())
    probabilities = np.clip(curve.y_thresholds_, 1 / (negatives + 2), (positives + 1) / (positives + 2))
    corners: dict[float, float] = {}
    for at, probability in zip(curve.X_thresholds_, probabilities, strict=True):
        corners[round(float(at), _DIGITS)] = round(float(probability), _DIGITS)
    return list(corners.items())


def _described(
    method: Literal["none", "temperature", "sigmoid", "isotonic"], sample: FindingSample, **fields: Any
) -> FindingCalibration:
    return FindingCalibration(
        method=method,
        prevalence=_prevalence(sample.truth),
        positives=int(sample.truth.sum()),
        negatives=int((~sample.truth).sum()),
        **fields,
    )


def _prevalence(truth: Labels) -> float:
    """The share of positives; of none or all, as if half an image were of the other kind."""
    positives, count = int(truth.sum()), len(truth)
    if 0 < positives < count:
        return round(positives / count, _DIGITS)
    return round((positives + 0.5) / (count + 1), _DIGITS)


def _too_few(sample: FindingSample) -> str:
    for value, kind in ((True, "positive"), (False, "negative")):
        patients = sample.patients_with(value)
        if patients < LEAST_PATIENTS:
            return f"{patients} {kind} patients in the calibrate fold, at least {LEAST_PATIENTS} are needed"
    return ""


def _not_told(sample: FindingSample) -> str:
    """A score that may as well be drawn by lot has no threshold worth having."""
    auroc = estimate(bootstrap(sample.patients), lambda w: statistics.auroc(sample.truth, sample.score, w))
    if auroc is None or auroc.low <= 0.5:
        return f"the model may not tell it from chance: AUROC {auroc} in the calibrate fold"
    return ""


def _cross_validated(sample: FindingSample) -> tuple[dict[Method, Floats], dict[str, CalibrationEvidence]]:
    """Log loss of each image by each method when its patient had no part in the fit, and the evidence to keep."""
    resampled = bootstrap(sample.patients)
    groups = resampled.patient
    fewest = min(sample.patients_with(True), sample.patients_with(False))
    methods = [method for method in METHODS if method != "isotonic" or fewest >= LEAST_PATIENTS_ISOTONIC]
    losses: dict[Method, list[Floats]] = {method: [] for method in methods}
    held_out: dict[Method, list[Floats]] = {method: [] for method in methods}
    for repeat in range(_REPEATS):
        parts = StratifiedGroupKFold(_SPLITS, shuffle=True, random_state=_SEED + repeat)
        splits = list(parts.split(sample.score[:, None], sample.truth, groups))
        for method in methods:
            probability = _out_of_part(method, sample, splits)
            held_out[method].append(probability)
            losses[method].append(statistics.log_losses(sample.truth, probability))
    own = calibrated(sample.score, FindingCalibration(method="none", prevalence=0.5, positives=0, negatives=0))
    tried: Mapping[str, Floats] = {"none": own, **{method: held_out[method][0] for method in methods}}
    mean_losses = {method: np.mean(losses[method], axis=0) for method in methods}
    average = {"none": float(statistics.log_losses(sample.truth, own).mean())}
    average |= {method: float(mean_losses[method].mean()) for method in methods}
    evidence = {}
    for name, probability in tried.items():
        error = estimate(resampled, partial(statistics.calibration_error, sample.truth, probability))
        assert error is not None
        evidence[name] = CalibrationEvidence(
            log_loss=round(average[name], _DIGITS), calibration_error=error.value, low=error.low, high=error.high
        )
    return mean_losses, evidence


def _out_of_part(
    method: Method, sample: FindingSample, splits: list[tuple[NDArray[np.intp], NDArray[np.intp]]]
) -> Floats:
    """Probabilities of each image, fitted without its patient."""
    probability = np.empty(len(sample.truth))
    for inside, outside in splits:
        fitted = fit_method(method, sample.score[inside], sample.truth[inside])
        probability[outside] = calibrated(sample.score[outside], fitted)
    return probability


def _simplest(losses: Mapping[Method, Floats], sample: FindingSample) -> Method:
    """The first of METHODS that is no more than one standard error worse than the best, on either kind of image."""
    best = min(losses, key=lambda method: float(losses[method].mean()))
    _, patient = np.unique(np.asarray(sample.patients, dtype=str), return_inverse=True)
    for method in losses:
        excess = losses[method] - losses[best]
        kinds = (np.ones(len(excess), bool), sample.truth, ~sample.truth)
        if all(_within_error(excess[kind], patient[kind]) for kind in kinds):
            return method
    return best


def _within_error(excess: Floats, patient: NDArray[np.intp]) -> bool:
    """Whether a mean over images is no more than its standard error, by patient, above nought."""
    _, patient = np.unique(patient, return_inverse=True)
    images = np.bincount(patient)
    deviation = np.bincount(patient, excess) - excess.mean() * images
    variance = np.square(deviation).sum() * len(images) / (len(images) - 1)
    return bool(excess.mean() <= np.sqrt(variance) / len(excess))
