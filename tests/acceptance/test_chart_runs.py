"""The rendered chart does the main job: its pods run as processes, on a real PostgreSQL, with a real PACS."""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from charts import NAME, render
from kubelet import Kubelet
from packages import write_policy
from peers import Orthanc, free_ports, require_tool
from postgresql import PASSWORD, PostgreSQL
from referenced import write_referenced, write_studies
from sender import make_study, send
from stepwedge.settings import Settings

from service import destination, until

CALLER = "MODALITY"
LISTENER, PAGE = f"{NAME}-listener-0", f"{NAME}-page-0"
WORKERS = [f"{NAME}-worker-{number}" for number in range(2)]
SETTINGS: dict[str, Any] = {
    "node": {"allowed_callers": [CALLER]},
    "spool": {"reserve_bytes": 0},
    "completeness": {"quiet_seconds": 1, "quiet_seconds_by_modality": {}, "poll_seconds": 0.1},
}
# Whether this version has the page as a role of its own.
HAS_PAGE = "page" in Settings.model_fields


@dataclass(frozen=True)
class Site:
    """A running release."""

    kubelet: Kubelet
    dicom: int
    inference: int
    watch: int
    pages: dict[str, int]  # the role's own HTTP port, by pod
    orthanc: Orthanc

    def network(self, name: str) -> dict[str, str]:
        """The addresses that a pod listens on."""
        return {
            "STEPWEDGE_NODE__HOST": "127.0.0.1", "STEPWEDGE_NODE__PORT": str(self.dicom),
            "STEPWEDGE_HTTP__HOST": "127.0.0.1", "STEPWEDGE_HTTP__PORT": str(self.pages.get(name, "null")),
            "STEPWEDGE_INFERENCE__HOST": "127.0.0.1", "STEPWEDGE_INFERENCE__PORT": str(self.inference),
            "STEPWATCH_HTTP__HOST": "127.0.0.1", "STEPWATCH_HTTP__PORT": str(self.watch),
        }  # fmt: skip

    def start(self, component: str, name: str) -> subprocess.Popen[bytes]:
        return self.kubelet.start(component, name, **self.network(name))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, postgresql: PostgreSQL) -> Iterator[Site]:
    require_tool("helm")
    folder = tmp_path_factory.mktemp("site")
    given = _given(folder / "given")
    roles = [LISTENER, *WORKERS, *([PAGE] if HAS_PAGE else [])]
    ports = free_ports(3 + len(roles))
    pages = dict(zip(roles, ports[3:], strict=True))
    with Orthanc.started(folder) as orthanc:
        resources = render("external-prometheus", {
            "database": {"url": postgresql.new_database()},
            "siteKey": {"existingSecret": "site"},
            "models": {"run": [{"package": "/models/package", "policy": "/models/policy.yaml"}]},
            "page": {"enabled": HAS_PAGE},
            "networkPolicy": {"enabled": False},
            "settings": {**SETTINGS, "destinations": [destination(orthanc.dicom_port)]},
        })  # fmt: skip
        services = {
            f"{NAME}-inference:3000": f"127.0.0.1:{ports[1]}", f"{NAME}-stepwatch:9108": f"127.0.0.1:{ports[2]}",
            f"{NAME}-worker:8080": f"127.0.0.1:{pages[WORKERS[0]]}", f"{NAME}-listener:11112": f"127.0.0.1:{ports[0]}",
            f"{NAME}-listener": "127.0.0.1", f"{NAME}-page:8080": f"127.0.0.1:{pages.get(PAGE)}",
        }  # fmt: skip
        kubelet = Kubelet(folder, resources, given, services)
        try:
            yield Site(kubelet, ports[0], ports[1], ports[2], pages, orthanc)
        finally:
            kubelet.end()


def _given(folder: Path) -> dict[str, Path]:
    """What an administrator makes before the installation."""
    made = {kind: folder / kind.replace(" ", "-") for kind in (
        "Secret stepwedge-database", "Secret stepwedge-webhook", "Secret site", "Claim models",
    )}  # fmt: skip
    for path in made.values():
        path.mkdir(parents=True)
    (made["Secret stepwedge-database"] / "password").write_text(PASSWORD)
    (made["Secret stepwedge-webhook"] / "token").write_text(secrets.token_hex(32))
    command = [sys.executable, "-m", "stepwedge", "keys", "new", str(made["Secret site"] / "site.json")]
    subprocess.run(command, check=True, capture_output=True)
    if HAS_PAGE:
        tokens = made["Secret stepwedge-page-tokens"] = folder / "tokens"
        tokens.mkdir()
        command = [sys.executable, "-m", "stepwedge", "page-token", "--name", "invented", "--role", "viewer"]
        entry = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        (tokens / "tokens.yaml").write_text(entry)
    write_referenced(made["Claim models"] / "package", write_studies(folder / "studies"))
    write_policy(made["Claim models"] / "policy.yaml")
    return made


def test_one_pod_alone_does_the_main_job_beside_its_monitor(tmp_path: Path) -> None:
    require_tool("helm")
    dicom, inference, http, watch = free_ports(4)
    with Orthanc.started(tmp_path) as orthanc:
        resources = render("laptop", {
            "models": {"run": [{"package": "/models/package", "policy": "/models/policy.yaml"}]},
            "networkPolicy": {"enabled": False},
            "settings": {
                **SETTINGS, "constancy": {"enabled": False}, "destinations": [destination(orthanc.dicom_port)],
            },
        })  # fmt: skip
        services = {"127.0.0.1:8080": f"127.0.0.1:{http}", "127.0.0.1:9108": f"127.0.0.1:{watch}"}
        kubelet = Kubelet(tmp_path, resources, _given(tmp_path / "given"), services)
        assert not kubelet.probe("single", 0, "livenessProbe")
        try:
            kubelet.start(
                "single", "stepwedge", STEPWEDGE_NODE__HOST="127.0.0.1", STEPWEDGE_NODE__PORT=str(dicom),
                STEPWEDGE_HTTP__PORT=str(http), STEPWEDGE_INFERENCE__PORT=str(inference),
                STEPWEDGE_WATCH__ENABLED="false",  # as in the image, which has nothing of the monitor
            )  # fmt: skip
            kubelet.start("single", "stepwatch", 1, STEPWATCH_HTTP__PORT=str(watch))
            for number in (0, 1):
                for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                    until(lambda probe=probe, number=number: kubelet.probe("single", number, probe), f"{probe} is well")
            study = make_study(tmp_path, 0)
            send(dicom, study.file)
            until(lambda: len(orthanc.instances(study.study_uid)) == 2, "the report is there")
            metrics = f"http://127.0.0.1:{watch}/metrics"
            until(lambda: "stepwatch_database_up 1.0" in httpx.get(metrics).text, "the monitor sees the database")
            assert [kubelet.stop(name) for name in ("stepwatch", "stepwedge")] == [0, 0]
        finally:
            kubelet.end()


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=10).status_code == 200
    except httpx.HTTPError:
        return False


def test_the_release_comes_up_in_its_order_answers_and_ends(site: Site, tmp_path: Path) -> None:
    kubelet = site.kubelet
    # Before the migration a role does not start, and says why: Kubernetes starts it again.
    assert kubelet.run("listener", LISTENER, **site.network(LISTENER))[0] == 2
    assert "stepwedge database upgrade" in kubelet.log(LISTENER).read_text()
    status, said = kubelet.run("migration", f"{NAME}-migration")
    assert status == 0, said

    site.start("inference", f"{NAME}-inference-0")
    site.start("listener", LISTENER)
    for name in WORKERS:
        site.start("worker", name)
    site.start("stepwatch", f"{NAME}-stepwatch-0")
    if HAS_PAGE:
        site.start("page", PAGE)
    for port in (*site.pages.values(), site.inference, site.watch):
        until(lambda port=port: _is_ready(port), f"port {port} is ready")

    # helm test
    status, said = kubelet.run("test", f"{NAME}-test")
    assert status == 0, said
    assert said.count("is well") == 4 + HAS_PAGE

    # The main job.
    sent = [make_study(tmp_path, number) for number in range(4)]
    for study in sent:
        send(site.dicom, study.file)
    # Meanwhile a worker is replaced under its own name, as when the release is upgraded.
    assert kubelet.stop(WORKERS[0]) == 0
    site.start("worker", WORKERS[0])
    # A report and a picture each.
    until(lambda: all(len(site.orthanc.instances(study.study_uid)) == 2 for study in sent), "the reports are there")

    # From a pod of its own, the reference set reaches the node: after the installation, on schedule, and by hand.
    for component in ("constancy-start", "constancy", "accept"):
        name = f"{NAME}-{component}"
        network = {key: value for key, value in site.network(name).items() if key != "STEPWEDGE_NODE__HOST"}
        status, said = kubelet.run(component, name, **network)
        assert status == 0, said
        assert "constant" in said

    metrics = httpx.get(f"http://127.0.0.1:{site.watch}/metrics").text
    assert "stepwatch_database_up 1.0" in metrics

    logs = "".join(kubelet.log(name).read_text(errors="replace") for name in [*kubelet.running, f"{NAME}-migration"])
    assert PASSWORD not in logs
    assert {f'"executor": "{name}"' in logs or f'"executor":"{name}"' in logs for name in WORKERS} == {True}
    # Each in order, and within the time that the chart gives it.
    assert {name: kubelet.stop(name) for name in list(kubelet.running)} == dict.fromkeys(
        [*site.pages, f"{NAME}-inference-0", f"{NAME}-stepwatch-0"], 0
    )


def test_helms_test_says_who_does_not_answer(site: Site) -> None:
    status, said = site.kubelet.run("test", f"{NAME}-test-2")
    assert status == 1
    assert "takes no association" in said
    assert said.count("is not ready") == 3 + HAS_PAGE
