"""The tables of the database. A change here is a change of ``VERSION`` and a step in ``migrations``."""

from __future__ import annotations

import sqlite3
import time
from typing import Any

import sqlalchemy as sa

_BUSY_SECONDS = 15
VERSION = 4

METADATA = sa.MetaData()
SCHEMA = sa.Table(
    "schema",
    METADATA,
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("works_from", sa.Integer),  # the oldest version whose program may work with these tables
)
INSTANCES = sa.Table(
    "instances",
    METADATA,
    sa.Column("study", sa.String(32), primary_key=True),
    sa.Column("instance", sa.String(32), primary_key=True),
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("study_uid", sa.Text, nullable=False),
    sa.Column("series_uid", sa.Text, nullable=False),
    sa.Column("sop_uid", sa.Text, nullable=False),
    sa.Column("sop_class_uid", sa.Text, nullable=False),
    sa.Column("transfer_syntax_uid", sa.Text, nullable=False),
    sa.Column("modality", sa.Text, nullable=False),
    sa.Column("routed", sa.Boolean, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("received_at", sa.Float, nullable=False),
    sa.Column("sender", sa.Text, nullable=False),
)
STUDIES = sa.Table(
    "studies",
    METADATA,
    sa.Column("study", sa.String(32), primary_key=True),
    sa.Column("study_uid", sa.Text, nullable=False),
    sa.Column("first_instance_at", sa.Float, nullable=False),
    sa.Column("last_instance_at", sa.Float, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("open", sa.Boolean, nullable=False, index=True),
)
REVISIONS = sa.Table(
    "revisions",
    METADATA,
    sa.Column("study", sa.String(32), primary_key=True),
    sa.Column("revision", sa.Integer, primary_key=True),
    sa.Column("closed_at", sa.Float, nullable=False),
    sa.Column("last_instance_at", sa.Float, nullable=False),
    sa.Column("paths", sa.JSON, nullable=False),
)
UNITS = sa.Table(
    "units",
    METADATA,
    sa.Column("unit", sa.String(64), primary_key=True),
    sa.Column("study", sa.String(32), nullable=False, index=True),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("model_name", sa.String(48), nullable=False),
    sa.Column("model_digest", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("reasons", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("last_instance_at", sa.Float, nullable=False),
    sa.Column("ended_at", sa.Float),
    sa.Column("tries", sa.Integer, nullable=False),
)
DELIVERIES = sa.Table(
    "deliveries",
    METADATA,
    sa.Column("unit", sa.String(64), primary_key=True),
    sa.Column("destination", sa.String(32), primary_key=True),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("updated_at", sa.Float, nullable=False),
)
OBSERVATIONS = sa.Table(
    "observations",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("unit", sa.String(64), nullable=False, unique=True),
    sa.Column("body", sa.Text, nullable=False),
)
LABELS = sa.Table(
    "labels",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("label", sa.String(64), nullable=False, unique=True),
    sa.Column("study", sa.String(32), nullable=False, index=True),
    sa.Column("body", sa.Text, nullable=False),
)
CONSTANCY = sa.Table(
    "constancy",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("run", sa.String(64), nullable=False, unique=True),
    sa.Column("body", sa.Text, nullable=False),
)
QUARANTINE = sa.Table(
    "quarantine",
    METADATA,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("sender", sa.Text, nullable=False),
    sa.Column("count", sa.Integer, nullable=False),
    sa.Column("first_seen", sa.Float, nullable=False),
    sa.Column("last_seen", sa.Float, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("path", sa.Text),
)
# What people asked of the node on its page: kept, so that it can be seen who did what, and when.
ACTIONS = sa.Table(
    "actions",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("who", sa.String(128), nullable=False),
    sa.Column("action", sa.String(32), nullable=False),
    sa.Column("subject", sa.String(255), nullable=False, index=True),
    sa.Column("study", sa.String(32), nullable=False, index=True),  # empty where it is about none
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("said", sa.Text, nullable=False),
    sa.Column("ended_at", sa.Float),
)
# What the page lists, newest first, without reading all there is.
sa.Index("ix_studies_latest", STUDIES.c.last_instance_at)
sa.Index("ix_units_state_latest", UNITS.c.state, UNITS.c.last_instance_at)
sa.Index("ix_deliveries_state_latest", DELIVERIES.c.state, DELIVERIES.c.updated_at)


def prepare_sqlite(connection: Any, _record: Any) -> None:
    """Set up a new connection to an SQLite file that several processes use."""
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_SECONDS * 1000}")
    # The first change to a write-ahead log does not wait for others who make it at the same time, whatever the timeout.
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    # A lost last transaction is found again in the files, so a sync at each commit is not needed.
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()
