"""What each step of the durable workflow does. Every step may run twice, and a step cut short is run again.

A result is published once (``analysis``), its deliveries are written down before the unit is said to have ended, and a
delivery always sends the bytes that were kept before the first one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime

import structlog
from sqlalchemy.exc import SQLAlchemyError

from stepwedge import metrics, reference, tracing
from stepwedge.analysis import Published, analyse_unit, delivered_at, read_published, receipt
from stepwedge.durable import is_full
from stepwedge.errors import InferenceUnavailableError, StepwedgeError, where
from stepwedge.identity import Site
from stepwedge.observation import Observation
from stepwedge.pipeline import Equipment
from stepwedge.records import URGENT, State, UnitResult
from stepwedge.seams import ResultSink
from stepwedge.settings import Destination, Settings
from stepwedge.store import Store, Unit, unit_id

log = structlog.get_logger()

# What `analyse` says beside the states that are ends.
UNAVAILABLE = "unavailable"  # the inference server does not answer
WAITING = "waiting"  # an earlier revision is being analysed, or the volume is full
PENDING, DELIVERED, WITHHELD = "pending", "delivered", "withheld"
_UNKNOWN_PRIORITY = "unknown"  # of a study that failed before its header was read


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What the steps work with. ``equipment`` is by model digest, ``sinks`` by destination."""

    settings: Settings
    site: Site
    store: Store
    equipment: Mapping[str, Equipment]
    sinks: Mapping[str, ResultSink]


def analyse(bench: Bench, name: str) -> str:
    """Analyse and observe one unit, and write down its deliveries.

    Returns
    -------
    The state that the unit ends in, or ``UNAVAILABLE`` or ``WAITING``: then it is to be tried again.
    """
    unit = bench.store.unit(name)
    if unit is None:
        log.error("unit_unknown", unit=name)
        return str(State.FAILED)
    place = tracing.of_revision(unit.study, unit.revision)
    with tracing.span("analyse", under=place, kind="consumer", unit=name, study=unit.study) as span:
        outcome = _analyse_once(bench, unit)
        span.note(model=unit.model_name, revision=unit.revision, tries=unit.tries, outcome=outcome)
        if outcome in {UNAVAILABLE, State.FAILED}:
            span.failed(outcome)
        return outcome


def _analyse_once(bench: Bench, unit: Unit) -> str:
    name = unit.unit
    try:
        return _analyse(bench, unit)
    except InferenceUnavailableError as error:
        bench.store.set_unit(name, State.QUEUED, ("inference_unavailable",))
        log.warning("inference_unavailable", unit=name, error=str(error))
        return UNAVAILABLE
    except Exception as error:  # noqa: BLE001 - the edge of the work: record it, show it, go on with the next
        if is_full(error):
            # Not the unit's fault: it is tried again, as often as need be.
            log.error("analysis_without_room", unit=name)
            with suppress(SQLAlchemyError):  # where even that can be written: a later revision need not wait for it
                bench.store.set_unit(name, State.QUEUED)
            return WAITING
        log.error("analysis_failed", unit=name, error=type(error).__name__, where=where(error))
        return fail(bench, unit, "internal_error")


def give_up(bench: Bench, name: str) -> str:
    """End a unit that no inference server has answered for."""
    unit = bench.store.unit(name)
    return str(State.FAILED) if unit is None else fail(bench, unit, "inference_unavailable")


def deliver(bench: Bench, name: str, destination: str) -> str:
    """Send the kept bytes to one destination, once; ``PENDING``, ``DELIVERED`` or ``WITHHELD`` afterwards."""
    with tracing.span(
        "deliver", under=tracing.of_unit(name), kind="producer", unit=name, destination=destination
    ) as span:
        outcome, error = _deliver_once(bench, name, destination)
        span.note(outcome=outcome)
        if error:
            span.failed("delivery_failed")
        return outcome


def _deliver_once(bench: Bench, name: str, destination: str) -> tuple[str, bool]:
    """Where the delivery stands then, and whether this attempt failed."""
    try:
        return _deliver(bench, name, destination), False
    except StepwedgeError as error:  # a destination that refuses, or a result that cannot be read
        return _try_again(bench.store, name, destination, str(error)), True
    except Exception as error:  # noqa: BLE001 - the edge of the work: a result must not be lost to a mistake of ours
        said = f"internal error {type(error).__name__} at {where(error)}"
        if is_full(error):
            said = "the volume has no room for the receipt"
        return _try_again(bench.store, name, destination, said), True


def plan_deliveries(settings: Settings, store: Store, published: Published) -> None:
    """Write down which destinations get a result. Destinations that came into the settings later get none of it."""
    name = published.unit.unit
    known = {delivery.destination for delivery in store.deliveries(unit=name)}
    for destination in published.destinations if published.objects else ():
        if destination in known:
            continue
        at = delivered_at(settings, name, destination)
        if at is not None:
            store.set_delivery(name, destination, DELIVERED, at=at)
            continue
        reason = _withheld_because(settings, published, destination)
        if reason:
            metrics.DELIVERIES.labels(destination, WITHHELD).inc()
        store.set_delivery(name, destination, WITHHELD if reason else PENDING, at=time.time(), error=reason)


def fail(bench: Bench, unit: Unit, reason: str) -> str:
    """End a unit that has no result; its observation says no more than that. One that has a result keeps it."""
    try:
        published = read_published(bench.settings, unit.unit)
    except StepwedgeError as error:
        log.error("result_unreadable", unit=unit.unit, error=str(error))
        published = None
    if published is not None:
        # What went wrong came after the result, which may be on its way to a destination already.
        return _finish(bench, published)
    return _end_without_result(bench, unit, State.FAILED, reason)


def _analyse(bench: Bench, unit: Unit) -> str:
    published = read_published(bench.settings, unit.unit)
    if published is not None:
        return _finish(bench, published)
    others = [other for other in bench.store.units(study=unit.study) if other.model_name == unit.model_name]
    if any(other.revision > unit.revision for other in others):
        return _end_without_result(bench, unit, State.SUPERSEDED, "newer_revision")
    if any(other.revision < unit.revision and other.state is State.RUNNING for other in others):
        return WAITING
    equipment = bench.equipment.get(unit.model_digest)
    if equipment is None:
        return _replaced(bench, unit)
    revision = bench.store.revision(unit.study, unit.revision)
    if revision is None:
        return fail(bench, unit, "instance_missing")
    bench.store.set_unit(unit.unit, State.RUNNING)
    received = bench.store.instances(unit.study)
    result, observation = analyse_unit(
        unit, revision, received, settings=bench.settings, site=bench.site, equipment=equipment
    )
    published = read_published(bench.settings, unit.unit)
    if published is not None:
        return _finish(bench, published)
    _observe(bench, unit, _failed_key(unit), observation)
    return _end(bench, unit, result.state, tuple(reason.code for reason in result.reasons), _priority(result))


def _finish(bench: Bench, published: Published) -> str:
    """What follows a published result, in an order that leaves nothing unsaid wherever it is cut short."""
    unit, result = published.unit, published.result
    if reference.is_reference(bench.settings.data_dir, unit.study):
        # Looked at by the constancy run, which finds it in its folder.
        return _end(bench, unit, result.state, tuple(reason.code for reason in result.reasons))
    if bench.store.add_observation(unit.unit, published.observation):
        for stage, value in json.loads(published.observation)["ms"].items():
            metrics.STAGE_SECONDS.labels(stage).observe(value / 1000.0)
    plan_deliveries(bench.settings, bench.store, published)
    return _end(bench, unit, result.state, tuple(reason.code for reason in result.reasons), _priority(result))


def _replaced(bench: Bench, unit: Unit) -> str:
    """End a unit whose model is no longer configured; another version of it, if there is one, gets the work."""
    for equipment in bench.equipment.values():
        if equipment.package.manifest.name != unit.model_name:
            continue
        digest = equipment.package.digest
        successor = replace(
            unit,
            unit=unit_id(unit.study, unit.revision, digest),
            model_digest=digest,
            state=State.QUEUED,
            reasons=(),
            tries=0,
        )
        bench.store.restore_unit(successor)
        return _end_without_result(bench, unit, State.SUPERSEDED, "model_replaced")
    return fail(bench, unit, "model_not_configured")


def _deliver(bench: Bench, name: str, destination: str) -> str:
    published = read_published(bench.settings, name)
    sink = bench.sinks.get(destination)
    if published is None:
        return _withhold(bench.store, name, destination, "the result is no longer there; restore it from a backup")
    reason = _withheld_because(bench.settings, published, destination)
    if reason or sink is None:
        return _withhold(bench.store, name, destination, reason)
    if _an_earlier_one_waits(bench.store, published.unit, destination):
        return PENDING
    started = time.perf_counter()
    if delivered_at(bench.settings, name, destination) is None:
        tracing.note(objects=len(published.objects))
        with receipt(bench.settings, name, destination) as keep:
            sink.send([item.path for item in published.objects])
            keep(time.time())
    at = delivered_at(bench.settings, name, destination) or time.time()
    bench.store.set_delivery(name, destination, DELIVERED, at=at)
    metrics.DELIVERIES.labels(destination, DELIVERED).inc()
    metrics.STAGE_SECONDS.labels("deliver").observe(time.perf_counter() - started)
    metrics.TURNAROUND_SECONDS.labels(destination).observe(max(0.0, at - published.unit.last_instance_at))
    log.info("delivered", unit=name, destination=destination, objects=len(published.objects))
    return DELIVERED


def _an_earlier_one_waits(store: Store, unit: Unit, destination: str) -> bool:
    """Whether an earlier revision is still to go there: the order in which a PACS gets them is their order."""
    earlier = [
        other.unit
        for other in store.units(study=unit.study)
        if other.model_name == unit.model_name and other.revision < unit.revision
    ]
    return any(
        delivery.destination == destination and delivery.state == PENDING
        for name in earlier
        for delivery in store.deliveries(unit=name)
    )


def _withheld_because(settings: Settings, published: Published, destination: str) -> str:
    """Why a result does not go to a destination; empty if it does. Asked again at each attempt: settings change."""
    found: Destination | None = next((d for d in settings.destinations if d.name == destination), None)
    if found is None:
        return "the destination is not in the settings"
    if published.result.policy.demonstration and not found.accepts_demonstration:
        return "demonstration results do not go there"
    return ""


def _withhold(store: Store, name: str, destination: str, reason: str) -> str:
    store.set_delivery(name, destination, WITHHELD, at=time.time(), error=reason)
    metrics.DELIVERIES.labels(destination, WITHHELD).inc()
    log.warning("delivery_withheld", unit=name, destination=destination, reason=reason)
    return WITHHELD


def _try_again(store: Store, name: str, destination: str, error: str) -> str:
    attempts = store.set_delivery(name, destination, PENDING, at=time.time(), error=error)
    tracing.note(attempts=attempts)
    metrics.DELIVERIES.labels(destination, "failed").inc()
    log.warning("delivery_failed", unit=name, destination=destination, attempts=attempts, error=error)
    return PENDING


def _end_without_result(bench: Bench, unit: Unit, state: State, reason: str) -> str:
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
        state=str(state),
        reasons=(reason,),
    )
    _observe(bench, unit, _failed_key(unit) if state is State.FAILED else unit.unit, row.to_json())
    return _end(bench, unit, state, (reason,))


def _observe(bench: Bench, unit: Unit, key: str, row: str) -> None:
    """Keep a row for the monitor, of a patient's study only."""
    if not reference.is_reference(bench.settings.data_dir, unit.study):
        bench.store.add_observation(key, row)


def _failed_key(unit: Unit) -> str:
    """A failed try has a row of its own: the try that succeeds has the unit's."""
    return f"{unit.unit}!{unit.tries}"


def _priority(result: UnitResult) -> str:
    """The priority that a study was asked for with, as the metrics name it."""
    if not result.images:
        return _UNKNOWN_PRIORITY
    return "urgent" if any(image.header.priority in URGENT for image in result.images) else "routine"


def _end(bench: Bench, unit: Unit, state: State, reasons: tuple[str, ...], priority: str = _UNKNOWN_PRIORITY) -> str:
    before = bench.store.unit(unit.unit)
    bench.store.set_unit(unit.unit, state, reasons, at=time.time())
    tracing.note(state=state, reasons=reasons)
    if reference.is_reference(bench.settings.data_dir, unit.study):
        return str(state)
    if before is None or before.state is not state:
        metrics.UNITS.labels(unit.model_name, str(state)).inc()
        for reason in reasons:
            metrics.REASONS.labels(unit.model_name, reason).inc()
        if state is not State.SUPERSEDED:  # what takes its place is counted instead
            taken = max(0.0, time.time() - unit.last_instance_at)
            metrics.STUDY_END_SECONDS.labels(priority, str(state)).observe(taken)
        log.info("unit_ended", unit=unit.unit, model=unit.model_name, state=str(state), reasons=list(reasons))
    return str(state)
