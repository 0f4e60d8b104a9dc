"""Room on the data folder's volume: no work begins without it, so that none is cut short and ends as failed."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import structlog

from stepwedge import metrics

log = structlog.get_logger()

# A result takes a few MiB, and the queue and the database write beside it. Far below the reserve that the DICOM node
# leaves (spool.reserve_bytes): what it acknowledged is worked off in that.
ENOUGH_BYTES = 33_554_432
_LOOK_SECONDS = 1.0


class Room:
    """Holds threads that are about to write while there is no room."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._full = False
        self._closed = threading.Event()

    def wait(self) -> None:
        """Return when there is room, or when the worker is to end."""
        while not self.look() and not self._closed.wait(_LOOK_SECONDS):
            pass

    def look(self) -> bool:
        """Whether there is room. A change is logged."""
        free = shutil.disk_usage(self._folder).free
        full = free < ENOUGH_BYTES
        with self._lock:
            if full and not self._full:
                log.error("no_room_to_work", free=free, wanted=ENOUGH_BYTES)
            elif self._full and not full:
                log.info("room_to_work", free=free)
            if full is not self._full:
                metrics.WORK_HELD.set(int(full))
            self._full = full
        return not full

    def close(self) -> None:
        """Hold nobody any more."""
        self._closed.set()
