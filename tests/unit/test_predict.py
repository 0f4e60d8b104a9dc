"""The same pipeline on files: one JSON object per image, for DICOM, for pictures, and for rubbish."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packages import write_package, write_policy
from PIL import Image as Pillow
from radiographs import BRIGHT, DARK, GREY, write_picture, write_radiograph
from stepwedge.inference.engine import OnnxEngine
from stepwedge.manifest import load_package
from stepwedge.pipeline import Equipment
from stepwedge.policy import load_policy
from stepwedge.predict import as_line, dump, find_files, predict_file

KEYS = {"path", "state", "reasons", "findings", "gate", "tamper", "model", "policy", "scores", "ms"}
FINDING_KEYS = {"name", "probability", "threshold", "clear_below", "decision", "prevalence", "score"}
LIMIT = 1 << 24


@pytest.fixture(scope="module")
def equipment(tmp_path_factory: pytest.TempPathFactory) -> Equipment:
    folder = tmp_path_factory.mktemp("tiny")
    package = load_package(write_package(folder / "tiny"))
    policy = load_policy(write_policy(folder / "policy.yaml"), package.manifest)
    return Equipment(package=package, engine=OnnxEngine(package, "cpu", threads=1), policy=policy)


def predicted(file: Path, equipment: Equipment, limit: int = LIMIT) -> dict[str, Any]:
    """The answer as whoever parses it gets it; strict JSON has no NaN."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    line = dump(predict_file(file, equipment, maximum_bytes=limit))
    assert len(line.splitlines()) == 1
    answer: dict[str, Any] = json.loads(line, parse_constant=refuse)
    return answer


class TestTheAnswer:
    @pytest.mark.parametrize(
        ("brightness", "state", "decision"),
        [(BRIGHT, "reported", "act"), (GREY, "deferred", "defer"), (DARK, "reported", "clear")],
    )
    @pytest.mark.parametrize("name", ["image.dcm", "image.png", "image.tiff", "IMAGE.PNG"])
    def test_for_an_image_it_has_the_documented_keys_and_says_what_the_model_says(
        self, equipment: Equipment, tmp_path: Path, name: str, brightness: float, state: str, decision: str
    ) -> None:
        write = write_radiograph if name.endswith("dcm") else write_picture
        answer = predicted(write(tmp_path / name, brightness), equipment)
        assert answer.keys() == KEYS
        assert answer["path"] == str(tmp_path / name)
        assert answer["state"] == state
        assert answer["gate"]["verdict"] == "accept"
        (finding,) = answer["findings"]
        assert finding.keys() == FINDING_KEYS
        assert finding["name"] == "ill"
        assert finding["decision"] == decision
        assert finding["threshold"] == pytest.approx(0.7)
        assert finding["clear_below"] == pytest.approx(0.03)
        assert 0 < finding["probability"] < 1
        assert answer["tamper"] == {"verdict": "not_fitted"}
        assert set(answer["ms"]) == {
            "gate_header",
            "decode",
            "gate_pixels",
            "preprocess",
            "infer",
            "tamper",
            "decide",
            "explain",
        }

    def test_it_names_the_model_and_the_policy_by_their_digests(self, equipment: Equipment, tmp_path: Path) -> None:
        answer = predicted(write_radiograph(tmp_path / "a.dcm", BRIGHT), equipment)
        assert equipment.policy is not None
        assert answer["model"] == {
            "name": "tiny",
            "version": "1.0.0",
            "digest": equipment.package.digest,
            "provider": "CPUExecutionProvider",
        }
        assert answer["policy"] == {
            "name": "test",
            "version": "1",
            "digest": equipment.policy.digest,
            "demonstration": True,
        }

    def test_a_picture_without_a_header_says_that_its_intended_use_was_not_checked(
        self, equipment: Equipment, tmp_path: Path
    ) -> None:
        plain = predicted(write_picture(tmp_path / "a.png", BRIGHT), equipment)
        assert any("header" in note for note in plain["gate"]["notes"])
        assert predicted(write_radiograph(tmp_path / "a.dcm", BRIGHT), equipment)["gate"]["notes"] == []

    def test_the_same_shades_get_the_same_answer_with_and_without_a_header(
        self, equipment: Equipment, tmp_path: Path
    ) -> None:
        one = predicted(write_picture(tmp_path / "a.png", BRIGHT), equipment)
        other = predicted(write_radiograph(tmp_path / "a.dcm", BRIGHT), equipment)
        probabilities = [answer["findings"][0]["probability"] for answer in (one, other)]
        assert probabilities[0] == pytest.approx(probabilities[1], abs=1e-3)

    def test_asked_twice_it_answers_the_same_but_for_the_times(self, equipment: Equipment, tmp_path: Path) -> None:
        file = write_radiograph(tmp_path / "a.dcm", GREY)
        one, other = (predicted(file, equipment) | {"ms": {}} for _ in range(2))
        assert one == other

    def test_without_a_policy_it_has_probabilities_and_decides_nothing(
        self, equipment: Equipment, tmp_path: Path
    ) -> None:
        undecided = replace(equipment, policy=None)
        answer = predicted(write_radiograph(tmp_path / "a.dcm", BRIGHT), undecided)
        assert answer["policy"] is None
        (finding,) = answer["findings"]
        assert finding["decision"] == "none"
        assert finding["threshold"] is None
        assert finding["clear_below"] is None
        assert finding["probability"] == pytest.approx(0.993, abs=0.002)

    def test_the_line_for_people_says_the_same(self, equipment: Equipment, tmp_path: Path) -> None:
        file = write_radiograph(tmp_path / "a.dcm", BRIGHT)
        line = as_line(predicted(file, equipment))
        assert line.startswith(f"{file}  reported  ill 0.99")
        assert line.endswith(" act")


class TestWhatIsNoImage:
    @pytest.mark.parametrize(
        ("name", "content", "code"),
        [
            ("rubbish.dcm", b"this is no DICOM object, nor anything else", "not_dicom"),
            ("empty", b"", "not_dicom"),
            ("prefix.dcm", bytes(128) + b"DICM", "not_dicom"),
            ("rubbish.png", b"this is no picture", "not_dicom"),
            ("damaged.png", b"\x89PNG\r\n\x1a\nthis is no picture", "pixel_data_undecodable"),
            ("damaged.jpg", b"\xff\xd8\xff\xe0", "pixel_data_undecodable"),
        ],
    )
    def test_it_is_rejected_with_its_reason_and_the_same_keys(
        self, equipment: Equipment, tmp_path: Path, name: str, content: bytes, code: str
    ) -> None:
        (tmp_path / name).write_bytes(content)
        answer = predicted(tmp_path / name, equipment)
        assert answer.keys() == KEYS
        assert answer["state"] == "rejected"
        assert answer["reasons"] == [code]
        assert answer["gate"]["verdict"] == "reject"
        assert answer["gate"]["reasons"][0]["code"] == code
        assert answer["gate"]["reasons"][0]["text"]
        assert answer["findings"] == []
        assert answer["scores"] == {}

    def test_a_dicom_file_cut_short_is_rejected(self, equipment: Equipment, tmp_path: Path) -> None:
        file = write_radiograph(tmp_path / "a.dcm", BRIGHT)
        file.write_bytes(file.read_bytes()[:-1000])
        answer = predicted(file, equipment)
        assert answer["state"] == "rejected"
        assert answer["findings"] == []

    @pytest.mark.parametrize("name", ["a.dcm", "a.png"])
    def test_an_image_above_the_limit_is_rejected_as_too_large(
        self, equipment: Equipment, tmp_path: Path, name: str
    ) -> None:
        write = write_radiograph if name.endswith("dcm") else write_picture
        answer = predicted(write(tmp_path / name, BRIGHT), equipment, limit=1000)
        assert answer["reasons"] == ["pixel_data_too_large"]

    def test_a_model_that_gives_no_numbers_still_gives_json(self, equipment: Equipment, tmp_path: Path) -> None:
        class Broken:
            model = equipment.engine.model

            def run(self, _: object, *, urgent: bool = False) -> tuple[dict[str, Any], str]:
                outputs = {"logits": [[np.nan, 0]], "embedding": [[0, 0, 0, np.inf]]}
                return {name: np.array(value, np.float32) for name, value in outputs.items()}, "CPUExecutionProvider"

        answer = predicted(write_radiograph(tmp_path / "a.dcm", BRIGHT), replace(equipment, engine=Broken()))
        assert answer["state"] == "failed"
        assert answer["reasons"] == ["model_output_invalid"]

    def test_a_file_that_cannot_be_read_has_failed_and_has_an_answer(
        self, equipment: Equipment, tmp_path: Path
    ) -> None:
        for name in ("gone.dcm", "gone.png"):
            answer = predict_file(tmp_path / name, equipment, maximum_bytes=LIMIT)
            assert (answer["state"], answer["reasons"]) == ("failed", ["unreadable"])

    def test_what_a_file_is_does_not_depend_on_its_name(self, equipment: Equipment, tmp_path: Path) -> None:
        picture, radiograph = tmp_path / "picture.dcm", tmp_path / "radiograph.png"
        Pillow.fromarray(np.tile(np.linspace(150, 230, 64, dtype=np.uint8), (64, 1))).save(picture, format="PNG")
        write_radiograph(radiograph, BRIGHT)
        assert predict_file(picture, equipment, maximum_bytes=LIMIT)["gate"]["notes"]
        answer = predict_file(radiograph, equipment, maximum_bytes=LIMIT)
        assert (answer["state"], answer["gate"]["notes"]) == ("reported", [])

    def test_a_preamble_that_looks_like_a_picture_makes_none(self, equipment: Equipment, tmp_path: Path) -> None:
        file = write_radiograph(tmp_path / "a.dcm", BRIGHT)
        for start in (b"II*\x00", b"BM"):
            file.write_bytes(start.ljust(128, b"\0") + file.read_bytes()[128:])
            answer = predict_file(file, equipment, maximum_bytes=LIMIT)
            assert (answer["state"], answer["gate"]["notes"]) == ("reported", [])

    def test_other_images_are_refused_as_what_they_are(self, equipment: Equipment, tmp_path: Path) -> None:
        for kind in ("BMP", "GIF", "WEBP"):
            Pillow.new("L", (64, 64)).save(tmp_path / kind, format=kind)
            answer = predict_file(tmp_path / kind, equipment, maximum_bytes=LIMIT)
            assert (answer["state"], answer["reasons"]) == ("rejected", ["image_format_not_supported"])

    def test_a_name_that_is_no_text_can_be_written_down(self, equipment: Equipment, tmp_path: Path) -> None:
        file = tmp_path / "gr\udce4uel.dcm"  # a name in Latin-1, as Python sees it
        file.write_bytes(b"rubbish")
        line = dump(predict_file(file, equipment, maximum_bytes=LIMIT))
        line.encode("ascii")
        assert json.loads(line)["path"] == str(file)


class TestFindingFiles:
    def test_folders_are_searched_in_the_order_of_names_whatever_their_depth(self, tmp_path: Path) -> None:
        for name in ("b/2.dcm", "b/1.dcm", "a/z/deep.dcm", "c.png", "a/first"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        found = [str(file.relative_to(tmp_path)) for file in find_files([tmp_path])]
        assert found == ["a/first", "a/z/deep.dcm", "b/1.dcm", "b/2.dcm", "c.png"]

    def test_files_and_folders_come_in_the_order_in_which_they_are_named(self, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        for name in ("z.dcm", "a.dcm", "folder/m.dcm"):
            (tmp_path / name).touch()
        named = [tmp_path / "z.dcm", tmp_path / "folder", tmp_path / "a.dcm"]
        assert [file.name for file in find_files(named)] == ["z.dcm", "m.dcm", "a.dcm"]

    def test_hidden_files_and_folders_are_left_out_unless_they_are_named(self, tmp_path: Path) -> None:
        (tmp_path / ".hidden").mkdir()
        for name in (".DS_Store", ".hidden/inside.dcm", "seen.dcm"):
            (tmp_path / name).touch()
        assert [file.name for file in find_files([tmp_path])] == ["seen.dcm"]
        assert [file.name for file in find_files([tmp_path / ".hidden"])] == ["inside.dcm"]
        assert [file.name for file in find_files([tmp_path / ".DS_Store"])] == [".DS_Store"]

    def test_an_empty_folder_has_none(self, tmp_path: Path) -> None:
        assert list(find_files([tmp_path])) == []
