"""The database is an index: made again from the files, it says what it said before."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from instances import received
from packages import write_package, write_policy
from radiographs import BRIGHT, DARK, radiograph
from stepwedge import actions
from stepwedge.analysis import analyse_unit, receipt
from stepwedge.dicom.context import is_own_result
from stepwedge.dicom.spool import InstanceSpool
from stepwedge.dicom.studies import StudyCloser
from stepwedge.errors import PackageError, StepwedgeError, UnusableInstanceError
from stepwedge.identity import load_site
from stepwedge.inference.engine import OnnxEngine
from stepwedge.manifest import load_package
from stepwedge.observation import Label
from stepwedge.pipeline import Equipment
from stepwedge.policy import load_policy
from stepwedge.rebuild import rebuild_index
from stepwedge.records import State
from stepwedge.rundir import Heartbeat
from stepwedge.settings import Destination, Model, Settings
from stepwedge.store import Store

LONG_AGO = 0.0
MUCH_LATER = 1e6  # seconds: every quiet period is over


@dataclass
class Node:
    """A node with one model whose work is done by hand, step by step, as its roles do it."""

    settings: Settings
    store: Store
    spool: InstanceSpool
    closer: StudyCloser
    equipment: Equipment
    clock: float = LONG_AGO

    def receive(self, brightness: float, study: str | None = None, modality: str = "DX") -> str:
        dataset = radiograph(brightness, study=study)
        dataset.Modality = modality
        self.spool.store(received(dataset))
        return str(dataset.StudyInstanceUID)

    def close_studies(self) -> None:
        self.closer.close_complete(0.0, self.clock)
        self.clock += MUCH_LATER
        self.closer.close_complete(0.0, self.clock)

    def work(self) -> None:
        site = load_site(self.settings.data_dir)
        for unit in self.store.units(states=[State.QUEUED]):
            revision = self.store.revision(unit.study, unit.revision)
            assert revision is not None
            result, observation = analyse_unit(
                unit, revision, settings=self.settings, site=site, equipment=self.equipment
            )
            self.store.add_observation(unit.unit, observation)
            self.store.set_unit(unit.unit, result.state, [reason.code for reason in result.reasons], at=5.0)

    def deliver(self, unit: str, destination: str, at: float) -> None:
        with receipt(self.settings, unit, destination) as keep:
            keep(at)
        self.store.set_delivery(unit, destination, "delivered", at=at)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    package = load_package(write_package(tmp_path / "tiny"))
    policy_file = write_policy(tmp_path / "policy.yaml")
    settings = Settings(
        data_dir=tmp_path / "data",
        spool={"reserve_bytes": 0},
        models=[Model(package=package.path, policy=policy_file)],
        destinations=[
            Destination(name="pacs", host="h", port=104, ae_title="PACS", accepts_demonstration=True),
            Destination(name="archive", host="h", port=104, ae_title="ARCHIVE", accepts_demonstration=True),
            Destination(name="clinic", host="h", port=104, ae_title="CLINIC"),
        ],
    )
    store = Store.open_file(settings.database_file)
    spool = InstanceSpool(settings, load_site(settings.data_dir), store, [package.manifest], is_own_result)
    spool.prepare()
    closer = StudyCloser(
        settings=settings.completeness,
        spool=spool,
        store=store,
        models=[package],
        is_sending=lambda _: False,
        enqueue=lambda _: None,
    )
    equipment = Equipment(
        package=package,
        engine=OnnxEngine(package, "cpu", threads=1),
        policy=load_policy(policy_file, package.manifest),
    )
    yield Node(settings, store, spool, closer, equipment)
    store.close()


def rebuild(settings: Settings) -> str:
    """Without the hold on the data folder, which lasts as long as the process; the last test is about that."""
    with patch("stepwedge.rebuild.hold"):
        return rebuild_index(settings)


def index(settings: Settings) -> dict[str, Any]:
    """Everything that the database says, but for the order of arrival of rows and for what only the clock decides."""
    store = Store.open_file(settings.database_file)
    try:
        studies = {study.study: study for study in store.studies()}
        return {
            "instances": {name: store.instances(name) for name in studies},
            "contents": {name: store.instance_paths(name) for name in studies},
            "revisions": {key: store.revision(*key) for key in store.revision_keys()},
            "units": [(unit.unit, unit.state, unit.reasons, unit.created_at) for unit in store.units()],
            "deliveries": sorted((item.unit, item.destination, item.state) for item in store.deliveries()),
            "observations": sorted(body for _, body in store.observations()),
            "quarantine": store.quarantined(),
            "studies": {
                name: (study.study_uid, study.first_instance_at, study.last_instance_at, study.revision)
                for name, study in studies.items()
            },
        }
    finally:
        store.close()


def test_the_rebuilt_index_says_what_the_old_one_said(node: Node) -> None:
    first = node.receive(BRIGHT)
    node.receive(DARK)
    node.receive(DARK, modality="SR")
    node.close_studies()
    node.work()
    node.receive(DARK, study=first)
    node.close_studies()
    node.work()
    units = node.store.units()
    assert len(units) == 3
    for unit in units:
        node.deliver(unit.unit, "pacs", 1234.5)
        node.store.set_delivery(unit.unit, "archive", "pending", at=1.0)
        node.store.set_delivery(unit.unit, "clinic", "withheld", at=1.0)
    refused = received(radiograph(BRIGHT), data=b"rubbish")
    node.spool.quarantine.keep(refused, UnusableInstanceError("not_dicom", "rubbish"))
    before = index(node.settings)
    node.store.close()

    said = rebuild(node.settings)

    assert said.startswith("rebuilt: 4 instances, 3 revisions, 3 results")
    after = index(node.settings)
    for part, value in before.items():
        assert after[part] == value, part


def test_when_a_result_was_delivered_is_kept(node: Node) -> None:
    node.receive(BRIGHT)
    node.close_studies()
    node.work()
    (unit,) = node.store.units()
    node.deliver(unit.unit, "pacs", 1234.5)
    node.store.close()
    rebuild(node.settings)
    store = Store.open_file(node.settings.database_file)
    (delivery,) = (item for item in store.deliveries() if item.destination == "pacs")
    store.close()
    assert (delivery.state, delivery.updated_at) == ("delivered", 1234.5)


def test_work_that_had_not_ended_is_queued_again(node: Node) -> None:
    node.receive(BRIGHT)
    node.close_studies()
    (unit,) = node.store.units()
    node.store.set_unit(unit.unit, State.RUNNING)
    node.store.close()
    rebuild(node.settings)
    store = Store.open_file(node.settings.database_file)
    (again,) = store.units()
    store.close()
    assert again.unit == unit.unit
    assert again.state is State.QUEUED


def test_a_study_that_was_still_arriving_is_open(node: Node) -> None:
    node.receive(BRIGHT)
    node.store.close()
    rebuild(node.settings)
    store = Store.open_file(node.settings.database_file)
    (study,) = store.open_studies()
    store.close()
    assert study.revision == 0


def test_the_old_database_is_put_aside_and_named(node: Node) -> None:
    node.receive(BRIGHT)
    node.store.close()
    before = node.settings.database_file.read_bytes()
    said = rebuild(node.settings)
    aside = node.settings.database_file.with_name(said.rpartition(" ")[2])
    assert aside.read_bytes() == before


def test_without_a_database_it_makes_one(node: Node) -> None:
    node.receive(BRIGHT)
    node.store.close()
    for file in node.settings.database_file.parent.iterdir():
        file.unlink()
    assert rebuild(node.settings) == "rebuilt: 1 instances, 0 revisions, 0 results, 0 labels; there was no database"


def test_a_database_of_another_schema_is_no_obstacle(node: Node) -> None:
    node.receive(BRIGHT)
    node.store.close()
    with sqlite3.connect(node.settings.database_file) as database:
        database.execute("update schema set version = 99, works_from = 99")
    database.close()
    assert rebuild(node.settings).startswith("rebuilt: 1 instances")


def test_with_an_altered_package_it_is_refused_and_the_database_stays(node: Node) -> None:
    node.receive(BRIGHT)
    node.store.close()
    before = index(node.settings)
    (node.settings.models[0].package / "model.onnx").write_bytes(b"altered")
    with pytest.raises(PackageError, match=r"model\.onnx"):
        rebuild(node.settings)
    assert index(node.settings) == before


@pytest.mark.parametrize("role", ["listen", "work", "page"])
def test_it_is_refused_while_a_role_runs_alone(node: Node, role: str) -> None:
    node.store.close()
    heartbeat = Heartbeat(node.settings.data_dir, role)
    heartbeat.start()
    try:
        with pytest.raises(StepwedgeError, match=f"stepwedge {role} is using this data folder; stop it first"):
            rebuild(node.settings)
    finally:
        heartbeat.stop()


def test_it_is_refused_while_the_service_runs(node: Node) -> None:
    script = "import sys; from pathlib import Path; from stepwedge.rundir import hold; hold(Path(sys.argv[1])); "
    script += "print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(node.settings.data_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as service:
        assert service.stdout is not None
        assert service.stdout.readline() == "held\n"
        with pytest.raises(StepwedgeError, match="stop it first"):
            rebuild_index(node.settings)
        service.kill()


def test_labels_that_lie_in_no_file_are_taken_over_and_those_of_reports_are_read_again(node: Node) -> None:
    study = load_site(node.settings.data_dir).hash(node.receive(BRIGHT))
    for name, source in (("typed", "csv"), ("sent", "http"), ("reported", "sr")):
        label = Label(label=name, study=study, finding="a", value=1.0, time="2026-03-01T10:00:00+00:00", source=source)
        node.store.add_label(name, study, label.to_json())
    node.store.add_label("broken", study, "{")
    node.store.close()
    assert "2 labels" in rebuild(node.settings)
    store = Store.open_file(node.settings.database_file)
    try:
        assert [Label.from_json(body).source for body in store.labels(study)] == ["csv", "http"]
    finally:
        store.close()


def test_what_people_did_on_the_page_is_taken_over(node: Node) -> None:
    actions.note(node.store, actions.RETRY, "unit", who="ann", study="s")
    before = actions.latest(node.store, 9)
    node.store.close()
    rebuild(node.settings)
    store = Store.open_file(node.settings.database_file)
    try:
        assert actions.latest(store, 9) == before
    finally:
        store.close()


def test_an_old_database_that_cannot_be_read_costs_its_labels_and_nothing_else(node: Node) -> None:
    node.receive(BRIGHT)
    node.store.close()
    node.settings.database_file.write_bytes(b"broken" * 1000)
    assert "1 instances, 0 revisions, 0 results, 0 labels" in rebuild(node.settings)
