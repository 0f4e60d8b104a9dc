"""What people ask of the DICOM node on the operator's page, done by the node: it alone writes to the spool."""

from __future__ import annotations

import threading

import structlog
from sqlalchemy.exc import SQLAlchemyError

from stepwedge import actions
from stepwedge.actions import DISCARD, DONE, REFUSED, TAKEN, Action
from stepwedge.dicom.spool import InstanceSpool
from stepwedge.errors import NotKeptError, StepwedgeError, UnusableInstanceError, where
from stepwedge.store import Store

log = structlog.get_logger()

_LOOK_SECONDS = 1.0


def serve(spool: InstanceSpool, store: Store, stop: threading.Event) -> None:
    """Do what is asked for until asked to stop."""
    while not stop.wait(_LOOK_SECONDS):
        try:
            while not stop.is_set() and (asked := actions.take(store)) is not None:
                _do(asked, spool, store)
        except SQLAlchemyError as error:
            log.error("looking_for_requests_failed", error=type(error).__name__)


def _do(asked: Action, spool: InstanceSpool, store: Store) -> None:
    """Release or discard a quarantined object, and say how that ended."""
    study, said = "", ""
    try:
        if asked.action == DISCARD:
            spool.quarantine.discard(asked.subject)
        else:
            study, said = _release(asked, spool)
    except UnusableInstanceError as error:
        said = error.code
    except StepwedgeError as error:
        said = str(error)
    except (OSError, SQLAlchemyError) as error:
        said = f"the disk or the database failed ({type(error).__name__}); try again"
    except Exception as error:  # noqa: BLE001 - the edge of the role: one object must not end this for all others
        said = "an error of ours; the log of the DICOM node names it"
        log.error("request_failed", action=asked.action, error=type(error).__name__, where=where(error))
    else:
        actions.end(store, asked.id, DONE, said=said, study=study)
        log.info("request_done", action=asked.action, digest=asked.subject, study=study, who=asked.who)
        return
    actions.end(store, asked.id, REFUSED, said=said)
    log.warning("request_refused", action=asked.action, digest=asked.subject, reason=said, who=asked.who)


def _release(asked: Action, spool: InstanceSpool) -> tuple[str, str]:
    """Release a quarantined object; its study, where that is known, and what is to be said of it."""
    try:
        return spool.quarantine.release(asked.subject, spool.store).study, ""
    except NotKeptError:
        if asked.state != TAKEN:
            raise
        # An earlier attempt had taken it in and was forgetting it here.
        spool.quarantine.discard(asked.subject)
        return "", "finished by an attempt that was cut off"
