"""A sealed package loads; whatever happens to a file afterwards is noticed, and the file is named."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from packages import expected_outputs, write_package
from stepwedge.errors import EngineError, PackageError
from stepwedge.inference.engine import OnnxEngine
from stepwedge.manifest import load_package
from stepwedge.package.build import seal, write_golden


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_package(tmp_path / "tiny")


def test_a_sealed_package_loads_with_the_same_digest(folder: Path) -> None:
    (folder / "SHA256SUMS").unlink()
    assert seal(folder).digest == load_package(folder).digest


def test_anyone_can_check_the_digests_without_the_software(folder: Path) -> None:
    seal(folder)
    subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=folder, check=True, capture_output=True)


@pytest.mark.parametrize("name", ["model.yaml", "model.onnx", "golden.npz", "calibration.json"])
def test_one_changed_byte_is_refused_and_the_file_named(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(PackageError, match=name):
        load_package(folder)


def test_a_missing_file_is_refused_and_named(folder: Path) -> None:
    (folder / "golden.npz").unlink()
    with pytest.raises(PackageError, match=r"golden\.npz is missing"):
        load_package(folder)


def test_a_file_too_many_is_refused_and_named(folder: Path) -> None:
    (folder / "notes.txt").write_text("left behind")
    with pytest.raises(PackageError, match=r"notes\.txt does not belong"):
        load_package(folder)


def test_an_incomplete_package_cannot_be_sealed(folder: Path) -> None:
    (folder / "calibration.json").unlink()
    with pytest.raises(PackageError, match=r"calibration\.json is missing"):
        seal(folder)


def test_golden_cases_are_what_the_engine_checks(folder: Path) -> None:
    inputs = {"image": np.full((3, 1, 32, 32), 0.25, np.float32)}
    write_golden(folder, lambda given: expected_outputs(given["image"]), inputs)
    assert OnnxEngine(seal(folder), "cpu", 1).golden_error < 1e-4
    write_golden(folder, lambda given: {k: v + 1 for k, v in expected_outputs(given["image"]).items()}, inputs)
    with pytest.raises(EngineError, match="golden inputs give outputs that differ"):
        OnnxEngine(seal(folder), "cpu", 1)
