"""A stand-in for the detectors, which does at once what theirs take many studies for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from stepwatch.errors import WatchError
from stepwatch.packages import WatchedPackage
from stepwatch.watch import Detectors
from stepwedge.observation import Observation

OUT_OF_BAND = 0.9  # of pixel_mean: one study above it is an alarm, the next below ends it


@dataclass(frozen=True, kw_only=True)
class StandInAlarm:
    alarm: str
    raised_row: int
    raised_time: str
    signal: str = "pixel_mean"
    family: str = "pixels"
    kind_of_alarm: str = "drift"
    direction: str = "up"
    stratum: str = ""
    shift: str = "acquisition"
    evidence: float = 6.0
    raised_count: int = 1
    changed_row: int = 0
    changed_time: str = "2026-01-05T08:00:00+00:00"
    baseline_value: float = 0.0
    present_value: float = 1.0
    cleared_row: int | None = None
    cleared_time: str | None = None
    acknowledged_by: str = ""
    acknowledged_time: str = ""
    adopted: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "attribution": {"DX-2|working": 0.9}}


@dataclass(frozen=True, kw_only=True)
class StandInSignal:
    signal: str
    family: str = "pixels"
    stratum: str = ""
    evidence: float = 1.25
    baseline_value: float = 0.0
    present_value: float = 0.5
    low: float = -0.1
    high: float = 0.1
    studies: int = 10


class StandInMonitor:
    def __init__(self) -> None:
        self.units: list[str] = []
        self.times: list[str] = []
        self.found: list[StandInAlarm] = []
        self.said: list[tuple[str, float, float]] = []
        self.limit = 1e5

    @property
    def studies(self) -> int:
        return len(self.units)

    def update(self, row: Mapping[str, object], when: datetime) -> list[StandInAlarm]:
        self.units.append(str(row["unit"]))
        self.times.append(when.isoformat())
        far = float(str(row["pixel_mean"])) > OUT_OF_BAND
        active = [alarm for alarm in self.found if alarm.cleared_row is None and not alarm.adopted]
        if far and not active:
            alarm = StandInAlarm(
                alarm=f"{self.studies}-all-pixel_mean", raised_row=self.studies, raised_time=when.isoformat()
            )
            self.found.append(alarm)
            return [alarm]
        if not far and active:
            self.found.remove(active[0])
            ended = replace(active[0], cleared_row=self.studies, cleared_time=when.isoformat())
            if not ended.acknowledged_by:
                self.found.append(ended)
            return [ended]
        return []

    def label(self, column: str, probability: float, value: float, when: datetime) -> list[StandInAlarm]:
        del when
        self.said.append((column, probability, value))
        return []

    def alarms(self) -> list[StandInAlarm]:
        return [alarm for alarm in self.found if not alarm.adopted]

    def signals(self) -> list[StandInSignal]:
        return [StandInSignal(signal="pixel_mean"), StandInSignal(signal="sex=F", family="patient", stratum="A|off")]

    def acknowledge(self, alarm: str, *, by: str, when: datetime, adopt: bool) -> StandInAlarm:
        known = next(known for known in self.found if known.alarm == alarm)
        if adopt and known.cleared_row is not None:
            raise WatchError("there is nothing to adopt")
        self.found.remove(known)
        seen = replace(known, acknowledged_by=by, acknowledged_time=when.isoformat(), adopted=adopt)
        if known.cleared_row is None:
            self.found.append(seen)
        return seen

    def to_bytes(self) -> bytes:
        return json.dumps([self.units, self.times, self.said, [asdict(alarm) for alarm in self.found]]).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> StandInMonitor:
        monitor = cls()
        try:
            monitor.units, monitor.times, said, found = json.loads(data)
        except ValueError:
            raise WatchError("of another version") from None
        monitor.said = [tuple(item) for item in said]
        monitor.found = [StandInAlarm(**values) for values in found]
        return monitor


def row_of(observation: Observation) -> dict[str, object]:
    return {"unit": observation.unit, "pixel_mean": observation.pixel_mean}


class StandInDetectors:
    """Makes stand-ins, and keeps the last one of each version to look into."""

    def __init__(self) -> None:
        self.monitors: dict[str, StandInMonitor] = {}
        self.unusable = ""

    def __call__(self, package: WatchedPackage) -> Detectors:
        if self.unusable:
            raise WatchError(self.unusable)

        def keep(monitor: StandInMonitor) -> StandInMonitor:
            self.monitors[package.version] = monitor
            return monitor

        return Detectors(
            start=lambda: keep(StandInMonitor()),
            resume=lambda data: keep(StandInMonitor.from_bytes(data)),
            row=row_of,
            baseline_rows=1000,
            warnings=("it is small",),
            labels={finding: (f"label.{finding}",) for finding in package.findings},
        )
