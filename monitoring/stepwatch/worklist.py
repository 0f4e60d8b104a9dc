"""Which studies to label next, under a reading budget: the audit first, then where a label would teach most."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from stepwedge.observation import Label

from stepwatch.audit import Floats, is_drawn
from stepwatch.consensus import agree, latest
from stepwatch.performance import Case, Terms

_DISAGREE = 0.5  # between the lowest and the highest reader, from which another reading is worth it


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """A study that a label is wanted of. Of the audit nothing is told but that: its reading is blinded."""

    study: str  # keyed hash
    finding: str
    reason: str  # audit, disagreement, uncertainty, novelty
    probability_drawn: float | None = None  # of studies of the audit


def queue(
    cases: Sequence[Case],
    labels: Iterable[Label],
    findings: Iterable[str],
    terms: Mapping[str, Terms] | None = None,
    *,
    audit_share: float,
    budget: int = 50,
) -> list[Wanted]:
    """At most ``budget`` studies, the most wanted first.

    After the audit they are ranked by what is expected to be lost if the answer stands (uncertainty), by the distance
    from the studies that the gate was fitted on (novelty), and by readers who disagree: each by its rank in the
    window, and the highest of them counts.
    """
    all_labels = list(labels)
    audit: list[Wanted] = []
    rest: list[tuple[float, Wanted]] = []
    for finding in findings:
        of = [case for case in cases if finding in case.probabilities]
        said = [label for label in all_labels if label.finding == finding]
        by_reader, consensus = latest(said), agree(said)
        read = {study for study, by in by_reader.items() if any(label.audit for label in by.values())}
        uncertain = _ranks(np.array([_loss(case, finding, (terms or {}).get(finding)) for case in of]))
        novel = _ranks(np.array([case.gate_distance for case in of]))
        for place, case in enumerate(of):
            drawn = is_drawn(case.study, audit_share)
            known = consensus.get(case.study)
            if drawn and case.study not in read:
                audit.append(Wanted(study=case.study, finding=finding, reason="audit", probability_drawn=audit_share))
            elif known is not None and known.spread >= _DISAGREE:
                rest.append((1 + known.spread, Wanted(study=case.study, finding=finding, reason="disagreement")))
            elif case.study not in by_reader and not drawn:
                worth = max(uncertain[place], novel[place])
                reason = "novelty" if novel[place] > uncertain[place] else "uncertainty"
                rest.append((float(worth), Wanted(study=case.study, finding=finding, reason=reason)))
    rest.sort(key=lambda item: (-item[0], item[1].study))
    # In the order of the draw's hash, not of time or answer, which would tell something.
    audit.sort(key=lambda wanted: wanted.study)
    return [*audit, *(wanted for _, wanted in rest)][: max(budget, 0)]


def _loss(case: Case, finding: str, terms: Terms | None) -> float:
    probability = case.probabilities[finding]
    if terms is None or terms.costs is None:
        return min(probability, 1 - probability)
    return min(probability * terms.costs.miss, (1 - probability) * terms.costs.false_alarm)


def _ranks(values: Floats) -> Floats:
    """Rank of each among all, 0…1; 0 where there is no value."""
    present = ~np.isnan(values)
    ranks = np.zeros(len(values))
    ordered = np.sort(values[present])
    if len(ordered) and not math.isclose(float(ordered[0]), float(ordered[-1])):
        ranks[present] = np.searchsorted(ordered, values[present]) / len(ordered)
    return ranks
