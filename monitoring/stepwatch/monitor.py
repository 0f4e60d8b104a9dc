"""The monitor of one stream: every study updates every bet; what crosses the limit becomes an alarm, and stays one.

One limit serves all signals and all looks: the bets' mean, weighted by family. An alarm takes its family out of the
betting, where it was found, until the signal is back; so one cause is one alarm. Nothing ever becomes normal by itself.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Self

import numpy as np
from numpy.typing import NDArray

from stepwatch.alarms import Alarm, Return, has_stopped, why_not_adopted
from stepwatch.baseline import Baseline
from stepwatch.config import WatchConfig
from stepwatch.detectors import Detector, Floats, Locations, Prevalences, Ratios, Shares
from stepwatch.diagnosis import Recent, attribute, kind_of_shift, prevalence_by_likelihood
from stepwatch.errors import WatchError
from stepwatch.scales import direction_of, level_of, value_of
from stepwatch.signals import EVERYWHERE, LABELS, Signal, is_of_a_source
from stepwatch.streams import Table, one_row, weeks
from stepwatch.weights import weights_of

_AS_GOOD = 0.1  # of the largest evidence: a level's that has stopped is named before one's that has risen for it
_ENOUGH = 20  # studies after an alarm that show whether a share has stopped altogether
_LASTS = 10  # studies of another day after which a stop is no event of one day any more
_FORMAT = 2  # of the saved state


@dataclass(frozen=True, kw_only=True, slots=True)
class SignalState:
    """Where a signal stands. Values are shares, means of normal scores, or prevalences."""

    signal: str
    family: str
    stratum: str
    evidence: float  # log10 of its bets' weighted sum; the limit is the monitor's
    baseline_value: float
    present_value: float  # mean since its bets last began to gain
    low: float  # of the ordinary band
    high: float
    studies: int


@dataclass(kw_only=True)
class _Open:
    """An active alarm, and what has to be known to end it."""

    alarm: Alarm
    group: str
    index: int
    way_back: Return
    held: dict[str, list[int]]
    day: int  # on which it was raised
    after: int = 0  # studies since that day


class Monitor:
    """Watches one stream."""

    def __init__(self, config: WatchConfig, baseline: Baseline) -> None:
        self.config = config
        self.baseline = baseline
        self.studies = 0
        self.limit = config.false_alarm_every
        self._weights = weights_of(baseline)
        self._detectors: dict[str, Detector] = {}
        for group, ordinary in baseline.ordinary.items():
            kind = {"location": Locations, "prevalence": Prevalences, LABELS: Ratios}.get(group, Shares)
            self._detectors[group] = kind(ordinary, self._weights[group])
        self._totals = dict.fromkeys(self._detectors, 0.0)
        self._open: list[_Open] = []
        self._ended: list[Alarm] = []  # cleared, and not acknowledged yet
        self._free_since: dict[str, int] = {}  # by family: the study at which an alarm on it last ended
        groups = baseline.encoder.groups
        self._recent = Recent({group: signals for group, signals in groups.items() if group != LABELS})
        # Labels come apart from their studies, and many at once: they must not push studies out of what is kept.
        self._labelled = Recent({group: signals for group, signals in groups.items() if group == LABELS})
        self.labels = 0

    @classmethod
    def start(cls, config: WatchConfig, baseline: Baseline) -> Self:
        """A monitor that has seen nothing yet."""
        return cls(config, baseline)

    def update(self, row: Mapping[str, object], when: datetime) -> list[Alarm]:
        """Take one study; the alarms that it raises, changes or clears."""
        return [alarm for _, alarm in self.run(one_row(row, when, self.config, self.studies))]

    def run(self, table: Table) -> Iterator[tuple[int, Alarm]]:
        """Take the studies of a table in their order; with its index, each alarm raised, changed or cleared."""
        encoded = self.baseline.encoder.encode(table)
        week = weeks(table.days)
        for i in range(len(table)):
            self.studies += 1
            place = (int(table.rows[i]), table.times[i])
            values = {group: encoded.values[group][i] for group in self._detectors if encoded.asked[group][i]}
            self._recent.add(values, encoded.strata[i], place)
            if LABELS in values and not np.isnan(values[LABELS]).all():
                self._labelled.add(values, "", place)
                self.labels += 1
            day = int(table.days[i])
            for group, said in values.items():
                self._totals[group] = self._detectors[group].update(said, day, int(week[i]))
            for alarm in self._follow(values, day, int(week[i]), place):
                yield i, alarm
            if sum(self._totals.values()) >= self.limit:
                yield i, self._raise(day, place)

    def label(self, column: str, probability: float, value: float, when: datetime) -> list[Alarm]:
        """Take a label that has come after its study; the alarms that it raises or clears.

        ``column`` is the label's in the configuration, ``probability`` what the model had said, ``value`` 0…1.
        """
        signals = self.baseline.encoder.groups.get(LABELS, ())
        said = np.full(len(signals), np.nan)
        own = [i for i, signal in enumerate(signals) if signal.column == column]
        said[own] = self.baseline.encoder.label_ratios(column, np.array([probability]), np.array([value]))[0]
        place = (self.studies, when.isoformat(timespec="seconds"))
        day = (when.date() - date(1970, 1, 1)).days
        self._labelled.add({LABELS: said}, "", place)
        self.labels += 1
        self._totals[LABELS] = self._detectors[LABELS].update(said, day, day // 7)
        found = list(self._follow({LABELS: said}, day, day // 7, place))
        return [*found, self._raise(day, place)] if sum(self._totals.values()) >= self.limit else found

    # --- Alarms ---------------------------------------------------------------------------------------------------

    def alarms(self) -> list[Alarm]:
        """Active ones, and those that nobody has acknowledged yet."""
        return [*(entry.alarm for entry in self._open), *self._ended]

    def acknowledge(self, alarm: str, *, by: str, when: datetime, adopt: bool = False) -> Alarm:
        """Note who has seen an alarm. With ``adopt`` the present level of its signals becomes the normal one.

        Raises WatchError for an unknown alarm, or if one of labels, or that has been cleared, is to be adopted.
        """
        known = next((each for each in self.alarms() if each.alarm == alarm), None)
        if known is None:
            raise WatchError(f"{alarm}: there is no such alarm; `stepwatch alarms` lists them")
        if adopt and (why := why_not_adopted(known.to_dict())):
            raise WatchError(f"{alarm}: {why}")
        time = when.isoformat(timespec="seconds")
        seen = replace(known, acknowledged_by=by, acknowledged_time=time, adopted=adopt)
        entry = next((each for each in self._open if each.alarm is known), None)
        if entry is None:
            self._ended.remove(known)
            return seen
        entry.alarm = seen
        if adopt:
            self._adopt(entry)
            self._release(entry)
        return seen

    def _raise(self, day: int, place: tuple[int, str]) -> Alarm:
        evidence = [(group, self._detectors[group].evidence()) for group in self._detectors]
        group, parts = max(evidence, key=lambda item: float(item[1].max()))
        index = self._stopped_rather(group, parts)
        signal, detector = self.baseline.encoder.groups[group][index], self._detectors[group]
        direction = detector.direction(index)
        level = float(detector.level[index])
        recent = self._recent_of(group)
        since, mean = recent.change(signal, index, level, direction, self._free(signal.family))
        values = recent.values_of(group, index, since + 1)
        present = self._present(signal, values, level) if signal.kind == "prevalence" else level_of(signal, mean)
        usual = value_of(signal, level)
        stopped = is_of_a_source(signal) and direction < 0 and has_stopped(usual, mean)
        changed = recent.place(since) or place
        alarm = Alarm(
            alarm=f"{place[0]}-{signal.stratum or 'all'}-{signal.name}".replace(" ", "_"),
            kind_of_alarm="event" if stopped else "drift",
            signal=signal.name,
            family=signal.family,
            direction=direction_of(signal, direction, stopped=stopped),
            stratum=signal.stratum,
            shift=self._shift(signal, since, stopped=stopped),
            attribution=attribute(signal, index, recent, since, level),
            evidence=round(math.log10(max(sum(self._totals.values()), 1.0)), 2),
            raised_row=place[0],
            raised_time=place[1],
            raised_count=self.studies,
            changed_row=changed[0],
            changed_time=changed[1],
            baseline_value=round(usual, 5),
            present_value=round(value_of(signal, present), 5),
        )
        entry = _Open(
            alarm=alarm,
            group=group,
            index=index,
            way_back=self._way_back(group, index, direction, stopped=stopped),
            held=self._held_with(signal),
            day=day,
        )
        self._open.append(entry)
        for name, indexes in entry.held.items():
            self._detectors[name].hold(np.array(indexes))
            self._totals[name] = self._detectors[name].total()
        return alarm

    def _follow(self, values: Mapping[str, Floats], day: int, week: int, place: tuple[int, str]) -> Iterator[Alarm]:
        for entry in list(self._open):
            said = values.get(entry.group)
            if said is None or np.isnan(said[entry.index]):
                continue
            if entry.alarm.kind_of_alarm == "event" and day != entry.day:
                entry.after += 1
            if entry.alarm.direction == "down" and self._has_stopped_since(entry):
                entry.alarm = replace(entry.alarm, kind_of_alarm="event", direction="absent", shift="stop")
                entry.way_back = self._way_back(entry.group, entry.index, -1, stopped=True)
                yield entry.alarm
            elif entry.way_back.update(float(said[entry.index]), day, week):
                entry.alarm = replace(
                    entry.alarm, cleared_row=place[0], cleared_time=place[1], cleared_count=self.studies
                )
                self._release(entry)
                if not entry.alarm.acknowledged_by:
                    self._ended.append(entry.alarm)
                yield entry.alarm
            elif entry.alarm.kind_of_alarm == "event" and entry.after >= _LASTS:
                entry.alarm = replace(entry.alarm, kind_of_alarm="drift", drift_row=place[0], drift_time=place[1])
                yield entry.alarm

    def _stopped_rather(self, group: str, parts: Floats) -> int:
        """The signal with most evidence; or the level that stopped, where its stop makes another share rise."""
        best, detector = int(parts.argmax()), self._detectors[group]
        signals = self.baseline.encoder.groups[group]
        for index, signal in enumerate(signals):
            same = signal.column == signals[best].column and is_of_a_source(signal)
            if same and parts[index] >= _AS_GOOD * parts[best] and detector.direction(index) < 0:
                level = float(detector.level[index])
                _, mean = self._recent.change(signal, index, level, -1, self._free(signal.family))
                if has_stopped(value_of(signal, level), mean):
                    return index
        return best

    def _free(self, family: str) -> int:
        """Studies, or labels, since an alarm on a family last ended."""
        return (self.labels if family == LABELS else self.studies) - self._free_since.get(family, 0)

    def _recent_of(self, group: str) -> Recent:
        return self._labelled if group == LABELS else self._recent

    def kind_of_shift(self, studies: int) -> str:
        """What has shifted within the latest studies: prevalence, acquisition, population, mixed or unknown."""
        return kind_of_shift(self.config, self.baseline, self._recent, studies)

    def _shift(self, signal: Signal, since: int, *, stopped: bool) -> str:
        if stopped:
            return "stop"
        if signal.family == LABELS:
            return "concept"
        told = self.kind_of_shift(since)
        family = self.config.families.get(signal.family)
        own = "acquisition" if family is None else family.tells_of
        return own if told == "unknown" and own in ("acquisition", "population") else told

    def _way_back(self, group: str, index: int, direction: int, *, stopped: bool) -> Return:
        detector = self._detectors[group]
        ordinary, usual = detector.ordinary, float(detector.level[index])
        edge = usual + direction * float(ordinary.band[index])
        return Return(
            type(detector),
            edge=edge,
            usual=usual,
            direction=direction,
            stopped=stopped,
            between=(float(ordinary.between_days[index]), float(ordinary.between_weeks[index])),
        )

    def _has_stopped_since(self, entry: _Open) -> bool:
        """Whether a share whose fall was told before it was clear how far has turned out to have stopped."""
        signal = self.baseline.encoder.groups[entry.group][entry.index]
        values = self._recent.values_of(entry.group, entry.index, self.studies - entry.alarm.raised_count)
        enough = is_of_a_source(signal) and len(values) >= _ENOUGH
        return enough and has_stopped(entry.alarm.baseline_value, float(values.mean()))

    def _held_with(self, signal: Signal) -> dict[str, list[int]]:
        """What an alarm takes out of the betting: its family, here and where all strata are taken together."""
        held: dict[str, list[int]] = {}
        everywhere = signal.group in EVERYWHERE
        for group, signals in self.baseline.encoder.groups.items():
            if group != signal.group and group not in EVERYWHERE and not everywhere:
                continue
            found = [i for i, other in enumerate(signals) if other.family == signal.family]
            free = [i for i in found if not self._detectors[group].held[i]]
            if free:
                held[group] = free
        return held

    def _release(self, entry: _Open) -> None:
        self._open.remove(entry)
        family = entry.alarm.family
        self._free_since[family] = self.labels if family == LABELS else self.studies
        for group, indexes in entry.held.items():
            self._detectors[group].release(np.array(indexes))

    def _adopt(self, entry: _Open) -> None:
        """Make the present levels of what the alarm holds the normal ones."""
        for group, indexes in entry.held.items():
            detector, signals = self._detectors[group], self.baseline.encoder.groups[group]
            for index in indexes:
                values = self._recent.values_of(group, index, self.studies - entry.alarm.raised_count)
                if len(values):
                    detector.level[index] = self._present(signals[index], values, float(detector.level[index]))

    # --- What others read -----------------------------------------------------------------------------------------

    def signals(self) -> list[SignalState]:
        """Where each signal stands."""
        states = []
        for group, signals in self.baseline.encoder.groups.items():
            detector = self._detectors[group]
            for index, (signal, part) in enumerate(zip(signals, detector.evidence(), strict=True)):
                level, band = float(detector.level[index]), float(detector.ordinary.band[index])
                recent = self._recent_of(group).values_of(group, index, None)
                present = self._present(signal, recent, level) if len(recent) else float("nan")
                states.append(
                    SignalState(
                        signal=signal.name,
                        family=signal.family,
                        stratum=signal.stratum,
                        evidence=math.log10(max(float(part), 1e-9)),
                        baseline_value=value_of(signal, level),
                        present_value=value_of(signal, present) if len(recent) else float("nan"),
                        low=value_of(signal, level - band),
                        high=value_of(signal, level + band),
                        studies=len(recent),
                    )
                )
        return states

    def _present(self, signal: Signal, values: Floats, level: float) -> float:
        """The level that values speak for."""
        if signal.kind == "prevalence" and len(values):
            return prevalence_by_likelihood(values, level)[0]
        return level_of(signal, float(values.mean()))

    def to_bytes(self) -> bytes:
        """Everything that changes."""
        arrays: dict[str, NDArray[np.generic]] = {}
        for group, detector in self._detectors.items():
            arrays |= {f"{group}/{name}": values for name, values in detector.state().items()}
        arrays |= {f"recent/{name}": values for name, values in self._recent.state().items()}
        arrays |= {f"labelled/{name}": values for name, values in self._labelled.state().items()}
        rest = {
            "format": _FORMAT,
            "signals": {group: [s.name for s in signals] for group, signals in self.baseline.encoder.groups.items()},
            "studies": self.studies,
            "labels": self.labels,
            "open": [
                {
                    "alarm": entry.alarm.to_dict(),
                    "group": entry.group,
                    "index": entry.index,
                    "way_back": entry.way_back.describe(),
                    "held": entry.held,
                    "day": entry.day,
                    "after": entry.after,
                }
                for entry in self._open
            ],
            "free_since": self._free_since,
            "ended": [alarm.to_dict() for alarm in self._ended],
        }
        for number, entry in enumerate(self._open):
            arrays |= {f"open/{number}/{name}": values for name, values in entry.way_back.state().items()}
        arrays["rest"] = np.frombuffer(json.dumps(rest).encode(), np.uint8)
        out = io.BytesIO()
        np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
        return out.getvalue()

    @classmethod
    def from_bytes(cls, config: WatchConfig, baseline: Baseline, data: bytes) -> Self:
        """Go on from what ``to_bytes`` gave. Raises WatchError if it belongs to other signals."""
        monitor = cls(config, baseline)
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as kept:
                arrays = {name: kept[name] for name in kept.files}
            rest = json.loads(arrays.pop("rest").tobytes())
            names = {group: [s.name for s in signals] for group, signals in baseline.encoder.groups.items()}
            if rest["format"] != _FORMAT or rest["signals"] != names:
                raise ValueError("of other signals, or of another version")
            for group, detector in monitor._detectors.items():
                prefix = f"{group}/"
                detector.restore({n.removeprefix(prefix): v for n, v in arrays.items() if n.startswith(prefix)})
                monitor._totals[group] = detector.total()
            for prefix, recent in (("recent/", monitor._recent), ("labelled/", monitor._labelled)):
                recent.restore({n.removeprefix(prefix): v for n, v in arrays.items() if n.startswith(prefix)})
        except (ValueError, KeyError, OSError) as error:
            raise WatchError(f"the saved state cannot be taken up: {error}; the monitor has to begin anew") from None
        monitor.studies, monitor.labels = int(rest["studies"]), int(rest["labels"])
        monitor._free_since = dict(rest["free_since"])
        monitor._ended = [Alarm.from_dict(values) for values in rest["ended"]]
        for number, entry in enumerate(rest["open"]):
            kind = type(monitor._detectors[entry["group"]])
            way_back = Return(kind, **entry["way_back"])
            prefix = f"open/{number}/"
            way_back.restore({n.removeprefix(prefix): v for n, v in arrays.items() if n.startswith(prefix)})
            alarm = Alarm.from_dict(entry["alarm"])
            monitor._open.append(_Open(**(entry | {"alarm": alarm, "way_back": way_back})))
        return monitor
