"""One model under watch: its monitor, what has been taken of the observations, and what is still to be saved."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Protocol

import structlog
from stepwedge.observation import Label, Observation

from stepwatch import metrics
from stepwatch.audit import Auditing
from stepwatch.database import DONE, REFUSED, Cursor, Database, LogEntry, SavedState
from stepwatch.errors import WatchError
from stepwatch.fairness import Fairness
from stepwatch.feeding import Place, Said, answer, counts
from stepwatch.history import History, Point
from stepwatch.packages import WatchedPackage
from stepwatch.performance import groups_of
from stepwatch.rows import in_order, moment, time_of

log = structlog.get_logger()


class AlarmRecord(Protocol):
    """What is read of an alarm; its fields as a mapping go to the database."""

    @property
    def alarm(self) -> str: ...
    @property
    def acknowledged_by(self) -> str: ...
    def to_dict(self) -> dict[str, Any]: ...


class SignalRecord(Protocol):
    """What is read of a signal's state."""

    @property
    def signal(self) -> str: ...
    @property
    def family(self) -> str: ...
    @property
    def stratum(self) -> str: ...
    @property
    def evidence(self) -> float: ...
    @property
    def baseline_value(self) -> float: ...
    @property
    def present_value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def studies(self) -> int: ...


class DriftMonitor(Protocol):
    """The detectors of one model."""

    studies: int
    limit: float

    def update(self, row: Mapping[str, object], when: datetime) -> Sequence[AlarmRecord]:
        """Take one study; the alarms that it raises, changes or clears."""

    def label(self, column: str, probability: float, value: float, when: datetime) -> Sequence[AlarmRecord]:
        """Take a label that came after its study; the alarms that it raises or clears."""

    def alarms(self) -> Sequence[AlarmRecord]:
        """Active ones, and those that nobody has acknowledged."""

    def signals(self) -> Sequence[SignalRecord]:
        """Where each signal stands."""

    def acknowledge(self, alarm: str, *, by: str, when: datetime, adopt: bool) -> AlarmRecord:
        """Note who has seen an alarm. Raises WatchError."""

    def to_bytes(self) -> bytes:
        """Everything that changes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Detectors:
    """How a model's monitor is had: begun, or gone on with from saved bytes."""

    start: Callable[[], DriftMonitor]
    resume: Callable[[bytes], DriftMonitor]
    row: Callable[[Observation], dict[str, object]]
    baseline_rows: int
    warnings: tuple[str, ...] = ()
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # what is bet upon by finding: columns
    levels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # of subgroups that are judged, by group


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """A model as it stood at one moment, for the page and the metrics, which run in other threads."""

    model: str
    version: str
    digest: str
    usable: bool
    has_reference: bool = False  # whether its package has a reference set, for constancy runs
    problem: str = ""  # why it is not
    baseline_rows: int = 0
    warnings: tuple[str, ...] = ()
    studies: int = 0
    saved_studies: int = 0
    saved_labels: int = 0  # that the concept bets have taken
    waiting_labels: int = 0  # readings of studies that have not been seen
    saved_at: float = 0.0
    lag: int = 0
    first_row: datetime | None = None
    last_row: datetime | None = None
    limit: float = math.inf  # log10
    alarms: tuple[dict[str, Any], ...] = ()
    signals: tuple[SignalRecord, ...] = ()
    points: Mapping[tuple[str, str], tuple[Point, ...]] = field(default_factory=dict)


class Watch:
    """The monitor of one package and its place in the stream. Used by one thread only."""

    def __init__(self, package: WatchedPackage, detectors: Detectors, state: SavedState | None) -> None:
        self.package = package
        self._detectors = detectors
        self._state = state or SavedState(model=package.name, digest=package.digest, body=b"", cursor=Cursor(), rest={})
        self.cursor = self._state.cursor
        self._monitor = self._resume(self._state) if self._state.body else detectors.start()
        rest = self._state.rest
        self._history = History.from_text(str(rest.get("history", "")))
        self._last = datetime.fromisoformat(rest["last"]) if rest.get("last") else None
        self._last_row = datetime.fromisoformat(rest["last_row"]) if rest.get("last_row") else None
        # Earlier versions did not keep it.
        self._first_row = datetime.fromisoformat(rest["first_row"]) if rest.get("first_row") else self._last_row
        self._acknowledged: set[int] = set(rest.get("acknowledged", ()))
        self._saved_studies = int(rest.get("studies", 0))
        self._labels = Place.from_row(rest.get("labels", {}))
        self._saved_labels = self._labels.fed
        self._fairness = Fairness.from_row(rest.get("fairness", {}))
        if not self._fairness.is_of(package.findings, detectors.levels):
            self._fairness = Fairness(package.findings, detectors.levels)
        self._changed: dict[str, dict[str, Any]] = {}
        self._notes: list[LogEntry] = []
        self._saved_at = time.monotonic()
        self._dirty = False
        self.lag = 0
        metrics.start_model(package.name)

    def _resume(self, state: SavedState) -> DriftMonitor:
        try:
            return self._detectors.resume(state.body)
        except WatchError as error:
            # Other signals or another version of the detectors. Their rows are taken again from where they stood:
            # going back to the first would alarm about the past.
            log.error("state_not_resumed", model=state.model, said=str(error))
            metrics.STATES_REFUSED.labels(state.model).inc()
            return self._detectors.start()

    def is_of(self, observation: Observation) -> bool:
        """Whether an observation is of this model's package."""
        package = self.package
        return observation.model_digest == package.digest and observation.model_name == package.name

    def take(self, number: int, observation: Observation | None, now: datetime) -> None:
        """Take a row: an observation, whichever package it is of, or None for one that was refused."""
        self.cursor = self.cursor.take(number)
        self._dirty = True
        if observation is None or observation.model_name != self.package.name:
            return
        self._labels, waited = self._labels.of_study(observation.study)
        if not self.is_of(observation):
            return  # what waited for this study waited for an answer that another package has given
        self._last_row = time_of(observation)
        self._first_row = self._first_row or self._last_row
        self._last, jump = in_order(self._last_row, self._last, now)
        if jump is not None:
            metrics.CLOCK_JUMPS.labels(jump).inc()
        with metrics.UPDATE_SECONDS.time():
            changed = self._monitor.update(self._detectors.row(observation), self._last)
        for alarm in changed:
            self._note(alarm, now)
        for said in waited:
            self._bet(said, observation, now)
        if self._history.is_due(self._monitor.studies):
            self._history.add(self._monitor.studies, self._monitor.signals())

    @property
    def labels(self) -> Cursor:
        """Which labels have been taken."""
        return self._labels.cursor

    def take_label(
        self, number: int, label: Label | None, database: Database, audited: Auditing, now: datetime
    ) -> None:
        """Take a label's row, and bet on it if it counts. Raises DatabaseAwayError, and then it has not been taken."""
        said = observation = None
        waits = False
        if label is not None and self._detectors.labels.get(label.finding):
            said = counts(number, label, database, self._labels.cursor, audited)
        if said is not None:
            try:
                observation = answer(said.study, database, self.cursor, (self.package.name, self.package.digest))
            except LookupError:
                waits = True
        self._labels = self._labels.take(number)
        self._dirty = True
        if said is not None and waits:
            self._labels, dropped = self._labels.wait(said)
            metrics.LABELS_DROPPED.labels("study_unknown").inc(dropped)
        elif said is not None and observation is not None:
            self._bet(said, observation, now)

    def _bet(self, said: Said, observation: Observation, now: datetime) -> None:
        probability = observation.probabilities.get(said.finding)
        if probability is None:
            return
        try:
            when, _ = in_order(moment(said.time), self._last, now)
        except (ValueError, OverflowError):
            when = self._last or now
        decision = observation.decisions.get(said.finding, "none")
        self._fairness.take(said.finding, groups_of(observation), probability, decision, said.value)
        for column in self._detectors.labels[said.finding]:
            for alarm in self._monitor.label(column, probability, said.value, when):
                self._note(alarm, now)
        self._labels = replace(self._labels, fed=self._labels.fed + 1)

    def acknowledge(self, asked: LogEntry) -> None:
        """Do what a person asked for, once."""
        if asked.id in self._acknowledged or asked.body.get("digest") not in (None, self.package.digest):
            return
        known = {alarm.alarm for alarm in self._monitor.alarms()}
        if asked.body.get("alarm") not in known:
            return
        when = datetime.fromtimestamp(asked.at, UTC)
        self._acknowledged.add(asked.id)
        self._dirty = True
        adopt = bool(asked.body.get("adopt"))
        try:
            alarm = self._monitor.acknowledge(str(asked.body["alarm"]), by=asked.who, when=when, adopt=adopt)
        except WatchError as error:
            self._notes.append(LogEntry(at=time.time(), event=REFUSED, body={"entry": asked.id, "said": str(error)}))
            return
        self._changed[alarm.alarm] = alarm.to_dict()
        self._notes.append(
            LogEntry(at=time.time(), event=DONE, who=asked.who, body={"alarm": alarm.alarm, "adopt": adopt})
        )
        log.info("alarm_acknowledged", model=self.package.name, alarm=alarm.alarm, adopt=adopt)

    def _note(self, alarm: AlarmRecord, now: datetime) -> None:
        fields = alarm.to_dict()
        event = "cleared" if fields.get("cleared_row") is not None else "raised"
        self._changed[alarm.alarm] = fields
        self._notes.append(
            LogEntry(
                at=now.timestamp(),
                event=event,
                body={"model": self.package.name, "alarm": alarm.alarm, "kind": fields["kind_of_alarm"]},
            )
        )
        if event == "raised":
            metrics.ALARMS.labels(self.package.name, fields["shift"], fields["kind_of_alarm"]).inc()
        log.warning("alarm", what=event, model=self.package.name, alarm=alarm.alarm, shift=fields["shift"])

    def is_due(self, save_seconds: float) -> bool:
        """Whether there is something to save now: alarms and what people asked at once, the rest every so often."""
        if self._changed or self._notes:
            return True
        return self._dirty and time.monotonic() >= self._saved_at + save_seconds

    def has_unsaved(self) -> bool:
        """Whether anything changed since it was saved."""
        return self._dirty or bool(self._changed or self._notes)

    def save(self, database: Database) -> None:
        """Save all of it at once. Raises DatabaseAwayError, and nothing is lost; or OtherSidecarError."""
        rest = {
            "history": self._history.to_text(),
            "last": self._last.isoformat() if self._last else None,
            "first_row": self._first_row.isoformat() if self._first_row else None,
            "last_row": self._last_row.isoformat() if self._last_row else None,
            "acknowledged": sorted(self._acknowledged),
            "studies": self._monitor.studies,
            "labels": self._labels.to_row(),
            "fairness": self._fairness.to_row(),
            "version": self.package.version,
        }
        state = replace(self._state, body=self._monitor.to_bytes(), cursor=self.cursor, rest=rest)
        self._state = database.save_state(state, list(self._changed.values()), self._notes)
        self._changed, self._notes, self._dirty = {}, [], False
        self._saved_studies, self._saved_at = self._monitor.studies, time.monotonic()
        self._saved_labels = self._labels.fed

    def go_back(self, last: int) -> None:
        """Follow a table of observations that begins anew: its ids are lower than those that were taken."""
        self.cursor = replace(self.cursor, position=last, gaps=frozenset())
        self._dirty = True

    def labels_go_back(self, last: int) -> None:
        """Follow a table of labels that begins anew. What is in it already counts as taken: no bet is made twice."""
        self._labels = replace(self._labels, cursor=Cursor(position=last))
        self._dirty = True

    def view(self) -> View:
        """As it stands now."""
        return View(
            model=self.package.name,
            version=self.package.version,
            digest=self.package.digest,
            usable=True,
            has_reference=self.package.has_reference,
            baseline_rows=self._detectors.baseline_rows,
            warnings=self._detectors.warnings,
            studies=self._monitor.studies,
            saved_studies=self._saved_studies,
            saved_labels=self._saved_labels,
            waiting_labels=len(self._labels.waiting),
            saved_at=self._state.saved_at,
            lag=self.lag,
            first_row=self._first_row,
            last_row=self._last_row,
            limit=math.log10(self._monitor.limit),
            alarms=tuple(alarm.to_dict() for alarm in self._monitor.alarms()),
            signals=tuple(self._monitor.signals()),
            points=self._history.copy(),
        )
