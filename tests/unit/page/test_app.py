"""The HTTP port says whether the service lives, what it waits for, and how long its oldest work has waited."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from peers import free_ports
from postgresql import PASSWORD, PostgreSQL
from prometheus_client.parser import text_string_to_metric_families
from stepwedge import metrics
from stepwedge.database import open_store
from stepwedge.errors import SettingsError
from stepwedge.page import gauges
from stepwedge.page.app import Checks, HttpServer, build_app
from stepwedge.records import State
from stepwedge.settings import Constancy, Http, Settings
from stepwedge.store import Store, Unit


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open_file(tmp_path / "stepwedge.sqlite")
    yield opened
    opened.close()


@contextmanager
def serving(store: Store, checks: Checks | None = None, constancy: Constancy | None = None) -> Iterator[httpx.Client]:
    """A client of a running server."""
    (port,) = free_ports(1)
    server = HttpServer(Http(port=port), build_app(checks or {}, store, None, constancy or Constancy()))
    server.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            yield client
    finally:
        server.stop()


def add_unit(store: Store, name: str, state: State, *, age: float) -> None:
    unit = Unit(
        unit=name,
        study="study",
        revision=1,
        model_name="tiny",
        model_digest="0" * 64,
        state=state,
        created_at=time.time() - age,
        last_instance_at=1.0,
    )
    store.restore_unit(unit)


def samples(text: str) -> dict[tuple[str, str], float]:
    """The value of each sample, by its name and its first label."""
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_it_lives_although_nothing_is_ready(store: Store) -> None:
    with serving(store, {"work": lambda: False}) as client:
        answer = client.get("/livez")
    assert (answer.status_code, answer.text) == (200, "ok\n")


def test_a_role_that_has_no_page_shows_none(store: Store) -> None:
    with serving(store) as client:
        assert [client.get(path).status_code for path in ("/", "/studies", "/style.css")] == [404] * 3


def test_it_names_what_is_not_ready_until_everything_is(store: Store) -> None:
    state = {"listen": True, "work": False}
    with serving(store, {name: lambda name=name: state[name] for name in state}) as client:
        waiting = client.get("/readyz")
        state["work"] = True
        ready = client.get("/readyz")
    assert (waiting.status_code, waiting.json()) == (503, {"listen": True, "work": False})
    assert (ready.status_code, ready.json()) == (200, {"listen": True, "work": True})


def test_the_metrics_tell_states_and_the_age_of_the_oldest_work(store: Store) -> None:
    add_unit(store, "a", State.QUEUED, age=100)
    add_unit(store, "b", State.RUNNING, age=50)
    add_unit(store, "c", State.REPORTED, age=5000)
    store.set_delivery("c", "pacs", "pending", at=1.0)
    with serving(store) as client:
        answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    found = samples(answer.text)
    assert found["stepwedge_units_in_state", "queued"] == 1
    assert found["stepwedge_units_in_state", "running"] == 1
    assert found["stepwedge_units_in_state", "reported"] == 1
    assert found["stepwedge_deliveries_in_state", "pending"] == 1
    assert found["stepwedge_studies_open", ""] == 0
    assert found["stepwedge_queue_age_seconds", ""] == pytest.approx(100, abs=30)


def test_without_work_the_age_of_the_oldest_is_zero(store: Store) -> None:
    add_unit(store, "c", State.FAILED, age=5000)
    with serving(store) as client:
        assert samples(client.get("/metrics").text)["stepwedge_queue_age_seconds", ""] == 0


def test_a_database_that_is_away_takes_nothing_else_with_it(store: Store) -> None:
    metrics.PAGE_REQUESTS_REFUSED.labels("test").inc()
    with serving(store, {"listen": lambda: True}) as client:
        assert samples(client.get("/metrics").text)["stepwedge_database_up", ""] == 1
        with store.engine.begin() as db:
            db.execute(sa.text("ALTER TABLE units RENAME TO away"))
        away = client.get("/metrics")
        with store.engine.begin() as db:
            db.execute(sa.text("ALTER TABLE away RENAME TO units"))
        back = samples(client.get("/metrics").text)
    assert away.status_code == 200
    found = samples(away.text)
    assert found["stepwedge_database_up", ""] == 0
    assert found["stepwedge_ready", "listen"] == 1
    assert found["stepwedge_page_requests_refused_total", "test"] >= 1
    assert not [name for name, _ in found if name.startswith(("stepwedge_queue", "stepwedge_units_in_state"))]
    assert back["stepwedge_database_up", ""] == 1
    assert back["stepwedge_queue_age_seconds", ""] == 0


def test_a_database_that_is_silent_is_asked_once_and_not_waited_for(
    tmp_path: Path, postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gauges, "_PATIENCE_SECONDS", 0.5)
    database = {"url": postgresql.new_database(), "password": PASSWORD}
    silent = open_store(Settings.model_validate({"data_dir": tmp_path, "database": database}))
    try:
        with serving(silent) as client:
            with silent.engine.begin() as db:
                db.execute(sa.text("LOCK TABLE units IN ACCESS EXCLUSIVE MODE"))
                for _ in range(3):
                    assert samples(client.get("/metrics").text)["stepwedge_database_up", ""] == 0
                assert len([thread for thread in threading.enumerate() if thread.name == "gauges"]) == 1
            deadline = time.monotonic() + 60
            while not samples(client.get("/metrics").text)["stepwedge_database_up", ""] and time.monotonic() < deadline:
                time.sleep(0.1)
            assert samples(client.get("/metrics").text)["stepwedge_database_up", ""] == 1
    finally:
        silent.close()


def test_the_metrics_tell_each_check_of_readiness(store: Store) -> None:
    with serving(store, {"listen": lambda: True, "work": lambda: False}) as client:
        found = samples(client.get("/metrics").text)
    assert (found["stepwedge_ready", "listen"], found["stepwedge_ready", "work"]) == (1, 0)


def test_a_destination_that_has_failed_three_times_is_told_until_it_takes_the_result(store: Store) -> None:
    def failing() -> float | None:
        return samples(client.get("/metrics").text).get(("stepwedge_deliveries_failing", "pacs"))

    with serving(store) as client:
        store.set_delivery("a", "pacs", "pending", at=1.0)
        assert failing() == 0
        for told in (0, 0, 1, 1):
            store.set_delivery("a", "pacs", "pending", at=1.0, error="it does not answer")
            assert failing() == told
        store.set_delivery("a", "pacs", "delivered", at=1.0)
        assert failing() is None


@pytest.mark.parametrize(
    ("constancy", "seconds"),
    [(Constancy(), 86_400), (Constancy(every_hours=168), 604_800), (Constancy(enabled=False), None)],
)
def test_the_metrics_tell_how_often_constancy_runs_are_expected(
    store: Store, constancy: Constancy, seconds: float | None
) -> None:
    with serving(store, constancy=constancy) as client:
        found = samples(client.get("/metrics").text)
    assert found.get(("stepwedge_constancy_interval_seconds", "")) == seconds


def test_an_address_in_use_is_named(store: Store) -> None:
    with serving(store) as client:
        port = client.base_url.port
        second = HttpServer(Http(port=port), build_app({}, store, None, Constancy()))
        with pytest.raises(SettingsError, match=rf"http\.port: cannot listen on 127\.0\.0\.1:{port}"):
            second.start()
        second.stop()
        assert client.get("/livez").status_code == 200
