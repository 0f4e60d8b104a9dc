"""Where studies stand: by their units of the last revision, and what has become of the units' results."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import sqlalchemy as sa

from stepwedge.entries import Delivery, Study, Unit
from stepwedge.records import State
from stepwedge.schema import DELIVERIES, UNITS
from stepwedge.store import Store, unit_from_row

# A study's state is that of its units of the last revision which comes first here.
ORDER = ("failed", "running", "queued", "deferred", "reported", "rejected")
ARRIVING = "arriving"  # a study without units that waits to be complete
_AT_ONCE = 1000  # names in one query: databases take some thousands


def state_of(study: Study, units: Sequence[Unit]) -> str:
    """A study's state, from its units of the last revision."""
    if not units:
        return ARRIVING if study.open else str(State.NOT_ROUTED)
    states = {str(unit.state) for unit in units}
    return next((state for state in ORDER if state in states), str(State.SUPERSEDED))


def units_of(store: Store, studies: Collection[str]) -> dict[str, list[Unit]]:
    """The units of some studies, oldest revision first."""
    found: dict[str, list[Unit]] = {study: [] for study in studies}
    query = sa.select(UNITS).order_by(UNITS.c.revision, UNITS.c.unit)
    with store.engine.connect() as db:
        for some in _parts(studies):
            for row in db.execute(query.where(UNITS.c.study.in_(some))).mappings():
                unit = unit_from_row(row)
                found[unit.study].append(unit)
    return found


def deliveries_of(store: Store, units: Collection[str]) -> dict[str, list[Delivery]]:
    """The deliveries of some units, by destination."""
    found: dict[str, list[Delivery]] = {unit: [] for unit in units}
    query = sa.select(DELIVERIES).order_by(DELIVERIES.c.destination)
    with store.engine.connect() as db:
        for some in _parts(units):
            for row in db.execute(query.where(DELIVERIES.c.unit.in_(some))).mappings():
                found[row["unit"]].append(Delivery(**row))
    return found


def _parts(names: Collection[str]) -> list[list[str]]:
    all_names = list(names)
    return [all_names[start : start + _AT_ONCE] for start in range(0, len(all_names), _AT_ONCE)]
