"""How soon a change is noticed, how rarely nothing is, and whether it is named right: ``make bench-drift``.

One configuration of the detectors for every row, beside windows of 200 studies judged by Kolmogorov–Smirnov tests
(Bonferroni, Benjamini–Hochberg) and by Evidently's preset, and beside river's ADWIN, KSWIN and Page–Hinkley. Simulated
streams come from ``tests/drifting.py``; the real one is that of PadChest's headers in ``../shared``. Prints tables, and
JSON as its last line.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import false_discovery_control, ks_2samp

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS)]

from drifting import APART, CONFIG, PIXELS, WIDER, Change, stream  # noqa: E402 - after the path to it
from labelling import FINDING, cases_of, labels_of  # noqa: E402
from stepwatch.alarms import Alarm  # noqa: E402
from stepwatch.baseline import Baseline, fit_baseline  # noqa: E402
from stepwatch.config import WatchConfig, read_config  # noqa: E402
from stepwatch.measures import Costs  # noqa: E402
from stepwatch.monitor import Monitor  # noqa: E402
from stepwatch.performance import Terms, performance  # noqa: E402
from stepwatch.streams import Table, day_of, read_table  # noqa: E402

SHARED = Path(os.environ.get("STEPWEDGE_SHARED", TESTS.parents[1] / "shared"))
BASELINE = 5000  # studies
WINDOW = 200
CALM = 800  # studies before a change
LONGEST = 4000  # studies after it
PADCHEST = TESTS.parent / "monitoring" / "examples" / "padchest.yaml"
STOPS = ((date(2011, 6, 30), date(2011, 8, 8)), (date(2011, 10, 10), date(2011, 10, 17)))
STOPPED = "ImagingDynamicsCompanyLtd"

GOALS = {"bright": 250, "new_tag": 20, "hidden": 400, "prevalence": 600, "concept": 1000}
FAMILY = {"bright": "pixels", "new_tag": "source", "hidden": "pixels", "prevalence": "prediction", "concept": "labels"}
KINDS = {"prevalence": "prevalence", "bright": "acquisition", "population": "population", "mixed": "mixed"}
KIND_GOALS = {"prevalence": 0.95, "bright": 0.97, "population": 0.97, "mixed": 0.90}
EVIDENTLY_WINDOWS = 15  # each takes seconds


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a table: a figure with its 95 % interval."""

    what: str
    value: float
    low: float
    high: float
    n: int
    goal: str = ""
    note: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=24, help="streams for each change")
    parser.add_argument("--calm", type=int, default=400_000, help="studies without a change")
    parser.add_argument("--quick", action="store_true", help="leave out what others' tools say")
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    tables: dict[str, list[Line]] = {}
    tables["Nothing changed: alarms in 1,000 windows of 200 studies"] = false_alarms(options.calm, options.quick)
    delays, named = change_delays(options.runs)
    tables["Studies from a change to its alarm (median)"] = delays
    tables["Signal named right (share of alarms)"] = named
    tables["Kind of shift right, from 500 studies"] = kinds(options.runs * 4)
    if not options.quick:
        tables["The same changes, by others: studies to the first alarm (median)"] = others_delays(options.runs)
    real = SHARED / "data" / "padchest" / "stream_2009_2013.parquet"
    if real.is_file():
        tables["PadChest's headers, 2010-04 to 2013-12, five orders within days"] = padchest(real)
    tables["Cost"] = cost()
    for title, lines in tables.items():
        print(f"\n{title}")
        for line in lines:
            print(
                f"  {line.what:52s} {line.value:9.4g} ({line.low:.4g}–{line.high:.4g})  n {line.n:6d}  "
                f"{line.goal:8s} {line.note}"
            )
    seconds = time.perf_counter() - started
    print(f"\n{seconds:.0f} s")
    print(json.dumps({"tables": {t: [asdict(line) for line in lines] for t, lines in tables.items()}}))
    return 0


def fitted(seed: int, apart: float = APART) -> Baseline:
    """A baseline of the standard size."""
    return fit_baseline(stream(np.random.default_rng(seed), BASELINE, apart=apart), CONFIG)


def false_alarms(studies: int, quick: bool) -> list[Line]:
    """Alarms while nothing changes: fresh streams, and the days of one long stream drawn again in another order."""
    fresh, resampled, length = 0, 0, 20_000
    runs = max(studies // length, 1)
    for run in range(runs):
        base = fitted(1000 + run)
        table = stream(np.random.default_rng(2000 + run), length)
        watched = table if run % 2 else resample_days(table, np.random.default_rng(run))
        count = sum(alarm.cleared_row is None for _, alarm in Monitor.start(CONFIG, base).run(watched))
        fresh, resampled = (fresh + count, resampled) if run % 2 else (fresh, resampled + count)
    half = runs * length // 2 // WINDOW
    lines = [
        rate("Stepwedge, new streams", fresh, half, "≤ 1"),
        rate("Stepwedge, whole days drawn again", resampled, max(runs * length // WINDOW - half, 1), "≤ 1"),
    ]
    if quick:
        return lines
    windows = 300
    for name, judge in window_tests().items():
        reference = stream(np.random.default_rng(1), BASELINE)
        hits, done = 0, 0
        table = stream(np.random.default_rng(2), windows * WINDOW)
        count = EVIDENTLY_WINDOWS if name.startswith("Evidently") else windows
        for start in range(0, count * WINDOW, WINDOW):
            hits += judge(reference, table.part(slice(start, start + WINDOW)))
            done += 1
        lines.append(rate(name, hits, done, "≤ 1"))
    for name, detector in river_detectors().items():
        table = stream(np.random.default_rng(3), 20_000)
        lines.append(rate(name, river_alarms(detector, table), 20_000 // WINDOW, "≤ 1", "pixel_mean only"))
    return lines


def change_delays(runs: int) -> tuple[list[Line], list[Line]]:
    """Delays, and whether the alarm names a signal of what changed."""
    delays, named = [], []
    cases = [(kind, APART, "") for kind in GOALS] + [("prevalence", WIDER, ", a model of AUROC .95")]
    for kind, apart, note in cases:
        goal, found, right = GOALS[kind], [], []
        for run in range(runs):
            alarm = first_alarm(fitted(100 + run, apart), Change(kind=kind, at=CALM), 200 + run, apart)
            found.append(alarm.raised_count - CALM if alarm else LONGEST)
            if alarm is not None:
                right.append(alarm.family == FAMILY[kind])
        delays.append(median(kind + note, found, f"≤ {goal}"))
        named.append(share(f"{kind}{note}: family {FAMILY[kind]}", right, "≥ 0.98"))
    return delays, named


def first_alarm(base: Baseline, change: Change, seed: int, apart: float) -> Alarm | None:
    """The first alarm after a change; earlier ones are false and passed over."""
    table = stream(np.random.default_rng(seed), CALM + LONGEST, change, apart=apart)
    changes = Monitor.start(CONFIG, base).run(table)
    return next((a for i, a in changes if a.cleared_row is None and i >= CALM), None)


def kinds(runs: int) -> list[Line]:
    """The kind of shift as told from 500 studies after a change, whether or not there was an alarm."""
    lines = []
    for apart, note in ((APART, ""), (WIDER, ", AUROC .95")):
        bases = [fitted(300 + i, apart) for i in range(6)]
        for kind, wanted in (*KINDS.items(), ("none", "unknown")):
            told: Counter[str] = Counter()
            for run in range(runs):
                base = bases[run % len(bases)]
                monitor = Monitor.start(CONFIG, base)
                table = stream(np.random.default_rng(400 + run), 500, Change(kind=kind, at=0), apart=apart)
                for _ in monitor.run(table):
                    pass
                told[monitor.kind_of_shift(500)] += 1
            right = [True] * told[wanted] + [False] * (runs - told[wanted])
            goal = f"≥ {KIND_GOALS[kind]}" if kind in KIND_GOALS else ""
            lines.append(share(f"{kind} → {wanted}{note}", right, goal, str(dict(told.most_common(3)))))
    return lines


# --- Others --------------------------------------------------------------------------------------------------------

WATCHED = ("age", "exposure", "kvp", "probability", *PIXELS)


def window_tests() -> dict[str, Callable[[Table, Table], bool]]:
    """Whether a window is told to have drifted."""

    def p_values(reference: Table, window: Table) -> np.ndarray:
        return np.array([ks_2samp(reference.numbers[n], window.numbers[n]).pvalue for n in WATCHED])

    tests: dict[str, Callable[[Table, Table], bool]] = {
        "KS, Bonferroni": lambda a, b: bool(p_values(a, b).min() < 0.05 / len(WATCHED)),
        "KS, Benjamini–Hochberg": lambda a, b: bool((false_discovery_control(p_values(a, b)) < 0.05).any()),
    }
    os.environ["DO_NOT_TRACK"] = "1"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pandas as pd
            from evidently import Report
            from evidently.presets import DataDriftPreset
    except ImportError:
        print("evidently is not installed; its rows are left out")
        return tests

    def preset(reference: Table, window: Table) -> bool:
        frames = [pd.DataFrame({n: table.numbers[n] for n in WATCHED}) for table in (window, reference)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = Report([DataDriftPreset()]).run(*frames).dict()
        return any(
            m["value"]["count"] > 0 for m in result["metrics"] if isinstance(m["value"], dict) and "count" in m["value"]
        )

    tests["Evidently, preset, any column"] = preset
    return tests


def river_detectors() -> dict[str, Callable[[], Any]]:
    """Detectors of one number."""
    try:
        from river import drift
    except ImportError:
        print("river is not installed; its rows are left out")
        return {}
    return {
        "river ADWIN": drift.ADWIN,
        "river KSWIN": lambda: drift.KSWIN(seed=1),
        "river Page–Hinkley": drift.PageHinkley,
    }


def river_alarms(make: Callable[[], Any], table: Table) -> int:
    """Drifts that a detector of river's tells on the mean grey level."""
    values = table.numbers["pixel_mean"]
    detector, count = make(), 0
    for value in values / values.std():
        detector.update(float(value))
        count += bool(detector.drift_detected)
    return count


def others_delays(runs: int) -> list[Line]:
    """Studies to the first window, or study, that tells of drift after a change; false ones before it do not count."""
    lines = []
    tests = {name: test for name, test in window_tests().items() if not name.startswith("Evidently")}
    for kind in ("bright", "hidden", "prevalence"):
        for name, judge in tests.items():
            found = []
            for run in range(min(runs, 8)):
                reference = stream(np.random.default_rng(100 + run), BASELINE)
                table = stream(np.random.default_rng(200 + run), LONGEST, Change(kind=kind, at=0))
                windows = range(0, LONGEST, WINDOW)
                hit = next((s for s in windows if judge(reference, table.part(slice(s, s + WINDOW)))), LONGEST - WINDOW)
                found.append(hit + WINDOW)
            lines.append(median(f"{kind}: {name}", found, ""))
    for name, make in river_detectors().items():
        found = []
        for run in range(min(runs, 8)):
            table = stream(np.random.default_rng(200 + run), 2000 + LONGEST, Change(kind="bright", at=2000))
            detector, hit = make(), LONGEST
            values = table.numbers["pixel_mean"] / table.numbers["pixel_mean"].std()
            for i, value in enumerate(values):
                detector.update(float(value))
                if i >= 2000 and detector.drift_detected:
                    hit = i - 2000
                    break
            found.append(hit)
        lines.append(median(f"bright: {name}", found, ""))
    return lines


# --- A real stream -------------------------------------------------------------------------------------------------


def padchest(file: Path) -> list[Line]:
    """The two stops, and alarms on other days."""
    config = read_config(PADCHEST)
    base = read_table(file, config, config.baseline)
    watched = read_table(file, config, config.watch)
    lines: list[Line] = []
    raised: dict[date, list[int]] = {start: [] for start, _ in STOPS}
    cleared: dict[date, list[int]] = {start: [] for start, _ in STOPS}
    early: list[int] = []
    late: list[int] = []
    events: list[int] = []
    for order in range(5):
        rng = np.random.default_rng(order)
        fit = fit_baseline(shuffled(base, rng), config)
        table = shuffled(watched, rng)
        alarms = final_alarms(Monitor.start(config, fit).run(table))
        out = outages(table)
        for start, end in STOPS:
            first = int(np.flatnonzero(table.days >= number(start))[0])
            back = int(np.flatnonzero((table.days >= number(end)) & (table.levels["manufacturer"] == STOPPED))[0])
            own = [a for a in alarms if a.family == "source" and first < a.raised_count <= back]
            raised[start].append(own[0].raised_count - first if own else 10_000)
            ended = own[0].cleared_count if own else None
            cleared[start].append(ended - back if ended is not None else 10_000)
        quarters: Counter[tuple[int, int]] = Counter()
        for alarm in alarms:
            day = day_of(int(table.days[alarm.raised_count - 1]))
            if number(day) not in out:
                quarters[day.year, (day.month + 2) // 3] += 1
                if order == 0:
                    note = f"{alarm.baseline_value:.3f} to {alarm.present_value:.3f}, {alarm.direction}, "
                    note += f"until {(alarm.cleared_time or 'the end')[:10]}"
                    lines.append(
                        Line(what=f"{day} {alarm.signal}", value=alarm.raised_count, low=0, high=0, n=1, note=note)
                    )
        events.append(sum(a.kind_of_alarm == "event" for a in alarms))
        calm = [(y, q) for y in range(2010, 2014) for q in range(1, 5) if (y, q) >= (2010, 2)]
        early.append(max(quarters[yq] for yq in calm if yq <= (2011, 2)))
        late.append(max(quarters[yq] for yq in calm if yq > (2011, 2)))
    figures = []
    for start, _ in STOPS:
        figures.append(median(f"stop of {start}: studies until it is named", raised[start], "≤ 45 each", worst=True))
        figures.append(median("  studies from its return until it is cleared", cleared[start], "≤ 20", worst=True))
    figures.append(median("alarms beyond outage days, worst quarter to 2011 Q2", early, "≤ 1", worst=True))
    figures.append(median("the same, worst quarter after", late, "≤ 2", worst=True))
    figures.append(median("stops of a day, shown as events", events, ""))
    return figures + lines


def shuffled(table: Table, rng: np.random.Generator) -> Table:
    """Another order within each day."""
    return table.part(np.lexsort((rng.random(len(table)), table.days)))


def outages(table: Table) -> set[int]:
    """Working days on which the manufacturer's share was below a tenth."""
    days, index = np.unique(table.days, return_inverse=True)
    usual = np.bincount(index, table.levels["manufacturer"] == STOPPED) / np.bincount(index)
    return {int(day) for day, part in zip(days, usual, strict=True) if part < 0.1 and day_of(day).weekday() < 5}


def final_alarms(changes: Iterable[tuple[int, Alarm]]) -> list[Alarm]:
    """Each alarm as it stood at the end."""
    return list({alarm.alarm: alarm for _, alarm in changes}.values())


def number(day: date) -> int:
    """Days since the epoch."""
    return (day - date(1970, 1, 1)).days


# --- Figures -------------------------------------------------------------------------------------------------------


def resample_days(table: Table, rng: np.random.Generator) -> Table:
    """Whole days drawn with replacement, each put where a day of the same weekday was."""
    days = np.unique(table.days)
    rows: list[np.ndarray] = []
    dates: list[np.ndarray] = []
    for day in days:
        drawn = rng.choice(days[(days - day) % 7 == 0])
        found = np.flatnonzero(table.days == drawn)
        rows.append(found)
        dates.append(np.full(len(found), day))
    part = table.part(np.concatenate(rows))
    return Table(
        numbers=part.numbers,
        levels=part.levels,
        days=np.concatenate(dates),
        times=part.times,
        rows=np.arange(len(part)),
    )


def cost() -> list[Line]:
    """Time of a study, and size of the state."""
    base = fitted(1)
    monitor = Monitor.start(CONFIG, base)
    table = stream(np.random.default_rng(2), 3000)
    started = time.process_time()
    for _ in monitor.run(table):
        pass
    took = (time.process_time() - started) / 3000 * 1000
    signals = sum(len(s) for s in base.encoder.groups.values())
    size = len(monitor.to_bytes()) / 1024
    cases, ill = cases_of(2000)
    labels = labels_of(cases, ill)
    terms = {FINDING: Terms(costs=Costs(miss=10, false_alarm=1, deferral=0.3), prevalence=0.15)}
    started = time.process_time()
    performance(cases, labels, [FINDING], terms)
    measured = (time.process_time() - started) * 1000
    return [
        Line(
            what="milliseconds of a processor a study",
            value=took,
            low=took,
            high=took,
            n=3000,
            goal="≤ 1",
            note=f"{signals} signals",
        ),
        Line(
            what="milliseconds of a processor for the performance of 2,000 labelled studies",
            value=measured,
            low=measured,
            high=measured,
            n=1,
            goal="≤ 1000",
        ),
        Line(what="state, KiB", value=size, low=size, high=size, n=1),
    ]


def rate(what: str, hits: int, windows: int, goal: str, note: str = "") -> Line:
    """Hits in 1,000 windows, with the exact Poisson interval."""
    from scipy.stats import chi2

    low = chi2.ppf(0.025, 2 * hits) / 2 if hits else 0.0
    high = chi2.ppf(0.975, 2 * (hits + 1)) / 2
    return Line(
        what=what,
        value=hits / windows * 1000,
        low=low / windows * 1000,
        high=high / windows * 1000,
        n=windows,
        goal=goal,
        note=note,
    )


def median(what: str, values: Sequence[int], goal: str, *, worst: bool = False) -> Line:
    """The median with the interval by order statistics; or the largest, with all values as a note."""
    ordered = np.sort(np.asarray(values, float))
    if worst:
        return Line(
            what=what, value=ordered[-1], low=ordered[0], high=ordered[-1], n=len(ordered), goal=goal, note="largest"
        )
    rng = np.random.default_rng(0)
    drawn = np.median(rng.choice(ordered, (2000, len(ordered))), axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Line(what=what, value=float(np.median(ordered)), low=float(low), high=float(high), n=len(ordered), goal=goal)


def share(what: str, right: Sequence[bool], goal: str, note: str = "") -> Line:
    """A share with Wilson's interval."""
    n, z = len(right), 1.959964
    p = float(np.mean(right)) if n else 0.0
    middle = (p + z * z / (2 * max(n, 1))) / (1 + z * z / max(n, 1))
    half = z / (1 + z * z / max(n, 1)) * np.sqrt(p * (1 - p) / max(n, 1) + z * z / (4 * max(n, 1) ** 2))
    return Line(
        what=what, value=p, low=max(middle - half, 0.0), high=min(middle + half, 1.0), n=n, goal=goal, note=note
    )


__all__ = ["WatchConfig", "main"]

if __name__ == "__main__":
    sys.exit(main())
