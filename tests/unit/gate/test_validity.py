"""What the validity gate accepts, defers and rejects: headers, and the structure of pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from stepwedge.dicom.attributes import read_dataset
from stepwedge.dicom.decode import decode as decode_dataset
from stepwedge.dicom.header import read_header
from stepwedge.dicom.imagefile import read_image_file
from stepwedge.errors import DecodeError
from stepwedge.gate.validity import NO_HEADER_NOTE, judge_header, judge_pixels, pixel_statistics
from stepwedge.manifest import Input, IntendedUse
from stepwedge.records import FloatArray, GateVerdict, Header, Image, Verdict

INTENDED = IntendedUse(
    summary="Frontal chest radiographs of small children",
    modality=["CR", "DX"],
    body_part=["CHEST"],
    view=["AP", "PA"],
    age_years=(1, 6),
)
INPUT = Input(name="image", rows=224, columns=224, presentation={"kind": "range"})
CHILD = Header(modality="DX", body_part="CHEST", view_position="AP", age_years=3.2)
FALSE_REJECTION_LIMIT = 0.005


def codes(verdict: GateVerdict) -> list[str]:
    return [reason.code for reason in verdict.reasons]


# --- The header


def test_an_intended_image_is_accepted() -> None:
    assert judge_header(CHILD, INTENDED) == GateVerdict(verdict=Verdict.ACCEPT)


@pytest.mark.parametrize(
    ("change", "verdict", "code", "detail"),
    [
        ({"modality": "CT"}, Verdict.REJECT, "modality_not_intended", "CT, intended CR, DX"),
        ({"modality": ""}, Verdict.REJECT, "modality_not_intended", "none stated, intended CR, DX"),
        ({"body_part": "EXTREMITY"}, Verdict.REJECT, "body_part_not_intended", "EXTREMITY, intended CHEST"),
        ({"body_part": ""}, Verdict.DEFER, "body_part_missing", "intended CHEST"),
        ({"view_position": "LL"}, Verdict.REJECT, "view_not_intended", "LL, intended AP, PA"),
        ({"view_position": "AP SUPINE"}, Verdict.REJECT, "view_not_intended", "AP SUPINE, intended AP, PA"),
        ({"view_position": ""}, Verdict.DEFER, "view_missing", "intended AP, PA"),
        ({"age_years": 64.5}, Verdict.DEFER, "age_not_intended", "age 64, intended 1 to under 6"),
        ({"age_years": 0.9}, Verdict.DEFER, "age_not_intended", "age 0, intended 1 to under 6"),
        ({"age_years": 6.0}, Verdict.DEFER, "age_not_intended", "age 6, intended 1 to under 6"),
        ({"age_years": 89.9}, Verdict.DEFER, "age_not_intended", "age 89, intended 1 to under 6"),
        ({"age_years": 97.0}, Verdict.DEFER, "age_not_intended", "age over 89, intended 1 to under 6"),
        ({"age_years": None}, Verdict.DEFER, "age_missing", "intended 1 to under 6"),
        ({"frames": 3}, Verdict.REJECT, "multi_frame", "3 frames"),
    ],
)
def test_what_is_not_intended_has_a_reason(change: dict[str, Any], verdict: Verdict, code: str, detail: str) -> None:
    judged = judge_header(replace(CHILD, **change), INTENDED)
    assert judged.verdict is verdict
    assert [(reason.code, reason.detail) for reason in judged.reasons] == [(code, detail)]


@pytest.mark.parametrize(
    "change",
    [
        {"age_years": 1.0},
        {"age_years": 5.99},
        {"body_part": "chest "},
        {"body_part": "Thorax"},
        {"view_position": "Postero-Anterior"},
        {"modality": "cr"},
    ],
)
def test_edges_of_the_range_and_other_spellings_are_intended(change: dict[str, Any]) -> None:
    assert judge_header(replace(CHILD, **change), INTENDED).verdict is Verdict.ACCEPT


@pytest.mark.parametrize("view", ["LL", "RL", "LAT", "lateral"])
def test_a_package_for_lateral_views_takes_either_side(view: str) -> None:
    intended = INTENDED.model_copy(update={"view": ["LATERAL"]})
    assert judge_header(replace(CHILD, view_position=view), intended).verdict is Verdict.ACCEPT


def test_a_package_may_name_a_view_of_its_own() -> None:
    intended = INTENDED.model_copy(update={"view": ["AP", "ap supine"]})
    assert judge_header(replace(CHILD, view_position="AP SUPINE"), intended).verdict is Verdict.ACCEPT


def test_all_reasons_are_given_and_the_worst_wins() -> None:
    judged = judge_header(Header(modality="DX", body_part="HAND", age_years=40), INTENDED)
    assert judged.verdict is Verdict.REJECT
    assert codes(judged) == ["body_part_not_intended", "view_missing", "age_not_intended"]


def test_an_empty_condition_asks_for_nothing() -> None:
    anything = IntendedUse(summary="Any radiograph", modality=["DX"])
    assert judge_header(Header(modality="DX"), anything).verdict is Verdict.ACCEPT


def test_an_image_without_a_header_is_accepted_with_a_note() -> None:
    judged = judge_header(Header(present=False), INTENDED)
    assert judged == GateVerdict(verdict=Verdict.ACCEPT, notes=(NO_HEADER_NOTE,))


def test_free_text_in_a_coded_attribute_is_not_repeated() -> None:
    judged = judge_header(replace(CHILD, body_part="CHEST OF JOHN DOE, BORN 1961"), INTENDED)
    assert codes(judged) == ["body_part_not_intended"]
    assert "DOE" not in judged.reasons[0].detail


@pytest.mark.parametrize(
    ("field", "code"),
    [
        ("modality", "modality_not_intended"),
        ("body_part", "body_part_not_intended"),
        ("view_position", "view_not_intended"),
    ],
)
def test_an_unknown_term_is_never_intended_whatever_a_package_names(field: str, code: str) -> None:
    named = INTENDED.model_copy(update={key: ["OTHER"] for key in ("modality", "body_part", "view")})
    for intended in (INTENDED, named):
        judged = judge_header(replace(CHILD, **{field: "OTHER"}), intended)
        assert judged.verdict is Verdict.REJECT
        assert next(reason for reason in judged.reasons if reason.code == code).detail.startswith("not a defined term")


def test_the_oldest_patients_are_shown_as_over_89() -> None:
    dataset = Dataset()
    dataset.PatientAge = "104Y"
    adults = INTENDED.model_copy(update={"age_years": (18, 80), "modality": [], "body_part": [], "view": []})
    (reason,) = judge_header(read_header(dataset), adults).reasons
    assert reason.detail == "age over 89, intended 18 to under 80"


@given(st.builds(Header, modality=st.text(), body_part=st.text(), view_position=st.text(), frames=st.integers(1, 9)))
def test_any_header_gets_a_verdict_with_reasons(header: Header) -> None:
    judged = judge_header(header, INTENDED)
    assert (judged.verdict is Verdict.ACCEPT) == (not judged.reasons)


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("RG1_J2KR.dcm", Verdict.DEFER),  # a chest of 64 years
        ("RG3_RLE.dcm", Verdict.REJECT),  # a limb
        ("RG2_JPLL.dcm", Verdict.REJECT),  # a hip
        ("MG_GH133_jpll.dcm", Verdict.REJECT),
        ("CT1_big_endian.dcm", Verdict.REJECT),
        ("CR-MONO1-10-chest_no_meta.dcm", Verdict.DEFER),  # no age
        ("CR_modality_lut_sequence.dcm", Verdict.DEFER),  # neither body part nor view, age 119
    ],
)
def test_real_headers(shared: Path, name: str, verdict: Verdict) -> None:
    assert judge_header(read_header(read_dataset(shared / "data/dicom" / name)), INTENDED).verdict is verdict


# --- The pixels


def judged(pixels: FloatArray, spec: Input = INPUT, value_range: tuple[float, float] = (0, 255)) -> GateVerdict:
    image = Image(pixels=np.ascontiguousarray(pixels, np.float32), value_range=value_range)
    return judge_pixels(image, pixel_statistics(image), spec)


def picture(rows: int = 400, columns: int = 300) -> FloatArray:
    """Something smooth with a little noise, 20…230."""
    noise = np.random.default_rng(3).normal(0, 2, (rows, columns))
    y, x = np.mgrid[0:rows, 0:columns]
    wave: FloatArray = (125 + 60 * np.sin(x / 40) + 40 * np.cos(y / 30) + noise).astype(np.float32)
    return wave.round()


def test_an_ordinary_image_is_accepted_with_its_measures() -> None:
    verdict = judged(picture())
    assert verdict.verdict is Verdict.ACCEPT
    assert {"mean", "sd", "sharpness", "edge_band_rows", "inner_band_rows", "repeated_rows"} <= set(verdict.measures)
    assert all(np.isfinite(value) for value in verdict.measures.values())


def test_statistics_are_on_the_stored_range() -> None:
    statistics = pixel_statistics(Image(pixels=np.tile(np.float32([0, 50, 100]), (300, 100)), value_range=(-100, 100)))
    assert statistics.mean == pytest.approx(0.75)
    assert (statistics.p01, statistics.p50, statistics.p99) == (0.5, 0.75, 1)
    assert statistics.low_share == statistics.high_share == pytest.approx(1 / 3)
    assert statistics.entropy == pytest.approx(np.log2(3))


def test_statistics_of_a_sampled_image_are_those_of_the_whole() -> None:
    small = picture(500, 400)
    large = np.tile(small, (5, 6))
    one, other = (pixel_statistics(Image(pixels=pixels, value_range=(0, 255))) for pixels in (small, large))
    assert one.mean == pytest.approx(other.mean, abs=0.005)
    assert one.sharpness == pytest.approx(other.sharpness, rel=0.05)


def test_statistics_are_the_same_every_time() -> None:
    image = Image(pixels=picture(1500, 1300), value_range=(0, 255))
    assert pixel_statistics(image) == pixel_statistics(image)


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (2, 2)])
def test_the_smallest_images_are_judged_without_a_warning(shape: tuple[int, int]) -> None:
    assert "image_too_small" in codes(judged(np.ones(shape, np.float32)))


def test_an_image_below_half_the_input_is_too_small() -> None:
    assert codes(judged(picture(111, 300))) == ["image_too_small"]
    assert codes(judged(picture(300, 111))) == ["image_too_small"]
    assert codes(judged(picture(112, 112))) == []


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_a_uniform_image_is_blank(grey: int) -> None:
    assert "image_blank" in codes(judged(np.full((300, 300), grey, np.float32)))


def test_noise_is_blank() -> None:
    noise = np.random.default_rng(1).normal(128, 30, (300, 300))
    assert codes(judged(noise)) == ["image_blank"]


def test_an_image_mostly_at_its_ends_is_saturated() -> None:
    assert codes(judged(np.clip(picture() * 6 - 400, 0, 255))) == ["image_saturated"]


@pytest.mark.parametrize("kept", [0.1, 0.4, 0.75])
@pytest.mark.parametrize("fill", [0, 128, 255])
@pytest.mark.parametrize("upside_down", [False, True])
def test_an_interrupted_readout_is_truncated(kept: float, fill: int, upside_down: bool) -> None:
    pixels = picture()
    pixels[int(kept * 400) :] = fill
    found = codes(judged(pixels[::-1] if upside_down else pixels))
    assert set(found) <= {"image_truncated", "image_saturated"}
    assert found


def test_a_little_that_a_decoder_filled_with_grey_is_truncated() -> None:
    pixels = picture()
    pixels[376:] = 128
    assert codes(judged(pixels)) == ["image_truncated"]


def test_rows_lost_within_are_truncated() -> None:
    pixels = picture()
    pixels[200:215] = 0
    assert codes(judged(pixels)) == ["image_truncated"]


def test_a_readout_that_repeats_a_row_is_truncated() -> None:
    pixels = picture()
    pixels[250:] = pixels[250]
    assert codes(judged(pixels)) == ["image_truncated"]


def test_collimation_on_opposite_sides_is_not_truncation() -> None:
    pixels = picture()
    pixels[:120] = pixels[340:] = pixels[:, :40] = pixels[:, 260:] = 0
    assert codes(judged(pixels)) == []


def test_a_black_border_on_one_side_is_not_truncation() -> None:
    pixels = picture()
    pixels[:64] = 0
    assert codes(judged(pixels)) == []


def test_black_around_a_rounded_object_is_not_truncation() -> None:
    y, x = np.mgrid[0:400, 0:300]
    pixels = np.where((x - 150) ** 2 + (y - 400) ** 2 < 240**2, picture(), 0)  # the upper 40 % are black
    assert codes(judged(pixels)) == []


def test_notes_of_the_image_go_on() -> None:
    image = Image(pixels=picture(), value_range=(0, 255), notes=("a note",))
    assert judge_pixels(image, pixel_statistics(image), INPUT).notes == ("a note",)


# --- Real images: how often the limits are wrong, and how often they find a fault


@pytest.mark.parametrize(("folder", "step"), [("pneumonia", 8), ("nih", 4)])
def test_real_radiographs_are_not_rejected(shared: Path, folder: str, step: int) -> None:
    """Measured on all 4,416 and 1,309: none is rejected. Here on every eighth and every fourth."""
    files = sorted((shared / "data" / folder / "images").rglob("*.jpg"))[::step]
    assert len(files) > 300
    rejected = [file.name for file in files if codes(_judge_file(file))]
    assert len(rejected) <= FALSE_REJECTION_LIMIT * len(files), rejected


def test_real_dicom_images_are_not_rejected(shared: Path) -> None:
    checked = 0
    for file in sorted((shared / "data/dicom").glob("*.dcm")):
        try:
            image = decode_dataset(read_dataset(file), maximum_bytes=2**29)
        except DecodeError:
            continue
        assert codes(judge_pixels(image, pixel_statistics(image), INPUT)) == [], file.name
        checked += 1
    assert checked == 14


def test_most_faults_made_in_real_radiographs_are_found(shared: Path) -> None:
    """Measured on a tenth of the images: 98 % of bands at an edge, and all bands within, repeats, and noise."""
    files = sorted((shared / "data/nih/images").rglob("*.jpg"))[::40]
    found = {"bottom": 0, "grey": 0, "within": 0, "repeated": 0}
    for file in files:
        pixels = read_image_file(file).pixels
        for name in found:
            broken = pixels.copy()
            if name == "bottom":
                broken[180:] = 0
            elif name == "grey":
                broken[235:] = 128
            elif name == "within":
                broken[130:142] = 0
            else:
                broken[160:] = broken[160]
            found[name] += "image_truncated" in codes(judged(broken))
    assert all(count >= 0.9 * len(files) for count in found.values()), found


def _judge_file(file: Path) -> GateVerdict:
    image = read_image_file(file)
    return judge_pixels(image, pixel_statistics(image), INPUT)
