"""The pipeline as durable work: what is queued survives any crash, and is tried until it ends.

Two queues. A unit of work is analysed and observed; then each destination gets a delivery. An attempt that finds the
inference server or the destination away ends, and the next attempt is queued with a delay, so that an outage of any
length holds no worker. Every attempt may run twice: analysis publishes a result once, and a delivery always sends the
bytes that were kept before the first one.

Steps return words, never pixels or headers: the queue's database keeps what they return.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import sqlalchemy as sa
import structlog
from dbos import DBOS, DBOSClient, DBOSConfig, SetEnqueueOptions, SetWorkflowID

from stepwedge import rundir, steps
from stepwedge.clock import LIMIT_SECONDS, clock_offset
from stepwedge.database import open_store, queue_url
from stepwedge.records import State
from stepwedge.room import Room
from stepwedge.settings import Settings, Worker
from stepwedge.steps import Bench
from stepwedge.store import Beside, Delivery, Store, Unit

log = structlog.get_logger()

# Names and version of what lies in the queue. Work of another version is not run: raise it whenever the order or the
# meaning of the steps changes, and the worker queues the unfinished work of the older version anew, once no worker of
# that version lives.
VERSION = "1"
_UNSAID_VERSION = "1"  # of workers that do not say theirs yet
APPLICATION = "stepwedge"
ANALYSES, DELIVERIES = "analyses", "deliveries"
ANALYSE, DELIVER = "analyse", "deliver"
_ALIVE = ["ENQUEUED", "PENDING", "DELAYED"]
# A unit that took its worker down with it this often is failed, so that it cannot do so for ever.
_MAXIMUM_RECOVERIES = 5
_POLL_SECONDS = 0.1


def _add_clock(connection: Any, _record: Any) -> None:
    """Give an older SQLite the clock that DBOS puts into its tables from Python 3.12 on: unixepoch('subsec')."""
    if hasattr(connection, "create_function"):
        connection.create_function("unixepoch", 1, lambda _: round(time.time(), 3))


if sqlite3.sqlite_version_info < (3, 42):
    sa.event.listen(sa.Engine, "connect", _add_clock)


def analysis_id(unit: Unit, attempt: int = 0) -> str:
    """The identifier of an attempt; queueing the same one twice does nothing."""
    return f"{VERSION}/{ANALYSE}/{unit.unit}/{unit.tries}/{attempt}"


def delivery_id(unit: str, destination: str, attempt: int, tries: int = 0) -> str:
    """The identifier of an attempt to deliver."""
    return f"{VERSION}/{DELIVER}/{unit}/{destination}/{tries}/{attempt}"


def about(settings: Settings) -> dict[str, str]:
    """What a living worker tells the others (``rundir.Heartbeat``): whose work it does, and how long it puts off."""
    worker = settings.worker
    longest = max(worker.analysis_backoff_limit_seconds, worker.delivery_backoff_limit_seconds)
    return {"queue": VERSION, "longest_delay": str(longest)}


def prepare_queue(settings: Settings) -> None:
    """Create or migrate the queue's database."""
    # First our own tables: what is wrong with the database is then said in our words.
    open_store(settings).close()
    DBOS.migrate(queue_url(settings))


class QueueClient:
    """Puts units of work into the queue, from any process."""

    def __init__(self, settings: Settings) -> None:
        self._client = DBOSClient(system_database_url=queue_url(settings), application_name=APPLICATION)

    def enqueue(self, unit: Unit) -> None:
        """Queue a unit of work. Doing so again does nothing."""
        self._client.enqueue(
            {
                "queue_name": ANALYSES,
                "workflow_name": ANALYSE,
                "workflow_id": analysis_id(unit),
                "app_version": VERSION,
            },
            unit.unit,
            0,
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.destroy()


class WorkQueue:
    """The running worker. One per process: DBOS keeps its workflows in the process."""

    def __init__(self, bench: Bench) -> None:
        """Register the workflows and start; what this executor had begun before goes on."""
        self._bench = bench
        worker = bench.settings.worker
        config: DBOSConfig = {
            "name": APPLICATION,
            "system_database_url": queue_url(bench.settings),
            "application_version": VERSION,
            "executor_id": worker.executor_id,
            "log_level": "ERROR",
            "notification_listener_polling_interval_sec": _POLL_SECONDS,
        }
        DBOS(config=config)
        self._room = Room(bench.settings.data_dir)
        self._running: set[str] = set()
        self._stuck: frozenset[str] = frozenset()
        self._missing: frozenset[str] = frozenset()
        self._workflows = _register(bench, self._room, self._running)
        DBOS.launch()
        DBOS.register_queue(ANALYSES, worker_concurrency=worker.concurrency, polling_interval_sec=_POLL_SECONDS)
        for destination in bench.settings.destinations:
            # A queue each, so that one that does not answer holds up no other.
            DBOS.register_queue(
                _queue_to(destination.name),
                worker_concurrency=worker.delivery_concurrency,
                polling_interval_sec=_POLL_SECONDS,
            )

    def reconcile(self) -> int:
        """Queue whatever has not ended and is in no queue: lost, or of another version. How much that was."""
        # On a full volume no worker can say that it lives: whoever cannot, judges none of the others.
        settings = self._bench.settings
        if not self._room.look() or not rundir.is_beating(settings.data_dir, f"work.{settings.worker.executor_id}"):
            return 0
        store = self._bench.store
        waiting: dict[str, Callable[[], int]] = {
            _of_any_version(_attempts_of(unit)): partial(self._revive, unit.unit)
            for unit in store.units(states=[State.QUEUED, State.RUNNING])
        }
        for delivery in store.deliveries(state=steps.PENDING):
            waiting[_of_any_version(_attempts_to(delivery))] = partial(self._revive_delivery, delivery)
        alive, lost = self._alive()
        # Twice in a row: what has just been written down is about to be queued, maybe by a node of another version.
        before, self._missing = self._missing, frozenset(waiting.keys() - alive)
        revived = self._missing & (lost | before)
        return sum(revive() for name, revive in waiting.items() if name in revived)  # what has waited longest first

    def _alive(self) -> tuple[set[str], set[str]]:
        """What the names of the workflows that will run begin with, and of those that will not any more.

        Up to each ``/``, without their version.

        Those of a version that no worker has, of an executor that has gone, or put off for longer than anything is,
        are cancelled; so are those of our own that have begun and do not run, because the queue could not be written
        when they ended.
        """
        own = self._bench.settings.worker.executor_id
        found = DBOS.list_workflows(status=_ALIVE, load_input=False)
        begun = {each.workflow_id for each in found if each.status == "PENDING" and each.executor_id == own}
        # Twice in a row: what has just been taken from the queue is about to run.
        idle = frozenset(begun - self._running)
        stuck, self._stuck = self._stuck & idle, idle
        elsewhere = {f"work.{each.executor_id}" for each in found if each.status == "PENDING"} - {f"work.{own}"}
        living = rundir.said_by_living(self._bench.settings.data_dir, "work.", elsewhere)
        gone = elsewhere - living.keys()
        # While nodes are replaced one by one, workers of two versions leave each other's work alone.
        versions = {VERSION, *(said.get("queue", _UNSAID_VERSION) for said in living.values())}
        longest = max(float(said.get("longest_delay", 0.0)) for said in (about(self._bench.settings), *living.values()))
        # By the database's clock: one's own may be the one that is wrong.
        latest = (time.time() - (clock_offset(self._bench.store) or 0.0) + longest + LIMIT_SECONDS) * 1000
        alive: set[str] = set()
        lost = []
        for status in found:
            version, _, name = status.workflow_id.partition("/")
            has_gone = status.status == "PENDING" and f"work.{status.executor_id}" in gone
            # Put off by a clock that has since been set back: it would wait for as long as that.
            too_late = status.status == "DELAYED" and (status.delay_until_epoch_ms or 0) > latest
            of_ours = version == VERSION and (has_gone or too_late or status.workflow_id in stuck)
            if version not in versions or of_ours:
                lost.append(status.workflow_id)
            else:
                alive |= _beginnings(name)
        if lost:
            DBOS.cancel_workflows(lost)
            log.warning("lost_work_queued_again", workflows=len(lost))
        return alive, set().union(*(_beginnings(_of_any_version(identifier)) for identifier in lost))

    def delete_finished(self) -> int:
        """Delete the records of work that ended long ago."""
        before = datetime.now(UTC) - timedelta(days=self._bench.settings.worker.keep_workflows_days)
        ended = DBOS.list_workflows(
            status=["SUCCESS", "ERROR", "CANCELLED"],
            completed_before=before.isoformat(),
            limit=1000,
            load_input=False,
            load_output=False,
        )
        DBOS.delete_workflows([status.workflow_id for status in ended])
        return len(ended)

    def stop(self) -> None:
        """Let running work finish within the drain time; the rest goes on at the next start."""
        self._room.close()
        DBOS.destroy(workflow_completion_timeout_sec=int(self._bench.settings.worker.drain_seconds))

    def _revive(self, name: str) -> int:
        unit = self._bench.store.unit(name)
        if unit is None or unit.state not in {State.QUEUED, State.RUNNING}:
            return 0
        last = DBOS.list_workflows(
            workflow_id_prefix=_attempts_of(unit), sort_desc=True, limit=1, load_input=False, load_output=False
        )
        if last and last[0].status in _ALIVE:
            return 0
        if last and last[0].status == "MAX_RECOVERY_ATTEMPTS_EXCEEDED":
            steps.fail(self._bench, unit, "internal_error")
            return 0
        if last:
            # Every worker that is left finds it lost: the first one counts the try, and all queue the same one.
            self._bench.store.retry_unit(unit)
            unit = self._bench.store.unit(name)
            if unit is None or unit.state not in {State.QUEUED, State.RUNNING}:
                return 0
        _enqueue(ANALYSES, self._workflows[ANALYSE], analysis_id(unit), (unit.unit, 0))
        return 1

    def _revive_delivery(self, delivery: Delivery) -> int:
        # Every worker that is left finds it lost, and all queue the same attempt, which follows the last one.
        made = DBOS.list_workflows(workflow_id_prefix=_attempts_to(delivery), load_input=False, load_output=False)
        if any(each.status in _ALIVE for each in made):
            return 0
        last = max((each.workflow_id for each in made), key=_order, default=None)
        now = [item for item in self._bench.store.deliveries(unit=delivery.unit) if item == delivery]
        if not now:
            return 0  # it went on while we looked
        if delivery.destination not in self._bench.sinks:
            steps.deliver(self._bench, delivery.unit, delivery.destination)  # says why it is withheld
            return 0
        attempt = delivery.attempts + 1
        identifier = _next_id(last) if last else delivery_id(delivery.unit, delivery.destination, attempt)
        queue = _queue_to(delivery.destination)
        _enqueue(queue, self._workflows[DELIVER], identifier, (delivery.unit, delivery.destination, attempt))
        return 1


def retry(store: Store, queue: QueueClient, unit: Unit, beside: Beside | None = None) -> bool:
    """Put a failed unit back into the queue. False, and nothing is done, where it does not stand as given any more.

    ``beside`` is written with it, or not at all.
    """
    again = store.retry_unit(unit, beside)
    if again is not None:
        queue.enqueue(again)
    return again is not None


def _register(bench: Bench, room: Room, running: set[str]) -> dict[str, Callable[..., None]]:
    """The workflows and their steps, bound to what they work with; ``running`` holds the names of those that run."""
    worker = bench.settings.worker

    @contextmanager
    def noted() -> Iterator[str]:
        identifier = DBOS.workflow_id
        assert identifier is not None
        running.add(identifier)
        try:
            yield identifier
        finally:
            running.discard(identifier)

    # They wait for room before the step, which does not begin where the work was cancelled meanwhile; a step that finds
    # none is of a worker that is to end.
    @DBOS.step(name="analyse")
    def analyse_step(name: str) -> str:
        return steps.analyse(bench, name) if room.look() else steps.WAITING

    @DBOS.step(name="give_up")
    def give_up_step(name: str) -> str:
        return steps.give_up(bench, name)

    @DBOS.step(name="planned_deliveries")
    def planned_step(name: str) -> list[str]:
        return [item.destination for item in bench.store.deliveries(unit=name) if item.state == steps.PENDING]

    @DBOS.step(name="deliver")
    def deliver_step(name: str, destination: str) -> str:
        return steps.deliver(bench, name, destination) if room.look() else steps.PENDING

    @DBOS.workflow(name=ANALYSE, max_recovery_attempts=_MAXIMUM_RECOVERIES)
    def analyse(name: str, attempt: int) -> None:
        with noted() as identifier:
            room.wait()
            outcome = analyse_step(name)
            if outcome in {steps.UNAVAILABLE, steps.WAITING}:
                # What waits for an earlier revision has tried nothing yet.
                attempts = attempt + (outcome == steps.UNAVAILABLE)
                if attempts < worker.analysis_attempts:
                    again, delay = _next_id(identifier), _analysis_delay(worker, attempt)
                    _enqueue(ANALYSES, analyse, again, (name, attempts), delay=delay)
                else:
                    give_up_step(name)
                return
            for destination in planned_step(name):
                _enqueue(_queue_to(destination), deliver, delivery_id(name, destination, 1), (name, destination, 1))

    @DBOS.workflow(name=DELIVER, max_recovery_attempts=None)
    def deliver(name: str, destination: str, attempt: int) -> None:
        with noted() as identifier:
            room.wait()
            if deliver_step(name, destination) == steps.PENDING:
                again, delay = _next_id(identifier), _delivery_delay(worker, attempt)
                _enqueue(_queue_to(destination), deliver, again, (name, destination, attempt + 1), delay=delay)

    return {ANALYSE: analyse, DELIVER: deliver}


def _attempts_of(unit: Unit) -> str:
    """What the identifiers of all attempts at this try of a unit begin with."""
    return analysis_id(unit).rpartition("/")[0] + "/"


def _attempts_to(delivery: Delivery) -> str:
    """What the identifiers of all attempts at a delivery begin with."""
    return f"{VERSION}/{DELIVER}/{delivery.unit}/{delivery.destination}/"


def _of_any_version(identifier: str) -> str:
    return identifier.partition("/")[2]


def _beginnings(name: str) -> set[str]:
    return {name[: end.end()] for end in re.finditer("/", name)}


def _next_id(identifier: str) -> str:
    """The identifier of the attempt after this one."""
    start, _, number = identifier.rpartition("/")
    return f"{start}/{int(number) + 1}"


def _order(identifier: str) -> tuple[int, int]:
    """Try and attempt, by which the attempts at one delivery follow each other."""
    _, tries, attempt = identifier.rsplit("/", 2)
    return int(tries), int(attempt)


def _queue_to(destination: str) -> str:
    return f"{DELIVERIES}.{destination}"


def _enqueue(
    queue: str, workflow: Callable[..., None], identifier: str, arguments: tuple[Any, ...], *, delay: float = 0.0
) -> None:
    with SetWorkflowID(identifier), SetEnqueueOptions(delay_seconds=delay or None):
        DBOS.enqueue_workflow(queue, workflow, *arguments)


def _analysis_delay(worker: Worker, attempt: int) -> float:
    return min(worker.analysis_backoff_limit_seconds, worker.analysis_backoff_seconds * 2.0 ** min(attempt, 30))


def _delivery_delay(worker: Worker, attempt: int) -> float:
    return min(worker.delivery_backoff_limit_seconds, worker.delivery_backoff_seconds * 2.0 ** min(attempt - 1, 30))
