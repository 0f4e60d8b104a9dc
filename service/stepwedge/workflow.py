"""The pipeline as durable work: what is queued survives any crash, and is tried until it ends.

Two queues. A unit of work is analysed and observed; then each destination gets a delivery. An attempt that finds the
inference server or the destination away ends, and the next attempt is queued with a delay, so that an outage of any
length holds no worker. Every attempt may run twice: analysis publishes a result once, and a delivery always sends the
bytes that were kept before the first one.

Steps return words, never pixels or headers: the queue's database keeps what they return.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
import structlog
from dbos import DBOS, DBOSClient, DBOSConfig, SetEnqueueOptions, SetWorkflowID

from stepwedge import metrics
from stepwedge.analysis import analyse_unit, delivered_at, read_published, write_receipt
from stepwedge.errors import DeliveryError, InferenceUnavailableError
from stepwedge.identity import Site
from stepwedge.observation import Observation
from stepwedge.pipeline import Equipment
from stepwedge.records import State
from stepwedge.seams import ResultSink
from stepwedge.settings import Settings, Worker
from stepwedge.store import Store, Unit

log = structlog.get_logger()

# Names and version of what lies in the queue. Work of another version is not run: raise it whenever the order or the
# meaning of the steps changes, and the worker queues the unfinished work of the older version anew.
VERSION = "1"
APPLICATION = "stepwedge"
ANALYSES, DELIVERIES = "analyses", "deliveries"
ANALYSE, DELIVER = "analyse", "deliver"
_ALIVE = ["ENQUEUED", "PENDING", "DELAYED"]
_UNAVAILABLE = "unavailable"
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


def prepare_queue(settings: Settings) -> None:
    """Create or migrate the queue's database."""
    settings.queue_file.parent.mkdir(parents=True, exist_ok=True)
    DBOS.migrate(_url(settings))


class QueueClient:
    """Puts units of work into the queue, from any process."""

    def __init__(self, settings: Settings) -> None:
        self._client = DBOSClient(system_database_url=_url(settings), application_name=APPLICATION)

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


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What the worker's steps work with. ``equipment`` is by model digest, ``sinks`` by destination."""

    settings: Settings
    site: Site
    store: Store
    equipment: Mapping[str, Equipment]
    sinks: Mapping[str, ResultSink]


class WorkQueue:
    """The running worker. One per process: DBOS keeps its workflows in the process."""

    def __init__(self, bench: Bench) -> None:
        """Register the workflows and start; what this executor had begun before goes on."""
        self._bench = bench
        worker = bench.settings.worker
        config: DBOSConfig = {
            "name": APPLICATION,
            "system_database_url": _url(bench.settings),
            "application_version": VERSION,
            "executor_id": worker.executor_id,
            "log_level": "ERROR",
            "notification_listener_polling_interval_sec": _POLL_SECONDS,
        }
        DBOS(config=config)
        self._workflows = _register(bench)
        DBOS.launch()
        DBOS.register_queue(ANALYSES, worker_concurrency=worker.concurrency, polling_interval_sec=_POLL_SECONDS)
        DBOS.register_queue(
            DELIVERIES, worker_concurrency=worker.delivery_concurrency, polling_interval_sec=_POLL_SECONDS
        )

    def reconcile(self) -> int:
        """Queue whatever has not ended and is in no queue: lost, or of another version. How much that was."""
        store = self._bench.store
        alive = {status.workflow_id for status in DBOS.list_workflows(status=_ALIVE, load_input=False)}
        analyses = {tuple(name.split("/")[:4]) for name in alive if name.startswith(f"{VERSION}/{ANALYSE}/")}
        deliveries = {tuple(name.split("/")[:4]) for name in alive if name.startswith(f"{VERSION}/{DELIVER}/")}
        queued = 0
        for unit in store.units(states=[State.QUEUED, State.RUNNING]):
            if (VERSION, ANALYSE, unit.unit, str(unit.tries)) not in analyses:
                queued += self._revive(unit.unit)
        for delivery in store.deliveries(state="pending"):
            if (VERSION, DELIVER, delivery.unit, delivery.destination) not in deliveries:
                attempt = delivery.attempts + 1
                _enqueue(
                    DELIVERIES,
                    self._workflows[DELIVER],
                    delivery_id(delivery.unit, delivery.destination, attempt, tries=int(time.time())),
                    (delivery.unit, delivery.destination, attempt),
                )
                queued += 1
        stale = [name for name in alive if not name.startswith(f"{VERSION}/")]
        if stale:
            DBOS.cancel_workflows(stale)
            log.warning("older_work_queued_again", workflows=len(stale))
        return queued

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
        DBOS.destroy(workflow_completion_timeout_sec=int(self._bench.settings.worker.drain_seconds))

    def _revive(self, name: str) -> int:
        unit = self._bench.store.unit(name)
        if unit is None or unit.state not in {State.QUEUED, State.RUNNING}:
            return 0
        last = DBOS.list_workflows(
            workflow_id_prefix=analysis_id(unit).rsplit("/", 1)[0] + "/", sort_desc=True, limit=1, load_input=False
        )
        if last and last[0].status in _ALIVE:
            return 0
        if last and last[0].status == "MAX_RECOVERY_ATTEMPTS_EXCEEDED":
            _fail(self._bench, unit, "internal_error")
            return 0
        if last:
            self._bench.store.retry_unit(unit.unit)
            unit = self._bench.store.unit(name)
            assert unit is not None
        _enqueue(ANALYSES, self._workflows[ANALYSE], analysis_id(unit), (unit.unit, 0))
        return 1


def retry(store: Store, queue: QueueClient, unit: Unit) -> None:
    """Put a failed unit back into the queue."""
    store.retry_unit(unit.unit)
    again = store.unit(unit.unit)
    assert again is not None
    queue.enqueue(again)


def _register(bench: Bench) -> dict[str, Callable[..., None]]:
    """The workflows and their steps, bound to what they work with."""
    store, settings = bench.store, bench.settings

    @DBOS.step(name="analyse")
    def analyse_step(name: str) -> str:
        return _analyse(bench, name)

    @DBOS.step(name="give_up")
    def give_up_step(name: str) -> str:
        unit = store.unit(name)
        if unit is not None:
            _fail(bench, unit, "inference_unavailable")
        return str(State.FAILED)

    @DBOS.step(name="plan_deliveries")
    def plan_step(name: str) -> list[str]:
        return _plan_deliveries(bench, name)

    @DBOS.step(name="deliver")
    def deliver_step(name: str, destination: str) -> str:
        return _deliver(bench, name, destination)

    @DBOS.workflow(name=ANALYSE, max_recovery_attempts=_MAXIMUM_RECOVERIES)
    def analyse(name: str, attempt: int) -> None:
        unit = store.unit(name)
        outcome = analyse_step(name)
        if outcome == _UNAVAILABLE and unit is not None:
            if attempt + 1 < settings.worker.analysis_attempts:
                _enqueue(
                    ANALYSES,
                    analyse,
                    analysis_id(unit, attempt + 1),
                    (name, attempt + 1),
                    delay=_analysis_delay(settings.worker, attempt),
                )
                return
            give_up_step(name)
            return
        for destination in plan_step(name):
            _enqueue(DELIVERIES, deliver, delivery_id(name, destination, 1), (name, destination, 1))

    @DBOS.workflow(name=DELIVER, max_recovery_attempts=None)
    def deliver(name: str, destination: str, attempt: int) -> None:
        if deliver_step(name, destination) == "pending":
            _enqueue(
                DELIVERIES,
                deliver,
                delivery_id(name, destination, attempt + 1),
                (name, destination, attempt + 1),
                delay=_delivery_delay(settings.worker, attempt),
            )

    return {ANALYSE: analyse, DELIVER: deliver}


def _analyse(bench: Bench, name: str) -> str:
    """Analyse and observe one unit; the state that it ends in, or that the inference server is away."""
    unit = bench.store.unit(name)
    if unit is None:
        log.error("unit_unknown", unit=name)
        return str(State.FAILED)
    equipment = bench.equipment.get(unit.model_digest)
    revision = bench.store.revision(unit.study, unit.revision)
    if equipment is None or revision is None:
        # The model was taken out of the settings, or the index is being rebuilt.
        log.error("unit_cannot_run", unit=name, model_known=equipment is not None)
        _fail(bench, unit, "internal_error")
        return str(State.FAILED)
    bench.store.set_unit(name, State.RUNNING)
    try:
        result, observation = analyse_unit(
            unit, revision, settings=bench.settings, site=bench.site, equipment=equipment
        )
    except InferenceUnavailableError as error:
        log.warning("inference_unavailable", unit=name, error=str(error))
        return _UNAVAILABLE
    except Exception as error:  # noqa: BLE001 - the edge of the work: record it, show it, go on with the next
        log.error("analysis_failed", unit=name, error=type(error).__name__, where=_where(error))
        _fail(bench, unit, "internal_error")
        return str(State.FAILED)
    failed = result.state is State.FAILED
    bench.store.add_observation(_failed_key(unit) if failed else name, observation)
    for stage, value in json.loads(observation)["ms"].items():
        metrics.STAGE_SECONDS.labels(stage).observe(value / 1000.0)
    _end(bench.store, unit, result.state, tuple(reason.code for reason in result.reasons))
    return str(result.state)


def _plan_deliveries(bench: Bench, name: str) -> list[str]:
    """Write down which destinations get the result; the names of those that do."""
    published = read_published(bench.settings, name)
    if published is None or not published.objects:
        return []
    going = []
    for destination in bench.settings.destinations:
        if delivered_at(bench.settings, name, destination.name) is not None:
            continue
        if published.result.policy.demonstration and not destination.accepts_demonstration:
            bench.store.set_delivery(
                name, destination.name, "withheld", at=time.time(), error="demonstration results do not go there"
            )
            metrics.DELIVERIES.labels(destination.name, "withheld").inc()
            continue
        bench.store.set_delivery(name, destination.name, "pending", at=time.time())
        going.append(destination.name)
    return going


def _deliver(bench: Bench, name: str, destination: str) -> str:
    """Send the kept bytes once; the delivery's state afterwards."""
    published = read_published(bench.settings, name)
    sink = bench.sinks.get(destination)
    if published is None or sink is None:
        bench.store.set_delivery(
            name, destination, "withheld", at=time.time(), error="the destination is no longer in the settings"
        )
        return "withheld"
    started = time.perf_counter()
    try:
        sink.send([item.path for item in published.objects])
    except DeliveryError as error:
        return _try_again(bench.store, name, destination, str(error))
    except Exception as error:  # noqa: BLE001 - the edge of the work: a result must not be lost to a mistake of ours
        return _try_again(bench.store, name, destination, f"internal error {type(error).__name__} at {_where(error)}")
    at = time.time()
    write_receipt(bench.settings, name, destination, at)
    bench.store.set_delivery(name, destination, "delivered", at=at)
    metrics.DELIVERIES.labels(destination, "delivered").inc()
    metrics.STAGE_SECONDS.labels("deliver").observe(time.perf_counter() - started)
    metrics.TURNAROUND_SECONDS.labels(destination).observe(max(0.0, at - published.unit.last_instance_at))
    log.info("delivered", unit=name, destination=destination, objects=len(published.objects))
    return "delivered"


def _try_again(store: Store, name: str, destination: str, error: str) -> str:
    attempts = store.set_delivery(name, destination, "pending", at=time.time(), error=error)
    metrics.DELIVERIES.labels(destination, "failed").inc()
    log.warning("delivery_failed", unit=name, destination=destination, attempts=attempts, error=error)
    return "pending"


def _end(store: Store, unit: Unit, state: State, reasons: tuple[str, ...]) -> None:
    store.set_unit(unit.unit, state, reasons, at=time.time())
    metrics.UNITS.labels(unit.model_name, str(state)).inc()
    for reason in reasons:
        metrics.REASONS.labels(unit.model_name, reason).inc()
    log.info("unit_ended", unit=unit.unit, model=unit.model_name, state=str(state), reasons=list(reasons))


def _fail(bench: Bench, unit: Unit, reason: str) -> None:
    """End a unit that has no result; its observation says no more than that."""
    equipment = bench.equipment.get(unit.model_digest)
    row = Observation(
        unit=unit.unit,
        study=unit.study,
        revision=unit.revision,
        time=datetime.now().astimezone().isoformat(timespec="milliseconds"),
        model_name=unit.model_name,
        model_version=equipment.package.manifest.version if equipment else "",
        model_digest=unit.model_digest,
        policy_digest=equipment.policy.digest if equipment and equipment.policy else "",
        state=str(State.FAILED),
        reasons=(reason,),
    )
    bench.store.add_observation(_failed_key(unit), row.to_json())
    _end(bench.store, unit, State.FAILED, (reason,))


def _failed_key(unit: Unit) -> str:
    """A failed try has a row of its own: the try that succeeds has the unit's."""
    return f"{unit.unit}!{unit.tries}"


def _enqueue(
    queue: str, workflow: Callable[..., None], identifier: str, arguments: tuple[Any, ...], *, delay: float = 0.0
) -> None:
    with SetWorkflowID(identifier), SetEnqueueOptions(delay_seconds=delay or None):
        DBOS.enqueue_workflow(queue, workflow, *arguments)


def _analysis_delay(worker: Worker, attempt: int) -> float:
    return min(worker.analysis_backoff_limit_seconds, worker.analysis_backoff_seconds * 2.0 ** min(attempt, 30))


def _delivery_delay(worker: Worker, attempt: int) -> float:
    return min(worker.delivery_backoff_limit_seconds, worker.delivery_backoff_seconds * 2.0 ** min(attempt - 1, 30))


def _where(error: BaseException) -> str:
    """Module and line of an error: enough to find it, and none of the values that its message may quote."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_globals.get('__name__')}:{trace.tb_lineno}" if trace else ""


def _url(settings: Settings) -> str:
    return f"sqlite:///{settings.queue_file}"
