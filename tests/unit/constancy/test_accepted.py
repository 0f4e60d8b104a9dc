"""The reference set: what may be in it, and that it reads back as it was written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from packages import seal, write_package
from radiographs import write_radiograph
from referenced import BRIGHTNESSES, write_referenced, write_studies
from stepwedge.cli import main
from stepwedge.constancy.accepted import CONSTANCY, read_reference
from stepwedge.errors import PackageError
from stepwedge.inference.engine import OnnxEngine
from stepwedge.manifest import load_package
from stepwedge.package.reference_set import add_reference, put_reference
from stepwedge.signing import ensure_key


def test_files_come_back_byte_by_byte_with_their_answers(tmp_path: Path) -> None:
    studies = write_studies(tmp_path / "studies")
    cases = read_reference(load_package(write_referenced(tmp_path / "package", studies)))
    assert [case.contents for case in cases] == [file.read_bytes() for file in sorted(studies.iterdir())]
    assert [case.answer.state for case in cases] == ["answered"] * len(BRIGHTNESSES)
    probabilities = [case.answer.probabilities["ill"] for case in cases]
    assert probabilities == sorted(probabilities)
    assert set(cases[0].answer.prints) == {"decoded", "input.image"}


def test_a_package_without_one_says_how_to_add_it(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="stepwedge package constancy"):
        read_reference(load_package(write_package(tmp_path / "package")))


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04no", None])
def test_a_damaged_one_is_said(tmp_path: Path, damage: bytes | None) -> None:
    folder = write_referenced(tmp_path / "package", write_studies(tmp_path / "studies"))
    if damage is None:
        np.savez(folder / CONSTANCY, accepted=np.frombuffer(b'{"schema": 2}', dtype=np.uint8))
    else:
        (folder / CONSTANCY).write_bytes(damage)
    seal(folder)
    with pytest.raises(PackageError, match=r"constancy\.npz"):
        read_reference(load_package(folder))


def test_an_altered_set_makes_the_package_refused(tmp_path: Path) -> None:
    folder = write_referenced(tmp_path / "package", write_studies(tmp_path / "studies"))
    with (folder / CONSTANCY).open("ab") as out:
        out.write(b"\0")
    with pytest.raises(PackageError, match=r"constancy\.npz"):
        load_package(folder)


def test_an_image_that_may_be_a_patients_is_refused(tmp_path: Path) -> None:
    package = load_package(write_package(tmp_path / "package"))
    studies = tmp_path / "studies"
    studies.mkdir()
    write_radiograph(studies / "0.dcm", 0.5)
    with pytest.raises(PackageError, match=r"Quality Control Subject \(0010,0200\)"):
        put_reference(package, OnnxEngine(package, "cpu", 1), studies)
    (studies / "0.dcm").write_text("nothing")
    with pytest.raises(PackageError, match="not a DICOM file"):
        put_reference(package, OnnxEngine(package, "cpu", 1), studies)


def test_none_is_too_few(tmp_path: Path) -> None:
    package = load_package(write_package(tmp_path / "package"))
    (tmp_path / "studies").mkdir()
    with pytest.raises(PackageError, match="0 reference studies"):
        put_reference(package, OnnxEngine(package, "cpu", 1), tmp_path / "studies")


def test_the_command_gives_a_signed_package_a_set_and_signs_it_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studies = write_studies(tmp_path / "studies")
    folder = write_package(tmp_path / "package")
    key = tmp_path / "key.pem"
    ensure_key(key)
    before = load_package(folder).digest
    assert main(["package", "constancy", str(folder), "--from", str(studies), "--key", str(key)]) == 0
    package = load_package(folder)
    assert package.signer
    assert package.digest != before
    assert package.digest in capsys.readouterr().out
    assert len(read_reference(package)) == len(BRIGHTNESSES)


def test_a_package_stays_as_it_was_when_no_set_can_be_made(tmp_path: Path) -> None:
    folder = write_package(tmp_path / "package")
    before = load_package(folder).digest
    (tmp_path / "studies").mkdir()
    with pytest.raises(PackageError):
        add_reference(folder, tmp_path / "studies", None)
    assert load_package(folder).digest == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
