"""A stream of studies as columns: read from Parquet or CSV, cut to a stretch, one row a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from stepwatch.config import Stretch, WatchConfig
from stepwatch.errors import WatchError

_EPOCH_MONDAY = date(1970, 1, 5)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of a stream. Numbers are NaN, and categories "", where there is none."""

    numbers: Mapping[str, NDArray[np.float64]]
    levels: Mapping[str, NDArray[np.str_]]
    days: NDArray[np.int64]  # days since the epoch
    times: tuple[str, ...]  # ISO 8601
    rows: NDArray[np.int64]  # of the stream that they were read from, counted from 0

    def __len__(self) -> int:
        return len(self.days)

    def part(self, chosen: NDArray[Any] | slice) -> Table:
        """Some of the rows, by mask, indexes or slice."""
        index = np.arange(len(self))[chosen]
        return Table(
            numbers={name: values[index] for name, values in self.numbers.items()},
            levels={name: values[index] for name, values in self.levels.items()},
            days=self.days[index],
            times=tuple(self.times[i] for i in index),
            rows=self.rows[index],
        )


def weeks(days: NDArray[np.int64]) -> NDArray[np.int64]:
    """The number of each day's week; weeks begin on Mondays."""
    return (days - (_EPOCH_MONDAY - date(1970, 1, 1)).days) // 7


def day_of(number: int) -> date:
    """The day of a number of days since the epoch."""
    return date(1970, 1, 1) + timedelta(days=int(number))


def read_table(file: Path, config: WatchConfig, stretch: Stretch) -> Table:
    """Read a stretch of a file. Rows keep their order, which must be that of time.

    Raises
    ------
    WatchError
        If the file cannot be read, lacks a column, has times that are none, or goes back in time.
    """
    columns = config.columns()
    try:
        read = pyarrow.csv.read_csv if file.suffix.lower() == ".csv" else pyarrow.parquet.read_table
        table = read(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise WatchError(f"{file}: cannot be read as {file.suffix or 'Parquet'}: {error}") from None
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise WatchError(
            f"{file}: has no column {', '.join(missing)}; it has {', '.join(table.column_names)}. Name the right ones "
            "in the configuration"
        )
    table = table.select(list(columns)).append_column("", pa.array(np.arange(table.num_rows)))
    try:
        found = table[config.time]
        if pa.types.is_timestamp(found.type) and found.type.tz is not None:
            # Days are those of the place: a study at midnight belongs to its own day there.
            found = pc.local_timestamp(found)
        times = pc.cast(found, pa.timestamp("us"))
    except pa.ArrowInvalid as error:
        raise WatchError(f"{file}: {config.time} holds what is no time: {error}") from None
    if times.null_count:
        raise WatchError(f"{file}: {config.time} is empty in {times.null_count} rows; each row needs a time")
    moments = times.to_numpy()
    days = moments.astype("datetime64[D]").astype(np.int64)
    kept = np.ones(len(days), bool)
    if stretch.first is not None:
        kept &= days >= (stretch.first - date(1970, 1, 1)).days
    if stretch.last is not None:
        kept &= days <= (stretch.last - date(1970, 1, 1)).days
    if (np.diff(days[kept]) < 0).any():
        raise WatchError(f"{file}: the rows are not in the order of {config.time}; sort them by it")
    if config.study is not None:
        ids = pc.dictionary_encode(table[config.study]).combine_chunks().indices.to_numpy(zero_copy_only=False)
        first = np.zeros(len(ids), bool)
        first[np.unique(ids, return_index=True)[1]] = True
        kept &= first
    chosen = np.flatnonzero(kept)
    table = table.take(pa.array(chosen))
    numeric, categories = columns_by_kind(config)
    return Table(
        numbers={name: _numbers(table[name], name, file) for name in sorted(numeric)},
        levels={name: _levels(table[name]) for name in sorted(categories)},
        days=days[chosen],
        times=tuple(str(moment)[:19] for moment in moments[chosen].astype("datetime64[s]")),
        rows=table[""].to_numpy(),
    )


def one_row(row: Mapping[str, object], when: datetime, config: WatchConfig, number: int) -> Table:
    """A table of one row. What is missing, or not of the kind that the configuration says, counts as missing."""
    numeric, categories = columns_by_kind(config)
    return Table(
        numbers={name: np.array([_number(row.get(name))]) for name in numeric},
        levels={name: np.array([_level(row.get(name))]) for name in categories},
        days=np.array([(when.date() - date(1970, 1, 1)).days]),
        times=(when.isoformat(timespec="seconds"),),
        rows=np.array([number]),
    )


def table_of(rows: Sequence[tuple[Mapping[str, object], datetime]], config: WatchConfig) -> Table:
    """A table of rows, in their order."""
    parts = [one_row(row, when, config, number) for number, (row, when) in enumerate(rows)]
    if not parts:
        raise WatchError("no rows to make a table of")
    return Table(
        numbers={name: np.concatenate([part.numbers[name] for part in parts]) for name in parts[0].numbers},
        levels={name: np.concatenate([part.levels[name] for part in parts]) for name in parts[0].levels},
        days=np.concatenate([part.days for part in parts]),
        times=tuple(part.times[0] for part in parts),
        rows=np.concatenate([part.rows for part in parts]),
    )


def columns_by_kind(config: WatchConfig) -> tuple[set[str], set[str]]:
    """The columns of numbers, and those of categories."""
    numeric = {c for family in config.families.values() for c in (*family.numbers, *family.probabilities)}
    numeric |= {name for pair in config.labels for name in (pair.probability, pair.label)}
    categories = {c for family in config.families.values() for c in family.levels}
    return numeric, categories | ({config.source} if config.source else set())


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        return np.nan
    return float(value)


def _level(value: object) -> str:
    return "" if value is None else str(value)


def _numbers(column: Any, name: str, file: Path) -> NDArray[np.float64]:
    try:
        values = pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
    except pa.ArrowInvalid:
        raise WatchError(f"{file}: {name} is declared as numbers and holds something else") from None
    values[~np.isfinite(values)] = np.nan
    return np.asarray(values)


def _levels(column: Any) -> NDArray[np.str_]:
    return np.array([_level(value) for value in column.to_pylist()], dtype=np.str_)
