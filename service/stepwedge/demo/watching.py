"""The monitor in the demo: a new scanner comes, and has to be named while the user watches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from stepwedge.database import open_store
from stepwedge.demo.studies import Study
from stepwedge.settings import Settings
from stepwedge.supervise import watch_environment

# Far more than it takes; a promise is not broken by a slow machine.
_NAMED_SECONDS = 120.0
_LOOK_SECONDS = 1.0
_SIGNAL = "scanner unseen"


def wait_named(settings: Settings, say: Callable[[str], None]) -> dict[str, Any] | None:
    """Wait until the monitor has named the new scanner; the alarm, or None if it does not."""
    until = time.monotonic() + _NAMED_SECONDS
    while time.monotonic() < until:
        found = [alarm for alarm in alarms(settings) if alarm["signal"] == _SIGNAL]
        if found:
            return found[0]
        say("Waiting for the monitor to name what has changed …")
        time.sleep(_LOOK_SECONDS)
    return None


def alarms(settings: Settings) -> list[dict[str, Any]]:
    """The monitor's alarms, as its command line tells them; none where it cannot be asked."""
    shown = subprocess.run(
        [sys.executable, "-m", "stepwatch", "alarms", "--json"],
        env=watch_environment(settings, os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    return [json.loads(line) for line in shown.stdout.splitlines()] if shown.returncode == 0 else []


def of_the_new_scanner(studies: Sequence[Study], settings: Settings, observations: int) -> int:
    """How many studies of the new scanner are among the first so many observations."""
    new = {
        study.study_uid for study in studies if study.child is not None and "scanner-change" in study.child.changed_by
    }
    store = open_store(settings)
    try:
        known = {found.study for uid in new if (found := store.study_by_uid(uid)) is not None}
        seen = [json.loads(body)["study"] for _, body in store.observations(limit=observations)]
    finally:
        store.close()
    return sum(study in known for study in seen)
