"""A clock that is a day off, or is set while the service runs: nothing is lost, and it is said."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from faked_clock import FakedClock
from packages import write_package, write_policy
from peers import Orthanc
from postgresql import PASSWORD, PostgreSQL
from sender import Sent, make_study, send

from service import Service, destination, settings_for, until

DAY = 86400.0


@pytest.fixture
def values(orthanc: Orthanc, away: int, tmp_path: Path) -> dict[str, Any]:
    package, policy = write_package(tmp_path / "package"), write_policy(tmp_path / "policy.yaml")
    return settings_for(
        package,
        policy,
        [destination(orthanc.dicom_port), destination(away, name="away")],
        # Long enough that a delivery waits in the queue when the clock is set.
        worker={"delivery_backoff_seconds": 5, "delivery_backoff_limit_seconds": 5},
    )


def _offset(service: Service) -> float:
    """What the metric says of the supervisor's clock."""
    found = re.search(r'stepwedge_clock_offset_seconds\{role="serve"\} (\S+)', service.get("/metrics") or "")
    return float(found[1]) if found else 0.0


def _states(service: Service) -> tuple[dict[str, int], dict[str, int]]:
    with service.store() as store:
        counts = store.counts()
    return counts["units"], counts["deliveries"]


def _all_arrive(service: Service, orthanc: Orthanc, away: int, sent: list[Sent], folder: Path) -> None:
    """Every study is reported once, and its result is in both places: the one that was away is back."""
    count = len(sent)
    until(lambda: _states(service)[0] == {"reported": count}, "every study is reported", service)
    folder.mkdir()
    with Orthanc.started(folder, dicom_port=away) as back:
        until(lambda: _states(service)[1] == {"delivered": 2 * count}, "every result is delivered", service)
        for pacs in (orthanc, back):
            assert [len(pacs.instances(each.study_uid)) for each in sent] == [2] * count


@pytest.mark.parametrize("jump", [DAY, -DAY])
def test_a_clock_set_by_a_day_while_studies_arrive_holds_nothing_up(
    orthanc: Orthanc, values: dict[str, Any], away: int, tmp_path: Path, jump: float
) -> None:
    clock = FakedClock(tmp_path / "clock")
    service = Service(tmp_path / "service", values, clock.variables)
    service.start()
    try:
        sent = [make_study(tmp_path / "studies", 600 + number) for number in range(6)]
        send(service.settings.node.port, sent[0].file)
        until(lambda: service.events("delivery_failed"), "a delivery waits in the queue", service)
        for each in sent[1:3]:
            send(service.settings.node.port, each.file)
        clock.set(jump)
        for each in sent[3:]:
            send(service.settings.node.port, each.file)
        said = until(lambda: service.events("clock_is_off"), "the log says so", service)
        assert {event["level"] for event in said} == {"warning"}
        until(lambda: abs(_offset(service) - jump) < 60, "the metric says so", service)
        until(lambda: service.get("/readyz", "status") == 200, "it is ready", service)
        _all_arrive(service, orthanc, away, sent, tmp_path / "back")
        assert not service.events("role_ended")
        clock.set(0)
        until(lambda: service.events("clock_is_right"), "the log says that it is right again", service)
        late = make_study(tmp_path / "studies", 610)
        send(service.settings.node.port, late.file)
        until(lambda: _states(service)[0] == {"reported": len(sent) + 1}, "the next study is reported", service)
    finally:
        assert service.stop() == 0


def test_work_that_was_queued_a_day_ahead_goes_on_when_the_clock_is_right(
    orthanc: Orthanc, values: dict[str, Any], away: int, tmp_path: Path
) -> None:
    clock = FakedClock(tmp_path / "clock", DAY)
    service = Service(tmp_path / "service", values, clock.variables)
    service.start()
    sent = [make_study(tmp_path / "studies", 620 + number) for number in range(3)]
    for each in sent[:2]:
        send(service.settings.node.port, each.file)
    until(lambda: service.events("delivery_failed"), "a delivery waits in the queue", service)
    assert service.stop() == 0
    assert not service.events("clock_is_off")  # nothing could betray it
    clock.set(0)
    service.start()
    try:
        send(service.settings.node.port, sent[2].file)
        until(lambda: service.events("clock_is_off"), "the log says that rows lie in the future", service)
        until(lambda: abs(_offset(service) + DAY) < 120, "the metric says so", service)
        _all_arrive(service, orthanc, away, sent, tmp_path / "back")
    finally:
        assert service.stop() == 0


@pytest.mark.parametrize("role", ["serve", "listen", "work"])
def test_a_node_a_day_off_does_not_start_beside_others(
    values: dict[str, Any], postgresql: PostgreSQL, tmp_path: Path, role: str
) -> None:
    clock = FakedClock(tmp_path / "clock", -DAY)
    values["database"] = {"url": postgresql.new_database(), "password": PASSWORD}
    service = Service(tmp_path / "service", values)
    done = subprocess.run(
        [sys.executable, "-m", "stepwedge", role, "--config", str(service.file)],
        env=os.environ | clock.variables, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 75, done.stderr
    today, yesterday = (time.strftime("%Y-%m-%d", time.gmtime(time.time() - ago)) for ago in (0, DAY))
    said = done.stderr.strip().splitlines()[-1]
    assert re.search(f"the clock of this node says {yesterday}T.* and that of the database {today}T", said), said
    assert "set the wrong one" in said


def test_a_node_whose_clock_is_set_beside_others_is_not_ready_until_it_is_right(
    orthanc: Orthanc, values: dict[str, Any], away: int, postgresql: PostgreSQL, tmp_path: Path
) -> None:
    clock = FakedClock(tmp_path / "clock")
    (tmp_path / "password").write_text(PASSWORD)
    values["database"] = {"url": postgresql.new_database(), "password_file": str(tmp_path / "password")}
    service = Service(tmp_path / "service", values, clock.variables)
    service.start()
    try:
        assert abs(_offset(service)) < 10
        clock.set(-DAY)
        # Not for the signs of life, which are old for a moment when the clock is set.
        until(lambda: '"clock":false' in (service.get("/readyz") or ""), "it is not ready for its clock", service)
        assert service.get("/readyz", "status") == 503
        until(lambda: abs(_offset(service) + DAY) < 60, "the metric says so", service)
        assert {event["level"] for event in service.events("clock_is_off")} == {"error"}
        sent = make_study(tmp_path / "studies", 630)
        send(service.settings.node.port, sent.file)
        until(lambda: len(orthanc.instances(sent.study_uid)) == 2, "what it has been sent is answered", service)
        # A role that ends meanwhile does not start, and does not end the service.
        service.kill("work")
        until(lambda: {event["status"] for event in service.events("role_ended")} == {-9, 75}, "it is refused", service)
        clock.set(0)
        until(lambda: service.get("/readyz", "status") == 200, "it is ready again", service)
        late = make_study(tmp_path / "studies", 631)
        send(service.settings.node.port, late.file)
        until(lambda: len(orthanc.instances(late.study_uid)) == 2, "the next one is answered", service)
    finally:
        assert service.stop() == 0
