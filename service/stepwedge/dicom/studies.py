"""When a study is complete, and what is to be done with it then.

A study is closed when no instance came for its quiet period. The revision's file is written first; the rows of the
revision and of its units follow in one transaction, and the units are queued last. Whatever a killed process leaves
of this is finished at the next start.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import structlog
from sqlalchemy.exc import SQLAlchemyError

from stepwedge import metrics, tracing
from stepwedge.dicom.spool import InstanceSpool
from stepwedge.errors import StepwedgeError
from stepwedge.manifest import Package, selects
from stepwedge.records import State
from stepwedge.reference import is_reference, registered
from stepwedge.settings import Completeness
from stepwedge.store import Revision, Store, StoredInstance, Study, Unit, unit_id

log = structlog.get_logger()

_SCHEMA = 1
_REMOVE_SECONDS = 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RevisionFile:
    """What ``revision-<n>.json`` says: the instances, and the units of work that were made of them."""

    revision: Revision
    units: tuple[Unit, ...]


class StudyCloser:
    """Closes complete studies and queues their units of work. One per spool; not for several threads.

    Parameters
    ----------
    models
        The packages that run here. A unit of work is made for each that selects an instance.
    is_sending
        Whether an association is open that has sent to this study.
    enqueue
        Puts a unit into the durable queue; doing so again must do nothing.
    """

    def __init__(
        self,
        *,
        settings: Completeness,
        spool: InstanceSpool,
        store: Store,
        models: Sequence[Package],
        is_sending: Callable[[str], bool],
        enqueue: Callable[[Unit], None],
    ) -> None:
        self._settings = settings
        self._spool = spool
        self._data_dir = spool.root.parent
        self._store = store
        self._models = tuple(models)
        self._is_sending = is_sending
        self._enqueue = enqueue
        self._seen: dict[str, tuple[float, float]] = {}
        self._to_queue: dict[str, Unit] = {}
        self._failures: dict[str, str] = {}  # that still last, by what they are about: logged once, not at every look

    def use(self, models: Sequence[Package]) -> None:
        """Make units of work for these packages from now on."""
        self._models = tuple(models)

    def recover(self, stop: threading.Event | None = None) -> None:
        """Finish what a killed process left: index what is on disk only, and queue what may not be queued.

        It takes the longer the more studies there are, and may be asked to stop. What is received meanwhile is safe.
        """
        began = time.monotonic()
        added = self._spool.reconcile(stop)
        if stop is not None and stop.is_set():
            return
        restored = restore_revisions(self._spool, self._store)
        self._to_queue |= {unit.unit: unit for unit in self._store.units(states=[State.QUEUED])}
        log.info(
            "spool_reconciled",
            instances=added,
            revisions=restored,
            units_to_queue=len(self._to_queue),
            seconds=round(time.monotonic() - began, 1),
        )

    def run(self, stop: threading.Event) -> None:
        """Finish what a killed process left, then look for complete studies, until asked to stop."""
        recovered = False
        remove_at = time.monotonic() + _REMOVE_SECONDS  # the spool has just done it
        while not stop.wait(self._settings.poll_seconds):
            try:
                if not recovered:
                    self.recover(stop)
                    recovered = True
                if time.monotonic() >= remove_at:
                    remove_at += _REMOVE_SECONDS
                    self._spool.remove_unfinished()
                self._spool.free_bytes()
                self._spool.index_pending()
                self.close_complete(time.time(), time.monotonic())
            except Exception as error:  # noqa: BLE001 - the edge of the role: recorded, and tried again at the next look
                if self._is_news("", error):
                    log.error("looking_for_complete_studies_failed", error=type(error).__name__)
            else:
                self._failures.pop("", None)

    def _is_news(self, about: str, error: Exception) -> bool:
        """Whether a failure to do with a study, a unit or the look itself is not the one that was logged last."""
        name = type(error).__name__
        before, self._failures[about] = self._failures.get(about), name
        return name != before

    def close_complete(self, now: float, monotonic: float) -> list[Unit]:
        """Close every study that is complete, and queue the units; the new ones are returned.

        Parameters
        ----------
        now
            Seconds since 1970, against which instances were stamped.
        monotonic
            Seconds on a clock that is never set. It counts where the other was set back, so that no study waits
            for a time that does not come.
        """
        made: list[Unit] = []
        studies = self._store.open_studies()
        self._seen = {study.study: self._first_seen(study, monotonic) for study in studies}
        for study in studies:
            waited = max(now - study.last_instance_at, monotonic - self._seen[study.study][1])
            try:
                made += self._close_if_complete(study, now, waited)
            except (OSError, SQLAlchemyError, StepwedgeError) as error:
                # The disk or the database: other studies may go through, and this one is tried again.
                if self._is_news(study.study, error):
                    log.error("study_cannot_be_closed", study=study.study, error=type(error).__name__)
            else:
                self._failures.pop(study.study, None)
        self._to_queue |= {unit.unit: unit for unit in made}
        lasting = {"", *self._seen, *self._to_queue}
        self._failures = {about: error for about, error in self._failures.items() if about in lasting}
        self._queue_units()
        return made

    def _first_seen(self, study: Study, monotonic: float) -> tuple[float, float]:
        """The latest instance's time, and when this process first saw it."""
        seen = self._seen.get(study.study)
        return seen if seen and seen[0] == study.last_instance_at else (study.last_instance_at, monotonic)

    def _close_if_complete(self, study: Study, now: float, waited: float) -> list[Unit]:
        if waited < self._shortest_quiet():
            return []
        contents = self._store.count_contents(study.study)
        instances = self._store.instances(study.study)
        if waited < self._quiet_seconds(instances):
            return []
        if waited < self._settings.open_association_seconds and self._is_sending(study.study):
            return []
        written = self._revision_of(study, [item for item in instances if item.routed], now)
        if isinstance(written, str):
            if self._store.close_study(study, None, contents=contents):
                self._count(study, written)
                _trace(study, now, written, len(instances))
                log.info("study_complete", study=study.study, routing=written, instances=len(instances))
            return []
        write_revision(self._spool, written)
        if not self._store.close_study(study, written.revision, written.units, contents=contents):
            return []  # an instance came in between; the file is written again when the study is quiet
        self._count(study, "routed")
        _trace(study, now, "routed", len(instances), written)
        log.info(
            "study_complete",
            study=study.study,
            routing="routed",
            revision=written.revision.revision,
            instances=len(instances),
            routed=len(written.revision.paths),
            units=[unit.unit for unit in written.units],
        )
        return list(written.units)

    def _count(self, study: Study, routing: str) -> None:
        if not is_reference(self._data_dir, study.study):
            metrics.STUDIES_COMPLETED.labels(routing).inc()

    def _revision_of(self, study: Study, routed: Sequence[StoredInstance], now: float) -> RevisionFile | str:
        """The study's next revision, or why there is none: not_routed or unchanged."""
        models = self._models  # one set for the whole revision
        sent_for = registered(self._data_dir, study.study)  # a reference study is for one model
        chosen = [
            package.digest
            for package in models
            if (sent_for is None or sent_for.model_name == package.manifest.name)
            and any(selects(package.manifest, modality=item.modality, has_pixels=True) for item in routed)
        ]
        if not chosen:
            return "not_routed"
        paths = tuple(item.path for item in routed)
        last = self._store.revision(study.study, study.revision)
        if last is not None and set(last.paths) == set(paths):
            return "unchanged"
        revision = Revision(
            study=study.study,
            revision=study.revision + 1,
            closed_at=now,
            last_instance_at=study.last_instance_at,
            paths=paths,
        )
        units = tuple(
            Unit(
                unit=unit_id(study.study, revision.revision, package.digest),
                study=study.study,
                revision=revision.revision,
                model_name=package.manifest.name,
                model_digest=package.digest,
                created_at=now,
                last_instance_at=study.last_instance_at,
            )
            for package in models
            if package.digest in chosen
        )
        return RevisionFile(revision=revision, units=units)

    def _quiet_seconds(self, instances: Iterable[StoredInstance]) -> float:
        """The longest quiet period of the modalities in a study."""
        by_modality = {name.upper(): value for name, value in self._settings.quiet_seconds_by_modality.items()}
        default = self._settings.quiet_seconds
        return max((by_modality.get(item.modality, default) for item in instances), default=default)

    def _shortest_quiet(self) -> float:
        return min((self._settings.quiet_seconds, *self._settings.quiet_seconds_by_modality.values()))

    def _queue_units(self) -> None:
        for unit in list(self._to_queue.values()):
            try:
                self._enqueue(unit)
            except Exception as error:  # noqa: BLE001 - whatever the queue raises: the unit is kept and tried again
                if self._is_news(unit.unit, error):
                    log.error("unit_cannot_be_queued", unit=unit.unit, error=type(error).__name__)
                return
            self._failures.pop(unit.unit, None)
            del self._to_queue[unit.unit]


def _trace(study: Study, now: float, routing: str, instances: int, written: RevisionFile | None = None) -> None:
    """The spans of a study and of its revision, on which those of other roles hang."""
    first = tracing.of_study(study.study)
    if study.revision == 0:
        began = study.first_instance_at
        tracing.record_at(
            first, "study", began=began, ended=now, study=study.study, routing=routing, instances=instances
        )
    if written is None:
        return
    revision = written.revision
    tracing.record_at(
        tracing.of_revision(study.study, revision.revision),
        "revision",
        under=first,
        began=revision.last_instance_at,
        ended=now,
        study=study.study,
        revision=revision.revision,
        instances=instances,
        routed=len(revision.paths),
        units=[unit.unit for unit in written.units],
    )


def write_revision(spool: InstanceSpool, written: RevisionFile) -> None:
    """Write a revision's file beside the instances. Raises OSError."""
    values = {
        "schema": _SCHEMA,
        "revision": asdict(written.revision) | {"paths": list(written.revision.paths)},
        "units": [
            {"unit": unit.unit, "model_name": unit.model_name, "model_digest": unit.model_digest}
            for unit in written.units
        ],
    }
    path = spool.study_folder(written.revision.study) / f"revision-{written.revision.revision}.json"
    spool.write_beside(path, (json.dumps(values, indent=2) + "\n").encode())


def read_revision(file: Path) -> RevisionFile:
    """Read a revision's file; its units are as they were when it was closed. Raises OSError, ValueError or KeyError."""
    values = json.loads(file.read_text(encoding="utf-8"))
    if values["schema"] != _SCHEMA:
        raise ValueError(f"{file.name} has schema {values['schema']}, this version reads {_SCHEMA}")
    revision = Revision(**(values["revision"] | {"paths": tuple(values["revision"]["paths"])}))
    units = tuple(
        Unit(
            **item,
            study=revision.study,
            revision=revision.revision,
            created_at=revision.closed_at,
            last_instance_at=revision.last_instance_at,
        )
        for item in values["units"]
    )
    return RevisionFile(revision=revision, units=units)


def restore_revisions(spool: InstanceSpool, store: Store) -> int:
    """Index the revisions whose files the index lacks, their units as queued where they are not there yet.

    Units come before their revision, so that a process killed in between does this again. The study is left open: it
    closes by itself if it has no more instances than its last revision.
    """
    known = store.revision_keys()
    restored = 0
    for file in sorted(spool.study_files("revision-*.json")):
        number = file.stem.removeprefix("revision-")
        if number.isdigit() and (file.parent.name, int(number)) in known:
            continue
        try:
            found = read_revision(file)
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.error("revision_cannot_be_read", study=file.parent.name, error=type(error).__name__)
            continue
        study = store.study(found.revision.study)
        if study is None:
            log.error("revision_of_a_study_without_instances", study=file.parent.name)
            continue
        for unit in found.units:
            store.restore_unit(unit)
        last = max(study.revision, found.revision.revision)
        store.restore_study(replace(study, revision=last, open=True), [found.revision])
        restored += 1
    return restored
