"""What the node holds, for people and for programs: studies, units of work, deliveries, quarantine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from stepwedge import reference
from stepwedge.database import has_database, open_store
from stepwedge.errors import StepwedgeError
from stepwedge.records import REASONS, State
from stepwedge.settings import Settings
from stepwedge.store import Delivery, Quarantined, Study, Unit
from stepwedge.study_state import deliveries_of, state_of, units_of

_SHOWN = 50
_NOT_ROUTED = "no_model_selects"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The database at one moment. Studies newest first; ``units`` and ``deliveries`` by the study and the unit."""

    studies: tuple[Study, ...]
    units: Mapping[str, Sequence[Unit]]
    deliveries: Mapping[str, Sequence[Delivery]]
    quarantined: tuple[Quarantined, ...]

    def state(self, study: Study) -> str:
        """A study's state, derived from its units of the last revision."""
        return state_of(study, [unit for unit in self.units[study.study] if unit.revision == study.revision])

    def reasons(self, study: Study) -> tuple[str, ...]:
        """Why a study that has no units has none, as codes; its units say the rest."""
        return (_NOT_ROUTED,) if self.state(study) == State.NOT_ROUTED else ()

    def to_json(self) -> str:
        """One JSON object. Studies are named by their keyed hash."""
        studies: list[dict[str, Any]] = []
        for study in self.studies:
            units = []
            for unit in self.units[study.study]:
                deliveries = [
                    {
                        "destination": item.destination,
                        "state": item.state,
                        "attempts": item.attempts,
                        "error": item.error,
                        "updated_at": item.updated_at,
                    }
                    for item in self.deliveries[unit.unit]
                ]
                units.append(
                    {
                        "unit": unit.unit,
                        "revision": unit.revision,
                        "model": unit.model_name,
                        "state": str(unit.state),
                        "reasons": list(unit.reasons),
                        "ended_at": unit.ended_at,
                        "deliveries": deliveries,
                    }
                )
            studies.append(
                {
                    "study": study.study,
                    "state": self.state(study),
                    "reasons": list(self.reasons(study)),
                    "revision": study.revision,
                    "last_instance_at": study.last_instance_at,
                    "units": units,
                }
            )
        quarantine = [
            {"digest": item.digest, "reason": item.reason, "sender": item.sender, "count": item.count}
            for item in self.quarantined
        ]
        return json.dumps({"studies": studies, "quarantine": quarantine})


def snapshot(settings: Settings) -> Snapshot:
    """Read the database. Raises StepwedgeError if there is none."""
    if not has_database(settings):
        raise StepwedgeError(f"{settings.data_dir}: no database here; has the service run with these settings?")
    store = open_store(settings)
    try:
        studies = tuple(
            study for study in store.studies() if not reference.is_reference(settings.data_dir, study.study)
        )
        units = units_of(store, [study.study for study in studies])
        deliveries = deliveries_of(store, [unit.unit for of_study in units.values() for unit in of_study])
        return Snapshot(studies=studies, units=units, deliveries=deliveries, quarantined=tuple(store.quarantined()))
    finally:
        store.close()


def describe(state: Snapshot) -> str:
    """The latest studies, a line each, and what was refused."""
    lines = []
    for study in state.studies[:_SHOWN]:
        at = datetime.fromtimestamp(study.last_instance_at).astimezone().isoformat(timespec="seconds")
        lines.append(f"{at}  {study.study}  {state.state(study)}  revision {study.revision}")
        lines += [f"    {REASONS[code]}" for code in state.reasons(study)]
        for unit in state.units[study.study]:
            reasons = f"  {', '.join(unit.reasons)}" if unit.reasons else ""
            lines.append(f"    {unit.unit}  {unit.model_name}  {unit.state}{reasons}")
            for item in state.deliveries[unit.unit]:
                error = f"  {item.error}" if item.error else ""
                lines.append(f"        to {item.destination}: {item.state}, {item.attempts} attempts{error}")
    if len(state.studies) > _SHOWN:
        lines.append(f"and {len(state.studies) - _SHOWN} earlier studies (--json shows them)")
    if not state.studies:
        lines.append("no studies yet")
    for refused in state.quarantined:
        kept = refused.path or "not kept"
        lines.append(f"quarantine: {refused.reason}  from {refused.sender}  {refused.count} times  {kept}")
    return "\n".join(lines)
