"""The service that the demo starts, watches and stops: `stepwedge serve` in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import yaml

from stepwedge.demo.peer import CALLER, RECEIVER
from stepwedge.errors import StepwedgeError
from stepwedge.settings import Settings, load_settings

QUIET_SECONDS = 2.0
# Far more than it takes; a promise is not broken by a slow machine.
_READY_SECONDS, _STOP_SECONDS = 180.0, 90.0


def write_settings(folder: Path, receiver_port: int, package: Path, policy: Path, department: Path) -> Settings:
    """A settings file on free ports, in a folder.

    ``department`` is the folder of what the monitor goes by: a policy with the department's baseline, and its signals.
    """
    dicom, http, inference, watch = _free_ports(4)
    own = folder / "stepwatch.yaml"
    watched = {
        "http": {"port": watch},
        "detection": {"config": str((department / "watch.yaml").absolute())},
        "models": [{"package": str(package.absolute()), "policy": str((department / "policy.yaml").absolute())}],
    }
    own.write_text(yaml.safe_dump(watched), encoding="utf-8")
    values = {
        "data_dir": "data",
        "node": {"port": dicom, "allowed_callers": [CALLER]},
        "completeness": {"quiet_seconds": QUIET_SECONDS, "quiet_seconds_by_modality": {"CT": QUIET_SECONDS}},
        "http": {"port": http},
        "inference": {"port": inference},
        "watch": {"config": own.name},
        "spool": {"reserve_bytes": 0},
        "models": [{"package": str(package), "policy": str(policy)}],
        "destinations": [
            {
                "name": "demo-pacs",
                "host": "127.0.0.1",
                "port": receiver_port,
                "ae_title": RECEIVER,
                "accepts_demonstration": True,
            }
        ],
    }
    file = folder / "stepwedge.yaml"
    file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return load_settings(file)


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start the service under the settings in a folder; its log goes to service.log there."""
    log = (folder / "service.log").open("wb")
    command = [sys.executable, "-m", "stepwedge", "serve", "--config", str(folder / "stepwedge.yaml")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STEPWEDGE_")}
    with log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)  # noqa: S603 - our own command


def wait_ready(settings: Settings, service: subprocess.Popen[bytes], say: Callable[[str], None]) -> None:
    """Wait until every role is ready. Raises StepwedgeError if the service ends, or does not become ready."""
    started = time.monotonic()
    while time.monotonic() - started < _READY_SECONDS:
        if service.poll() is not None:
            raise StepwedgeError("the service ended while starting; its log is service.log in the demo's folder")
        try:
            answer = httpx.get(f"http://{settings.http.host}:{settings.http.port}/readyz", timeout=5)
        except httpx.HTTPError:
            answer = None
        if answer is not None and answer.status_code == 200:
            return
        missing = ", ".join(name for name, is_ready in answer.json().items() if not is_ready) if answer else "all"
        say(f"Starting: waiting for {missing} ({time.monotonic() - started:.0f} s) …")
        time.sleep(0.3)
    raise StepwedgeError("the service did not become ready; its log is service.log in the demo's folder")


def stop(service: subprocess.Popen[bytes], settings: Settings) -> bool:
    """Ask the service to stop; whether it did by itself, with status 0, and gave back its ports."""
    if service.poll() is not None:
        return False
    service.send_signal(signal.SIGTERM)
    try:
        status = service.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        service.kill()
        service.wait()
        return False
    ports = (settings.node.port, settings.http.port, settings.inference.port)
    return status == 0 and not any(_answers(port) for port in ports if port is not None)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
