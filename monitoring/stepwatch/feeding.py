"""Which labels the concept bets take: readings of the audit, each study and finding once, as they come.

A label whose being there depends on the truth (a report that is written where something was found) would be bet upon
as if the model had got worse, or better, and one whose reader has seen the answer hides that it has. Readings of the
audit are drawn whatever the answer and the truth, and are blinded. Given the probability, what such a label says does
not depend on how likely its study was to be drawn; so each counts once, and weights would only add noise.

A bet cannot be taken back. The first reading of a finding in a study that can say counts; a later version corrects the
measured figures, and not the bets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from stepwedge.observation import Label, Observation

from stepwatch.audit import Auditing
from stepwatch.database import Cursor, Database
from stepwatch.rows import RefusedRowError, read_observation

_MOST_WAITING = 1000  # labels whose study has not been seen yet


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """A label that counts."""

    number: int  # its row
    study: str
    finding: str
    value: float
    time: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """What has been taken of the labels, as the saved state has it."""

    cursor: Cursor = field(default_factory=Cursor)
    waiting: tuple[Said, ...] = ()  # for their study, oldest first
    fed: int = 0  # bet upon so far

    @classmethod
    def from_row(cls, values: Mapping[str, Any]) -> Self:
        """From ``to_row``."""
        return cls(
            cursor=Cursor(position=int(values.get("position", 0)), gaps=frozenset(values.get("gaps", ()))),
            waiting=tuple(Said(**item) for item in values.get("waiting", ())),
            fed=int(values.get("fed", 0)),
        )

    def to_row(self) -> dict[str, Any]:
        """As JSON values."""
        waiting = [asdict(said) for said in self.waiting]
        gaps = sorted(self.cursor.gaps)
        return {"position": self.cursor.position, "gaps": gaps, "waiting": waiting, "fed": self.fed}

    def take(self, number: int) -> Place:
        """With one more row taken."""
        return replace(self, cursor=self.cursor.take(number))

    def wait(self, said: Said) -> tuple[Place, int]:
        """With one more that waits, and how many were dropped for it: the oldest."""
        kept = (*self.waiting, said)[-_MOST_WAITING:]
        return replace(self, waiting=kept), len(self.waiting) + 1 - len(kept)

    def of_study(self, study: str) -> tuple[Place, tuple[Said, ...]]:
        """Those that waited for a study, and what is left."""
        found = tuple(said for said in self.waiting if said.study == study)
        if not found:
            return self, ()
        rest = tuple(said for said in self.waiting if said.study != study)
        return replace(self, waiting=rest), found


def counts(number: int, label: Label, database: Database, cursor: Cursor, audited: Auditing) -> Said | None:
    """The label as the bets take it; None if it is not the first reading of the audit of its study and finding."""
    label = audited(label)
    if not _can_say(label):
        return None
    for other, earlier in database.labels_of(label.study):
        same = other != number and earlier.finding == label.finding and cursor.has(other)
        if same and _can_say(audited(earlier)):
            return None
    assert label.value is not None
    return Said(number=number, study=label.study, finding=label.finding, value=label.value, time=label.time)


def answer(study: str, database: Database, cursor: Cursor, model: tuple[str, str]) -> Observation | None:
    """The last answer of a model's package (name, digest) to a study, of those that have been taken.

    None if another package of the same model has answered.

    Raises
    ------
    LookupError
        If no answer of the model that can be read has been taken yet, so that it may still come.
    """
    name, digest = model
    found: Observation | None = None
    other = False
    for number, body in database.answers_to(study):
        if not cursor.has(number):
            continue
        try:
            observation = read_observation(body)
        except RefusedRowError:
            continue
        if observation.model_name == name:
            found, other = (observation, other) if observation.model_digest == digest else (found, True)
    if found is None and not other:
        raise LookupError(study)
    return found


def read_label(body: str) -> Label | None:
    """A label; None if it cannot be read."""
    try:
        return Label.from_json(body)
    except (ValueError, TypeError, AttributeError):
        return None


def _can_say(label: Label) -> bool:
    return label.audit and label.value is not None and math.isfinite(label.value) and 0 <= label.value <= 1
