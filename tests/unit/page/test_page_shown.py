"""What the page shows and does over a database of its own; what is away is said in words, and the rest stands."""

from __future__ import annotations

import html
import json
import re
import shlex
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import structlog
from page_served import HTML, Served, delivery, name_of, page, put
from stepwedge import actions, rundir
from stepwedge.entries import Quarantined
from stepwedge.page import deeds, glance, neighbours, turns
from stepwedge.page.tokens import make_token
from stepwedge.records import REASONS, State
from stepwedge.rundir import Heartbeat

MONITOR: dict[str, Any] = {
    "version": 1, "time": "2026-03-02T00:00:00+00:00", "database": "",
    "models": [{
        "model": "tiny", "model_version": "1", "digest": "a", "usable": True, "problem": "", "warnings": [],
        "studies": 5000, "baseline_rows": 900, "limit": 5.3, "last_row": None, "labels_contradict": ["ill"],
        "strongest": [{"signal": "kvp", "where": "", "evidence": 6.0}], "constancy": None,
        "alarms": [{
            "alarm": "tiny/kvp/1", "kind": "drift", "signal": "kvp", "direction": "higher than usual",
            "where": "scanner: Ray 7", "shift": "Acquisition: images are made in another way.", "baseline": "1.0 %",
            "present": "9.0 %", "evidence": "6.0", "limit": "5.3", "active": True,
            "raised": "2026-03-01T00:00:00+00:00", "changed": "2026-02-27T00:00:00+00:00", "cleared": None,
            "acknowledged_by": "", "adopted": False, "adoptable": True, "mostly_from": [["scanner: Ray 7", 0.8]],
        }],
    }],
    "requests": [{"request": "20260301-abc", "state": "open", "since_at": 1.0, "who": "stepwatch", "opened_at": 1.0,
                  "cause": "tiny/StepwatchSignalDrifted/kvp", "summary": "kvp has changed", "page": "", "body": {}}],
    "pages": [{"name": "drawn.html", "drawn_at": 1.0, "reason": "alarm"}],
}  # fmt: skip
ALARM: dict[str, Any] = MONITOR["models"][0]["alarms"][0]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with page(tmp_path) as running:
        yield running


class _Monitor(BaseHTTPRequestHandler):
    """Stands for the monitor: its own tests hold it to the same answers."""

    said: Any = MONITOR
    got: list[tuple[str, bytes]] = []  # noqa: RUF012 - the tests empty it

    def do_GET(self) -> None:
        body = b"<p>drawn</p>" if self.path.startswith("/pages/drawn") else json.dumps(self.said).encode()
        known = self.path in ("/status.json", "/pages/drawn.html")
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.got.append((self.headers["Authorization"], self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(202)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def monitor() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Monitor)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    _Monitor.got.clear()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_empty_node_says_what_it_waits_for(served: Served) -> None:
    text = served.get("/").text
    assert "No study has come yet" in text
    assert "DICOM node: not ready" in text
    assert "Nothing is in quarantine" in served.get("/quarantine").text
    assert "Nobody has done anything here yet" in served.get("/actions").text


def test_roles_that_say_so_are_ready_with_their_version(served: Served) -> None:
    data_dir = served.desk.settings.data_dir
    beats = [Heartbeat(data_dir, role) for role in ("listen", "work", "work.worker-1")]
    for beat in beats:
        beat.start()
    try:
        text = served.get("/").text
    finally:
        for beat in beats:
            beat.stop()
    assert "Worker worker-1" in text
    assert "version 0" in text
    assert "DICOM node: not ready" not in text


def test_what_the_dicom_node_left_of_its_models_is_shown(served: Served) -> None:
    model = {
        "model": "tiny", "version": "2.0", "digest": "f" * 64, "signer": "5" * 16, "policy": "ours",
        "policy_digest": "e" * 64, "demonstration": False, "demonstration_because": "", "approved_by": "Dr Doe",
    }  # fmt: skip
    data_dir = served.desk.settings.data_dir
    rundir.tell(data_dir, "listen", {"digests": ["f" * 64], "models": [model]})
    # Of a time when one service held all roles: it is not taken back when that ends.
    rundir.tell(data_dir, "serve", {"models": [model | {"version": "1.0", "digest": "0" * 64, "policy": "older"}]})
    text = served.get("/model").text
    for wanted in ("tiny 2.0", "f" * 64, "5" * 16, "ours", "e" * 64, "Dr Doe", "Clinical", "not known now"):
        assert wanted in text
    for older in ("tiny 1.0", "0" * 64, "older", "Demonstration"):
        assert older not in text


@pytest.mark.parametrize("code", ["age_missing", "altered_after_receipt", "uncertain"])
def test_every_reason_is_told_in_words(served: Served, code: str) -> None:
    put(served.store, name_of(1), State.DEFERRED, reasons=(code,))
    assert REASONS[code] in served.get("/studies").text.replace("&#39;", "'")
    text = served.get(f"/studies/{name_of(1)}").text.replace("&#39;", "'")
    assert REASONS[code] in text
    assert code in text


def test_a_study_is_found_by_uid_by_hash_and_by_unit_and_never_by_address(served: Served) -> None:
    uid = "1.2.840.99999.7"
    name = served.site.hash(uid)
    unit = put(served.store, name, uid=uid)
    assert unit is not None
    for text in (uid, f" {uid} ", name, name[:8], name.upper(), unit.unit):
        answer = served.post("/search", {"name": text})
        assert (answer.status_code, answer.headers.get("location")) == (303, f"/studies/{name}"), text
    with structlog.testing.capture_logs() as logs:
        for text in ("1.2.3", "abcdef", "abc", "<script>", "1.2." + "9" * 80):
            answer = served.post("/search", {"name": text})
            assert answer.status_code == 404
            assert "<script>" not in answer.text
    assert logs == []
    assert served.get(f"/search?name={uid}").status_code == 405


def test_a_failed_unit_is_put_back_and_one_that_is_not_is_left(served: Served) -> None:
    put(served.store, name_of(1), State.FAILED, reasons=("report_failed",))
    put(served.store, name_of(2), State.FAILED)
    put(served.store, name_of(3), State.REPORTED)
    unit = f"{name_of(1)}.1.tiny"
    assert served.post("/retry", {"unit": unit}).headers["location"] == f"/studies/{name_of(1)}?said=retried"
    answer = served.post("/retry", {"unit": unit})
    assert answer.status_code == 409
    assert "not failed any more" in answer.text
    assert served.post("/retry", {"unit": f"{name_of(3)}.1.tiny"}).status_code == 409
    assert "Try all failed again" in served.get("/studies?state=failed").text
    assert served.post("/retry-all").status_code == 303
    assert {str(each.state) for each in served.store.units()} == {"queued", "reported"}
    assert served.store.units(study=name_of(1))[0].tries == 1
    assert [(each.action, each.who) for each in actions.latest(served.store, 9)] == [("retry", "this-machine")] * 2
    assert "this-machine" in served.get(f"/studies/{name_of(1)}").text


def test_a_withheld_result_is_sent_again_when_somebody_says_so(served: Served) -> None:
    unit = put(served.store, name_of(1), deliveries={"pacs": "delivered", "ward": "withheld"})
    assert unit is not None
    fields = {"unit": unit.unit, "destination": "ward"}
    assert served.post("/send-again", {**fields, "destination": "pacs"}).status_code == 409
    assert served.post("/send-again", fields).status_code == 303
    assert delivery(served.store, unit.unit, "ward").state == "pending"
    assert served.post("/send-again", fields).status_code == 409
    assert [each.subject for each in actions.latest(served.store, 9)] == [f"{unit.unit} to ward"]


def test_the_result_of_an_older_revision_is_not_sent_again(served: Served) -> None:
    unit = put(served.store, name_of(1), deliveries={"ward": "withheld"})
    study = served.store.study(name_of(1))
    assert unit is not None
    assert study is not None
    served.store.restore_study(replace(study, revision=2), [])
    answer = served.post("/send-again", {"unit": unit.unit, "destination": "ward"})
    assert (answer.status_code, "newer revision" in answer.text) == (409, True)
    assert delivery(served.store, unit.unit, "ward").state == "withheld"


def test_many_who_try_one_unit_again_at_once_queue_it_once(served: Served) -> None:
    put(served.store, name_of(1), State.FAILED)
    secret, unit = served.secret(), f"{name_of(1)}.1.tiny"
    with ThreadPoolExecutor(6) as many:
        sent = [many.submit(served.post, "/retry", {"unit": unit}, secret=secret) for _ in range(6)]
    assert sorted(each.result().status_code for each in sent) == [303, *[409] * 5]
    assert served.store.units()[0].tries == 1
    assert len(actions.latest(served.store, 9)) == 1


def test_what_the_dicom_node_has_to_do_waits_for_it_in_sight(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deeds, "_WAIT_SECONDS", 0.2)
    item = Quarantined(
        digest="c" * 64, reason="bad_uid", sender="PACS", count=3, first_seen=1.0, last_seen=2.0, size=10, path="x"
    )
    served.store.quarantine(item)
    served.store.quarantine(replace(item, digest="bad_uid:not-kept", path=None))
    text = served.get("/quarantine").text
    assert text.count("Release<") == 1, "what is only counted cannot be released"
    assert text.count("Discard for good<") == text.count("<details>") == 2, "each behind a first step"
    answer = served.post("/release", {"digest": "c" * 64})
    assert answer.headers["location"] == "/quarantine?said=asked"
    text = served.get(answer.headers["location"]).text
    assert "has not taken it up yet" in text
    assert "Release<" not in text
    assert served.post("/release", {"digest": "d" * 64}).status_code == 409
    taken = actions.take(served.store)
    assert taken is not None
    actions.end(served.store, taken.id, "refused", said="bad_uid")
    text = served.get("/quarantine").text
    assert "Refused" in text
    assert REASONS["bad_uid"] in text
    assert "Release<" in text


def test_without_the_monitor_the_rest_of_the_page_stands(tmp_path: Path) -> None:
    with page(tmp_path, watch={}) as served:
        put(served.store, name_of(1))
        for path in ("/", "/wall"):
            answer = served.get(path)
            assert answer.status_code == 200
            assert "The monitor does not answer" in answer.text
            assert name_of(1)[:8] in answer.text
        assert "The monitor does not answer" in served.get("/drift").text
        assert served.get("/reports/a.html").status_code == 502


@pytest.mark.parametrize(
    "said",
    [
        {"version": 2},
        [],
        "x",
        {"version": 1},
        {"version": 1, "models": 7},
        MONITOR | {"pages": [{"name": "drawn.html", "drawn_at": 1e300, "reason": "alarm"}]},
        MONITOR | {"requests": [{**MONITOR["requests"][0], "since_at": float("nan")}]},
        MONITOR | {"models": [MONITOR["models"][0] | {"alarms": [ALARM | {"raised": "0001-01-01T00:00:00+14:00"}]}]},
    ],
)
def test_a_monitor_that_speaks_otherwise_breaks_nothing(
    tmp_path: Path, monitor: str, monkeypatch: pytest.MonkeyPatch, said: object
) -> None:
    monkeypatch.setattr(_Monitor, "said", said)
    with page(tmp_path, watch={"url": monitor}) as served:
        for path in ("/", "/wall", "/drift"):
            assert served.get(path).status_code == 200


def test_drift_alarms_requests_and_reports_are_shown_with_what_to_do(tmp_path: Path, monitor: str) -> None:
    (tmp_path / "token").write_text("the-monitors-token\n")
    with page(tmp_path, watch={"url": monitor, "token_file": tmp_path / "token"}) as served:
        overview = served.get("/").text
        assert "kvp" in overview
        assert "1 open retraining request" in overview
        assert "/reports/drawn.html" in overview
        text = served.get("/drift").text
        for wanted in ("scanner: Ray 7", "80 %", "1.0 %", "9.0 %", "contradict", "I have seen it",
                       "stepwatch retrain approve 20260301-abc --key"):  # fmt: skip
            assert wanted in text, wanted
        assert "It is normal now" not in text, "that is for an approver"
        assert served.post("/acknowledge", {"alarm": "tiny/kvp/1"}).status_code == 303
        ((bearer, body),) = _Monitor.got
        assert bearer == "Bearer the-monitors-token"
        assert b'"by":"this-machine"' in body.replace(b" ", b"")
        assert "alarm acknowledged" in served.get("/actions").text
        with structlog.testing.capture_logs() as logs:
            assert served.post("/acknowledge", {"alarm": "x" * 9000}).status_code == 409
        assert logs == []
        drawn = served.get("/reports/drawn.html")
        assert drawn.text == "<p>drawn</p>"
        assert drawn.headers["content-security-policy"].startswith("sandbox")
        for name in ("none.html", "..%2Fstatus.json", "drawn.txt"):
            assert served.get(f"/reports/{name}").status_code == 404


def test_a_change_is_offered_as_the_new_normal_only_where_it_may_be_and_kept_as_asked_for(
    tmp_path: Path, monitor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, entry = make_token("lead", "approver")
    (tmp_path / "tokens.yaml").write_text(entry)
    (tmp_path / "token").write_text("the-monitors-token\n")
    watch = {"url": monitor, "token_file": tmp_path / "token"}
    with page(tmp_path, watch=watch, page={"tokens_file": tmp_path / "tokens.yaml"}) as served:
        served.client.headers["Authorization"] = f"Bearer {token}"
        assert "It is normal now" in served.get("/drift").text
        asked = served.client.post("/acknowledge", data={"alarm": "tiny/kvp/1", "adopt": "yes"})
        assert asked.status_code == 303
        assert "asked to be made the new normal" in served.get("/actions").text
        older = {name: value for name, value in ALARM.items() if name != "adoptable"}
        for alarm in (ALARM | {"adoptable": False}, older):
            monkeypatch.setattr(_Monitor, "said", MONITOR | {"models": [MONITOR["models"][0] | {"alarms": [alarm]}]})
            served.desk.neighbours.monitor.forget()
            text = served.get("/drift").text
            assert "I have seen it" in text
            assert "It is normal now" not in text


def test_a_command_with_what_the_monitor_says_is_quoted_for_the_shell(
    tmp_path: Path, monitor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [MONITOR["models"][0] | {"alarms": [ALARM | {"alarm": "a'; reboot; '"}]}]
    monkeypatch.setattr(_Monitor, "said", MONITOR | {"models": models})
    with page(tmp_path, watch={"url": monitor}) as served:
        (command,) = re.findall("stepwatch acknowledge (.*) --by", served.get("/drift").text)
    assert shlex.split(html.unescape(command)) == ["a'; reboot; '"]


def test_a_report_too_large_is_said_and_only_a_few_are_handed_on_at_once(
    tmp_path: Path, monitor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "_TIMEOUT_SECONDS", 0.2)
    with page(tmp_path, watch={"url": monitor}) as served:
        held = [served.desk.neighbours.report("drawn.html") for _ in range(4)]
        full = served.get("/reports/drawn.html")
        assert (full.status_code, "already" in full.text) == (502, True)
        assert served.get("/drift").status_code == 200
        for each in held:
            assert each is not None
            each.close()
        assert served.get("/reports/drawn.html").text == "<p>drawn</p>"
        monkeypatch.setattr(neighbours, "_REPORT_BYTES", 5)
        with structlog.testing.capture_logs() as logs:
            assert served.get("/reports/drawn.html").text == ""
    assert [entry["event"] for entry in logs] == ["report_cut_off"]


def test_however_slow_the_page_is_health_answers_and_too_many_are_told_to_wait(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    monkeypatch.setattr(glance, "overview", lambda _desk: go.wait(60))
    monkeypatch.setattr(turns, "_MOST", 20)
    try:
        with ThreadPoolExecutor(60) as many:
            answers = [many.submit(httpx.get, served.base, headers=HTML, timeout=60) for _ in range(60)]
            until = time.monotonic() + 60
            while sum(answer.done() for answer in answers) < 40 and time.monotonic() < until:
                time.sleep(0.01)
            for path in ("/livez", "/readyz", "/metrics"):
                assert served.get(path, timeout=60).status_code == 200
            go.set()
    finally:
        go.set()
    busy = [answer.result() for answer in answers if answer.result().status_code == 503]
    assert len(busy) == 40
    assert busy[0].headers["retry-after"] == "5"


def test_when_the_database_is_away_it_says_so_and_comes_back(served: Served) -> None:
    put(served.store, name_of(1))
    file = served.desk.settings.database_file
    served.store.engine.dispose()
    hidden = file.with_name("hidden")
    file.rename(hidden)
    file.mkdir()
    try:
        for path in ("/", "/studies", f"/studies/{name_of(1)}"):
            answer = served.get(path)
            assert answer.status_code == 503
            assert "The database does not answer" in answer.text
            assert "Traceback" not in answer.text
        assert served.client.get("/livez").status_code == 200
    finally:
        served.store.engine.dispose()
        file.rmdir()
        hidden.rename(file)
    assert served.get("/studies").status_code == 200


def test_a_data_folder_that_is_away_or_full_is_said(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(_: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("shutil.disk_usage", away)
    assert "The data folder cannot be read" in served.get("/").text
    spool = served.desk.settings.spool.model_copy(update={"reserve_bytes": 100})
    monkeypatch.setattr(served.desk, "settings", served.desk.settings.model_copy(update={"spool": spool}))
    for free, said in ((99, "The disk is full"), (300, "The disk is nearly full"), (900, "")):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        text = served.get("/").text
        assert said in text
        assert said or "The disk" not in text


def test_an_error_of_ours_is_said_in_words_and_logged_by_its_place(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr("stepwedge.page.views.done", fail)
    with structlog.testing.capture_logs() as logs:
        answer = served.get("/actions")
    assert answer.status_code == 500
    assert "a secret" not in answer.text + str(logs)
    assert [entry["event"] for entry in logs] == ["page_failed"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/studies?state=nonsense", 400), ("/studies?after=x", 400), ("/studies?after=nan-" + "0" * 32, 400),
        ("/studies/x", 404), ("/studies/" + "0" * 32, 404), ("/nothing", 404), ("/retry", 405),
    ],
)  # fmt: skip
def test_what_is_asked_wrongly_is_answered_in_words(served: Served, path: str, status: int) -> None:
    assert served.get(path).status_code == status


def test_a_form_that_is_none_is_refused(served: Served) -> None:
    headers = {"Origin": served.base}
    assert served.client.post("/retry", json={}, headers=headers).status_code == 415
    form = {**headers, "Content-Type": "application/x-www-form-urlencoded"}
    assert served.client.post("/retry", content=b"a" * 20_000, headers=form).status_code == 413
    assert served.client.post("/retry", content=b"\xff=1", headers=form).status_code == 400


def test_the_list_goes_on_by_its_link(served: Served) -> None:
    now = time.time()
    for number in range(60):
        put(served.store, name_of(number), at=now - number)
    first = served.get("/studies").text
    link = first.partition('<a href="/studies?after=')[2].partition('"')[0]
    second = served.get(f"/studies?after={link}").text
    assert first.count('data-label="Study"') == 50
    assert second.count('data-label="Study"') == 10
    assert name_of(59)[:12] in second


def test_the_style_is_ours_and_is_kept(served: Served) -> None:
    answer = httpx.get(f"{served.base}/style.css")
    assert answer.headers["content-type"].startswith("text/css")
    assert "max-age" in answer.headers["cache-control"]
    assert "prefers-color-scheme: dark" in answer.text
