"""The sidecar as a process: killed in the middle it goes on, waits for its database, and says why it cannot start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from typing import Any

import pytest
import yaml
from sidecars import SECONDS, Process
from stepwatch.database import Database
from stepwatch.detecting import detectors
from stepwatch.packages import read_package
from stepwatch.settings import Detection, Model
from stepwatch.signals import observation_row
from watched import MODEL, MONDAY, brighter, department, make_service_tables, write_rows, write_watched_package


def wait_for_studies(database: Database, digest: str, least: int) -> int:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        state = database.load_state(MODEL, digest) if "watch_state" in names(database) else None
        if state is not None and state.rest["studies"] >= least:
            return int(state.rest["studies"])
        time.sleep(0.01)
    raise AssertionError(f"fewer than {least} studies were saved")


def names(database: Database) -> list[str]:
    import sqlalchemy as sa

    return list(sa.inspect(database.engine).get_table_names())


def test_a_sidecar_killed_again_and_again_ends_where_one_ends_that_never_was(process: Process) -> None:
    digest = write_watched_package(process.folder / "package", department(2000, start=MONDAY))
    later = department(2600, start=MONDAY + timedelta(days=90), seed=2, digest=digest)
    rows = later[:1500] + [brighter(row, 0.15) if row.scanner == "DX-2" else row for row in later[1500:]]
    engine = make_service_tables(process.folder / "db.sqlite")
    database = Database.open(process.values["database_url"])
    write_rows(engine, rows[:2000])
    for least in (1, 700, 1300):
        process.start()
        wait_for_studies(database, digest, least)
        assert process.end(signal.SIGKILL) == -signal.SIGKILL
    process.start()
    write_rows(engine, rows[2000:])
    assert wait_for_studies(database, digest, len(rows)) == len(rows)
    process.wait_ready()
    assert process.end(signal.SIGTERM) == 0
    state = database.load_state(MODEL, digest)
    assert state is not None
    assert (state.cursor.position, state.cursor.gaps) == (len(rows), frozenset())

    uninterrupted = detectors(Detection())(read_package(Model(package=process.folder / "package"))).start()
    from datetime import datetime

    for row in rows:
        uninterrupted.update(observation_row(row), datetime.fromisoformat(row.time))
    kept = {alarm["alarm"]: alarm for alarm in database.alarms()}
    wanted = {alarm.alarm: alarm.to_dict() for alarm in uninterrupted.alarms()}
    assert wanted, "the change is found"
    assert {name: {k: kept[name][k] for k in fields} for name, fields in wanted.items()} == wanted
    raised = [entry.body["alarm"] for entry in database.log("raised")]
    assert len(raised) == len(set(raised)), "none is raised twice"
    database.close()
    engine.dispose()


def test_it_waits_for_its_database_and_a_person_acknowledges_by_command(process: Process) -> None:
    digest = write_watched_package(process.folder / "package", department(2000, start=MONDAY))
    process.start()
    assert process.wait_ready(503).json()["database"] is False
    assert process.get("/livez") is not None
    engine = make_service_tables(process.folder / "db.sqlite")
    later = department(600, start=MONDAY + timedelta(days=90), seed=2, digest=digest)
    write_rows(engine, later[:200] + [brighter(row, 0.3) for row in later[200:]])
    engine.dispose()
    process.wait_ready()
    database = Database.open(process.values["database_url"])
    wait_for_studies(database, digest, 600)
    listed = process.command("alarms")
    assert listed.returncode == 0
    assert "not acknowledged" in listed.stdout
    alarm = database.alarms()[0]["alarm"]
    done = process.command("acknowledge", alarm, "--by", "A. Person", "--adopt", "--wait", str(SECONDS))
    assert (done.returncode, done.stdout) == (0, "acknowledged, and the present level is the normal one now\n")
    assert "acknowledged by A. Person" in process.command("alarms", "--all").stdout
    again = process.command("acknowledge", alarm, "--by", "A. Person")
    assert (again.returncode, again.stderr) == (2, f"stepwatch: {alarm}: is over, and has been acknowledged\n")
    unknown = process.command("acknowledge", "none", "--by", "A. Person")
    assert "there is no such alarm" in unknown.stderr
    page = process.get("/")
    assert page is not None
    assert MODEL in page.text
    database.close()
    assert process.end(signal.SIGTERM) == 0
    assert "Traceback" not in (process.folder / "log").read_text()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"models": []}, "models is empty"),
        ({"http": {"host": "0.0.0.0"}}, "write a token into a file"),
        ({"database_url": "nonsense"}, "not the address of a database"),
        ({"detection": {"polls": 1}}, "detection.polls"),
    ],
)
def test_it_says_why_it_cannot_start(process: Process, changes: dict[str, Any], said: str) -> None:
    process.config.write_text(yaml.safe_dump(process.values | changes), encoding="utf-8")
    answer = process.command("serve")
    assert answer.returncode == 2
    assert said in answer.stderr
    assert "Traceback" not in answer.stderr


def test_it_imports_no_evidently_and_no_pandas() -> None:
    program = "import sys, stepwatch.detecting, stepwatch.web; print({'pandas', 'evidently'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    assert answer.stdout == "set()\n"
