"""A listener on a free port with its spool, and real senders for it."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instances import DX, make_instance, write_file
from peers import dcmtk
from pydicom import Dataset
from rawscu import ASSOCIATE_AC, PATIENCE_SECONDS, RawSCU
from spooled import Spooled, open_spool
from stepwedge.dicom.listener import Listener
from stepwedge.manifest import Package


@dataclass(frozen=True)
class Listening:
    """A running listener."""

    node: Spooled
    listener: Listener

    @property
    def port(self) -> int:
        return self.listener.port

    def connect(self) -> RawSCU:
        """A connection without an association."""
        return RawSCU(self.port)

    def send(self, *files: Path, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """Send files with dcmtk's storescu."""
        return storescu(self.port, *files, options=options)

    def stored(self, dataset: Dataset) -> bool:
        """Whether an instance is in the spool and in the index."""
        study = self.node.site.hash(dataset.StudyInstanceUID)
        rows = [row for row in self.node.store.instances(study) if row.sop_uid == dataset.SOPInstanceUID]
        return len(rows) == 1 and (self.node.settings.data_dir / rows[0].path).is_file()

    def takes_the_next(self) -> bool:
        """Whether the next good instance goes through, its association not being rejected."""
        dataset = make_instance()
        with self.connect() as sender:
            kind, _ = sender.associate((DX,))
            if kind != ASSOCIATE_AC:
                return False
            status = sender.store(dataset)
            sender.release()
        return status == 0 and self.stored(dataset)


def storescu(port: int, *files: Path, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Send files with dcmtk's storescu."""
    titles = () if "-aec" in options else ("-aec", "STEPWEDGE")
    command = [dcmtk("storescu"), "-v", *titles, *options, "127.0.0.1", str(port), *map(str, files)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=4 * PATIENCE_SECONDS, check=False, env={"TCP_NODELAY": "1"}
    )


@contextmanager
def listening(folder: Path, models: list[Package] | None = None, **groups: dict[str, Any]) -> Iterator[Listening]:
    """Run a listener; afterwards none of its threads is left."""
    before = set(threading.enumerate())
    node = {"port": 0} | groups.pop("node", {})
    with open_spool(folder, models, node=node, **groups) as spooled:
        listener = Listener(spooled.settings.node, spooled.spool)
        listener.start()
        try:
            yield Listening(spooled, listener)
        finally:
            listener.stop()
            assert until(lambda: not set(threading.enumerate()) - before), set(threading.enumerate()) - before


def until(true: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> bool:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def make_files(folder: Path, count: int, **kind: Any) -> tuple[list[Dataset], list[Path]]:
    """Instances of one study, and their files."""
    first = make_instance(**kind)
    datasets = [
        make_instance(study=first.StudyInstanceUID, series=first.SeriesInstanceUID, seed=number, **kind)
        for number in range(count)
    ]
    return datasets, [write_file(item, folder / f"{number:03}.dcm") for number, item in enumerate(datasets)]
