"""What several readers say of a study, as one share of certainty.

A later label of the same reader replaces the earlier. Where readers agree, that is the truth; where they do not, it is
their mean, weighted by how often each has agreed with the others: so a doubtful study stays doubtful in every figure.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from stepwedge.observation import Label

_ROUNDS = 3  # of consensus and reliability; both have settled by then
# A reader about whom little is known is taken to be right in nine of ten, as if seen on that many studies.
_USUAL, _STUDIES = 0.9, 10.0
_LEAST, _MOST = 0.55, 0.99  # reliability


@dataclass(frozen=True, kw_only=True, slots=True)
class Consensus:
    """What is held for true of one finding of one study."""

    truth: float  # 0…1
    readers: int
    spread: float  # between the lowest and the highest reader's value
    otherwise: bool  # has a label that is not of the audit
    drawn: float  # probability of being drawn for the audit; NaN: has no label of it


def latest(labels: Iterable[Label]) -> dict[str, dict[str, Label]]:
    """Of labels of one finding the last of each reader, by study and reader. Of equal times the later row counts."""
    found: dict[str, dict[str, Label]] = defaultdict(dict)
    for label in labels:
        # Without a name, whoever reports by one way is one reader.
        reader = label.reader or f"({label.source})"
        known = found[label.study].get(reader)
        if known is None or _moment(label.time) >= _moment(known.time):
            found[label.study][reader] = label
    return dict(found)


def agree(labels: Iterable[Label]) -> dict[str, Consensus]:
    """The consensus on one finding by study, of those where a reader could say something."""
    read = {study: by for study, by in latest(labels).items() if any(_can_say(label) for label in by.values())}
    votes = {
        study: {
            reader: float(label.value) for reader, label in by.items() if label.value is not None and _can_say(label)
        }
        for study, by in read.items()
    }
    trust = reliabilities(votes)
    return {
        study: Consensus(
            truth=_mean(said, trust),
            readers=len(said),
            spread=max(said.values()) - min(said.values()),
            otherwise=any(not label.audit for label in read[study].values() if _can_say(label)),
            drawn=_drawn(label for label in read[study].values() if _can_say(label)),
        )
        for study, said in votes.items()
    }


def reliabilities(votes: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """How often each reader is right, by the agreement with the consensus of the others; .9 where little is known."""
    shared = [said for said in votes.values() if len(said) > 1]
    trust = {reader: _USUAL for said in votes.values() for reader in said}
    for _ in range(_ROUNDS):
        right: dict[str, float] = defaultdict(lambda: _USUAL * _STUDIES)
        seen: dict[str, float] = defaultdict(lambda: _STUDIES)
        for said in shared:
            for reader, value in said.items():
                others = _mean({name: vote for name, vote in said.items() if name != reader}, trust)
                right[reader] += 1 - abs(value - others)
                seen[reader] += 1
        trust |= {reader: min(max(right[reader] / seen[reader], _LEAST), _MOST) for reader in right}
    return trust


def _mean(said: Mapping[str, float], trust: Mapping[str, float]) -> float:
    """Weighted by the log-odds of being right, the best weights of a vote (Nitzan and Paroush 1982)."""
    weights = {reader: math.log(trust[reader] / (1 - trust[reader])) for reader in said}
    return min(1.0, sum(weights[reader] * value for reader, value in said.items()) / sum(weights.values()))


def _can_say(label: Label) -> bool:
    return label.value is not None and 0 <= label.value <= 1


def _drawn(labels: Iterable[Label]) -> float:
    shares = [label.probability_drawn for label in labels if label.audit and label.probability_drawn]
    return max(shares, default=math.nan)


def _moment(time: str) -> datetime:
    try:
        when = datetime.fromisoformat(time)
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return when if when.tzinfo else when.replace(tzinfo=UTC)
