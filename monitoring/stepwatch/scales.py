"""Levels, as the detectors have them, and values, as people read them; and what a direction is called."""

from __future__ import annotations

import math
from typing import Literal

from stepwatch.signals import Signal


def value_of(signal: Signal, level: float) -> float:
    """A level on the scale that people read: shares and prevalences on 0…1."""
    if signal.kind in ("location", "given_others", "calibration"):
        return level
    return 1 / (1 + math.exp(-max(min(level, 40.0), -40.0)))


def level_of(signal: Signal, mean: float) -> float:
    """The level of a mean value."""
    if signal.kind in ("location", "given_others", "calibration"):
        return mean
    share = min(max(mean, 1e-4), 1 - 1e-4)
    return math.log(share / (1 - share))


def direction_of(
    signal: Signal, direction: int, *, stopped: bool
) -> Literal["up", "down", "absent", "unseen", "missing"]:
    """What a signal's change up or down is called: of what it tells of, which may be the other way round."""
    if stopped:
        return "absent"
    if signal.kind == "unseen":
        return "unseen"
    if signal.kind == "missing" and direction > 0:
        return "missing"
    falls = signal.kind == "below" or signal.name.endswith("tail low")
    return "up" if (direction > 0) != falls else "down"
