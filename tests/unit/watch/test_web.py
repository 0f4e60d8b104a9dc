"""What is asked of the port is answered; what may not be asked, or is no message, is refused and counted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY
from stand_in_detectors import OUT_OF_BAND
from starlette.applications import Starlette
from stepwatch import metrics
from stepwatch.database import DatabaseAwayError
from stepwatch.errors import WatchError
from stepwatch.settings import Http
from stepwatch.web import Doors, HttpServer, build_app, read_token
from stepwedge.page.said import VERSION, Brief
from watch_bench import Bench

TOKEN = "a-token-that-nobody-guesses"
PATHS = ("/webhook", "/labels", "/acknowledge")
BEARER = {"Authorization": f"Bearer {TOKEN}"}
ALERT = {
    "status": "firing",
    "labels": {"alertname": "StepwatchSignalDrifted", "model": "chest-pneumonia", "signal": "pixel_mean"},
    "annotations": {"summary": "pixel_mean has changed"},
    "startsAt": "2026-03-02T12:00:00Z",
    "endsAt": "0001-01-01T00:00:00Z",
    "fingerprint": "abc",
}
MESSAGE = {"version": "4", "groupKey": "{}", "status": "firing", "receiver": "stepwatch", "alerts": [ALERT]}


class Hands:
    """Takes what the port hands on."""

    def __init__(self) -> None:
        self.alerts: list[Mapping[str, Any]] = []
        self.seen: list[tuple[str, str, bool]] = []
        self.error: Exception | None = None

    def open_request(self, alert: Mapping[str, Any]) -> None:
        if self.error is not None:
            raise self.error
        self.alerts.append(alert)

    def acknowledge(self, alarm: str, by: str, adopt: bool) -> None:
        if self.error is not None:
            raise self.error
        self.seen.append((alarm, by, adopt))

    def read_labels(self, body: bytes, kind: str) -> tuple[int, Mapping[str, int]]:
        if body == b"bad":
            raise WatchError("line 1: no study")
        if body == b"away":
            raise DatabaseAwayError("locked")
        if body == b"broken":
            raise KeyError("PATIENT")
        if body == b"none":
            return 0, {"unknown_finding": 1}
        return (2, {"unknown_finding": 1}) if kind == "csv" else (1, {})


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
def client(bench: Bench, hands: Hands) -> Iterator[httpx.Client]:
    bench.sidecar.look()
    (bench.folder / "pages").mkdir()
    doors = Doors(
        overview=lambda: bench.sidecar.overview,
        database=bench.database,
        pages=bench.folder / "pages",
        token=TOKEN,
        open_request=hands.open_request,
        read_labels=hands.read_labels,
        acknowledge=hands.acknowledge,
    )
    server = HttpServer(Http(port=0), build_app(doors))
    port = server.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        yield client
    server.stop()


def outcomes(outcome: str, path: str = "/webhook") -> float:
    name, labels = "stepwatch_webhook_requests_total", {"outcome": outcome}
    if path != "/webhook":
        name, labels = "stepwatch_http_requests_total", labels | {"path": path}
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_a_message_of_alertmanager_opens_a_request_for_what_fires(client: httpx.Client, hands: Hands) -> None:
    before = outcomes("taken")
    resolved = {**ALERT, "status": "resolved"}
    answer = client.post("/webhook", json={**MESSAGE, "alerts": [ALERT, resolved]}, headers=BEARER)
    assert (answer.status_code, answer.json()) == (200, {"taken": 1})
    assert hands.alerts == [ALERT]
    assert outcomes("taken") == before + 1


@pytest.mark.parametrize(
    ("headers", "outcome"),
    [
        ({}, "no_token"),
        ({"Authorization": "Basic YTpi"}, "no_token"),
        ({"Authorization": "Bearer"}, "no_token"),
        ({"Authorization": f"Bearer {TOKEN}x"}, "wrong_token"),
        ({"Authorization": f"Bearer {TOKEN[:-1]}"}, "wrong_token"),
        ({"Authorization": "Bearer \xe9".encode("latin-1")}, "wrong_token"),
    ],
)
@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_taken_without_the_token(
    client: httpx.Client, hands: Hands, path: str, headers: dict[str, Any], outcome: str
) -> None:
    before = {each: outcomes(outcome, each) for each in PATHS}
    answer = client.post(path, json=MESSAGE, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert TOKEN not in answer.text
    assert hands.alerts == []
    assert {each: outcomes(outcome, each) for each in PATHS} == before | {path: before[path] + 1}, "each by itself"


def test_the_same_message_again_is_a_replay(client: httpx.Client, hands: Hands) -> None:
    before = outcomes("replayed")
    assert client.post("/webhook", json=MESSAGE, headers=BEARER).status_code == 200
    assert client.post("/webhook", json=MESSAGE, headers=BEARER).status_code == 409
    assert len(hands.alerts) == 1
    assert outcomes("replayed") == before + 1


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"7", b"[" * 100_000,
        json.dumps({**MESSAGE, "version": "3"}).encode(),
        json.dumps({**MESSAGE, "alerts": {}}).encode(),
        json.dumps({**MESSAGE, "alerts": [7]}).encode(),
        json.dumps({**MESSAGE, "alerts": [{**ALERT, "status": "burning"}]}).encode(),
        json.dumps({**MESSAGE, "alerts": [{**ALERT, "labels": {"alertname": 7}}]}).encode(),
        json.dumps({**MESSAGE, "alerts": [{**ALERT, "labels": {}}]}).encode(),
        json.dumps({**MESSAGE, "alerts": [{**ALERT, "startsAt": None}]}).encode(),
    ],
    ids=range(12),
)  # fmt: skip
def test_what_is_no_message_of_alertmanager_is_refused(client: httpx.Client, hands: Hands, body: bytes) -> None:
    before = outcomes("malformed")
    assert client.post("/webhook", content=body, headers=BEARER).status_code == 400
    assert hands.alerts == []
    assert outcomes("malformed") == before + 1


def test_a_message_that_is_too_large_is_refused_whether_it_says_so_or_not(client: httpx.Client) -> None:
    before = outcomes("too_large")
    assert client.post("/webhook", content=b"x" * (2 << 20), headers=BEARER).status_code == 413

    def parts() -> Iterator[bytes]:
        for _ in range(40):
            yield b"x" * 65_536

    assert client.post("/webhook", content=parts(), headers=BEARER).status_code == 413
    assert outcomes("too_large") == before + 2


@pytest.mark.parametrize(
    ("error", "status"), [(DatabaseAwayError("locked"), 503), (WatchError("full"), 500), (KeyError("PATIENT"), 500)]
)
def test_a_message_that_could_not_be_acted_upon_may_come_again(
    client: httpx.Client, hands: Hands, error: Exception, status: int
) -> None:
    hands.error = error
    answer = client.post("/webhook", json=MESSAGE, headers=BEARER)
    assert answer.status_code == status
    assert "PATIENT" not in answer.text
    hands.error = None
    assert client.post("/webhook", json=MESSAGE, headers=BEARER).status_code == 200


def refused_labels() -> float:
    return REGISTRY.get_sample_value("stepwatch_labels_refused_total", {"reason": "unknown_finding"}) or 0.0


def counted(path: str) -> dict[str, float]:
    """How often each became of messages, where it did."""
    return {outcome: count for outcome in metrics.HTTP_OUTCOMES if (count := outcomes(outcome, path))}


def since(before: dict[str, float], path: str) -> dict[str, float]:
    return {outcome: now for outcome, count in counted(path).items() if (now := count - before.get(outcome, 0.0))}


def test_labels_are_handed_on_by_their_kind(client: httpx.Client) -> None:
    before, left_out = counted("/labels"), refused_labels()
    assert client.post("/labels", json=[], headers=BEARER).json() == {"taken": 1, "refused": {}}
    csv = client.post("/labels", content=b"x", headers={**BEARER, "Content-Type": "text/csv; charset=utf-8"})
    assert csv.json() == {"taken": 2, "refused": {"unknown_finding": 1}}
    bad = client.post("/labels", content=b"bad", headers=BEARER)
    assert (bad.status_code, bad.text) == (400, "refused: line 1: no study\n")
    assert client.post("/labels", content=b"none", headers=BEARER).status_code == 400
    assert client.post("/labels", content=b"away", headers=BEARER).status_code == 503
    assert client.post("/labels", content=b"x" * (9 << 20), headers=BEARER).status_code == 413
    broken = client.post("/labels", content=b"broken", headers=BEARER)
    assert (broken.status_code, broken.text) == (500, "not taken: an error of ours; see the log of stepwatch\n")
    told = {"taken": 2, "malformed": 1, "refused": 1, "database_away": 1, "too_large": 1, "failed": 1}
    assert since(before, "/labels") == told
    assert refused_labels() - left_out == 2


def test_health_tells_of_the_database_and_of_baselines(client: httpx.Client, bench: Bench) -> None:
    assert client.get("/livez").status_code == 200
    assert client.get("/readyz").json() == {"database": True, "baselines": {"chest-pneumonia": True}}
    for file in bench.folder.glob("db.sqlite*"):
        file.unlink()
    bench.sidecar.look()
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["database"]) == (503, False)
    assert client.get("/livez").status_code == 200
    assert "stepwatch_database_up 0.0" in client.get("/metrics").text
    assert "may be old" in client.get("/").text
    assert client.post("/webhook", json=MESSAGE, headers=BEARER).status_code == 503


@pytest.mark.parametrize("name", ["../db.sqlite", "..%2Fdb.sqlite", "absent.html", "a.txt", "link.html", "%00.html"])
def test_only_pages_of_the_folder_are_shown(client: httpx.Client, bench: Bench, name: str) -> None:
    pages = bench.folder / "pages"
    (pages / "a.txt").write_text("x")
    (pages / "link.html").symlink_to(bench.folder / "db.sqlite")
    assert client.get(f"/pages/{name}").status_code == 404


def test_a_drawn_page_is_shown_apart_from_ours(client: httpx.Client, bench: Bench) -> None:
    (bench.folder / "pages" / "a.html").write_text("<p>drawn</p>")
    answer = client.get("/pages/a.html")
    assert answer.text == "<p>drawn</p>"
    assert "sandbox" in answer.headers["content-security-policy"]


def test_the_status_page_runs_nothing_and_fetches_nothing(client: httpx.Client) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert "<script" not in answer.text
    assert "http" not in answer.text.replace("http-equiv", "")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")


def test_a_port_open_to_others_needs_a_token(tmp_path: Path) -> None:
    assert read_token(Http()) is None
    with pytest.raises(WatchError, match="openssl rand -hex 32"):
        read_token(Http(host="0.0.0.0"))
    file = tmp_path / "token"
    with pytest.raises(WatchError, match="cannot be read"):
        read_token(Http(token_file=file))
    file.write_text("short")
    with pytest.raises(WatchError, match="fewer than 16"):
        read_token(Http(token_file=file))
    file.write_text(TOKEN + "\n")
    assert read_token(Http(host="0.0.0.0", token_file=file)) == TOKEN


def test_a_port_in_use_says_so(client: httpx.Client) -> None:
    port = client.base_url.port
    with pytest.raises(WatchError, match=f"cannot listen on 127.0.0.1:{port}"):
        HttpServer(Http(port=port), Starlette()).start()


def test_where_all_stands_is_told_to_another_program_without_naming_a_study(bench: Bench, client: httpx.Client) -> None:
    bench.write(bench.rows(40))
    bench.sidecar.look()
    answer = client.get("/status.json")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    said = Brief.model_validate(answer.json())
    assert said.version == VERSION
    assert said.database == ""
    (model,) = said.models
    assert (model.usable, model.studies, model.alarms) == (True, 40, [])
    assert not any(row.study in answer.text or row.unit in answer.text for row in bench.rows(40))


def test_which_alarm_may_be_made_the_new_normal_is_told(bench: Bench, client: httpx.Client) -> None:
    rows = bench.rows(2)
    told = []
    for row in (replace(rows[0], pixel_mean=OUT_OF_BAND + 0.05), rows[1]):
        bench.write([row])
        bench.sidecar.look()
        (model,) = Brief.model_validate(client.get("/status.json").json()).models
        told += [(alarm.active, alarm.adoptable) for alarm in model.alarms]
    assert told == [(True, True), (False, False)]


def test_an_alarm_that_somebody_has_seen_is_handed_on(client: httpx.Client, hands: Hands) -> None:
    before = counted("/acknowledge")
    body = {"alarm": "a/1", "by": "ann", "adopt": True}
    assert client.post("/acknowledge", json=body, headers=BEARER).status_code == 202
    assert hands.seen == [("a/1", "ann", True)]
    for wrong in ({}, {"alarm": 1, "by": "ann"}, {"alarm": "a", "by": "ann", "adopt": "yes"}, []):
        assert client.post("/acknowledge", json=wrong, headers=BEARER).status_code == 400
    assert client.post("/acknowledge", content=b"x" * 5000, headers=BEARER).status_code == 413
    hands.error = WatchError("there is no such alarm")
    answer = client.post("/acknowledge", json=body, headers=BEARER)
    assert (answer.status_code, answer.text) == (409, "refused: there is no such alarm\n")
    hands.error = DatabaseAwayError("away")
    assert client.post("/acknowledge", json=body, headers=BEARER).status_code == 503
    hands.error = KeyError("PATIENT")
    answer = client.post("/acknowledge", json=body, headers=BEARER)
    assert (answer.status_code, "PATIENT" in answer.text) == (500, False)
    told = {"taken": 1, "malformed": 4, "too_large": 1, "refused": 1, "database_away": 1, "failed": 1}
    assert since(before, "/acknowledge") == told
