"""All that a node knows, in one file, while it runs; and a node made again from that file.

The order is that in which work goes on, backwards: the queue first, the database, then the files, which only grow. What
happened meanwhile is in the files and not yet in the database, as after a power cut, and the next start takes it up.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import quote

from stepwedge import __version__
from stepwedge.database import is_shared
from stepwedge.durable import sync_folder
from stepwedge.errors import StepwedgeError
from stepwedge.identity import site_file
from stepwedge.rundir import hold, is_beating
from stepwedge.settings import Settings

_FORMAT = 1
_CONTENTS = "backup.json"
_DIGESTS = "SHA256SUMS"
# Of the moment: what is being received, which process lives.
_LEFT_OUT = ("run", "spool/incoming")
_RESTORING = ".restoring"


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """What a backup holds."""

    files: int
    total_bytes: int
    made_at: float  # seconds since 1970
    version: str  # of Stepwedge


def back_up(settings: Settings, file: Path) -> Saved:
    """Write everything in the data folder into one tar file, whole or not at all; the service may run meanwhile.

    Raises
    ------
    StepwedgeError
        If there is no node here, the file exists, or it cannot be written.
    """
    data_dir = settings.data_dir
    if is_shared(settings):
        raise StepwedgeError(
            "backup saves the SQLite files of one machine, and database.url names a PostgreSQL: save it with pg_dump "
            "first and the data folder afterwards, as OPERATIONS.md says"
        )
    if not settings.database_file.is_file() or not site_file(data_dir, settings.site_key_file).is_file():
        raise StepwedgeError(f"{data_dir}: there is no node here; has the service run with these settings?")
    if file.exists():
        raise StepwedgeError(f"{file}: is there already; name another file")
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            saved = _write(settings, out)
            out.flush()
            os.fsync(out.fileno())
        os.link(part, file)
        sync_folder(file.parent)
    except (OSError, sqlite3.Error) as error:
        raise StepwedgeError(f"{file}: the backup cannot be written: {error}") from None
    finally:
        part.unlink(missing_ok=True)
    return saved


def restore(settings: Settings, file: Path) -> Saved:
    """Make a node's data folder again from a backup. What it holds is verified before anything is put in place.

    Raises
    ------
    StepwedgeError
        If the data folder holds anything, or the backup is damaged or of a later version; nothing is left then.
    """
    data_dir = settings.data_dir
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    hold(data_dir)
    found = sorted(each.name for each in data_dir.iterdir() if each.name not in {"run", _RESTORING})
    if found:
        raise StepwedgeError(f"{data_dir}: is not empty ({', '.join(found[:5])}); a node is restored into an empty one")
    alive = [role for role in ("listen", "work") if is_beating(data_dir, role)]
    if alive:
        raise StepwedgeError(f"{data_dir}: stepwedge {alive[0]} is using this data folder; stop it first")
    new = data_dir / _RESTORING
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir(mode=0o700)
        with tarfile.open(file) as tar:
            tar.extractall(new, filter="data")
        saved = _verified(new, file)
        for name in (_CONTENTS, _DIGESTS):
            (new / name).unlink()
        for each in sorted(new.iterdir()):
            each.rename(data_dir / each.name)
        new.rmdir()
        sync_folder(data_dir)
    except (OSError, tarfile.TarError) as error:
        raise StepwedgeError(f"{file}: cannot be restored: {error}") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return saved


def _write(settings: Settings, out: IO[bytes]) -> Saved:
    digests: list[str] = []
    total = 0
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        databases = (settings.queue_file, settings.database_file)
        with tempfile.TemporaryDirectory(dir=settings.data_dir / "run", prefix="backup-") as folder:
            for database in databases:
                if database.is_file():
                    copy = _copied(database, Path(folder) / database.name)
                    total += _add(tar, copy, database.relative_to(settings.data_dir), digests)
        live = {database.with_name(database.name + end) for database in databases for end in ("", "-wal", "-shm")}
        for path in _files(settings.data_dir):
            if path in live:
                continue
            try:
                total += _add(tar, path, path.relative_to(settings.data_dir), digests)
            except FileNotFoundError:
                continue  # of a constancy run that has ended meanwhile
        saved = Saved(files=len(digests), total_bytes=total, made_at=time.time(), version=__version__)
        contents = {"format": _FORMAT, "version": saved.version, "made_at": saved.made_at, "bytes": total}
        _add_text(tar, _CONTENTS, json.dumps(contents))
        _add_text(tar, _DIGESTS, "".join(digests))
    return saved


def _copied(database: Path, copy: Path) -> Path:
    """A whole copy of a database that others write to (SQLite's online backup)."""
    source = f"file:{quote(str(database.absolute()))}?mode=ro"
    with closing(sqlite3.connect(source, uri=True)) as old, closing(sqlite3.connect(copy)) as new:
        old.backup(new)
    return copy


def _files(data_dir: Path) -> Iterator[Path]:
    left_out = {data_dir / name for name in _LEFT_OUT}
    for folder, names, files in os.walk(data_dir):
        here = Path(folder)
        names[:] = sorted(name for name in names if here / name not in left_out)
        yield from (here / name for name in sorted(files) if (here / name).is_file())


class _Digesting:
    """Reads a file, and knows the digest of what was read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        return data


def _add(tar: tarfile.TarFile, path: Path, name: Path, digests: list[str]) -> int:
    with path.open("rb") as file:
        entry = tarfile.TarInfo(str(name))
        status = os.fstat(file.fileno())
        # What is appended while it is read comes with the next backup.
        entry.size, entry.mtime, entry.mode = status.st_size, int(status.st_mtime), 0o600
        reading = _Digesting(file)
        tar.addfile(entry, reading)
    digests.append(f"{reading.digest.hexdigest()}  {name}\n")
    return entry.size


def _add_text(tar: tarfile.TarFile, name: str, text: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime, entry.mode = len(text.encode()), int(time.time()), 0o600
    tar.addfile(entry, io.BytesIO(text.encode()))


def _verified(folder: Path, file: Path) -> Saved:
    """Raises StepwedgeError for a backup that is not whole, or that this version cannot read."""
    try:
        contents = json.loads((folder / _CONTENTS).read_text(encoding="utf-8"))
        known, version = int(contents["format"]), str(contents["version"])
        lines = (folder / _DIGESTS).read_text(encoding="utf-8").splitlines()
        said = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
        saved = Saved(
            files=len(said), total_bytes=int(contents["bytes"]), made_at=float(contents["made_at"]), version=version
        )
    except (OSError, ValueError, KeyError, TypeError):
        raise StepwedgeError(f"{file}: is no whole backup of Stepwedge; take another") from None
    if known > _FORMAT:
        raise StepwedgeError(f"{file}: was made by Stepwedge {version}, whose format this version does not know")
    found = {str(path.relative_to(folder)): path for path in _files(folder)}
    if found.keys() - {_CONTENTS, _DIGESTS} != said.keys():
        raise StepwedgeError(f"{file}: does not hold the files that its list names; take another backup")
    for name, digest in said.items():
        with found[name].open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != digest:
                raise StepwedgeError(f"{file}: {name} is damaged; take another backup")
    return saved
