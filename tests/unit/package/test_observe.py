"""Labelled images go down the pipeline that serves; what it makes of them becomes figures and a baseline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from instances import make_instance, write_file
from labelled import picture
from packages import write_package
from PIL import Image as Pillow
from stepwedge.inference.engine import OnnxEngine
from stepwedge.manifest import load_package
from stepwedge.package.dataset import DatasetError, LabelledImage
from stepwedge.package.observe import (
    Pictures,
    answers,
    baseline,
    class_outputs,
    refuse_unreadable,
    require_accepted,
    subgroups,
)
from stepwedge.pipeline import Equipment
from stepwedge.records import State


@pytest.fixture(scope="module")
def equipment(tmp_path_factory: pytest.TempPathFactory) -> Equipment:
    package = load_package(write_package(tmp_path_factory.mktemp("package") / "tiny"))
    return Equipment(package=package, engine=OnnxEngine(package, "cpu", 1), policy=None, explain=False)


def labelled(file: Path, **subgroups_of: str) -> LabelledImage:
    return LabelledImage(file=file, patient=file.stem, fold="test", labels=frozenset({"ill"}), subgroups=subgroups_of)


def bright(file: Path, mean: float) -> Path:
    Pillow.fromarray(picture(mean, np.random.default_rng(0))).save(file)
    return file


def smooth_dicom(file: Path, **attributes: object) -> Path:
    dataset = make_instance(rows=96, columns=96)
    values = picture(0.5, np.random.default_rng(1)).astype(np.uint16) * 16
    dataset.PixelData = values.tobytes()
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return write_file(dataset, file)


def test_pictures_and_dicom_are_answered_in_order(tmp_path: Path, equipment: Equipment) -> None:
    files = [bright(tmp_path / "dark.png", 0.3), smooth_dicom(tmp_path / "middle"), bright(tmp_path / "light.png", 0.7)]
    calls: list[tuple[int, int]] = []
    found = answers([labelled(file) for file in files], equipment, progress=lambda *done: calls.append(done))
    assert [item.accepted for item in found] == [True, True, True]
    log_odds = class_outputs(found, equipment.package.manifest)
    assert log_odds.shape == (3, 2)
    assert list(log_odds[:, 1]) == sorted(log_odds[:, 1])
    assert sorted(calls) == [(1, 3), (2, 3), (3, 3)]


def test_what_cannot_be_read_is_counted_and_listed(tmp_path: Path, equipment: Equipment) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n")
    text = tmp_path / "text.txt"
    text.write_text("no image")
    images = [labelled(file) for file in (bright(tmp_path / "a.png", 0.5), broken, text, tmp_path / "gone.png")]
    found = answers(images, equipment)
    assert [item.unreadable for item in found] == [False, True, True, True]
    refuse_unreadable(found, allowed=3)
    with pytest.raises(DatasetError, match="3 of 4 images cannot be read, and 2 may be") as raised:
        refuse_unreadable(found, allowed=2)
    for name in ("broken.png", "text.txt", "gone.png"):
        assert name in str(raised.value)


def test_a_fold_of_which_nothing_is_accepted_says_why(tmp_path: Path, equipment: Equipment) -> None:
    files = [smooth_dicom(tmp_path / str(number), Modality="MR") for number in range(2)]
    found = answers([labelled(file) for file in files], equipment)
    with pytest.raises(DatasetError, match=r"refuses all 2 images of the gate fold: .*MR.*\(2 images\).*intended_use"):
        require_accepted(found, "gate")
    with pytest.raises(DatasetError, match="the test fold has no images"):
        require_accepted([], "test")


def test_subgroups_come_from_the_table_and_else_from_the_header(tmp_path: Path, equipment: Equipment) -> None:
    files = [
        labelled(bright(tmp_path / "a.png", 0.5), site="north"),
        labelled(smooth_dicom(tmp_path / "b", PatientSex="F")),
        labelled(smooth_dicom(tmp_path / "c", PatientSex="F"), sex="M"),
    ]
    found = subgroups(answers(files, equipment))
    assert found["site"] == ["north", "", ""]
    assert found["sex"] == ["", "F", "M"]
    assert found["age"] == ["", "6 to 17", "6 to 17"]


def test_the_baseline_is_what_the_monitor_would_have_been_told(tmp_path: Path, equipment: Equipment) -> None:
    gone = tmp_path / "gone.png"
    files = [smooth_dicom(tmp_path / "Secret-Name"), gone, smooth_dicom(tmp_path / "x", Modality="MR")]
    found = answers([labelled(file) for file in files], equipment)
    rows = baseline(found, equipment, created_at="2026-01-01T00:00:00+00:00")
    assert [row.state for row in rows] == [str(State.REPORTED), str(State.REJECTED)]
    assert (rows[0].modality, rows[0].sex, rows[0].bits_stored) == ("DX", "F", 12)
    assert rows[0].pixel_mean is not None
    assert len(rows[0].embedding) == 4
    assert rows[0].model_digest == ""
    assert "Secret" not in "".join(row.to_json() for row in rows)


def test_decoded_images_are_kept_as_far_as_there_is_room(tmp_path: Path) -> None:
    files = [bright(tmp_path / f"{number}.png", 0.5) for number in range(3)]
    pictures = Pictures(files, kept_bytes=2 * 96 * 96 * 4)
    assert len(pictures) == 3
    first, second = list(pictures), list(pictures)
    assert [a is b for a, b in zip(first, second, strict=True)] == [True, True, False]
    assert pictures.only(files[:1])[0] is first[0]
    assert len(pictures[1:]) == 2
