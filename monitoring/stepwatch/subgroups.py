"""Performance by subgroup: sex, age, scanner, sender, view; and which gaps are more than chance.

Figures have bootstrap intervals. Whether a group is worse is asked again with every label, for every group at once, so
it is answered by evidence that may be looked at at any time: e-values (Turner, Ly and Grünwald 2024), of which the
e-Benjamini–Hochberg procedure keeps those that bound the share of false discoveries under any dependence (Wang and
Ramdas 2022). They count from the first label of the window, in the order of the studies, and take labels to reach
every group alike.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from stepwedge.observation import Label

from stepwatch.consensus import agree
from stepwatch.figures import GroupFigure
from stepwatch.measures import ACT, CLEAR, Floats
from stepwatch.performance import Case, Terms, bootstrap, columns, sample_of

MEASURED = ("auroc", "sensitivity", "specificity", "expected_cost", "ece")
GROUPS = ("sex", "age", "scanner", "sender", "view")
TOO_FEW, AS_OTHERS, WORSE, OTHER = "too_few", "as_others", "worse", "other"
_ASKED = frozenset({"sensitivity", "specificity"})  # of these it is asked whether a group is worse
_FALSE_DISCOVERIES = 0.05  # share of the groups called worse that may be so by chance
_MOST_LEVELS = 12  # of a group; the rarest are taken together
_LEAST_OF_EACH = 5  # ill and well
_LARGEST_BLOCK = 5  # cases of others that a case of the group is compared with at once


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
    evidence: float  # e-value that it is worse than in others; 1 where that is not asked
    verdict: str

    def figure(self) -> GroupFigure:
        """As the page and the metrics show it."""
        return GroupFigure(
            finding=self.finding,
            group=self.group,
            level=self.level,
            measure=self.measure,
            value=self.value,
            verdict=self.verdict,
        )


def subgroups(
    cases: Sequence[Case],
    labels: Iterable[Label],
    findings: Iterable[str],
    terms: Mapping[str, Terms] | None = None,
    *,
    least: int = 30,
) -> list[Subgroup]:
    """Every measure in every level of every group. Arguments as of ``performance``."""
    by_finding: dict[str, list[Label]] = {}
    for label in labels:
        by_finding.setdefault(label.finding, []).append(label)
    found: list[Subgroup] = []
    for finding in findings:
        of = [case for case in cases if finding in case.probabilities]
        if of:
            found += _of_finding(of, by_finding.get(finding, ()), finding, (terms or {}).get(finding, Terms()), least)
    asked = [place for place, item in enumerate(found) if item.verdict != TOO_FEW and item.measure in _ASKED]
    discovered = {asked[number] for number in e_bh([found[place].evidence for place in asked])}
    return [_judged(item, place in discovered) for place, item in enumerate(found)]


def worst_gaps(found: Iterable[Subgroup]) -> dict[tuple[str, str], float]:
    """By finding and measure the largest gap between two levels of one group that have enough studies."""
    values: dict[tuple[str, str, str], list[float]] = {}
    for item in found:
        if item.verdict != TOO_FEW and item.level not in (OTHER, "missing"):
            values.setdefault((item.finding, item.measure, item.group), []).append(item.value)
    gaps: dict[tuple[str, str], float] = {}
    for (finding, name, _), of in values.items():
        if len(of) > 1:
            gaps[finding, name] = max(gaps.get((finding, name), 0.0), max(of) - min(of))
    return gaps


def e_bh(evidence: Sequence[float], share: float = _FALSE_DISCOVERIES) -> list[int]:
    """Places of the e-values that are discoveries: the k largest, where each is at least n / (k × share)."""
    order = sorted(range(len(evidence)), key=lambda place: -evidence[place])
    kept = [k for k in range(1, len(order) + 1) if evidence[order[k - 1]] >= len(order) / (k * share)]
    return sorted(order[: max(kept, default=0)])


def evidence_of_worse(right: NDArray[np.bool_], within: NDArray[np.bool_]) -> float:
    """E-value against the share of right answers within a group being at least that of others.

    Cases come in order; each block is one case of the group and as many of others as have come for each of it, at most
    five. Rates are learnt from the blocks before. The bet is only ever that the group is worse.

    Parameters
    ----------
    right, within
        (cases,), in the order of time.
    """
    log_e = 0.0
    own, others = [0.5, 1.0], [0.5, 1.0]  # right, all; half a case each way to begin with
    own_block: list[bool] = []
    other_block: list[bool] = []
    size, seen = 1, [0, 0]
    for is_right, is_own in zip(right.tolist(), within.tolist(), strict=True):
        seen[0 if is_own else 1] += 1
        (own_block if is_own else other_block).append(is_right)
        while own_block and len(other_block) >= size:
            one, several = own_block.pop(0), [other_block.pop(0) for _ in range(size)]
            rate, usual = own[0] / own[1], others[0] / others[1]
            if rate < usual:
                same = (rate + size * usual) / (1 + size)
                log_e += _log_ratio(rate, same, [one]) + _log_ratio(usual, same, several)
            own = [own[0] + one, own[1] + 1]
            others = [others[0] + sum(several), others[1] + size]
            # Chosen before the next block is seen.
            size = min(max(round(seen[1] / max(seen[0], 1)), 1), _LARGEST_BLOCK)
    return math.exp(min(log_e, 700.0))


def _log_ratio(rate: float, same: float, right: Sequence[bool]) -> float:
    return sum(math.log(rate / same) if one else math.log((1 - rate) / (1 - same)) for one in right)


def _of_finding(
    cases: Sequence[Case], labels: Iterable[Label], finding: str, terms: Terms, least: int
) -> list[Subgroup]:
    sample = sample_of(cases, agree(labels))
    chosen = [cases[place] for place in sample.chosen]
    probability, answers = columns(chosen, finding) if chosen else (np.zeros(0), np.zeros(0, dtype=np.str_))
    strata = sample.otherwise.astype(np.int64)
    ill = sample.truth >= 0.5
    found: list[Subgroup] = []
    for group in GROUPS:
        names = _levels([case.groups.get(group, "missing") for case in cases])
        of = np.array([names.get(case.groups.get(group, "missing"), OTHER) for case in chosen], dtype=np.str_)
        for level in sorted(set(names.values())):
            within = of == level
            values: Mapping[str, tuple[float, float, float]] = {}
            if _enough(sample.truth[within], least):
                values = bootstrap(
                    probability[within],
                    answers[within],
                    sample.truth[within],
                    sample.weights[within],
                    strata[within],
                    terms.costs,
                )
            for name in MEASURED:
                if name == "expected_cost" and terms.costs is None:
                    continue
                value, low, high = values.get(name, (math.nan, math.nan, math.nan))
                asked = {"sensitivity": (ill, ACT), "specificity": (~ill, CLEAR)}.get(name)
                evidence = 1.0
                if asked is not None and values:
                    evidence = evidence_of_worse(answers[asked[0]] == asked[1], within[asked[0]])
                found.append(
                    Subgroup(
                        finding=finding, group=group, level=level, measure=name, studies=int(within.sum()),
                        value=value, low=low, high=high, evidence=evidence,
                        verdict=TOO_FEW if math.isnan(value) else AS_OTHERS,
                    )
                )  # fmt: skip
    return found


def _levels(values: Sequence[str]) -> dict[str, str]:
    """The commonest levels by their own names, the rest as "other"."""
    common = Counter(values).most_common()
    return {level: level if place < _MOST_LEVELS else OTHER for place, (level, _) in enumerate(common)}


def _enough(truth: Floats, least: int) -> bool:
    ill = float(truth.sum())
    return len(truth) >= least and min(ill, len(truth) - ill) >= _LEAST_OF_EACH


def _judged(item: Subgroup, discovered: bool) -> Subgroup:
    if not discovered:
        return item
    return replace(item, verdict=WORSE)
