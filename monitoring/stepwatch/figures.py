"""What is known of how well a model does: the records that the page and the metrics show."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

How = Literal["measured", "estimated"]
MEASURES = ("auroc", "auprc", "sensitivity", "specificity", "ppv", "npv", "expected_cost", "ece")


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A measure of one finding with its interval: measured on labels, or estimated without them."""

    finding: str
    measure: str  # one of MEASURES
    how: How
    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupFigure:
    """A measure of one finding in one subgroup, and what may be said of it."""

    finding: str
    group: str  # sex, age band, scanner …
    level: str
    measure: str
    value: float
    verdict: str  # too_few, not_judged, as_others, as_said, worse, miscalibrated
    low: float = math.nan
    high: float = math.nan
    studies: int = 0  # that it is of


@dataclass(frozen=True, kw_only=True, slots=True)
class Prevalence:
    """How common a finding is."""

    finding: str
    how: Literal["baseline", "estimated", "labelled"]
    value: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Performance:
    """Everything that is known of one model."""

    figures: tuple[Figure, ...] = ()
    groups: tuple[GroupFigure, ...] = ()
    worst_gaps: Mapping[tuple[str, str], float] = field(default_factory=dict)  # by finding and measure
    prevalences: tuple[Prevalence, ...] = ()
    labelled: Mapping[str, int] = field(default_factory=dict)  # studies with labels by finding
    only_labelled: tuple[str, ...] = ()  # findings whose measured figures do not stand for studies without a label

    def parted(self) -> list[tuple[str, str]]:
        """Finding and measure of those whose estimate is not to be believed: the intervals have nothing in common."""
        figures = {(figure.finding, figure.measure, figure.how): figure for figure in self.figures}
        apart = []
        for (finding, name, how), figure in figures.items():
            other = figures.get((finding, name, "estimated"))
            if how == "measured" and other is not None and (figure.low > other.high or figure.high < other.low):
                apart.append((finding, name))
        return apart
