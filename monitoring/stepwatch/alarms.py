"""What an alarm says, and how it ends: when its signal is back, or when a person makes the change the new normal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from stepwatch.detectors import Detector, Locations, Ordinary
from stepwatch.signals import LABELS

# An alarm is cleared when the signal is this many times likelier to be back within its band than still outside.
_CLEARED = 1000.0
_CLEARED_STOP = 200.0  # the same after a stop: what comes again is plain to see, and to wait longer helps nobody
_LEAST_APART = {True: 0.15, False: 0.4}  # of the two levels compared: normal scores, log-odds
# A share that has fallen below this part of its usual one, and was common before, has stopped.
_STOPPED = 0.1
_COMMON = 0.1
_STOPPED_LEVELS = 3.0  # log-odds below its usual level that a share counts as still stopped: a twentieth of the odds


@dataclass(frozen=True, kw_only=True, slots=True)
class Alarm:
    """A change that was noticed. Values are shares, means of normal scores, or prevalences."""

    alarm: str  # identifier
    kind_of_alarm: Literal["drift", "event"]  # a stop is an event until it outlasts its day
    signal: str
    family: str
    direction: Literal["up", "down", "absent", "unseen", "missing"]
    stratum: str = ""  # empty: all
    shift: str = "unknown"  # prevalence, acquisition, population, concept, mixed, stop, unknown
    attribution: dict[str, float] = field(default_factory=dict)  # share of the change by stratum
    evidence: float  # log10 of the bets' weighted sum
    raised_row: int
    raised_time: str
    raised_count: int  # studies seen
    changed_row: int  # where the change began, as far as the bets tell
    changed_time: str
    baseline_value: float
    present_value: float
    drift_row: int | None = None  # where an event had lasted into another day
    drift_time: str | None = None
    cleared_row: int | None = None
    cleared_time: str | None = None
    cleared_count: int | None = None
    acknowledged_by: str = ""
    acknowledged_time: str = ""
    adopted: bool = False  # the present level was made the new normal

    def to_dict(self) -> dict[str, Any]:
        """Its fields."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """From its fields. Raises TypeError for others."""
        return cls(**values)

    @property
    def active(self) -> bool:
        """Whether the signal is still away from its band."""
        return self.cleared_row is None and not self.adopted


def why_not_adopted(alarm: Mapping[str, Any]) -> str:
    """Why an alarm, by its fields, cannot be made the new normal; empty where it can."""
    if alarm.get("family") == LABELS:
        return "that the model has got worse cannot be made normal; acknowledge it without adopting it"
    if alarm.get("cleared_row") is not None:
        return "its signal is back where it was; there is nothing to adopt"
    return "it is the new normal already" if alarm.get("adopted") else ""


class Return:
    """Weighs, study by study, whether a signal is back; begins where an alarm is raised.

    A stop has ended as soon as its studies come again. Any other change may come and go: then the signal has to be
    likelier at its usual level than at the edge of its band, beyond what the day and the week explain.
    """

    def __init__(
        self,
        kind: type[Detector],
        *,
        edge: float,
        usual: float,
        direction: int,
        between: tuple[float, float],
        stopped: bool,
    ) -> None:
        """``edge`` of the band that was crossed, ``usual`` level; ``between`` days and weeks: variances."""
        self._told = {"edge": edge, "usual": usual, "direction": direction, "between": between, "stopped": stopped}
        self._back = 1 if direction > 0 else 0  # the other way
        self._cleared = _CLEARED_STOP if stopped else _CLEARED
        if stopped:
            level, between = usual + direction * _STOPPED_LEVELS, (0.0, 0.0)
            apart = max(abs(level - edge), 1.0)
        else:
            level, apart = edge, max(abs(edge - usual), _LEAST_APART[kind is Locations])
        ordinary = Ordinary(
            level=np.array([level]),
            band=np.zeros(1),
            between_days=np.array([between[0]]),
            between_weeks=np.array([between[1]]),
        )
        self._detector = kind(ordinary, np.ones((1, 2)), steps=(apart,))

    def update(self, value: float, day: int, week: int) -> bool:
        """Take a value; whether the signal is back."""
        self._detector.update(np.array([value]), day, week)
        return float(self._detector.sums[0, self._back, 0]) >= self._cleared

    def describe(self) -> dict[str, Any]:
        """What it was made of."""
        return dict(self._told)

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Everything that changes."""
        return self._detector.state()

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from a state."""
        self._detector.restore(state)


def has_stopped(baseline: float, present: float) -> bool:
    """Whether a share that was common is next to nothing."""
    return baseline >= _COMMON and present < _STOPPED * baseline
