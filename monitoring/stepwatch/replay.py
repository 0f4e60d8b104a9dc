"""The same detectors over a recorded stream: what they would have said, and when."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwatch.alarms import Alarm
from stepwatch.baseline import Baseline, fit_baseline
from stepwatch.config import WatchConfig
from stepwatch.errors import WatchError
from stepwatch.monitor import Monitor
from stepwatch.streams import Table, read_table


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What came of a stream: every alarm as it stood at the end, in the order in which they were raised."""

    alarms: tuple[Alarm, ...]
    baseline: Baseline
    studies: int
    first_time: str
    last_time: str
    limit: float


def replay(stream: Path, config: WatchConfig) -> Replay:
    """Replay a file. The baseline is a file of its own, or a stretch of the same one.

    Raises
    ------
    WatchError
        If a file cannot be read, a column is missing, the baseline is too small, or there is nothing to watch.
    """
    stretch = config.baseline
    if stretch.file is None and stretch.first is None and stretch.last is None:
        raise WatchError("the configuration names no baseline: give baseline a file, or from and until")
    fitted = fit_baseline(read_table(stretch.file or stream, config, stretch), config)
    watched = read_table(config.watch.file or stream, config, config.watch)
    if not len(watched):
        raise WatchError(f"{stream}: no row lies in the stretch to watch; look at watch.from and watch.until")
    return replay_table(watched, fitted, config)


def replay_table(watched: Table, baseline: Baseline, config: WatchConfig) -> Replay:
    """Replay rows against a fitted baseline."""
    monitor = Monitor.start(config, baseline)
    found: dict[str, Alarm] = {}
    for _, alarm in monitor.run(watched):
        found[alarm.alarm] = alarm
    return Replay(
        alarms=tuple(found.values()),
        baseline=baseline,
        studies=len(watched),
        first_time=watched.times[0],
        last_time=watched.times[-1],
        limit=monitor.limit,
    )


def as_json(alarm: Alarm) -> dict[str, Any]:
    """An alarm as `stepwatch replay --json` prints it."""
    fields = alarm.to_dict()
    return {
        "type": "alarm",
        "row": fields.pop("raised_row"),
        "time": fields.pop("raised_time"),
        "study_count": fields.pop("raised_count"),
        "class": fields.pop("kind_of_alarm"),
        **fields,
    }


def summary(result: Replay) -> dict[str, Any]:
    """The last object that `stepwatch replay --json` prints."""
    alarms = result.alarms
    return {
        "type": "summary",
        "studies": result.studies,
        "from": result.first_time,
        "until": result.last_time,
        "alarms": len(alarms),
        "drifts": sum(alarm.kind_of_alarm == "drift" for alarm in alarms),
        "events": sum(alarm.kind_of_alarm == "event" for alarm in alarms),
        "active": sum(alarm.active for alarm in alarms),
        "by_shift": dict(sorted(Counter(alarm.shift for alarm in alarms).items())),
        "signals": sum(len(signals) for signals in result.baseline.encoder.groups.values()),
        "false_alarm_every": result.limit,
        "baseline": {
            "studies": result.baseline.studies,
            "days": result.baseline.days,
            "events": list(result.baseline.events),
            "warnings": list(result.baseline.warnings),
        },
    }


def as_lines(result: Replay) -> list[str]:
    """What came of a stream, for people."""
    lines = [f"Warning: {warning}" for warning in result.baseline.warnings]
    for alarm in result.alarms:
        until = f"until {alarm.cleared_time}" if alarm.cleared_time else "still so at the end"
        what = alarm.signal + (f" at {alarm.stratum}" if alarm.stratum else "")
        lines.append(
            f"{alarm.raised_time}  row {alarm.raised_row}  {alarm.kind_of_alarm}  {what} {alarm.direction}: "
            f"{alarm.baseline_value:g} to {alarm.present_value:g} since {alarm.changed_time} ({alarm.shift}), {until}"
        )
    counted = summary(result)
    lines.append(
        f"{counted['studies']} studies from {counted['from']} to {counted['until']}: {counted['drifts']} drifts, "
        f"{counted['events']} events; {counted['signals']} signals, made for one false alarm in "
        f"{counted['false_alarm_every']:.0f} studies"
    )
    return lines
