"""Where the database and the queue are: files in the data folder, or one PostgreSQL for every node of a site.

The password never stands in an address that is logged, printed or handed to another process.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from stepwedge import migrations
from stepwedge.errors import SettingsError, StepwedgeError
from stepwedge.migrations import Step, Tables
from stepwedge.rundir import at_work, take
from stepwedge.settings import Settings
from stepwedge.store import Store, make_engine

_CONNECT_SECONDS = 10
_SILENT_SECONDS = 30  # after which a server that acknowledges nothing is away (tcp_user_timeout of libpq)
_DRIVER = "postgresql+psycopg"


def is_shared(settings: Settings) -> bool:
    """Whether the database is a PostgreSQL, and not files in the data folder."""
    return settings.database.url is not None


def public_url(settings: Settings) -> sa.URL:
    """The address of the database without its password. Raises SettingsError."""
    if settings.database.url is None:
        return sa.URL.create("sqlite", database=str(settings.database_file.absolute()))
    try:
        url = sa.make_url(settings.database.url)
    except (sa.exc.ArgumentError, ValueError):
        raise SettingsError("database.url: not an address, as in postgresql://stepwedge@db.example/stepwedge") from None
    if url.password is not None or "password" in url.query:
        raise SettingsError(
            "database.url holds a password: take it out, and give it in the file that database.password_file names or "
            "in STEPWEDGE_DATABASE__PASSWORD"
        )
    if url.get_backend_name() != "postgresql" or not url.database:
        raise SettingsError("database.url: wanted postgresql://USER@HOST:PORT/DATABASE; leave it out for SQLite")
    return url.set(drivername=_DRIVER)


def password(settings: Settings) -> str | None:
    """The password of the PostgreSQL, or None where none is set. Raises SettingsError."""
    given, file = settings.database.password, settings.database.password_file
    if given is not None and file is not None:
        raise SettingsError("database.password and database.password_file are both set: leave one out")
    if given is not None:
        return given.get_secret_value()
    if file is None:
        return None
    try:
        text = file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not text"
        raise SettingsError(f"database.password_file: {file}: the password cannot be read: {why}") from None
    if not text:
        raise SettingsError(f"database.password_file: {file}: the file is empty")
    return text


def store_url(settings: Settings) -> sa.URL:
    """The address of the database, to connect with. Raises SettingsError."""
    url = public_url(settings)
    if not is_shared(settings):
        return url
    limits = {"connect_timeout": str(_CONNECT_SECONDS), "tcp_user_timeout": str(_SILENT_SECONDS * 1000)}
    return url.set(query=limits | dict(url.query), password=password(settings))  # what the address says comes first


def queue_url(settings: Settings) -> str:
    """The address of the queue: a file beside the database's, or a schema of its own in the same PostgreSQL."""
    if is_shared(settings):
        return store_url(settings).render_as_string(hide_password=False)
    return f"sqlite:///{settings.queue_file}"


def open_store(settings: Settings, *, statement_seconds: float | None = None) -> Store:
    """Open or create the database. Raises StepwedgeError where it cannot be reached, without its password.

    ``statement_seconds`` is after how long a PostgreSQL gives up what it is asked, for those who cannot wait longer.
    """
    if not is_shared(settings):
        return Store.open_file(settings.database_file)
    with _answering(settings):
        store = Store(store_url(settings), upgrade=settings.database.upgrade_at_start)
        if statement_seconds is not None:
            store.limit_statements(statement_seconds)
        return store


def read_tables(settings: Settings) -> Tables:
    """Which version the database is at; nothing is made. Raises StepwedgeError if it cannot be reached."""
    if not has_database(settings):
        return Tables(version=None, works_from=0)
    with _changing(settings) as db:
        return migrations.read(db)


def upgrade(settings: Settings) -> list[Step]:
    """Bring the tables to this version; the steps made. Raises StepwedgeError for a database of a newer program."""
    if not is_shared(settings):
        settings.database_file.parent.mkdir(parents=True, exist_ok=True)
    with _changing(settings) as db:
        steps = migrations.forward(db)
        why = migrations.refusal(migrations.read(db))
    if why:
        raise StepwedgeError(why)
    return steps


def downgrade(settings: Settings, to: int, *, lose: bool = False) -> list[Step]:
    """Let an older program work with the database again; the steps undone.

    Raises StepwedgeError while a role uses the data folder, and for what cannot be undone.
    """
    role = at_work(settings.data_dir)
    if role is not None:
        raise StepwedgeError(f"{settings.data_dir}: stepwedge {role} is using this data folder; stop it first")
    if not has_database(settings):
        raise StepwedgeError(f"{settings.data_dir}: there is no database yet")
    with _changing(settings) as db:
        return migrations.back(db, to, lose=lose)


def has_database(settings: Settings) -> bool:
    """Whether there is a database; of a PostgreSQL, that one is set."""
    return is_shared(settings) or settings.database_file.is_file()


def watch_variables(settings: Settings) -> dict[str, str]:
    """What another program needs to reach the database: its address, and the password as libpq takes it."""
    secret = password(settings) if is_shared(settings) else None
    address = public_url(settings).render_as_string() if is_shared(settings) else None
    values = {"STEPWATCH_DATABASE_URL": address or f"sqlite:///{settings.database_file.absolute()}"}
    return values | ({"PGPASSWORD": secret} if secret is not None else {})


@contextmanager
def own_executor(settings: Settings) -> Iterator[None]:
    """Hold the name of this worker while it runs: a second one under it would run the first one's work again.

    On PostgreSQL the name is an advisory lock, which goes with the connection of a worker that dies; otherwise a
    locked file. Raises StepwedgeError if another worker holds it.
    """
    name = settings.worker.executor_id
    taken = StepwedgeError(
        f"worker.executor_id: another worker runs as {name}; give each worker a name of its own, or stop the other"
    )
    if not is_shared(settings):
        try:
            handle = take(settings.data_dir / "run" / f"executor.{name}.lock")
        except BlockingIOError:
            raise taken from None
        try:
            yield
        finally:
            os.close(handle)
        return
    url = store_url(settings)
    number = int.from_bytes(hashlib.sha256(f"stepwedge executor {name}".encode()).digest()[:8], signed=True)
    engine = sa.create_engine(url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    try:
        try:
            connection = engine.connect()
            held = connection.execute(sa.select(sa.func.pg_try_advisory_lock(number))).scalar_one()
        except SQLAlchemyError as error:
            raise StepwedgeError(f"{_place(url)}: {_said(error)}") from None
        try:
            if not held:
                raise taken
            yield
        finally:
            # The server may have gone in the meantime, and the lock with it.
            connection.invalidate()
            connection.close()
    finally:
        engine.dispose()


@contextmanager
def _changing(settings: Settings) -> Iterator[sa.Connection]:
    with _answering(settings):
        engine = make_engine(store_url(settings))
        try:
            with migrations.changing(engine) as db:
                yield db
        finally:
            engine.dispose()


@contextmanager
def _answering(settings: Settings) -> Iterator[None]:
    """Errors of the database become ours, in a line."""
    try:
        yield
    except SQLAlchemyError as error:
        place = _place(store_url(settings)) if is_shared(settings) else str(settings.database_file)
        raise StepwedgeError(f"{place}: {_said(error)}") from None


def _place(url: sa.URL) -> str:
    return f"database.url: {url.host or 'local socket'}:{url.port or 5432}/{url.database}"


def _said(error: SQLAlchemyError) -> str:
    """What the driver says, in one line; it names host, user and database, and never the password."""
    cause = getattr(error, "orig", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    text = lines[-1] if lines else type(cause).__name__
    hint = "check that it runs and that host, user, password and database are right"
    if "no password supplied" in text:
        hint = "set database.password_file or STEPWEDGE_DATABASE__PASSWORD"
    return f"the database cannot be used: {text}; {hint}"
