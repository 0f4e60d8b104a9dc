"""Labels and a sidecar that runs as a process: what comes is bet upon once, whatever happens to the process."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families
from sidecars import SECONDS, TOKEN, Process
from stepwatch.database import Database
from stepwatch.detecting import detectors
from stepwatch.settings import Detection, Model, Settings
from stepwatch.sidecar import Sidecar
from watched import (
    FINDINGS,
    MODEL,
    MONDAY,
    department,
    make_service_tables,
    readings,
    write_labels,
    write_rows,
    write_watched_package,
)


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


class Port:
    """The port of a sidecar that runs, as a reading workstation's script meets it."""

    def __init__(self, process: Process) -> None:
        self.url = f"http://127.0.0.1:{process.port}/labels"

    def post(
        self, content: bytes | str, *, token: str | None = TOKEN, kind: str = "application/json"
    ) -> httpx.Response:
        headers = {"Content-Type": kind} | ({"Authorization": f"Bearer {token}"} if token else {})
        return httpx.post(self.url, content=content, headers=headers, timeout=SECONDS)


def row_of(study: str, **changes: object) -> dict[str, object]:
    label = {"study": study, "finding": FINDINGS[0], "value": "present", "time": "2026-05-01T12:00:00+00:00"}
    return {**label, "reader": "r1", "audit": True, "probability_drawn": 0.3} | changes


def metric(process: Process, name: str, **labels: str) -> float | None:
    answer = process.get("/metrics")
    assert answer is not None
    families = text_string_to_metric_families(answer.text)
    return next((s.value for f in families for s in f.samples if s.name == name and s.labels == labels), None)


def until_metric(process: Process, wanted: float, name: str, **labels: str) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if metric(process, name, **labels) == wanted:
            return
        time.sleep(0.1)
    raise AssertionError(f"{name} is {metric(process, name, **labels)}, wanted {wanted}")


def test_labels_by_http_are_taken_once_and_bad_ones_not_at_all(process: Process) -> None:
    digest = write_watched_package(process.folder / "package", department(1500, start=MONDAY))
    answered = [
        row
        for row in department(120, start=MONDAY + timedelta(days=90), seed=2, digest=digest)
        if FINDINGS[0] in row.probabilities
    ]
    engine = make_service_tables(process.folder / "db.sqlite")
    database = Database.open(process.values["database_url"])
    write_rows(engine, answered)
    process.start()
    process.wait_ready()
    wait_for(database, digest, studies=len(answered))
    port = Port(process)
    good = [row_of(row.study) for row in answered[:40]]
    body = json.dumps(good)

    for token in (None, "wrong-token-of-enough-length", ""):
        refused = port.post(body, token=token)
        assert refused.status_code == 401
        assert refused.headers["WWW-Authenticate"].startswith("Bearer")
    name = "P. Secret"
    malformed = [
        "{", "[1]", '{"study": 1}', json.dumps([good[0], row_of(answered[0].study, value="perhaps")]),
        json.dumps([row_of(name)]), json.dumps([row_of(answered[0].study, patient=name)]),
        json.dumps([row_of(answered[0].study, time="2026-05-01")]), "[" * 100_000, b"\xff\xfe",
    ]  # fmt: skip
    for bad in malformed:
        refused = port.post(bad)
        assert refused.status_code == 400, bad
        assert name not in refused.text
    assert port.post(b"study,finding,value,time\na\n", kind="text/csv").status_code == 400
    assert port.post(b" " * ((8 << 20) + 1)).status_code == 413
    assert port.post(b"".join([b" "] * 10)).status_code == 400
    assert httpx.get(port.url, timeout=SECONDS).status_code == 405
    assert database.labels() == []

    assert port.post(body).json() == {"taken": len(good), "refused": {}}
    until_metric(process, len(good), "stepwatch_labels_bet_on_total", model=MODEL)
    again = port.post(body)
    assert (again.status_code, again.json()) == (200, {"taken": 0, "refused": {}})
    assert port.post(json.dumps([row_of(answered[0].study, finding="gout")])).status_code == 400
    later = port.post(json.dumps([row_of(answered[0].study, value="absent", time="2026-06-01T12:00:00+00:00")]))
    assert later.json() == {"taken": 1, "refused": {}}  # a correction is kept, and not bet upon

    # A study that nobody has heard of may still come: its label is kept, and waits.
    unknown = "ab" * 16
    assert port.post(json.dumps([row_of(unknown)])).json() == {"taken": 1, "refused": {}}
    csv = f"study,finding,value,time\n{answered[50].study},{FINDINGS[0]},absent,2026-05-01T12:00:00+00:00\n"
    assert port.post(csv, kind="text/csv").json() == {"taken": 1, "refused": {}}
    until_metric(process, 1, "stepwatch_labels_waiting", model=MODEL)
    until_metric(process, len(good) + 3, "stepwatch_labels_total", source="http")
    assert metric(process, "stepwatch_labels_bet_on_total", model=MODEL) == len(good)
    assert len(database.labels()) == len(good) + 3
    for outcome, count in (("no_token", 2), ("wrong_token", 1), ("too_large", 1), ("malformed", 11), ("refused", 1)):
        assert metric(process, "stepwatch_http_requests_total", path="/labels", outcome=outcome) == count
    assert metric(process, "stepwatch_labels_refused_total", reason="unknown_finding") == 1
    assert process.end(signal.SIGTERM) == 0
    assert name not in (process.folder / "log").read_text()

    # The study comes at last, and its label with it; nothing else is bet upon again.
    write_rows(engine, [replace(answered[0], unit=f"{unknown}.1", study=unknown)])
    process.start()
    process.wait_ready()
    until_metric(process, len(good) + 1, "stepwatch_labels_bet_on_total", model=MODEL)
    until_metric(process, 0, "stepwatch_labels_waiting", model=MODEL)
    database.close()
    engine.dispose()
