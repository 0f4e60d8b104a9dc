"""Every panel and variable of every dashboard shows something once a simulated department has filled Prometheus.

The department is the tiny model's: real service, real monitor, real PACS, real Prometheus. What no such department can
fill is named, with the reason.
"""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest
from chained import program, write_alertmanager, write_prometheus
from department import NEW_SCANNER, SCANNERS, Department
from metric_names import MONITORING
from peers import Orthanc, require_tool

from service import PATIENCE_SECONDS, destination, until

BOARDS = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in (MONITORING / "grafana").glob("*/*.json")}
PANELS = {
    f"{board}: {panel['title']} {target['refId']}": target["expr"]
    for board, content in sorted(BOARDS.items())
    for panel in content["panels"]
    for target in panel.get("targets", ())
}
# No graphics card here.
NOT_HERE = re.compile("DCGM_")


@pytest.fixture(scope="module")
def department(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Department]:
    folder = tmp_path_factory.mktemp("department")
    tools = require_tool("prometheus"), require_tool("prometheus-alertmanager")
    with ExitStack() as stack:
        pacs = stack.enter_context(Orthanc.started(tmp_path_factory.mktemp("orthanc")))
        built = Department(folder, reference=True, destinations=[destination(pacs.dicom_port)])
        stack.callback(built.service.stop)
        built.service.start()
        until(lambda: "stepwatch_baseline_usable" in built.metrics(), "the monitor watches", built.service)
        for tool, arguments, log in (
            (
                tools[0],
                [
                    f"--config.file={write_prometheus(folder, built.ports, built.alertmanager)}",
                    f"--storage.tsdb.path={folder / 'tsdb'}",
                    f"--web.listen-address=127.0.0.1:{built.prometheus}",
                ],
                "prometheus.log",
            ),
            (
                tools[1],
                [
                    f"--config.file={write_alertmanager(folder, built.watch)}",
                    f"--storage.path={folder / 'alertmanager'}",
                    f"--web.listen-address=127.0.0.1:{built.alertmanager}",
                    "--cluster.listen-address=",
                ],
                "alertmanager.log",
            ),
        ):
            stack.enter_context(program(tool, *arguments, log=folder / log))
        fill(built)
        yield built


def fill(department: Department) -> None:
    """A morning: studies, a new scanner, something refused, labels, a constancy run."""
    department.send(SCANNERS, 90)
    department.send([NEW_SCANNER], 20)
    done = subprocess.run(
        [sys.executable, "-m", "stepwedge", "constancy", "--config", str(department.service.file)],
        capture_output=True, text=True, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    with department.service.store() as store:
        rows = [json.loads(body) for _, body in store.observations()]
    table = department.folder / "labels.csv"
    with table.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["study", "finding", "value", "time"])
        for row in rows:
            writer.writerow([row["study"], "ill", int(row["pixel_mean"] > 0.5), row["time"]])
    done = subprocess.run(
        [sys.executable, "-m", "stepwatch", "labels", "import", str(table), "--config", str(department.config)],
        capture_output=True, text=True, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def asked(expression: str) -> str:
    """A query with what Grafana puts in place of its variables."""
    for name, value in {"__rate_interval": "10m", "__interval": "15s"}.items():
        expression = expression.replace(f"${name}", value)
    return re.sub(r"\$\w+", ".*", expression)


def test_every_panel_shows_something(department: Department) -> None:
    http = httpx.Client(base_url=f"http://127.0.0.1:{department.prometheus}/api/v1", timeout=30)
    wanted = {name: asked(query) for name, query in PANELS.items() if not NOT_HERE.search(query)}
    empty = dict(wanted)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while http.get("/status/buildinfo").status_code == httpx.codes.SERVICE_UNAVAILABLE and time.monotonic() < deadline:
        time.sleep(0.2)  # it is starting
    while empty and time.monotonic() < deadline:
        for name, query in list(empty.items()):
            answer = http.get("/query", params={"query": query}).json()
            assert answer["status"] == "success", f"{name}: {answer.get('error')}"
            if [sample for sample in answer["data"]["result"] if sample["value"][1] != "NaN"]:
                del empty[name]
        time.sleep(1)
    http.close()
    assert empty == {}
