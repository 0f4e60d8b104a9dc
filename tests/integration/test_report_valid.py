"""Independent programs read our objects: dciodvfy finds no error in them, dcmtk reads them and their names."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from measurement_report import violations
from peers import dcmtk, dicom_errors
from PIL import Image
from pydicom import Dataset
from results import NAMES, PREDECESSOR, heat, picture, result, source, written
from stepwedge.dicom.wording import DEMONSTRATION
from stepwedge.records import State

STATES = [State.REPORTED, State.DEFERRED, State.REJECTED]
# The public sample files by name; one of them has a SOP Instance UID with a leading zero in a component.
FILES = (
    "CR-MONO1-10-chest_no_meta.dcm",
    "CR_modality_lut_sequence.dcm",
    "CT1_big_endian.dcm",
    "Fake_MONOHR1.dcm",
    "MG_GH133_jpll.dcm",
    "RG1_J2KI.dcm",
    "RG2_JPLL.dcm",
    "RG2_JPLY.dcm",
    "RG3_RLE.dcm",
    "chest_jpeg_baseline.dcm",
)


@pytest.fixture(params=FILES)
def header(request: pytest.FixtureRequest, shared: Path) -> Dataset:
    """The header of a real file."""
    return pydicom.dcmread(shared / "data" / "dicom" / request.param, force=True, stop_before_pixels=True)


def errors(file: Path, evidence: Dataset) -> list[str]:
    """What dciodvfy calls an error, but for the source's own UID and look-up table, which we must quote as they are."""
    uid = evidence.get_item("SOPInstanceUID").value
    quoted = uid.decode().strip("\0 ") if isinstance(uid, bytes) else str(uid)
    return [
        line
        for line in dicom_errors(file)
        if quoted not in line
        and "contains invalid data values for Value Representations" not in line
        and not ("LookupTableData bad" in line and "ModalityLUTSequence" in evidence)
    ]


@pytest.mark.parametrize("state", STATES)
def test_results_on_real_files_are_valid(header: Dataset, state: State, tmp_path: Path) -> None:
    objects = written(tmp_path, result(state), [header], image=picture(), heat=heat(header))
    explained = ["heat", "pr"] if "WindowCenter" in header or header.BitsStored == 8 else ["heat"]
    assert [item.kind for item in objects] == ["sr", "sc", *(explained if state is State.REPORTED else [])]
    assert [error for item in objects for error in errors(item.path, header)] == []
    assert violations(pydicom.dcmread(objects[0].path)) == []


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(("charset", "name"), NAMES.values(), ids=NAMES)
def test_results_on_any_character_set_are_valid(
    charset: str | list[str] | None, name: str, state: State, tmp_path: Path
) -> None:
    header = source(charset=charset, name=name)
    options = {"image": picture(), "heat": heat(header), "predecessor": PREDECESSOR}
    for item in written(tmp_path, result(state, revision=2), [header], **options):  # type: ignore[arg-type]
        assert dicom_errors(item.path) == []


@pytest.mark.parametrize("demonstration", [True, False])
@pytest.mark.parametrize("offset", [None, "+0530"])
def test_first_and_clinical_results_are_valid(demonstration: bool, offset: str | None, tmp_path: Path) -> None:
    header = source() if offset is None else source(TimezoneOffsetFromUTC=offset)
    unit, evidence = result(demonstration=demonstration), [header, source(number=2)]
    for item in written(tmp_path, unit, evidence, image=picture(), heat=heat(header)):
        assert dicom_errors(item.path) == []


def test_a_study_with_an_empty_header_gives_valid_results(tmp_path: Path) -> None:
    kept = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Rows", "Columns")
    header = source()
    for element in list(header):
        if element.keyword not in kept:
            del header[element.tag]
    for item in written(tmp_path, result(), [header]):
        assert dicom_errors(item.path) == []


def test_dcmtk_finds_no_fault_in_a_presentation_state(tmp_path: Path) -> None:
    """It knows no characters beyond ASCII, so the patient's name has none here."""
    state = written(tmp_path, result(), image=picture(), heat=heat())[3]
    answer = subprocess.run([dcmtk("dcmpschk"), str(state.path)], capture_output=True, timeout=60, check=True)
    assert "Test passed" in (answer.stdout + answer.stderr).decode()


@pytest.mark.parametrize(
    "name",
    ["CR-MONO1-10-chest_no_meta.dcm", "Fake_MONOHR1.dcm", "MG_GH133_jpll.dcm", "chest_jpeg_baseline.dcm"],
)
def test_an_image_looks_the_same_under_its_presentation_state(name: str, shared: Path, tmp_path: Path) -> None:
    """dcmp2pgm renders everything of a presentation state but its graphics; of several windows it takes the first."""
    file, plain, under = tmp_path / "image.dcm", tmp_path / "plain.pgm", tmp_path / "state.pgm"
    subprocess.run([dcmtk("dcmdjpeg"), str(shared / "data" / "dicom" / name), str(file)], check=True, timeout=60)
    header = pydicom.dcmread(file, force=True, stop_before_pixels=True)
    state = written(tmp_path, result(), [header], image=picture(), heat=heat(header))[3]
    command = [dcmtk("dcmp2pgm"), str(file)]
    subprocess.run([*command, str(plain)], check=True, timeout=60)
    subprocess.run([*command, "-p", str(state.path), str(under)], check=True, timeout=60)
    grey = [np.asarray(Image.open(path), np.int64) for path in (plain, under)]
    assert grey[0].std() > 10
    assert np.abs(grey[0] - grey[1]).max() <= 1


def test_dciodvfy_would_have_noticed(tmp_path: Path) -> None:
    file = written(tmp_path, result())[0].path
    made = pydicom.dcmread(file)
    del made.CompletionFlag
    made.save_as(file)
    assert any("CompletionFlag" in error for error in dicom_errors(file))


@pytest.mark.parametrize(("charset", "name"), NAMES.values(), ids=NAMES)
def test_dcmtk_reads_the_names(charset: str | list[str] | None, name: str, tmp_path: Path) -> None:
    for item in written(tmp_path, result(), [source(charset=charset, name=name)]):
        command = [dcmtk("dcmdump"), "+P", "PatientName", str(item.path)]
        answer = subprocess.run(command, check=True, capture_output=True, timeout=60)
        assert f"[{name.rstrip('=')}" in answer.stdout.decode()


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        (State.REPORTED, "Pneumonia: PRESENT – act; probability 0.93 (act from 0.62, clear below 0.11)"),
        (State.DEFERRED, "No AI result: read without AI"),
        (State.REJECTED, "No AI result: image not suitable"),
    ],
)
def test_dcmtk_shows_a_person_the_report(state: State, sentence: str, tmp_path: Path) -> None:
    file = written(tmp_path, result(state, revision=2), predecessor=PREDECESSOR)[0].path
    command = [dcmtk("dsrdump"), "--print-all-codes", "--print-long-values", str(file)]
    answer = subprocess.run(command, check=True, capture_output=True, timeout=60)
    shown = answer.stdout.decode()
    assert not [line for line in answer.stderr.decode().splitlines() if line.startswith(("E:", "F:"))]
    for text in (sentence, DEMONSTRATION, "Revision 2, supersedes revision 1"):
        assert text in shown
    assert ("Probability" in shown) is (state is State.REPORTED)
