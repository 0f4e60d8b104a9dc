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
import sqlalchemy as sa
from full_volumes import small_volume
from packages import write_package, write_policy
from peers import Orthanc, free_ports
from postgresql import PASSWORD, PostgreSQL
from sender import Sent, make_study, send, send_once
from stepwedge.database import open_store, store_url
from stepwedge.migrations import STEPS, Step, changing, forward
from stepwedge.roles import _RECONCILE_SECONDS
from stepwedge.rundir import STALE_SECONDS
from stepwedge.schema import VERSION
from stepwedge.settings import Settings, load_settings
from stepwedge.store import Store, make_engine

from service import Service, destination, settings_for, until

COUNT = 30
# Tables as a later version could have them, beside which this one goes on.
_LATER = Step(
    version=VERSION + 1,
    works_from=VERSION,
    what="a column",
    forward=lambda db: db.execute(sa.text("ALTER TABLE units ADD COLUMN later TEXT")) and None,
)
_WITHIN_SECONDS = 60.0  # in which the others finish what a dead worker had begun


class Nodes:
    """Roles that run each in a process of its own, as the containers of a cluster do."""

    def __init__(self, folder: Path, service: Service) -> None:
        self.folder, self.service, self.processes = folder, service, dict[str, subprocess.Popen[bytes]]()

    def start(self, name: str, role: str, *, program: Sequence[str] = ("-m", "stepwedge"), **variables: str) -> None:
        given = {"STEPWEDGE_CONFIG": str(self.service.file), "STEPWEDGE_DATABASE__PASSWORD": PASSWORD}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, *program, role],
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
    folder: Path,
    orthanc: Orthanc,
    server: PostgreSQL,
    *,
    listeners: int,
    workers: int,
    away: int | None = None,
    **changes: Any,
) -> Iterator[tuple[Nodes, list[int]]]:
    """Listeners, workers and an inference server; the ports of the listeners. ``away`` is a second destination's."""
    package, policy = write_package(folder / "package"), write_policy(folder / "policy.yaml")
    to = [destination(orthanc.dicom_port), *([destination(away, name="away")] if away else [])]
    values: dict[str, Any] = settings_for(package, policy, to, **changes)
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


def _all_done(nodes: Nodes) -> bool:
    store = _store(nodes)
    try:
        counts = store.counts()
        return (
            counts["units"] == {"reported": COUNT}
            and not counts["studies"]["open"]
            and counts["deliveries"] == {"delivered": COUNT * len(nodes.service.settings.destinations)}
        )
    finally:
        store.close()


def _settings(nodes: Nodes) -> Settings:
    settings = load_settings(nodes.service.file)
    given = settings.database.model_validate({"url": settings.database.url, "password": PASSWORD})
    return settings.model_copy(update={"database": given})


def _store(nodes: Nodes) -> Store:
    return open_store(_settings(nodes))


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


# The same program as its next version, for which what lies in the queue has another meaning.
_NEXT = """
import sys
from stepwedge import workflow
workflow.VERSION = "next"
from stepwedge.cli import main
sys.exit(main())
"""


def test_nodes_of_two_versions_work_side_by_side_while_they_are_replaced(
    orthanc: Orthanc, postgresql: PostgreSQL, tmp_path: Path
) -> None:
    away = free_ports(1)[0]
    with department(tmp_path, orthanc, postgresql, listeners=2, workers=2, away=away) as (nodes, ports):
        sent = [make_study(tmp_path / "studies", 200 + number) for number in range(COUNT)]
        _send_all(ports[0], sent[:5])
        engine = make_engine(store_url(_settings(nodes)))
        with changing(engine) as db:
            assert forward(db, (*STEPS, _LATER)) == [_LATER]
        engine.dispose()
        later = free_ports(1)[0]
        nodes.start(
            "work-next", "work", program=("-c", _NEXT),
            STEPWEDGE_WORKER__EXECUTOR_ID="work-next", STEPWEDGE_HTTP__PORT=str(later),
        )  # fmt: skip
        until(lambda: _is_ready(later), f"the newer worker is ready:\n{nodes.logs()[-3000:]}")
        # A node of the older version starts beside the tables of the newer one.
        nodes.kill("listen-1")
        page = free_ports(1)[0]
        nodes.start("listen-2", "listen", STEPWEDGE_NODE__PORT=str(ports[1]), STEPWEDGE_HTTP__PORT=str(page))
        until(lambda: _is_ready(page), f"the older listener is ready again:\n{nodes.logs()[-3000:]}")
        _send_all(ports[1], sent[5:15])
        until(lambda: "delivery_failed" in nodes.log("work-0"), "deliveries wait in the queue")
        nodes.kill("work-1")  # what it leaves is the other older one's to take over
        looks = nodes.log("work-next").count("delivery_failed")
        time.sleep(2 * _RECONCILE_SECONDS + 1)  # two looks for lost work: neither takes the other's for lost
        assert "lost_work_queued_again" not in nodes.log("work-next")
        assert nodes.log("work-next").count("delivery_failed") == looks == 0
        # The last worker of the older version goes; what it had, and what the older listeners queue, is taken over.
        nodes.kill("work-0")
        _send_all(ports[0], sent[15:])
        folder = tmp_path / "away"
        folder.mkdir()
        with Orthanc.started(folder, dicom_port=away) as back:
            until(lambda: _all_done(nodes), f"every study is finished:\n{nodes.logs()[-4000:]}")
            for pacs in (orthanc, back):
                assert Counter(len(pacs.instances(each.study_uid)) for each in sent) == {2: COUNT}
        store = _store(nodes)
        assert len(store.observations()) == COUNT
        store.close()


def test_workers_that_share_a_full_volume_take_no_other_for_dead(
    orthanc: Orthanc, postgresql: PostgreSQL, tmp_path: Path
) -> None:
    away = free_ports(1)[0]
    with ExitStack() as undo:
        volume = undo.enter_context(small_volume(tmp_path / "volume", megabytes=128))
        kept = {"data_dir": str(volume.folder / "data")}
        made = department(tmp_path, orthanc, postgresql, listeners=1, workers=2, away=away, **kept)
        nodes, ports = undo.enter_context(made)
        sent = [make_study(tmp_path / "studies", 300 + number) for number in range(COUNT)]
        _send_all(ports[0], sent)
        until(lambda: "delivery_failed" in nodes.logs(), "deliveries wait, which each worker takes up again")
        volume.fill()
        # Until what each has said is old, and they have looked twice since.
        time.sleep(STALE_SECONDS + 2 * _RECONCILE_SECONDS)
        workers = ("work-0", "work-1")
        assert all("no_room_to_work" in nodes.log(name) for name in workers)
        volume.make_room()
        folder = tmp_path / "away"
        folder.mkdir()
        with Orthanc.started(folder, dicom_port=away) as back:
            until(lambda: _all_done(nodes), f"every study is finished:\n{nodes.logs()[-4000:]}")
            for pacs in (orthanc, back):
                assert Counter(len(pacs.instances(each.study_uid)) for each in sent) == {2: COUNT}
        until(lambda: all('"room_to_work"' in nodes.log(name) for name in workers), "each says that there is room")
        assert "lost_work_queued_again" not in nodes.logs()
        assert {name: process.poll() for name, process in nodes.processes.items() if process.poll() is not None} == {}


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
