"""The ``run`` folder: who holds the data and which roles are alive; and where their metrics are gathered, in memory.

Nothing in either outlives the service.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwedge import __version__
from stepwedge.durable import own_name
from stepwedge.errors import StepwedgeError

# A role that has not written for this long is not ready. Generous: a busy machine is not a dead one.
STALE_SECONDS = 20.0
_INTERVAL_SECONDS = 1.0
_CHANGES_WITHIN_SECONDS = 2.5
_MEMORY = Path("/dev/shm")  # noqa: S108 - the folders made there are of this user alone


def take(file: Path) -> int:
    """Lock a file for this process alone, until the handle that this returns is closed or the process ends.

    Raises BlockingIOError if another process holds it.
    """
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def hold(data_dir: Path) -> None:
    """Keep a second service away from the same data, until this process ends.

    Raises StepwedgeError if another one holds it.
    """
    try:
        handle = take(data_dir / "run" / "serve.lock")
    except BlockingIOError:
        raise StepwedgeError(f"{data_dir}: another stepwedge serve is using this data folder; stop it first") from None
    os.ftruncate(handle, 0)
    os.write(handle, str(os.getpid()).encode())


def holder(data_dir: Path) -> int | None:
    """The process that holds the data of this machine's service, or None if none does."""
    file = data_dir / "run" / "serve.lock"
    try:
        handle = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        text = os.read(handle, 32).decode("ascii", "replace").strip()
        return int(text) if text.isdigit() else None
    finally:
        os.close(handle)
    return None


def tell(data_dir: Path, name: str, values: dict[str, Any]) -> None:
    """Leave a word for other processes of this machine, in the place of the one before."""
    file = _file(data_dir, f"said.{name}")
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{own_name()}")
    temporary.write_text(json.dumps(values), encoding="utf-8")
    temporary.replace(file)


def told(data_dir: Path, name: str) -> dict[str, Any]:
    """What was last left under a name; empty if nothing was."""
    try:
        values: dict[str, Any] = json.loads(_file(data_dir, f"said.{name}").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values


@contextmanager
def scratch(data_dir: Path, name: str) -> Iterator[Path]:
    """An empty folder of this user alone, in memory where the machine has such a place; removed at the end.

    For what processes of one machine map into their memory: on the data folder's volume, when it is full, the kernel
    would end them (SIGBUS). What a killed process left there is removed first, so one process at a time may hold a
    name. Raises StepwedgeError if the folder cannot be made.
    """
    place = _MEMORY if os.access(_MEMORY, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())
    key = hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:16]
    folder = place / f"stepwedge-{os.getuid()}-{key}-{name}"
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise StepwedgeError(f"{folder}: the folder cannot be made ({error.strerror}); remove what is there") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def gathered_metrics(data_dir: Path) -> Iterator[None]:
    """Make this process and the roles that it starts keep their metrics in one folder, from zero.

    Has to be entered before ``stepwedge.metrics`` is imported: its library decides on import where metrics are kept.
    """
    with scratch(data_dir, "metrics") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
        yield


class Heartbeat:
    """Writes ``run/<role>.json`` every second until stopped."""

    def __init__(self, data_dir: Path, role: str, **said: str) -> None:
        """``said`` is what others may read of the role while it lives (``said_by_living``)."""
        self._file, self._said = _file(data_dir, role), said
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Say that the role is ready."""
        self._write()
        self._thread.start()

    def stop(self) -> None:
        """Say that it no longer is."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        self._file.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._stopped.wait(_INTERVAL_SECONDS):
            # On a full disk the role is not ready; when there is room again, it is.
            with contextlib.suppress(OSError):
                self._write()

    def _write(self) -> None:
        temporary = self._file.with_suffix(f".{own_name()}")
        said = {"pid": os.getpid(), "at": time.time(), "version": __version__, "host": socket.gethostname()}
        temporary.write_text(json.dumps(self._said | said))
        temporary.replace(self._file)


@dataclass(frozen=True, kw_only=True, slots=True)
class Beat:
    """What a role last said of itself."""

    role: str  # listen, work, work.<executor>, page
    at: float  # seconds since 1970
    version: str
    host: str

    @property
    def fresh(self) -> bool:
        """Whether it was lately."""
        return abs(time.time() - self.at) < STALE_SECONDS


def beats(data_dir: Path) -> list[Beat]:
    """What each role last said, by its name; of those that ended in order nothing is left."""
    roles = sorted(file.stem for file in (data_dir / "run").glob("*.json") if not file.name.startswith("said."))
    return [beat for beat in (_beat(data_dir, role) for role in roles) if beat is not None]


def is_beating(data_dir: Path, role: str) -> bool:
    """Whether a role has lately said that it is ready."""
    beat = _beat(data_dir, role)
    return beat is not None and beat.fresh


def silent(data_dir: Path, roles: Iterable[str]) -> set[str]:
    """Those of some roles that give no sign of life. What a living one says changes, however wrong its clock is."""
    unsure = {role: _text(data_dir, role) for role in roles if not is_beating(data_dir, role)}
    if any(unsure.values()):
        time.sleep(_CHANGES_WITHIN_SECONDS)
    return {role for role, text in unsure.items() if _text(data_dir, role) in {text, None}}


def said_by_living(data_dir: Path, roles: str, others: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """What the living say (``Heartbeat``), by role: of those whose names begin so, and of some others."""
    names = {*others, *(file.stem for file in (data_dir / "run").glob(f"{roles}*.json"))}
    return {name: _said(_text(data_dir, name)) for name in sorted(names - silent(data_dir, names))}


def at_work(data_dir: Path) -> str | None:
    """A role that works in a data folder now, on any machine that shares it; None if none does."""
    if holder(data_dir) is not None:
        return "serve"
    roles = sorted(file.stem for file in (data_dir / "run").glob("*.json"))
    return next(
        (role for role in roles if role.startswith(("listen", "work", "page")) and is_beating(data_dir, role)), None
    )


def clear(data_dir: Path, role: str) -> None:
    """Forget what a role that has died said."""
    _file(data_dir, role).unlink(missing_ok=True)


def _beat(data_dir: Path, role: str) -> Beat | None:
    """What a role last said; None if it said nothing, or what cannot be read."""
    said = _said(_text(data_dir, role))
    version, host = str(said.get("version", "")), str(said.get("host", ""))
    try:
        return Beat(role=role, at=float(said["at"]), version=version, host=host)
    except (KeyError, TypeError, ValueError):
        return None


def _said(text: str | None) -> dict[str, Any]:
    try:
        values = json.loads(text or "")
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _text(data_dir: Path, role: str) -> str | None:
    try:
        return _file(data_dir, role).read_text(encoding="utf-8")
    except OSError:
        return None


def _file(data_dir: Path, role: str) -> Path:
    return data_dir / "run" / f"{role}.json"
