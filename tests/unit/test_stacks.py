"""A model of whole series or studies answers once for all of their images, or not at all."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from instances import write_file
from packages import write_policy
from pydicom import Dataset
from pydicom.uid import generate_uid
from series import MAXIMUM, MINIMUM, ct_series, write_series_package
from stepwedge.inference.engine import OnnxEngine
from stepwedge.manifest import load_package
from stepwedge.pipeline import Equipment, equip
from stepwedge.policy import load_policy
from stepwedge.predict import answers

BRIGHT, DARK = 0.75, 0.25


def equipment_for(folder: Path, unit: str) -> Equipment:
    package = load_package(write_series_package(folder / unit, unit=unit))
    policy = load_policy(write_policy(folder / "policy.yaml", model="tiny-series"), package.manifest)
    return equip(package, OnnxEngine(package, "cpu", threads=1), policy)


@pytest.fixture(scope="module")
def of_series(tmp_path_factory: pytest.TempPathFactory) -> Equipment:
    return equipment_for(tmp_path_factory.mktemp("series"), "series")


@pytest.fixture(scope="module")
def of_studies(tmp_path_factory: pytest.TempPathFactory) -> Equipment:
    return equipment_for(tmp_path_factory.mktemp("studies"), "study")


def write(folder: Path, datasets: list[Dataset]) -> list[Path]:
    """The files in the order of the slices; their names are in another one."""
    names = [f"{number:03}.dcm" for number in range(len(datasets))]
    random.Random(3).shuffle(names)
    return [write_file(dataset, folder / name) for dataset, name in zip(datasets, names, strict=True)]


def answers_for(paths: list[Path], equipment: Equipment) -> list[dict[str, object]]:
    return list(answers(paths, equipment, maximum_bytes=2**28))


class TestAModelOfSeries:
    def test_it_answers_once_for_a_series_with_its_files_in_the_order_of_the_slices(
        self, of_series: Equipment, tmp_path: Path
    ) -> None:
        files = write(tmp_path, ct_series(BRIGHT))
        (answer,) = answers_for([tmp_path], of_series)
        assert answer["paths"] == [str(file) for file in files]
        assert "path" not in answer
        assert answer["state"] == "reported"
        assert answer["findings"][0]["decision"] == "act"  # type: ignore[index]

    def test_its_answer_is_about_the_mean_of_all_slices(self, of_series: Equipment, tmp_path: Path) -> None:
        write(tmp_path, ct_series(0.5, gradient=0.08))
        (answer,) = answers_for([tmp_path], of_series)
        assert answer["findings"][0]["score"] == pytest.approx(0, abs=0.1)  # type: ignore[index]

    def test_each_series_of_a_study_has_its_own_answer(self, of_series: Equipment, tmp_path: Path) -> None:
        study = generate_uid()
        write(tmp_path / "a", ct_series(BRIGHT, study=study))
        write(tmp_path / "b", ct_series(DARK, study=study))
        decisions = [answer["findings"][0]["decision"] for answer in answers_for([tmp_path], of_series)]  # type: ignore[index]
        assert sorted(decisions) == ["act", "clear"]

    def test_more_slices_than_it_takes_are_thinned_out(self, of_series: Equipment, tmp_path: Path) -> None:
        write(tmp_path, ct_series(BRIGHT, 3 * MAXIMUM))
        (answer,) = answers_for([tmp_path], of_series)
        assert len(answer["paths"]) == MAXIMUM  # type: ignore[arg-type]

    def test_too_few_slices_are_left_to_a_person(self, of_series: Equipment, tmp_path: Path) -> None:
        write(tmp_path, ct_series(BRIGHT, MINIMUM - 1))
        (answer,) = answers_for([tmp_path], of_series)
        assert (answer["state"], answer["reasons"]) == ("deferred", ["stack_too_small"])
        assert answer["findings"][0]["decision"] == "defer"  # type: ignore[index]

    def test_one_slice_that_cannot_be_decoded_rejects_the_series(self, of_series: Equipment, tmp_path: Path) -> None:
        slices = ct_series(BRIGHT)
        slices[2].PixelData = slices[2].PixelData[:100]
        write(tmp_path, slices)
        (answer,) = answers_for([tmp_path], of_series)
        assert (answer["state"], answer["reasons"]) == ("rejected", ["pixel_data_truncated"])
        assert answer["findings"] == []

    def test_what_is_no_dicom_is_answered_for_by_itself(self, of_series: Equipment, tmp_path: Path) -> None:
        write(tmp_path, ct_series(BRIGHT))
        (tmp_path / "notes.txt").write_text("nothing")
        (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        found = answers_for([tmp_path], of_series)
        assert sorted(answer["state"] for answer in found) == ["rejected", "rejected", "reported"]  # type: ignore[type-var]
        assert {tuple(answer["reasons"]) for answer in found} == {(), ("not_dicom",)}  # type: ignore[arg-type]


class TestAModelOfStudies:
    def test_it_answers_once_for_all_series_of_a_study(self, of_studies: Equipment, tmp_path: Path) -> None:
        study = generate_uid()
        bright = write(tmp_path / "a", ct_series(BRIGHT, 4, study=study))
        dark = write(tmp_path / "b", ct_series(DARK, 4, study=study))
        (answer,) = answers_for([tmp_path], of_studies)
        assert answer["paths"] == [str(file) for file in (*bright, *dark)]
        assert answer["findings"][0]["score"] == pytest.approx(0, abs=0.1)  # type: ignore[index]
