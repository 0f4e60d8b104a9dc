"""A heat map lies where the model saw what it marks, and is read on any screen."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Literal

import numpy as np
import pytest
from results import finding, heat, picture, result, source, with_findings
from stepwedge.dicom.heatmap import (
    PlacedHeat,
    _loops,
    coloured,
    contours,
    draw_heat,
    explained_finding,
    over_image,
    shown_area,
)
from stepwedge.inference.preprocess import resized
from stepwedge.records import Decision, State

Fit = Literal["stretch", "crop", "pad"]
FITS: list[Fit] = ["stretch", "crop", "pad"]
SIZES = [(300, 200), (200, 300), (257, 256), (90, 400)]
CREATED = datetime.fromisoformat("2026-11-23T21:10:05+01:00")


def placed(size: tuple[int, int], fit: Fit, values: np.ndarray | None = None) -> PlacedHeat:
    made = heat(source(Rows=size[0], Columns=size[1]), values=values)
    return replace(made, spec=made.spec.model_copy(update={"fit": fit}))


def area_of(line: np.ndarray) -> float:
    """The area inside a closed line, positive or negative by its direction (shoelace formula)."""
    x, y = line.T
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", SIZES)
def test_a_mark_that_the_model_sees_is_found_again_in_the_image(size: tuple[int, int], fit: Fit) -> None:
    spec = placed(size, fit).spec
    rows, columns = size
    image = np.zeros(size, np.float32)
    row, column = int(rows * 0.45), int(columns * 0.58)
    image[row - 4 : row + 4, column - 4 : column + 4] = 1.0
    seen = resized(image, spec)
    assert seen.max() > 0.5
    weights = np.maximum(seen, 0)
    at = [float((np.arange(128) + 0.5) @ weights.sum(axis=1 - axis) / weights.sum()) / 128 for axis in (0, 1)]
    top, left, bottom, right = shown_area(rows, columns, spec)
    assert top + at[0] * (bottom - top) == pytest.approx(row, abs=0.6)
    assert left + at[1] * (right - left) == pytest.approx(column, abs=0.6)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", SIZES)
def test_contours_are_closed_and_lie_around_what_is_hot(size: tuple[int, int], fit: Fit) -> None:
    values = np.zeros((8, 8), np.float32)
    values[3, 4] = 1.0
    made = placed(size, fit, values)
    top, left, bottom, right = shown_area(*size, made.spec)
    centre = (left + (right - left) * 4.5 / 8, top + (bottom - top) * 3.5 / 8)
    (line,) = contours(made, 0.5)
    assert (line[0] == line[-1]).all()
    assert (line >= 0).all()
    assert (line <= [size[1], size[0]]).all()
    assert line.mean(axis=0) == pytest.approx(centre, abs=max(size) / 50)
    assert abs(area_of(line)) > abs(area_of(contours(made, 0.75)[0])) > 0


def test_a_cropped_border_has_no_heat() -> None:
    heated = over_image(placed((200, 400), "crop", np.ones((4, 4), np.float32)), (20, 40))
    assert (heated[:, 10:30] == 1).all()
    assert (heated[:, :10] == 0).all()
    assert (heated[:, 30:] == 0).all()
    (line,) = contours(placed((200, 400), "crop", np.ones((4, 4), np.float32)), 0.5)
    assert abs(area_of(line)) == pytest.approx(200 * 200, rel=0.05)


def test_heat_in_the_padding_is_not_drawn_beside_the_image() -> None:
    values = np.zeros((4, 4), np.float32)
    values[:, 0] = 1.0
    assert contours(placed((400, 100), "pad", values), 0.5) == []


def test_heat_everywhere_is_outlined_by_the_border_of_the_image() -> None:
    (line,) = contours(placed((300, 200), "stretch", np.ones((4, 4), np.float32)), 0.75)
    assert abs(area_of(line)) == pytest.approx(300 * 200, rel=0.02)


def test_a_map_without_heat_has_no_contours() -> None:
    assert contours(placed((300, 200), "stretch", np.zeros((4, 4), np.float32)), 0.5) == []


@pytest.mark.parametrize("joined", [True, False])
def test_two_places_that_touch_at_a_corner_are_one_or_two(joined: bool) -> None:
    field = np.zeros((4, 4))
    field[1, 1] = field[2, 2] = 1.0
    field[1, 2] = field[2, 1] = 0.3 if joined else 0.0
    lines = _loops(field, 0.55)
    assert len(lines) == (1 if joined else 2)
    assert all((line[0] == line[-1]).all() for line in lines)


def test_any_map_gives_lines_that_separate_hot_from_cold() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        field = np.pad(rng.random((9, 7)), 1)
        lines = _loops(field, 0.5)
        assert all((line[0] == line[-1]).all() for line in lines)
        # Around the hot clockwise, around the cold the other way: together they enclose about what is hot.
        enclosed = sum(area_of(line) for line in lines)
        assert abs(enclosed) == pytest.approx((field >= 0.5).sum(), rel=0.35)


@pytest.mark.parametrize("grey", [0.0, 0.3, 0.7, 1.0])
def test_more_heat_is_brighter_on_a_grey_screen_whatever_it_lies_on(grey: float) -> None:
    scale = np.linspace(0, 1, 101, dtype=np.float32)[None]
    pixels = coloured(np.full_like(scale, grey), scale).astype(float)[0]
    luminance = pixels @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) >= 0).all()
    assert luminance[-1] - luminance[0] > 30


def test_the_image_is_where_the_picture_of_the_result_has_it() -> None:
    unit, flat = result(), np.full((200, 180), 0.5, np.float32)
    cold = heat(values=np.zeros((4, 4), np.float32))
    pixels = draw_heat(unit, flat, cold, created=CREATED, supersedes=None)
    assert pixels.shape == (768, 1024, 3)
    assert (pixels[384, 274] == round(0.75 * 127)).all() or (pixels[384, 274] == round(0.75 * 128)).all()


def test_what_is_hot_is_red_and_what_is_cold_stays_grey() -> None:
    pixels = draw_heat(result(), np.full((200, 180), 0.3, np.float32), heat(), created=CREATED, supersedes=None)
    image = pixels[84:684, 24:524].astype(int)
    assert (image[..., 0] - image[..., 2]).max() > 80
    assert np.median(image[450:, :, 0] - image[450:, :, 2]) == 0


@pytest.mark.parametrize("shape", [(1, 1), (900, 30), (30, 900), (1024, 1024)])
def test_a_heat_map_on_an_image_of_any_shape_can_be_drawn(shape: tuple[int, int]) -> None:
    made = placed(shape, "stretch")
    assert draw_heat(result(), np.zeros(shape, np.float32), made, created=CREATED, supersedes=None).any()


def test_only_what_is_reported_and_not_cleared_is_explained() -> None:
    reported = result()
    assert explained_finding(reported, heat()) == reported.findings[0]
    assert explained_finding(reported, None) is None
    assert explained_finding(result(State.DEFERRED), heat()) is None
    assert explained_finding(with_findings(reported, finding(Decision.CLEAR)), heat()) is None
    assert explained_finding(with_findings(reported, finding(Decision.INCONCLUSIVE)), heat()) is None
    assert explained_finding(reported, heat(finding="something_else")) is None
    assert explained_finding(reported, heat(source(Rows=None))) is None


def test_long_texts_stay_inside() -> None:
    long = finding(name="x" * 64)
    pixels = draw_heat(
        with_findings(result(revision=3), long), picture(), heat(finding="x" * 64), created=CREATED, supersedes=2
    )
    assert (pixels[70:, 1003:] == pixels[70, 1020]).all()
