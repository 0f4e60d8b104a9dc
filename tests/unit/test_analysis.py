"""A unit of work becomes one result folder: whole, once, and the same whoever asks again."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pydicom
import pytest
from instances import write_file
from numpy.typing import NDArray
from packages import write_package, write_policy
from pydicom import Dataset
from radiographs import BRIGHT, DARK, GREY, IDENTIFIERS, radiograph
from stepwedge.analysis import (
    analyse_unit,
    delivered_at,
    published_units,
    read_published,
    receipt,
    remove_unfinished,
)
from stepwedge.errors import InferenceRefusedError, InferenceUnavailableError
from stepwedge.identity import Site, load_site
from stepwedge.inference.engine import OnnxEngine
from stepwedge.manifest import load_package
from stepwedge.observation import Observation
from stepwedge.pipeline import Equipment
from stepwedge.policy import load_policy
from stepwedge.records import REASONS, ModelReference, State, UnitResult
from stepwedge.settings import Settings
from stepwedge.store import Revision, Unit, unit_id

STUDY_UID = "1.2.826.0.1.3680043.8.498.77"
STUDY = "ab" * 16  # its keyed hash


class Department:
    """A data folder with one study, and one model."""

    def __init__(self, folder: Path, equipment: Equipment) -> None:
        self.settings = Settings(data_dir=folder)
        self.site: Site = load_site(folder)
        self.equipment = equipment

    def revision(self, *datasets: Dataset, number: int = 1) -> Revision:
        """The study with these images in the spool."""
        paths = []
        for index, dataset in enumerate(datasets):
            path = f"spool/studies/ab/{STUDY}/{index:032x}.{number:016x}.dcm"
            write_file(dataset, self.settings.data_dir / path)
            paths.append(path)
        return Revision(study=STUDY, revision=number, closed_at=2.0, last_instance_at=1.0, paths=tuple(paths))

    def unit(self, revision: Revision) -> Unit:
        digest = self.equipment.package.digest
        return Unit(
            unit=unit_id(STUDY, revision.revision, digest),
            study=STUDY,
            revision=revision.revision,
            model_name="tiny",
            model_digest=digest,
            created_at=2.0,
            last_instance_at=1.0,
        )

    def analyse(self, revision: Revision) -> tuple[UnitResult, Observation]:
        result, observation = analyse_unit(
            self.unit(revision), revision, settings=self.settings, site=self.site, equipment=self.equipment
        )
        return result, Observation.from_json(observation)

    def folder(self, revision: Revision) -> Path:
        return self.settings.data_dir / "results" / self.unit(revision).unit

    def results(self) -> list[str]:
        return sorted(path.name for path in (self.settings.data_dir / "results").glob("*"))


@pytest.fixture(scope="module")
def equipment(tmp_path_factory: pytest.TempPathFactory) -> Equipment:
    folder = tmp_path_factory.mktemp("tiny")
    package = load_package(write_package(folder / "tiny"))
    policy = load_policy(write_policy(folder / "policy.yaml"), package.manifest)
    return Equipment(package=package, engine=OnnxEngine(package, "cpu", threads=1), policy=policy)


@pytest.fixture
def department(tmp_path: Path, equipment: Equipment) -> Department:
    return Department(tmp_path / "data", equipment)


def image_of_study(brightness: float, **attributes: Any) -> Dataset:
    dataset = radiograph(brightness, study=STUDY_UID)
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


class Failing:
    """An engine that raises: nobody can order a real one to."""

    model = ModelReference(name="tiny", version="1.0.0", digest="0")

    def __init__(self, error: Exception) -> None:
        self._error = error

    def run(
        self, inputs: Mapping[str, NDArray[np.float32]], *, urgent: bool = False
    ) -> tuple[dict[str, NDArray[np.float32]], str]:
        raise self._error


class TestAPublishedResult:
    def test_it_holds_the_objects_the_result_the_observation_and_the_unit(self, department: Department) -> None:
        revision = department.revision(image_of_study(BRIGHT))
        result, observation = department.analyse(revision)
        published = read_published(department.settings, department.unit(revision).unit)
        assert published is not None
        assert published.result == result
        assert published.unit.state is State.REPORTED
        assert published.unit.ended_at is not None
        assert Observation.from_json(published.observation) == observation
        assert [item.kind for item in published.objects] == ["sr", "sc"]
        for item in published.objects:
            written = pydicom.dcmread(item.path)
            assert written.SOPInstanceUID == item.sop_instance_uid
            assert written.SOPClassUID == item.sop_class_uid
            assert written.StudyInstanceUID == STUDY_UID

    def test_asking_again_gives_the_same_bytes_and_runs_nothing(self, department: Department) -> None:
        revision = department.revision(image_of_study(BRIGHT))
        first = department.analyse(revision)
        before = contents(department.folder(revision))
        department.equipment = replace(department.equipment, engine=Failing(AssertionError("ran again")))
        assert department.analyse(revision) == first
        assert contents(department.folder(revision)) == before

    def test_made_anew_after_a_loss_its_objects_have_the_same_uids(self, department: Department) -> None:
        revision = department.revision(image_of_study(BRIGHT))
        uids = []
        for _ in range(2):
            department.analyse(revision)
            published = read_published(department.settings, department.unit(revision).unit)
            assert published is not None
            uids.append([item.sop_instance_uid for item in published.objects])
            shutil.rmtree(department.folder(revision))
        assert uids[0] == uids[1]
        assert len(set(uids[0])) == 2

    def test_two_workers_at_once_publish_one_result_and_both_are_given_it(self, department: Department) -> None:
        revision = department.revision(image_of_study(BRIGHT))
        together = threading.Barrier(2)
        given: list[tuple[UnitResult, Observation]] = []

        def work() -> None:
            together.wait()
            given.append(department.analyse(revision))

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(given) == 2
        assert given[0] == given[1]
        assert department.results() == [department.unit(revision).unit]

    def test_nothing_half_written_is_left_beside_it(self, department: Department) -> None:
        revision = department.revision(image_of_study(BRIGHT))
        department.analyse(revision)
        assert department.results() == [department.unit(revision).unit]
        assert set(contents(department.folder(revision))) == {"result.json", "sr.dcm", "sc.dcm"}

    @pytest.mark.parametrize("name", ["", ".{unit}.1234.5"])
    def test_a_folder_half_written_is_not_taken_for_a_result(self, department: Department, name: str) -> None:
        revision = department.revision(image_of_study(BRIGHT))
        unit = department.unit(revision).unit
        half = department.settings.data_dir / "results" / (name.format(unit=unit) or unit)
        half.mkdir(parents=True)
        if name:
            (half / "sr.dcm").write_bytes(b"half")
            (half / "result.json").write_text("{")
        assert read_published(department.settings, unit) is None
        assert list(published_units(department.settings)) == []
        result, _ = department.analyse(revision)
        assert result.state is State.REPORTED
        assert [item.unit.unit for item in published_units(department.settings)] == [unit]

    def test_no_identifier_is_in_the_result_or_the_observation(self, department: Department) -> None:
        dataset = image_of_study(BRIGHT)
        revision = department.revision(dataset)
        department.analyse(revision)
        values = json.loads((department.folder(revision) / "result.json").read_text(encoding="utf-8"))
        text = json.dumps([values["result"], values["observation"], values["unit"]])
        uids = {"series": str(dataset.SeriesInstanceUID), "sop": str(dataset.SOPInstanceUID), "study": STUDY_UID}
        for keyword, value in (IDENTIFIERS | uids).items():
            for part in value.split("^"):
                if len(part) > 1:
                    assert part not in text, keyword
        assert values["observation"]["station"] == department.site.hash(IDENTIFIERS["StationName"])


class TestStates:
    @pytest.mark.parametrize(
        ("dataset", "state", "reason", "kinds"),
        [
            (image_of_study(DARK), State.REPORTED, None, ["sr", "sc"]),
            (image_of_study(GREY), State.DEFERRED, "uncertain", ["sr", "sc"]),
            (image_of_study(BRIGHT, NumberOfFrames=2), State.REJECTED, "multi_frame", ["sr", "sc"]),
        ],
    )
    def test_each_end_but_failure_is_published(
        self, department: Department, dataset: Dataset, state: State, reason: str | None, kinds: list[str]
    ) -> None:
        revision = department.revision(dataset)
        result, observation = department.analyse(revision)
        assert result.state is state
        assert [item.code for item in result.reasons] == ([reason] if reason else [])
        assert observation.state == str(state)
        published = read_published(department.settings, department.unit(revision).unit)
        assert published is not None
        assert [item.kind for item in published.objects] == kinds

    @pytest.mark.parametrize(
        ("setting", "dataset"),
        [("deferred", image_of_study(GREY)), ("rejected", image_of_study(BRIGHT, NumberOfFrames=2))],
    )
    def test_where_no_report_is_wanted_there_is_a_result_without_objects(
        self, department: Department, setting: str, dataset: Dataset
    ) -> None:
        report = department.settings.report.model_copy(update={setting: False})
        department.settings = department.settings.model_copy(update={"report": report})
        revision = department.revision(dataset)
        department.analyse(revision)
        published = read_published(department.settings, department.unit(revision).unit)
        assert published is not None
        assert published.objects == ()

    def test_images_that_the_model_does_not_select_are_left_out(self, department: Department) -> None:
        revision = department.revision(image_of_study(BRIGHT, Modality="CT"), image_of_study(DARK))
        result, _ = department.analyse(revision)
        assert len(result.images) == 1
        assert result.images[0].instance == f"{1:032x}"

    def test_the_observation_says_how_long_each_stage_took(self, department: Department) -> None:
        _, observation = department.analyse(department.revision(image_of_study(BRIGHT), image_of_study(DARK)))
        assert {"decode", "infer", "analyse", "report"} <= observation.ms.keys()
        assert observation.images == 2


class TestThePicture:
    """A report shows one image: the one that its answer comes from."""

    @staticmethod
    def shown(department: Department, *images: Dataset) -> float:
        """The mean of the picture in the report of a study of these images."""
        seen: list[float] = []

        def written(_folder: Path, _result: UnitResult, _evidence: object, picture: Any, **_: object) -> list[Any]:
            seen.append(float(picture.mean()))
            return []

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("stepwedge.analysis.write_report", written)
            department.analyse(department.revision(*images))
        (mean,) = seen
        return mean

    @pytest.mark.parametrize(
        ("levels", "wanted"),
        [
            pytest.param((DARK, 0.75, BRIGHT), BRIGHT, id="acted upon"),
            pytest.param((BRIGHT, 0.75, DARK), BRIGHT, id="whatever the order"),
            pytest.param((DARK, GREY), GREY, id="deferred"),
            pytest.param((DARK, 0.15), DARK, id="cleared"),
        ],
    )
    def test_it_is_the_image_of_the_largest_probability(
        self, department: Department, levels: tuple[float, ...], wanted: float
    ) -> None:
        mean = self.shown(department, *(image_of_study(level) for level in levels))
        assert mean == pytest.approx(wanted, abs=0.01)

    def test_an_image_that_the_gate_accepts_goes_before_one_that_it_defers(self, department: Department) -> None:
        package = department.equipment.package
        use = package.manifest.intended_use.model_copy(update={"age_years": (18.0, 120.0)})
        adults = package.model_copy(update={"manifest": package.manifest.model_copy(update={"intended_use": use})})
        department.equipment = replace(department.equipment, package=adults)
        child, adult = image_of_study(BRIGHT, PatientAge="005Y"), image_of_study(DARK, PatientAge="050Y")
        for dataset in (child, adult):
            dataset.PatientBirthDate = ""
        assert self.shown(department, child, adult) == pytest.approx(DARK, abs=0.01)


class TestAFailedUnit:
    def test_an_instance_that_is_gone_fails_it_although_others_are_there(self, department: Department) -> None:
        revision = department.revision(image_of_study(BRIGHT), image_of_study(DARK))
        (department.settings.data_dir / revision.paths[1]).unlink()
        result, observation = department.analyse(revision)
        assert result.state is State.FAILED
        assert [reason.code for reason in result.reasons] == ["instance_missing"]
        assert result.findings == ()
        assert observation.state == "failed"
        assert observation.reasons == ("instance_missing",)

    def test_it_publishes_nothing_and_can_be_tried_again(self, department: Department) -> None:
        revision = department.revision(image_of_study(BRIGHT))
        engine = department.equipment.engine
        department.equipment = replace(department.equipment, engine=Failing(InferenceRefusedError("no")))
        result, _ = department.analyse(revision)
        assert [reason.code for reason in result.reasons] == ["inference_refused"]
        assert department.results() == []
        department.equipment = replace(department.equipment, engine=engine)
        assert department.analyse(revision)[0].state is State.REPORTED

    def test_a_report_that_cannot_be_written_fails_it_and_leaves_nothing(self, department: Department) -> None:
        another = image_of_study(BRIGHT)
        another.StudyInstanceUID = "1.2.826.0.1.3680043.8.498.78"  # no report is about two studies
        result, observation = department.analyse(department.revision(image_of_study(BRIGHT), another))
        assert result.state is State.FAILED
        assert [reason.code for reason in result.reasons] == ["report_failed"]
        assert result.findings == ()
        assert (observation.state, observation.reasons) == ("failed", ("report_failed",))
        assert department.results() == []

    def test_an_inference_server_that_is_away_leaves_nothing(self, department: Department) -> None:
        revision = department.revision(image_of_study(BRIGHT))
        department.equipment = replace(department.equipment, engine=Failing(InferenceUnavailableError("away")))
        with pytest.raises(InferenceUnavailableError):
            department.analyse(revision)
        assert department.results() == []


class TestRevisions:
    def test_the_second_names_the_first_as_its_predecessor(self, department: Department) -> None:
        reports = []
        for number, datasets in ((1, [DARK]), (2, [DARK, BRIGHT])):
            revision = department.revision(*(image_of_study(value) for value in datasets), number=number)
            department.analyse(revision)
            reports.append(pydicom.dcmread(department.folder(revision) / "sr.dcm"))
        first, second = reports
        assert "PredecessorDocumentsSequence" not in first
        (named,) = second.PredecessorDocumentsSequence
        assert named.StudyInstanceUID == STUDY_UID
        (series,) = named.ReferencedSeriesSequence
        assert series.SeriesInstanceUID == first.SeriesInstanceUID
        assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == first.SOPInstanceUID
        assert first.SOPInstanceUID != second.SOPInstanceUID

    def test_a_revision_without_a_report_is_passed_over(self, department: Department) -> None:
        reports = {}
        for number in (1, 2, 3):
            revision = department.revision(image_of_study(DARK), number=number)
            if number != 2:  # the second failed
                department.analyse(revision)
                reports[number] = pydicom.dcmread(department.folder(revision) / "sr.dcm")
        (named,) = reports[3].PredecessorDocumentsSequence
        (referenced,) = named.ReferencedSeriesSequence[0].ReferencedSOPSequence
        assert referenced.ReferencedSOPInstanceUID == reports[1].SOPInstanceUID


class TestReceipts:
    def test_a_destination_that_took_the_result_is_remembered_and_no_other(self, department: Department) -> None:
        revision = department.revision(image_of_study(DARK))
        department.analyse(revision)
        unit = department.unit(revision).unit
        assert delivered_at(department.settings, unit, "pacs") is None
        with receipt(department.settings, unit, "pacs") as keep:
            keep(1234.5)
        assert delivered_at(department.settings, unit, "pacs") == 1234.5
        assert delivered_at(department.settings, unit, "archive") is None

    def test_a_receipt_leaves_the_result_as_it_was(self, department: Department) -> None:
        revision = department.revision(image_of_study(DARK))
        department.analyse(revision)
        before = contents(department.folder(revision))
        with receipt(department.settings, department.unit(revision).unit, "pacs") as keep:
            keep(1234.5)
        after = contents(department.folder(revision))
        assert after.keys() - before.keys() == {"delivered.pacs.json"}
        assert {name: after[name] for name in before} == before


class TestPatients:
    """A study whose images name different patients gets no answer: whose it would be cannot be known."""

    ANOTHER: ClassVar = {"PatientName": "Plumtree^Araminta", "PatientID": "PID-8845", "PatientBirthDate": "19610301"}

    def test_images_of_two_patients_are_left_to_a_person_and_nothing_is_written_for_either(
        self, department: Department
    ) -> None:
        revision = department.revision(image_of_study(DARK), image_of_study(BRIGHT, **self.ANOTHER))
        result, observation = department.analyse(revision)
        assert result.state is State.DEFERRED
        assert [reason.code for reason in result.reasons] == ["patient_mismatch"]
        assert result.findings == ()
        assert (observation.state, observation.reasons) == ("deferred", ("patient_mismatch",))
        published = read_published(department.settings, department.unit(revision).unit)
        assert published is not None
        assert published.objects == ()
        assert set(contents(department.folder(revision))) == {"result.json"}

    @pytest.mark.parametrize("keyword", ["PatientName", "PatientID", "PatientBirthDate"])
    def test_one_attribute_that_differs_is_enough(self, department: Department, keyword: str) -> None:
        another = image_of_study(BRIGHT, **{keyword: self.ANOTHER[keyword]})
        result, _ = department.analyse(department.revision(image_of_study(DARK), another))
        assert [reason.code for reason in result.reasons] == ["patient_mismatch"]

    def test_a_late_image_of_another_patient_ends_what_the_study_is_told(self, department: Department) -> None:
        first = department.revision(image_of_study(DARK))
        assert department.analyse(first)[0].state is State.REPORTED
        before = contents(department.folder(first))
        late = department.revision(image_of_study(DARK), image_of_study(BRIGHT, **self.ANOTHER), number=2)
        result, _ = department.analyse(late)
        assert result.state is State.DEFERRED
        assert [reason.code for reason in result.reasons] == ["patient_mismatch"]
        assert set(contents(department.folder(late))) == {"result.json"}
        assert contents(department.folder(first)) == before

    @pytest.mark.parametrize(
        "values",
        [
            pytest.param({"PatientName": IDENTIFIERS["PatientName"].upper()}, id="case"),
            pytest.param({"PatientName": IDENTIFIERS["PatientName"] + "^^^"}, id="carets"),
            pytest.param({"PatientName": IDENTIFIERS["PatientName"].replace("^", "^ ")}, id="blanks"),
            pytest.param({"PatientName": ""}, id="no name"),
            pytest.param({"PatientID": "", "PatientBirthDate": "", "IssuerOfPatientID": ""}, id="name only"),
        ],
    )
    def test_what_senders_write_differently_or_leave_out_is_the_same_patient(
        self, department: Department, values: dict[str, str]
    ) -> None:
        result, _ = department.analyse(department.revision(image_of_study(BRIGHT), image_of_study(BRIGHT, **values)))
        assert result.state is State.REPORTED

    def test_an_image_that_the_model_does_not_select_is_not_asked_whose_it_is(self, department: Department) -> None:
        other = image_of_study(BRIGHT, Modality="CT", **self.ANOTHER)
        result, _ = department.analyse(department.revision(image_of_study(DARK), other))
        assert result.state is State.REPORTED


class TestAnInstanceThatCannotBeParsed:
    def test_it_is_a_rejected_image_and_the_others_are_answered(self, department: Department) -> None:
        revision = department.revision(image_of_study(BRIGHT), image_of_study(DARK))
        (department.settings.data_dir / revision.paths[1]).write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
        result, observation = department.analyse(revision)
        answered, rejected = result.images
        assert answered.state is State.REPORTED
        assert rejected.state is State.REJECTED
        assert rejected.instance == f"{1:032x}"
        assert len(rejected.reasons) == 1
        assert rejected.reasons[0].code in REASONS
        assert result.state is State.REPORTED
        assert observation.images == 2
        published = read_published(department.settings, department.unit(revision).unit)
        assert published is not None
        assert [item.kind for item in published.objects] == ["sr", "sc"]

    def test_alone_it_is_a_rejected_study_without_objects(self, department: Department) -> None:
        revision = department.revision(image_of_study(BRIGHT))
        (department.settings.data_dir / revision.paths[0]).write_bytes(b"no DICOM at all")
        result, _ = department.analyse(revision)
        assert result.state is State.REJECTED
        published = read_published(department.settings, department.unit(revision).unit)
        assert published is not None
        assert published.objects == ()


class TestLeftovers:
    def test_what_a_killed_worker_left_is_removed_and_what_is_being_written_stays(self, department: Department) -> None:
        revision = department.revision(image_of_study(BRIGHT))
        department.analyse(revision)
        unit = department.unit(revision).unit
        folder = department.settings.data_dir / "results"
        left, written, aside = (folder / name for name in (".u.17.1", ".u.18.2", ".u.without-result.3"))
        for half in (left, written, aside):
            half.mkdir()
            (half / "sr.dcm").write_bytes(b"half")
        two_hours_ago = time.time() - 7200
        for old in (left, aside, folder / unit):
            os.utime(old, (two_hours_ago, two_hours_ago))
        assert remove_unfinished(department.settings) == 1
        assert department.results() == sorted([written.name, aside.name, unit])

    def test_before_the_first_result_there_are_none(self, department: Department) -> None:
        assert remove_unfinished(department.settings) == 0

    def test_a_folder_whose_result_was_taken_out_is_put_aside_and_the_result_is_made_again(
        self, department: Department
    ) -> None:
        revision = department.revision(image_of_study(BRIGHT))
        department.analyse(revision)
        unit = department.unit(revision).unit
        (department.folder(revision) / "result.json").unlink()
        assert read_published(department.settings, unit) is None
        result, _ = department.analyse(revision)
        assert result.state is State.REPORTED
        published = read_published(department.settings, unit)
        assert published is not None
        assert all(item.path.exists() for item in published.objects)
        aside, made = department.results()
        assert made == unit
        assert aside.startswith(f".{unit}.without-result.")
        assert set(contents(department.settings.data_dir / "results" / aside)) == {"sr.dcm", "sc.dcm"}
