"""Studies with their way, the quarantine and what people did, as frozen records for the templates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stepwedge import actions
from stepwedge.actions import Action
from stepwedge.entries import Delivery, Quarantined, Revision, Study, Unit
from stepwedge.observation import Observation
from stepwedge.page import queries
from stepwedge.page.desk import Desk
from stepwedge.page.queries import Place, Received
from stepwedge.page.words import PROVIDERS, seconds_of
from stepwedge.reference import is_reference
from stepwedge.study_state import deliveries_of, state_of, units_of

_SHOWN = 50  # studies on a page
_QUARANTINE_SHOWN = 200
_ACTIONS_SHOWN = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitView:
    """A unit with its deliveries."""

    unit: Unit
    deliveries: tuple[Delivery, ...]
    observation: Observation | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyRow:
    """A study in the list, with the units of its last revision."""

    study: Study
    state: str
    units: tuple[UnitView, ...]

    @property
    def results(self) -> dict[str, int]:
        """How many deliveries there are, by state."""
        return dict(Counter(item.state for view in self.units for item in view.deliveries))


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyList:
    """Studies, and where the list goes on."""

    rows: tuple[StudyRow, ...]
    state: str
    more: Place | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step of a study's way."""

    at: float | None
    title: str
    state: str  # of `words.STATES`, or empty
    detail: str = ""
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyView:
    """One study with its way."""

    study: Study
    state: str
    received: Received
    steps: tuple[Step, ...]
    units: tuple[UnitView, ...]
    actions: tuple[Action, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class QuarantineView:
    """What was refused, and what was last asked about each."""

    items: tuple[Quarantined, ...]
    asked: Mapping[str, Action]
    more: int


def studies(desk: Desk, state: str, after: Place | None) -> StudyList:
    """A page of the list. Raises SQLAlchemyError where the database does not answer."""
    found = queries.list_studies(desk.store, state, after, _SHOWN + 1)
    shown = found[:_SHOWN]
    patients = [study for _, study in shown if not is_reference(desk.settings.data_dir, study.study)]
    units = units_of(desk.store, [study.study for study in patients])
    last = {study.study: [u for u in units[study.study] if u.revision == study.revision] for study in patients}
    deliveries = deliveries_of(desk.store, [unit.unit for each in last.values() for unit in each])
    rows = [
        StudyRow(
            study=study,
            state=state_of(study, last[study.study]),
            units=tuple(UnitView(unit=unit, deliveries=tuple(deliveries[unit.unit])) for unit in last[study.study]),
        )
        for study in patients
    ]
    return StudyList(rows=tuple(rows), state=state, more=shown[-1][0] if len(found) > _SHOWN else None)


def study(desk: Desk, name: str) -> StudyView | None:
    """One study with its way; None where the node has none of this name."""
    found = desk.store.study(name)
    if found is None:
        return None
    units = units_of(desk.store, [name])[name]
    names = [unit.unit for unit in units]
    deliveries, seen = deliveries_of(desk.store, names), queries.observations_of(desk.store, names)
    views = [
        UnitView(unit=unit, deliveries=tuple(deliveries[unit.unit]), observation=seen.get(unit.unit)) for unit in units
    ]
    received = queries.received_of(desk.store, name)
    return StudyView(
        study=found,
        state=state_of(found, [unit for unit in units if unit.revision == found.revision]),
        received=received,
        steps=tuple(_way(found, received, queries.revisions_of(desk.store, name), views)),
        units=tuple(reversed(views)),
        actions=tuple(actions.of_study(desk.store, name, _ACTIONS_SHOWN)),
    )


def quarantine(desk: Desk) -> QuarantineView:
    """What was refused, the latest first."""
    items = queries.quarantined(desk.store, _QUARANTINE_SHOWN)
    return QuarantineView(
        items=tuple(items),
        asked=actions.about(desk.store, [item.digest for item in items]),
        more=max(0, queries.count_quarantined(desk.store) - len(items)),
    )


def done(desk: Desk) -> tuple[Action, ...]:
    """What people did, the latest first."""
    return tuple(actions.latest(desk.store, _ACTIONS_SHOWN))


def _way(study: Study, received: Received, revisions: Sequence[Revision], units: Sequence[UnitView]) -> list[Step]:
    """Received, complete, analysed, ended, delivered: each step with its time."""
    first = f"from {', '.join(received.senders)}" if received.senders else ""
    steps = [Step(at=study.first_instance_at, title="First image received", state="", detail=first)]
    for revision in revisions:
        nth = f"revision {revision.revision}: " if len(revisions) > 1 else ""
        images = f"{len(revision.paths)} {'images' if len(revision.paths) != 1 else 'image'}"
        if revision.revision > 1 or revision.last_instance_at > study.first_instance_at:
            steps.append(
                Step(at=revision.last_instance_at, title="Last image received", state="", detail=f"{nth}{images}")
            )
        steps.append(Step(at=revision.closed_at, title="Complete", state="", detail=f"{nth}{images} for the models"))
        for view in (each for each in units if each.unit.revision == revision.revision):
            steps += _way_of_unit(view)
    if not revisions:
        steps.append(Step(at=study.last_instance_at, title="Last image received", state=""))
        if study.open:
            steps.append(Step(at=None, title="Waits to be complete", state="arriving"))
        else:
            steps.append(Step(at=None, title="Complete", state="not_routed", reasons=("no_model_selects",)))
    return steps


def _way_of_unit(view: UnitView) -> list[Step]:
    unit, seen, steps = view.unit, view.observation, []
    if seen is not None and unit.state not in ("queued", "running"):
        detail = f"{unit.model_name} {seen.model_version}, {PROVIDERS.get(seen.provider, seen.provider)}".rstrip(", ")
        steps.append(Step(at=seconds_of(seen.time), title="Analysed", state="", detail=detail))
    title = {"queued": "Waits for a worker", "running": "In analysis"}.get(unit.state, "")
    tries = f"tried again {unit.tries} {'times' if unit.tries > 1 else 'time'}" if unit.tries else ""
    steps.append(
        Step(
            at=unit.ended_at,
            title=title or f"{unit.model_name}",
            state=str(unit.state),
            detail=tries,
            reasons=unit.reasons,
        )
    )
    for item in view.deliveries:
        attempts = f"{item.attempts} {'attempts' if item.attempts != 1 else 'attempt'}" if item.attempts else ""
        steps.append(
            Step(
                at=item.updated_at,
                title=f"To {item.destination}",
                state=item.state,
                detail=attempts,
                reasons=(item.error,) if item.error else (),
            )
        )
    return steps
