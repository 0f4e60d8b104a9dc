"""Small files that are there whole, or as they were, whenever the power fails."""

from __future__ import annotations

import os
import threading
from pathlib import Path


def write_durably(path: Path, contents: bytes, beside: Path | None = None) -> None:
    """Write a file whole: under another name, fsync, rename, fsync its folder. Raises OSError, and leaves nothing.

    ``beside`` is a folder of the same volume for the other name; the file's own, under a name that begins with a dot,
    where none is given.
    """
    temporary = (beside or path.parent) / f"{'' if beside else '.'}{os.getpid()}-{threading.get_ident()}-{path.name}"
    try:
        with temporary.open("wb") as out:
            out.write(contents)
            out.flush()
            os.fsync(out.fileno())
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
