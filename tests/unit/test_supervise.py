"""A service that cannot run as it is configured says why, ends at once, and leaves nothing running."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import yaml
from packages import write_package, write_policy
from peers import free_ports

SECONDS = 60  # far more than it takes: the command imports what it needs and ends


def serve(folder: Path, values: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    file = folder / "stepwedge.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-m", "stepwedge", "serve", "--config", str(file)],
        capture_output=True, text=True, check=False, timeout=SECONDS,
    )  # fmt: skip


def configured_by(file: Path) -> list[int]:
    """The processes that read a settings file: the roles have its name in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("STEPWEDGE_CONFIG") == str(file):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def test_settings_that_name_no_model_end_it(tmp_path: Path) -> None:
    answer = serve(tmp_path, {"data_dir": "data"})
    assert answer.returncode == 2
    assert "models is empty: there is nothing to run" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_an_http_port_in_use_ends_it_and_no_role_is_left(tmp_path: Path) -> None:
    package, policy = write_package(tmp_path / "package"), write_policy(tmp_path / "policy.yaml")
    dicom, inference = free_ports(2)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        values = {
            "data_dir": "data",
            "node": {"port": dicom},
            "inference": {"port": inference},
            "http": {"port": port},
            "models": [{"package": str(package), "policy": str(policy)}],
        }
        answer = serve(tmp_path, values)
    assert answer.returncode == 2
    assert f"http.port: cannot listen on 127.0.0.1:{port}" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert "role_started" not in answer.stderr
    assert configured_by(tmp_path / "stepwedge.yaml") == []
