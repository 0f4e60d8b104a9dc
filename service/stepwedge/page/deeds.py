"""What a person does on the page: each deed is done or refused in words, logged, counted, and kept with who did it."""

from __future__ import annotations

import time

import structlog

from stepwedge import actions, metrics, workflow
from stepwedge.actions import ACKNOWLEDGE, ASKED, DISCARD, DONE, REFUSED, RELEASE, RETRY, SEND_AGAIN, TAKEN
from stepwedge.errors import StepwedgeError
from stepwedge.page import queries
from stepwedge.page.desk import Desk
from stepwedge.records import State

log = structlog.get_logger()

_WAIT_SECONDS = 4.0  # for the DICOM node, before the page says that it is still to do it
_LOOK_SECONDS = 0.1
_BLOCK = 500  # units that are put back in one transaction, so that nobody else waits long


def retry(desk: Desk, name: str, who: str) -> str:
    """Put a failed unit back into the queue; the study. Raises StepwedgeError where it has not failed."""
    unit = desk.store.unit(name)
    noted = actions.noting(RETRY, who=who)
    if unit is None or unit.state is not State.FAILED or not workflow.retry(desk.store, desk.queue(), unit, noted):
        raise StepwedgeError("This unit is not failed any more: somebody, or the service, was faster.")
    _told(RETRY, name, who)
    return unit.study


def retry_all(desk: Desk, who: str) -> int:
    """Let the workers take up every failed unit again; how many.

    They look every few seconds for units that are in no queue. What fails anew meanwhile is left as it is.
    """
    began, count = time.time(), 0
    noted = actions.noting(RETRY, who=who)
    while units := desk.store.retry_failed(began, _BLOCK, noted):
        count += len(units)
        _told(RETRY, f"{len(units)} units", who, count=len(units))
    return count


def send_again(desk: Desk, name: str, destination: str, who: str) -> str:
    """Let a worker send a result that was withheld, if nothing is against it any more; the study.

    Workers look every few seconds for deliveries that are in no queue. Raises StepwedgeError where it is not withheld,
    or a newer revision answers for the study.
    """
    unit = desk.store.unit(name)
    study = desk.store.study(unit.study) if unit is not None else None
    if unit is None or study is None:
        raise StepwedgeError("This node has no unit of this name.")
    if unit.revision != study.revision:
        raise StepwedgeError("A newer revision of this study has taken the place of this result.")
    noted = actions.noting(SEND_AGAIN, who=who, destination=destination)
    if not desk.store.send_again(unit, destination, at=time.time(), beside=noted):
        raise StepwedgeError("This result is not withheld any more.")
    _told(SEND_AGAIN, f"{name} to {destination}", who)
    return unit.study


def ask_node(desk: Desk, action: str, digest: str, who: str) -> str:
    """Have the DICOM node release or discard a quarantined object, and wait a moment for it; how it stands.

    Raises StepwedgeError where there is no such object, or the contrary is asked for already.
    """
    assert action in (RELEASE, DISCARD)
    if not queries.is_quarantined(desk.store, digest):
        raise StepwedgeError("This object is not in quarantine any more.")
    number = actions.ask(desk.store, action, digest, who=who)
    log.info("page_action", action=action, subject=digest, who=who, outcome=ASKED)
    deadline = time.monotonic() + _WAIT_SECONDS
    while (asked := actions.find(desk.store, number)) is not None and asked.state in (ASKED, TAKEN):
        if time.monotonic() > deadline:
            break
        time.sleep(_LOOK_SECONDS)
    state = asked.state if asked is not None else ASKED
    metrics.PAGE_ACTIONS.labels(action, state).inc()
    return state


def acknowledge(desk: Desk, alarm: str, who: str, *, adopt: bool) -> None:
    """Tell the monitor that somebody has seen an alarm. Raises StepwedgeError where it does not take that.

    With ``adopt`` ask it to make the change the new normal: it notes that, and its sidecar decides afterwards.
    """
    if not desk.neighbours.can_acknowledge:
        raise StepwedgeError("The monitor's token is not known here: set watch.token_file.")
    known = desk.neighbours.monitor.read()
    if known.value is None:
        raise StepwedgeError(f"{known.problem[:1].upper()}{known.problem[1:]}.")
    if alarm not in {each.alarm for model in known.value.models for each in model.alarms}:
        raise StepwedgeError("The monitor has no such alarm any more.")
    # First who wants it: the monitor may have taken it although no answer comes.
    number = actions.note(desk.store, ACKNOWLEDGE, alarm[:255], who=who, state=TAKEN)
    try:
        desk.neighbours.acknowledge(alarm, by=who, adopt=adopt)
    except StepwedgeError as error:
        actions.end(desk.store, number, REFUSED, said=str(error))
        _told(ACKNOWLEDGE, alarm, who, state=REFUSED)
        raise
    actions.end(desk.store, number, DONE, said="asked to be made the new normal" if adopt else "")
    _told(ACKNOWLEDGE, alarm, who)


def _told(action: str, subject: str, who: str, *, state: str = DONE, count: int = 1) -> None:
    metrics.PAGE_ACTIONS.labels(action, state).inc(count)
    log.info("page_action", action=action, subject=subject, who=who, outcome=state)
