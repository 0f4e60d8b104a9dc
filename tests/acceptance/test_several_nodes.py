"""Several nodes on one PostgreSQL and one spool: a node that dies for good loses nothing, nor does an outage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from packages import write_package, write_policy
from peers import Orthanc, free_ports
from postgresql import PASSWORD, PostgreSQL
from sender import Sent, make_study, send, send_once
from stepwedge.database import open_store
from stepwedge.settings import load_settings

from service import Service, destination, settings_for, until

COUNT = 30
_WITHIN_SECONDS = 60.0  # in which the others finish what a dead worker had begun


class Nodes:
    """Roles that run each in a process of its own, as the containers of a cluster do."""

    def __init__(self, folder: Path, service: Service) -> None:
        self.folder, self.service, self.processes = folder, service, dict[str, subprocess.Popen[bytes]]()

    def start(self, name: str, role: str, **variables: str) -> None:
        given = {"STEPWEDGE_CONFIG": str(self.service.file), "STEPWEDGE_DATABASE__PASSWORD": PASSWORD}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "stepwedge", role],
                env=os.environ | given | variables, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def logs(self) -> str:
        return "".join(file.read_text(errors="replace") for file in sorted(self.folder.glob("*.log")))

    def kill(self, name: str) -> None:
        os.killpg(self.processes[name].pid, signal.SIGKILL)
        self.processes.pop(name).wait()

    def stop(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@contextmanager
def department(
    folder: Path, orthanc: Orthanc, server: PostgreSQL, *, listeners: int, workers: int
) -> Iterator[tuple[Nodes, list[int]]]:
    """Listeners, workers and an inference server; the ports of the listeners."""
    package, policy = write_package(folder / "package"), write_policy(folder / "policy.yaml")
    values: dict[str, Any] = settings_for(package, policy, [destination(orthanc.dicom_port)])
    values["database"] = {"url": server.new_database()}
    service = Service(folder / "nodes", values)
    nodes = Nodes(folder / "nodes", service)
    ports, pages = free_ports(listeners), free_ports(listeners + workers)
    with ExitStack() as undo:
        undo.callback(nodes.stop)
        nodes.start("infer", "infer", STEPWEDGE_HTTP__PORT="null")
        for number, port in enumerate(ports):
            nodes.start(
                f"listen-{number}", "listen", STEPWEDGE_NODE__PORT=str(port), STEPWEDGE_HTTP__PORT=str(pages[number])
            )
        for number in range(workers):
            nodes.start(
                f"work-{number}", "work",
                STEPWEDGE_WORKER__EXECUTOR_ID=f"work-{number}", STEPWEDGE_HTTP__PORT=str(pages[listeners + number]),
            )  # fmt: skip
        until(lambda: all(_is_ready(page) for page in pages), f"every node is ready:\n{nodes.logs()[-3000:]}")
        yield nodes, ports


def _send_all(port: int, studies: Sequence[Sent]) -> None:
    for each in studies:
        send(port, each.file)


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=10).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with Orthanc.started(tmp_path_factory.mktemp("orthanc")) as pacs:
        yield pacs


def _all_done(nodes: Nodes) -> bool:
    store = _store(nodes)
    try:
        counts = store.counts()
        return (
            counts["units"] == {"reported": COUNT}
            and not counts["studies"]["open"]
            and counts["deliveries"] == {"delivered": COUNT}
        )
    finally:
        store.close()


def _store(nodes: Nodes) -> Any:
    settings = load_settings(nodes.service.file)
    given = settings.database.model_validate({"url": settings.database.url, "password": PASSWORD})
    return open_store(settings.model_copy(update={"database": given}))


def test_the_studies_of_a_worker_killed_for_good_are_finished_by_the_others(
    orthanc: Orthanc, postgresql: PostgreSQL, tmp_path: Path
) -> None:
    with department(tmp_path, orthanc, postgresql, listeners=2, workers=3) as (nodes, ports):
        sent = [make_study(tmp_path / "studies", number) for number in range(COUNT)]
        sending = [
            threading.Thread(target=_send_all, args=(port, sent[number::2])) for number, port in enumerate(ports)
        ]
        for thread in sending:
            thread.start()
        store = _store(nodes)
        # Under load: some are finished, some have begun, more come.
        until(lambda: store.counts()["units"].get("running", 0) >= 2, "studies are under way")
        store.close()
        nodes.kill("work-1")
        killed = time.monotonic()
        for thread in sending:
            thread.join()
        until(lambda: _all_done(nodes), f"every study is finished:\n{nodes.logs()[-4000:]}")
        took = time.monotonic() - killed
        found = [len(orthanc.instances(each.study_uid)) for each in sent]
        assert Counter(found) == {2: COUNT}  # a report and a picture each
        store = _store(nodes)
        assert len(store.observations()) == COUNT
        store.close()
        assert took < _WITHIN_SECONDS
        assert PASSWORD not in nodes.logs()


def test_an_outage_of_the_database_loses_nothing_that_was_acknowledged(
    orthanc: Orthanc, postgresql: PostgreSQL, tmp_path: Path
) -> None:
    with department(tmp_path, orthanc, postgresql, listeners=1, workers=1) as (nodes, ports):
        sent = [make_study(tmp_path / "studies", 100 + number) for number in range(COUNT)]
        _send_all(ports[0], sent[: COUNT // 2])
        postgresql.stop()
        try:
            # Refused as out of resources: the sender keeps it and sends it again.
            refused = send_once(ports[0], sent[-1].file)
        finally:
            postgresql.start()
        assert refused == 0xA700
        _send_all(ports[0], sent[COUNT // 2 :])
        until(lambda: _all_done(nodes), f"every study is finished:\n{nodes.logs()[-4000:]}")
        assert Counter(len(orthanc.instances(each.study_uid)) for each in sent) == {2: COUNT}
        assert {name: process.poll() for name, process in nodes.processes.items() if process.poll() is not None} == {}
        assert PASSWORD not in nodes.logs()
