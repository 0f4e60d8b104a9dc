"""What the monitor says in ``GET /status.json``, version 1: read strictly where the page relies on it.

Fields that this version does not know are left out; one that is missing or of another kind makes the answer unreadable.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

VERSION = 1
_OVER = frozenset({"promoted", "declined", "rolled_back"})  # states in which a retraining request has ended

# Seconds since 1970, of a time that a calendar has.
At = Annotated[float, Field(ge=0, le=4e9, allow_inf_nan=False)]


class _Part(BaseModel):
    # Several names begin with `model_`, which pydantic would keep for itself.
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class Alarm(_Part):
    """A change from the baseline, in words and figures for people. Times are ISO 8601."""

    alarm: str
    kind: str  # drift, or event: a stop that has not outlasted its day
    signal: str
    direction: str
    where: str
    shift: str
    baseline: str
    present: str
    evidence: str
    limit: str
    active: bool
    raised: str
    changed: str
    acknowledged_by: str
    adopted: bool
    adoptable: bool = False  # it may be made the new normal; an older monitor does not say
    mostly_from: list[tuple[str, float]]


class Signal(_Part):
    """Where a signal stands. Evidence is log10."""

    signal: str
    where: str
    evidence: float | None


class Watched(_Part):
    """One model under watch."""

    model: str
    model_version: str
    usable: bool
    problem: str
    warnings: list[str]
    studies: int
    baseline_rows: int
    limit: float | None
    alarms: list[Alarm]
    strongest: list[Signal]
    labels_contradict: list[str]

    @property
    def active(self) -> list[Alarm]:
        """The alarms that last."""
        return [alarm for alarm in self.alarms if alarm.active]


class Request(_Part):
    """A retraining request. Times are seconds since 1970."""

    request: str
    state: str
    since_at: At
    who: str
    opened_at: At
    cause: str
    summary: str
    page: str
    body: dict[str, str]


class Report(_Part):
    """One of Evidently's pages. ``drawn_at`` is seconds since 1970."""

    name: str
    drawn_at: At
    reason: str


class Brief(_Part):
    """All of it."""

    version: int
    database: str
    models: list[Watched]
    requests: list[Request]
    pages: list[Report]

    @property
    def open_requests(self) -> list[Request]:
        """Retraining requests that have not ended."""
        return [each for each in self.requests if each.state not in _OVER]
