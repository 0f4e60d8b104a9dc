"""Running evidence that a model does worse in a subgroup: it may be looked at with every label, and at any time.

For each level of each group (those of the baseline, and all others together) there is an e-process (Ramdas et al.
2023) for each of three questions. It begins with the package's first reading of the audit, takes every further one
once, and is never begun anew, so that it is below 1/α for ever with probability 1 − α where the answer is no.

- Sensitivity and specificity: are right answers as common as outside the level? Blocks of one case of the level and as
  many others as come for each of it, at most five (Turner, Ly and Grünwald 2024); the bet is only that it is worse.
- Calibration in the large: is a study ill as often as its probability says? Likelihood ratios of other log-odds, up and
  down, in equal parts; exact, where probabilities are right.

Which of them are believed is decided by the e-Benjamini–Hochberg procedure over all questions at once, whose number is
fixed by the baseline: at any time at most 5 % of those believed are false on average, whatever depends on what (Wang
and Ramdas 2022).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

GROUPS = ("sex", "age", "scanner", "sender", "view")
JUDGED = ("sensitivity", "specificity", "calibration")
OTHER = "other"
FALSE_DISCOVERIES = 0.05  # share of those called worse that may be so by chance
_MOST_LEVELS = 12  # of a group; the rarest are taken together
_LARGEST_BLOCK = 5  # cases of others that a case of the level is compared with at once
_MOST_WAITING = 20  # cases that wait for the other side of their block; older ones are left out, right or wrong
_OFFSETS = (-1.0, -0.5, 0.5, 1.0)  # log-odds by which probabilities may be off
_INSIDE = 1e-6
_LARGEST = 700.0  # log evidence: beyond it only its being large matters

Place = tuple[str, str, str, str]  # finding, group, level, measure


@dataclass(kw_only=True, slots=True)
class Rates:
    """The bets that right answers are rarer within a level than outside it."""

    log_evidence: float = 0.0
    own: list[float] = field(default_factory=lambda: [0.5, 1.0])  # right, all; half a case each way to begin with
    others: list[float] = field(default_factory=lambda: [0.5, 1.0])
    own_block: list[int] = field(default_factory=list)
    other_block: list[int] = field(default_factory=list)
    seen: list[int] = field(default_factory=lambda: [0, 0])  # of the level, of others
    size: int = 1

    def take(self, *, right: bool, within: bool) -> None:
        """Take one case."""
        self.seen[0 if within else 1] += 1
        block = self.own_block if within else self.other_block
        block.append(int(right))
        del block[:-_MOST_WAITING]
        while self.own_block and len(self.other_block) >= self.size:
            # The newest, whatever they say: one from long ago would book on the level what changed for all since.
            one, several = self.own_block.pop(), [self.other_block.pop() for _ in range(self.size)]
            rate, usual = self.own[0] / self.own[1], self.others[0] / self.others[1]
            if rate < usual:
                same = (rate + self.size * usual) / (1 + self.size)
                self.log_evidence += _log_ratio(rate, same, [one]) + _log_ratio(usual, same, several)
            self.own = [self.own[0] + one, self.own[1] + 1]
            self.others = [self.others[0] + sum(several), self.others[1] + self.size]
            # Chosen before the next block is seen.
            self.size = min(max(round(self.seen[1] / max(self.seen[0], 1)), 1), _LARGEST_BLOCK)

    def to_row(self) -> list[Any]:
        """As JSON values."""
        return [self.log_evidence, self.own, self.others, self.own_block, self.other_block, self.seen, self.size]

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Self:
        """From ``to_row``."""
        names = ("log_evidence", "own", "others", "own_block", "other_block", "seen", "size")
        return cls(**dict(zip(names, row, strict=True)))


@dataclass(kw_only=True, slots=True)
class Offsets:
    """The bets that probabilities of a level are off, each by its own log-odds."""

    logs: list[float] = field(default_factory=lambda: [0.0] * len(_OFFSETS))
    seen: int = 0

    @property
    def log_evidence(self) -> float:
        """Of their mean."""
        most = max(self.logs)
        return most + math.log(sum(math.exp(value - most) for value in self.logs) / len(self.logs))

    def take(self, probability: float, truth: float) -> None:
        """Take one case."""
        p = min(max(probability, _INSIDE), 1 - _INSIDE)
        odds = math.log(p / (1 - p))
        self.seen += 1
        for place, offset in enumerate(_OFFSETS):
            q = 1 / (1 + math.exp(-odds - offset))
            self.logs[place] += truth * math.log(q / p) + (1 - truth) * math.log((1 - q) / (1 - p))


class Fairness:
    """The evidence of every subgroup of one package."""

    def __init__(self, findings: Iterable[str], levels: Mapping[str, Sequence[str]]) -> None:
        """``levels`` by group are those that are judged by themselves: see ``known_levels``."""
        self._findings = tuple(findings)
        self._levels = {group: (*(level for level in of if level != OTHER), OTHER) for group, of in levels.items()}
        self._rates: dict[Place, Rates] = {}
        self._offsets: dict[Place, Offsets] = {}
        for finding, group, level in self._subgroups():
            for measure in ("sensitivity", "specificity"):
                self._rates[finding, group, level, measure] = Rates()
            self._offsets[finding, group, level, "calibration"] = Offsets()

    def _subgroups(self) -> Iterable[tuple[str, str, str]]:
        return ((f, group, level) for f in self._findings for group, of in self._levels.items() for level in of)

    def take(self, finding: str, groups: Mapping[str, str], probability: float, answer: str, truth: float) -> None:
        """Take one reading: of which level by group, what the model said, and what is true (0…1)."""
        if finding not in self._findings:
            return
        ill = truth >= 0.5
        measure = "sensitivity" if ill else "specificity"
        right = answer == ("act" if ill else "clear")
        for group, of in self._levels.items():
            mine = level_in(groups.get(group, "missing"), of)
            for level in of:
                if answer in ("act", "clear", "defer"):
                    self._rates[finding, group, level, measure].take(right=right, within=level == mine)
            self._offsets[finding, group, mine, "calibration"].take(probability, truth)

    def evidence(self) -> dict[Place, tuple[float, int]]:
        """Of every question the evidence (natural logarithm of its e-value), and of how many readings of the level."""
        found = {place: (rates.log_evidence, rates.seen[0]) for place, rates in self._rates.items()}
        return found | {place: (of.log_evidence, of.seen) for place, of in self._offsets.items()}

    def to_row(self) -> dict[str, Any]:
        """As JSON values. What has seen nothing is left out."""
        return {
            "findings": list(self._findings),
            "levels": {group: list(of) for group, of in self._levels.items()},
            "rates": [[*place, *rates.to_row()] for place, rates in self._rates.items() if any(rates.seen)],
            "offsets": [[*place, of.logs, of.seen] for place, of in self._offsets.items() if of.seen],
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """From ``to_row``; empty from nothing."""
        fairness = cls(row.get("findings", ()), row.get("levels", {}))
        for finding, group, level, measure, *rest in row.get("rates", ()):
            fairness._rates[finding, group, level, measure] = Rates.from_row(rest)
        for finding, group, level, measure, logs, seen in row.get("offsets", ()):
            fairness._offsets[finding, group, level, measure] = Offsets(logs=logs, seen=seen)
        return fairness

    def is_of(self, findings: Iterable[str], levels: Mapping[str, Sequence[str]]) -> bool:
        """Whether it asks of these levels."""
        other = type(self)(findings, levels)
        return (self._findings, self._levels) == (other._findings, other._levels)


def believed(evidence: Mapping[Place, tuple[float, int]]) -> set[Place]:
    """The questions whose answer is believed to be yes, of all that are asked."""
    places = list(evidence)
    values = [math.exp(min(evidence[place][0], _LARGEST)) for place in places]
    return {places[number] for number in e_bh(values)}


def e_bh(evidence: Sequence[float], share: float = FALSE_DISCOVERIES) -> list[int]:
    """Places of the e-values that are discoveries: the k largest, where each is at least n / (k × share)."""
    order = sorted(range(len(evidence)), key=lambda place: -evidence[place])
    kept = [k for k in range(1, len(order) + 1) if evidence[order[k - 1]] >= len(order) / (k * share)]
    return sorted(order[: max(kept, default=0)])


def known_levels(members: Iterable[Mapping[str, str]]) -> dict[str, tuple[str, ...]]:
    """The levels of each group that are judged by themselves: the commonest of the baseline's studies."""
    counts: dict[str, Counter[str]] = {group: Counter() for group in GROUPS}
    for member in members:
        for group in GROUPS:
            counts[group][member.get(group, "missing")] += 1
    return {
        group: tuple(level for level, _ in sorted(of.items(), key=lambda item: (-item[1], item[0]))[:_MOST_LEVELS])
        for group, of in counts.items()
    }


def level_in(level: str, known: Sequence[str]) -> str:
    """The level that a study counts to."""
    return level if level in known else OTHER


def _log_ratio(rate: float, same: float, right: Sequence[int]) -> float:
    return sum(math.log(rate / same) if one else math.log((1 - rate) / (1 - same)) for one in right)
