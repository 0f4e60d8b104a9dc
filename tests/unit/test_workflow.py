"""The durable queue: whatever becomes of a worker, of its queue or of its version, each unit of work is done, once.

DBOS is one per process, so that each worker here is a process of its own, which a test can kill.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import yaml
from dbos import DBOSClient
from instances import write_file
from packages import write_package, write_policy
from radiographs import BRIGHT, radiograph
from stepwedge import rundir, steps, workflow
from stepwedge.identity import load_site
from stepwedge.inference.engine import OnnxEngine
from stepwedge.pipeline import Equipment
from stepwedge.records import State
from stepwedge.roles import load_models
from stepwedge.settings import load_settings
from stepwedge.steps import Bench
from stepwedge.store import Revision, Store, Study, Unit, unit_id

# Far more than anything takes: a test fails because something does not happen, not because it is slow.
PATIENCE_SECONDS = 150.0

# A worker with the engine in its own process. Files in its folder say what it does and meets: `runs` and
# `sent.<destination>` get a line each time, `hang` makes the model never answer, `away` its server unavailable, and
# the destination `mute` never answers; while `dumb` is there, the worker cannot say that it lives, and while `no_room`
# is, its volume is full; `stop` ends it as an operator would.
WORKER = """
import sys, time
from pathlib import Path
from stepwedge import logs, room, rundir, workflow
from stepwedge.errors import InferenceUnavailableError
from stepwedge.identity import load_site
from stepwedge.inference.engine import OnnxEngine
from stepwedge.pipeline import Equipment
from stepwedge.roles import load_models
from stepwedge.settings import load_settings
from stepwedge.steps import Bench
from stepwedge.store import Store

folder, executor, workflow.VERSION = Path(sys.argv[1]), *sys.argv[2:]
settings = load_settings(folder / "stepwedge.yaml")
worker = settings.worker.model_copy(update={"executor_id": executor})
settings = settings.model_copy(update={"worker": worker})
logs.configure(settings.log, "work")

def note(file, text):
    with (folder / file).open("a") as out:
        out.write(text + "\\n")

class Engine:
    def __init__(self, package):
        self._engine = OnnxEngine(package, "cpu", threads=1)
        self.model = self._engine.model
    def run(self, inputs, *, urgent=False):
        note("runs", executor)
        while (folder / "hang").exists():
            time.sleep(0.05)
        if (folder / "away").exists():
            raise InferenceUnavailableError
        return self._engine.run(inputs)

class Sink:
    def __init__(self, name):
        self.name = name
    def send(self, files):
        note("sent." + self.name, files[0].parent.name)
        while self.name == "mute":
            time.sleep(1)

equipment = {
    package.digest: Equipment(package=package, engine=Engine(package), policy=policy)
    for package, policy in load_models(settings)
}
bench = Bench(
    settings=settings,
    site=load_site(settings.data_dir),
    store=Store.open_file(settings.database_file),
    equipment=equipment,
    sinks={to.name: Sink(to.name) for to in settings.destinations},
)
heartbeat = rundir.Heartbeat(settings.data_dir, f"work.{executor}", **workflow.about(settings))
heartbeat.start()
workflow.prepare_queue(settings)
def look_for_room():
    room.ENOUGH_BYTES = 1 << 62 if (folder / "no_room").exists() else 0

look_for_room()
queue = workflow.WorkQueue(bench)
while True:
    look_for_room()
    if (folder / "stop").exists():
        queue.stop()
        sys.exit()
    if (folder / "dumb").exists():
        heartbeat.stop()
    elif heartbeat._stopped.is_set():
        heartbeat = rundir.Heartbeat(settings.data_dir, f"work.{executor}", **workflow.about(settings))
        heartbeat.start()
    note("queued", str(queue.reconcile()))
    note("looked", executor)
    time.sleep(0.2)
"""


class Department:
    """A data folder with units of work, and the workers on it."""

    def __init__(self, folder: Path, destinations: list[str]) -> None:
        self.folder = folder
        values = {
            "data_dir": "data",
            "models": [
                {
                    "package": str(write_package(folder / "package")),
                    "policy": str(write_policy(folder / "policy.yaml")),
                }
            ],
            "destinations": [
                {"name": name, "host": "127.0.0.1", "port": 104, "ae_title": "TEST", "accepts_demonstration": True}
                for name in destinations
            ],
            "worker": {
                "analysis_attempts": 2,
                "analysis_backoff_seconds": 0.1,
                "delivery_backoff_seconds": 0.1,
                "delivery_concurrency": 1,
                "drain_seconds": 1,
            },
        }
        (folder / "stepwedge.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        self.settings = load_settings(folder / "stepwedge.yaml")
        self.site = load_site(self.settings.data_dir)
        self.store = Store.open_file(self.settings.database_file)
        ((self.package, self.policy),) = load_models(self.settings)
        workflow.prepare_queue(self.settings)

    def add(self, number: int = 0, *, created_at: float = 2.0) -> Unit:
        """A study in the spool with a unit of work, which is in no queue yet."""
        study = f"{number:032x}"
        path = f"spool/studies/00/{study}/{1:032x}.{1:016x}.dcm"
        write_file(radiograph(BRIGHT), self.settings.data_dir / path)
        known = Study(study=study, study_uid=study, first_instance_at=1.0, last_instance_at=1.0, revision=1, open=False)
        revision = Revision(study=study, revision=1, closed_at=2.0, last_instance_at=1.0, paths=(path,))
        self.store.restore_study(known, [revision])
        unit = Unit(
            unit=unit_id(study, 1, self.package.digest),
            study=study,
            revision=1,
            model_name="tiny",
            model_digest=self.package.digest,
            created_at=created_at,
            last_instance_at=1.0,
        )
        self.store.restore_unit(unit)
        return unit

    def enqueue(self, *units: Unit) -> None:
        with closing(workflow.QueueClient(self.settings)) as client:
            for unit in units:
                client.enqueue(unit)

    def analyse_here(self, unit: Unit) -> None:
        """As a worker would, without any queue."""
        engine = OnnxEngine(self.package, "cpu", threads=1)
        equipment = {self.package.digest: Equipment(package=self.package, engine=engine, policy=self.policy)}
        bench = Bench(settings=self.settings, site=self.site, store=self.store, equipment=equipment, sinks={})
        assert steps.analyse(bench, unit.unit) == "reported"

    @contextmanager
    def worker(self, executor: str = "first", *, version: str = workflow.VERSION) -> Iterator[subprocess.Popen[bytes]]:
        """A running worker; killed at the end, if not before."""
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", WORKER, str(self.folder), executor, version], stdout=log, stderr=log
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def kill_while_running(self, executor: str, *, version: str = workflow.VERSION) -> None:
        """Start a worker, and kill it as soon as it runs the model."""
        hang = self.folder / "hang"
        hang.touch()
        with self.worker(executor, version=version) as process:
            self.until(lambda: self.lines("runs") == [executor], "the model runs")
            process.kill()
            process.wait()
        hang.unlink()

    def last_said(self, executor: str, ago: float) -> None:
        """Set back when a worker that is killed said last that it lives."""
        file = self.settings.data_dir / "run" / f"work.{executor}.json"
        said = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps(said | {"at": time.time() - ago}), encoding="utf-8")

    def looks(self, executor: str) -> None:
        """Wait until a worker has looked twice more for lost work."""
        before = self.lines("looked").count(executor)
        self.until(lambda: self.lines("looked").count(executor) >= before + 3, "it looks for lost work")

    def lines(self, name: str) -> list[str]:
        file = self.folder / name
        return file.read_text(encoding="utf-8").splitlines() if file.exists() else []

    def state(self, unit: Unit) -> str:
        found = self.store.unit(unit.unit)
        assert found is not None
        return str(found.state)

    def nothing_waits(self) -> bool:
        counts = self.store.counts()
        return not ({"queued", "running"} & counts["units"].keys() or "pending" in counts["deliveries"])

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                log = (self.folder / "log").read_text(encoding="utf-8", errors="replace")
                raise AssertionError(f"it did not come to be that {what}\n{log[-3000:]}")
            time.sleep(0.05)

    def statuses(self, prefix: str) -> list[str]:
        """Where the workflows stand whose identifiers begin so."""
        client = DBOSClient(
            system_database_url=f"sqlite:///{self.settings.queue_file}", application_name=workflow.APPLICATION
        )
        try:
            return [item.status for item in client.list_workflows(workflow_id_prefix=prefix)]
        finally:
            client.destroy()


@pytest.fixture
def department(tmp_path: Path) -> Iterator[Department]:
    made = Department(tmp_path, ["pacs"])
    yield made
    made.store.close()


def test_a_unit_that_is_queued_again_runs_once(department: Department) -> None:
    unit = department.add()
    department.enqueue(unit, unit)
    with department.worker():
        department.until(department.nothing_waits, "the work is done")
        department.enqueue(unit)
        looks = len(department.lines("looked"))
        department.until(lambda: len(department.lines("looked")) > looks + 3, "the worker goes on")
    assert department.state(unit) == "reported"
    assert department.lines("runs") == ["first"]
    assert department.lines("sent.pacs") == [unit.unit]


def test_what_a_killed_worker_was_at_is_finished_when_it_is_started_again(department: Department) -> None:
    unit = department.add()
    department.enqueue(unit)
    department.kill_while_running("first")
    assert department.state(unit) == "running"
    with department.worker("first"):
        department.until(department.nothing_waits, "the work is done")
    assert department.state(unit) == "reported"
    assert department.lines("runs") == ["first", "first"]
    assert department.lines("sent.pacs") == [unit.unit]


def test_another_worker_finishes_it_once_the_killed_one_is_known_to_be_gone(department: Department) -> None:
    unit = department.add()
    department.enqueue(unit)
    department.kill_while_running("first")
    department.last_said("first", -3 * rundir.STALE_SECONDS / 4)
    with department.worker("second"):
        department.looks("second")
        assert department.lines("runs") == ["first"], "it may still be at it"
        department.last_said("first", 2 * rundir.STALE_SECONDS)
        department.until(department.nothing_waits, "the work is done")
    assert department.state(unit) == "reported"
    assert department.lines("runs") == ["first", "second"]
    assert department.lines("sent.pacs") == [unit.unit]


def test_a_worker_that_cannot_say_that_it_lives_takes_no_other_for_dead(department: Department) -> None:
    unit = department.add()
    department.enqueue(unit)
    department.kill_while_running("first")
    department.last_said("first", 2 * rundir.STALE_SECONDS)
    dumb = department.folder / "dumb"
    dumb.touch()
    with department.worker("second"):
        department.looks("second")
        assert department.lines("runs") == ["first"]
        assert department.statuses(workflow.analysis_id(unit)) == ["PENDING"]
        dumb.unlink()
        department.until(department.nothing_waits, "the work is done")
    assert department.lines("runs") == ["first", "second"]


def test_a_worker_that_is_stopped_while_it_waits_for_room_begins_nothing(department: Department) -> None:
    unit = department.add()
    no_room, stop = department.folder / "no_room", department.folder / "stop"
    no_room.touch()
    department.enqueue(unit)
    with department.worker() as process:
        department.until(lambda: department.statuses(workflow.analysis_id(unit)) == ["PENDING"], "it has been taken")
        stop.touch()
        assert process.wait(PATIENCE_SECONDS) == 0
    assert department.lines("runs") == []
    assert department.state(unit) == "queued"
    no_room.unlink()
    stop.unlink()
    with department.worker():
        department.until(department.nothing_waits, "the work is done")
    assert department.lines("runs") == ["first"]


def test_what_a_killed_worker_of_another_version_was_at_is_left_to_those_of_that_version(
    department: Department, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = department.add()
    with monkeypatch.context() as older:
        older.setattr(workflow, "VERSION", "0")
        department.enqueue(unit)
    department.kill_while_running("first", version="0")
    department.last_said("first", 2 * rundir.STALE_SECONDS)
    other = rundir.Heartbeat(department.settings.data_dir, "work.other", queue="0")
    other.start()
    with department.worker("second"):
        department.looks("second")
        assert department.statuses("0/") == ["PENDING"]
        other.stop()  # the last one of that version goes
        department.until(department.nothing_waits, "the work is done")
    assert department.statuses("0/") == ["CANCELLED"]
    assert department.lines("runs") == ["first", "second"]


def test_workers_that_find_the_same_work_lost_queue_it_once(department: Department) -> None:
    analysed = department.add(1)
    department.analyse_here(analysed)
    running = [department.add(number) for number in range(2, 8)]
    department.enqueue(*running)
    with department.worker("first"):
        department.until(lambda: department.nothing_waits(), "the work is done")
    for unit in running:
        department.store.set_unit(unit.unit, State.RUNNING)
    department.store.set_delivery(analysed.unit, "pacs", "pending", at=time.time())
    seen = department.store.unit(running[0].unit)
    assert seen is not None
    assert department.store.retry_unit(seen) is not None
    assert department.store.retry_unit(seen) is None
    again = department.store.unit(seen.unit)
    assert again is not None
    assert again.tries == seen.tries + 1
    with department.worker("second"), department.worker("third"):
        department.until(department.nothing_waits, "the work is done")
    assert {unit.tries for unit in map(department.store.unit, [each.unit for each in running]) if unit} == {1}


def test_what_has_just_been_written_down_is_left_to_whoever_queues_it(department: Department) -> None:
    unit = department.add()
    with department.worker():
        department.until(department.nothing_waits, "what nobody queued is done")
    looks = department.lines("queued")
    assert looks[: looks.index("1") + 1] == ["0", "1"], "not at the first look, when it may be about to be queued"
    assert department.state(unit) == "reported"
    assert department.lines("runs") == ["first"]


def test_of_what_was_lost_that_which_has_waited_longest_goes_first(department: Department) -> None:
    newest_first = [department.add(number, created_at=10.0 - number) for number in range(4)]
    (department.folder / "hang").touch()

    def running() -> set[str]:
        return {unit.unit for unit in department.store.units(states=[State.RUNNING])}

    with department.worker():
        department.until(lambda: len(running()) == department.settings.worker.concurrency, "as many as it takes run")
        assert running() == {unit.unit for unit in newest_first[-2:]}


def test_a_lost_queue_loses_neither_units_nor_deliveries(department: Department) -> None:
    queued, analysed = department.add(1), department.add(2)
    department.enqueue(queued)
    department.analyse_here(analysed)
    for file in department.settings.queue_file.parent.glob("queue.sqlite*"):
        file.unlink()
    with department.worker():
        department.until(department.nothing_waits, "the work is done")
    assert department.state(queued) == "reported"
    assert department.lines("runs") == ["first"]
    assert sorted(department.lines("sent.pacs")) == sorted([queued.unit, analysed.unit])


def test_work_of_another_version_is_cancelled_and_done_by_this_one(
    department: Department, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = department.add()
    with monkeypatch.context() as older:
        older.setattr(workflow, "VERSION", "0")
        department.enqueue(unit)
    assert department.statuses("0/") == ["ENQUEUED"]
    with department.worker():
        department.until(department.nothing_waits, "the work is done")
    assert department.statuses("0/") == ["CANCELLED"]
    assert department.state(unit) == "reported"
    assert department.lines("runs") == ["first"]
    assert department.lines("sent.pacs") == [unit.unit]


def test_a_destination_that_never_answers_holds_up_no_other(tmp_path: Path) -> None:
    department = Department(tmp_path, ["mute", "pacs"])
    units = [department.add(number) for number in range(3)]
    department.enqueue(*units)
    with closing(department.store), department.worker():
        department.until(lambda: len(department.lines("sent.pacs")) == len(units), "the other one gets every result")
        assert len(department.lines("sent.mute")) == 1
        assert [department.state(unit) for unit in units] == ["reported"] * len(units)


def test_without_an_inference_server_a_unit_fails_in_the_end_and_a_retry_reports_it(department: Department) -> None:
    unit = department.add()
    away = department.folder / "away"
    away.touch()
    department.enqueue(unit)
    with department.worker():
        department.until(lambda: department.state(unit) == "failed", "the unit is given up")
        assert department.lines("runs") == ["first"] * department.settings.worker.analysis_attempts
        away.unlink()
        with closing(workflow.QueueClient(department.settings)) as client:
            failed = department.store.unit(unit.unit)
            assert failed is not None
            assert workflow.retry(department.store, client, failed)
            assert not workflow.retry(department.store, client, failed), "it has not failed any more"
        department.until(department.nothing_waits, "the work is done")
    assert department.state(unit) == "reported"
    assert department.lines("sent.pacs") == [unit.unit]
