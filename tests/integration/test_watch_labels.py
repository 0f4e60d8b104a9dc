"""Labels and a sidecar that runs as a process: what comes is bet upon once, whatever happens to the process."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from integration.test_watch_serve import SECONDS, Process
from stepwatch.database import Database
from stepwatch.detecting import detectors
from stepwatch.settings import Detection, Model, Settings
from stepwatch.sidecar import Sidecar
from watched import (
    MODEL,
    MONDAY,
    department,
    make_service_tables,
    readings,
    write_labels,
    write_rows,
    write_watched_package,
)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path)
    yield process
    if process.running is not None and process.running.poll() is None:
        process.running.kill()
        process.running.wait(SECONDS)


def wait_for(database: Database, digest: str, *, studies: int = 0, labels: int = 0) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            state = database.load_state(MODEL, digest)
        except Exception:  # noqa: BLE001 - the tables are not made yet
            state = None
        if state is not None and state.rest["studies"] >= studies and state.rest["labels"]["fed"] >= labels:
            return
        time.sleep(0.01)
    raise AssertionError(f"not {studies} studies and {labels} labels were saved")


def test_a_sidecar_killed_among_labels_raises_what_one_raises_that_never_was(process: Process, tmp_path: Path) -> None:
    digest = write_watched_package(process.folder / "package", department(1500, start=MONDAY))
    rows = department(1200, start=MONDAY + timedelta(days=90), seed=2, digest=digest)
    labels = readings(rows, decayed=True)
    engine = make_service_tables(process.folder / "db.sqlite")
    database = Database.open(process.values["database_url"])
    write_rows(engine, rows)
    process.start()
    wait_for(database, digest, studies=500)
    assert process.end(signal.SIGKILL) == -signal.SIGKILL
    write_labels(engine, labels)
    for least in (1, 600):
        process.start()
        wait_for(database, digest, studies=len(rows), labels=least)
        assert process.end(signal.SIGKILL) == -signal.SIGKILL
    process.start()
    wait_for(database, digest, studies=len(rows), labels=len(labels))
    assert process.end(signal.SIGTERM) == 0
    alarms = database.alarms()
    database.close()
    engine.dispose()

    (tmp_path / "other").mkdir()
    other = make_service_tables(tmp_path / "other" / "db.sqlite")
    write_rows(other, rows)
    write_labels(other, labels)
    other.dispose()
    settings = Settings(
        database_url=f"sqlite:///{tmp_path / 'other' / 'db.sqlite'}",
        models=[Model(package=process.folder / "package")],
        detection=Detection(save_seconds=0),
    )
    whole = Database.open(settings.database_url)
    sidecar = Sidecar(settings, whole, detectors(settings.detection))
    sidecar.look()
    expected = whole.alarms()
    whole.close()
    assert alarms == expected
    assert [alarm["shift"] for alarm in alarms] == ["concept"]
