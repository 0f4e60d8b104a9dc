"""The sidecar: looks for new rows, hands each to the monitor of its model, saves, and shows where all stands.

It reads a database that is another's. Where that is away or locked it waits and tries again; what has been taken is
kept meanwhile, and saved when it is back. State, place in the stream and alarms are saved in one transaction: a
sidecar that is killed goes on from there, and counts nothing twice and misses nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import structlog
from stepwedge.observation import Observation

from stepwatch import metrics
from stepwatch.audit import auditing
from stepwatch.database import ASKED, Cursor, Database, DatabaseAwayError, OtherSidecarError
from stepwatch.errors import WatchError
from stepwatch.feeding import read_label
from stepwatch.figures import Performance
from stepwatch.logs import where
from stepwatch.overview import Overview
from stepwatch.packages import WatchedPackage, read_package, stamp
from stepwatch.pages import Pages
from stepwatch.requests import FOLLOWS
from stepwatch.rows import RefusedRowError, read_observation
from stepwatch.settings import Model, Settings
from stepwatch.watch import Detectors, View, Watch

log = structlog.get_logger()

_BATCH = 500  # rows read at once
_AGAIN_SECONDS = 60.0  # between two tries to load a baseline that could not be used
_PEOPLE_SECONDS = 5.0  # between two looks for what only people read
_CONSTANCY_RUNS = 60  # latest shown
_LOG_LOOK_BACK = 100  # entries that may become visible after later ones


@dataclass
class _Place:
    """One configured model: the package that it names now, and the watch on it."""

    model: Model
    stamp: tuple[object, ...] | None = None
    package: WatchedPackage | None = None
    watch: Watch | None = None
    problem: str = "not loaded yet"
    try_again: float = 0.0


class Sidecar:
    """Watches every configured model. ``overview`` may be read by any thread; the rest is for one."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        detectors: Callable[[WatchedPackage], Detectors],
        *,
        performance: Callable[[Database, WatchedPackage], Performance] | None = None,
        pages: Pages | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """``detectors`` loads a package's baseline, and raises WatchError for one that cannot be used."""
        self._settings = settings
        self._database = database
        self._load = detectors
        self._performance = performance
        self._pages = pages
        self._now = now
        self._places = [_Place(model) for model in settings.models]
        self._prepared = False
        self._log_floor = 0
        self._people_at = 0.0
        self._audited = auditing(settings.performance.audit_readers, settings.performance.audit_share)
        self._labels: dict[str, int] = {}
        self._last_label = 0
        self._shown = Overview()

    @property
    def overview(self) -> Overview:
        """Where all stands."""
        return self._shown

    def run(self, stop: threading.Event) -> None:
        """Look for rows until asked to stop, then save."""
        while not stop.is_set():
            self.look(stop)
            stop.wait(self._settings.detection.poll_seconds)
        if self._pages is not None:
            self._pages.stop()
        try:
            self._save(every=True)
        except DatabaseAwayError as error:
            # What was taken since the last save is taken again at the next start.
            log.warning("not_saved_at_end", said=str(error))

    def look(self, stop: threading.Event | None = None) -> None:
        """Take every new row, do what people asked, save what is due."""
        try:
            if not self._prepared:
                self._database.prepare()
                self._prepared = True
            self._refresh()
            self._take(stop)
            self._take_labels(stop)
            self._acknowledge()
            self._save(every=False)
            self._show()
            if self._pages is not None:
                self._pages.look(self._watches())
        except DatabaseAwayError as error:
            if not self._shown.database:
                log.error("database_away", said=str(error))
            self._prepared = False
            metrics.DATABASE_UP.set(0)
            metrics.DATABASE_FAILURES.inc()
            self._shown = replace(self._shown, database=str(error), models=self._views(), at=self._now())
        except Exception as error:  # noqa: BLE001 - the edge of the process: one bad look must not end the watch
            log.error("look_failed", error=type(error).__name__, where=where(error))
            metrics.LOOK_FAILURES.inc()
        else:
            if self._shown.database:
                log.info("database_there")
            metrics.DATABASE_UP.set(1)
            self._shown = replace(self._shown, database="")

    # --- Packages -------------------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        """Load each package that is new in its place: at the start, after a promotion, after a roll-back."""
        for place in self._places:
            found = stamp(place.model)
            if found == place.stamp and (place.watch is not None or time.monotonic() < place.try_again):
                continue
            if place.watch is not None:
                self._save(every=True)
            place.watch, place.problem = None, ""
            try:
                package = place.package = read_package(place.model)
                if any(watch.package.digest == package.digest for watch in self._watches()):
                    raise WatchError(f"{package.folder}: another entry of `models` names this package; name it once")
                detectors = self._load(package)
            except WatchError as error:
                if found != place.stamp:
                    log.error("baseline_unusable", said=str(error))
                place.stamp, place.problem = found, str(error)
                place.try_again = time.monotonic() + _AGAIN_SECONDS
                continue
            place.watch = Watch(package, detectors, self._database.load_state(package.name, package.digest))
            place.stamp = found
            log.info(
                "watching",
                model=package.name,
                version=package.version,
                digest=package.digest,
                baseline_rows=detectors.baseline_rows,
                after=place.watch.cursor.position,
            )

    def _watches(self) -> list[Watch]:
        return [place.watch for place in self._places if place.watch is not None]

    # --- Rows -----------------------------------------------------------------------------------------------------

    def _take(self, stop: threading.Event | None) -> None:
        watches = self._watches()
        for watch in watches:
            watch.lag = 0
            last = self._database.last_observation()
            if last < watch.cursor.position:
                log.error("observations_begin_anew", model=watch.package.name)
                watch.go_back(last)
            while not (stop and stop.is_set()):
                rows = self._database.new_bodies(watch.cursor, _BATCH)
                for number, body in rows:
                    watch.take(number, self._read(number, body, watches), self._now())
                if len(rows) < _BATCH:
                    watch.lag = 0
                    break
                watch.lag = max(0, last - watch.cursor.position)
                self._save(every=False)
                self._shown = replace(self._shown, models=self._views())

    def _take_labels(self, stop: threading.Event | None) -> None:
        """Hand on the labels that have come, by whatever way; after the studies, so that they meet their answers."""
        last = self._database.last_label()
        for watch in self._watches():
            if last < watch.labels.position:
                log.error("labels_begin_anew", model=watch.package.name)
                watch.labels_go_back(last)
            while not (stop and stop.is_set()):
                rows = self._database.new_labels(watch.labels, _BATCH)
                for number, body in rows:
                    watch.take_label(number, read_label(body), self._database, self._audited, self._now())
                if len(rows) < _BATCH:
                    break
                self._save(every=False)

    def _read(self, number: int, body: str, watches: list[Watch]) -> Observation | None:
        """The observation; None if it is refused. What no model takes is counted when the first of them meets it."""
        first = all(not other.cursor.has(number) for other in watches)
        try:
            observation = read_observation(body)
        except RefusedRowError as refused:
            if first:
                metrics.ROWS_REFUSED.labels(refused.reason).inc()
                log.warning("row_refused", row=number, reason=refused.reason)
            return None
        if first and not any(other.is_of(observation) for other in watches):
            metrics.ROWS_REFUSED.labels("unknown_model").inc()
        return observation

    def _acknowledge(self) -> None:
        asked = self._database.log(ASKED, after=max(0, self._log_floor - _LOG_LOOK_BACK))
        for entry in asked:
            for watch in self._watches():
                watch.acknowledge(entry)
            self._log_floor = max(self._log_floor, entry.id)

    def _save(self, *, every: bool) -> None:
        for place in self._places:
            watch = place.watch
            if watch is None:
                continue
            if watch.is_due(self._settings.detection.save_seconds) or (every and watch.has_unsaved()):
                try:
                    watch.save(self._database)
                except OtherSidecarError as error:
                    # What the other one saved is what holds; we go on from there.
                    log.error("other_sidecar", said=str(error))
                    place.watch, place.stamp = None, None

    # --- What is shown --------------------------------------------------------------------------------------------

    def _views(self) -> tuple[View, ...]:
        views = []
        for place in self._places:
            if place.watch is not None:
                views.append(place.watch.view())
            else:
                package = place.package
                views.append(
                    View(
                        model=package.name if package else place.model.package.name,
                        version=package.version if package else "",
                        digest=package.digest if package else "",
                        usable=False,
                        has_reference=package is not None and package.has_reference,
                        problem=place.problem,
                    )
                )
        return tuple(views)

    def _show(self) -> None:
        shown = replace(self._shown, models=self._views(), at=self._now())
        if time.monotonic() >= self._people_at:
            self._people_at = time.monotonic() + _PEOPLE_SECONDS
            database = self._database
            shown = replace(
                shown,
                constancy=tuple(run for _, run in database.constancy())[-_CONSTANCY_RUNS:],
                requests=last_events(database.request_events()),
                pages=tuple(database.pages()),
                past_alarms=tuple(alarm for alarm in database.alarms() if _is_over(alarm))[:20],
                performance=self._performances(),
                labels=self._count_labels(),
            )
        self._shown = shown

    def _count_labels(self) -> Mapping[str, int]:
        while rows := self._database.new_labels(Cursor(position=self._last_label), _BATCH):
            for number, body in rows:
                label = read_label(body)
                source = label.source if label and label.source in metrics.LABEL_SOURCES else "other"
                self._labels[source] = self._labels.get(source, 0) + 1
                self._last_label = number
        return dict(self._labels)

    def _performances(self) -> Mapping[str, Performance]:
        if self._performance is None:
            return {}
        return {watch.package.name: self._performance(self._database, watch.package) for watch in self._watches()}


def last_events(events: list[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """The last event of each retraining request, with when and why it was opened; newest request first."""
    requests: dict[str, dict[str, Any]] = {}
    for event in events:
        known = requests.get(event["request"])
        if known is None:
            requests[event["request"]] = {**event, "opened_at": event["at"], "because": event["body"]}
        elif event["event"] in FOLLOWS:  # others are notes, which leave it where it stands
            known.update(event=event["event"], at=event["at"], who=event["who"], body=event["body"])
    return tuple(reversed(requests.values()))


def _is_over(alarm: Mapping[str, Any]) -> bool:
    return alarm.get("cleared_row") is not None or bool(alarm.get("adopted"))
