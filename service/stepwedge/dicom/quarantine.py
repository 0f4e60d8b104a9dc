"""What was refused as unusable: each content kept once, with the reason, until a person releases or discards it.

::

    spool/quarantine/<digest>.dcm, <digest>.json       a whole DICOM file as it came, and why it was refused

``digest`` is the SHA-256 of the data set. To release an object is to take it through the ordinary intake once more, as
when the setting that kept it out was changed; it is refused again where nothing has changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import structlog

from stepwedge import metrics
from stepwedge.dicom.encoded import Received, clean_title, file_meta, is_uid, received_as
from stepwedge.durable import sync_folder, write_durably
from stepwedge.errors import NotKeptError, SpoolFullError, StepwedgeError, UnusableInstanceError
from stepwedge.settings import Settings
from stepwedge.store import Quarantined, Store

log = structlog.get_logger()

_DIGEST = re.compile(r"[0-9a-f]{64}")

Taken = TypeVar("Taken")


class Quarantine:
    """The folder and its index. Safe for the threads of one process."""

    def __init__(self, settings: Settings, store: Store, write: Callable[[Path, bytes, bytes, float], None]) -> None:
        """``write`` puts a file in its place whole and durably: path, file meta information, data set, time."""
        self._settings, self._store, self._write = settings, store, write
        self.folder = settings.data_dir / "spool" / "quarantine"
        self._lock = threading.Lock()

    def index(self) -> None:
        """Index what the index lacks. What cannot be read is named in the log and left where it is."""
        known = {item.digest for item in self._store.quarantined()}
        for file in self.folder.glob("*.json"):
            if file.stem in known:
                continue
            try:
                item = Quarantined(**json.loads(file.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError) as error:
                log.error("quarantine_unreadable", file=file.name, error=type(error).__name__)
                continue
            self._store.quarantine(item)

    def keep(self, received: Received, error: UnusableInstanceError) -> None:
        """Keep what was refused, each content once and within the caps; what is beyond them is only counted.

        Never raises for want of space: the sender has its answer already.
        """
        digest = hashlib.sha256(received.data).hexdigest()
        file = self.folder / f"{digest}.dcm"
        now = time.time()
        metrics.QUARANTINED.labels(error.code).inc()
        with self._lock:
            kept = file.exists() or self._keep_file(file, received, error, now)
        item = Quarantined(
            # Beyond the caps one row for each reason counts them all, or rubbish would fill the database.
            digest=digest if kept else f"{error.code}:not-kept",
            reason=error.code,
            sender=clean_title(received.sender),
            count=1,
            first_seen=now,
            last_seen=now,
            size=len(received.data),
            path=str(file.relative_to(self._settings.data_dir)) if kept else None,
        )
        count = self._store.quarantine(item)
        log.warning("instance_refused", reason=error.code, sender=item.sender, kept=kept, digest=digest, count=count)

    def release(self, digest: str, take_in: Callable[[Received], Taken]) -> Taken:
        """Take a kept object through the intake, and forget it here; what the intake gave.

        Raises
        ------
        UnusableInstanceError
            If it is refused again; it is kept.
        NotKeptError
            If it is not kept here.
        StepwedgeError
            If it is no longer what was received, or larger than is received now.
        SpoolFullError, OSError, SQLAlchemyError
            As the intake does; it is kept.
        """
        file = self._file(digest)
        try:
            received = received_as(file.read_bytes())
        except FileNotFoundError:
            raise NotKeptError("it is not kept in quarantine any more") from None
        if hashlib.sha256(received.data).hexdigest() != digest:
            raise StepwedgeError("the file in quarantine is no longer what was received; discard it")
        if len(received.data) > self._settings.node.maximum_instance_bytes:
            raise StepwedgeError("it is larger than node.maximum_instance_bytes; raise that, or discard it")
        taken = take_in(received)
        self.discard(digest)
        return taken

    def discard(self, digest: str) -> None:
        """Delete an object, if it is kept, and its entry. Raises OSError or SQLAlchemyError."""
        if _DIGEST.fullmatch(digest):
            file = self._file(digest)
            with self._lock:
                # First what the index would be made again from.
                file.with_suffix(".json").unlink(missing_ok=True)
                file.unlink(missing_ok=True)
                sync_folder(self.folder)
        self._store.forget_quarantined(digest)

    def _file(self, digest: str) -> Path:
        """Where an object is. Raises StepwedgeError for what can be no digest: of those only the count is kept."""
        if not _DIGEST.fullmatch(digest):
            raise StepwedgeError("only the count of these is kept; let the sender send them again")
        return self.folder / f"{digest}.dcm"

    def _keep_file(self, file: Path, received: Received, error: UnusableInstanceError, now: float) -> bool:
        spool, size = self._settings.spool, len(received.data)
        files, kept_bytes = self._kept()
        if files >= spool.quarantine_files or kept_bytes + size > spool.quarantine_bytes:
            return False
        sender = clean_title(received.sender)
        # UIDs that are none stay out of the file meta information; the data set says them.
        meta = file_meta(
            sop_class_uid=received.sop_class_uid if is_uid(received.sop_class_uid) else "",
            sop_uid=received.sop_uid if is_uid(received.sop_uid) else "",
            transfer_syntax_uid=received.transfer_syntax_uid,
            sender=sender,
            receiver=self._settings.node.ae_title,
        )
        description = {
            "digest": file.stem,
            "reason": error.code,
            "sender": sender,
            "count": 1,
            "first_seen": now,
            "last_seen": now,
            "size": size,
            "path": str(file.relative_to(self._settings.data_dir)),
        }
        incoming = self._settings.data_dir / "spool" / "incoming"
        try:
            self._write(file, meta, received.data, now)
            write_durably(file.with_suffix(".json"), json.dumps(description, indent=2).encode(), incoming)
        except (OSError, SpoolFullError):
            file.unlink(missing_ok=True)
            return False
        return True

    def _kept(self) -> tuple[int, int]:
        """How many files and bytes are kept; counted each time, because other listeners share the folder."""
        sizes = []
        for file in self.folder.glob("*.dcm"):
            with contextlib.suppress(FileNotFoundError):  # discarded this moment
                sizes.append(file.stat().st_size)
        return len(sizes), sum(sizes)
