"""The node's clock is compared with the database's, and with its own past where there is no server."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from postgresql import PASSWORD, PostgreSQL
from pynetdicom.timer import Timer
from stepwedge import clock, database
from stepwedge.dicom import deliver, listener
from stepwedge.errors import ClockError
from stepwedge.settings import Settings
from stepwedge.store import Store


@pytest.fixture
def shared(tmp_path: Path, postgresql: PostgreSQL) -> Store:
    values = {"url": postgresql.new_database(), "password": PASSWORD}
    return database.open_store(Settings.model_validate({"data_dir": tmp_path, "database": values}))


def test_a_clock_that_agrees_passes(shared: Store) -> None:
    offset = clock.clock_offset(shared)
    assert offset is not None
    assert abs(offset) < 1
    clock.check(shared)
    shared.close()


@pytest.mark.parametrize("seconds", [15.0, -15.0, 86400.0])
def test_a_clock_beyond_the_limit_is_refused(shared: Store, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + seconds)
    with pytest.raises(ClockError, match=r"the clock of this node says .* and that of the database .*10 seconds"):
        clock.check(shared)
    watch = clock.ClockWatch(shared, "work")
    watch.start()
    assert not watch.is_right()
    watch.stop()
    shared.close()


def test_one_machine_works_on_whatever_its_clock_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open_file(tmp_path / "db.sqlite")
    assert clock.clock_offset(store) is None
    clock.check(store)
    store.set_delivery("u", "pacs", "pending", at=time.time() + 86400)
    watch = clock.ClockWatch(store, "work")
    assert watch._alone() == pytest.approx(-86400, abs=60)  # rows lie in the future
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 200_000)
    assert watch._alone() == pytest.approx(200_000, abs=60)
    watch.start()
    assert watch.is_right()
    watch.stop()
    store.close()


def test_a_clock_that_was_set_right_is_news_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open_file(tmp_path / "db.sqlite")
    watch = clock.ClockWatch(store, "work")
    real, running, jump, passed = time.time, clock._running, 0.0, 0.0
    monkeypatch.setattr(time, "time", lambda: real() + jump + passed)
    monkeypatch.setattr(clock, "_running", lambda: running() + passed)
    passed = 600.0
    assert watch._alone() == pytest.approx(0, abs=1)
    jump = 3600.0  # NTP comes up late
    assert watch._alone() == pytest.approx(3600, abs=1)
    passed = 1400.0
    assert watch._alone() == pytest.approx(3600, abs=1)
    passed = 1600.0
    assert watch._alone() == pytest.approx(0, abs=1)
    jump = 0.0  # and back: news again
    assert watch._alone() == pytest.approx(-3600, abs=1)
    for day in range(1, 8):  # seven seconds a day do not add up
        passed, jump = 86400.0 * day, 7.0 * day
        watch._alone()
        passed += 1000.0
        assert abs(watch._alone()) < 8
    store.close()


def test_a_machine_that_was_suspended_has_not_had_its_clock_set() -> None:
    assert clock._running() == pytest.approx(time.clock_gettime(time.CLOCK_BOOTTIME), abs=5)


def test_a_look_that_fails_does_not_end_the_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open_file(tmp_path / "db.sqlite")
    monkeypatch.setattr(clock, "_LOOK_SECONDS", 0.01)
    looks: list[float] = []

    def fail(_: Store) -> None:
        looks.append(time.monotonic())
        raise OSError("the volume is away")

    watch = clock.ClockWatch(store, "work")
    monkeypatch.setattr(clock, "clock_offset", fail)
    watch.start()
    until = time.monotonic() + 60
    while len(looks) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    watch.stop()
    assert len(looks) >= 3
    store.close()


def test_time_outs_of_associations_do_not_follow_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    assert deliver.timer is listener.timer  # either module is enough
    timer = Timer(30)
    timer.start()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 86400)
    assert not timer.expired
    assert timer.remaining == pytest.approx(30, abs=5)
