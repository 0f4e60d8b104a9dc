"""The metrics of one machine's roles, each of which keeps files of its own in one folder."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable
from pathlib import Path

import structlog
from prometheus_client.core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

log = structlog.get_logger()


class Gathered:
    """Adds them up, and keeps the folder small. Safe for the threads of one process; one process puts away."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()

    def collect(self) -> Iterable[Metric]:
        """Every metric of every role."""
        with self._lock:
            collector = MultiProcessCollector(None, path=str(self._folder))  # type: ignore[no-untyped-call]
            return list(collector.collect())  # type: ignore[no-untyped-call]

    def put_away(self, pid: int) -> None:
        """What a process that has ended counted goes into files that all of them share; its own are removed.

        The folder lies in memory, 64 MiB of it in a container: a role that keeps ending would fill it. Nothing is
        dropped: a sum that became smaller would be taken for a counter that begins anew, and counted again in full.
        """
        with self._lock:
            # What it said of itself while it lived ends with it.
            mark_process_dead(pid, str(self._folder))  # type: ignore[no-untyped-call]
            for file in self._folder.glob(f"*_{pid}.db"):
                kind = file.name.removesuffix(f"_{pid}.db")
                try:
                    _add(file, self._folder / f"{kind}_ended.db", is_gauge=kind.startswith("gauge"))
                    file.unlink()
                except (OSError, RuntimeError, struct.error) as error:
                    log.error("metrics_not_put_away", kind=kind, error=type(error).__name__)


def _add(file: Path, to: Path, *, is_gauge: bool) -> None:
    """Add the values of a file to another's; of a gauge, what was said last."""
    values = list(MmapedDict.read_all_values_from_file(str(file)))  # type: ignore[no-untyped-call]
    sums = MmapedDict(str(to))  # type: ignore[no-untyped-call]
    try:
        for key, value, at, _ in values:
            before, said = sums.read_value(key)  # type: ignore[no-untyped-call]
            if not is_gauge:
                sums.write_value(key, before + value, at)  # type: ignore[no-untyped-call]
            elif at >= said:
                sums.write_value(key, value, at)  # type: ignore[no-untyped-call]
    finally:
        sums.close()  # type: ignore[no-untyped-call]
