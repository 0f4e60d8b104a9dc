"""The version of the database's tables: forward one step after the other, back, and who may work with which.

A step only adds: tables, columns that may be empty, indexes. So the program before it goes on beside it while nodes are
replaced one by one, and going back leaves what was added where it is, with its rows, for the next time forward. The
number of the oldest version that may go on with the tables stands in the database itself, where older programs read it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa

from stepwedge.errors import StepwedgeError
from stepwedge.schema import METADATA, SCHEMA, VERSION

# The lock that processes take on PostgreSQL while they look at the tables or change them.
_CHANGING_TABLES = 5_739_330


def _nothing_lost(_db: sa.Connection) -> dict[str, int]:
    return {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """From one version of the tables to the next. It must not mind what it adds being there already."""

    version: int  # of the tables after it
    works_from: int  # the oldest version whose program goes on beside it
    what: str
    forward: Callable[[sa.Connection], None]
    # Rows that the version before it could not keep, by table; going back then needs to be told.
    loses: Callable[[sa.Connection], dict[str, int]] = _nothing_lost


@dataclass(frozen=True, kw_only=True, slots=True)
class Tables:
    """Which version a database is at."""

    version: int | None  # None: no tables yet
    works_from: int  # the oldest version whose program may work with it


def _add_labels_and_constancy(db: sa.Connection) -> None:
    """The tables as they were in version 2; what came later is added by later steps."""
    then = sa.MetaData()
    sa.Table(
        "labels",
        then,
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("label", sa.String(64), nullable=False, unique=True),
        sa.Column("study", sa.String(32), nullable=False, index=True),
        sa.Column("body", sa.Text, nullable=False),
    )
    sa.Table(
        "constancy",
        then,
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("run", sa.String(64), nullable=False, unique=True),
        sa.Column("body", sa.Text, nullable=False),
    )
    then.create_all(db)


def _add_works_from(db: sa.Connection) -> None:
    if "works_from" not in {column["name"] for column in sa.inspect(db).get_columns("schema")}:
        db.execute(sa.text("ALTER TABLE schema ADD COLUMN works_from INTEGER"))


def _add_actions(db: sa.Connection) -> None:
    """The table of what people asked for, and the indexes that the page reads by, as they were in version 4."""
    then = sa.MetaData()
    sa.Table(
        "actions",
        then,
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("who", sa.String(128), nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("subject", sa.String(255), nullable=False, index=True),
        sa.Column("study", sa.String(32), nullable=False, index=True),
        sa.Column("state", sa.String(16), nullable=False, index=True),
        sa.Column("said", sa.Text, nullable=False),
        sa.Column("ended_at", sa.Float),
    )
    then.create_all(db)
    for name, place in (
        ("ix_studies_latest", "studies (last_instance_at)"),
        ("ix_units_state_latest", "units (state, last_instance_at)"),
        ("ix_deliveries_state_latest", "deliveries (state, updated_at)"),
    ):
        db.execute(sa.text(f"CREATE INDEX IF NOT EXISTS {name} ON {place}"))


STEPS: tuple[Step, ...] = (
    # Programs of versions 1 and 2 start with tables of their own version only.
    Step(version=2, works_from=2, what="labels and constancy runs", forward=_add_labels_and_constancy),
    Step(version=3, works_from=3, what="the oldest program that may go on", forward=_add_works_from),
    Step(version=4, works_from=3, what="what people did on the page, and its indexes", forward=_add_actions),
)
FIRST = STEPS[0].version - 1


@contextmanager
def changing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction in which no other process looks at the version or changes the tables."""
    with engine.connect() as db:
        if engine.dialect.name == "sqlite":
            # Roles that start together on a new machine make the tables one after the other.
            db.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            db.execute(sa.select(sa.func.pg_advisory_xact_lock(_CHANGING_TABLES)))
        yield db
        db.commit()


def read(db: sa.Connection) -> Tables:
    """Which version a database is at."""
    inspector = sa.inspect(db)
    if not inspector.has_table(SCHEMA.name):
        return Tables(version=None, works_from=0)
    version = db.execute(sa.select(SCHEMA.c.version)).scalar()
    if version is None:
        return Tables(version=None, works_from=0)
    columns = {column["name"] for column in inspector.get_columns(SCHEMA.name)}
    works_from = db.execute(sa.select(SCHEMA.c.works_from)).scalar() if "works_from" in columns else None
    return Tables(version=int(version), works_from=int(version) if works_from is None else int(works_from))


def forward(db: sa.Connection, steps: Sequence[Step] = STEPS) -> list[Step]:
    """Bring the tables to this program's version; the steps that were made. A newer database is left as it is."""
    tables = read(db)
    last = steps[-1]
    if tables.version is None:
        METADATA.create_all(db)
        db.execute(sa.delete(SCHEMA))
        db.execute(sa.insert(SCHEMA).values(version=last.version, works_from=last.works_from))
        return []
    missing = [step for step in steps if step.version > (tables.version or 0)]
    for step in missing:
        step.forward(db)
    if missing:
        db.execute(sa.update(SCHEMA).values(version=last.version, works_from=last.works_from))
    return missing


def back(db: sa.Connection, to: int, *, lose: bool = False, steps: Sequence[Step] = STEPS) -> list[Step]:
    """Let the program of an older version work with the database again; the steps that were undone.

    Raises
    ------
    StepwedgeError
        If the version is not an older one, the database is newer than this program, or rows would be lost and
        ``lose`` is false.
    """
    tables = read(db)
    if tables.version is None:
        raise StepwedgeError("the database has no tables yet; there is nothing to go back from")
    if tables.version > steps[-1].version:
        raise StepwedgeError(
            f"the database has schema {tables.version}, made by a newer Stepwedge; go back with that one"
        )
    first = steps[0].version - 1
    if not first <= to <= tables.version:
        raise StepwedgeError(f"schema {to}: the database can go back from {tables.version} to {first} at the furthest")
    undone = [step for step in reversed(steps) if to < step.version <= tables.version]
    lost = [f"{count} rows of {table}" for step in undone for table, count in step.loses(db).items() if count]
    if lost and not lose:
        raise StepwedgeError(
            f"schema {to} has no place for {', '.join(lost)}: save the database first, then say --lose-data"
        )
    works_from = next((step.works_from for step in steps if step.version == to), to)
    values = {"version": to}
    if tables.version >= 3:  # the column came with version 3, and older programs do not mind it
        values["works_from"] = works_from
    if undone:
        db.execute(sa.update(SCHEMA).values(values))
    return undone


def refusal(tables: Tables, *, own: int = VERSION) -> str | None:
    """Why a program of a version cannot work with a database, and what to do; None if it can."""
    if tables.version is None:
        return "the database has no tables yet: run `stepwedge database upgrade`"
    if tables.version < own:
        return f"the database has schema {tables.version}, this Stepwedge wants {own}: run `stepwedge database upgrade`"
    if own < tables.works_from:
        return (
            f"the database has schema {tables.version}, made by a newer Stepwedge, and this one knows {own}: install "
            f"the newer one again, or let that one go back with `stepwedge database downgrade {own}`; on one machine "
            "`stepwedge index rebuild` makes a new database from the files"
        )
    return None
