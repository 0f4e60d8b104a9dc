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


def retry(desk: Desk, name: str, who: str) -> str:
    """Put a failed unit back into the queue; the study. Raises StepwedgeError where it has not failed."""
    unit = desk.store.unit(name)
    if unit is None or unit.state is not State.FAILED:
        raise StepwedgeError("This unit is not failed any more: somebody, or the service, was faster.")
    workflow.retry(desk.store, desk.queue(), unit)
    _noted(desk, RETRY, name, who, study=unit.study)
    return unit.study


def retry_all(desk: Desk, who: str) -> int:
    """Put every failed unit back into the queue; how many."""
    failed = desk.store.units(states=[State.FAILED])
    for unit in failed:
        workflow.retry(desk.store, desk.queue(), unit)
        _noted(desk, RETRY, unit.unit, who, study=unit.study)
    return len(failed)


def send_again(desk: Desk, name: str, destination: str, who: str) -> str:
    """Let a worker send a result that was withheld, if nothing is against it any more; the study.

    Workers look every few seconds for deliveries that are in no queue. Raises StepwedgeError where it is not withheld.
    """
    unit = desk.store.unit(name)
    held = [each for each in desk.store.deliveries(unit=name) if each.destination == destination]
    if unit is None or not held or held[0].state != "withheld":
        raise StepwedgeError("This result is not withheld any more.")
    desk.store.set_delivery(name, destination, "pending", at=time.time())
    _noted(desk, SEND_AGAIN, f"{name} to {destination}", who, study=unit.study)
    return unit.study


def ask_node(desk: Desk, action: str, digest: str, who: str) -> str:
    """Have the DICOM node release or discard a quarantined object, and wait a moment for it; how it stands.

    Raises StepwedgeError where there is no such object.
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
    """Tell the monitor that somebody has seen an alarm. Raises StepwedgeError where it does not take that."""
    if not desk.neighbours.can_acknowledge:
        raise StepwedgeError("The monitor's token is not known here: set watch.token_file.")
    try:
        desk.neighbours.acknowledge(alarm, by=who, adopt=adopt)
    except StepwedgeError as error:
        _noted(desk, ACKNOWLEDGE, alarm, who, state=REFUSED, said=str(error))
        raise
    _noted(desk, ACKNOWLEDGE, alarm, who, said="made the new normal" if adopt else "")


def _noted(
    desk: Desk, action: str, subject: str, who: str, *, study: str = "", state: str = DONE, said: str = ""
) -> None:
    actions.note(desk.store, action, subject[:255], who=who, study=study, state=state, said=said)
    metrics.PAGE_ACTIONS.labels(action, state).inc()
    log.info("page_action", action=action, subject=subject, who=who, outcome=state)
