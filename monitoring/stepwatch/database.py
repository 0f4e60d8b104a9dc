"""The database that the service and the monitor share: rows of the one, state and log of the other.

Rows are read by id. Several workers write them, and one with a lower id may become visible after one with a higher; so
a reader keeps, beside the highest id it has taken, the ids below it that it has not (``Cursor``).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from stepwedge.observation import ConstancyRun, Label, Observation

from stepwatch import tables
from stepwatch.errors import WatchError

LOOK_BACK = 1000  # ids below the highest one taken that may still appear
# Events in the log about an alarm: what a person asks for, and how it ended.
ASKED, DONE, REFUSED = "acknowledge", "acknowledged", "acknowledge_refused"
_BUSY_SECONDS = 5.0  # that a statement waits for another writer of an SQLite file

Row = TypeVar("Row")


class DatabaseAwayError(WatchError):
    """The database is not there, locked or not answering; what was asked can be tried again."""


class OtherSidecarError(WatchError):
    """Another sidecar has saved the state of the same model since we read it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cursor:
    """Which ids have been taken: all up to ``position``, except ``gaps``."""

    position: int = 0
    gaps: frozenset[int] = frozenset()

    def has(self, number: int) -> bool:
        """Whether an id has been taken."""
        return number <= self.position and number not in self.gaps

    def take(self, number: int) -> Cursor:
        """With one more id taken. Gaps further back than ``LOOK_BACK`` will not be filled any more."""
        if number <= self.position:
            return Cursor(position=self.position, gaps=self.gaps - {number})
        oldest = number - LOOK_BACK
        gaps = {gap for gap in self.gaps if gap >= oldest}
        gaps.update(range(max(self.position + 1, oldest), number))
        return Cursor(position=number, gaps=frozenset(gaps))


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedState:
    """Where the monitor of one model's package has got to. ``rest`` holds JSON values."""

    model: str
    digest: str
    body: bytes
    cursor: Cursor
    rest: dict[str, Any] = field(default_factory=dict)
    revision: int = 0
    saved_at: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class LogEntry:
    """One event that was noted."""

    id: int = 0
    at: float
    event: str
    who: str = ""
    body: dict[str, Any] = field(default_factory=dict)


class Database:
    """The database. One object per process; safe for its threads. ``engine`` is open to the modules that query it."""

    def __init__(self, url: str) -> None:
        self._url = sa.make_url(url)
        self._file: Path | None = None
        self._inode: tuple[int, int] | None = None
        if self._url.get_backend_name() == "sqlite":
            if not self._url.database:
                raise WatchError(f"database_url: {url}: name a file; what is in memory cannot be shared")
            self._file = Path(self._url.database).absolute()
            self.engine = sa.create_engine(_existing(self._file), pool_pre_ping=True)
            sa.event.listen(self.engine, "connect", _prepare_sqlite)
        else:
            try:
                self.engine = sa.create_engine(self._url, pool_pre_ping=True)
            except ModuleNotFoundError as error:
                raise WatchError(f"database_url: {error.name} is not installed; it is needed to reach it") from None

    @classmethod
    def open(cls, url: str) -> Self:
        """Name a database. Nothing is connected yet, and a file that is not there is not made: it is the service's."""
        try:
            return cls(url)
        except sa.exc.ArgumentError:
            raise WatchError("database_url: not the address of a database; as in sqlite:////var/lib/x.sqlite") from None

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    def prepare(self) -> None:
        """Make our tables where they are missing. Raises DatabaseAwayError if the service has not made its own."""
        self._same_file()
        with _away():
            there = sa.inspect(self.engine).get_table_names()
            if tables.OBSERVATIONS.name not in there:
                raise DatabaseAwayError("the service has made no table of observations yet")
            if not all(table in there for table in tables.METADATA.tables):
                tables.METADATA.create_all(self.engine)

    # --- Rows of the service --------------------------------------------------------------------------------------

    def new_bodies(self, cursor: Cursor, limit: int = 1000) -> list[tuple[int, str]]:
        """Observations that a cursor has not taken, as JSON, in the order of their ids."""
        return self._new(tables.OBSERVATIONS, cursor, limit)

    def last_observation(self) -> int:
        """The highest id of an observation; 0 if there is none."""
        return self._last(tables.OBSERVATIONS)

    def answers_to(self, study: str) -> list[tuple[int, str]]:
        """Every observation of one study, as JSON, in the order of their ids."""
        table = tables.OBSERVATIONS
        where = table.c.unit.startswith(f"{study}.", autoescape=True)  # units are named so
        if self._file is not None:
            # SQLite looks a range up in the index, and a prefix not.
            where = sa.and_(table.c.unit > f"{study}.", table.c.unit < f"{study}/")
        query = sa.select(table.c.id, table.c.body).where(where).order_by(table.c.id)
        return [(int(row.id), str(row.body)) for row in self._read(query)]

    def new_labels(self, cursor: Cursor, limit: int = 1000) -> list[tuple[int, str]]:
        """Labels that a cursor has not taken, as JSON, in the order of their ids."""
        return self._new(tables.LABELS, cursor, limit)

    def last_label(self) -> int:
        """The highest id of a label; 0 if there is none."""
        return self._last(tables.LABELS)

    def labels_of(self, study: str) -> list[tuple[int, Label]]:
        """Every label of one study; those that cannot be read are left out."""
        return self._parsed(tables.LABELS, 0, None, Label.from_json, tables.LABELS.c.study == study)

    def observations(self, after: int = 0, limit: int = 1000) -> list[tuple[int, Observation]]:
        """Observations with an id above ``after``; those that cannot be read are left out."""
        return self._parsed(tables.OBSERVATIONS, after, limit, Observation.from_json)

    def labels(self, after: int = 0, limit: int | None = None) -> list[tuple[int, Label]]:
        """Labels with an id above ``after``; those that cannot be read are left out."""
        return self._parsed(tables.LABELS, after, limit, Label.from_json)

    def constancy(self, after: int = 0, limit: int | None = None) -> list[tuple[int, ConstancyRun]]:
        """Constancy runs with an id above ``after``; those that cannot be read are left out."""
        return self._parsed(tables.CONSTANCY, after, limit, ConstancyRun.from_json)

    def add_label(self, label: Label) -> bool:
        """Keep a label. False if it is there already."""
        values = {"label": label.label, "study": label.study, "body": label.to_json()}
        with _away(), self.engine.begin() as db:
            statement = self.insert(tables.LABELS).values(**values).on_conflict_do_nothing()
            return bool(db.execute(statement).rowcount)

    # --- State and alarms -----------------------------------------------------------------------------------------

    def load_state(self, model: str, digest: str) -> SavedState | None:
        """What was saved last for a model's package."""
        table = tables.STATE
        rows = self._read(sa.select(table).where(table.c.model == model, table.c.digest == digest))
        if not rows:
            return None
        row = rows[0]
        rest = dict(row.rest)
        return SavedState(
            model=model,
            digest=digest,
            body=bytes(row.body),
            cursor=Cursor(position=int(row.cursor), gaps=frozenset(rest.pop("gaps", ()))),
            rest=rest,
            revision=int(row.revision),
            saved_at=float(row.saved_at),
        )

    def save_state(
        self, state: SavedState, alarms: Iterable[Mapping[str, Any]] = (), log: Sequence[LogEntry] = ()
    ) -> SavedState:
        """Save the state, the alarms that changed (their fields) and what is to be noted, all or nothing.

        Raises OtherSidecarError if the saved state is not the one that ours goes on from.
        """
        table, at = tables.STATE, time.time()
        key = {"model": state.model, "digest": state.digest}
        values = {
            "body": state.body,
            "cursor": state.cursor.position,
            "rest": state.rest | {"gaps": sorted(state.cursor.gaps)},
            "revision": state.revision + 1,
            "saved_at": at,
        }
        with _away(), self.engine.begin() as db:
            if state.revision == 0:
                done = db.execute(self.insert(table).values(**key, **values).on_conflict_do_nothing()).rowcount
            else:
                ours = sa.and_(
                    table.c.model == state.model, table.c.digest == state.digest, table.c.revision == state.revision
                )
                done = db.execute(sa.update(table).where(ours).values(**values)).rowcount
            if not done:
                raise OtherSidecarError(
                    f"{state.model}: another sidecar saves the state of this model; let only one run on a database"
                )
            for alarm in alarms:
                statement = self.insert(tables.ALARMS).values(
                    **key, alarm=str(alarm["alarm"]), body=dict(alarm), updated_at=at
                )
                update = {"body": dict(alarm), "updated_at": at}
                db.execute(statement.on_conflict_do_update(index_elements=["model", "digest", "alarm"], set_=update))
            for entry in log:
                db.execute(sa.insert(tables.LOG).values(**_entry_row(entry)))
        return SavedState(
            model=state.model,
            digest=state.digest,
            body=state.body,
            cursor=state.cursor,
            rest=state.rest,
            revision=state.revision + 1,
            saved_at=at,
        )

    def alarms(self, model: str | None = None, digest: str | None = None) -> list[dict[str, Any]]:
        """Every alarm that was ever raised, newest first: its fields, with ``model`` and ``digest``."""
        table = tables.ALARMS
        where = sa.true() if model is None else table.c.model == model
        if digest is not None:
            where = sa.and_(where, table.c.digest == digest)
        rows = self._read(sa.select(table).where(where))
        found = [{**row.body, "model": row.model, "digest": row.digest} for row in rows]
        return sorted(found, key=lambda alarm: (str(alarm["raised_time"]), int(alarm["raised_row"])), reverse=True)

    # --- Log, requests, pages -------------------------------------------------------------------------------------

    def append_log(self, event: str, *, who: str = "", body: Mapping[str, Any] | None = None) -> int:
        """Note an event; its id."""
        entry = LogEntry(at=time.time(), event=event, who=who, body=dict(body or {}))
        return self._append(tables.LOG, _entry_row(entry))

    def log(self, event: str, after: int = 0) -> list[LogEntry]:
        """Events of one kind with an id above ``after``, oldest first."""
        table = tables.LOG
        query = sa.select(table).where(table.c.event == event, table.c.id > after).order_by(table.c.id)
        return [LogEntry(**row._mapping) for row in self._read(query)]

    def request_events(self, request: str | None = None) -> list[dict[str, Any]]:
        """The events of one retraining request, or of all, oldest first."""
        table = tables.REQUESTS
        query = sa.select(table).order_by(table.c.id)
        if request is not None:
            query = query.where(table.c.request == request)
        return [dict(row._mapping) for row in self._read(query)]

    def add_page(self, path: str, reason: str) -> int:
        """Note a page that was drawn; its id."""
        return self._append(tables.PAGES, {"at": time.time(), "path": path, "reason": reason})

    def pages(self, limit: int = 30) -> list[dict[str, Any]]:
        """The latest pages, newest first."""
        query = sa.select(tables.PAGES).order_by(tables.PAGES.c.id.desc()).limit(limit)
        return [dict(row._mapping) for row in self._read(query)]

    def first_delivery(self, digest: str, keep_seconds: float) -> bool:
        """Note a message by its digest; False if it came before. Old ones are forgotten."""
        table, at = tables.DELIVERIES, time.time()
        with _away(), self.engine.begin() as db:
            db.execute(sa.delete(table).where(table.c.at < at - keep_seconds))
            statement = self.insert(table).values(digest=digest, at=at).on_conflict_do_nothing()
            return bool(db.execute(statement).rowcount)

    def forget_delivery(self, digest: str) -> None:
        """Let a message come again: what it asked for could not be done."""
        with _away(), self.engine.begin() as db:
            db.execute(sa.delete(tables.DELIVERIES).where(tables.DELIVERIES.c.digest == digest))

    # --- How ------------------------------------------------------------------------------------------------------

    def insert(self, table: sa.Table) -> Any:
        """An insert of this database's dialect, which knows ``on_conflict_do_nothing``."""
        return (postgresql if self.engine.dialect.name == "postgresql" else sqlite).insert(table)

    def _append(self, table: sa.Table, values: Mapping[str, Any]) -> int:
        with _away(), self.engine.begin() as db:
            key = db.execute(sa.insert(table).values(**values)).inserted_primary_key
        return int(key[0]) if key else 0

    def _read(self, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        self._same_file()
        with _away(), self.engine.connect() as db:
            return db.execute(query).all()

    def _new(self, table: sa.Table, cursor: Cursor, limit: int) -> list[tuple[int, str]]:
        unseen = table.c.id > cursor.position
        if cursor.gaps:
            unseen = sa.or_(unseen, table.c.id.in_(sorted(cursor.gaps)))
        query = sa.select(table.c.id, table.c.body).where(unseen).order_by(table.c.id).limit(limit)
        return [(int(row.id), str(row.body)) for row in self._read(query)]

    def _last(self, table: sa.Table) -> int:
        return int(self._read(sa.select(sa.func.max(table.c.id)))[0][0] or 0)

    def _parsed(
        self,
        table: sa.Table,
        after: int,
        limit: int | None,
        parse: Callable[[str], Row],
        where: sa.ColumnElement[bool] | None = None,
    ) -> list[tuple[int, Row]]:
        wanted = table.c.id > after if where is None else sa.and_(table.c.id > after, where)
        query = sa.select(table.c.id, table.c.body).where(wanted).order_by(table.c.id).limit(limit)
        found = []
        for row in self._read(query):
            with suppress(ValueError, TypeError, AttributeError):
                found.append((int(row.id), parse(row.body)))
        return found

    def _same_file(self) -> None:
        """Let go of a file that is gone, or whose place another one has taken."""
        if self._file is None:
            return
        try:
            status = self._file.stat()
        except OSError:
            self.engine.dispose()
            self._inode = None
            raise DatabaseAwayError(f"{self._file}: there is no database; has the service been started?") from None
        inode = (status.st_dev, status.st_ino)
        if self._inode not in (None, inode):
            self.engine.dispose()
        self._inode = inode


class _away:  # noqa: N801 - reads as the statement it is
    """Errors of the database become DatabaseAwayError, which quotes no statement and no value."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, SQLAlchemyError):
            cause = getattr(error, "orig", None) or error
            said = str(cause).partition("\n")[0]  # PostgreSQL quotes values in the lines that follow
            raise DatabaseAwayError(f"the database does not answer: {type(cause).__name__}: {said}") from None


def _existing(file: Path) -> str:
    """The address of an SQLite file that must be there: the service makes it."""
    return f"sqlite:///file:{quote(str(file))}?mode=rw&uri=true"


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={int(_BUSY_SECONDS * 1000)}")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def _entry_row(entry: LogEntry) -> dict[str, Any]:
    return {"at": entry.at, "event": entry.event, "who": entry.who, "body": json.loads(json.dumps(entry.body))}
