"""A service that cannot run as it is configured says why, ends at once, and leaves nothing running."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from packages import write_package, write_policy
from peers import free_ports
from stepwedge.settings import Settings, Watch
from stepwedge.supervise import Supervisor, _Role, watch_environment

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


def test_the_monitor_is_told_of_the_service_unless_it_knows_better(tmp_path: Path) -> None:
    model = {"package": tmp_path / "package", "policy": tmp_path / "policy.yaml"}
    settings = Settings(data_dir=tmp_path, models=[model])
    told = watch_environment(settings, {"PROMETHEUS_MULTIPROC_DIR": "/service", "PATH": "/bin"})
    assert told["STEPWATCH_DATABASE_URL"] == f"sqlite:///{tmp_path}/db/stepwedge.sqlite"
    assert told["STEPWATCH_DATA_DIR"] == f"{tmp_path}/watch"
    assert json.loads(told["STEPWATCH_MODELS"]) == [{name: str(path) for name, path in model.items()}]
    assert "PROMETHEUS_MULTIPROC_DIR" not in told
    assert told["PATH"] == "/bin"
    # Its environment comes first, and so does its own file.
    own = tmp_path / "stepwatch.yaml"
    own.write_text(yaml.safe_dump({"models": [{"package": "/other"}], "log": {"level": "debug"}}), encoding="utf-8")
    settings = settings.model_copy(update={"watch": Watch(config=own)})
    told = watch_environment(settings, {"STEPWATCH_DATA_DIR": "/elsewhere"})
    assert told["STEPWATCH_CONFIG"] == str(own)
    assert told["STEPWATCH_DATA_DIR"] == "/elsewhere"
    assert "STEPWATCH_MODELS" not in told
    assert "STEPWATCH_LOG__LEVEL" not in told


def test_a_role_that_ends_leaves_no_files_of_metrics_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "metrics"
    folder.mkdir()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(folder))
    supervisor = Supervisor(Settings(data_dir=tmp_path), [])
    counts = "from stepwedge import metrics; metrics.INSTANCE_BYTES.inc()"
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", counts])
        assert process.wait(SECONDS) == 0
        assert list(folder.glob(f"*_{process.pid}.db"))
        supervisor._start_again(_Role("listen", process), 0)
        assert not list(folder.glob(f"*_{process.pid}.db"))
