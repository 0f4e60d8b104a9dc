"""What people ask of the node on its page, and what came of it: kept in the database, so that it can be seen later.

Some of it the page does itself, at once (``note``). What only the DICOM node may do, because it alone writes to the
spool, the page asks for (``ask``); the node takes it up (``take``) and says how it ended (``end``).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from stepwedge.errors import StepwedgeError
from stepwedge.schema import ACTIONS
from stepwedge.store import Beside, Store, Unit

RETRY, SEND_AGAIN, RELEASE, DISCARD, ACKNOWLEDGE = "retry", "send_again", "release", "discard", "acknowledge"
ASKED, TAKEN, DONE, REFUSED = "asked", "taken", "done", "refused"
OF_THE_NODE = frozenset({RELEASE, DISCARD})
# After this long what was taken up counts as cut off, and is taken up again: doing it twice does no harm.
_CUT_OFF_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Action:
    """What somebody asked for. ``who`` is the name of a token, or a hash of who signed in."""

    id: int
    at: float  # seconds since 1970
    who: str
    action: str
    subject: str  # a unit, a unit and a destination, the digest of a quarantined object, an alarm
    study: str  # keyed hash; empty where it is about none
    state: str  # asked, taken, done, refused
    said: str  # why it was refused: a reason code, or a sentence
    ended_at: float | None


def ask(store: Store, action: str, subject: str, *, who: str) -> int:
    """Ask the DICOM node for something, once: what is asked for already is not asked again. Its number.

    Raises StepwedgeError where something else is asked about the same already.
    """
    with store.engine.begin() as db:
        waiting = sa.select(ACTIONS.c.id, ACTIONS.c.action, ACTIONS.c.who).where(
            ACTIONS.c.subject == subject, ACTIONS.c.action.in_(OF_THE_NODE), ACTIONS.c.state.in_([ASKED, TAKEN])
        )
        known = db.execute(waiting).first()
        if known is None:
            return _insert(db, action, subject, who=who, state=ASKED)
        if known.action != action:
            raise StepwedgeError(
                f"{known.who} has asked for something else already ({known.action}); wait until it is done"
            )
        return int(known.id)


def note(
    store: Store, action: str, subject: str, *, who: str, study: str = "", state: str = DONE, said: str = ""
) -> int:
    """Keep what was done, or refused, at once. Its number."""
    with store.engine.begin() as db:
        return _insert(db, action, subject, who=who, study=study, state=state, said=said, ended_at=time.time())


def noting(action: str, *, who: str, destination: str = "") -> Beside:
    """Keeps what is done to some units in the same transaction."""

    def write(db: sa.Connection, units: Sequence[Unit]) -> None:
        for unit in units:
            subject = f"{unit.unit} to {destination}" if destination else unit.unit
            _insert(db, action, subject[:255], who=who, study=unit.study, state=DONE, ended_at=time.time())

    return write


def take(store: Store) -> Action | None:
    """Take up the oldest thing that is asked of the DICOM node, as it stood before: TAKEN where an attempt was cut off.

    None if nothing is asked, or another node was faster.
    """
    free = sa.or_(
        ACTIONS.c.state == ASKED,
        sa.and_(ACTIONS.c.state == TAKEN, ACTIONS.c.ended_at < time.time() - _CUT_OFF_SECONDS),
    )
    for_node = sa.and_(ACTIONS.c.action.in_(OF_THE_NODE), free)
    with store.engine.connect() as db:
        row = db.execute(sa.select(ACTIONS).where(for_node).order_by(ACTIONS.c.id).limit(1)).mappings().first()
    if row is None:
        return None
    with store.engine.begin() as db:
        # ``ended_at`` says meanwhile since when somebody is at it.
        mine = sa.update(ACTIONS).where(
            ACTIONS.c.id == row["id"],
            ACTIONS.c.state == row["state"],
            ACTIONS.c.ended_at.is_not_distinct_from(row["ended_at"]),
        )
        if not db.execute(mine.values(state=TAKEN, ended_at=time.time())).rowcount:
            return None
    return Action(**row)


def end(store: Store, number: int, state: str, *, said: str = "", study: str = "") -> None:
    """Say how what was taken up ended. What has ended already stays as it is."""
    with store.engine.begin() as db:
        values = {"state": state, "said": said, "study": study, "ended_at": time.time()}
        db.execute(sa.update(ACTIONS).where(ACTIONS.c.id == number, ACTIONS.c.state == TAKEN).values(**values))


def find(store: Store, number: int) -> Action | None:
    """One by its number."""
    return next(iter(_read(store, ACTIONS.c.id == number, 1)), None)


def latest(store: Store, limit: int) -> list[Action]:
    """The newest first."""
    return _read(store, sa.true(), limit)


def of_study(store: Store, study: str, limit: int) -> list[Action]:
    """What was done about a study, the newest first."""
    return _read(store, ACTIONS.c.study == study, limit)


def about(store: Store, subjects: Collection[str]) -> dict[str, Action]:
    """The newest about each of some subjects."""
    if not subjects:
        return {}
    newest = sa.select(sa.func.max(ACTIONS.c.id)).where(ACTIONS.c.subject.in_(subjects)).group_by(ACTIONS.c.subject)
    return {each.subject: each for each in _read(store, ACTIONS.c.id.in_(newest), None)}


def restore(store: Store, action: Action) -> None:
    """Write one as it was, when the database is rebuilt."""
    with store.engine.begin() as db:
        values = {name: getattr(action, name) for name in Action.__dataclass_fields__}
        db.execute(sa.insert(ACTIONS).values(**values))


def _read(store: Store, where: Any, limit: int | None) -> list[Action]:
    query = sa.select(ACTIONS).where(where).order_by(ACTIONS.c.id.desc()).limit(limit)
    with store.engine.connect() as db:
        return [Action(**row) for row in db.execute(query).mappings()]


def _insert(db: sa.Connection, action: str, subject: str, **values: Any) -> int:
    row = {"at": time.time(), "study": "", "said": "", "ended_at": None, **values}
    done = db.execute(sa.insert(ACTIONS).values(action=action, subject=subject, **row))
    assert done.inserted_primary_key is not None
    return int(done.inserted_primary_key[0])
