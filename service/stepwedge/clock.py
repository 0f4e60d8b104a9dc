"""Whether the clock of this node can be believed.

Nodes that share a PostgreSQL compare theirs with its clock, which is then the one that counts. Without such a server
there is only what betrays a clock that was set: rows that lie in the future, and a clock that nobody can set.
"""

from __future__ import annotations

import math
import threading
import time
from datetime import UTC, datetime

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import SQLAlchemyError

from stepwedge import metrics
from stepwedge.errors import ClockError
from stepwedge.schema import DELIVERIES, STUDIES, UNITS
from stepwedge.store import Store

log = structlog.get_logger()

# Two nodes that are no further from the database's clock than this agree within the 20 seconds after which a sign of
# life counts as old (``rundir.STALE_SECONDS``).
LIMIT_SECONDS = 10.0
_LOOK_SECONDS = 5.0
# For this long one machine says that its clock was set: NTP that comes up late sets it right, once.
_NEWS_SECONDS = 900.0


def clock_offset(store: Store) -> float | None:
    """Seconds by which this node's clock is ahead of the database server's; None where there is no server.

    As much as is certain: half of the time that the answer took is taken off.
    """
    if store.engine.dialect.name != "postgresql":
        return None
    query = sa.select(sa.func.extract("epoch", sa.func.clock_timestamp()))
    with store.engine.connect() as db:
        db.execute(sa.select(sa.literal(1)))  # the connection and its transaction are there
        asked, started = time.time(), time.monotonic()
        at = float(db.execute(query).scalar_one())
        unsure = (time.monotonic() - started) / 2
    offset = asked + unsure - at
    return math.copysign(max(0.0, abs(offset) - unsure), offset)


def newest(store: Store) -> float:
    """The latest time in the rows that are stamped as things happen, seconds since 1970; 0 if there are none."""
    queries = [
        sa.select(sa.func.max(column))
        for column in (STUDIES.c.last_instance_at, UNITS.c.created_at, UNITS.c.ended_at, DELIVERIES.c.updated_at)
    ]
    with store.engine.connect() as db:
        return max(float(db.execute(query).scalar() or 0.0) for query in queries)


def check(store: Store) -> None:
    """Raise ClockError where this node's clock is further from the database server's than nodes may be apart."""
    offset = clock_offset(store)
    if offset is None or abs(offset) <= LIMIT_SECONDS:
        return
    now = time.time()
    raise ClockError(
        f"the clock of this node says {_said(now)} and that of the database {_said(now - offset)}; they may be "
        f"{LIMIT_SECONDS:.0f} seconds apart: set the wrong one (NTP keeps it right), then start again"
    )


class ClockWatch:
    """Looks at the clock every few seconds, in a thread of its own, until stopped."""

    def __init__(self, store: Store, role: str) -> None:
        self._store, self._role = store, role
        self._newest: float | None = None
        self._apart, self._since, self._was_set = _apart(), _running(), False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="clock", daemon=True)
        self._off = False
        self._shared = False

    def start(self) -> None:
        """Look once, and go on looking."""
        self._try_to_look()
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def is_right(self) -> bool:
        """Whether the node may work: it does where it is alone, however its clock was set."""
        return not (self._off and self._shared)

    def _run(self) -> None:
        while not self._stopped.wait(_LOOK_SECONDS):
            self._try_to_look()

    def _try_to_look(self) -> None:
        try:
            self._look()
        except SQLAlchemyError as error:
            # The database is away, which others say: nothing is known of the clock until it is back.
            log.debug("clock_not_compared", error=type(error).__name__)
        except Exception as error:  # noqa: BLE001 - the edge of the thread, which must not end unseen
            log.error("clock_not_compared", error=type(error).__name__)

    def _look(self) -> None:
        offset = clock_offset(self._store)
        self._shared = offset is not None
        if offset is None:
            offset = self._alone()
        metrics.CLOCK_OFFSET_SECONDS.labels(self._role).set(offset)
        off = abs(offset) > LIMIT_SECONDS
        if off and not self._off and self._shared:
            log.error("clock_is_off", seconds=round(offset, 1), limit=LIMIT_SECONDS, against="the database")
        elif off and not self._off:
            log.warning("clock_is_off", seconds=round(offset, 1), limit=LIMIT_SECONDS, against="its own past")
        elif self._off and not off:
            log.info("clock_is_right", seconds=round(offset, 1))
        self._off = off

    def _alone(self) -> float:
        """Seconds by which the clock was set lately, or by which rows of before the start lie in the future."""
        if self._newest is None:
            self._newest = newest(self._store)
        return max(self._set_lately(), min(0.0, time.time() - self._newest), key=abs)

    def _set_lately(self) -> float:
        """Seconds by which the clock was set. That it was is news for a while; then it is taken to be right."""
        apart, now = _apart(), _running()
        was_set = abs(apart - self._apart) > LIMIT_SECONDS
        if was_set is not self._was_set:
            self._was_set, self._since = was_set, now
        elif now - self._since > _NEWS_SECONDS:
            # Also where it was not set: many small corrections do not add up.
            self._apart, self._since, self._was_set = apart, now, False
        return apart - self._apart


def _apart() -> float:
    """What changes when the clock is set, and only then, seconds."""
    return time.time() - _running()


def _running() -> float:
    """Seconds since the machine was started, those in which it was suspended included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _said(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
