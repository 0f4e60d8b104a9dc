"""How well a model does: measured on labels, and estimated without them, side by side.

Measured figures come from the labels that there are now, so a label that comes late corrects earlier figures. The
estimate takes each calibrated probability for the chance that the study is ill (confidence-based estimation; Garg
2022, Guillory 2021); where it and the labels part, it is not to be believed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from stepwedge.observation import Label, Observation

from stepwatch.audit import weigh
from stepwatch.consensus import Consensus, agree
from stepwatch.figures import MEASURES, Figure, How, Performance, Prevalence
from stepwatch.measures import Answers, Costs, Floats, calibration_error, draw_truth, measure, resample
from stepwatch.rows import moment

CANNOT_SEE = (
    "The estimate takes the model's own probabilities for right. It cannot see concept drift: where images of the same "
    "look come to mean something else, only labels tell."
)
NOT_BELIEVED = "The intervals of the measured and the estimated figure part: the estimate is not to be believed."
LABELS_FOLLOW = (
    "Too few studies of the random audit have been read for it to stand for the studies without a label, so these "
    "figures hold for the labelled ones only. Where labels follow the model's answers they flatter it."
)

_SAMPLES = 300
_SEED = 20_260
_INTERVAL = (2.5, 97.5)  # per cent
_LEAST_OF_EACH = 5  # ill, and well, studies: below that what rests on them is not measured
_NEEDS_ILL = frozenset({"auroc", "auprc", "sensitivity"})
_NEEDS_WELL = frozenset({"auroc", "specificity"})
_STATES = frozenset({"reported", "deferred"})
_INSIDE = 1e-6  # probabilities are kept this far from 0 and 1
_BISECTIONS = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A study that the model answered, as far as its performance goes."""

    study: str  # keyed hash
    time: str  # ISO 8601 with offset
    probabilities: Mapping[str, float]
    decisions: Mapping[str, str]
    groups: Mapping[str, str] = field(default_factory=dict)  # level by group
    gate_distance: float = math.nan  # how far from the studies that the gate was fitted on


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What the site's policy says of a finding."""

    costs: Costs | None = None
    prevalence: float | None = None  # that the probabilities are calibrated at


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """The labelled studies of a window, for one finding."""

    chosen: NDArray[np.int64]  # their places in the window
    truth: Floats
    weights: Floats
    otherwise: NDArray[np.bool_]  # labelled by another way than the audit
    honest: bool  # whether they stand for the whole window


def case_of(observation: Observation) -> Case | None:
    """The case of an observation; None where the model gave no answer."""
    if observation.state not in _STATES or not observation.probabilities:
        return None
    return Case(
        study=observation.study,
        time=observation.time,
        probabilities=dict(observation.probabilities),
        decisions=dict(observation.decisions),
        groups=groups_of(observation),
        gate_distance=observation.gate_measures.get("content.distance", math.nan),
    )


def groups_of(observation: Observation) -> dict[str, str]:
    """The subgroups that an observation belongs to: level by group; "missing" where the header says nothing."""
    levels = {
        "sex": observation.sex,
        "age": age_band(observation.age_years),
        "scanner": " ".join(part for part in (observation.manufacturer, observation.scanner) if part),
        "sender": observation.senders[0] if observation.senders else "",
        "view": observation.view_position,
    }
    return {group: level or "missing" for group, level in levels.items()}


def age_band(years: float | None) -> str:
    """The age band of the packages' cards; empty where the age is not known."""
    if years is None or not math.isfinite(years) or years < 0:
        return ""
    bands = ((2, "0–1"), (6, "2–5"), (18, "6–17"), (40, "18–39"), (65, "40–64"))
    return next((name for below, name in bands if years < below), "65+")


def in_window(cases: Iterable[Case], size: int) -> list[Case]:
    """The latest studies; of several answers to one study the last counts."""
    last: dict[str, Case] = {}
    for case in cases:
        last.pop(case.study, None)
        last[case.study] = case
    return list(last.values())[-size:]


def between(cases: Iterable[Case], first: datetime | None, last: datetime | None) -> list[Case]:
    """Cases answered from ``first`` until before ``last``, both with an offset; None: no limit."""
    return [
        case
        for case in cases
        if (first is None or moment(case.time) >= first) and (last is None or moment(case.time) < last)
    ]


def performance(
    cases: Sequence[Case],
    labels: Iterable[Label],
    findings: Iterable[str],
    terms: Mapping[str, Terms] | None = None,
    *,
    baseline: Mapping[str, float] | None = None,
    least: int = 30,
) -> Performance:
    """Everything that may be said of a window of studies.

    Parameters
    ----------
    cases
        The window: one case a study.
    terms
        By finding; without them no expected cost is worked out.
    baseline
        Prevalence in the baseline by finding.
    least
        Labelled studies below which nothing is measured.
    """
    by_finding: dict[str, list[Label]] = {}
    for label in labels:
        by_finding.setdefault(label.finding, []).append(label)
    figures: list[Figure] = []
    prevalences: list[Prevalence] = []
    labelled: dict[str, int] = {}
    only: list[str] = []
    for finding in findings:
        of = [case for case in cases if finding in case.probabilities]
        stated = (terms or {}).get(finding, Terms())
        if baseline and finding in baseline:
            prevalences.append(Prevalence(finding=finding, how="baseline", value=baseline[finding]))
        if not of:
            continue
        probability, answers = columns(of, finding)
        sample = sample_of(of, agree(by_finding.get(finding, ())))
        labelled[finding] = len(sample.chosen)
        if len(sample.chosen) and not sample.honest:
            only.append(finding)
        figures += _measured(finding, probability, answers, sample, stated.costs, least)
        figures += _estimated(finding, probability, answers, sample, stated.costs, least)
        present = float(probability.mean())
        if stated.prevalence is not None:
            present = prevalence_now(probability, stated.prevalence)
        prevalences.append(Prevalence(finding=finding, how="estimated", value=present))
        if len(sample.chosen) >= least:
            mean = float(np.average(sample.truth, weights=sample.weights))
            prevalences.append(Prevalence(finding=finding, how="labelled", value=mean))
    return Performance(
        figures=tuple(figures), prevalences=tuple(prevalences), labelled=labelled, only_labelled=tuple(only)
    )


def columns(cases: Sequence[Case], finding: str) -> tuple[Floats, Answers]:
    """Probabilities and answers of the cases."""
    probability = np.array([case.probabilities[finding] for case in cases], dtype=np.float64)
    answers = np.array([case.decisions.get(finding, "none") for case in cases], dtype=np.str_)
    return np.clip(probability, _INSIDE, 1 - _INSIDE), answers


def sample_of(cases: Sequence[Case], consensus: Mapping[str, Consensus]) -> Sample:
    """The labelled ones among the cases of a window, weighted to stand for all of it where the audit allows."""
    found = [(place, consensus[case.study]) for place, case in enumerate(cases) if case.study in consensus]
    otherwise = np.array([said.otherwise for _, said in found], dtype=np.bool_)
    drawn = np.array([said.drawn for _, said in found], dtype=np.float64)
    weights, honest = weigh(otherwise, drawn, len(cases) - int(otherwise.sum()))
    kept = weights > 0
    return Sample(
        chosen=np.array([place for place, _ in found], dtype=np.int64)[kept],
        truth=np.array([said.truth for _, said in found], dtype=np.float64)[kept],
        weights=weights[kept],
        otherwise=otherwise[kept],
        honest=honest,
    )


def prevalence_now(probability: Floats, calibrated_at: float) -> float:
    """The prevalence under which the studies are likeliest (Saerens 2002), by bisection."""
    ill, well = probability / calibrated_at, (1 - probability) / (1 - calibrated_at)
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        rises = float(((ill - well) / (middle * ill + (1 - middle) * well)).sum()) > 0
        low, high = (middle, high) if rises else (low, middle)
    return (low + high) / 2


def bootstrap(
    probability: Floats,
    answers: Answers,
    truth: Floats,
    weights: Floats,
    strata: NDArray[np.int64],
    costs: Costs | None,
) -> dict[str, tuple[float, float, float]]:
    """Each measure's value and interval; what is not known of the truth is drawn in every resample."""
    random = np.random.default_rng(_SEED)
    plain = measure(probability, truth[None, :], weights[None, :], answers, costs)
    drawn = resample(strata, weights, _SAMPLES, random)
    again = measure(probability, draw_truth(truth, _SAMPLES, random), drawn, answers, costs, random)
    found = {}
    for name in MEASURES:
        value, samples = float(plain[name][0]), again[name][~np.isnan(again[name])]
        if math.isnan(value) or len(samples) < _SAMPLES // 2:
            continue
        if name == "ece":
            # Resampling adds to the error of bins what it adds to their noise: only its spread is taken.
            samples = np.maximum(samples - samples.mean() + value, 0)
        low, high = np.percentile(samples, _INTERVAL)
        found[name] = (value, min(float(low), value), max(float(high), value))
    return found


def _measured(
    finding: str, probability: Floats, answers: Answers, sample: Sample, costs: Costs | None, least: int
) -> list[Figure]:
    if len(sample.chosen) < least:
        return []
    of = sample.chosen
    found = bootstrap(
        probability[of], answers[of], sample.truth, sample.weights, sample.otherwise.astype(np.int64), costs
    )
    ill = float(sample.truth.sum())
    well = len(of) - ill
    return [
        _figure(finding, name, "measured", values)
        for name, values in found.items()
        if (ill >= _LEAST_OF_EACH or name not in _NEEDS_ILL) and (well >= _LEAST_OF_EACH or name not in _NEEDS_WELL)
    ]


def _estimated(
    finding: str, probability: Floats, answers: Answers, sample: Sample, costs: Costs | None, least: int
) -> list[Figure]:
    if len(probability) < least:
        return []
    ones = np.ones(len(probability))
    found = bootstrap(probability, answers, probability, ones, np.zeros(len(probability), dtype=np.int64), costs)
    # Right probabilities have no error but that of chance, which depends on how many labels are looked at.
    few = len(sample.chosen) >= least
    of, weights = (probability[sample.chosen], sample.weights) if few else (probability, ones)
    truth = draw_truth(of, _SAMPLES, np.random.default_rng(_SEED))
    chance = calibration_error(of, truth, np.broadcast_to(weights, truth.shape))
    low, high = np.percentile(chance, _INTERVAL)
    found["ece"] = (float(chance.mean()), float(low), float(high))
    return [_figure(finding, name, "estimated", values) for name, values in found.items()]


def _figure(finding: str, name: str, how: How, values: tuple[float, float, float]) -> Figure:
    value, low, high = values
    return Figure(finding=finding, measure=name, how=how, value=value, low=low, high=high)
