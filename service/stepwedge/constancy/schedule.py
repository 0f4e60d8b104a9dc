"""When a running service exposes its reference sets by itself."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping

import structlog

from stepwedge.constancy.accepted import CONSTANCY
from stepwedge.settings import Settings

log = structlog.get_logger()


def has_reference_set(settings: Settings) -> bool:
    """Whether any package has one; where none has, the log says so."""
    found = any((model.package / CONSTANCY).is_file() for model in settings.models)
    if not found:
        log.warning("no_reference_set", models=len(settings.models))
    return found


class Schedule:
    """Starts ``stepwedge constancy`` once the service is ready, and then every so many hours; for one thread.

    A new library, driver or machine comes with a start, so every start has a run. What the run finds is in its own
    row, which the monitor reads.
    """

    def __init__(
        self, settings: Settings, environment: Mapping[str, str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._environment = dict(environment)
        self._clock = clock
        self._due: float | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def poll(self, *, ready: bool) -> None:
        """Start a run if one is due, and reap the one that has ended. Returns at once."""
        if self._process is not None:
            status = self._process.poll()
            if status is None:
                return
            self._process = None
            if status not in (0, 1):  # a run that was made says itself what it found
                log.error("constancy_run_failed", status=status)
        if not self._settings.constancy.enabled or not ready:
            return
        now = self._clock()
        if self._due is not None and now < self._due:
            return
        self._due = now + self._settings.constancy.every_hours * 3600.0
        if not has_reference_set(self._settings):
            return
        self._process = subprocess.Popen(
            [sys.executable, "-m", "stepwedge", "constancy", "--quiet"], env=self._environment, start_new_session=True
        )

    def run_now(self) -> None:
        """Make the next run due, as after new packages were loaded."""
        self._due = None

    def stop(self) -> None:
        """End a run that is going on; the next one clears what it leaves."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
