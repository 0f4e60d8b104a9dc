"""A package's figures on one fold, with 95 % intervals by bootstrap over patients.

Nothing may have been fitted or chosen on that fold. The records are in ``figures``, the arithmetic in ``statistics``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stepwedge.decision.calibrate import at_prevalence, calibrated, finding_scores
from stepwedge.decision.costs import thresholds
from stepwedge.errors import PackageError
from stepwedge.manifest import Calibration, FindingCalibration, FindingSpec, Manifest
from stepwedge.package import statistics
from stepwedge.package.figures import (
    CostFigures,
    Estimate,
    Evaluation,
    FaithfulnessFigures,
    FindingFigures,
    Fold,
    GateFigures,
    Notes,
    Strategy,
    SubgroupFigures,
    TamperFigures,
)
from stepwedge.package.statistics import Bootstrap, Figure, Floats, Labels, bootstrap, estimate
from stepwedge.policy import FindingPolicy, Policy
from stepwedge.records import Costs, Thresholds

# Positive, and negative, patients below which a figure of a subgroup is not given: of nine all of whom were found, one
# in three might be missed (exact interval), which tells nobody whether a subgroup is served worse.
LEAST_PATIENTS = 10


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The images of one fold that the gate accepted, with what the model gave for them."""

    patients: Sequence[str]
    labels: Sequence[frozenset[str]]  # classes; none of them where no class is present
    outputs: NDArray[np.float32]  # (images, classes), as the graph gives them
    subgroups: Mapping[str, Sequence[str]] = field(default_factory=dict)  # by name; "" where it is not known

    def __post_init__(self) -> None:
        lengths = {len(self.patients), len(self.labels), len(self.outputs), *map(len, self.subgroups.values())}
        if len(lengths) != 1:
            raise ValueError(
                f"patients, labels, outputs and subgroups are of {sorted(lengths)} images; wanted one number"
            )


@dataclass(frozen=True, kw_only=True)
class FindingSample:
    """The images of a fold that count for one finding."""

    index: NDArray[np.intp]  # of the images in the fold
    patients: Sequence[str]
    truth: Labels
    score: Floats  # log-odds of the model's own output

    def patients_with(self, value: bool) -> int:
        """How many patients have an image that is positive (True) or negative (False)."""
        return len({patient for patient, truth in zip(self.patients, self.truth, strict=True) if truth == value})


def sample_of(scored: Scored, manifest: Manifest, finding: FindingSpec) -> FindingSample:
    """The images that count for a finding: those with a label among the finding's ``among``, or all without one.

    Raises
    ------
    PackageError
        If the outputs are not of the model's classes, or not finite.
    """
    classes = manifest.output.classes
    if scored.outputs.ndim != 2 or scored.outputs.shape[1] != len(classes):
        raise PackageError(
            f"{manifest.name}: the outputs are of shape {scored.outputs.shape}, wanted (images, {len(classes)}), one "
            "column for each class of output.classes"
        )
    if not np.isfinite(scored.outputs).all():
        bad = int((~np.isfinite(scored.outputs).all(axis=1)).sum())
        raise PackageError(f"{manifest.name}: the model's output is not finite for {bad} images; mend the model")
    among, positive = frozenset(finding.among), frozenset(finding.positive)
    index = np.array([i for i, labels in enumerate(scored.labels) if not among or labels & among], dtype=np.intp)
    return FindingSample(
        index=index,
        patients=[scored.patients[i] for i in index],
        truth=np.array([bool(scored.labels[i] & positive) for i in index], dtype=bool),
        score=finding_scores(scored.outputs[index], manifest.output, finding),
    )


def evaluate(
    scored: Scored,
    manifest: Manifest,
    calibration: Calibration,
    policy: Policy | None = None,
    *,
    fold: str = "test",
    folds: Mapping[str, Fold] | None = None,
    gate: GateFigures | None = None,
    tamper: TamperFigures | None = None,
    faithfulness: FaithfulnessFigures | None = None,
    notes: Notes | None = None,
    samples: int = statistics.SAMPLES,
) -> Evaluation:
    """Every figure of a package on one fold.

    Parameters
    ----------
    scored
        A fold that nothing was fitted on.
    policy
        Whose costs and prevalence decide; without one nothing is said of decisions.
    folds, gate, tamper, faithfulness, notes
        Taken over as they are.
    samples
        Of the bootstrap.

    Raises
    ------
    PackageError
        If the fold is empty or its outputs are not such as the model can have given.
    """
    if not len(scored.patients):
        raise PackageError(f"{manifest.name}: there is no image in the {fold} fold to measure anything on")
    findings: dict[str, FindingFigures] = {}
    costs: list[CostFigures] = []
    subgroups: list[SubgroupFigures] = []
    for spec in manifest.findings:
        sample = sample_of(scored, manifest, spec)
        fitted = calibration.findings[spec.name]
        findings[spec.name] = _finding(sample, fitted, fold, samples)
        site = policy.finding(spec.name) if policy and not fitted.inconclusive else None
        both = 0 < sample.truth.sum() < len(sample.truth)
        if site is not None and both:
            costs.append(cost_figures(spec.name, sample, fitted, site, fold=fold, samples=samples))
        if both:
            subgroups += _subgroups(spec.name, sample, fitted, site, scored.subgroups, samples)
    return Evaluation(
        fold=fold,
        patients=len(set(scored.patients)),
        images=len(scored.patients),
        bootstrap_samples=samples,
        policy=f"{policy.file.name} {policy.file.version}" if policy else "",
        folds=folds or {},
        findings=findings,
        costs=costs,
        subgroups=subgroups,
        gate=gate,
        tamper=tamper,
        faithfulness=faithfulness,
        notes=notes or Notes(),
    )


def _finding(sample: FindingSample, fitted: FindingCalibration, fold: str, samples: int) -> FindingFigures:
    truth, score = sample.truth, sample.score
    counts = FindingFigures(
        fold=fold,
        positives=int(truth.sum()),
        negatives=int((~truth).sum()),
        positive_patients=sample.patients_with(True),
        negative_patients=sample.patients_with(False),
        inconclusive=fitted.inconclusive,
    )
    if not len(truth):
        return counts
    resampled = bootstrap(sample.patients, samples=samples)
    own = calibrated(score, FindingCalibration(method="none", prevalence=0.5, positives=0, negatives=0))
    after = calibrated(score, fitted)
    return counts.model_copy(
        update={
            "auroc": estimate(resampled, lambda w: statistics.auroc(truth, score, w)),
            "auprc": estimate(resampled, lambda w: statistics.auprc(truth, score, w)) if truth.any() else None,
            "brier": estimate(resampled, lambda w: statistics.brier(truth, after, w)),
            "calibration_error_before": estimate(resampled, lambda w: statistics.calibration_error(truth, own, w)),
            "calibration_error_after": estimate(resampled, lambda w: statistics.calibration_error(truth, after, w)),
            "calibration_error_by_chance": statistics.calibration_error_by_chance(after, samples=samples),
            "prevalence": round(float(truth.mean()), 5),
            "prevalence_estimated": estimate(
                resampled, lambda w: statistics.prevalence_by_em(after, fitted.prevalence, w)
            ),
        }
    )


# --- What deciding costs ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to decide: what is done with each image."""

    name: str
    acted: Labels  # (images,)
    cleared: Labels  # neither: deferred
    blind: bool = False  # the same is done whatever the image shows

    @property
    def deferred(self) -> Labels:
        return np.asarray(~self.acted & ~self.cleared)

    def cost(self, truth: Labels, costs: Costs) -> Floats:
        """Of each image, (images,)."""
        errors = costs.miss * (self.cleared & truth) + costs.false_alarm * (self.acted & ~truth)
        return np.asarray(errors + costs.deferral * self.deferred)


def ways(score: Floats, probability: Floats, corrected: Floats, costs: Costs) -> list[Way]:
    """The package's way to decide, and those that it is compared with.

    Parameters
    ----------
    score
        (images,), log-odds of the model's own output.
    probability, corrected
        (images,), calibrated: at the prevalence of the fold that the calibration was fitted on, and at the site's.
    """
    indifferent = costs.false_alarm / (costs.false_alarm + costs.miss)
    everybody, nobody = np.ones(len(probability), bool), np.zeros(len(probability), bool)
    return [
        _way("this package: least expected cost, with deferral", corrected, thresholds(costs)),
        _way("the same without deferral", corrected, _at(indifferent)),
        Way(name="0.5 on the model's own output, not calibrated", acted=score >= 0, cleared=score < 0),
        _way("0.5 on the uncorrected probability", probability, _at(0.5)),
        _way("0.5 on the prevalence-corrected probability", corrected, _at(0.5)),
        _way("cost-weighted threshold at the data's prevalence", probability, _at(indifferent)),
        Way(name="everybody left to a person", acted=nobody, cleared=nobody, blind=True),
        Way(name="everybody acted on", acted=everybody, cleared=nobody, blind=True),
        Way(name="everybody cleared", acted=nobody, cleared=everybody, blind=True),
    ]


def _at(threshold: float) -> Thresholds:
    return Thresholds(clear_below=threshold, act_from=threshold)


def _way(name: str, probability: Floats, limits: Thresholds) -> Way:
    return Way(name=name, acted=probability >= limits.act_from, cleared=probability < limits.clear_below)


def cost_figures(
    name: str,
    sample: FindingSample,
    fitted: FindingCalibration,
    site: FindingPolicy,
    *,
    fold: str,
    samples: int = statistics.SAMPLES,
) -> CostFigures:
    """What deciding on a finding costs by the policy, and by other ways, at the policy's prevalence.

    Needs images of both kinds. Images are weighted to the prevalence anew in each resample of the patients.
    """
    probability = calibrated(sample.score, fitted)
    corrected = at_prevalence(probability, fitted.prevalence, site.prevalence)
    compared = ways(sample.score, probability, corrected, site.costs)
    resampled, truth = bootstrap(sample.patients, samples=samples), sample.truth

    def at_site(figure: Callable[[Labels, Floats, Floats], Floats]) -> Estimate | None:
        return estimate(resampled, lambda w: figure(truth, corrected, statistics.carried(truth, site.prevalence, w)))

    return CostFigures(
        finding=name,
        fold=fold,
        images=len(truth),
        patients=resampled.patients,
        prevalence=site.prevalence,
        miss=site.miss,
        false_alarm=site.false_alarm,
        deferral=site.deferral,
        auprc=at_site(statistics.auprc),
        calibration_error=at_site(statistics.calibration_error),
        strategies=[_strategy(way, compared[0], truth, site, resampled) for way in compared],
    )


def _strategy(way: Way, own: Way, truth: Labels, site: FindingPolicy, resampled: Bootstrap) -> Strategy:
    prevalence = site.prevalence
    each = way.cost(truth, site.costs)

    def at_site(values: Floats | Labels) -> Figure:
        return lambda w: statistics.mean_at(truth, np.asarray(values, dtype=np.float64), prevalence, w)

    def rate(hit: Labels, among: Labels) -> Estimate:
        if way.blind:
            certain = float(hit[0])
            return Estimate(value=certain, low=certain, high=certain)
        return _known(statistics.share(resampled, hit, among))

    def right_among(chosen: Labels, right: Labels) -> Estimate | None:
        """The share of ``right`` ones among the chosen, at the site's prevalence."""
        if not chosen.any():
            return None
        found = _known(estimate(resampled, lambda w: _quotient(at_site(chosen & right)(w), at_site(chosen)(w))))
        if way.blind or not found.value == found.low == found.high == 1:
            return found
        # Not one was wrong in any resample: the bound is that of the share of wrong ones that may have been unseen.
        common = prevalence if right is truth else 1 - prevalence
        hits, errors = rate(chosen, right).value, rate(chosen, ~right).high
        return found.model_copy(
            update={"low": round(common * hits / (common * hits + (1 - common) * errors), statistics.DIGITS)}
        )

    ratio = None
    if way is not own and each.any():
        ratio = estimate(resampled, lambda w: _quotient(at_site(own.cost(truth, site.costs))(w), at_site(each)(w)))
    return Strategy(
        name=way.name,
        cost=_known(estimate(resampled, lambda w: 100 * at_site(each)(w))),
        ratio=ratio,
        deferred=_known(estimate(resampled, at_site(way.deferred))),
        sensitivity=rate(way.acted, truth),
        specificity=rate(way.cleared, ~truth),
        missed=rate(way.cleared, truth),
        false_alarms=rate(way.acted, ~truth),
        ppv=right_among(way.acted, truth),
        npv=right_among(way.cleared, ~truth),
        # Vickers 2006, with what a person finds counted as found, and the person's time paid for: ill ones found,
        # less false alarms and deferrals at their price in misses. It is the same as prevalence − cost / miss.
        net_benefit=_known(estimate(resampled, lambda w: 100 * (prevalence - at_site(each)(w) / site.miss))),
    )


def _quotient(one: Floats, other: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(one / other)


def _known(found: Estimate | None) -> Estimate:
    """For figures that exist wherever there are images of both kinds in nearly all resamples."""
    if found is None:
        raise PackageError(
            "too few patients with images of both kinds to draw them again; this finding must be inconclusive"
        )
    return found


# --- Subgroups ----------------------------------------------------------------------------------------------------


def _subgroups(
    name: str,
    sample: FindingSample,
    fitted: FindingCalibration,
    site: FindingPolicy | None,
    subgroups: Mapping[str, Sequence[str]],
    samples: int,
) -> list[SubgroupFigures]:
    """One finding in every subgroup that the labels name."""
    probability = calibrated(sample.score, fitted)
    own = None
    if site is not None:
        corrected = at_prevalence(probability, fitted.prevalence, site.prevalence)
        own = _way("", corrected, thresholds(site.costs))
    figures = []
    for group, values in subgroups.items():
        held = np.array([values[i] for i in sample.index], dtype=str)
        for value in sorted(set(held) - {""}):
            within = held == value
            truth = sample.truth[within]
            part = FindingSample(
                index=sample.index[within],
                patients=[p for p, inside in zip(sample.patients, within, strict=True) if inside],
                truth=truth,
                score=sample.score[within],
            )
            counts = SubgroupFigures(
                finding=name, group=group, value=value, positives=int(truth.sum()), negatives=int((~truth).sum())
            )
            if min(part.patients_with(True), part.patients_with(False)) >= LEAST_PATIENTS:
                counts = counts.model_copy(update=_within(part, probability[within], own, within, samples))
            figures.append(counts)
    return figures


def _within(
    part: FindingSample, probability: Floats, own: Way | None, within: Labels, samples: int
) -> dict[str, Estimate | None]:
    resampled, truth = bootstrap(part.patients, samples=samples), part.truth
    figures = {
        "auroc": estimate(resampled, lambda w: statistics.auroc(truth, part.score, w)),
        "calibration_error": estimate(resampled, lambda w: statistics.calibration_error(truth, probability, w)),
    }
    if own is not None:
        figures["sensitivity"] = statistics.share(resampled, own.acted[within], truth)
        figures["specificity"] = statistics.share(resampled, own.cleared[within], ~truth)
    return figures
