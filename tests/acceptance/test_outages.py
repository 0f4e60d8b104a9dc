"""What happens when something around the service, or a part of it, is away for a while."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from packages import write_package, write_policy
from peers import Orthanc, free_ports
from sender import BRIGHT, DARK, MIDDLE, make_study, send
from stepwedge.analysis import read_published
from stepwedge.store import Unit

from service import Service, destination, settings_for, until


@pytest.fixture(scope="module")
def away_port() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def service(orthanc: Orthanc, away_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    values = settings_for(
        write_package(folder / "package"),
        write_policy(folder / "policy.yaml"),
        [
            destination(orthanc.dicom_port),
            destination(away_port, name="away"),
            destination(orthanc.dicom_port, name="clinical", demonstration=False),
        ],
    )
    running = Service(folder, values)
    running.start()
    yield running
    assert running.stop() == 0


def _ended(service: Service, study_uid: str, revision: int = 1) -> Unit:
    def look() -> Unit | None:
        with service.store() as store:
            study = store.study_by_uid(study_uid)
            units = store.units(study=study.study) if study else []
            return next((u for u in units if u.revision == revision and u.ended_at is not None), None)

    found: Unit = until(look, f"revision {revision} has ended", service)
    return found


def _delivery(service: Service, unit: str, name: str) -> tuple[str, int]:
    with service.store() as store:
        found = [item for item in store.deliveries(unit=unit) if item.destination == name]
    return (found[0].state, found[0].attempts) if found else ("", 0)


@pytest.mark.parametrize(("brightness", "state"), [(BRIGHT, "reported"), (MIDDLE, "deferred"), (DARK, "reported")])
def test_a_study_ends_in_the_state_that_its_picture_asks_for(
    service: Service, tmp_path: Path, brightness: float, state: str
) -> None:
    sent = make_study(tmp_path, int(brightness * 100), brightness)
    send(service.settings.node.port, sent.file)
    assert str(_ended(service, sent.study_uid).state) == state


def test_without_an_approved_policy_nothing_goes_to_a_clinical_destination(service: Service, tmp_path: Path) -> None:
    sent = make_study(tmp_path, 1)
    send(service.settings.node.port, sent.file)
    unit = _ended(service, sent.study_uid)
    until(lambda: _delivery(service, unit.unit, "clinical")[0] == "withheld", "it is withheld", service)
    until(lambda: _delivery(service, unit.unit, "pacs")[0] == "delivered", "it goes to the test PACS", service)


def test_a_late_image_makes_a_revision_that_names_the_one_before(
    service: Service, orthanc: Orthanc, tmp_path: Path
) -> None:
    first = make_study(tmp_path, 2)
    send(service.settings.node.port, first.file)
    _ended(service, first.study_uid)
    late = make_study(tmp_path, 3, study_uid=first.study_uid, patient=2)
    send(service.settings.node.port, late.file)
    unit = _ended(service, first.study_uid, revision=2)
    until(lambda: len(orthanc.instances(first.study_uid)) == 4, "both revisions are in the PACS", service)
    published = read_published(service.settings, unit.unit)
    assert published is not None
    assert len(published.result.images) == 2
    report = pydicom.dcmread(published.objects[0].path)
    named = report.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    earlier = read_published(service.settings, unit.unit.replace(".2.", ".1."))
    assert earlier is not None
    assert named.ReferencedSOPInstanceUID == earlier.objects[0].sop_instance_uid


def test_a_late_image_of_another_patient_is_reported_to_nobody(
    service: Service, orthanc: Orthanc, tmp_path: Path
) -> None:
    first = make_study(tmp_path, 8)
    send(service.settings.node.port, first.file)
    _ended(service, first.study_uid)
    until(lambda: len(orthanc.instances(first.study_uid)) == 2, "the first report is in the PACS", service)
    stray = make_study(tmp_path, 9, study_uid=first.study_uid)
    send(service.settings.node.port, stray.file)
    unit = _ended(service, first.study_uid, revision=2)
    assert (str(unit.state), unit.reasons) == ("deferred", ("patient_mismatch",))
    published = read_published(service.settings, unit.unit)
    assert published is not None
    assert published.objects == ()
    assert len(orthanc.instances(first.study_uid)) == 2


def test_the_same_study_sent_again_changes_nothing(service: Service, orthanc: Orthanc, tmp_path: Path) -> None:
    sent = make_study(tmp_path, 4)
    send(service.settings.node.port, sent.file)
    _ended(service, sent.study_uid)
    send(service.settings.node.port, sent.file)
    until(lambda: len(orthanc.instances(sent.study_uid)) == 2, "the report is there", service)
    with service.store() as store:
        study = store.study_by_uid(sent.study_uid)
        assert study is not None
        assert (study.revision, study.open) == (1, False)


def test_results_wait_for_a_pacs_that_is_down_and_go_there_when_it_is_back(
    service: Service, away_port: int, tmp_path: Path
) -> None:
    sent = [make_study(tmp_path, number) for number in (5, 6)]
    for each in sent:
        send(service.settings.node.port, each.file)
    units = [_ended(service, each.study_uid) for each in sent]
    for unit in units:
        until(lambda unit=unit: _delivery(service, unit.unit, "away")[1] >= 2, "it is tried again", service)
        assert _delivery(service, unit.unit, "away")[0] == "pending"
    folder = tmp_path / "orthanc"
    folder.mkdir()
    with Orthanc.started(folder, dicom_port=away_port) as back:
        for each, unit in zip(sent, units, strict=True):
            until(lambda unit=unit: _delivery(service, unit.unit, "away")[0] == "delivered", "it arrives", service)
            assert len(back.instances(each.study_uid)) == 2


def test_a_study_waits_for_an_inference_server_that_was_killed(service: Service, tmp_path: Path) -> None:
    service.kill("infer")
    sent = make_study(tmp_path, 7)
    send(service.settings.node.port, sent.file)
    assert str(_ended(service, sent.study_uid).state) == "reported"
    assert service.get("/readyz", "status") == 200
    assert 'stepwedge_role_restarts_total{role="infer"}' in service.get("/metrics")
