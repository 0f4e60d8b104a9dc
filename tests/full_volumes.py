"""A small volume of its own for a data folder, and what fills it."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Volume:
    """A mounted tmpfs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Take all the room that is left, to the last byte."""
        with self._ballast.open("ab", buffering=0) as file:
            for size in (1 << 20, 4096, 1):
                try:
                    while file.write(bytes(size)) == size:
                        pass
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def make_room(self) -> None:
        """Give it back."""
        self._ballast.unlink(missing_ok=True)


@contextmanager
def small_volume(folder: Path, *, megabytes: int, files: int = 0) -> Iterator[Volume]:
    """A volume of a few MiB and files (0: as many as go in), or a skip where this process may not mount one."""
    folder.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,nr_inodes={files}", "stepwedge-test", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"a volume of its own cannot be mounted here: {done.stderr.strip()}")
    try:
        yield Volume(folder)
    finally:
        # What a killed process still holds must not keep the mount.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
