"""The whole loop: a new scanner, alarm, alert, request, approval, a candidate, validation, promotion, and back again.

Everything is real but the patients, the model, which is tiny, and the rules' patience, which is a second.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from chained import program, wait_for, write_alertmanager, write_prometheus
from department import BASELINE, NEW_SCANNER, OF_THE_NEW, SCANNERS, Department
from peers import require_tool

from service import until


@pytest.fixture
def department(tmp_path: Path) -> Iterator[Department]:
    tools = require_tool("prometheus"), require_tool("prometheus-alertmanager")
    built = Department(tmp_path)
    with ExitStack() as stack:
        stack.callback(built.service.stop)
        built.service.start()
        until(lambda: "stepwatch_baseline_usable" in built.metrics(), "the monitor watches", built.service)
        stack.enter_context(
            program(
                tools[0],
                f"--config.file={write_prometheus(tmp_path, built.ports, built.alertmanager)}",
                f"--storage.tsdb.path={tmp_path / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{built.prometheus}",
                log=tmp_path / "prometheus.log",
            )
        )
        stack.enter_context(
            program(
                tools[1],
                f"--config.file={write_alertmanager(tmp_path, built.watch)}",
                f"--storage.path={tmp_path / 'alertmanager'}",
                f"--web.listen-address=127.0.0.1:{built.alertmanager}",
                "--cluster.listen-address=",
                log=tmp_path / "alertmanager.log",
            )
        )
        yield built


def active(metrics: str) -> list[str]:
    """The alarms of drift that are active."""
    return [
        line
        for line in metrics.splitlines()
        if line.startswith("stepwatch_alarm_active{") and line.endswith(" 1.0") and 'kind="drift"' in line
    ]


def watches(metrics: str, baseline: int) -> bool:
    """Whether the monitor goes by a baseline of so many studies, and has read all that was observed."""
    return f'stepwatch_baseline_rows{{model="tiny"}} {baseline}.0' in metrics and "stepwatch_lag_rows 0.0" in metrics


def test_from_a_new_scanner_to_a_new_model_and_back(department: Department) -> None:
    department.send(SCANNERS, 6)
    assert active(department.metrics()) == []
    department.send([NEW_SCANNER], 24)
    until(lambda: active(department.metrics()), "the monitor raises an alarm", department.service)
    assert any("unseen" in line for line in active(department.metrics()))

    # Alarm, rule, Alertmanager, webhook.
    wait_for("a retraining request", department.requests, department.folder / "alertmanager.log")
    request = next(r for r in department.requests() if "unseen" in r["cause"])
    name, opened = request["request"], request["events"][0]["body"]
    assert request["state"] == "open"
    assert opened["alarms"]
    assert opened["studies"]
    assert not any(study in json.dumps(opened) for study in ("MODALITY", "Patient"))

    # Nothing goes on without a person's key.
    department.retrain("approve", name, signed=False, status=2)
    department.retrain("run", name, status=2)
    department.retrain("approve", name)
    assert "candidate" in department.retrain("run", name)
    department.retrain("promote", name, status=2)
    assert "validated" in department.retrain("validate", name)
    assert set(department.versions()) == {"1.0.0"}
    assert "promoted" in department.retrain("promote", name)

    # The new model answers, and to its baseline the scanner is one of three.
    department.send([*SCANNERS, *SCANNERS[:1], NEW_SCANNER], 24)
    assert department.versions()[-1] == "1.1.0"
    wanted = BASELINE + OF_THE_NEW
    until(lambda: watches(department.metrics(), wanted), "the new model is watched", department.service)
    assert active(department.metrics()) == []

    # And back.
    assert "rolled_back" in department.retrain("rollback", name)
    department.send(SCANNERS, 2)
    assert department.versions()[-1] == "1.0.0"
    until(lambda: watches(department.metrics(), BASELINE), "the first model is watched again", department.service)
    events = [event["event"] for event in next(r for r in department.requests() if r["request"] == name)["events"]]
    assert events == [
        "open", "approved", "running", "candidate", "locked_set_used", "validated", "promoting", "promoted",
        "rolling_back", "rolled_back",
    ]  # fmt: skip
