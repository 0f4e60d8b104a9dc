"""The picture tells the answer without the report, and never who the patient is."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest
from results import PREDECESSOR, finding, picture, result, source, with_findings, written
from stepwedge.dicom import picture as drawing
from stepwedge.dicom.picture import draw
from stepwedge.dicom.wording import figures, finding_line
from stepwedge.records import Decision, FloatArray, ModelReference, State, UnitResult

CREATED = datetime.fromisoformat("2026-11-23T21:10:05+01:00")
AMBER, ORANGE, TEAL = (255, 190, 30), (255, 122, 66), (18, 96, 110)


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that is drawn, in order."""
    drawn: list[str] = []
    write = drawing.write

    def listen(pen: object, at: object, text: str, *args: object, **options: object) -> None:
        drawn.append(text)
        write(pen, at, text, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(drawing, "write", listen)
    return drawn


def drawn(unit: UnitResult, image: FloatArray | None = None, supersedes: int | None = None) -> np.ndarray:
    pixels = draw(unit, image, created=CREATED, supersedes=supersedes)
    assert pixels.shape == (768, 1024, 3)
    assert pixels.dtype == np.uint8
    return pixels


def share(pixels: np.ndarray, colour: tuple[int, int, int]) -> float:
    return float((pixels == np.asarray(colour, dtype=np.uint8)).all(axis=2).mean())


@pytest.mark.parametrize(
    ("decision", "word", "colour"), [(Decision.ACT, "PRESENT", ORANGE), (Decision.CLEAR, "ABSENT", TEAL)]
)
def test_the_answer_is_large_and_has_its_colour(
    decision: Decision, word: str, colour: tuple[int, int, int], words: list[str]
) -> None:
    pixels = drawn(with_findings(result(), finding(decision)), picture())
    assert word in words
    assert "0.93" in words
    assert "act from 0.62, clear below 0.11" in words
    assert share(pixels, colour) > 0.08


@pytest.mark.parametrize(
    ("state", "word"), [(State.DEFERRED, "READ WITHOUT AI"), (State.REJECTED, "IMAGE NOT SUITABLE")]
)
def test_without_a_result_it_says_so_and_why_and_no_number(state: State, word: str, words: list[str]) -> None:
    unit = result(state)
    drawn(unit, picture())
    assert {"NO AI RESULT", word} <= set(words)
    assert unit.reasons[0].text.split()[-1] in " ".join(words)
    assert not any("PRESENT" in text or "0.35" in text for text in words)


@pytest.mark.parametrize("state", [State.REPORTED, State.DEFERRED, State.REJECTED])
def test_a_demonstration_has_a_banner_across(state: State, words: list[str]) -> None:
    pixels = drawn(result(state))
    assert "DEMONSTRATION – NOT FOR CLINICAL USE" in words
    assert share(pixels[:60, :100], AMBER) > 0.95
    words.clear()
    drawn(result(state, demonstration=False))
    assert not any("DEMONSTRATION" in text for text in words)


def test_a_later_revision_says_what_it_supersedes(words: list[str]) -> None:
    drawn(result(revision=2), supersedes=1)
    assert "Revision 2, supersedes revision 1" in words


def test_the_image_fills_its_half() -> None:
    pixels = drawn(result(), np.ones((100, 80), dtype=np.float32))
    assert share(pixels[:, :524], (255, 255, 255)) > 0.5


@pytest.mark.parametrize("shape", [(1, 1), (3000, 10), (10, 3000), (1024, 1024)])
def test_an_image_of_any_shape_can_be_drawn(shape: tuple[int, int]) -> None:
    drawn(result(), np.full(shape, np.nan, dtype=np.float32))


def test_an_inconclusive_finding_shows_no_figure(words: list[str]) -> None:
    for others in ((), (finding(),)):
        words.clear()
        drawn(with_findings(result(), finding(Decision.INCONCLUSIVE, probability=0.0317), *others), picture())
        assert {"INCONCLUSIVE", "Too little evidence in the package"} <= set(words)
        assert not any("0.03" in text for text in words)


def test_many_findings_and_long_texts_stay_inside(words: list[str]) -> None:
    findings = [finding(list(Decision)[n % 4], name=f"finding_{n}_" + "x" * 60, probability=n / 20) for n in range(20)]
    unit = with_findings(result(revision=12), *findings)
    unit = replace(unit, model=ModelReference(name="m" * 48, version="100.200.300", digest="a" * 64))
    pixels = drawn(unit, picture(), supersedes=11)
    assert (pixels[:, 1001:] == pixels[70, 1020]).all(axis=2)[70:].all()
    assert any("more in the structured report" in text for text in words)
    assert words.index("PRESENT") < words.index("UNDECIDED")


def test_characters_that_the_font_lacks_do_not_become_boxes() -> None:
    assert drawing._drawable("Größe ≥ 3 × 山 – é") == "Gro?e >= 3 x ? – e"


def test_the_object_has_no_identity_in_its_pixels(words: list[str], tmp_path: Path) -> None:
    sc = written(tmp_path, result(revision=2), image=picture(), predecessor=PREDECESSOR)[1]
    made = pydicom.dcmread(sc.path)
    assert not any(secret in " ".join(words) for secret in ("Doe", "Jane", "PID-4711", "ACC-1", "1.2.826"))
    assert made.BurnedInAnnotation == "NO"
    assert (made.Modality, made.ConversionType, made.ImageType) == ("OT", "WSD", ["DERIVED", "SECONDARY"])
    assert made.pixel_array.shape == (768, 1024, 3)
    assert made.SourceImageSequence[0].ReferencedSOPInstanceUID == source().SOPInstanceUID
    assert made.ImageComments.startswith("DEMONSTRATION")


def test_what_a_source_has_burned_in_or_lost_stays_declared(tmp_path: Path) -> None:
    header = source(BurnedInAnnotation="YES", LossyImageCompression="01")
    made = pydicom.dcmread(written(tmp_path, result(), [header])[1].path)
    assert (made.BurnedInAnnotation, made.LossyImageCompression) == ("YES", "01")


@pytest.mark.parametrize(
    ("probability", "shown"),
    [
        (0.93, "0.93"),
        (0.6196, "0.6196"),
        (0.61999, "0.61999"),
        (0.62, "0.62"),
        (0.0, "<0.000001"),
        (0.9999999, ">0.999999"),
    ],
)
def test_a_probability_never_reads_as_a_threshold_or_a_certainty_that_it_is_not(probability: float, shown: str) -> None:
    assert figures(finding(probability=probability))[0] == shown


def test_a_finding_reads_as_a_sentence() -> None:
    line = "Pneumonia: PRESENT – act; probability 0.93 (act from 0.62, clear below 0.11)"
    assert finding_line(finding()) == line
