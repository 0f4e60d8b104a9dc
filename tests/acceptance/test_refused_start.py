"""A role that cannot have its database or its name ends with status 2 and one line that says why."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packages import write_package, write_policy
from peers import free_ports
from postgresql import PASSWORD, PostgreSQL
from stepwedge.database import own_executor

from service import Service, settings_for

ROLES = ["serve", "listen", "work"]


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    return settings_for(write_package(tmp_path / "package"), write_policy(tmp_path / "policy.yaml"), [])


def _line(service: Service, role: str) -> str:
    """What a role that must not start says."""
    done = subprocess.run(
        [sys.executable, "-m", "stepwedge", role, "--config", str(service.file)],
        env=os.environ, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    said = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert len(said) == 1, said
    assert PASSWORD not in done.stderr
    return said[0]


@pytest.mark.parametrize("role", ROLES)
def test_a_database_that_does_not_answer(values: dict[str, Any], tmp_path: Path, role: str) -> None:
    port = free_ports(1)[0]
    values["database"] = {"url": f"postgresql://u@127.0.0.1:{port}/x", "password": PASSWORD}
    said = _line(Service(tmp_path / "service", values), role)
    assert f"127.0.0.1:{port}/x: the database cannot be used" in said


@pytest.mark.parametrize(("contents", "wanted"), [(None, "No such file"), ("", "the file is empty")])
def test_a_secret_that_is_missing_or_empty(
    values: dict[str, Any], tmp_path: Path, contents: str | None, wanted: str
) -> None:
    file = tmp_path / "secret"
    if contents is not None:
        file.write_text(contents)
    values["database"] = {"url": "postgresql://u@127.0.0.1:9/x", "password_file": str(file)}
    said = _line(Service(tmp_path / "service", values), "work")
    assert f"database.password_file: {file}:" in said
    assert wanted in said


def test_a_site_key_file_that_is_missing(values: dict[str, Any], tmp_path: Path) -> None:
    values["site_key_file"] = str(tmp_path / "site.json")
    said = _line(Service(tmp_path / "service", values), "serve")
    assert str(tmp_path / "site.json") in said


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_second_worker_under_one_name(
    values: dict[str, Any], tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    if kind == "postgresql":
        server: PostgreSQL = request.getfixturevalue("postgresql")
        values["database"] = {"url": server.new_database(), "password": PASSWORD}
    service = Service(tmp_path / "service", values)
    with own_executor(service.settings):
        assert "another worker runs as worker-1; give each worker a name of its own" in _line(service, "work")
