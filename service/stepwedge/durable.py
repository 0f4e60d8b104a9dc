"""Small files that are there whole, or as they were, whenever the power fails."""

from __future__ import annotations

import errno
import os
import secrets
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# What SQLite says where the volume under it is full, or a quota is used up, also where it meets that in its shared
# memory file or when it syncs; PostgreSQL says disk_full.
_SQLITE_FULL = frozenset(
    {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_FSYNC}
)
_POSTGRESQL_FULL = "53100"
_TOKEN = secrets.token_hex(4)


def own_name() -> str:
    """A part of a file's name that no other process has: in containers on one volume all may have the same number."""
    return f"{socket.gethostname()}-{os.getpid()}-{_TOKEN}"


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or what it comes from, says that a volume has no room to write."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", None) in _SQLITE_FULL:
            return True
        if getattr(error, "sqlstate", None) == _POSTGRESQL_FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


def write_durably(path: Path, contents: bytes, beside: Path | None = None) -> None:
    """Write a file whole: under another name, fsync, rename, fsync its folder. Raises OSError, and leaves nothing.

    ``beside`` is a folder of the same volume for the other name; the file's own, under a name that begins with a dot,
    where none is given.
    """
    temporary = (beside or path.parent) / f"{'' if beside else '.'}{own_name()}-{threading.get_ident()}-{path.name}"
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


@contextmanager
def reserved(path: Path, size: int) -> Iterator[Callable[[bytes], None]]:
    """Make sure that a small file can be written once something has been done that cannot be taken back.

    Gives what writes it whole, ``size`` bytes at most, into room that is taken before. Raises OSError where there is
    none; leaves nothing if it is not written.
    """
    temporary = path.parent / f".{own_name()}-{threading.get_ident()}-{path.name}"

    def write(contents: bytes) -> None:
        with temporary.open("r+b") as out:
            out.write(contents.ljust(size))
            out.flush()
            os.fsync(out.fileno())
        temporary.rename(path)
        sync_folder(path.parent)

    try:
        with temporary.open("wb") as out:
            out.write(bytes(size))
            out.flush()
            os.fsync(out.fileno())
        yield write
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
