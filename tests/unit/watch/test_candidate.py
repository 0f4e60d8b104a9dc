"""What makes a candidate may fail, hang, flood and lie; each is said, and nothing of it is left running."""

from __future__ import annotations

import hashlib
import hmac
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest
from packages import write_package
from stepwatch.candidate import (
    OUTPUT_BYTES,
    CandidateError,
    job_manifest,
    name_in,
    run_program,
    tell,
    verify,
    write_request,
)
from stepwatch.requests import Event, Request
from stepwatch.settings import Retrain

REQUEST = Request(
    request="20260302-abcdef",
    state="approved",
    events=(
        Event(id=1, request="20260302-abcdef", event="open", at=1.0, who="stepwatch", signature="",
              body={"cause": "tiny/brightness", "previous": "", "studies": ["a", "b"]}),
        Event(id=2, request="20260302-abcdef", event="approved", at=2.0, who="jane", signature="s", body={}),
    ),
)  # fmt: skip


def retrain(program: str, **values: object) -> Retrain:
    return Retrain(command=[sys.executable, "-c", program], **values)  # type: ignore[arg-type]


def run(tmp_path: Path, program: str, **values: object) -> str:
    """What the program said, as it is kept."""
    folder = tmp_path / "run-1"
    run_program(retrain(program, **values), write_request(REQUEST, folder), folder / "candidate")
    return (folder / "output.log").read_text()


def test_a_program_is_told_the_request_and_where_the_candidate_goes(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        "import json, os, pathlib; r = json.load(open(os.environ['REQUEST_FILE']));"
        "pathlib.Path(os.environ['CANDIDATE_DIR'], 'x').write_text('made'); print(r)",
    )
    assert "'approved_by': 'jane'" in said
    assert "'studies': ['a', 'b']" in said
    assert "previous" not in said
    assert (tmp_path / "run-1" / "candidate" / "x").read_text() == "made"


def test_a_program_that_fails_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(CandidateError, match="status 3: no GPU here"):
        run(tmp_path, "import sys; print('no GPU here'); sys.exit(3)")
    assert (tmp_path / "run-1" / "output.log").read_text() == "no GPU here\n"


def test_a_program_that_cannot_be_started_is_said(tmp_path: Path) -> None:
    with pytest.raises(CandidateError, match="cannot be started"):
        run_program(Retrain(command=["/nowhere/train"]), write_request(REQUEST, tmp_path / "r"), tmp_path / "r" / "c")


def test_a_program_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    program = (
        "import os, subprocess, sys, time;"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}'); time.sleep(600)"
    )
    with pytest.raises(CandidateError, match="had not ended after 3 s"):
        run(tmp_path, program, timeout_seconds=3)
    deadline = time.monotonic() + 60
    for pid in map(int, pids.read_text().split()):
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_program_that_floods_keeps_its_last_words_only(tmp_path: Path) -> None:
    said = run(tmp_path, "print('x' * 5_000_000); print('done')")
    assert len(said) <= OUTPUT_BYTES
    assert said.endswith("done\n")


def test_a_package_that_verifies_names_itself_and_an_altered_one_does_not(tmp_path: Path) -> None:
    folder = write_package(tmp_path / "package")
    found = verify(folder)
    assert (found["name"], found["version"]) == ("tiny", "1.0.0")
    assert name_in(folder) == "tiny"
    with (folder / "model.onnx").open("ab") as out:
        out.write(b"\0")
    with pytest.raises(CandidateError, match="does not verify"):
        verify(folder)
    with pytest.raises(CandidateError, match="does not verify"):
        verify(tmp_path / "nothing")
    assert name_in(tmp_path / "nothing") == ""


@contextmanager
def receiver(status: int) -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    """Another system; what it was sent."""
    taken: list[tuple[dict[str, str], bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.append((dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/train", taken
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_another_system_is_told_with_a_signature_that_it_can_check(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("our secret\n")
    file = write_request(REQUEST, tmp_path / "r")
    with receiver(202) as (url, taken):
        tell(Retrain(webhook_url=url, webhook_key_file=tmp_path / "secret"), file, now=1_800_000_000.9)
    ((headers, body),) = taken
    assert json.loads(body)["request"] == REQUEST.request
    assert headers["X-Stepwatch-Timestamp"] == "1800000000"
    expected = hmac.new(b"our secret", b"1800000000." + body, hashlib.sha256).hexdigest()
    assert headers["X-Stepwatch-Signature"] == f"sha256={expected}"


def test_a_system_that_does_not_take_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    file = write_request(REQUEST, tmp_path / "r")
    with receiver(503) as (url, _), pytest.raises(CandidateError, match="did not take the request"):
        tell(Retrain(webhook_url=url, webhook_key_file=tmp_path / "secret"), file)
    with pytest.raises(CandidateError, match="did not take the request"):
        tell(Retrain(webhook_url=url, webhook_key_file=tmp_path / "secret"), file)
    with pytest.raises(CandidateError, match="not be signed"):
        tell(Retrain(webhook_url=url), file)
    with pytest.raises(CandidateError, match="http or https"):
        tell(Retrain(webhook_url="file:///etc/passwd", webhook_key_file=tmp_path / "secret"), file)


def test_a_job_runs_the_same_program_once_and_not_for_ever() -> None:
    job = job_manifest(
        retrain("train()", timeout_seconds=60), "r-run-1", Path("r/run-1"), image="site/train:1", volume="retrain"
    )
    assert job["kind"] == "Job"
    assert (job["spec"]["backoffLimit"], job["spec"]["activeDeadlineSeconds"]) == (0, 60)
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["command"][-1] == "train()"
    assert {item["name"]: item["value"] for item in container["env"]} == {
        "REQUEST_FILE": "/retrain/r/run-1/request.json",
        "CANDIDATE_DIR": "/retrain/r/run-1/candidate",
    }
