"""Simulated children look like patients to the service, and like nobody to anyone who has seen the patients."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from stepwedge.demo.main_job import newest_package
from stepwedge.dicom.decode import decode
from stepwedge.dicom.header import read_header
from stepwedge.errors import StepwedgeError
from stepwedge.inference.engine import OnnxEngine
from stepwedge.inference.preprocess import to_tensor
from stepwedge.manifest import load_package
from stepwedge.pipeline import Case, Equipment, analyse_image
from stepwedge.policy import load_policy
from stepwedge.records import Decision, Image, Verdict
from stepwedge.simulate import Simulator, load_simulator, simulate, to_dicom, wrap_image

MODEL = Path(__file__).parents[3] / "models" / "chest-pneumonia"
LABELS = ("normal", "bacterial", "viral")


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    return load_simulator(MODEL / "simulated.npz")


@pytest.fixture(scope="module")
def equipment() -> Equipment:
    package = load_package(newest_package(MODEL))
    policy = load_policy(MODEL / "policy.yaml", package.manifest)
    return Equipment(package=package, engine=OnnxEngine(package, "cpu", 1), policy=policy)


def test_the_simulator_is_small_enough_to_travel() -> None:
    assert (MODEL / "simulated.npz").stat().st_size <= 2_500_000


def test_a_file_that_is_no_simulator_is_refused(tmp_path: Path) -> None:
    (tmp_path / "simulated.npz").write_bytes(b"nothing")
    with pytest.raises(StepwedgeError, match="cannot be read as simulated patients"):
        load_simulator(tmp_path / "simulated.npz")


def test_an_unknown_label_is_refused_with_those_there_are(simulator: Simulator) -> None:
    with pytest.raises(StepwedgeError, match="normal, bacterial, viral"):
        simulate(simulator, "fracture", np.random.default_rng(0))


def test_the_same_seed_gives_the_same_child(simulator: Simulator) -> None:
    first, second = (simulate(simulator, "viral", np.random.default_rng(3)) for _ in range(2))
    assert first.dtype == np.float32
    assert np.array_equal(first, second)
    assert first.min() >= 0
    assert first.max() <= 1


@pytest.mark.parametrize(
    ("modality", "photometric", "view"),
    [
        ("DX", "MONOCHROME2", "AP"),
        ("DX", "MONOCHROME1", "PA"),
        ("CR", "MONOCHROME2", "PA"),
        ("CR", "MONOCHROME1", "AP"),
    ],
)
def test_an_independent_checker_finds_no_error_in_the_dicom(
    tmp_path: Path, simulator: Simulator, modality: str, photometric: str, view: str
) -> None:
    rng = np.random.default_rng(1)
    child = to_dicom(simulate(simulator, "normal", rng), rng=rng, modality=modality, photometric=photometric, view=view)  # type: ignore[arg-type]
    child.save_as(tmp_path / "child.dcm", enforce_file_format=True)
    checker = Path(sys.executable).parent / "dciodvfy"
    done = subprocess.run([checker, tmp_path / "child.dcm"], capture_output=True, text=True)
    assert "Error" not in done.stderr + done.stdout


def test_the_header_is_what_was_asked_for() -> None:
    child = to_dicom(
        np.zeros((64, 80), np.float32),
        rng=np.random.default_rng(1),
        age_years=4,
        sex="F",
        view="PA",
        modality="CR",
        patient_name="Simulated^Child 03",
        accession="A1",
        study_date=date(2026, 2, 3),
        study_uid="1.2.3",
    )
    assert (child.PatientAge, child.PatientSex, child.PatientBirthDate) == ("004Y", "F", "20220101")
    assert (child.ViewPosition, child.Modality, child.AccessionNumber) == ("PA", "CR", "A1")
    assert (child.StudyInstanceUID, child.StudyDate, str(child.PatientName)) == (
        "1.2.3",
        "20260203",
        "Simulated^Child 03",
    )
    assert (child.Rows, child.Columns, child.BitsStored, child.BitsAllocated) == (64, 80, 12, 16)


def test_an_age_that_is_not_known_leaves_no_trace_in_the_header() -> None:
    child = to_dicom(np.zeros((64, 80), np.float32), rng=np.random.default_rng(1), age_years=None)
    assert "PatientAge" not in child
    assert child.PatientBirthDate == ""


def test_two_children_never_share_a_uid() -> None:
    children = [to_dicom(np.zeros((64, 64), np.float32), rng=np.random.default_rng(1)) for _ in range(2)]
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        assert children[0][name].value != children[1][name].value


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_what_is_wrapped_is_what_is_decoded(photometric: str) -> None:
    picture = np.add.outer(np.arange(256), np.zeros(300)).astype(np.uint8)
    wrapped = wrap_image(picture, rng=np.random.default_rng(1), shortest_side=256, photometric=photometric)  # type: ignore[arg-type]
    assert np.allclose(decode(wrapped).pixels / 4095, picture / 255, atol=2e-4)


def test_a_small_picture_is_enlarged_to_the_size_of_a_radiograph() -> None:
    wrapped = wrap_image(np.zeros((256, 320), np.uint8), rng=np.random.default_rng(1))
    assert (wrapped.Rows, wrapped.Columns) == (1024, 1280)


def test_jpeg_2000_loses_nothing(simulator: Simulator) -> None:
    rng = np.random.default_rng(1)
    child = to_dicom(simulate(simulator, "normal", rng), rng=rng)
    plain = decode(child).pixels
    child.compress(pydicom.uid.JPEG2000Lossless)
    assert np.array_equal(decode(child).pixels, plain)


@pytest.mark.slow
def test_simulated_children_are_accepted_and_most_are_answered_rightly(
    simulator: Simulator, equipment: Equipment
) -> None:
    rng = np.random.default_rng(11)
    decisions = {label: Counter[Decision]() for label in LABELS}
    for label, number in (("normal", 200), ("bacterial", 100), ("viral", 100)):
        for _ in range(number):
            child = to_dicom(simulate(simulator, label, rng), rng=rng, age_years=int(rng.integers(1, 6)))
            case = Case(instance="", header=read_header(child, str), decode=_decoder(child))
            result, _ = analyse_image(case, equipment)
            assert result.gate.verdict is Verdict.ACCEPT
            decisions[label][result.findings[0].decision] += 1
    print(decisions)
    ill = decisions["bacterial"] + decisions["viral"]
    assert ill[Decision.ACT] >= 0.90 * 200
    assert decisions["normal"][Decision.CLEAR] >= 0.80 * 200
    assert decisions["normal"][Decision.ACT] <= 0.02 * 200


def _decoder(child: pydicom.Dataset) -> Callable[[], Image]:
    return lambda: decode(child)


@pytest.mark.slow
def test_no_simulated_child_is_closer_to_a_patient_than_other_patients_are(
    simulator: Simulator, equipment: Equipment, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the largest correlation with any image that the simulator was made from, against held-out patients'."""
    monkeypatch.syspath_prepend(MODEL)
    folds = importlib.import_module("folds")
    data = shared / "data" / "pneumonia"
    spec = equipment.package.manifest.input
    rows = folds.read_rows(data)
    known = _unit(folds.tensors(data, [row for row in rows if row.fold == "train"], spec))
    others = _unit(folds.tensors(data, [row for row in rows if row.fold == "test"], spec))
    rng = np.random.default_rng(12)
    drawn = [simulate(simulator, label, rng) for label in LABELS for _ in range(60)]
    simulated = _unit(np.concatenate([to_tensor(Image(pixels=p, value_range=(0.0, 1.0)), spec) for p in drawn]))
    near, reference = (simulated @ known.T).max(axis=1), (others @ known.T).max(axis=1)
    print(np.percentile(near, [50, 95, 100]), np.percentile(reference, [50, 95, 100]))
    assert np.median(near) <= np.median(reference)
    assert np.percentile(near, 95) <= np.percentile(reference, 95)


def _unit(tensors: NDArray[np.float32]) -> NDArray[np.float32]:
    flat = tensors.reshape(len(tensors), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return np.asarray(flat / np.linalg.norm(flat, axis=1, keepdims=True))
