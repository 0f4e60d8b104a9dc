"""What each role shows Prometheus where it runs alone, as the containers of a cluster do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from packages import write_package, write_policy
from peers import free_ports
from prometheus_client.parser import text_string_to_metric_families
from sender import make_study, send
from stepwedge.identity import load_site

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


def test_the_dicom_node_receives_before_it_has_compared_its_spool_with_the_index(tmp_path: Path) -> None:
    package, policy = write_package(tmp_path / "package"), write_policy(tmp_path / "policy.yaml")
    node = Service(tmp_path / "node", settings_for(package, policy, []))
    load_site(node.settings.data_dir)
    # A file that takes for ever to read, until somebody writes into it.
    endless = node.settings.data_dir / "spool" / "studies" / "00" / ("0" * 32) / f"{'1' * 32}.{'2' * 16}.dcm"
    endless.parent.mkdir(parents=True)
    os.mkfifo(endless)
    with (tmp_path / "role.log").open("ab") as out:
        command = [sys.executable, "-m", "stepwedge", "listen", "--config", str(node.file)]
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        until(lambda: "listening" in (tmp_path / "role.log").read_text(), "the DICOM node listens")
        sent = make_study(tmp_path / "studies", 1)
        send(node.settings.node.port, sent.file)
        with node.store() as store:
            assert store.study_by_uid(sent.study_uid) is not None
        assert "spool_reconciled" not in (tmp_path / "role.log").read_text()
        endless.open("wb").close()
        until(lambda: "spool_reconciled" in (tmp_path / "role.log").read_text(), "spool and index are compared")
    finally:
        process.terminate()
        assert process.wait(60) == 0


@pytest.mark.parametrize("role", ROLES)
def test_no_role_speaks_for_another(shown: dict[str, Samples], role: str) -> None:
    assert {said for _, said in shown[role]} - {"", "clock", "inference"} == {role}
    assert shown[role]["stepwedge_ready", role] == 1
    assert shown[role]["stepwedge_database_up", ""] == 1
    assert shown[role]["stepwedge_clock_offset_seconds", role] == pytest.approx(0, abs=5)
