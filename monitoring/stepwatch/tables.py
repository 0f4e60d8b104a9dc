"""The tables of the database that the monitor reads, and its own. Times are seconds since 1970 (UTC).

The service makes and fills the first three. Ours begin with ``watch_`` and are made when the sidecar starts. Requests
and the log only ever grow: nothing in them is changed.
"""

from __future__ import annotations

import sqlalchemy as sa

SERVICE = sa.MetaData()  # as the service has them; never made here
OBSERVATIONS = sa.Table(
    "observations",
    SERVICE,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("unit", sa.String(64), nullable=False, unique=True),
    sa.Column("body", sa.Text, nullable=False),
)
LABELS = sa.Table(
    "labels",
    SERVICE,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("label", sa.String(64), nullable=False, unique=True),
    sa.Column("study", sa.String(32), nullable=False, index=True),
    sa.Column("body", sa.Text, nullable=False),
)
CONSTANCY = sa.Table(
    "constancy",
    SERVICE,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("run", sa.String(64), nullable=False, unique=True),
    sa.Column("body", sa.Text, nullable=False),
)

METADATA = sa.MetaData()
# Where the monitor of each model has got to. `revision` counts the saves: two sidecars on one database notice.
STATE = sa.Table(
    "watch_state",
    METADATA,
    sa.Column("model", sa.String(48), primary_key=True),
    sa.Column("digest", sa.String(64), primary_key=True),  # of the model's package
    sa.Column("body", sa.LargeBinary, nullable=False),  # the detectors
    sa.Column("cursor", sa.Integer, nullable=False),  # the highest id of an observation that was taken
    sa.Column("rest", sa.JSON, nullable=False),  # what else has to go on: ids below the cursor not taken, plots
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("saved_at", sa.Float, nullable=False),
)
ALARMS = sa.Table(
    "watch_alarms",
    METADATA,
    sa.Column("model", sa.String(48), primary_key=True),
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("alarm", sa.String(255), primary_key=True),
    sa.Column("body", sa.JSON, nullable=False),  # the alarm's fields
    sa.Column("updated_at", sa.Float, nullable=False),
)
REQUESTS = sa.Table(
    "watch_requests",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("request", sa.String(64), nullable=False, index=True),
    sa.Column("event", sa.String(32), nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("who", sa.String(128), nullable=False),
    sa.Column("signature", sa.Text, nullable=False),
    sa.Column("body", sa.JSON, nullable=False),
)
PAGES = sa.Table(
    "watch_pages",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("path", sa.String(255), nullable=False),  # name of the file in the pages' folder
    sa.Column("reason", sa.String(64), nullable=False),
)
LOG = sa.Table(
    "watch_log",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("event", sa.String(32), nullable=False, index=True),
    sa.Column("who", sa.String(128), nullable=False),
    sa.Column("body", sa.JSON, nullable=False),
)
# One row for each message of Alertmanager that was taken: the same one again is known by it.
DELIVERIES = sa.Table(
    "watch_deliveries",
    METADATA,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
)
