"""Where a change comes from, and of which kind it is, from the studies since it began."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwatch.baseline import Baseline
from stepwatch.config import WatchConfig
from stepwatch.detectors import Floats
from stepwatch.signals import LABELS, Signal

_KEPT = 1000  # latest studies that are kept to explain a change with
_SHOWN = 200  # latest studies that present values are means of
_LEAST = 50  # studies that a kind of shift is told from, at least: those before the change began make up for fewer
_WORTH = 4.0  # standard errors that the mean of a signal has to be off to count as changed
_PREVALENCE_SURE = 1.35  # standard errors of the prevalence's log-odds


class Recent:
    """The latest studies' values, for all signals."""

    def __init__(self, groups: Mapping[str, tuple[Signal, ...]]) -> None:
        self._values = {group: np.full((_KEPT, len(signals)), np.nan, np.float32) for group, signals in groups.items()}
        self._strata: NDArray[np.str_] = np.full(_KEPT, "", dtype="<U64")
        self._rows = np.full(_KEPT, -1, np.int64)
        self._times: NDArray[np.str_] = np.full(_KEPT, "", dtype="<U32")
        self._count = 0

    def add(self, values: Mapping[str, Floats], stratum: str, place: tuple[int, str]) -> None:
        """Keep one study."""
        at = self._count % _KEPT
        for group, kept in self._values.items():
            said = values.get(group)
            kept[at] = np.nan if said is None else said
        self._strata[at], self._rows[at], self._times[at] = stratum, *place
        self._count += 1

    def place(self, studies_ago: int) -> tuple[int, str] | None:
        """Row and time of an earlier study; None if it is not kept any more."""
        if not 0 <= studies_ago < min(self._count, _KEPT):
            return None
        at = (self._count - 1 - studies_ago) % _KEPT
        return int(self._rows[at]), str(self._times[at])

    def change(self, signal: Signal, index: int, level: float, direction: int, most: int) -> tuple[int, float]:
        """How many studies ago a signal most likely left its level, and its mean since: the likeliest change point.

        Looks back over ``most`` studies, and no farther than studies are kept.
        """
        studies = max(min(most, self._count, _KEPT), 1)
        values = self._values[signal.group][self._latest(studies), index].astype(np.float64)
        there = np.flatnonzero(~np.isnan(values))
        backwards = values[there][::-1]
        count = np.arange(1, len(there) + 1)
        mean = np.cumsum(backwards) / count
        if signal.kind == "calibration":
            gain, further = count * mean, mean > 0
        elif signal.kind in ("location", "given_others"):
            gain = count * mean**2 / 2
            further = mean * direction > 0
        else:
            usual = 1 / (1 + np.exp(-level)) if signal.kind != "prevalence" else 1.0
            if signal.kind == "prevalence":
                gain, further = count * (mean - usual) ** 2, (mean - usual) * direction > 0
            else:
                share = np.clip(mean, 1e-6, 1 - 1e-6)
                gain = count * (share * np.log(share / usual) + (1 - share) * np.log((1 - share) / (1 - usual)))
                further = (mean - usual) * direction > 0
        if not further.any():
            return 0, float(mean[0]) if len(mean) else float("nan")
        best = int(np.where(further, gain, -np.inf).argmax())
        return studies - 1 - int(there[::-1][best]), float(mean[best])

    def values_of(self, group: str, index: int, studies: int | None) -> Floats:
        """The latest values of a signal that are there: of so many studies, or of those that present values show."""
        values = self._values[group][self._latest(_SHOWN if studies is None else studies), index].astype(np.float64)
        return np.asarray(values[~np.isnan(values)])

    def matrix(self, group: str, studies: int) -> Floats:
        """The latest values of a group, (studies, signals)."""
        return np.asarray(self._values[group][self._latest(studies)], np.float64)

    def strata(self, studies: int) -> NDArray[np.str_]:
        """The strata of the latest studies."""
        return self._strata[self._latest(studies)]

    def days(self, studies: int) -> int:
        """On how many days the latest studies were."""
        return len({str(time)[:10] for time in self._times[self._latest(studies)]})

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything kept, as arrays."""
        own = {"strata": self._strata, "rows": self._rows, "times": self._times, "count": np.array(self._count)}
        return own | {f"values/{group}": values for group, values in self._values.items()}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from a state. Raises KeyError."""
        self._strata, self._rows, self._times = (state[name].copy() for name in ("strata", "rows", "times"))
        self._count = int(state["count"])
        self._values = {group: state[f"values/{group}"].copy() for group in self._values}

    def _latest(self, studies: int) -> NDArray[np.int64]:
        count = max(min(studies, self._count, _KEPT), 1)
        return (self._count - 1 - np.arange(count)[::-1]) % _KEPT


def attribute(signal: Signal, index: int, recent: Recent, studies: int, level: float) -> dict[str, float]:
    """Shares of a change by stratum, largest first: of what lies beyond the level, since the change began."""
    if signal.stratum or signal.family == LABELS:
        return {signal.stratum: 1.0} if signal.stratum else {}
    values = recent.matrix(signal.group, max(studies, _LEAST))[:, index]
    strata = recent.strata(max(studies, _LEAST))
    ordinary = level if signal.kind in ("location", "given_others") else 1 / (1 + np.exp(-level))
    if signal.kind == "prevalence":
        ordinary = 1.0
    beyond = {
        str(name): float(np.nansum(values[strata == name] - ordinary)) for name in np.unique(strata[strata != ""])
    }
    way = 1 if sum(beyond.values()) >= 0 else -1
    positive = {name: value * way for name, value in beyond.items() if value * way > 0}
    whole = sum(positive.values())
    return {name: round(v / whole, 3) for name, v in sorted(positive.items(), key=lambda item: -item[1])}


def kind_of_shift(config: WatchConfig, baseline: Baseline, recent: Recent, studies: int) -> str:
    """What has shifted: prevalence, acquisition, population, mixed, or unknown. ``studies``: since it began."""
    latest = max(studies, _LEAST)
    moved = prevalence_moved(baseline, recent, latest)
    changed = changed_families(config, baseline, recent, latest)
    telling = {config.families[name].tells_of for name in changed if name in config.families}
    if "source" in changed:
        telling.add("acquisition")
    telling &= {"acquisition", "population"}
    if moved:
        return "mixed" if telling else "prevalence"
    if len(telling) == 2:
        return "mixed"
    return telling.pop() if telling else "unknown"


def prevalence_moved(baseline: Baseline, recent: Recent, studies: int) -> bool:
    """Whether the prevalence by the probabilities is beyond its ordinary band."""
    signals = baseline.encoder.groups.get("prevalence", ())
    for index, _ in enumerate(signals):
        values = recent.matrix("prevalence", studies)[:, index]
        values = values[~np.isnan(values)]
        if len(values) < _LEAST // 2:
            continue
        ordinary = baseline.ordinary["prevalence"]
        level = float(ordinary.level[index])
        estimate, error = prevalence_by_likelihood(values, level)
        off = abs(estimate - level) - float(ordinary.band[index])
        if off > _PREVALENCE_SURE * error:
            return True
    return False


def prevalence_by_likelihood(values: Floats, start: float) -> tuple[float, float]:
    """Log-odds of the prevalence by maximum likelihood (EM; Saerens et al. 2002), and its standard error.

    ``values`` are studies' odds over those of the baseline's prevalence, ``start`` that prevalence's log-odds.
    """
    share = 1 / (1 + np.exp(-start))
    for _ in range(200):
        posterior = share * values / (1 + share * (values - 1))
        following = float(np.clip(posterior.mean(), 1e-4, 1 - 1e-4))
        if abs(following - share) < 1e-6:
            break
        share = following
    scores = share * values / (1 + share * (values - 1)) - share
    information = float((scores**2).sum())
    return float(np.log(share / (1 - share))), 1 / np.sqrt(max(information, 1e-9))


def changed_families(config: WatchConfig, baseline: Baseline, recent: Recent, studies: int) -> set[str]:
    """Families with a signal whose mean, since the change began, is off its band by more than chance explains."""
    changed: set[str] = set()
    days = recent.days(studies)
    for group, signals in baseline.encoder.groups.items():
        if group in ("prevalence", LABELS):
            continue
        ordinary = baseline.ordinary[group]
        matrix = recent.matrix(group, studies)
        for index, signal in enumerate(signals):
            if signal.family in config.families and config.families[signal.family].tells_of in ("prediction",):
                continue
            values = matrix[:, index]
            values = values[~np.isnan(values)]
            if len(values) < _LEAST // 2:
                continue
            level, band = float(ordinary.level[index]), float(ordinary.band[index])
            # The effects of so many days and weeks do not average out altogether.
            effects = float(ordinary.between_days[index]) / days + float(ordinary.between_weeks[index]) / (days / 5 + 1)
            if group == "location":
                off, error = abs(values.mean()) - band, np.sqrt(1 / len(values) + effects)
            else:
                share = 1 / (1 + np.exp(-level))
                edge = 1 / (1 + np.exp(-(level + band * np.sign(values.mean() - share))))
                off = (values.mean() - edge) * np.sign(values.mean() - share)
                spread = max(edge * (1 - edge), 1e-4)
                error = np.sqrt(spread / len(values) + effects * spread**2)
            if off > _WORTH * error:
                changed.add(signal.family)
    return changed
