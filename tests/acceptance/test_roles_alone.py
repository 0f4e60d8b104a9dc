"""What each role shows Prometheus where it runs alone, as the containers of a cluster do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest
from packages import write_package, write_policy
from peers import free_ports
from prometheus_client.parser import text_string_to_metric_families

from service import Service, settings_for, until

ROLES = ("listen", "work", "page")
Samples = dict[tuple[str, str], float]


def samples(text: str) -> Samples:
    """Samples of ours, by name and role or check."""
    return {
        (sample.name, sample.labels.get("role", sample.labels.get("check", ""))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("stepwedge_")
    }


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Samples]]:
    """What each role shows, by its name."""
    folder = tmp_path_factory.mktemp("alone")
    package, policy = write_package(folder / "package"), write_policy(folder / "policy.yaml")
    service = Service(folder / "node", settings_for(package, policy, []))
    ports = dict(zip(ROLES, free_ports(len(ROLES)), strict=True))
    log = folder / "roles.log"
    processes = []

    def text(role: str, path: str) -> str | None:
        try:
            answer = httpx.get(f"http://127.0.0.1:{ports[role]}{path}", timeout=10)
        except httpx.HTTPError:
            return None
        return answer.text if answer.status_code != httpx.codes.NOT_FOUND else None

    with log.open("ab") as out:
        for role in ROLES:
            given = {"STEPWEDGE_CONFIG": str(service.file), "STEPWEDGE_HTTP__PORT": str(ports[role])}
            command = [sys.executable, "-m", "stepwedge", role]
            processes.append(subprocess.Popen(command, env=os.environ | given, stdout=out, stderr=out))
    try:
        until(lambda: all(text(role, "/livez") for role in ROLES), "every role answers")
        yield {role: samples(text(role, "/metrics") or "") for role in ROLES}
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(60)


def test_the_room_of_the_spool_is_told_by_the_role_that_looks(shown: dict[str, Samples]) -> None:
    told = {role: [key for key in found if key[0] == "stepwedge_spool_free_bytes"] for role, found in shown.items()}
    assert told == {"listen": [("stepwedge_spool_free_bytes", "listen")], "work": [], "page": []}
    assert shown["listen"]["stepwedge_spool_free_bytes", "listen"] > 0


@pytest.mark.parametrize("role", ROLES)
def test_no_role_speaks_for_another(shown: dict[str, Samples], role: str) -> None:
    assert {said for _, said in shown[role]} - {"", "clock", "inference"} == {role}
    assert shown[role]["stepwedge_ready", role] == 1
    assert shown[role]["stepwedge_database_up", ""] == 1
    assert shown[role]["stepwedge_clock_offset_seconds", role] == pytest.approx(0, abs=5)
