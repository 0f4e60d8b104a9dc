"""When Evidently's page for people is drawn: on schedule, and when an alarm is raised. One at a time, elsewhere.

After a promotion there is a second page on schedule, beside the baseline that was in use before.

The page is drawn by a process of its own (``snapshot``); here it is only started, looked after and noted.
"""

from __future__ import annotations

import importlib.util
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from stepwatch import metrics
from stepwatch.candidate import package_of, policy_of
from stepwatch.database import Database
from stepwatch.errors import WatchError
from stepwatch.packages import WatchedPackage, read_package
from stepwatch.settings import Model, Settings
from stepwatch.snapshot import start_page
from stepwatch.watch import Watch

log = structlog.get_logger()

FOLDER = "pages"  # in the data folder
SCHEDULED, ALARM, ORIGINAL = "on schedule", "alarm", "beside the baseline before the promotion"
_LEAST_ROWS = 50  # a page of fewer studies says nothing
_GRACE_SECONDS = 30.0  # beyond its own time limit before it is ended from here


@dataclass
class _Drawing:
    process: subprocess.Popen[bytes]
    out: Path
    rows: Path
    reason: str
    until: float


class Pages:
    """Starts pages, waits for them, and keeps the latest. For one thread."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings, self._database = settings.snapshot, database
        self._folder = settings.data_dir / FOLDER
        self._possible = importlib.util.find_spec("evidently") is not None
        if not self._possible:
            log.warning("no_pages", missing="evidently", install="stepwedge[snapshot]")
        self._drawing: _Drawing | None = None
        self._alarms: dict[str, set[str]] = {}  # seen, by digest
        self._asked: dict[tuple[str, Path], str] = {}  # why a page is wanted, by digest and baseline
        self._next: dict[str, float] = {}  # when the next scheduled one is due, by digest
        self._enough: dict[str, int] = {}  # the observation before which there are too few, by digest

    def look(self, watches: Sequence[Watch]) -> None:
        """Start what is due, note what is done. Raises DatabaseAwayError."""
        if not self._possible:
            return
        self._finish()
        for watch in watches:
            self._want(watch)
        if self._drawing is None:
            for watch in watches:
                for digest, baseline in list(self._asked):
                    if digest == watch.package.digest and self._start(watch.package, baseline):
                        return

    def stop(self) -> None:
        """End a page that is being drawn."""
        if self._drawing is not None:
            self._drawing.process.kill()
            self._drawing.process.wait()
            self._drawing.rows.unlink(missing_ok=True)
            self._drawing = None

    def _want(self, watch: Watch) -> None:
        package, digest, now = watch.package, watch.package.digest, time.monotonic()
        raised = {str(alarm["alarm"]) for alarm in watch.view().alarms}
        if raised - self._alarms.setdefault(digest, set()):
            self._asked[digest, package.baseline] = ALARM
        self._alarms[digest] |= raised
        if now >= self._next.setdefault(digest, now):
            self._next[digest] = now + self._settings.every_hours * 3600
            self._asked.setdefault((digest, package.baseline), SCHEDULED)
            original = self._original(package)
            if original is not None and original != package.baseline:
                self._asked[digest, original] = ORIGINAL

    def _original(self, package: WatchedPackage) -> Path | None:
        """The baseline of the package that a promotion replaced by this one; None if none did, or it is gone."""
        for event in reversed(self._database.request_events()):
            body = event["body"]
            if event["event"] == "promoting" and body.get("digest") == package.digest:
                release = Path(str(body["from"]))
                try:
                    found = read_package(Model(package=package_of(release), policy=policy_of(release))).baseline
                except WatchError:
                    return None
                return found if found.is_file() else None
        return None

    def _start(self, package: WatchedPackage, baseline: Path) -> bool:
        """Start the page that was asked for; while there are too few studies for one, it stays asked for."""
        last = self._database.last_observation()
        enough = self._enough.get(package.digest, 0)
        if enough - _LEAST_ROWS <= last < enough:  # a table that begins anew is below both
            return False
        found = self._database.observations(after=max(0, last - 2 * self._settings.rows), limit=2 * self._settings.rows)
        own = [row for _, row in found if row.model_digest == package.digest][-self._settings.rows :]
        if len(own) < _LEAST_ROWS:
            self._enough[package.digest] = last + _LEAST_ROWS - len(own)
            return False
        reason = self._asked.pop((package.digest, baseline))
        self._folder.mkdir(parents=True, exist_ok=True)
        beside = "-original" if reason == ORIGINAL else ""
        name = f"{package.name}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}{beside}.html"
        rows = self._folder / f".{name}.rows"
        rows.write_text("".join(row.to_json() + "\n" for row in own), encoding="utf-8")
        limit = self._settings.timeout_seconds
        out = self._folder / name
        process = start_page(baseline, rows, out, timeout_seconds=limit)
        until = time.monotonic() + limit + _GRACE_SECONDS
        self._drawing = _Drawing(process=process, out=out, rows=rows, reason=reason, until=until)
        return True

    def _finish(self) -> None:
        drawing = self._drawing
        if drawing is None:
            return
        status = drawing.process.poll()
        if status is None and time.monotonic() < drawing.until:
            return
        if status is None:
            drawing.process.kill()
            drawing.process.wait()
        self._drawing = None
        drawing.rows.unlink(missing_ok=True)
        if status != 0:
            metrics.PAGE_FAILURES.inc()
            log.error("page_failed", status=status, reason=drawing.reason)
            return
        self._database.add_page(drawing.out.name, drawing.reason)
        log.info("page_drawn", page=drawing.out.name, reason=drawing.reason)
        for old in sorted(self._folder.glob("*.html"), key=lambda file: file.stat().st_mtime)[: -self._settings.keep]:
            old.unlink(missing_ok=True)
