"""What moved between the accepted answers and today's, stage by stage.

Differences are in units of their tolerance: at most 1 is constant. The stages are in the order in which a study passes
them, so the first that moved is where to look; those behind it move with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stepwedge.constancy.accepted import Answer
from stepwedge.decision.calibrate import at_prevalence
from stepwedge.manifest import Package
from stepwedge.records import Finding, Thresholds

STAGES = ("decode", "gate", "preprocessing", "scores", "calibration", "thresholds", "report")
# Where a verdict, not a number, is another: as far off as can be shown.
CHANGED = 1000.0
# Of a fingerprint's fields. Decoding gives whole numbers, of which a step in 12 bits is 2.4e-4 of the range; tensors
# are normalised, about one standard deviation wide, and what is computed in float32 agrees to 1e-5 anywhere.
_DECODE_TOLERANCE = 1e-4  # of the image's range of values
_PREPROCESSING_TOLERANCE = 1e-4
_THRESHOLD_TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class Decided:
    """What the site's policy brings to a finding, as it was accepted."""

    prevalence: float
    clear_below: float | None
    act_from: float | None

    @classmethod
    def of(cls, finding: Finding) -> Decided:
        """From a finding of a result."""
        limits = finding.thresholds or Thresholds(clear_below=math.nan, act_from=math.nan)
        stated = finding.thresholds is not None
        return cls(
            prevalence=finding.prevalence,
            clear_below=limits.clear_below if stated else None,
            act_from=limits.act_from if stated else None,
        )


def compare(accepted: Answer, now: Answer, package: Package, prevalences: Mapping[str, float]) -> dict[str, float]:
    """Differences of one study by stage, ``report`` and ``thresholds`` excepted.

    Parameters
    ----------
    prevalences
        What today's probabilities stand for, by finding; the accepted ones stand for the package's own.
    """
    found = {
        "decode": _prints(accepted, now, "decoded", _DECODE_TOLERANCE),
        "gate": CHANGED if gate_said(accepted) != gate_said(now) else 0.0,
        "preprocessing": _prints(accepted, now, "input.", _PREPROCESSING_TOLERANCE),
    }
    tolerance = package.manifest.golden_tolerance
    found["scores"] = _largest(accepted.scores, now.scores, tolerance)
    expected = {
        name: float(at_prevalence(np.asarray(value), package.calibration.findings[name].prevalence, prevalences[name]))
        for name, value in accepted.probabilities.items()
        if name in prevalences
    }
    # A probability moves with its score by less than a quarter of that, times the slope of the calibration.
    found["calibration"] = _largest(expected, now.probabilities, tolerance)
    return found


def compare_decided(accepted: Mapping[str, Decided], now: Mapping[str, Decided]) -> float:
    """How far prevalences and thresholds are from those that were accepted."""
    if accepted.keys() != now.keys():
        return CHANGED
    largest = 0.0
    for name, was in accepted.items():
        for before, after in zip(_values(was), _values(now[name]), strict=True):
            if (before is None) != (after is None):
                return CHANGED
            if before is not None and after is not None:
                largest = max(largest, _over(after - before, _THRESHOLD_TOLERANCE))
    return largest


def first_moved(differences: Mapping[str, float]) -> str:
    """The first stage that moved; empty if none did."""
    return next((stage for stage in STAGES if differences.get(stage, 0.0) > 1.0), "")


def _values(decided: Decided) -> tuple[float | None, ...]:
    return decided.prevalence, decided.clear_below, decided.act_from


def gate_said(answer: Answer) -> tuple[str, str, tuple[str, ...], str]:
    """What gate and tamper check made of a study."""
    return answer.state, answer.gate, tuple(sorted(answer.gate_reasons)), answer.tamper


def _prints(accepted: Answer, now: Answer, prefix: str, tolerance: float) -> float:
    before = {name: values for name, values in accepted.prints.items() if name.startswith(prefix)}
    after = {name: values for name, values in now.prints.items() if name.startswith(prefix)}
    if before.keys() != after.keys():
        return CHANGED
    return max((_furthest(before[name], after[name], tolerance) for name in before), default=0.0)


def _furthest(before: Sequence[float], after: Sequence[float], tolerance: float) -> float:
    if len(before) != len(after):
        return CHANGED
    return max((_over(a - b, tolerance) for a, b in zip(after, before, strict=True)), default=0.0)


def _largest(before: Mapping[str, float], after: Mapping[str, float], tolerance: float) -> float:
    if before.keys() != after.keys():
        return CHANGED
    return max((_over(after[name] - before[name], tolerance) for name in before), default=0.0)


def _over(difference: float, tolerance: float) -> float:
    return min(abs(difference) / tolerance, CHANGED) if math.isfinite(difference) else CHANGED
