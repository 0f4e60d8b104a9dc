"""The Evidently page for people: the latest studies beside the baseline. Made in a process of its own, never in the
sidecar's: ``python -m stepwatch snapshot``.

Evidently's own limits flag some column of almost every small window. Here the distances are pinned (normed Wasserstein
for numbers, Jensen–Shannon for categories), and what counts as far is, for each column, what windows of the same size
drawn from the baseline itself, in blocks as they came, stay below. It is a picture to look at; alarms come from the
detectors.
"""

from __future__ import annotations

import html
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray
from stepwedge.observation import Observation

from stepwatch.errors import WatchError
from stepwatch.logs import where
from stepwatch.signals import observation_row

Floats = NDArray[np.float64]
Column = list[float] | list[str]

_LEAST_ROWS = 50
_MOST_ROWS = 2000  # of each side that are drawn
_MOST_COLUMNS = 40
_MOST_LEVELS = 20  # of a category; rarer ones are drawn together
_MOST_BYTES = 12_000_000
_WINDOWS = 200  # drawn from the baseline for each limit
_BLOCK = 10  # consecutive studies drawn together
_TAIL = 1.1  # on the largest of those windows: stands in for a rarer one
_LEAST_DISTANCE = 0.05
_DIGITS = 9  # significant ones of the largest number of a column
_MISSING, _OTHER = "(missing)", "(other)"

NUMBERS = (
    "age_years", "exposure", "kvp", "pixel_spacing", "rows", "columns", "pixel_mean", "pixel_sd", "pixel_p01",
    "pixel_p50", "pixel_p99", "pixel_low_share", "pixel_high_share", "pixel_entropy", "pixel_sharpness",
    "tamper_measure",
)  # fmt: skip
# None of these names a person, a study or a machine. Sender and station do, or could.
LEVELS = (
    "state", "gate", "gate_reason", "tamper", "modality", "body_part", "view_position", "sex", "manufacturer",
    "scanner", "transfer_syntax", "photometric", "bits_stored",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What is drawn: columns that both sides have, and which had to be left out."""

    baseline: Mapping[str, Column]
    present: Mapping[str, Column]
    numbers: tuple[str, ...]
    levels: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]  # column, why
    limits: Mapping[str, float]  # distance beyond which a column is called drifted


def start_page(
    baseline: Path,
    rows: Path,
    out: Path,
    *,
    timeout_seconds: float,
) -> subprocess.Popen[bytes]:
    """Start drawing a page in a process of its own, at low priority, that ends itself after the timeout.

    ``baseline`` and ``rows`` are Parquet files of observations; ``rows`` may also hold a line of JSON for each. The
    page appears at ``out`` when it is complete, and not before. The caller polls the process: 0 is a page.
    """
    command = [
        sys.executable, "-m", "stepwatch", "snapshot", "--baseline", str(baseline), "--rows", str(rows),
        "--out", str(out), "--timeout", str(timeout_seconds),
    ]  # fmt: skip
    environment = {**os.environ, "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(  # noqa: S603 - our own program, no shell
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
    )


def draw_page(baseline: Path, rows: Path, out: Path) -> Prepared:
    """Draw the page, in this process; call it in one of its own.

    Raises
    ------
    WatchError
        If either side cannot be read or has too few studies, Evidently cannot draw them, or the page would be too
        large.
    """
    os.environ["DO_NOT_TRACK"] = "1"
    prepared = prepare(read_observations(baseline), read_observations(rows))
    page = _draw(prepared)
    if len(page.encode()) > _MOST_BYTES:
        raise WatchError(f"the page would have {len(page)} characters, more than {_MOST_BYTES}; nothing was written")
    beside = out.with_name(f".{out.name}.part")
    beside.write_text(page, encoding="utf-8")
    beside.replace(out)
    return prepared


def read_observations(file: Path) -> list[dict[str, object]]:
    """Flat rows of a file of observations, oldest first. Raises WatchError."""
    try:
        if file.suffix == ".parquet":
            found = [Observation.from_row(row) for row in pyarrow.parquet.read_table(file).to_pylist()]
        else:
            found = [Observation.from_json(line) for line in file.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise WatchError(f"{file}: cannot be read: {error}") from None
    except (ValueError, TypeError, AttributeError):
        raise WatchError(f"{file}: holds what is no observation of this version") from None
    return [observation_row(observation) for observation in sorted(found, key=lambda row: row.time)]


def prepare(baseline: Sequence[Mapping[str, object]], present: Sequence[Mapping[str, object]]) -> Prepared:
    """Choose columns, bound them, and set each one's limit. Raises WatchError for fewer than 50 studies."""
    for name, side in (("baseline", baseline), ("latest rows", present)):
        if len(side) < _LEAST_ROWS:
            raise WatchError(f"the {name} have {len(side)} studies; a page needs at least {_LEAST_ROWS}")
    baseline, present = baseline[-_MOST_ROWS:], present[-_MOST_ROWS:]
    names = {name for row in (*baseline, *present) for name in row}
    numbers = [*NUMBERS, *sorted(name for name in names if name.startswith("probability."))]
    levels = [*LEVELS, *sorted(name for name in names if name.startswith("decision."))]
    left_out: list[tuple[str, str]] = []
    kept: dict[str, tuple[Column, Column]] = {}
    limits: dict[str, float] = {}
    for name in numbers:
        before, now = _numbers(baseline, name), _numbers(present, name)
        if np.isnan(before).all() or np.isnan(now).all():
            why = [side for side, values in (("baseline", before), ("latest", now)) if np.isnan(values).all()]
            left_out.append((name, f"no value in {' and '.join(why)}"))
        elif np.nanmax(before) == np.nanmin(before) == np.nanmax(now) == np.nanmin(now):
            left_out.append((name, f"the same everywhere: {np.nanmax(now):g}"))
        elif np.nanmax(before) == np.nanmin(before):
            left_out.append((name, f"always {np.nanmax(before):g} in the baseline, and no longer"))
        else:
            kept[name] = (before.tolist(), now.tolist())
    for name in levels:
        said, says = _levels(baseline, name), _levels(present, name)
        common = _common(said)
        said = [level if level in common else _OTHER for level in said]
        says = [level if level in common else _OTHER for level in says]
        if len({*said, *says}) == 1:
            left_out.append((name, f"the same everywhere: {says[0]}"))
        else:
            kept[name] = (said, says)
    dropped = list(kept)[_MOST_COLUMNS:]
    left_out += [(name, "more columns than a page holds") for name in dropped]
    drawn = {name: kept[name] for name in list(kept)[:_MOST_COLUMNS]}
    size = len(present)
    for name, (before_, _) in drawn.items():
        limits[name] = limit_of(before_, size)
    return Prepared(
        baseline={name: before for name, (before, _) in drawn.items()},
        present={name: now for name, (_, now) in drawn.items()},
        numbers=tuple(name for name in drawn if name in numbers),
        levels=tuple(name for name in drawn if name in levels),
        left_out=tuple(left_out),
        limits=limits,
    )


def drifted(prepared: Prepared) -> list[tuple[str, float]]:
    """Columns beyond their limit with their distances, farthest first."""
    found = []
    for name, limit in prepared.limits.items():
        before, now = np.array(prepared.baseline[name]), np.array(prepared.present[name])
        distance = number_distance(before, now) if name in prepared.numbers else level_distance(before, now)
        if distance > limit:
            found.append((name, distance))
    return sorted(found, key=lambda item: -item[1])


def limit_of(baseline: Column, size: int) -> float:
    """Distance that a window of ``size`` studies stays below while nothing has changed.

    Window and baseline are both drawn anew from the baseline, since both are samples: in blocks of consecutive studies,
    so that what comes in runs, as studies of one day do, is drawn in runs. The largest of 200 such distances is taken,
    and a tenth more.
    """
    generator = np.random.default_rng(20_090_401)
    values = np.array(baseline)
    far = level_distance if isinstance(baseline[0], str) else number_distance
    largest = 0.0
    for _ in range(_WINDOWS):
        again, window = (values[_blocks(len(values), wanted, generator)] for wanted in (len(values), size))
        largest = max(largest, far(again, window))
    return max(_LEAST_DISTANCE, _TAIL * largest)


def _blocks(count: int, wanted: int, generator: np.random.Generator) -> NDArray[np.int64]:
    starts = generator.integers(0, count, size=math.ceil(wanted / _BLOCK))
    return ((starts[:, None] + np.arange(_BLOCK)) % count).reshape(-1)[:wanted]


def number_distance(before: Floats, now: Floats) -> float:
    """Wasserstein distance over the baseline's standard deviation, as Evidently's ``wasserstein``."""
    before, now = np.sort(before[~np.isnan(before)]), np.sort(now[~np.isnan(now)])
    if not len(before) or not len(now):
        return math.inf
    every = np.sort(np.concatenate([before, now]))
    widths = np.diff(every)
    shares = (np.searchsorted(side, every[:-1], "right") / len(side) for side in (before, now))
    first, second = shares
    return float(np.sum(np.abs(first - second) * widths) / max(float(np.std(before)), 0.001))


def level_distance(before: NDArray[np.str_], now: NDArray[np.str_]) -> float:
    """Jensen–Shannon distance with natural logarithms, as Evidently's ``jensenshannon``."""
    names = np.unique(np.concatenate([before, now]))
    p, q = (np.array([np.mean(side == name) for name in names]) for side in (before, now))
    middle = (p + q) / 2
    parts = (float(np.sum(side[side > 0] * np.log(side[side > 0] / middle[side > 0]))) for side in (p, q))
    return math.sqrt(max(0.0, sum(parts) / 2))


def _numbers(rows: Sequence[Mapping[str, object]], name: str) -> Floats:
    values = [row.get(name) for row in rows]
    read = np.array([float(v) if isinstance(v, int | float) else math.nan for v in values])
    read = np.where(np.isfinite(read), read, math.nan)
    largest = np.max(np.abs(read), initial=0.0, where=np.isfinite(read))
    # Equal but for the last bits is equal: no histogram can be drawn of such differences.
    return np.round(read, _DIGITS - math.ceil(math.log10(largest))) if largest > 0 else read


def _levels(rows: Sequence[Mapping[str, object]], name: str) -> list[str]:
    return [str(row.get(name) or _MISSING)[:64] for row in rows]


def _common(levels: Sequence[str]) -> set[str]:
    """Levels that the baseline has often. A level of its own in the present counts among the others."""
    names, counts = np.unique(levels, return_counts=True)
    return {str(name) for name in names[np.argsort(-counts)][:_MOST_LEVELS]}


def _draw(prepared: Prepared) -> str:
    import pandas as pd
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    definition = DataDefinition(
        numerical_columns=list(prepared.numbers), categorical_columns=list(prepared.levels), text_columns=[]
    )
    sides: list[Any] = [
        Dataset.from_pandas(pd.DataFrame(side), data_definition=definition)
        for side in (prepared.present, prepared.baseline)
    ]
    metrics = [
        ValueDrift(
            column=name,
            method="wasserstein" if name in prepared.numbers else "jensenshannon",
            threshold=prepared.limits[name],
        )
        for name in (*prepared.numbers, *prepared.levels)
    ]
    try:
        page: str = Report(metrics).run(*sides).get_html_str(as_iframe=False)
    except Exception as error:  # noqa: BLE001 - whatever a page cannot be drawn of; its text may quote values
        raise WatchError(f"Evidently cannot draw these studies ({type(error).__name__} at {where(error)})") from None
    return page.replace("<body>", f"<body>{_introduction(prepared)}", 1)


def _introduction(prepared: Prepared) -> str:
    present, baseline = (len(next(iter(side.values()), [])) for side in (prepared.present, prepared.baseline))
    beyond = "".join(
        f"<li>{html.escape(name)}: distance {distance:.2f}, limit {prepared.limits[name]:.2f}</li>"
        for name, distance in drifted(prepared)
    )
    left_out = "".join(f"<li>{html.escape(name)}: {html.escape(why)}</li>" for name, why in prepared.left_out)
    return (
        '<div style="font:14px sans-serif;max-width:60em;margin:1.5em auto;padding:0 1em">'
        f"<h1>The latest {present} studies beside {baseline} of the baseline</h1>"
        "<p>A picture to look at, not an alarm: alarms are on the status page. A column is called drifted beyond what "
        "windows of this size, drawn from the baseline itself, reach. “Reference” is the baseline, “current” are the "
        "latest studies.</p>"
        + (f"<p>Beyond their limits:</p><ul>{beyond}</ul>" if beyond else "<p>No column is beyond its limit.</p>")
        + (f"<p>Left out:</p><ul>{left_out}</ul>" if left_out else "")
        + "</div>"
    )
