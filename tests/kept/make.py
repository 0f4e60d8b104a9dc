"""Makes the kept data folders: what an older program leaves when it is killed with work in flight.

    git worktree add --detach /tmp/older c0722ef
    PYTHONPATH=tests:tests/acceptance .venv/bin/python tests/kept/make.py /tmp/older 1.0.0 tests/kept/schema-1.tar.xz
    git worktree add --detach /tmp/later da86c2c
    PYTHONPATH=tests:tests/acceptance .venv/bin/python tests/kept/make.py /tmp/later tiny tests/kept/schema-2.tar.xz
    PYTHONPATH=tests:tests/acceptance .venv/bin/python tests/kept/make.py /tmp/later tiny \
        tests/kept/schema-2-postgresql.tar.xz --postgresql

c0722ef is the first commit that the whole service runs at with its tests, da86c2c the last one before schema 3. The
program is that of the older commit, with the libraries of today's environment; what it is sent are simulated children,
drawn small. UIDs, keys and times differ from run to run, so a folder made again is another one; the same data folder is
always packed into the same bytes.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import psycopg
import yaml
from instances import make_instance
from packages import write_package, write_policy
from peers import Orthanc, free_ports
from postgresql import PASSWORD, PostgreSQL, with_password
from rawscu import RawSCU
from sender import Sent, send
from stepwedge.simulate import load_simulator, simulate, to_dicom
from stepwedge.simulate.children import Look

MODELS = Path(__file__).parents[2] / "models" / "chest-pneumonia"
_PATIENCE_SECONDS = 120.0
_OPEN_SECONDS = 4.0  # a study is open this long: time to kill everything while the last one is


def main() -> None:
    """Run the older program, kill it with work in flight, and pack its data folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("tree", type=Path, help="a worktree at the older commit")
    parser.add_argument("package", help="version of chest-pneumonia there, or `tiny`: the tests' own package")
    parser.add_argument("archive", type=Path)
    parser.add_argument("--postgresql", action="store_true", help="keep a dump of PostgreSQL in place of SQLite files")
    options = parser.parse_args()
    with ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory()))
        url = None
        if options.postgresql:
            server = undo.enter_context(PostgreSQL.started())
            url = server.new_database()
        said = _work_in_flight(folder, options.tree, options.package, url, undo)
        data = folder / "data"
        if url is None:
            for database in (data / "db").glob("*.sqlite"):
                with closing(sqlite3.connect(database)) as db:
                    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                    db.execute("PRAGMA journal_mode=DELETE")
                    db.execute("VACUUM")
        else:
            (data / "dump.sql").write_text(server.dump(url))
        (data / "kept.json").write_text(json.dumps(said, indent=1))
        options.archive.write_bytes(_packed(data))
    print(f"{options.archive}: {options.archive.stat().st_size} bytes; {said}")


def _work_in_flight(folder: Path, tree: Path, package: str, url: str | None, undo: ExitStack) -> dict[str, Any]:
    """Have one study in each state, then kill every role at once; the Study Instance UIDs by state."""
    dicom, inference, away = free_ports(3)
    (folder / "pacs").mkdir()
    pacs = undo.enter_context(Orthanc.started(folder / "pacs"))
    model = tree / "models" / "chest-pneumonia"
    named = (model / package, model / "policy.yaml")
    if package == "tiny":
        named = (write_package(folder / "package"), write_policy(folder / "policy.yaml"))
    values: dict[str, Any] = {
        "data_dir": "data",
        "node": {"port": dicom},
        "http": {"port": None},
        "inference": {"port": inference, "timeout_seconds": 300},
        "spool": {"reserve_bytes": 0},
        "completeness": {"quiet_seconds": _OPEN_SECONDS, "quiet_seconds_by_modality": {}, "poll_seconds": 0.1},
        # One at a time, so that others wait; one attempt, so that a unit fails while no inference server is there.
        "worker": {"concurrency": 1, "analysis_attempts": 1, "delivery_backoff_seconds": 1},
        "models": [{"package": str(named[0]), "policy": str(named[1])}],
        "destinations": [
            {"name": name, "host": "127.0.0.1", "port": port, "ae_title": "ORTHANC", "accepts_demonstration": True}
            for name, port in (("pacs", pacs.dicom_port), ("away", away))
        ],
    }
    if url is not None:
        values["database"] = {"url": url}
    file = folder / "stepwedge.yaml"
    file.write_text(yaml.safe_dump(values))
    roles: dict[str, subprocess.Popen[bytes]] = {}
    places = [str(tree / "service"), str(tree / "monitoring")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(places),
        "STEPWEDGE_CONFIG": str(file),
        "STEPWEDGE_DATABASE__PASSWORD": PASSWORD,
    }
    if url is None:
        environment.pop("STEPWEDGE_DATABASE__PASSWORD")

    def start(role: str) -> None:
        with (folder / f"{role}.log").open("ab") as log:
            roles[role] = subprocess.Popen(
                [sys.executable, "-m", "stepwedge", role], env=environment, stdout=log, stderr=log,
                cwd=folder, start_new_session=True,
            )  # fmt: skip

    def kill(*names: str) -> None:
        for process in [each for name in names for each in _family(roles[name].pid)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for name in names:
            roles.pop(name).wait()

    undo.callback(lambda: kill(*roles))

    def rows(query: str, *arguments: object) -> list[tuple[Any, ...]]:
        with suppress(sqlite3.OperationalError, psycopg.errors.UndefinedTable):
            if url is None:
                with closing(sqlite3.connect(folder / "data" / "db" / "stepwedge.sqlite")) as db:
                    return db.execute(query, arguments).fetchall()
            with psycopg.connect(with_password(url, driver="")) as server:
                return server.execute(query.replace("?", "%s").encode(), arguments).fetchall()
        return []

    def until(condition: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                logs = "".join(log.read_text()[-3000:] for log in folder.glob("*.log"))
                raise AssertionError(f"it did not come to be that {what}:\n{logs}")
            time.sleep(0.05)

    def is_up() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{inference}/readyz", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def state(sent: Sent) -> str:
        found = rows(
            "SELECT u.state FROM units u JOIN studies s ON s.study = u.study WHERE s.study_uid = ?", sent.study_uid
        )
        return str(found[0][0]) if found else ""

    def deliveries(sent: Sent) -> dict[str, tuple[str, int]]:
        return {
            str(name): (str(said), int(attempts))
            for name, said, attempts in rows(
                "SELECT d.destination, d.state, d.attempts FROM deliveries d JOIN units u ON u.unit = d.unit "
                "JOIN studies s ON s.study = u.study WHERE s.study_uid = ?",
                sent.study_uid,
            )
        }

    def give(sent: Sent) -> Sent:
        send(dicom, sent.file)
        return sent

    studies = iter(_studies(folder / "studies", 7))
    for role in ("infer", "listen", "work"):
        start(role)
    until(is_up, "the inference server is up")
    (folder / "away").mkdir()
    with Orthanc.started(folder / "away", dicom_port=away):
        reported = give(next(studies))
        until(
            lambda: [said for said, _ in deliveries(reported).values()] == ["delivered"] * 2,
            "the first study is delivered to both",
        )
    pending = give(next(studies))
    until(
        lambda: (
            deliveries(pending).get("pacs", ("", 0))[0] == "delivered"
            and deliveries(pending).get("away", ("", 0))[1] >= 2
        ),
        "the second one waits for a destination that is away",
    )
    kill("infer")
    failed = give(next(studies))
    until(lambda: state(failed) == "failed", "the third one failed")
    _give_rubbish(dicom)
    start("infer")
    until(is_up, "the inference server is up again")
    # An inference server that does not answer holds what has begun, so that the rest waits.
    for process in _family(roles["infer"].pid):
        process.send_signal(signal.SIGSTOP)
    started = give(next(studies))
    until(lambda: state(started) == "running", "the fourth one has begun")
    queued = [give(next(studies)) for _ in range(2)]
    until(lambda: all(state(each) == "queued" for each in queued), "two wait in the queue")
    arriving = give(next(studies))
    kill("listen", "work", "infer")
    opened = rows("SELECT open FROM studies WHERE study_uid = ?", arriving.study_uid)
    assert opened
    assert opened[0][0], "the last study was closed before the kill"
    assert state(started) == "running"
    return {
        "reported": reported.study_uid,
        "pending": pending.study_uid,
        "failed": failed.study_uid,
        "started": started.study_uid,
        "queued": [each.study_uid for each in queued],
        "arriving": arriving.study_uid,
    }


def _family(pid: int) -> list[psutil.Process]:
    """A process and all that it started; BentoML starts workers that are in no group with it."""
    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _studies(folder: Path, count: int) -> list[Sent]:
    """Simulated children, as the package's generator draws them, at a fraction of a radiograph's size."""
    folder.mkdir()
    rng = np.random.default_rng(11)
    simulator = load_simulator(MODELS / "simulated.npz")
    look = Look(rows=(96, 97))
    made = []
    for number in range(count):
        dataset = to_dicom(
            simulate(simulator, ("bacterial", "normal", "viral")[number % 3], rng, look),
            rng=rng, age_years=3, patient_name=f"Simulated^Kept {number}", modality="DX",
        )  # fmt: skip
        file = folder / f"{number}.dcm"
        dataset.save_as(file, enforce_file_format=True)
        made.append(Sent(str(dataset.StudyInstanceUID), file))
    return made


def _give_rubbish(port: int) -> None:
    """An object that says it is another than it is."""
    with RawSCU(port).established() as sender:
        assert sender.store(make_instance(), sop="1.2.3.4") == 0xA900
        sender.release()


def _packed(data: Path) -> bytes:
    """The data folder without what is of the moment, as the same bytes for the same folder."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:xz", format=tarfile.PAX_FORMAT, preset=9) as tar:
        for path in sorted(data.rglob("*")):
            name = path.relative_to(data)
            if name.parts[0] == "run" and (path.suffix != ".json" or "metrics" in name.parts):
                continue
            # The times of the files in the spool are those of their receipt.
            entry = tar.gettarinfo(path, str(name))
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            if path.is_dir():
                entry.mtime = 0
                tar.addfile(entry)
            else:
                with path.open("rb") as file:
                    tar.addfile(entry, file)
    return out.getvalue()


if __name__ == "__main__":
    main()
