"""A sidecar that runs as a process on a folder of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import yaml
from peers import free_ports

SECONDS = 120  # far more than anything here takes
TOKEN = "a-token-that-nobody-guesses"


class Process:
    """A sidecar on a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        [self.port] = free_ports(1)
        (folder / "token").write_text(TOKEN)
        self.values: dict[str, Any] = {
            "database_url": f"sqlite:///{folder / 'db.sqlite'}",
            "data_dir": str(folder / "watch"),
            "models": [{"package": str(folder / "package")}],
            "http": {"port": self.port, "token_file": str(folder / "token")},
            "detection": {"poll_seconds": 0.1, "save_seconds": 0},
        }
        self.config = folder / "stepwatch.yaml"
        self.config.write_text(yaml.safe_dump(self.values), encoding="utf-8")
        self.running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.running = subprocess.Popen(
                [sys.executable, "-m", "stepwatch", "serve", "--config", str(self.config)], stderr=log
            )

    def end(self, how: int) -> int:
        assert self.running is not None
        self.running.send_signal(how)
        return self.running.wait(SECONDS)

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "stepwatch", words[0], "--config", str(self.config), *words[1:]],
            capture_output=True, text=True, check=False, timeout=SECONDS,
        )  # fmt: skip

    def get(self, path: str) -> httpx.Response | None:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=SECONDS)
        except httpx.TransportError:
            return None

    def wait_ready(self, status: int = 200) -> httpx.Response:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            answer = self.get("/readyz")
            if answer is not None and answer.status_code == status:
                return answer
            time.sleep(0.05)
        raise AssertionError((self.folder / "log").read_text())
