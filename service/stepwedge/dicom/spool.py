"""The spool: every instance that was acknowledged, as files. The database is an index of them.

::

    spool/incoming/                                              half-written; what nobody goes on with is removed
    spool/studies/<study[:2]>/<study>/<instance>.<digest[:16]>.dcm
    spool/studies/<study[:2]>/<study>/revision-<n>.json          written by ``studies``
    spool/quarantine/<digest>.dcm, <digest>.json                 what was refused as unusable, and why

``study`` and ``instance`` are keyed hashes, so no UID can harm a path, and the same SOP Instance UID in two series is
two instances. A file is a whole DICOM file whose data set is unchanged as received; its time of modification is when
it was received, and its file meta information says from whom. So the index can be made again from files alone.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pydicom
import structlog
from sqlalchemy.exc import SQLAlchemyError

from stepwedge import metrics
from stepwedge.dicom.attributes import quieten_pydicom
from stepwedge.dicom.codestream import FOREIGN_ERRORS
from stepwedge.dicom.encoded import (
    STATUS_CANNOT_UNDERSTAND,
    Identity,
    Received,
    check_command,
    clean_title,
    file_meta,
    read_identity,
    split_file,
)
from stepwedge.dicom.quarantine import Quarantine
from stepwedge.dicom.verified import STRUCTURED_REPORTS, finding_codes, labels_of, replaced
from stepwedge.durable import own_name, sync_folder, write_durably
from stepwedge.errors import SpoolFullError, UnusableInstanceError
from stepwedge.identity import Site
from stepwedge.manifest import Manifest, selects
from stepwedge.settings import Settings
from stepwedge.store import Store, StoredInstance

log = structlog.get_logger()

# Documents about images, without pixels of their own; never analysed, whatever a package declares.
_DOCUMENTS = frozenset({"SR", "KO", "PR"})
_VOLUME_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# Folders that this process has made durable; forgotten when there are this many, which costs one fsync each.
_REMEMBERED_FOLDERS = 4096
_UNFINISHED_SECONDS = 3600.0  # after which what is half-written is no longer being written
_SERIAL = itertools.count()
_LATER_SECONDS = 0.001  # between two contents of one instance, at least: what a file's time can tell apart


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """Where an instance lies. ``new`` is false for content that was there already."""

    study: str
    instance: str
    new: bool


class InstanceSpool:
    """The spool's folders and their index. Safe for threads, and for several nodes on a common volume."""

    def __init__(
        self,
        settings: Settings,
        site: Site,
        store: Store,
        manifests: Sequence[Manifest],
        is_own_result: Callable[[pydicom.Dataset], bool],
    ) -> None:
        self._settings = settings
        self._site = site
        self._store = store
        self.use(manifests)
        self._is_own_result = is_own_result
        self.root = settings.data_dir / "spool"
        self._incoming, self._studies = self.root / "incoming", self.root / "studies"
        self.quarantine = Quarantine(settings, store, self._write)
        self._lock = threading.Lock()
        self._folders: set[Path] = set()
        self._unindexed: set[Path] = set()

    def use(self, manifests: Sequence[Manifest]) -> None:
        """Select by these from now on; what is there keeps what it was selected for."""
        self._manifests = tuple(manifests)
        self._findings = finding_codes(self._manifests)

    def prepare(self) -> None:
        """Make the folders, and drop what has long been half-written. Before the first instance."""
        quieten_pydicom()
        for folder in (self._incoming, self._studies, self.quarantine.folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in (self.root, self.root.parent):
            sync_folder(folder)
        self.remove_unfinished()
        self.free_bytes()

    def remove_unfinished(self) -> int:
        """Remove what a killed process left half-written, once nobody can be writing it; how many files."""
        before = time.time() - _UNFINISHED_SECONDS
        removed = 0
        for file in self._incoming.iterdir():
            with suppress(FileNotFoundError):  # another node looks too, or has finished it
                if file.stat().st_mtime < before:
                    file.unlink()
                    removed += 1
        return removed

    def free_bytes(self) -> int:
        """Free bytes on the spool's volume."""
        free = shutil.disk_usage(self.root).free
        metrics.SPOOL_FREE_BYTES.labels("listen").set(free)
        return free

    # Instances

    def store(self, received: Received) -> Stored:
        """Keep an instance; when this returns it is durable and indexed.

        Content that is there already changes nothing. Another content of the same SOP instance is kept beside it, and
        the one that came last counts.

        Raises
        ------
        UnusableInstanceError
            If it is not what it claims to be, or came with different content too often (the bound may be passed by
            as many as there are associations sending it at once).
        SpoolFullError
            If the volume is full, or below ``spool.reserve_bytes``.
        OSError, SQLAlchemyError
            If the volume or the index fails. What became durable before is kept and indexed later, though the sender
            is told of a failure: an archive that repeats itself is seen, an index that stays behind is not.
        """
        limit = self._settings.node.maximum_instance_bytes
        identity = read_identity(received.data, received.transfer_syntax_uid, maximum_bytes=limit)
        check_command(identity, sop_class_uid=received.sop_class_uid, sop_uid=received.sop_uid)
        digest = hashlib.sha256(received.data).hexdigest()
        # Under the key that the study came under, if it is here already: the spool is the truth, also of names.
        site = self._site.holding(identity.study_uid, lambda study: self.study_folder(study).is_dir())
        study = site.hash(identity.study_uid)
        instance = site.hash(f"{identity.series_uid}|{identity.sop_uid}")
        path = self.study_folder(study) / f"{instance}.{digest[:16]}.dcm"
        if path.exists():
            if self._store.has_instance(study, instance, digest):
                return Stored(study=study, instance=instance, new=False)
        elif self._store.instance_versions(study, instance) >= self._settings.spool.instance_versions:
            raise UnusableInstanceError(
                "too_many_versions",
                "this SOP instance came with different content too often; find out why its sender keeps changing it",
                status=STATUS_CANNOT_UNDERSTAND,
            )
        sender = clean_title(received.sender)
        meta = file_meta(
            sop_class_uid=identity.sop_class_uid,
            sop_uid=identity.sop_uid,
            transfer_syntax_uid=received.transfer_syntax_uid,
            sender=sender,
            receiver=self._settings.node.ae_title,
        )
        # Later than every other content of this instance, whatever the clock says: the one that came last counts.
        received_at = max(time.time(), self._store.last_received(study, instance) + _LATER_SECONDS)
        self._write(path, meta, received.data, received_at)
        self._index(
            path,
            self._record(
                path,
                identity,
                transfer_syntax_uid=received.transfer_syntax_uid,
                digest=digest,
                size=len(received.data),
                received_at=received_at,
                sender=sender,
            ),
        )
        return Stored(study=study, instance=instance, new=True)

    def study_folder(self, study: str) -> Path:
        """Where a study's files are."""
        return self._studies / study[:2] / study

    def index_pending(self) -> None:
        """Index what an index that failed has missed. Raises SQLAlchemyError while it still fails."""
        with self._lock:
            pending = sorted(self._unindexed)
        for path in pending:
            if self._reindex(path):
                log.info("instance_indexed_later", instance=path.name.partition(".")[0])

    def reconcile(self, stop: threading.Event | None = None) -> int:
        """Index every instance and every quarantined file that the index lacks; how many instances that were.

        A file that cannot be read is named in the log and left where it is. Ends early if asked to stop.
        """
        added = 0
        for folder in sorted(self._studies.glob("??/*")):
            if stop is not None and stop.is_set():
                return added
            files = {str(file.relative_to(self._settings.data_dir)): file for file in folder.glob("*.dcm")}
            missing = files.keys() - self._store.instance_paths(folder.name)
            for file in sorted((files[name] for name in missing), key=lambda file: file.stat().st_mtime_ns):
                added += self._reindex(file)
        self.quarantine.index()
        return added

    def _index(self, path: Path, record: StoredInstance) -> None:
        try:
            self._store.add_instance(record)
            self._keep_labels(path, record)
        except SQLAlchemyError:
            with self._lock:
                self._unindexed.add(path)
            raise
        with self._lock:
            self._unindexed.discard(path)

    def _keep_labels(self, path: Path, record: StoredInstance) -> None:
        """What a radiologist's report says of our findings, kept beside the observations."""
        if not record.sop_class_uid.startswith(STRUCTURED_REPORTS) or self._is_ours(path):
            return
        site = self._site.naming(record.study, record.study_uid)
        reading = labels_of(path, record.study, self._findings, site)
        withdrawn = replaced(self._store.labels(record.study), reading) if reading.withdrawals else []
        for label in (*reading.labels, *withdrawn):
            new = self._store.add_label(label.label, label.study, label.to_json())
            metrics.LABELS.labels("new" if new else "known").inc()
        for reason in reading.refused.values():
            metrics.LABELS.labels(reason).inc()

    def _reindex(self, file: Path) -> bool:
        """Index a file from itself alone; False if it cannot be read, which the log says."""
        try:
            record = self._read_back(file)
        except (OSError, UnusableInstanceError) as error:
            log.error("instance_in_the_spool_cannot_be_read", file=file.name, error=type(error).__name__)
            with self._lock:
                self._unindexed.discard(file)
            return False
        self._index(file, record)
        return True

    def _read_back(self, file: Path) -> StoredInstance:
        """A file's entry in the index, from the file alone. Raises OSError or UnusableInstanceError."""
        syntax, sender, data = split_file(file.read_bytes())
        identity = read_identity(data, syntax, maximum_bytes=self._settings.node.maximum_instance_bytes)
        digest = hashlib.sha256(data).hexdigest()
        if digest[:16] != file.name.split(".")[1]:
            raise UnusableInstanceError("not_dicom", f"{file.name}: its content has changed; restore it")
        return self._record(
            file,
            identity,
            transfer_syntax_uid=syntax,
            digest=digest,
            size=len(data),
            received_at=file.stat().st_mtime_ns / 1e9,
            sender=sender,
        )

    def _record(
        self,
        file: Path,
        identity: Identity,
        *,
        transfer_syntax_uid: str,
        digest: str,
        size: int,
        received_at: float,
        sender: str,
    ) -> StoredInstance:
        return StoredInstance(
            study=file.parent.name,
            instance=file.name.partition(".")[0],
            digest=digest,
            path=str(file.relative_to(self._settings.data_dir)),
            study_uid=identity.study_uid,
            series_uid=identity.series_uid,
            sop_uid=identity.sop_uid,
            sop_class_uid=identity.sop_class_uid,
            transfer_syntax_uid=transfer_syntax_uid,
            modality=identity.modality,
            routed=self._is_routed(file, identity),
            size=size,
            received_at=received_at,
            sender=sender,
        )

    def _is_routed(self, file: Path, identity: Identity) -> bool:
        """Whether a configured model selects it; documents and what we wrote ourselves never count."""
        return (
            identity.modality not in _DOCUMENTS
            and any(
                selects(manifest, modality=identity.modality, has_pixels=identity.has_pixels)
                for manifest in self._manifests
            )
            and not self._is_ours(file)
        )

    def _is_ours(self, file: Path) -> bool:
        try:
            return self._is_own_result(pydicom.dcmread(file, stop_before_pixels=True))
        except FOREIGN_ERRORS as error:
            # It is none of ours: those are sound.
            log.warning("header_cannot_be_read", instance=file.name.partition(".")[0], error=type(error).__name__)
            return False

    # Files

    def _write(self, path: Path, meta: bytes, data: bytes, received_at: float) -> None:
        """Write beside, fsync, rename, fsync the folder. Raises SpoolFullError or OSError, and leaves nothing."""
        self._check_room(len(meta) + len(data))
        temporary = self._incoming / f"{own_name()}-{next(_SERIAL)}"
        with self._full_is_said(), temporary.open("xb") as out:
            try:
                out.write(meta)
                out.write(data)
                out.flush()
                nanoseconds = round(received_at * 1e9)
                os.utime(out.fileno(), ns=(nanoseconds, nanoseconds))
                os.fsync(out.fileno())
                self._make_durable(path.parent)
                temporary.rename(path)
                sync_folder(path.parent)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise

    @contextmanager
    def _full_is_said(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _VOLUME_FULL:
                raise SpoolFullError(f"{self.root}: the volume is full; free some space") from None
            raise

    def _check_room(self, size: int) -> None:
        free = self.free_bytes()
        reserve = self._settings.spool.reserve_bytes
        if free - size < reserve:
            raise SpoolFullError(
                f"{self.root}: {free} bytes are free, and {reserve} are to be kept free (spool.reserve_bytes); "
                "free some space"
            )

    def _make_durable(self, folder: Path) -> None:
        """Make a study's folder such that it outlives a loss of power, whoever of several threads comes first."""
        with self._lock:
            if folder in self._folders:
                return
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            sync_folder(folder.parent)
            sync_folder(folder.parent.parent)
            if len(self._folders) >= _REMEMBERED_FOLDERS:
                self._folders.clear()
            self._folders.add(folder)

    # Small files

    def write_beside(self, path: Path, contents: bytes) -> None:
        """Write a small file of a study so that it is there whole, or as it was, whenever the power fails."""
        self._make_durable(path.parent)
        write_durably(path, contents, self._incoming)

    def study_files(self, pattern: str) -> Iterator[Path]:
        """The files of all studies whose names match a pattern."""
        return self._studies.glob(f"??/*/{pattern}")
