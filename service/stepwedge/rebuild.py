"""The database, made again from the files: the spool, the results, the receipts of deliveries."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import structlog

from stepwedge.actions import Action, restore
from stepwedge.analysis import published_units
from stepwedge.database import is_shared
from stepwedge.dicom.context import is_own_result
from stepwedge.dicom.spool import InstanceSpool
from stepwedge.dicom.studies import restore_revisions
from stepwedge.errors import StepwedgeError
from stepwedge.identity import load_site
from stepwedge.manifest import load_package
from stepwedge.observation import Label
from stepwedge.reference import is_reference
from stepwedge.rundir import at_work, hold
from stepwedge.settings import Settings
from stepwedge.steps import plan_deliveries
from stepwedge.store import Store

log = structlog.get_logger()


def rebuild_index(settings: Settings) -> str:
    """Put the database aside and make it again; a sentence that says what was found.

    Work that had not ended is queued again at the next start. Raises StepwedgeError while the service runs.
    """
    if is_shared(settings):
        raise StepwedgeError(
            "index rebuild works on the SQLite file, and database.url names a PostgreSQL: restore it from its backup, "
            "or point database.url to a new, empty database; listeners fill it from the spool when they start"
        )
    alive = at_work(settings.data_dir)
    if alive is not None:
        raise StepwedgeError(f"{settings.data_dir}: stepwedge {alive} is using this data folder; stop it first")
    hold(settings.data_dir)
    # Whatever is wrong with the packages or the key is found before anything is touched.
    manifests = [load_package(model.package).manifest for model in settings.models]
    site = load_site(settings.data_dir, settings.site_key_file)
    file = settings.database_file
    aside = f"{file.name}.before-{time.strftime('%Y%m%dT%H%M%S')}"
    put_aside = file.exists()
    for suffix in ("", "-wal", "-shm"):
        part = file.with_name(file.name + suffix)
        if part.exists():
            part.rename(file.with_name(aside + suffix))
    store = Store.open_file(file)
    try:
        spool = InstanceSpool(settings, site, store, manifests, is_own_result)
        spool.prepare()
        instances = spool.reconcile()
        # Results first: a unit that has one is then not taken for one that waits.
        results = restore_results(settings, store)
        revisions = restore_revisions(spool, store)
        labels = restore_labels(file.with_name(aside), store) if put_aside else 0
        restore_actions(file.with_name(aside), store)
    finally:
        store.close()
    old = f"the old database is {aside}" if put_aside else "there was no database"
    return f"rebuilt: {instances} instances, {revisions} revisions, {results} results, {labels} labels; {old}"


def restore_labels(old: Path, store: Store) -> int:
    """Take over the labels that lie in no file: those of the old database that were not in a report; how many.

    Reports are read again with the spool. Nobody could make the other labels again.
    """
    bodies: list[str] = []
    try:
        with closing(sqlite3.connect(f"file:{quote(str(old.absolute()))}?mode=ro", uri=True)) as db:
            bodies = [str(body) for (body,) in db.execute("select body from labels order by id")]
    except sqlite3.Error as error:
        log.error("labels_not_taken_over", database=old.name, error=str(error))
    count = 0
    for body in bodies:
        try:
            label = Label.from_json(body)
        except (ValueError, TypeError, AttributeError):
            log.error("label_unreadable", database=old.name)
            continue
        if label.source != "sr":
            count += store.add_label(label.label, label.study, body)
    return count


def restore_actions(old: Path, store: Store) -> int:
    """Take over what people did on the page, which lies in no file; how much that was."""
    if not old.exists():
        return 0
    try:
        with closing(sqlite3.connect(f"file:{quote(str(old.absolute()))}?mode=ro", uri=True)) as db:
            db.row_factory = sqlite3.Row
            if not db.execute("select 1 from sqlite_master where name = 'actions'").fetchone():
                return 0  # of a version before there was a page
            rows = [Action(**row) for row in map(dict, db.execute("select * from actions order by id"))]
    except (sqlite3.Error, TypeError) as error:
        log.error("actions_not_taken_over", database=old.name, error=type(error).__name__)
        return 0
    for row in rows:
        restore(store, row)
    return len(rows)


def restore_results(settings: Settings, store: Store) -> int:
    """Index the results that lie in their folders, with their observations and deliveries; how many there were."""
    count = 0
    for published in published_units(settings):
        unit = published.unit
        store.restore_unit(unit)
        store.set_unit(unit.unit, unit.state, unit.reasons, at=unit.ended_at)
        if is_reference(settings.data_dir, unit.study):
            continue
        store.add_observation(unit.unit, published.observation)
        plan_deliveries(settings, store, published)
        count += 1
    return count
