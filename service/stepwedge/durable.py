"""Small files that are there whole, or as they were, whenever the power fails."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from pathlib import Path

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# What SQLite says where the volume under it is full, and where it meets that in its shared memory file.
_SQLITE_FULL = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR})


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or what it comes from, says that a volume has no room to write."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        # Their low byte is the kind of error.
        if isinstance(error, sqlite3.Error) and (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _SQLITE_FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


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
