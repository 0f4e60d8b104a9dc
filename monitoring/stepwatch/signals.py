"""The signals of a stream: which there are, and what each study says of them.

Within a stratum (source, and working or off day) a number becomes its rank in the baseline, as a normal score. All
strata together then share signals of level, tail and distance: what changes everywhere is found soonest so. Beside
them each stratum has signals of its own: every level's share, numbers below quantiles, missing values, levels that the
baseline has never seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from stepwedge.observation import Observation

from stepwatch.calibration import BETS, fit_calibration
from stepwatch.config import Family, WatchConfig
from stepwatch.streams import Table, day_of

Floats = NDArray[np.float64]
Kind = Literal[
    "location", "given_others", "tail", "distance", "share", "below", "missing", "unseen", "prevalence", "calibration"
]

SOURCE = "source"  # the family of where studies come from
LABELS = "labels"  # the family, and the group, of how labels go with probabilities
EVERYWHERE = ("location", "tail", "prevalence", LABELS)  # groups of all strata together
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of each number in a stratum
_TAIL = 0.05
_FAR = (0.5, 0.8, 0.95)  # quantiles of distance whose excess is watched
_KNOTS = 1024  # most values kept of a reference
_LEAST_OF_LEVEL = 20  # studies of the baseline below which a level is not watched by itself
_MOST_LEVELS = 12  # of one column in a stratum that are watched by themselves
_RIDGE = 0.05  # of a correlation matrix: what is all but a function of others says nothing
_OFF = ("working", "off")
_INVERSE = np.array([NormalDist().inv_cdf((i + 0.5) / 4096) for i in range(4096)])  # normal quantiles


@dataclass(frozen=True, kw_only=True, slots=True)
class Signal:
    """One thing that is watched. ``limit`` is the value at a quantile, where there is one."""

    name: str
    family: str
    column: str
    kind: Kind
    group: str  # what it shares arrays with
    stratum: str = ""  # empty: all
    level: str = ""
    limit: float | None = None


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The baseline's values of one number in one stratum, ascending; at most ``_KNOTS`` of them."""

    values: Floats

    def ranks(self, values: Floats) -> Floats:
        """Mid-ranks on 0…1, NaN for NaN."""
        low = np.searchsorted(self.values, values, "left")
        high = np.searchsorted(self.values, values, "right")
        ranks = ((low + high) / 2 + 0.5) / (len(self.values) + 1)
        return np.where(np.isnan(values), np.nan, ranks)


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What studies say: for each group the rows it is asked of, (n,) bool, and its values, (n, signals)."""

    asked: Mapping[str, NDArray[np.bool_]]
    values: Mapping[str, Floats]
    strata: tuple[str, ...]  # of each row; empty where the baseline has too little of it


def reference(values: Floats) -> Reference:
    """A reference from the values of a baseline, NaN left out."""
    present = np.sort(values[~np.isnan(values)])
    if len(present) > _KNOTS:
        present = present[((np.arange(_KNOTS) + 0.5) * len(present) / _KNOTS).astype(int)]
    return Reference(values=present)


def normal_scores(ranks: Floats) -> Floats:
    """The standard normal quantiles of ranks on 0…1, NaN for NaN."""
    index = np.clip(np.nan_to_num(ranks, nan=0.5) * len(_INVERSE), 0, len(_INVERSE) - 1).astype(int)
    return np.where(np.isnan(ranks), np.nan, _INVERSE[index])


def strata_of(table: Table, config: WatchConfig, only: str | None = None) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
    """Working or off, and the stratum, of each row. With ``only`` every day counts as such a one."""
    off = {int(day): only or _OFF[config.is_off(day_of(day))] for day in np.unique(table.days)}
    calendar = np.array([off[int(day)] for day in table.days])
    if config.source is None:
        return calendar, calendar
    return calendar, np.char.add(np.char.add(table.levels[config.source], "|"), calendar)


class Encoder:
    """Turns rows into what they say of each signal. Fitted once, on a baseline; then it does not change."""

    def __init__(self, table: Table, config: WatchConfig) -> None:
        """Fit on the rows of a baseline."""
        self._config = config
        calendar, strata = strata_of(table, config)
        # A baseline that knows working days only, or off days only, cannot tell them apart.
        self._only = str(calendar[0]) if len(set(calendar.tolist())) == 1 else None
        names, counts = np.unique(strata, return_counts=True)
        self.counts = {str(name): int(n) for name, n in zip(names, counts, strict=True)}
        self.strata = tuple(name for name, n in self.counts.items() if n >= config.least_baseline)
        self.calendars = tuple(c for c in _OFF if (calendar == c).sum() >= config.least_baseline)
        self._numbers = [c for family in config.families.values() for c in family.numbers]
        self._references: dict[tuple[str, str], Reference] = {}
        for stratum in self.strata:
            for name in self._numbers:
                self._references[stratum, name] = reference(table.numbers[name][strata == stratum])
        self._given: dict[str, tuple[Floats, list[Reference], Reference]] = {}
        scores = self._scores(table, strata)
        for family, spec in config.families.items():
            if spec.together and len(spec.numbers) > 1:
                self._given[family] = self._fit_together(scores, spec)
        # Of what the baseline never has there is nothing accepted to compare with: neither its level nor its lack.
        self.absent = tuple(
            dict.fromkeys(
                [
                    name
                    for family in config.families.values()
                    for names, values in (
                        (family.levels, table.levels),
                        ((*family.numbers, *family.probabilities), table.numbers),
                    )
                    for name in names
                    if _has_none(values[name])
                ]
            )
        )
        self._levels = {
            (stratum, name): self._known_levels(table.levels[name][strata == stratum])
            for stratum in self.strata
            for family in config.families.values()
            for name in family.levels
        }
        self._sources = {
            c: self._known_levels(table.levels[config.source][calendar == c], of_two=2)
            if config.source
            else ((), frozenset())
            for c in self.calendars
        }
        self._odds = {
            name: _baseline_odds(table.numbers[name])
            for family in config.families.values()
            for name in family.probabilities
        }
        self._calibrations = {
            pair.label: fit_calibration(table.numbers[pair.probability], table.numbers[pair.label])
            for pair in config.labels
        }
        self.groups = self._make_groups()

    # --- Which signals there are ----------------------------------------------------------------------------------

    def _known_levels(self, values: NDArray[np.str_], *, of_two: int = 1) -> tuple[tuple[str, ...], frozenset[str]]:
        """The levels to watch by themselves, ``of_two`` where there are two, and all that the baseline has."""
        names, counts = np.unique(values[values != ""], return_counts=True)
        order = np.argsort(-counts, kind="stable")
        often = [str(names[i]) for i in order if counts[i] >= _LEAST_OF_LEVEL][:_MOST_LEVELS]
        if len(names) == 2 and len(often) == 2:
            often = often[:of_two]  # the other one's share is what is left
        return tuple(often), frozenset(str(name) for name in names)

    def _make_groups(self) -> dict[str, tuple[Signal, ...]]:
        groups: dict[str, list[Signal]] = {"location": [], "tail": [], "prevalence": []}
        for family, spec in self._config.families.items():
            for name in spec.numbers:
                if not any(len(self._references[stratum, name].values) for stratum in self.strata):
                    continue
                groups["location"].append(_signal(name, family, name, "location"))
                groups["tail"] += [_signal(f"{name} tail {way}", family, name, "tail") for way in ("low", "high")]
            if family in self._given:
                groups["location"] += [
                    _signal(f"{name} given others", family, name, "given_others") for name in spec.numbers
                ]
                groups["tail"] += [
                    _signal(f"{family} distance {q:g}", family, family, "distance", limit=q) for q in _FAR
                ]
            groups["prevalence"] += [_signal(n, family, n, "prevalence") for n in spec.probabilities]
        groups[LABELS] = [
            Signal(name=f"{pair.label}: {bet}", family=LABELS, column=pair.label, kind="calibration", group=LABELS)
            for pair in self._config.labels
            for bet in BETS
        ]
        for calendar in (
            self.calendars if self._config.source and any(known for _, known in self._sources.values()) else ()
        ):
            group = f"{SOURCE}|{calendar}"
            column = self._config.source or ""
            groups[group] = [
                *(
                    Signal(
                        name=f"{column}={level}",
                        family=SOURCE,
                        column=column,
                        kind="share",
                        group=group,
                        stratum=calendar,
                        level=level,
                    )
                    for level in self._sources[calendar][0]
                ),
                Signal(
                    name=f"{column} unseen", family=SOURCE, column=column, kind="unseen", group=group, stratum=calendar
                ),
            ]
        for stratum in self.strata:
            groups[stratum] = self._stratum_signals(stratum)
        return {name: tuple(signals) for name, signals in groups.items() if signals}

    def _stratum_signals(self, stratum: str) -> list[Signal]:
        found: list[Signal] = []

        def add(family: str, column: str, kind: Kind, *, level: str = "", limit: float | None = None) -> None:
            what = {"share": f"={level}", "below": f" ≤ {limit:g}" if limit is not None else ""}.get(kind, f" {kind}")
            found.append(
                Signal(
                    name=column + what,
                    family=family,
                    column=column,
                    kind=kind,
                    group=stratum,
                    stratum=stratum,
                    level=level,
                    limit=limit,
                )
            )

        for family, spec in self._config.families.items():
            for name in spec.levels:
                if name in self.absent:
                    continue
                for level in self._levels[stratum, name][0]:
                    add(family, name, "share", level=level)
                add(family, name, "unseen")
                add(family, name, "missing")
            for name in (*spec.numbers, *spec.probabilities):
                if name not in self.absent:
                    add(family, name, "missing")
            for name in spec.numbers:
                for limit in _limits(self._references[stratum, name].values, self._config.least_baseline):
                    add(family, name, "below", limit=limit)
        return found

    # --- What rows say --------------------------------------------------------------------------------------------

    def encode(self, table: Table) -> Encoded:
        """What each row says of each signal."""
        calendar, strata = strata_of(table, self._config, self._only)
        known = np.isin(strata, self.strata) if self.strata else np.zeros(len(table), bool)
        scores = self._scores(table, strata)
        given, distance = self._together(scores)
        values: dict[str, Floats] = {}
        asked: dict[str, NDArray[np.bool_]] = {}
        for group, signals in self.groups.items():
            if group in ("location", "tail"):
                rows = known
                columns = [self._pooled(signal, scores, given, distance) for signal in signals]
            elif group == LABELS:
                rows = np.ones(len(table), bool)
                columns = [
                    ratios
                    for pair in self._config.labels
                    for ratios in self.label_ratios(
                        pair.label, table.numbers[pair.probability], table.numbers[pair.label]
                    ).T
                ]
            elif group == "prevalence":
                rows = known
                columns = [_odds(table.numbers[signal.column]) / self._odds[signal.column] for signal in signals]
            else:
                rows = calendar == signals[0].stratum if signals[0].family == SOURCE else strata == group
                columns = [self._said(signal, table) for signal in signals]
            asked[group] = rows
            values[group] = np.where(rows[:, None], np.stack(columns, axis=1), np.nan)
        return Encoded(asked=asked, values=values, strata=tuple(np.where(known, strata, "").tolist()))

    def label_ratios(self, column: str, probabilities: Floats, labels: Floats) -> Floats:
        """What labels say of how they go with probabilities, (n, bets): log likelihood ratios."""
        return self._calibrations[column].log_ratios(probabilities, labels)

    def prevalence_of(self, column: str) -> float:
        """The baseline's prevalence of a finding."""
        return self._odds[column] / (1 + self._odds[column])

    def _scores(self, table: Table, strata: NDArray[np.str_]) -> dict[str, Floats]:
        """Normal scores of every number within its stratum."""
        scores = {name: np.full(len(table), np.nan) for name in self._numbers}
        for stratum in self.strata:
            rows = strata == stratum
            if not rows.any():
                continue
            for name in self._numbers:
                kept = self._references[stratum, name]
                if len(kept.values):
                    scores[name][rows] = normal_scores(kept.ranks(table.numbers[name][rows]))
        return scores

    def _fit_together(self, scores: Mapping[str, Floats], spec: Family) -> tuple[Floats, list[Reference], Reference]:
        matrix = np.stack([scores[name] for name in spec.numbers], axis=1)
        whole = matrix[~np.isnan(matrix).any(axis=1)]
        precision: Floats = np.eye(len(spec.numbers))
        if len(whole) >= 2 * len(spec.numbers):
            covariance = np.cov(whole, rowvar=False) * (1 - _RIDGE) + _RIDGE * np.eye(len(spec.numbers))
            precision = np.asarray(np.linalg.inv(covariance), np.float64)
        rest = whole @ (precision / np.sqrt(np.diag(precision)))
        distance = (whole @ precision * whole).sum(axis=1)
        return precision, [reference(column) for column in rest.T], reference(distance)

    def _together(self, scores: Mapping[str, Floats]) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """By number its score given the others; by family the rank of the distance."""
        given, distances = {}, {}
        for family, (precision, references, far) in self._given.items():
            names = self._config.families[family].numbers
            matrix = np.stack([scores[name] for name in names], axis=1)
            rest = np.asarray(matrix @ (precision / np.sqrt(np.diag(precision))), np.float64)
            for column, name in enumerate(names):
                given[name] = normal_scores(references[column].ranks(np.asarray(rest[:, column])))
            distances[family] = far.ranks((matrix @ precision * matrix).sum(axis=1))
        return given, distances

    def _pooled(
        self, signal: Signal, scores: Mapping[str, Floats], given: Mapping[str, Floats], far: Mapping[str, Floats]
    ) -> Floats:
        if signal.kind == "location":
            return scores[signal.column]
        if signal.kind == "given_others":
            return given[signal.column]
        if signal.kind == "distance":
            assert signal.limit is not None
            return _flags(far[signal.column], far[signal.column] > signal.limit)
        edge = NormalDist().inv_cdf(_TAIL)
        score = scores[signal.column]
        return _flags(score, score <= edge if signal.name.endswith("low") else score >= -edge)

    def _said(self, signal: Signal, table: Table) -> Floats:
        if signal.column in table.levels:
            level = table.levels[signal.column]
            if signal.kind == "missing":
                return np.asarray(level == "", np.float64)
            if signal.kind == "unseen":
                where = self._sources[signal.stratum] if signal.family == SOURCE else None
                seen = (where or self._levels[signal.stratum, signal.column])[1]
                return np.asarray(~np.isin(level, ["", *seen]), np.float64)
            return np.asarray(level == signal.level, np.float64)
        number = table.numbers[signal.column]
        if signal.kind == "missing":
            return np.isnan(number).astype(np.float64)
        return _flags(number, number <= (signal.limit if signal.limit is not None else np.nan))


def _has_none(values: NDArray[np.str_] | Floats) -> bool:
    """Whether a column has no value in any row."""
    return bool(np.all(values == "") if values.dtype.kind == "U" else np.all(np.isnan(np.asarray(values, np.float64))))


def observation_row(observation: Observation) -> dict[str, object]:
    """An observation as a flat row: its fields, and ``probability.<finding>``, ``ms.<stage>``, ``embedding.<i>``…"""
    names = [name for name in Observation.__dataclass_fields__ if name not in _NOT_FLAT]
    row: dict[str, object] = {name: getattr(observation, name) for name in names}
    row["gate_reason"] = observation.gate_reasons[0] if observation.gate_reasons else ""
    row["sender"] = observation.senders[0] if observation.senders else ""
    for prefix, values in (
        ("probability", observation.probabilities),
        ("decision", observation.decisions),
        ("ms", observation.ms),
    ):
        row.update({f"{prefix}.{name}": value for name, value in values.items()})
    row.update({f"embedding.{i}": value for i, value in enumerate(observation.embedding)})
    return row


_NOT_FLAT = {"reasons", "gate_reasons", "gate_measures", "senders", "probabilities", "decisions", "ms", "embedding"}


def is_of_a_source(signal: Signal) -> bool:
    """Whether a signal is the share of studies that come from one source."""
    return signal.family == SOURCE and signal.kind == "share"


def _signal(name: str, family: str, column: str, kind: Kind, *, limit: float | None = None) -> Signal:
    group = {"location": "location", "given_others": "location", "prevalence": "prevalence"}.get(kind, "tail")
    return Signal(name=name, family=family, column=column, kind=kind, group=group, limit=limit)


def _limits(values: Floats, least: int) -> list[float]:
    """The values at the quantiles, each that splits the baseline in another way, once."""
    if len(values) < min(least, _KNOTS) / 2:
        return []
    found: dict[float, float] = {}
    for quantile in _QUANTILES:
        limit = float(values[min(int(quantile * len(values)), len(values) - 1)])
        share = round(float((values <= limit).mean()), 3)
        if share < 0.995:
            found.setdefault(share, limit)
    return list(found.values())


def _flags(values: Floats, yes: NDArray[np.bool_]) -> Floats:
    return np.where(np.isnan(values), np.nan, yes.astype(np.float64))


def _odds(probabilities: Floats) -> Floats:
    clipped = np.clip(probabilities, 1e-6, 1 - 1e-6)
    return np.asarray(clipped / (1 - clipped))


def _baseline_odds(probabilities: Floats) -> float:
    """Odds of the prevalence at which the baseline's probabilities are right on average (their mean)."""
    present = probabilities[~np.isnan(probabilities)]
    mean = float(np.clip(present.mean(), 1e-4, 1 - 1e-4)) if len(present) else 0.5
    return mean / (1 - mean)
