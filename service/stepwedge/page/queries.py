"""What the page reads from the database: a few rows at a time, by the indexes, however many studies there are."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from stepwedge.entries import Quarantined, Revision, Study
from stepwedge.observation import ConstancyRun, Observation
from stepwedge.records import State
from stepwedge.schema import CONSTANCY, DELIVERIES, INSTANCES, OBSERVATIONS, QUARANTINE, REVISIONS, STUDIES, UNITS
from stepwedge.store import Store
from stepwedge.study_state import ARRIVING, ORDER

OF_DELIVERIES = ("pending", "withheld")
FILTERS = (
    "failed", "queued", "running", ARRIVING, "deferred", "reported", "rejected", str(State.NOT_ROUTED), *OF_DELIVERIES,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a list goes on: after the entry with this time and this study."""

    at: float
    study: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Counted:
    """How many there are now, and of those whose images came lately."""

    units: dict[str, int]
    lately: dict[str, int]
    deliveries: dict[str, int]
    open_studies: int
    quarantined: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Received:
    """What came of a study, in all its revisions."""

    instances: int
    size: int  # bytes
    modalities: tuple[str, ...]
    senders: tuple[str, ...]  # calling AE titles


def count(store: Store, *, since: float) -> Counted:
    """Units and deliveries by state; ``since`` is the time from which on a study counts as late."""
    lately = (
        sa.select(UNITS.c.state, sa.func.count())
        .where(UNITS.c.state.in_([str(state) for state in State]), UNITS.c.last_instance_at >= since)
        .group_by(UNITS.c.state)
    )
    with store.engine.connect() as db:
        late = {str(state): int(number) for state, number in db.execute(lately)}
    counts = store.counts()
    return Counted(
        units=counts["units"],
        lately=late,
        deliveries=counts["deliveries"],
        open_studies=counts["studies"]["open"],
        quarantined=count_quarantined(store),
    )


def count_quarantined(store: Store) -> int:
    """How many entries the quarantine has."""
    with store.engine.connect() as db:
        return int(db.execute(sa.select(sa.func.count()).select_from(QUARANTINE)).scalar_one())


def list_studies(store: Store, state: str, after: Place | None, limit: int) -> list[tuple[Place, Study]]:
    """Studies, newest first, all of them or those in a state (of ``FILTERS``)."""
    if state in ORDER:
        query, at = _by_unit(state)
    elif state in OF_DELIVERIES:
        query, at = _by_delivery(state)
    else:
        at = STUDIES.c.last_instance_at
        query = sa.select(STUDIES, at.label("at"))
        if state == ARRIVING:
            query = query.where(STUDIES.c.open, STUDIES.c.revision == 0)
        elif state == State.NOT_ROUTED:
            query = query.where(STUDIES.c.revision == 0, sa.not_(STUDIES.c.open))
    if after is not None:
        earlier = sa.and_(at == after.at, STUDIES.c.study < after.study)
        query = query.where(at <= after.at, sa.or_(at < after.at, earlier))
    query = query.order_by(at.desc(), STUDIES.c.study.desc()).limit(limit)
    found: dict[str, tuple[Place, Study]] = {}
    with store.engine.connect() as db:
        # A study with several deliveries comes several times: then one look does not fill the list.
        for offset in itertools.count(0, limit):
            rows = [dict(row) for row in db.execute(query.offset(offset)).mappings()]
            for row in rows:
                place = Place(at=float(row.pop("at")), study=str(row["study"]))
                found.setdefault(place.study, (place, Study(**row)))
            if len(found) >= limit or len(rows) < limit:
                break
    return list(found.values())[:limit]


def _by_unit(state: str) -> tuple[sa.Select[Any], sa.ColumnElement[float]]:
    """Each study once, by its unit in this state, where no other unit of the revision is in one that comes before."""
    other = UNITS.alias()
    same = sa.and_(other.c.study == UNITS.c.study, other.c.revision == UNITS.c.revision)
    before = sa.or_(
        other.c.state.in_(ORDER[: ORDER.index(state)]), sa.and_(other.c.state == state, other.c.unit < UNITS.c.unit)
    )
    query = (
        sa.select(STUDIES, UNITS.c.last_instance_at.label("at"))
        .join(UNITS, sa.and_(UNITS.c.study == STUDIES.c.study, UNITS.c.revision == STUDIES.c.revision))
        .where(UNITS.c.state == state, ~sa.exists().where(same, before))
    )
    return query, UNITS.c.last_instance_at


def _by_delivery(state: str) -> tuple[sa.Select[Any], sa.ColumnElement[float]]:
    """Each study as often as it has deliveries in this state, by when those changed."""
    query = (
        sa.select(STUDIES, DELIVERIES.c.updated_at.label("at"))
        .select_from(DELIVERIES)
        .join(UNITS, UNITS.c.unit == DELIVERIES.c.unit)
        .join(STUDIES, STUDIES.c.study == UNITS.c.study)
        .where(DELIVERIES.c.state == state)
    )
    return query, DELIVERIES.c.updated_at


def observations_of(store: Store, units: Collection[str]) -> dict[str, Observation]:
    """The rows that the monitor reads of some units, where there are any that this version understands."""
    query = sa.select(OBSERVATIONS.c.unit, OBSERVATIONS.c.body).where(OBSERVATIONS.c.unit.in_(units))
    found = {}
    with store.engine.connect() as db:
        for unit, body in db.execute(query):
            try:
                found[str(unit)] = Observation.from_json(body)
            except (ValueError, TypeError):
                continue
    return found


def last_observation(store: Store) -> Observation | None:
    """The newest of all that this version understands; None if there is none."""
    query = sa.select(OBSERVATIONS.c.unit).order_by(OBSERVATIONS.c.id.desc()).limit(1)
    with store.engine.connect() as db:
        unit = db.execute(query).scalar()
    return observations_of(store, [str(unit)]).get(str(unit)) if unit else None


def revisions_of(store: Store, study: str) -> list[Revision]:
    """The revisions of a study, oldest first."""
    query = sa.select(REVISIONS).where(REVISIONS.c.study == study).order_by(REVISIONS.c.revision)
    with store.engine.connect() as db:
        return [Revision(**{**row, "paths": tuple(row["paths"])}) for row in db.execute(query).mappings()]


def received_of(store: Store, study: str) -> Received:
    """What came of a study."""
    where = INSTANCES.c.study == study
    sums = sa.select(sa.func.count(sa.distinct(INSTANCES.c.instance)), sa.func.sum(INSTANCES.c.size)).where(where)
    with store.engine.connect() as db:
        instances, size = db.execute(sums).one()
        modalities = db.execute(sa.select(INSTANCES.c.modality).where(where).distinct()).scalars()
        senders = db.execute(sa.select(INSTANCES.c.sender).where(where).distinct()).scalars()
        return Received(
            instances=int(instances),
            size=int(size or 0),
            modalities=tuple(sorted(modalities)),
            senders=tuple(sorted(senders)),
        )


def names_beginning(store: Store, beginning: str, limit: int) -> list[str]:
    """Studies whose names, keyed hashes, begin so."""
    query = sa.select(STUDIES.c.study).where(STUDIES.c.study >= beginning, STUDIES.c.study < beginning + "g")
    with store.engine.connect() as db:
        return [str(name) for name in db.execute(query.limit(limit)).scalars()]


def quarantined(store: Store, limit: int) -> list[Quarantined]:
    """What is in quarantine, the latest first."""
    query = sa.select(QUARANTINE).order_by(QUARANTINE.c.last_seen.desc()).limit(limit)
    with store.engine.connect() as db:
        return [Quarantined(**row) for row in db.execute(query).mappings()]


def last_runs(store: Store, models: Sequence[str]) -> dict[str, ConstancyRun]:
    """The last constancy run of each model, among the latest."""
    query = sa.select(CONSTANCY.c.body).order_by(CONSTANCY.c.id.desc()).limit(20 * max(1, len(models)))
    found: dict[str, ConstancyRun] = {}
    with store.engine.connect() as db:
        for body in db.execute(query).scalars():
            try:
                run = ConstancyRun.from_json(body)
            except (ValueError, TypeError):
                continue
            found.setdefault(run.model_name, run)
    return found


def not_taking(store: Store) -> list[str]:
    """Destinations to which an attempt has failed that is to be made again."""
    failed = sa.and_(DELIVERIES.c.state == "pending", DELIVERIES.c.error != "")
    query = sa.select(DELIVERIES.c.destination).where(failed).distinct().order_by(DELIVERIES.c.destination)
    with store.engine.connect() as db:
        return [str(name) for name in db.execute(query).scalars()]


def is_quarantined(store: Store, digest: str) -> bool:
    """Whether the quarantine has an entry."""
    with store.engine.connect() as db:
        return db.execute(sa.select(QUARANTINE.c.digest).where(QUARANTINE.c.digest == digest)).first() is not None
