"""When a study is complete, and what then becomes of it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from instances import CT, make_instance, received
from packages import write_package
from pydicom import Dataset
from pydicom.uid import generate_uid
from spooled import Spooled, open_spool
from stepwedge import metrics
from stepwedge.dicom.studies import StudyCloser, read_revision, restore_revisions
from stepwedge.manifest import Package, load_package
from stepwedge.records import State
from stepwedge.settings import Completeness
from stepwedge.store import Revision, Unit
from structlog.testing import capture_logs

QUIET = 10.0
LONG = 1000.0


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return load_package(write_package(tmp_path_factory.mktemp("package")))


@dataclass
class Department:
    """A node, what stands in for the queue, and a clock that the test turns."""

    node: Spooled
    models: list[Package]
    queued: list[Unit] = field(default_factory=list)
    sending: set[str] = field(default_factory=set)
    queue_is_away: bool = False
    clock: float = field(default_factory=time.time)
    monotonic: float = 100.0
    study_uid: str = field(default_factory=generate_uid)

    def __post_init__(self) -> None:
        self.closer = StudyCloser(
            settings=Completeness(quiet_seconds=QUIET, quiet_seconds_by_modality={"CT": 60, "US": 2}),
            spool=self.node.spool,
            store=self.node.store,
            models=self.models,
            is_sending=self.sending.__contains__,
            enqueue=self._enqueue,
        )

    def _enqueue(self, unit: Unit) -> None:
        if self.queue_is_away:
            raise ConnectionError("the queue is away")
        self.queued.append(unit)

    @property
    def study(self) -> str:
        return self.node.site.hash(self.study_uid)

    def send(self, dataset: Dataset | None = None, **kind: object) -> None:
        """An instance of the study arrives."""
        dataset = dataset or make_instance(study=self.study_uid, seed=len(self.node.files()), **kind)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("stepwedge.dicom.spool.time.time", lambda: self.clock)
            self.node.spool.store(received(dataset))

    def wait(self, seconds: float = QUIET + 1) -> list[Unit]:
        """Time passes, and the closer looks."""
        made = self.closer.close_complete(self.clock, self.monotonic)
        self.clock += seconds
        self.monotonic += seconds
        return made + self.closer.close_complete(self.clock, self.monotonic)

    def revision(self, number: int) -> Revision | None:
        return self.node.store.revision(self.study, number)

    def is_open(self) -> bool:
        study = self.node.store.study(self.study)
        assert study is not None
        return study.open


@pytest.fixture
def department(tmp_path: Path, package: Package) -> Iterator[Department]:
    with open_spool(tmp_path, [package]) as node:
        yield Department(node, [package])


# Completeness


def test_a_study_is_closed_once_it_was_quiet_for_its_period(department: Department) -> None:
    department.send()
    department.send()
    assert department.wait(QUIET - 1) == []
    (unit,) = department.wait(2)
    assert (unit.study, unit.revision, unit.state) == (department.study, 1, State.QUEUED)
    assert department.node.store.units() == [unit]
    assert department.queued == [unit]
    revision = department.revision(1)
    assert revision is not None
    assert {department.node.settings.data_dir / path for path in revision.paths} == set(department.node.files())
    assert not department.is_open()
    assert department.wait(LONG) == []


def test_each_new_instance_starts_the_quiet_period_again(department: Department) -> None:
    department.send()
    department.wait(QUIET - 1)
    department.send()
    assert department.wait(QUIET - 1) == []
    assert len(department.wait(2)) == 1


def test_a_study_takes_the_longest_period_of_its_modalities(department: Department) -> None:
    department.send()
    department.send(modality="CT", sop_class=CT)
    assert department.wait(59) == []
    assert len(department.wait(2)) == 1


def test_a_period_may_be_shorter_than_the_common_one(department: Department) -> None:
    department.send(modality="US")
    department.wait(3)
    assert not department.is_open()


def test_a_study_waits_for_the_association_that_sends_it_but_not_without_end(department: Department) -> None:
    department.send()
    department.sending.add(department.study)
    assert department.wait(200) == []
    assert len(department.wait(101)) == 1, "open_association_seconds is 300"


def test_a_study_is_closed_at_once_when_its_association_has_ended(department: Department) -> None:
    department.send()
    department.sending.add(department.study)
    assert department.wait(50) == []
    department.sending.clear()
    assert len(department.wait(0)) == 1


def test_a_clock_that_was_set_back_holds_no_study_for_ever(department: Department) -> None:
    department.send()
    department.clock -= 365 * 86400
    assert department.wait(QUIET - 1) == []
    assert len(department.wait(2)) == 1


# Routing and revisions


def test_a_study_that_no_model_selects_is_closed_and_counted(department: Department) -> None:
    before = metrics.STUDIES_COMPLETED.labels("not_routed")._value.get()
    department.send(modality="CT", sop_class=CT)
    assert department.wait(LONG) == []
    assert not department.is_open()
    assert department.revision(1) is None
    study = department.node.store.study(department.study)
    assert study is not None
    assert study.revision == 0
    assert metrics.STUDIES_COMPLETED.labels("not_routed")._value.get() == before + 1


def test_a_late_instance_makes_a_revision_with_everything_in_it(department: Department) -> None:
    department.send()
    department.wait()
    department.send()
    (unit,) = department.wait()
    assert unit.revision == 2
    revision = department.revision(2)
    assert revision is not None
    assert len(revision.paths) == 2


@pytest.mark.parametrize("kind", ["SR", "KO", "PR", "our own", "other modality", "without pixels"])
def test_late_objects_that_no_model_selects_make_no_revision(department: Department, kind: str) -> None:
    department.send()
    department.wait()
    modality = kind if len(kind) == 2 else "CT" if kind == "other modality" else "DX"
    dataset = make_instance(study=department.study_uid, modality=modality, pixels=kind in {"our own", "other modality"})
    if kind == "our own":
        dataset.Manufacturer = "Stepwedge"
    department.send(dataset)
    assert not department.is_open()
    assert department.wait(LONG) == []
    assert department.revision(2) is None


def test_documents_that_come_with_the_images_are_no_part_of_the_revision(department: Department) -> None:
    department.send()
    department.send(modality="SR", pixels=False)
    department.wait()
    revision = department.revision(1)
    assert revision is not None
    assert len(revision.paths) == 1


def test_another_content_of_an_instance_makes_a_revision_with_the_newer_one(department: Department) -> None:
    dataset = make_instance(study=department.study_uid)
    department.send(dataset)
    department.wait()
    dataset.ViewPosition = "AP"
    department.send(dataset)
    assert len(department.wait()) == 1
    first, second = department.revision(1), department.revision(2)
    assert first is not None
    assert second is not None
    assert len(first.paths) == len(second.paths) == 1
    assert first.paths != second.paths


def test_a_resend_of_the_same_makes_no_revision(department: Department) -> None:
    dataset = make_instance(study=department.study_uid)
    department.send(dataset)
    department.wait()
    department.send(dataset)
    assert department.wait(LONG) == []


def test_a_unit_is_made_for_each_model_that_selects_something(tmp_path: Path, package: Package) -> None:
    use = {"summary": "Tests only", "modality": ["CT"]}
    other = load_package(write_package(tmp_path / "other", name="other", manifest={"intended_use": use}))
    third = load_package(write_package(tmp_path / "third", name="third"))
    with open_spool(tmp_path / "data", [package, other, third]) as node:
        department = Department(node, [package, other, third])
        department.send()
        assert {unit.model_name for unit in department.wait()} == {"tiny", "third"}


def test_a_study_whose_model_is_no_longer_configured_is_closed_without_work(tmp_path: Path, package: Package) -> None:
    with open_spool(tmp_path, [package]) as node:
        department = Department(node, [])
        department.send()
        assert department.wait() == []
        assert not department.is_open()


def test_an_instance_that_comes_while_the_study_is_closed_keeps_it_open(
    department: Department, monkeypatch: pytest.MonkeyPatch
) -> None:
    department.send()
    write = department.node.spool.write_beside
    sent_at = department.clock

    def write_while_one_arrives(path: Path, contents: bytes) -> None:
        write(path, contents)
        monkeypatch.undo()
        # Even with the very same time, as a clock that was set back may give it.
        department.clock, now = sent_at, department.clock
        department.send()
        department.clock = now

    monkeypatch.setattr(department.node.spool, "write_beside", write_while_one_arrives)
    assert department.wait() == []
    assert department.is_open()
    (unit,) = department.wait()
    revision = department.revision(1)
    assert revision is not None
    assert len(revision.paths) == 2
    assert read_revision(department.node.files("studies/*/*/revision-1.json")[0]).revision == revision
    assert department.queued == [unit]


# What a crash leaves


def test_the_revision_is_on_disk_before_the_index_has_it_and_is_finished_at_the_next_start(
    department: Department, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    def killed(*_: object, **__: object) -> bool:
        raise KilledError

    department.send()
    with monkeypatch.context() as patched:
        patched.setattr(department.node.store, "close_study", killed)
        with pytest.raises(KilledError):
            department.wait()
    (file,) = department.node.files("studies/*/*/revision-1.json")
    assert department.node.store.units() == []
    restarted = Department(department.node, department.models, study_uid=department.study_uid)
    restarted.closer.recover()
    assert restarted.wait() == []
    (unit,) = restarted.queued
    assert unit == read_revision(file).units[0]
    assert restarted.revision(1) == read_revision(file).revision
    assert not restarted.is_open()
    assert restarted.revision(2) is None


def test_units_that_were_not_queued_before_a_crash_are_queued_at_the_next_start(department: Department) -> None:
    department.queue_is_away = True
    department.send()
    (unit,) = department.wait()
    assert department.queued == []
    restarted = Department(department.node, department.models)
    restarted.closer.recover()
    restarted.wait()
    assert restarted.queued == [unit]


def test_a_queue_that_is_away_for_a_while_gets_the_units_later_and_once(department: Department) -> None:
    department.queue_is_away = True
    department.send()
    (unit,) = department.wait()
    department.wait()
    assert department.queued == []
    department.queue_is_away = False
    department.wait()
    department.wait()
    assert department.queued == [unit]


def test_ended_units_are_not_queued_again_at_a_start(department: Department) -> None:
    department.send()
    (unit,) = department.wait()
    department.node.store.set_unit(unit.unit, State.REPORTED, at=1.0)
    restarted = Department(department.node, department.models)
    restarted.closer.recover()
    restarted.wait()
    assert restarted.queued == []


def test_revisions_and_units_come_back_from_files_when_the_database_is_lost(tmp_path: Path, package: Package) -> None:
    with open_spool(tmp_path, [package]) as node:
        department = Department(node, [package])
        department.send()
        department.wait()
        department.send()
        department.wait()
        revisions, units = [department.revision(number) for number in (1, 2)], node.store.units()
    for file in (tmp_path / "db").iterdir():
        file.unlink()
    with open_spool(tmp_path, [package]) as node:
        lost = Department(node, [package], study_uid=department.study_uid)
        lost.closer.recover()
        assert [lost.revision(number) for number in (1, 2)] == revisions
        assert node.store.units() == units
        lost.wait()
        assert {unit.unit for unit in lost.queued} == {unit.unit for unit in units}
        assert not lost.is_open()
        lost.send()
        assert [unit.revision for unit in lost.wait()] == [3]


def test_a_revision_file_that_cannot_be_read_stops_nothing(department: Department) -> None:
    department.send()
    department.wait()
    (file,) = department.node.files("studies/*/*/revision-1.json")
    for number, text in enumerate(["", "{}", '{"schema": 9}', "[]", json.dumps({"schema": 1, "revision": {}})], 2):
        file.with_name(f"revision-{number}.json").write_text(text)
    assert restore_revisions(department.node.spool, department.node.store) == 0


def test_a_study_that_cannot_be_closed_holds_up_no_other(
    department: Department, monkeypatch: pytest.MonkeyPatch
) -> None:
    department.send()
    other = make_instance()
    department.send(other)
    write = department.node.spool.write_beside

    def full(path: Path, contents: bytes) -> None:
        if path.parent.name == department.study:
            raise OSError(28, "No space left on device")
        write(path, contents)

    with monkeypatch.context() as patched:
        patched.setattr(department.node.spool, "write_beside", full)
        (unit,) = department.wait()
        assert unit.study == department.node.site.hash(other.StudyInstanceUID)
    (unit,) = department.wait()
    assert unit.study == department.study


def test_a_failure_that_lasts_is_logged_once_and_again_when_it_comes_back(
    department: Department, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, contents: bytes) -> None:
        raise OSError(28, "No space left on device")

    department.send()
    with capture_logs() as lines:
        with monkeypatch.context() as patched:
            patched.setattr(department.node.spool, "write_beside", full)
            for _ in range(5):
                department.wait()
        department.queue_is_away = True
        for _ in range(5):
            department.wait()
        department.queue_is_away = False
        department.wait()
        department.queue_is_away = True
        department.send()
        department.wait()
    events = [line["event"] for line in lines if line["log_level"] == "error"]
    assert events == ["study_cannot_be_closed", "unit_cannot_be_queued", "unit_cannot_be_queued"]


def test_what_a_killed_process_left_is_finished_beside_receiving_and_tried_until_it_works(
    department: Department, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(department.node.store, "add_instance", lambda _: (_ for _ in ()).throw(ConnectionError))
        with pytest.raises(ConnectionError):
            department.send()
    restarted = Department(department.node, department.models, study_uid=department.study_uid)
    reconcile, tries, compared, stop = department.node.spool.reconcile, [1, 2], threading.Event(), threading.Event()

    def away_at_first(stop: threading.Event | None) -> int:
        if tries:
            raise ConnectionError(tries.pop())
        found = reconcile(stop)
        compared.set()
        return found

    monkeypatch.setattr(department.node.spool, "reconcile", away_at_first)
    looking = threading.Thread(target=restarted.closer.run, args=(stop,))
    looking.start()
    try:
        department.send(make_instance())  # nobody waits for the comparison
        assert compared.wait(60)
    finally:
        stop.set()
        looking.join()
    assert len(department.node.store.instances(department.study)) == 1


def test_a_comparison_of_spool_and_index_ends_when_it_is_asked_to(department: Department) -> None:
    department.send()
    for file in department.node.files("../db/*"):
        file.unlink()
    stop = threading.Event()
    stop.set()
    with open_spool(department.node.settings.data_dir) as node:
        assert node.spool.reconcile(stop) == 0
        assert node.spool.reconcile() == 1


def test_no_file_of_a_revision_holds_an_identifier(department: Department) -> None:
    department.send()
    department.wait()
    (file,) = department.node.files("studies/*/*/revision-1.json")
    assert department.study_uid not in file.read_text()
    assert "SECRET" not in file.read_text().upper()
