"""The run that belongs to an installation or upgrade: what it waits for, and where there is nothing to run."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

from packages import write_package, write_policy
from referenced import write_referenced, write_studies
from stepwedge.rundir import Heartbeat


def _settings(tmp_path: Path, *, referenced: bool) -> Path:
    package = tmp_path / "package"
    if referenced:
        write_referenced(package, write_studies(tmp_path / "studies"))
    else:
        write_package(package)
    policy = write_policy(tmp_path / "policy.yaml")
    file = tmp_path / "stepwedge.yaml"
    file.write_text(json.dumps({
        "data_dir": str(tmp_path / "data"), "models": [{"package": str(package), "policy": str(policy)}],
        "node": {"port": 1},
    }), encoding="utf-8")  # fmt: skip
    return file


def _constancy(file: Path, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "stepwedge", "constancy", "--config", str(file), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.returncode, result.stderr


def test_without_a_reference_set_there_is_nothing_to_run_after_a_start(tmp_path: Path) -> None:
    file = _settings(tmp_path, referenced=False)
    status, said = _constancy(file, "--after-start", "60")
    assert status == 0
    assert "no_reference_set" in said
    # Whoever asks for a run is told that there can be none.
    assert _constancy(file)[0] == 2


def test_a_service_that_does_not_come_up_is_waited_for_and_no_longer(tmp_path: Path) -> None:
    file = _settings(tmp_path, referenced=True)
    begun = time.monotonic()
    status, said = _constancy(file, "--after-start", "2")
    assert status == 2
    assert "no stepwedge listen is running" in said
    assert 2 <= time.monotonic() - begun < 30


def test_a_service_that_comes_up_meanwhile_is_sent_the_set(tmp_path: Path) -> None:
    file = _settings(tmp_path, referenced=True)
    roles = [Heartbeat(tmp_path / "data", role) for role in ("listen", "work")]
    later = threading.Timer(3.0, lambda: [role.start() for role in roles])
    later.start()
    try:
        # Nothing listens at that port: so far it has come.
        status, said = _constancy(file, "--after-start", "60")
    finally:
        later.join()
        for role in roles:
            role.stop()
    assert status == 2
    assert "no stepwedge" not in said
    assert "127.0.0.1:1" in said
