"""The whole service in processes of its own, as an operator starts it, for tests to send to, to kill and to stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import yaml
from peers import free_ports
from stepwedge.database import open_store
from stepwedge.settings import Settings, load_settings
from stepwedge.store import Store

# Far more than anything takes: a test fails because something does not happen, not because it is slow.
PATIENCE_SECONDS = 150.0


class Service:
    """``stepwedge serve`` with a settings file in a folder."""

    def __init__(self, folder: Path, values: dict[str, Any], variables: Mapping[str, str] | None = None) -> None:
        """``variables`` are added to the environment of ``serve``."""
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "stepwedge.yaml"
        self.log_file = folder / "service.log"
        self.file.write_text(yaml.safe_dump(values), encoding="utf-8")
        self.settings: Settings = load_settings(self.file)
        self._variables = dict(variables or {})
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> None:
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "stepwedge", "serve", "--config", str(self.file)],
                stdout=log, stderr=log, env=os.environ | self._variables,
            )  # fmt: skip
        if wait:
            until(self.is_ready, "the service is ready", self)

    def is_ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"serve ended with {self.process.returncode}:\n{self.log()[-3000:]}")
        return self.get("/readyz", "status") == 200

    def get(self, path: str, what: str = "text") -> Any:
        """Status or text of a page on the HTTP port; None while nobody answers."""
        try:
            answer = httpx.get(f"http://127.0.0.1:{self.settings.http.port}{path}", timeout=10)
        except httpx.HTTPError:
            return None
        return answer.status_code if what == "status" else answer.text

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def events(self, name: str) -> list[dict[str, Any]]:
        """The lines of the log that tell of an event."""
        found = []
        for line in self.log().splitlines():
            if line.startswith("{"):
                try:
                    value = json.loads(line)
                except ValueError:
                    continue
                if value.get("event") == name:
                    found.append(value)
        return found

    def pid(self, role: str) -> int:
        """The process of a role, as started last."""
        return int([event["pid"] for event in self.events("role_started") if event["name"] == role][-1])

    def kill(self, role: str) -> None:
        """SIGKILL to a role, with everything that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid(role), signal.SIGKILL)

    def command(self, *arguments: str) -> str:
        """What a command prints with this service's settings."""
        return subprocess.run(
            [sys.executable, "-m", "stepwedge", *arguments, "--config", str(self.file)],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip

    def status(self) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(self.command("status", "--json"))
        return result

    @contextmanager
    def store(self) -> Iterator[Store]:
        """The service's database, whichever it is."""
        store = open_store(self.settings)
        try:
            yield store
        finally:
            store.close()

    def stop(self) -> int:
        """SIGTERM, and the exit status; a service that does not stop is killed, and the test fails."""
        if self.process is None or self.process.poll() is not None:
            return self.process.returncode if self.process else 0
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            for role in ("listen", "work", "infer"):
                self.kill(role)
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"serve did not stop:\n{self.log()[-3000:]}") from None


def settings_for(package: Path, policy: Path, destinations: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """Settings for a service on free loopback ports that closes studies fast."""
    dicom, http, inference = free_ports(3)
    values: dict[str, Any] = {
        "data_dir": "data",
        "node": {"port": dicom},
        "http": {"port": http},
        "inference": {"port": inference},
        "spool": {"reserve_bytes": 0},
        "completeness": {"quiet_seconds": 1, "quiet_seconds_by_modality": {}, "poll_seconds": 0.1},
        "worker": {"delivery_backoff_seconds": 0.5, "delivery_backoff_limit_seconds": 2, "drain_seconds": 20},
        "models": [{"package": str(package), "policy": str(policy)}],
        "destinations": destinations,
        # Where the monitor is meant, a test gives it a port of its own and enables it.
        "watch": {"enabled": False},
        "constancy": {"enabled": False},
    }
    for group, value in changes.items():
        values[group] = {**values.get(group, {}), **value} if isinstance(value, dict) else value
    return values


def destination(
    port: int, *, name: str = "pacs", ae_title: str = "ORTHANC", demonstration: bool = True
) -> dict[str, Any]:
    return {
        "name": name,
        "host": "127.0.0.1",
        "port": port,
        "ae_title": ae_title,
        "accepts_demonstration": demonstration,
        "timeout_seconds": 10,
    }


def until(condition: Callable[[], Any], what: str, service: Service | None = None) -> Any:
    """Wait until a condition gives something true, and give that."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.1)
    log = f"\n{service.log()[-3000:]}" if service else ""
    raise AssertionError(f"it did not come to be that {what}{log}")
