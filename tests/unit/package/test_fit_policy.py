"""A policy is fitted on the site's own accepted studies, whole or not at all, and keeps what a person wrote in it."""

from __future__ import annotations

import hashlib
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from instances import write_file
from packages import write_package, write_policy
from radiographs import IDENTIFIERS, radiograph, write_picture
from stepwedge.cli import main
from stepwedge.decision.costs import decide, thresholds
from stepwedge.errors import PolicyError
from stepwedge.gate.fitted import Gate, load_gate
from stepwedge.inference.engine import OnnxEngine
from stepwedge.manifest import Package, load_package
from stepwedge.package import fit_policy as fitting
from stepwedge.package.fit_policy import Fit, fit_policy
from stepwedge.package.site import approve
from stepwedge.policy import load_policy
from stepwedge.records import Decision
from stepwedge.signing import ensure_key

RATE = 0.1  # of false rejections, so that ten images are enough
TODAY = date(2026, 11, 24)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate's own fit has tests of its own, and takes its time."""
    monkeypatch.setattr(fitting, "fit_gate", lambda *_: Gate())


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return load_package(write_package(tmp_path / "tiny"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = write_policy(tmp_path / "site" / "policy.yaml")
    file.write_text("# what we agreed on\n" + file.read_text().replace("miss: 10", "miss: 10  # as bad as ten alarms"))
    return file


def pictures(folder: Path, count: int = 20) -> list[Path]:
    """Images of evenly spread brightness."""
    folder.mkdir(exist_ok=True)
    return [write_picture(folder / f"{i:03}.png", float(b)) for i, b in enumerate(np.linspace(0.2, 0.8, count))]


def fit(file: Path, package: Package, files: list[Path], **options: Any) -> Fit:
    options = {"false_rejection": RATE, "today": TODAY} | options
    return fit_policy(file, package, files, OnnxEngine(package, "cpu"), **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class TestWhatIsWritten:
    def test_the_policy_names_gate_and_baseline_by_their_digests_and_loads(
        self, file: Path, package: Package, tmp_path: Path
    ) -> None:
        fitted = fit(file, package, pictures(tmp_path / "data")).fitted
        policy = load_policy(file, package)
        assert policy.file.fitted == fitted
        assert policy.gate_file == file.parent / "policy.gate.npz"
        assert load_gate(policy.gate_file) == Gate()
        assert policy.baseline_file == file.parent / "policy.baseline.parquet"
        assert pq.read_table(policy.baseline_file).num_rows == 20
        for written, path in ((fitted.gate, policy.gate_file), (fitted.baseline, policy.baseline_file)):
            assert written.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (fitted.images, fitted.studies, fitted.patients, fitted.refused) == (20, 20, 20, 0)
        assert fitted.date == TODAY
        assert set(contents(file.parent)) == {"policy.yaml", "policy.gate.npz", "policy.baseline.parquet"}

    def test_what_a_person_wrote_stays_with_its_comments(self, file: Path, package: Package, tmp_path: Path) -> None:
        before = file.read_text()
        files = pictures(tmp_path / "data")
        fit(file, package, files)
        once = file.read_text()
        assert once.startswith(before)
        fit(file, package, files)
        again = file.read_text()
        assert again.startswith(before)
        assert again.count("fitted:") == 1

    def test_it_can_be_fitted_again_for_another_package(self, file: Path, package: Package, tmp_path: Path) -> None:
        files = pictures(tmp_path / "data")
        fit(file, package, files)
        other = load_package(write_package(tmp_path / "other", version="2.0.0"))
        fit(file, other, files)
        assert load_policy(file, other).file.fitted is not None

    def test_an_approval_does_not_outlive_it(self, file: Path, package: Package, tmp_path: Path) -> None:
        approve(file, package, ensure_key(tmp_path / "key.pem"), by="Dr Jane Doe")
        fit(file, package, pictures(tmp_path / "data"))
        with pytest.raises(PolicyError, match="changed since Dr Jane Doe approved it"):
            load_policy(file, package)


class TestStudies:
    def write(self, folder: Path, patients: int, images_each: int) -> list[Path]:
        files = []
        for patient in range(patients):
            study = f"1.2.3.{patient + 1}"
            for image in range(images_each):
                dataset = radiograph(0.25 + 0.5 * patient / patients, study=study)
                dataset.PatientID = f"{IDENTIFIERS['PatientID']}-{patient // 2}"  # two studies each
                files.append(write_file(dataset, folder / f"{patient:02}-{image}.dcm"))
        return files

    def test_images_are_counted_by_study_and_patient_and_make_one_row_a_study(
        self, file: Path, package: Package, tmp_path: Path
    ) -> None:
        fitted = fit(file, package, self.write(tmp_path / "data", 12, 2)).fitted
        assert (fitted.images, fitted.studies, fitted.patients) == (24, 12, 6)
        rows = pq.read_table(file.parent / "policy.baseline.parquet").to_pylist()
        assert len(rows) == 12
        assert {row["images"] for row in rows} == {2}
        assert {row["time"] for row in rows} == {"2024-02-29T12:00:00+00:00"}

    def test_nothing_that_names_a_patient_is_written(self, file: Path, package: Package, tmp_path: Path) -> None:
        fit(file, package, self.write(tmp_path / "data", 12, 1))
        table = pq.read_table(file.parent / "policy.baseline.parquet")
        written = str(table.to_pylist()) + file.read_text()
        for keyword, value in IDENTIFIERS.items():
            assert value not in written, keyword
        assert "1.2.3." not in written
        assert ".dcm" not in written

    def test_an_image_that_is_there_twice_counts_once(self, file: Path, package: Package, tmp_path: Path) -> None:
        files = self.write(tmp_path / "data", 12, 1)
        copy = tmp_path / "copy.dcm"
        copy.write_bytes(files[0].read_bytes())
        found = fit(file, package, [*files, copy])
        assert found.fitted.images == 12
        assert found.refused == {"The image is there twice": 1}


class TestTheWorkloadCap:
    @pytest.mark.parametrize("cap", [0.05, 0.1, 0.25])
    def test_no_more_is_deferred_than_the_cap(self, file: Path, package: Package, tmp_path: Path, cap: float) -> None:
        files = pictures(tmp_path / "data", 60)
        fitted = fit(file, package, files, cap=cap).fitted.deferrals["ill"]
        assert fitted.deferred <= cap
        finding = load_policy(file, package).finding("ill")
        assert finding is not None
        assert finding.deferral == fitted.deferral > 0.3
        rows = pq.read_table(file.parent / "policy.baseline.parquet").to_pylist()
        decisions = [decide(row["probabilities"]["ill"], thresholds(finding.costs)) for row in rows]
        assert decisions.count(Decision.DEFER) / len(rows) == pytest.approx(fitted.deferred, abs=1e-6)

    def test_the_one_that_the_policy_states_is_kept(self, file: Path, package: Package, tmp_path: Path) -> None:
        file.write_text(file.read_text() + "workload_cap: 0.1\n")
        with pytest.raises(PolicyError, match=r"no cost of a deferral was fitted for 0\.1"):
            load_policy(file, package)
        fit(file, package, pictures(tmp_path / "data"))
        assert load_policy(file, package).file.fitted is not None

    def test_two_caps_are_one_too_many(self, file: Path, package: Package, tmp_path: Path) -> None:
        file.write_text(file.read_text() + "workload_cap: 0.1\n")
        with pytest.raises(PolicyError, match="state one of them"):
            fit(file, package, pictures(tmp_path / "data"), cap=0.2)

    def test_a_cap_that_is_kept_anyway_leaves_the_cost_as_it_is(
        self, file: Path, package: Package, tmp_path: Path
    ) -> None:
        fitted = fit(file, package, pictures(tmp_path / "data"), cap=0.9).fitted
        assert fitted.deferrals["ill"].deferral == 0.3


class TestWhatIsRefused:
    """With the message, and with everything as it was."""

    def refused(self, file: Path, package: Package, files: list[Path], **options: Any) -> str:
        before = contents(file.parent)
        with pytest.raises(PolicyError) as caught:
            fit(file, package, files, **options)
        assert contents(file.parent) == before
        return str(caught.value)

    def test_too_few_images_and_says_how_many_are_needed_and_why_others_were_left_out(
        self, file: Path, package: Package, tmp_path: Path
    ) -> None:
        files = pictures(tmp_path / "data", 9)
        (tmp_path / "data" / "notes.txt").write_text("no image")
        message = self.refused(file, package, [*files, tmp_path / "data" / "notes.txt"])
        assert "9 of 10 files are images that the package accepts" in message
        assert "needs 10 or more" in message
        assert "cannot be parsed as DICOM (1)" in message

    def test_a_hundred_are_needed_for_the_usual_rate(self, file: Path, package: Package, tmp_path: Path) -> None:
        assert "needs 100 or more" in self.refused(file, package, pictures(tmp_path / "data"), false_rejection=0.01)

    def test_a_policy_for_another_model(self, tmp_path: Path, package: Package) -> None:
        file = write_policy(tmp_path / "site" / "policy.yaml", model="large")
        assert "for the model large" in self.refused(file, package, pictures(tmp_path / "data"))

    def test_a_fitted_section_that_somebody_else_wrote(self, file: Path, package: Package, tmp_path: Path) -> None:
        files = pictures(tmp_path / "data")
        fit(file, package, files)
        values = yaml.safe_load(file.read_text())
        file.write_text(yaml.safe_dump(values))
        assert "not as `stepwedge policy fit` writes it" in self.refused(file, package, files)

    def test_a_file_to_which_no_section_can_be_added(self, file: Path, package: Package, tmp_path: Path) -> None:
        file.write_text(str(yaml.safe_load(file.read_text())).replace("'", '"'))  # all of it in braces
        assert "a section cannot be added" in self.refused(file, package, pictures(tmp_path / "data"))

    def test_a_name_that_the_fitted_files_cannot_have(self, tmp_path: Path, package: Package) -> None:
        file = write_policy(tmp_path / "site" / "our policy.yaml")
        assert "fitted files are called after" in self.refused(file, package, pictures(tmp_path / "data"))

    @pytest.mark.parametrize("fitted_before", [True, False])
    def test_a_disk_that_fails_at_the_last_step(
        self, file: Path, package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fitted_before: bool
    ) -> None:
        files = pictures(tmp_path / "data")
        if fitted_before:
            fit(file, package, files)

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(fitting, "write_durably", full)
        assert "No space left on device; nothing is changed" in self.refused(file, package, files[:15])


def test_the_command_fits_and_says_what_it_found(
    file: Path, package: Package, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(tmp_path / "data", 12)
    arguments = ["policy", "fit", str(file), "--package", str(package.path), "--data", str(tmp_path / "data")]
    assert main([*arguments, "--device", "cpu", "--false-rejection", "0.1", "--cap", "0.2"]) == 0
    said = capsys.readouterr()
    assert "Reading 12 files" in said.err
    assert "fitted on 12 images of 12 studies, 12 patients" in said.err
    assert "ill: a deferral costs" in said.err
    assert said.out == ""
    assert main([*arguments, "--device", "cpu"]) == 2
    assert "needs 100 or more" in capsys.readouterr().err
    assert main([*arguments[:-1], str(tmp_path / "nowhere")]) == 2
    assert "no such file or folder" in capsys.readouterr().err
