"""A node that holds studies gets a new site key: what comes late of them finds them, and new ones have new names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pydicom
import pytest
from packages import write_package, write_policy
from peers import Orthanc
from pydicom.sr.coding import Code
from sender import BRIGHT, DARK, make_study, send_once
from stepwedge.identity import load_site
from stepwedge.observation import Label
from verified_reports import PRESENT, evaluation, group, measurement_report

from service import Service, destination, settings_for, until

ILLNESS = Code("39104002", "SCT", "Illness")  # the finding of the model


@pytest.fixture
def service(tmp_path: Path) -> Service:
    package, policy = write_package(tmp_path / "package"), write_policy(tmp_path / "policy.yaml")
    return Service(tmp_path / "service", settings_for(package, policy, []))


def test_a_node_that_holds_studies_goes_on_under_a_new_key(service: Service, tmp_path: Path) -> None:
    (tmp_path / "orthanc").mkdir()
    with Orthanc.started(tmp_path / "orthanc") as pacs:
        values = settings_for(
            service.settings.models[0].package, service.settings.models[0].policy, [destination(pacs.dicom_port)]
        )
        values["models"] = [{name: str(value) for name, value in values["models"][0].items()}]
        service = Service(tmp_path / "service", values)
        port = service.settings.node.port
        old, reader = make_study(tmp_path, 1, DARK), "Invented^Reader"
        service.start()
        try:
            assert send_once(port, old.file) == 0
            ended(service, old.study_uid, 1)
            assert send_once(port, report_on(old.file, tmp_path / "first.dcm", reader)) == 0
            until(lambda: labels(service, old.study_uid), "the label is there", service)
            refused = subprocess.run(
                [sys.executable, "-m", "stepwedge", "keys", "rotate", "--config", str(service.file)],
                check=False, capture_output=True, text=True,
            )  # fmt: skip
            assert refused.returncode == 2
            assert "stop it first" in refused.stderr
        finally:
            assert service.stop() == 0
        before = load_site(service.settings.data_dir)
        service.command("keys", "rotate")
        site = load_site(service.settings.data_dir)
        assert site.older == (before.key,)

        service.start()
        try:
            assert send_once(port, old.file) == 0, "again, which changes nothing"
            late = make_study(tmp_path, 2, BRIGHT, study_uid=old.study_uid, patient=1)
            assert send_once(port, late.file) == 0
            new = make_study(tmp_path, 3, BRIGHT)
            assert send_once(port, new.file) == 0
            ended(service, new.study_uid, 1)
            ended(service, old.study_uid, 2)
            assert send_once(port, report_on(old.file, tmp_path / "second.dcm", reader)) == 0
            until(lambda: len(labels(service, old.study_uid)) == 2, "the late label is there", service)
            until(lambda: all_delivered(service, 3), "all is delivered", service)
        finally:
            assert service.stop() == 0

        names = {old.study_uid: before.hash(old.study_uid), new.study_uid: site.hash(new.study_uid)}
        assert studies(service) == names
        with service.store() as store:
            assert store.count_contents(names[old.study_uid]) == 4  # two images, two reports of the reader
            revisions = [unit.revision for unit in store.units(study=names[old.study_uid])]
        assert revisions == [1, 2]
        assert len({label.reader for label in labels(service, old.study_uid)}) == 1
        for uid, name in names.items():
            assert json.loads(service.command("study", name, "--json"))["study_uid"] == uid
            assert json.loads(service.command("study", uid, "--json"))["study"] == name
        of_the_old = sorted(str(item.StudyInstanceUID) for item in delivered(service))
        assert of_the_old.count(old.study_uid) == 2

        service.command("index", "rebuild")
        assert studies(service) == names
        service.command("backup", str(tmp_path / "node.tar"))
        values["data_dir"] = "again"
        again = Service(tmp_path / "service", values)
        again.command("restore", str(tmp_path / "node.tar"))
        assert load_site(again.settings.data_dir) == site
        assert studies(again) == names


def ended(service: Service, uid: str, revision: int) -> None:
    def look() -> bool:
        with service.store() as store:
            study = store.study_by_uid(uid)
            units = store.units(study=study.study) if study else []
        return any(unit.revision == revision and unit.ended_at is not None for unit in units)

    until(look, f"revision {revision} has ended", service)


def studies(service: Service) -> dict[str, str]:
    with service.store() as store:
        return {study.study_uid: study.study for study in store.studies()}


def labels(service: Service, uid: str) -> list[Label]:
    with service.store() as store:
        study = store.study_by_uid(uid)
        return [Label.from_json(body) for body in store.labels(study.study)] if study else []


def all_delivered(service: Service, count: int) -> bool:
    with service.store() as store:
        return [item.state for item in store.deliveries()] == ["delivered"] * count


def delivered(service: Service) -> list[pydicom.Dataset]:
    """The structured reports that were written."""
    files = (service.settings.data_dir / "results").glob("*/*.dcm")
    return [item for item in map(pydicom.dcmread, files) if item.Modality == "SR"]


def report_on(image: Path, file: Path, reader: str) -> Path:
    """A radiologist's verified report in the study of an image."""
    report = measurement_report(group(ILLNESS, evaluation(PRESENT)), reader=reader)
    report.StudyInstanceUID = pydicom.dcmread(image, stop_before_pixels=True).StudyInstanceUID
    report.save_as(file, enforce_file_format=True)
    return file
