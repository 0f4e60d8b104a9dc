"""What a stream is like while nothing has changed: levels, and how far they wander by themselves.

The level of a signal on one day is taken for the sum of a slow part, an effect of the week and an effect of the day.
Their variances come from products of pairs of studies of one day, one week and one longer block (a method of moments
for nested random effects, on the scale of the level). Between days and weeks the detectors filter the effects out;
the slow part, which they cannot, becomes a band.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray
from stepwedge.observation import Observation

from stepwatch.config import WatchConfig
from stepwatch.detectors import Floats, Ordinary
from stepwatch.errors import WatchError
from stepwatch.signals import LABELS, Encoder, Signal, observation_row
from stepwatch.streams import Table, day_of, table_of, weeks

# Widths of the band, in standard deviations: of the slow part, and of the uncertainty of the baseline's own level.
_SLOW_WIDTH = 4.0
_UNCERTAIN_WIDTH = 1.0
_BLOCKS = 12  # that the baseline is cut into for the slow part
_LEAST_BLOCK_WEEKS = 2
# A baseline of fewer weeks says little of its own wandering: then at least this much is taken for ordinary.
_ENOUGH_WEEKS = 8
_ASSUMED_DAYS = 0.1**2  # variance between days, in the level's unit
_ASSUMED_SLOW = 0.1**2
# Levels that the baseline has hardly a study of tell nothing of how they wander.
_LEAST_INFORMATION = 15.0  # studies, each way
_MOST_DAYS, _MOST_WEEKS, _MOST_SLOW = 4.0, 2.0, 1.0  # largest variances believed
_STOP_SHARE = 0.1  # of a level's usual share: a day below it was a stop, and tells nothing of ordinary days
_STOP_STUDIES = 20  # of a day, at least, to be taken for a stop


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A fitted baseline."""

    encoder: Encoder
    ordinary: Mapping[str, Ordinary]  # by group of signals
    studies: int
    days: int
    events: tuple[str, ...] = ()  # stops in the baseline itself, which were left out
    warnings: tuple[str, ...] = ()  # what it cannot support, for people
    model: str = ""  # name and version, where it is a package's


def fit_baseline(table: Table, config: WatchConfig, *, model: str = "") -> Baseline:
    """Fit on the rows of a baseline, in the order of time.

    Raises
    ------
    WatchError
        If there are too few rows.
    """
    if len(table) < config.least_baseline:
        raise WatchError(
            f"the baseline has {len(table)} studies, and at least {config.least_baseline} are needed to judge any "
            "signal; give it more, or lower least_baseline knowing that small changes then go unseen"
        )
    encoder = Encoder(table, config)
    if not encoder.strata:
        largest = max(encoder.counts.items(), key=lambda item: item[1])
        raise WatchError(
            f"no stratum of the baseline has {config.least_baseline} studies; the largest, {largest[0]}, has "
            f"{largest[1]}. Give the baseline more studies"
        )
    encoded = encoder.encode(table)
    week = weeks(table.days)
    length = max(_LEAST_BLOCK_WEEKS, round((week[-1] - week[0] + 1) / _BLOCKS))
    block = (week - week[0]) // length
    few_weeks = len(np.unique(week)) < _ENOUGH_WEEKS
    ordinary, events = {}, []
    for group, signals in encoder.groups.items():
        rows = encoded.asked[group]
        values, days = encoded.values[group][rows], table.days[rows]
        if group == LABELS:
            zeros = np.zeros(len(signals))
            ordinary[group] = Ordinary(level=zeros, band=zeros, between_days=zeros, between_weeks=zeros)
            continue
        for column, signal in enumerate(signals):
            if signal.kind == "share":
                stops = _stops(values[:, column], days)
                values[np.isin(days, stops), column] = np.nan
                events += [f"{day_of(day)}: {signal.name} stopped" for day in stops]
        scores, information, level = _scores(values, signals, encoder)
        keys = (days, week[rows], block[rows])
        ordinary[group] = _ordinary(scores, information, level, keys, signals, few_weeks=few_weeks)
    small = [f"{name} ({n})" for name, n in encoder.counts.items() if n < config.least_baseline]
    warnings = [f"too few studies to judge: {', '.join(small)}"] if small else []
    if encoder.absent:
        warnings.append(
            f"the baseline says nothing of {', '.join(encoder.absent)}: not watched, until a baseline has it (the "
            "site's own, from `stepwedge policy fit`)"
        )
    if few_weeks:
        warnings.append(
            f"the baseline has {len(np.unique(week))} weeks, fewer than {_ENOUGH_WEEKS}: how far signals wander by "
            "themselves is assumed, and small changes may go unseen or be taken for ordinary"
        )
    return Baseline(
        encoder=encoder,
        ordinary=ordinary,
        studies=len(table),
        days=len(np.unique(table.days)),
        events=tuple(events),
        warnings=tuple(warnings),
        model=model,
    )


def load_baseline(package: Path, config: WatchConfig) -> Baseline:
    """The baseline of a model package, or of a folder that holds a ``baseline.parquet`` of a site's own.

    Raises
    ------
    WatchError
        If it cannot be read, holds observations of several models or of a later version, or is too small.
    """
    file = package / "baseline.parquet"
    try:
        rows = pyarrow.parquet.read_table(file).to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise WatchError(f"{file}: the baseline cannot be read: {error}") from None
    observations = []
    for row in rows:
        try:
            observations.append(Observation.from_row(row))
        except (TypeError, ValueError) as error:
            raise WatchError(f"{file}: holds what is no observation: {error}") from None
    models = {f"{observation.model_name} {observation.model_version}" for observation in observations}
    if len(models) > 1:
        raise WatchError(f"{file}: holds observations of {', '.join(sorted(models))}; a baseline is of one model")
    pairs = [(observation_row(o), datetime.fromisoformat(o.time)) for o in observations]
    pairs.sort(key=lambda pair: pair[1])
    if not pairs:
        raise WatchError(f"{file}: holds no observation")
    return fit_baseline(table_of(pairs, config), config, model=models.pop())


def _stops(values: Floats, days: NDArray[np.int64]) -> list[int]:
    """Days on which a level that usually is common was next to absent."""
    usual = float(np.nanmean(values)) if len(values) else 0.0
    if usual * _STOP_STUDIES < 5:
        return []
    names, index = np.unique(days, return_inverse=True)
    count = np.bincount(index, ~np.isnan(values))
    share = np.bincount(index, np.nan_to_num(values)) / np.maximum(count, 1)
    return [int(day) for day in names[(count >= _STOP_STUDIES) & (share < _STOP_SHARE * usual)]]


def _scores(values: Floats, signals: tuple[Signal, ...], encoder: Encoder) -> tuple[Floats, Floats, Floats]:
    """Slopes of the log likelihood at the baseline's level (n, signals), information of one study, and the level."""
    there = ~np.isnan(values)
    count = there.sum(axis=0)
    if signals[0].kind in ("location", "given_others"):
        return values, np.ones(len(signals)), np.zeros(len(signals))
    if signals[0].kind == "prevalence":
        prevalence = np.array([encoder.prevalence_of(signal.column) for signal in signals])
        posterior = prevalence * values / (1 + prevalence * (values - 1))
        scores = posterior - prevalence
        information = np.nan_to_num(np.nansum(scores**2, axis=0) / np.maximum(count, 1), nan=1.0)
        return scores, np.maximum(information, 1e-6), np.log(prevalence / (1 - prevalence))
    share = (np.nansum(values, axis=0) + 0.5) / (count + 1)
    return values - share, share * (1 - share), np.log(share / (1 - share))


def _ordinary(
    scores: Floats,
    information: Floats,
    level: Floats,
    keys: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    signals: tuple[Signal, ...],
    *,
    few_weeks: bool,
) -> Ordinary:
    there = (~np.isnan(scores)).astype(np.float64)
    zeroed = np.nan_to_num(scores)
    products, pairs, squares = [], [], []
    for key in keys:
        starts = np.flatnonzero(np.diff(key, prepend=key[:1] - 1)) if len(key) else np.zeros(0, int)
        sums, counts = np.add.reduceat(zeroed, starts), np.add.reduceat(there, starts)
        own = np.add.reduceat(zeroed**2, starts)
        products.append((sums**2 - own).sum(axis=0))
        pairs.append((counts * (counts - 1)).sum(axis=0))
        squares.append((counts**2).sum(axis=0))
    # Mean product of two studies' scores: of one day it holds all three variances, of one block mostly the slow one.
    with np.errstate(invalid="ignore", divide="ignore"):
        day, week, block = (
            np.nan_to_num(p / n / information**2, posinf=0.0, neginf=0.0) for p, n in zip(products, pairs, strict=True)
        )
        in_week, in_block, weeks_in_block = (
            np.nan_to_num(a / b) for a, b in ((pairs[0], pairs[1]), (pairs[0], pairs[2]), (pairs[1], pairs[2]))
        )
        between_days = np.clip(np.nan_to_num((day - week) / (1 - in_week)), 0, _MOST_DAYS)
        rest_week, rest_block = week - between_days * in_week, block - between_days * in_block
        between_weeks = np.clip(np.nan_to_num((rest_week - rest_block) / (1 - weeks_in_block)), 0, _MOST_WEEKS)
        slow = rest_block - between_weeks * weeks_in_block
        # Chance alone makes blocks differ. Only what is beyond it is taken for wandering.
        blocks = max(len(np.unique(keys[2])), 2)
        a_block = np.maximum(there.sum(axis=0), 1.0) / blocks * information
        days, several = len(np.unique(keys[0])) / blocks, len(np.unique(keys[1])) / blocks
        chance = (1 / a_block + between_days / days + between_weeks / several) * np.sqrt(2 / blocks)
        slow = np.clip(np.nan_to_num(slow - chance), 0, _MOST_SLOW)
    if few_weeks:
        between_days = np.maximum(between_days, _ASSUMED_DAYS)
        slow = np.maximum(slow, _ASSUMED_SLOW)
    count = np.maximum(there.sum(axis=0), 1.0)
    rare = count * information < _LEAST_INFORMATION
    between_days, between_weeks, slow = (np.where(rare, 0.0, v) for v in (between_days, between_weeks, slow))
    slow = _pooled(slow, signals)
    parts = zip((between_days, between_weeks, slow), squares, strict=True)
    error = 1 / (count * information) + sum(variance * square / count**2 for variance, square in parts)
    return Ordinary(
        level=level,
        band=_SLOW_WIDTH * np.sqrt(slow) + _UNCERTAIN_WIDTH * np.sqrt(error),
        between_days=between_days,
        between_weeks=between_weeks,
    )


def _pooled(slow: Floats, signals: tuple[Signal, ...]) -> Floats:
    """The slow variance; of limits of one number at least their mean: they wander together."""
    columns = [s.column if s.kind in ("below", "tail") else f"{s.name} alone" for s in signals]
    means = {key: slow[[k == key for k in columns]].mean() for key in set(columns)}
    return np.array([max(own, means[key]) for own, key in zip(slow, columns, strict=True)])
