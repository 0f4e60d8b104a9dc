"""The database: an index of the spool and of the results, which can be rebuilt from their files.

Times are seconds since 1970 (UTC). Nothing here is the only copy of anything: ``stepwedge index rebuild`` makes the
database again from the spool and the results folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from stepwedge.entries import Delivery, Quarantined, Revision, StoredInstance, Study, Unit, unit_id
from stepwedge.errors import StepwedgeError
from stepwedge.migrations import changing, forward, read, refusal
from stepwedge.records import State
from stepwedge.schema import (
    CONSTANCY,
    DELIVERIES,
    INSTANCES,
    LABELS,
    OBSERVATIONS,
    QUARANTINE,
    REVISIONS,
    STUDIES,
    UNITS,
    prepare_sqlite,
)

__all__ = ["Delivery", "Quarantined", "Revision", "Store", "StoredInstance", "Study", "Unit", "unit_id"]

# The lock that processes take on PostgreSQL for rows that are tailed.
_ADDING_ROWS = 5_739_331

# What is written in the same transaction as a change of some units.
Beside = Callable[[sa.Connection, Sequence[Unit]], None]


class Store:
    """The database. One object per process; safe for its threads."""

    def __init__(self, url: str | sa.URL, *, upgrade: bool = True) -> None:
        """Open a database; make or upgrade its tables unless told not to. Raises StepwedgeError if they do not fit."""
        self._engine = make_engine(url)
        try:
            with changing(self._engine) as db:
                if upgrade:
                    forward(db)
                why = refusal(read(db))
        except BaseException:
            self.close()
            raise
        if why:
            self.close()
            raise StepwedgeError(f"{sa.make_url(url)!r}: {why}")

    @classmethod
    def open_file(cls, file: Path) -> Store:
        """The SQLite database in a file."""
        file.parent.mkdir(parents=True, exist_ok=True)
        return cls(f"sqlite:///{file}")

    @property
    def engine(self) -> sa.Engine:
        """The connections, for those who read or keep what is theirs alone."""
        return self._engine

    def limit_statements(self, seconds: float) -> None:
        """Let a PostgreSQL give up what takes longer, from now on: the upgrade of its tables took as long as it did."""

        def limit(connection: Any, _record: Any) -> None:
            connection.autocommit = True
            connection.execute(f"SET statement_timeout = {round(seconds * 1000)}")
            connection.autocommit = False

        sa.event.listen(self._engine, "connect", limit)
        self._engine.dispose()

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def add_instance(self, instance: StoredInstance) -> bool:
        """Index an instance and open its study if a model selects it. False if it was there already."""
        with self._engine.begin() as db:
            added = db.execute(self._insert(INSTANCES).values(**asdict(instance)).on_conflict_do_nothing()).rowcount
            if not added:
                return False
            at = instance.received_at
            statement = self._insert(STUDIES).values(
                study=instance.study,
                study_uid=instance.study_uid,
                first_instance_at=at,
                last_instance_at=at,
                revision=0,
                open=True,
            )
            # A late object that no model selects belongs to the study but does not open it again.
            latest = sa.case((STUDIES.c.last_instance_at < at, at), else_=STUDIES.c.last_instance_at)
            later: dict[str, Any] = {"last_instance_at": latest}
            if instance.routed:
                later["open"] = sa.true()
                db.execute(statement.on_conflict_do_update(index_elements=["study"], set_=later))
            else:
                db.execute(statement.on_conflict_do_update(index_elements=["study"], set_=later, where=STUDIES.c.open))
            return True

    def has_instance(self, study: str, instance: str, digest: str) -> bool:
        """Whether this content of this instance is indexed."""
        query = sa.select(sa.literal(1)).where(
            INSTANCES.c.study == study,
            INSTANCES.c.instance == instance,
            INSTANCES.c.digest == digest,
        )
        with self._engine.connect() as db:
            return db.execute(query).first() is not None

    def instance_versions(self, study: str, instance: str) -> int:
        """How many contents of one SOP instance are kept."""
        query = sa.select(sa.func.count()).where(INSTANCES.c.study == study, INSTANCES.c.instance == instance)
        with self._engine.connect() as db:
            return int(db.execute(query).scalar_one())

    def last_received(self, study: str, instance: str) -> float:
        """When the latest content of a SOP instance came; 0 if none has."""
        query = sa.select(sa.func.max(INSTANCES.c.received_at)).where(
            INSTANCES.c.study == study, INSTANCES.c.instance == instance
        )
        with self._engine.connect() as db:
            return float(db.execute(query).scalar() or 0.0)

    def instances(self, study: str) -> list[StoredInstance]:
        """The instances of a study, each in the content that came last, in the order of arrival."""
        query = sa.select(INSTANCES).where(INSTANCES.c.study == study).order_by(INSTANCES.c.received_at)
        with self._engine.connect() as db:
            rows = [StoredInstance(**row) for row in db.execute(query).mappings()]
        return sorted({row.instance: row for row in rows}.values(), key=lambda row: (row.received_at, row.instance))

    def instance_paths(self, study: str) -> set[str]:
        """The paths of all contents of all instances of a study."""
        query = sa.select(INSTANCES.c.path).where(INSTANCES.c.study == study)
        with self._engine.connect() as db:
            return set(db.execute(query).scalars())

    def count_contents(self, study: str) -> int:
        """How many contents of instances a study has; it only grows."""
        query = sa.select(sa.func.count()).where(INSTANCES.c.study == study)
        with self._engine.connect() as db:
            return int(db.execute(query).scalar_one())

    def study(self, study: str) -> Study | None:
        """One study."""
        return next(iter(self._studies(STUDIES.c.study == study)), None)

    def study_by_uid(self, study_uid: str) -> Study | None:
        """The study with a Study Instance UID."""
        return next(iter(self._studies(STUDIES.c.study_uid == study_uid)), None)

    def studies(self, limit: int = 1000) -> list[Study]:
        """The latest studies, newest first."""
        return self._studies(sa.true(), limit=limit)

    def open_studies(self) -> list[Study]:
        """Studies that wait to be complete."""
        return self._studies(STUDIES.c.open)

    def _studies(self, where: Any, limit: int | None = None) -> list[Study]:
        query = sa.select(STUDIES).where(where).order_by(STUDIES.c.last_instance_at.desc()).limit(limit)
        with self._engine.connect() as db:
            return [Study(**row) for row in db.execute(query).mappings()]

    def close_study(
        self, study: Study, revision: Revision | None, units: Sequence[Unit] = (), *, contents: int | None = None
    ) -> bool:
        """Close a study with a new revision and its units, or without where nothing new is there to do.

        False, and nothing is changed, if an instance came after ``study`` was read. ``contents`` is what
        ``count_contents`` gave then; it tells also where the clock stood still or went back.
        """
        same: sa.ColumnElement[bool] = sa.true()
        if contents is not None:
            count = sa.select(sa.func.count()).where(INSTANCES.c.study == study.study).scalar_subquery()
            same = count == contents
        with self._engine.begin() as db:
            # PostgreSQL: wait for an instance that is being added, so that what follows sees and counts it.
            db.execute(sa.select(STUDIES.c.study).where(STUDIES.c.study == study.study).with_for_update())
            closed = db.execute(
                sa.update(STUDIES)
                .where(
                    STUDIES.c.study == study.study,
                    STUDIES.c.last_instance_at == study.last_instance_at,
                    STUDIES.c.revision == study.revision,
                    same,
                )
                .values(open=False, revision=revision.revision if revision else study.revision)
            ).rowcount
            if not closed:
                return False
            if revision:
                values = asdict(revision) | {"paths": list(revision.paths)}
                db.execute(self._insert(REVISIONS).values(**values).on_conflict_do_nothing())
            for unit in units:
                db.execute(self._insert(UNITS).values(**_unit_row(unit)).on_conflict_do_nothing())
            return True

    def revision(self, study: str, revision: int) -> Revision | None:
        """One revision of a study."""
        query = sa.select(REVISIONS).where(REVISIONS.c.study == study, REVISIONS.c.revision == revision)
        with self._engine.connect() as db:
            row = db.execute(query).mappings().first()
        return Revision(**{**row, "paths": tuple(row["paths"])}) if row else None

    def revision_keys(self) -> set[tuple[str, int]]:
        """Study and number of every revision."""
        with self._engine.connect() as db:
            rows = db.execute(sa.select(REVISIONS.c.study, REVISIONS.c.revision))
            return {(str(row.study), int(row.revision)) for row in rows}

    def unit(self, unit: str) -> Unit | None:
        """One unit."""
        return next(iter(self._units(UNITS.c.unit == unit)), None)

    def units(self, *, study: str | None = None, states: Iterable[State] | None = None) -> list[Unit]:
        """Units of a study, or in some states, oldest first."""
        where: list[Any] = []
        if study is not None:
            where.append(UNITS.c.study == study)
        if states is not None:
            where.append(UNITS.c.state.in_([str(state) for state in states]))
        return self._units(sa.and_(sa.true(), *where))

    def _units(self, where: Any) -> list[Unit]:
        query = sa.select(UNITS).where(where).order_by(UNITS.c.created_at, UNITS.c.unit)
        with self._engine.connect() as db:
            return [unit_from_row(row) for row in db.execute(query).mappings()]

    def set_unit(self, unit: str, state: State, reasons: Sequence[str] = (), *, at: float | None = None) -> None:
        """Where a unit stands now. ``at`` is when it ended, for the states that are ends."""
        with self._engine.begin() as db:
            db.execute(
                sa.update(UNITS)
                .where(UNITS.c.unit == unit)
                .values(state=str(state), reasons=list(reasons), ended_at=at)
            )

    def retry_unit(self, unit: Unit, beside: Beside | None = None) -> Unit | None:
        """Put a unit back in the queue; how it stands then, or None where it does not stand as given any more.

        ``beside`` is done with it, or not at all.
        """
        as_given = sa.and_(UNITS.c.unit == unit.unit, UNITS.c.state == str(unit.state), UNITS.c.tries == unit.tries)
        return next(iter(self._retry(as_given, beside)), None)

    def retry_failed(self, before: float, limit: int, beside: Beside) -> list[Unit]:
        """Put some of the units that failed before a time back in the queue: those. ``beside`` as in ``retry_unit``."""
        failed = sa.and_(
            UNITS.c.state == str(State.FAILED), sa.or_(UNITS.c.ended_at.is_(None), UNITS.c.ended_at <= before)
        )
        return self._retry(
            sa.and_(failed, UNITS.c.unit.in_(sa.select(UNITS.c.unit).where(failed).limit(limit))), beside
        )

    def _retry(self, where: sa.ColumnElement[bool], beside: Beside | None) -> list[Unit]:
        again = sa.update(UNITS).where(where).returning(UNITS)
        with self._engine.begin() as db:
            rows = db.execute(again.values(state=str(State.QUEUED), reasons=[], ended_at=None, tries=UNITS.c.tries + 1))
            units = [unit_from_row(row) for row in rows.mappings()]
            if units and beside is not None:
                beside(db, units)
        return units

    def restore_unit(self, unit: Unit) -> None:
        """Write a unit as it is, when the database is rebuilt."""
        with self._engine.begin() as db:
            db.execute(self._insert(UNITS).values(**_unit_row(unit)).on_conflict_do_nothing())

    def restore_study(self, study: Study, revisions: Sequence[Revision]) -> None:
        """Write a study's revisions as they are, when the database is rebuilt."""
        with self._engine.begin() as db:
            db.execute(
                sa.update(STUDIES)
                .where(STUDIES.c.study == study.study)
                .values(revision=study.revision, open=study.open)
            )
            for revision in revisions:
                values = asdict(revision) | {"paths": list(revision.paths)}
                db.execute(self._insert(REVISIONS).values(**values).on_conflict_do_nothing())

    def set_delivery(self, unit: str, destination: str, state: str, *, at: float, error: str = "") -> int:
        """Where a delivery stands now; how often it has been attempted (a state of pending counts none)."""
        attempt = 0 if state in {"withheld"} or (state == "pending" and not error) else 1
        statement = self._insert(DELIVERIES).values(
            unit=unit, destination=destination, state=state, attempts=attempt, error=error, updated_at=at
        )
        with self._engine.begin() as db:
            db.execute(
                statement.on_conflict_do_update(
                    index_elements=["unit", "destination"],
                    set_={
                        "state": state,
                        "attempts": DELIVERIES.c.attempts + attempt,
                        "error": error,
                        "updated_at": at,
                    },
                )
            )
            query = sa.select(DELIVERIES.c.attempts).where(
                DELIVERIES.c.unit == unit, DELIVERIES.c.destination == destination
            )
            return int(db.execute(query).scalar_one())

    def send_again(self, unit: Unit, destination: str, *, at: float, beside: Beside) -> bool:
        """Let a delivery that is withheld be tried anew. False, and nothing is changed, where it is not."""
        withheld = sa.and_(
            DELIVERIES.c.unit == unit.unit, DELIVERIES.c.destination == destination, DELIVERIES.c.state == "withheld"
        )
        again = sa.update(DELIVERIES).where(withheld).values(state="pending", error="", updated_at=at)
        with self._engine.begin() as db:
            changed = bool(db.execute(again).rowcount)
            if changed:
                beside(db, [unit])
        return changed

    def deliveries(self, *, unit: str | None = None, state: str | None = None) -> list[Delivery]:
        """Deliveries of a unit, or in a state."""
        query = sa.select(DELIVERIES).order_by(DELIVERIES.c.updated_at)
        if unit is not None:
            query = query.where(DELIVERIES.c.unit == unit)
        if state is not None:
            query = query.where(DELIVERIES.c.state == state)
        with self._engine.connect() as db:
            return [Delivery(**row) for row in db.execute(query).mappings()]

    def add_observation(self, unit: str, body: str) -> bool:
        """Keep an observation (JSON). False if the unit has one already."""
        return self._add(OBSERVATIONS, unit=unit, body=body)

    def observations(self, after: int = 0, limit: int = 1000) -> list[tuple[int, str]]:
        """Observations with an id above ``after``, in the order of their ids."""
        query = sa.select(OBSERVATIONS.c.id, OBSERVATIONS.c.body)
        query = query.where(OBSERVATIONS.c.id > after).order_by(OBSERVATIONS.c.id).limit(limit)
        with self._engine.connect() as db:
            return [(int(row.id), str(row.body)) for row in db.execute(query)]

    def add_label(self, label: str, study: str, body: str) -> bool:
        """Keep a label (JSON) under its identifier. False if it is there already."""
        return self._add(LABELS, label=label, study=study, body=body)

    def add_constancy(self, run: str, body: str) -> bool:
        """Keep a constancy run (JSON) under its identifier. False if it is there already."""
        return self._add(CONSTANCY, run=run, body=body)

    def constancy(self) -> list[str]:
        """Every constancy run (JSON), oldest first."""
        with self._engine.connect() as db:
            return list(db.execute(sa.select(CONSTANCY.c.body).order_by(CONSTANCY.c.id)).scalars())

    def forget_study(self, study: str) -> None:
        """Drop a study with its instances, revisions, units and deliveries: for reference studies only."""
        units = sa.select(UNITS.c.unit).where(UNITS.c.study == study)
        with self._engine.begin() as db:
            db.execute(sa.delete(DELIVERIES).where(DELIVERIES.c.unit.in_(units)))
            for table in (UNITS, REVISIONS, INSTANCES, STUDIES):
                db.execute(sa.delete(table).where(table.c.study == study))

    def labels(self, study: str) -> list[str]:
        """The labels (JSON) of one study, in the order in which they came."""
        query = sa.select(LABELS.c.body).where(LABELS.c.study == study).order_by(LABELS.c.id)
        with self._engine.connect() as db:
            return [str(body) for body in db.execute(query).scalars()]

    def quarantine(self, item: Quarantined) -> int:
        """Count an unusable instance; how often it has come."""
        statement = self._insert(QUARANTINE).values(**asdict(item))
        with self._engine.begin() as db:
            db.execute(
                statement.on_conflict_do_update(
                    index_elements=["digest"],
                    set_={"count": QUARANTINE.c.count + 1, "last_seen": item.last_seen},
                )
            )
            query = sa.select(QUARANTINE.c["count"]).where(QUARANTINE.c.digest == item.digest)
            return int(db.execute(query).scalar_one())

    def forget_quarantined(self, digest: str) -> None:
        """Drop an entry of the quarantine."""
        with self._engine.begin() as db:
            db.execute(sa.delete(QUARANTINE).where(QUARANTINE.c.digest == digest))

    def quarantined(self) -> list[Quarantined]:
        """Everything in quarantine, oldest first."""
        with self._engine.connect() as db:
            rows = db.execute(sa.select(QUARANTINE).order_by(QUARANTINE.c.first_seen)).mappings()
            return [Quarantined(**row) for row in rows]

    def counts(self) -> dict[str, dict[str, int]]:
        """How many units by state, deliveries by state, and open studies."""
        with self._engine.connect() as db:
            units = db.execute(sa.select(UNITS.c.state, sa.func.count()).group_by(UNITS.c.state)).all()
            deliveries = db.execute(sa.select(DELIVERIES.c.state, sa.func.count()).group_by(DELIVERIES.c.state)).all()
            waiting = db.execute(sa.select(sa.func.count()).where(STUDIES.c.open)).scalar_one()
        return {
            "units": {str(state): int(count) for state, count in units},
            "deliveries": {str(state): int(count) for state, count in deliveries},
            "studies": {"open": int(waiting)},
        }

    def oldest_waiting(self) -> float | None:
        """When the oldest unit that has not ended was made."""
        query = sa.select(sa.func.min(UNITS.c.created_at)).where(UNITS.c.state.in_(["queued", "running"]))
        with self._engine.connect() as db:
            value = db.execute(query).scalar()
        return None if value is None else float(value)

    def _add(self, table: sa.Table, **values: str) -> bool:
        with self._engine.begin() as db:
            if self._engine.dialect.name == "postgresql":
                # Rows become visible in the order of their ids, one writer at a time: who reads on from an id that
                # has been seen, as the monitor does, would otherwise pass over one that is committed late.
                db.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADDING_ROWS)))
            return bool(db.execute(self._insert(table).values(**values).on_conflict_do_nothing()).rowcount)

    def _insert(self, table: sa.Table) -> Any:
        return (postgresql if self._engine.dialect.name == "postgresql" else sqlite).insert(table)


def make_engine(url: str | sa.URL) -> sa.Engine:
    """Connections to a database, set up as every process needs them."""
    engine = sa.create_engine(url, pool_pre_ping=True, execution_options={"preserve_rowcount": True})
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", prepare_sqlite)
    return engine


def unit_from_row(row: Mapping[Any, Any]) -> Unit:
    """A unit from its row in the database."""
    return Unit(**{**row, "state": State(row["state"]), "reasons": tuple(row["reasons"])})


def _unit_row(unit: Unit) -> dict[str, Any]:
    return asdict(unit) | {"state": str(unit.state), "reasons": list(unit.reasons)}
