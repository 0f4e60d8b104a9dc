"""How much each signal's bets count in the sum that the one limit is for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from stepwatch.baseline import Baseline
from stepwatch.detectors import Floats
from stepwatch.scales import value_of
from stepwatch.signals import EVERYWHERE, Signal

# Fewer of what is this rare is worth nobody's while, so only more is bet upon.
_RARE = 0.02
# Prevalence and calibration are one signal each, and what the monitor is there for: each weighs as two families.
_MODEL = 2.0
_MODEL_TOGETHER = 0.9


def weights_of(baseline: Baseline) -> dict[str, Floats]:
    """Each signal's share of the bound on false alarms, up and down: by family, half to all strata together."""
    groups = baseline.encoder.groups
    families = {signal.family for signals in groups.values() for signal in signals}
    telling = {family: _MODEL if {"prevalence", "calibration"} & _kinds(groups, family) else 1.0 for family in families}
    weights = {group: np.zeros((len(signals), 2)) for group, signals in groups.items()}
    for family in families:
        places: dict[bool, list[tuple[str, int]]] = {True: [], False: []}
        for group, signals in groups.items():
            for index, signal in enumerate(signals):
                if signal.family == family:
                    places[group in EVERYWHERE].append((group, index))
        parts = {True: _MODEL_TOGETHER if telling[family] > 1 else 0.5, False: 0.0}
        parts[False] = 1 - parts[True]
        whole = sum(part for everywhere, part in parts.items() if places[everywhere])
        for everywhere, found in places.items():
            for group, index in found:
                ways = _ways(groups[group][index], float(baseline.ordinary[group].level[index]))
                share = telling[family] / sum(telling.values()) * parts[everywhere] / whole
                weights[group][index] = ways * share / len(found)
    return weights


def _kinds(groups: Mapping[str, tuple[Signal, ...]], family: str) -> set[str]:
    return {signal.kind for signals in groups.values() for signal in signals if signal.family == family}


def _ways(signal: Signal, level: float) -> Floats:
    """How a signal's weight goes to up and down: all to one where the other is no news.

    Tails tell of strangers when they grow; and of what is rare, or is missing rarely, only more is.
    """
    if signal.kind in ("tail", "distance", "calibration"):
        return np.array([1.0, 0.0])
    if signal.kind in ("share", "below", "unseen", "missing"):
        share = value_of(signal, level)
        if share < _RARE:
            return np.array([1.0, 0.0])
        if share > 1 - _RARE:
            return np.array([0.0, 1.0])
    return np.array([0.5, 0.5])
