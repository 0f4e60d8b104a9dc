"""Performance by subgroup: sex, age, scanner, sender, view; and which gaps are more than chance.

Figures are of the window, with bootstrap intervals, which hold for one look at one figure. Whether a level is worse is
asked at every look of every level; that is answered by the running evidence of ``fairness``, from readings of the audit
alone. Where it has too few of them there is no answer, whatever the figures show.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from stepwedge.observation import Label

from stepwatch.consensus import agree
from stepwatch.fairness import GROUPS, JUDGED, OTHER, Place, believed, known_levels, level_in
from stepwatch.figures import GroupFigure
from stepwatch.measures import Floats, resample
from stepwatch.performance import Case, Terms, bootstrap, columns, sample_of

MEASURED = ("auroc", "sensitivity", "specificity", "expected_cost", "ece", "calibration")
CALIBRATION, PREVALENCE = "calibration", "prevalence_gap"
TOO_FEW, AS_OTHERS, WORSE, MISCALIBRATED, NOT_JUDGED = "too_few", "as_others", "worse", "miscalibrated", "not_judged"
AS_SAID = "as_said"  # as often ill as the probabilities say
_LEAST_OF_EACH = 5  # ill and well
_SAMPLES, _SEED, _INTERVAL = 300, 20_261, (2.5, 97.5)
_NORMAL = 1.96  # standard errors to either side


@dataclass(frozen=True, kw_only=True, slots=True)
class Subgroup:
    """A measure of one finding in one level of a group."""

    finding: str
    group: str
    level: str
    measure: str
    studies: int  # labelled
    value: float
    low: float
    high: float
    evidence: float  # natural logarithm of the e-value that it is worse; 0 where that is not asked
    verdict: str

    def figure(self) -> GroupFigure:
        """As the page and the metrics show it."""
        return GroupFigure(
            finding=self.finding,
            group=self.group,
            level=self.level,
            measure=self.measure,
            studies=self.studies,
            value=self.value,
            low=self.low,
            high=self.high,
            verdict=self.verdict,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A study of the baseline, as far as subgroups go."""

    groups: Mapping[str, str]
    probabilities: Mapping[str, float]


def subgroups(
    cases: Sequence[Case],
    labels: Iterable[Label],
    findings: Iterable[str],
    terms: Mapping[str, Terms] | None = None,
    *,
    least: int = 30,
    members: Sequence[Member] = (),
    evidence: Mapping[Place, tuple[float, int]] | None = None,
) -> list[Subgroup]:
    """Every measure in every level of every group. Arguments as of ``performance``.

    Parameters
    ----------
    members
        The baseline's studies: their levels are judged, and prevalence is compared with theirs. Without them the levels
        are those of the window.
    evidence
        Of ``Fairness``; without it nothing is judged.
    """
    by_finding: dict[str, list[Label]] = {}
    for label in labels:
        by_finding.setdefault(label.finding, []).append(label)
    levels = known_levels([member.groups for member in members] or [case.groups for case in cases])
    known = dict(evidence or {})
    worse = believed(known)
    found: list[Subgroup] = []
    for finding in findings:
        of = [case for case in cases if finding in case.probabilities]
        if not of:
            continue
        said, stated = by_finding.get(finding, ()), (terms or {}).get(finding, Terms())
        found += [_judged(item, known, worse, least) for item in _of_finding(of, said, finding, stated, least, levels)]
        found += _prevalences(of, members, finding, levels, least)
    return found


def worst_gaps(found: Iterable[Subgroup]) -> dict[tuple[str, str], float]:
    """By finding and measure the largest gap between two levels of one group that have enough studies."""
    values: dict[tuple[str, str, str], list[float]] = {}
    for item in found:
        if not math.isnan(item.value) and item.level not in (OTHER, "missing"):
            values.setdefault((item.finding, item.measure, item.group), []).append(item.value)
    gaps: dict[tuple[str, str], float] = {}
    for (finding, name, _), of in values.items():
        if len(of) > 1:
            gaps[finding, name] = max(gaps.get((finding, name), 0.0), max(of) - min(of))
    return gaps


def _judged(item: Subgroup, known: Mapping[Place, tuple[float, int]], worse: set[Place], least: int) -> Subgroup:
    place = (item.finding, item.group, item.level, item.measure)
    log_evidence, readings = known.get(place, (0.0, 0))
    verdict = TOO_FEW
    if item.measure not in JUDGED:
        verdict = TOO_FEW if math.isnan(item.value) else NOT_JUDGED
    elif place in worse:
        verdict = MISCALIBRATED if item.measure == CALIBRATION else WORSE
    elif math.isnan(item.value):
        verdict = TOO_FEW
    elif item.measure == CALIBRATION:
        verdict = AS_SAID if readings >= least else TOO_FEW
    elif readings >= _LEAST_OF_EACH:
        verdict = AS_OTHERS
    return replace(item, evidence=log_evidence, verdict=verdict)


def _of_finding(
    cases: Sequence[Case],
    labels: Iterable[Label],
    finding: str,
    terms: Terms,
    least: int,
    levels: Mapping[str, Sequence[str]],
) -> list[Subgroup]:
    sample = sample_of(cases, agree(labels))
    chosen = [cases[place] for place in sample.chosen]
    probability, answers = columns(chosen, finding) if chosen else (np.zeros(0), np.zeros(0, dtype=np.str_))
    strata = sample.otherwise.astype(np.int64)
    found: list[Subgroup] = []
    for group in GROUPS:
        of = np.array([level_in(case.groups.get(group, "missing"), levels[group]) for case in chosen], dtype=np.str_)
        there = {level_in(case.groups.get(group, "missing"), levels[group]) for case in cases}
        for level in sorted(there):
            within = of == level
            values: dict[str, tuple[float, float, float]] = {}
            if _enough(sample.truth[within], least):
                part = (sample.truth[within], sample.weights[within], strata[within])
                values = bootstrap(probability[within], answers[within], *part, terms.costs)
                values[CALIBRATION] = _offset(probability[within], *part)
            for name in MEASURED:
                if name == "expected_cost" and terms.costs is None:
                    continue
                value, low, high = values.get(name, (math.nan, math.nan, math.nan))
                found.append(
                    Subgroup(
                        finding=finding, group=group, level=level, measure=name, studies=int(within.sum()),
                        value=value, low=low, high=high, evidence=0.0, verdict=TOO_FEW,
                    )
                )  # fmt: skip
    return found


def _offset(
    probability: Floats, truth: Floats, weights: Floats, strata: NDArray[np.int64]
) -> tuple[float, float, float]:
    """Calibration in the large: how much commoner the finding is than the probabilities say."""
    random = np.random.default_rng(_SEED)
    value = float(np.average(truth - probability, weights=weights))
    drawn = resample(strata, weights, _SAMPLES, random)
    samples = drawn @ (truth - probability) / drawn.sum(axis=1)
    low, high = np.percentile(samples, _INTERVAL)
    return value, min(float(low), value), max(float(high), value)


def _prevalences(
    cases: Sequence[Case], members: Sequence[Member], finding: str, levels: Mapping[str, Sequence[str]], least: int
) -> list[Subgroup]:
    """How much the mean probability of each level is above that of the same level in the baseline."""
    found: list[Subgroup] = []
    for group in GROUPS if members else ():
        now, then = (
            _by_level(
                [(item.groups, item.probabilities[finding]) for item in of if finding in item.probabilities],
                group,
                levels,
            )
            for of in (cases, members)
        )
        for level, values in sorted(now.items()):
            usual = then.get(level, np.zeros(0))
            value = low = high = math.nan
            if min(len(values), len(usual)) >= least:
                value = float(values.mean() - usual.mean())
                error = math.sqrt(float(values.var() / len(values) + usual.var() / len(usual)))
                low, high = value - _NORMAL * error, value + _NORMAL * error
            verdict = TOO_FEW if math.isnan(value) else NOT_JUDGED
            found.append(
                Subgroup(
                    finding=finding, group=group, level=level, measure=PREVALENCE, studies=len(values),
                    value=value, low=low, high=high, evidence=0.0, verdict=verdict,
                )
            )  # fmt: skip
    return found


def _by_level(
    studies: Iterable[tuple[Mapping[str, str], float]], group: str, levels: Mapping[str, Sequence[str]]
) -> dict[str, Floats]:
    found: dict[str, list[float]] = {}
    for groups, probability in studies:
        found.setdefault(level_in(groups.get(group, "missing"), levels[group]), []).append(probability)
    return {level: np.array(values) for level, values in found.items()}


def _enough(truth: Floats, least: int) -> bool:
    ill = float(truth.sum())
    return len(truth) >= least and min(ill, len(truth) - ill) >= _LEAST_OF_EACH
