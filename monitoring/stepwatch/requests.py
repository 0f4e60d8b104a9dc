"""Retraining requests: one for each cause, and who decided what about it, in a log that only grows.

Each event holds the hash of the one before it, and what a person decides is signed by that person's key: an event that
was changed, or cut out, is noticed when the log is read. A file beside the pages remembers the newest event, so that
an end that was cut off is noticed as well, as long as that file stays.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from stepwatch.database import Database
from stepwatch.errors import WatchError
from stepwatch.settings import Settings
from stepwatch.signatures import PrivateKey, canonical, is_by, load_people, name_of, sign
from stepwatch.tables import REQUESTS

# Alerts that a new model may be the answer to; the others call for a repair.
CAUSES = frozenset({"StepwatchSignalDrifted", "StepwatchPerformanceDecayed", "StepwatchSubgroupGap"})
LOCKED_SET_USED = "locked_set_used"  # an event that changes no state
SELF = "stepwatch"  # who does what no person decides
STUDIES = 200  # worth labelling that are listed
_LOOKED_AT = 2000  # latest observations among which they are sought
_TRIES = 20  # to add an event while others add theirs

# The states of a request, and which may follow which. A run that failed is one that may be run again; what is going on
# has a state too, so that it is known where it was cut.
FOLLOWS: Mapping[str, frozenset[str]] = {
    "open": frozenset({""}),
    "approved": frozenset({"open"}),
    "running": frozenset({"approved", "failed"}),
    "failed": frozenset({"running"}),
    "candidate": frozenset({"running"}),
    "validated": frozenset({"candidate", "validated", "inconclusive", "promoting"}),
    "inconclusive": frozenset({"candidate", "validated", "inconclusive"}),
    "declined": frozenset({"open", "approved", "failed", "candidate", "validated", "inconclusive"}),
    "promoting": frozenset({"validated"}),
    "promoted": frozenset({"promoting"}),
    "rolling_back": frozenset({"promoted", "promoting"}),
    "rolled_back": frozenset({"rolling_back"}),
}
OVER = frozenset({"promoted", "declined", "rolled_back"})
# Nothing of these without a person's signature.
SIGNED = frozenset({"approved", "promoting", "promoted", "rolling_back", "rolled_back"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One line of the log."""

    id: int
    request: str
    event: str
    at: float  # seconds since 1970
    who: str
    signature: str  # base64; empty where no person decided
    body: dict[str, Any]

    @property
    def text(self) -> bytes:
        """What is signed."""
        return canonical(
            {"request": self.request, "event": self.event, "at": self.at, "who": self.who, "body": self.body}
        )

    @property
    def hash(self) -> str:
        """What the next event holds."""
        return hashlib.sha256(self.text + self.signature.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A request with its history."""

    request: str
    state: str
    events: tuple[Event, ...] = field(repr=False)

    @property
    def opened(self) -> Event:
        """Why it was opened."""
        return self.events[0]

    @property
    def cause(self) -> str:
        """What it is about, as far as two requests are the same."""
        return str(self.opened.body.get("cause", ""))

    def last(self, event: str) -> Event | None:
        """The newest event of a kind."""
        return next((each for each in reversed(self.events) if each.event == event), None)

    @property
    def locked_set_uses(self) -> int:
        """How often the locked cases were used for it."""
        return sum(each.event == LOCKED_SET_USED for each in self.events)


def read_requests(database: Database, settings: Settings) -> dict[str, Request]:
    """Every request, oldest first.

    Raises
    ------
    WatchError
        If the log is not whole: an event changed, cut out, out of order, or not signed by whom it names.
    """
    # A person may have another key now than then, under the same name.
    present, retired = load_people(settings.retrain.keys), load_people(settings.retrain.retired_keys)
    previous = ""
    events: dict[str, list[Event]] = {}
    head = _read_head(settings)
    seen_head = not head
    for row in database.request_events():
        event = Event(**row)
        where = f"event {event.id} of the log of retraining requests"
        if event.body.get("previous") != previous:
            raise WatchError(f"{where} does not follow the one before it: the log was changed; restore the database")
        known = [each[event.who] for each in (present, retired) if event.who in each]
        if event.signature and known and not any(is_by(event.text, event.signature, key) for key in known):
            raise WatchError(f"{where} is not as {event.who} signed it: the log was changed; restore the database")
        if event.event in SIGNED and (not known or not event.signature):
            raise WatchError(
                f"{where} ({event.event}) bears no signature of one of retrain.keys or retired_keys ({event.who})"
            )
        state = _state(events.get(event.request, []))
        if event.event != LOCKED_SET_USED and state not in FOLLOWS.get(event.event, ()):
            raise WatchError(f"{where} ({event.event}) cannot follow {state or 'nothing'}: the log was changed")
        events.setdefault(event.request, []).append(event)
        previous = event.hash
        seen_head = seen_head or previous == head
    if not seen_head:
        raise WatchError("the log of retraining requests lacks its newest events: it was cut; restore the database")
    return {name: Request(request=name, state=_state(own), events=tuple(own)) for name, own in events.items()}


def read_request(database: Database, settings: Settings, name: str) -> Request:
    """One request. Raises WatchError if there is none, or the log is not whole."""
    found = read_requests(database, settings).get(name)
    if found is None:
        raise WatchError(f"{name}: there is no such retraining request; `stepwatch retrain list` shows them")
    return found


def note(
    database: Database,
    settings: Settings,
    name: str,
    event: str,
    body: Mapping[str, Any] | None = None,
    *,
    key: PrivateKey | None = None,
    now: datetime | None = None,
) -> Request:
    """Add an event; the request as it is then.

    Raises
    ------
    WatchError
        If the request is in no state that this may follow, or a person has to sign and none of them did.
    """
    who = name_of(key, load_people(settings.retrain.keys)) if key else SELF
    if event in SIGNED and key is None:
        raise WatchError(f"{name}: a person has to sign this; give --key")
    at = (now or datetime.now(UTC)).timestamp()
    for _ in range(_TRIES):
        everything = read_requests(database, settings)
        state = everything[name].state if name in everything else ""
        if event != LOCKED_SET_USED and state not in FOLLOWS[event]:
            wanted = " or ".join(sorted(FOLLOWS[event])) or "nothing"
            raise WatchError(f"{name} is {state or 'not known'}; only a request that is {wanted} can become {event}")
        if event == "open":
            cause = str((body or {}).get("cause", ""))
            if (other := _holding_back(everything, cause, at, settings)) is not None:
                raise SameCauseError(f"{other.request} is about the same cause and is {other.state}: no second one")
        last = max((each for request in everything.values() for each in request.events), key=_id, default=None)
        values = {**(body or {}), "previous": last.hash if last else ""}
        added = Event(
            id=last.id + 1 if last else 1, request=name, event=event, at=at, who=who, signature="", body=values
        )
        signature = sign(added.text, key) if key else ""
        row: dict[str, Any] = {
            "id": added.id,
            "request": name,
            "event": event,
            "at": at,
            "who": who,
            "signature": signature,
        }
        try:
            with database.engine.begin() as db:
                # Of two who add at the same time one finds the number taken, and reads again.
                db.execute(sa.insert(REQUESTS).values(**row, body=values))
        except IntegrityError:
            continue
        _write_head(settings, Event(**row, body=values).hash)
        return read_request(database, settings, name)
    raise WatchError("the log of retraining requests is being written by others; try again")


class SameCauseError(WatchError):
    """A request for the same cause is there, or was opened lately."""


def open_request(
    database: Database, settings: Settings, body: Mapping[str, Any], *, now: datetime, key: PrivateKey | None = None
) -> Request:
    """Open a request. Raises SameCauseError if there is one for the same cause, or lately was."""
    name = f"{now:%Y%m%d}-{secrets.token_hex(3)}"
    return note(database, settings, name, "open", body, key=key, now=now)


def open_from_alert(
    database: Database, alert: Mapping[str, Any], *, now: datetime, settings: Settings
) -> Request | None:
    """Open a request for one alert of Alertmanager's message (version 4); None if there is nothing to open.

    Nothing is opened for an alert that no new model can answer, for one that is resolved, and for a cause that has a
    request, or had one opened within the cool-down.

    Raises
    ------
    WatchError
        If the alert is not one, or the log is not whole.
    """
    labels, notes = alert.get("labels"), alert.get("annotations") or {}
    if (
        not isinstance(labels, Mapping)
        or not isinstance(notes, Mapping)
        or not isinstance(labels.get("alertname"), str)
    ):
        raise WatchError("the alert has no labels with an alertname: it is none of Alertmanager's")
    if alert.get("status", "firing") != "firing" or labels["alertname"] not in CAUSES:
        return None
    told = {key: str(labels[key]) for key in _TOLD if key in labels}
    model, signal = told.get("model", ""), told.get("signal", "")
    alarms = [a for a in database.alarms(model or None) if a.get("signal") == signal and a.get("cleared_row") is None]
    pages = database.pages(1)
    body = {
        "signal": signal,
        "cause": "/".join(told.get(key, "") for key in ("model", "alertname", *_CAUSE) if told.get(key)),
        "alert": told,
        "summary": str(notes.get("summary", ""))[:500],
        "since": str(alert.get("startsAt", "")),
        "alarms": _finite(alarms[:5]),
        "page": pages[0]["path"] if pages else "",
        "studies": _worth_labelling(database, model, min((str(a.get("changed_time", "")) for a in alarms), default="")),
    }
    try:
        return open_request(database, settings, body, now=now)
    except SameCauseError:
        return None


# Labels of an alert that say what it is about; all are bounded and name nobody.
_CAUSE = ("signal", "finding", "measure", "group", "level")
_TOLD = ("alertname", "model", *_CAUSE, "shift", "kind", "severity")


def _worth_labelling(database: Database, model: str, since: str) -> list[str]:
    """Studies since a change began, spread evenly, as keyed hashes that only the node can look up."""
    last = database.last_observation()
    begun = _moment(since)
    found: dict[str, None] = {}
    for _, row in database.observations(after=max(0, last - _LOOKED_AT), limit=_LOOKED_AT):
        seen = _moment(row.time)
        if (not model or row.model_name == model) and (begun is None or seen is None or seen >= begun):
            found[row.study] = None
    studies = list(found)
    return studies[:: max(1, -(-len(studies) // STUDIES))]


def _finite(values: object) -> Any:
    """The same without numbers that are none, which no log can hold."""
    return json.loads(json.dumps(values), parse_constant=lambda _: None)


def _moment(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def _holding_back(everything: Mapping[str, Request], cause: str, at: float, settings: Settings) -> Request | None:
    for request in reversed(list(everything.values())):
        young = at - request.opened.at < settings.retrain.cool_down_hours * 3600
        if request.cause == cause and (request.state not in OVER or young):
            return request
    return None


def _state(events: list[Event]) -> str:
    return next((each.event for each in reversed(events) if each.event != LOCKED_SET_USED), "")


def _id(event: Event) -> int:
    return event.id


def folder_of(settings: Settings, request: str = "") -> Path:
    """Where what belongs to a request lies."""
    return settings.data_dir.absolute() / "requests" / request


def _read_head(settings: Settings) -> str:
    try:
        return str(json.loads((folder_of(settings) / "newest.json").read_text())["hash"])
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WatchError(f"{folder_of(settings) / 'newest.json'}: cannot be read: {type(error).__name__}") from None


def _write_head(settings: Settings, value: str) -> None:
    folder = folder_of(settings)
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f"newest.{os.getpid()}.{secrets.token_hex(4)}"
    beside.write_text(json.dumps({"hash": value}))
    beside.replace(folder / "newest.json")
