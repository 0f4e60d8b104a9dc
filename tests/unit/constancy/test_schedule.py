"""When a run is due. Runs themselves are in the acceptance tests: here the command fails at once, having no service."""

from __future__ import annotations

import os
import time
from pathlib import Path

from packages import write_package, write_policy
from referenced import write_referenced, write_studies
from stepwedge.constancy.schedule import Schedule
from stepwedge.settings import Model, Settings
from structlog.testing import capture_logs


def _settings(tmp_path: Path, *, referenced: bool = True, **values: object) -> Settings:
    package = tmp_path / "package"
    if referenced:
        write_referenced(package, write_studies(tmp_path / "studies"))
    else:
        write_package(package)
    model = Model(package=package, policy=write_policy(tmp_path / "policy.yaml"))
    return Settings(data_dir=tmp_path / "data", models=[model], constancy=values)


class _Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def _runs(schedule: Schedule) -> int:
    """Polls until the run that may be going on has ended; how many had failed by then."""
    with capture_logs() as logs:
        schedule.poll(ready=True)
        while schedule._process is not None:
            time.sleep(0.02)
            schedule.poll(ready=True)
    return sum(line["event"] == "constancy_run_failed" for line in logs)


def test_a_run_is_due_once_the_service_is_ready_and_then_by_the_clock(tmp_path: Path) -> None:
    clock = _Clock()
    schedule = Schedule(_settings(tmp_path, every_hours=2), os.environ, clock)
    schedule.poll(ready=False)
    assert schedule._process is None
    assert _runs(schedule) == 1
    assert _runs(schedule) == 0
    clock.now += 2 * 3600
    assert _runs(schedule) == 1
    schedule.run_now()
    assert _runs(schedule) == 1
    schedule.stop()


def test_none_is_due_where_it_is_switched_off(tmp_path: Path) -> None:
    assert _runs(Schedule(_settings(tmp_path, enabled=False), os.environ)) == 0


def test_a_package_without_a_set_is_said_once_a_period(tmp_path: Path) -> None:
    schedule = Schedule(_settings(tmp_path, referenced=False), os.environ)
    with capture_logs() as logs:
        schedule.poll(ready=True)
        schedule.poll(ready=True)
    assert [line["event"] for line in logs] == ["no_reference_set"]


def test_a_run_that_is_going_on_is_ended_with_the_service(tmp_path: Path) -> None:
    schedule = Schedule(_settings(tmp_path), os.environ)
    schedule.poll(ready=True)
    process = schedule._process
    assert process is not None
    schedule.stop()
    assert process.returncode is not None
