"""The whole chain on loopback: real metrics, a real Prometheus, every panel of every dashboard, a real Alertmanager."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from chained import TOKEN, program, wait_for, write_alertmanager, write_prometheus
from metric_names import MONITORING, defined_metrics, unknown_names
from peers import free_ports, require_tool
from stepwatch.database import Database
from stepwatch.overview import Overview
from stepwatch.settings import Http
from stepwatch.web import Doors, HttpServer, build_app
from watched import make_service_tables

BOARDS = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in (MONITORING / "grafana").glob("*/*.json")}
PANELS = [
    (f"{board}: {panel['title']} {target['refId']}", target["expr"])
    for board, content in sorted(BOARDS.items())
    for panel in content["panels"]
    for target in panel.get("targets", ())
]
VARIABLES = [
    (f"{board}: {variable['name']}", variable["query"]["query"])
    for board, content in sorted(BOARDS.items())
    for variable in content["templating"]["list"]
    if variable["type"] == "query"
]


class Chain:
    """A running Prometheus, and what stepwatch's webhook was sent."""

    def __init__(self, port: int) -> None:
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=30)
        self.received: list[Mapping[str, Any]] = []

    def query(self, expression: str) -> list[dict[str, Any]]:
        response = self.http.get("/query", params={"query": expression})
        if response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            raise httpx.ReadError("Prometheus is starting")
        answer = response.json()
        assert answer["status"] == "success", f"{expression}: {answer.get('error')}"
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def series(self, selector: str) -> list[dict[str, str]]:
        answer = self.http.get("/series", params={"match[]": selector}).json()
        assert answer["status"] == "success", f"{selector}: {answer.get('error')}"
        found: list[dict[str, str]] = answer["data"]
        return found


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    folder = tmp_path_factory.mktemp("chain")
    prometheus, alertmanager = require_tool("prometheus"), require_tool("prometheus-alertmanager")
    ports = free_ports(3)
    running = Chain(ports[1])
    make_service_tables(folder / "db.sqlite").dispose()
    database = Database.open(f"sqlite:///{folder / 'db.sqlite'}")
    database.prepare()
    doors = Doors(
        overview=Overview,
        database=database,
        pages=folder,
        token=TOKEN,
        open_request=running.received.append,
        read_labels=lambda _body, _kind: (0, {}),
        acknowledge=lambda _alarm, _by, _adopt: None,
    )
    with ExitStack() as stack:
        stack.callback(database.close)
        webhook = HttpServer(Http(port=0), build_app(doors))
        webhook_port = webhook.start()
        stack.callback(webhook.stop)
        here = Path(__file__).parents[1]
        stack.enter_context(program(sys.executable, here / "exposed.py", str(ports[0]), log=folder / "exporter.log"))
        stack.enter_context(
            program(
                prometheus,
                f"--config.file={write_prometheus(folder, ports[0], ports[2])}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{ports[1]}",
                log=folder / "prometheus.log",
            )
        )
        stack.enter_context(
            program(
                alertmanager,
                f"--config.file={write_alertmanager(folder, webhook_port)}",
                f"--storage.path={folder / 'alertmanager'}",
                f"--web.listen-address=127.0.0.1:{ports[2]}",
                "--cluster.listen-address=",
                log=folder / "alertmanager.log",
            )
        )
        stack.callback(running.http.close)
        wait_for(
            "Prometheus to have read the metrics five times",
            lambda: [s for s in running.query("min(count_over_time(up[1m]))") if float(s["value"][1]) >= 5],
            folder / "prometheus.log",
        )
        yield running


def as_grafana_asks(expression: str) -> str:
    """A query with what Grafana puts in place of its variables."""
    for name, value in {"__rate_interval": "1m", "__interval": "15s"}.items():
        expression = expression.replace(f"${name}", value)
    return re.sub(r"\$\w+", ".*", expression)


@pytest.mark.parametrize(("panel", "expression"), PANELS, ids=[name for name, _ in PANELS])
def test_every_panel_shows_something(chain: Chain, panel: str, expression: str) -> None:
    query = as_grafana_asks(expression)
    assert "$" not in query
    found = wait_for(f"{panel}: {query}", lambda: chain.query(query))
    assert [sample for sample in found if sample["value"][1] != "NaN"]


@pytest.mark.parametrize(("variable", "query"), VARIABLES, ids=[name for name, _ in VARIABLES])
def test_every_variable_has_something_to_choose(chain: Chain, variable: str, query: str) -> None:
    wanted = re.fullmatch(r"label_values\((.+), (\w+)\)", as_grafana_asks(query))
    assert wanted
    selector, label = wanted.groups()
    assert wait_for(variable, lambda: {series[label] for series in chain.series(selector) if series.get(label)})


def test_an_empty_panel_would_be_noticed(chain: Chain) -> None:
    assert chain.query("stepwatch_signal_strength") == []


@pytest.mark.parametrize("expression", [e for _, e in PANELS], ids=[name for name, _ in PANELS])
def test_a_panel_asks_for_metrics_and_labels_that_the_code_defines(expression: str) -> None:
    assert unknown_names(as_grafana_asks(expression), defined_metrics()) == set()


def test_an_alarm_becomes_an_alert_and_reaches_the_webhook_with_its_token(chain: Chain) -> None:
    """The webhook is stepwatch's own: it takes nothing without the token."""
    alert = wait_for("the alert", lambda: [a for a in chain.received if "Drifted" in a["labels"]["alertname"]])[0]
    assert alert["status"] == "firing"
    assert alert["labels"] | {"site": ""} == {
        "alertname": "StepwatchSignalDrifted", "severity": "warning", "model": "chest", "signal": "pixel_mean",
        "shift": "acquisition", "kind": "drift", "job": alert["labels"]["job"], "instance": alert["labels"]["instance"],
        "runbook": "https://intranet.example/stepwedge/RUNBOOK.md", "site": "",
    }  # fmt: skip
    assert alert["annotations"]["runbook_url"].endswith("RUNBOOK.md#stepwatchsignaldrifted")
    assert {a["labels"]["alertname"] for a in chain.received} == {"StepwatchSignalDrifted"}


@pytest.mark.parametrize("board", BOARDS)
def test_a_dashboard_takes_its_data_source_from_a_variable_and_keeps_its_address(board: str) -> None:
    content = BOARDS[board]
    assert content["uid"] == {
        "service": "stepwedge-service", "model": "stepwatch-model", "retraining": "stepwatch-retraining",
    }[board]  # fmt: skip
    assert "id" not in content
    kinds = [variable["type"] for variable in content["templating"]["list"]]
    assert kinds[0] == "datasource"
    assert set(re.findall(r'"uid": "(\$[^"]*)"', json.dumps(content))) == {"${datasource}"}
    ids = [panel["id"] for panel in content["panels"]]
    assert len(ids) == len(set(ids))
    for panel in content["panels"]:
        assert panel["type"] == "row" or (panel["description"] and panel["targets"])
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
