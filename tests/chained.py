"""A real Prometheus and a real Alertmanager with our rules and examples, in a hurry: intervals of a second."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from metric_names import MONITORING, RULES

TOKEN = "0123456789abcdef0123456789abcdef"
PATIENCE = 120.0  # seconds; a busy machine is slow, and nothing is concluded from time


@contextmanager
def program(*arguments: str | Path, log: Path) -> Iterator[None]:
    """Run a program meanwhile."""
    with log.open("wb") as output, subprocess.Popen(arguments, stdout=output, stderr=output) as process:
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_for(what: str, check: Any, log: Path | None = None) -> Any:
    """The first true answer of a check."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            found = check()
        except httpx.TransportError:
            found = None
        if found:
            return found
        time.sleep(0.2)
    pytest.fail(f"waited in vain for {what}; {log.read_text(errors='replace')[-2000:] if log else ''}")


def write_prometheus(folder: Path, exporter: int | Mapping[str, int], alertmanager: int) -> Path:
    """Our rules, but for how long they wait; our example, but for its ports and intervals.

    ``exporter`` has a path for each job, or is a port for each job, where what the job is for answers itself.
    """
    for file in RULES:
        rules = yaml.safe_load(file.read_text(encoding="utf-8"))
        for group in rules["groups"]:
            for rule in group["rules"]:
                if "alert" in rule:
                    rule["for"] = "1s"
        (folder / file.name).write_text(yaml.safe_dump(rules))
    example = yaml.safe_load((MONITORING / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    example["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    example["rule_files"] = [str(folder / file.name) for file in RULES]
    example["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{alertmanager}"]
    for job in example["scrape_configs"]:
        port = exporter if isinstance(exporter, int) else exporter[job["job_name"]]
        job["static_configs"][0]["targets"] = [f"127.0.0.1:{port}"]
        if isinstance(exporter, int):
            job["metrics_path"] = f"/{job['job_name']}"
    (folder / "prometheus.yml").write_text(yaml.safe_dump(example))
    return folder / "prometheus.yml"


def write_alertmanager(folder: Path, webhook: int) -> Path:
    """Our example, but for the port, the token's place and the waiting times."""
    (folder / "token").write_text(TOKEN + "\n")
    example = yaml.safe_load((MONITORING / "alertmanager" / "alertmanager.yml").read_text(encoding="utf-8"))
    example["route"] |= {"group_wait": "1s", "group_interval": "1s"}
    example["route"]["routes"][0]["group_wait"] = "1s"
    (receiver,) = (each for each in example["receivers"] if each["name"] == "stepwatch")
    receiver["webhook_configs"][0]["url"] = f"http://127.0.0.1:{webhook}/webhook"
    receiver["webhook_configs"][0]["http_config"]["authorization"]["credentials_file"] = str(folder / "token")
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(example))
    return folder / "alertmanager.yml"
