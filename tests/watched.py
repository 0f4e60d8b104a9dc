"""A database as the service leaves it, for the monitor to watch."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from stepwatch import tables


def make_service_tables(file: Path) -> sa.Engine:
    """The tables as the service makes them."""
    engine = sa.create_engine(f"sqlite:///{file}")
    with engine.begin() as db:
        db.exec_driver_sql("PRAGMA journal_mode=WAL")
    tables.SERVICE.create_all(engine)
    return engine
