"""Gauges that are read when Prometheus asks: of the database, of what is ready, of what is set."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

import sqlalchemy as sa
from prometheus_client.core import GaugeMetricFamily
from sqlalchemy.exc import SQLAlchemyError

from stepwedge.schema import DELIVERIES
from stepwedge.settings import Constancy
from stepwedge.store import Store

# Well below the 10 seconds after which Prometheus gives up: what else is told then gets there without the database.
_PATIENCE_SECONDS = 4.0
# A destination that is being restarted fails once or twice.
_FAILING_ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class _Held:
    """What the database holds."""

    units: Mapping[str, int]  # by state
    deliveries: Mapping[str, int]  # by state
    failing: Mapping[str, int]  # by destination
    studies_open: int
    oldest: float | None  # when the oldest unit that has not ended was made


class StoreGauges:
    """What the database holds. While it is away, only that it is."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._asked: Future[_Held] | None = None

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Every gauge."""
        held = self._ask()
        yield GaugeMetricFamily(
            "stepwedge_database_up", "1 while the database answers, else 0.", value=float(held is not None)
        )
        if held is None:
            return
        yield _by("state", "stepwedge_units_in_state", "Units of work by state.", held.units)
        yield _by("state", "stepwedge_deliveries_in_state", "Deliveries by state.", held.deliveries)
        yield _by(
            "destination",
            "stepwedge_deliveries_failing",
            f"Results that wait, and that a destination has not taken in {_FAILING_ATTEMPTS} attempts or more.",
            held.failing,
        )
        yield GaugeMetricFamily(
            "stepwedge_studies_open", "Studies that wait to be complete.", value=float(held.studies_open)
        )
        yield GaugeMetricFamily(
            "stepwedge_queue_age_seconds",
            "Age of the oldest unit of work that has not ended.",
            value=0.0 if held.oldest is None else max(0.0, time.time() - held.oldest),
        )

    def _ask(self) -> _Held | None:
        """What the database answers; None where it does not, or not in time. It is not asked twice at once."""
        with self._lock:
            if self._asked is None or self._asked.done():
                self._asked = Future()
                threading.Thread(target=_answer, args=(self._asked, self._store), name="gauges", daemon=True).start()
            asked = self._asked
        try:
            return asked.result(_PATIENCE_SECONDS)
        except (SQLAlchemyError, TimeoutError):
            return None


class ReadyGauges:
    """What ``/readyz`` says, check by check."""

    def __init__(self, checks: Mapping[str, Callable[[], bool]]) -> None:
        self._checks = checks

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauge."""
        ready = {name: int(check()) for name, check in self._checks.items()}
        yield _by("check", "stepwedge_ready", "1 for a check of /readyz that holds, else 0.", ready)


class ConstancyGauges:
    """How often constancy runs are expected; nothing where none are."""

    def __init__(self, settings: Constancy) -> None:
        self._settings = settings

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauge."""
        if self._settings.enabled:
            yield GaugeMetricFamily(
                "stepwedge_constancy_interval_seconds",
                "Seconds between two constancy runs, as set.",
                value=self._settings.every_hours * 3600.0,
            )


def _answer(asked: Future[_Held], store: Store) -> None:
    try:
        asked.set_result(_read(store))
    except Exception as error:  # noqa: BLE001 - the edge of the thread; it is raised where the answer is waited for
        asked.set_exception(error)


def _read(store: Store) -> _Held:
    counts = store.counts()
    failed = (DELIVERIES.c.error != "") & (DELIVERIES.c.attempts >= _FAILING_ATTEMPTS)
    query = (
        sa.select(DELIVERIES.c.destination, sa.func.sum(sa.case((failed, 1), else_=0)))
        .where(DELIVERIES.c.state == "pending")
        .group_by(DELIVERIES.c.destination)
    )
    with store.engine.connect() as db:
        failing = {str(destination): int(count) for destination, count in db.execute(query)}
    return _Held(
        units=counts["units"],
        deliveries=counts["deliveries"],
        failing=failing,
        studies_open=counts["studies"]["open"],
        oldest=store.oldest_waiting(),
    )


def _by(label: str, name: str, text: str, values: Mapping[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family
