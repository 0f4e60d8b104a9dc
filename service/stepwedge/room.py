"""Room on the data folder's volume: no work begins without it, so that none is cut short and ends as failed."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import structlog

from stepwedge import metrics

log = structlog.get_logger()

# A result takes a few MiB, and the queue and the database write beside it. Far below the reserve that the DICOM node
# leaves (spool.reserve_bytes): what it acknowledged is worked off in that.
ENOUGH_BYTES = 33_554_432
# A result and its receipts are about ten files.
_ENOUGH_FILES = 256
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
        """Whether there is room; none where the volume does not say. A change is logged."""
        free, files = _left(self._folder)
        full = free < ENOUGH_BYTES or files < _ENOUGH_FILES
        with self._lock:
            if full and not self._full:
                log.error("no_room_to_work", free=free, wanted=ENOUGH_BYTES, files=files, wanted_files=_ENOUGH_FILES)
            elif self._full and not full:
                log.info("room_to_work", free=free)
            # Each time: what a worker that died said last would stand otherwise.
            metrics.WORK_HELD.labels("work").set(int(full))
            self._full = full
        return not full

    def close(self) -> None:
        """Hold nobody any more."""
        self._closed.set()


def _left(folder: Path) -> tuple[int, int]:
    """Bytes and files that a user may still write to a volume; as many files as wanted where it does not count them."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return 0, 0
    return found.f_bavail * found.f_frsize, found.f_favail if found.f_files else _ENOUGH_FILES
