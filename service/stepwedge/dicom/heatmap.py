"""A heat map on the image that it is of: where it lies, its contours, and the picture that shows it.

The picture has the layout of the picture of the result and the image in the same place, in the same series: leafing
from one to the other switches the heat on and off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset

from stepwedge.dicom import wording
from stepwedge.dicom.context import NodeIdentity, Predecessor, created_at
from stepwedge.dicom.picture import (
    BLACK,
    DECISIONS,
    FAINT,
    INK,
    Box,
    begin,
    capture,
    fitted,
    size_that_fits,
    text_width,
    wrapped,
    write,
)
from stepwedge.dicom.texts import element_count
from stepwedge.manifest import Input
from stepwedge.records import Decision, Finding, FloatArray, HeatMap, State, UnitResult

# Sampling of a heat map for its contours, along the longer side of the image: far finer than any heat map is.
_CONTOUR_SAMPLES = 128
_DIMMED = 0.75  # of the image's brightness under the heat, so that heat is seen on bright bone, too
_Edge = tuple[str, int, int]
_TOP, _RIGHT, _BOTTOM, _LEFT = range(4)


@dataclass(frozen=True, kw_only=True)
class PlacedHeat:
    """A heat map with the header of the image that it is of, and how the model was shown that image."""

    heat: HeatMap
    image: Dataset
    spec: Input  # the package's first input


def explained_finding(result: UnitResult, placed: PlacedHeat | None) -> Finding | None:
    """The finding that the heat map of a result is about; None where there is none to show.

    A result that is not reported has none: it reads "No AI result". Nor has a finding that the study's answer clears,
    whatever one image of it says, or an image whose size the header does not give.
    """
    if placed is None or result.state is not State.REPORTED or image_size(placed.image) is None:
        return None
    shown = (Decision.ACT, Decision.DEFER)
    return next((f for f in result.findings if f.name == placed.heat.finding and f.decision in shown), None)


def image_size(item: Dataset) -> tuple[int, int] | None:
    """Rows and columns of an image, from its header."""
    rows, columns = element_count(item, "Rows"), element_count(item, "Columns")
    return (rows, columns) if rows and columns else None


def shown_area(rows: int, columns: int, spec: Input) -> tuple[float, float, float, float]:
    """What of an image the model was shown: top, left, bottom, right in pixels of the image.

    Pixel (0, 0) reaches from 0 to 1. The area goes beyond the image where it was padded. It is that of
    ``inference.preprocess.resized``.
    """
    ratio = spec.columns / spec.rows
    if spec.fit == "crop":
        high, wide = max(1, min(rows, round(columns / ratio))), max(1, min(columns, round(rows * ratio)))
        top, left = (rows - high) // 2, (columns - wide) // 2
    elif spec.fit == "pad":
        high, wide = max(rows, round(columns / ratio)), max(columns, round(rows * ratio))
        top, left = -((high - rows) // 2), -((wide - columns) // 2)
    else:
        high, wide, top, left = rows, columns, 0, 0
    return float(top), float(left), float(top + high), float(left + wide)


def over_image(placed: PlacedHeat, samples: tuple[int, int]) -> FloatArray:
    """The heat at even distances over the whole image, bilinear, (rows, columns) of ``samples``.

    It is zero where the model was not shown the image.
    """
    size = image_size(placed.image)
    assert size is not None, "checked by explained_finding"
    top, left, bottom, right = shown_area(*size, placed.spec)
    low_row, high_row, row_share, in_rows = _positions(samples[0], size[0], (top, bottom), placed.heat.values.shape[0])
    low, high, share, in_columns = _positions(samples[1], size[1], (left, right), placed.heat.values.shape[1])
    values = placed.heat.values
    rows = values[low_row] * (1 - row_share)[:, None] + values[high_row] * row_share[:, None]
    sampled = rows[:, low] * (1 - share) + rows[:, high] * share
    return np.asarray(np.clip(sampled, 0, 1) * (in_rows[:, None] & in_columns), np.float32)


def _positions(
    samples: int, size: int, span: tuple[float, float], cells: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64], NDArray[np.bool_]]:
    """Along one side: the cells before and behind each sample, the share of the second, and whether it was shown."""
    at = (np.arange(samples) + 0.5) * size / samples
    start, end = span
    place = np.clip((at - start) / (end - start) * cells - 0.5, 0, cells - 1)
    before = np.floor(place).astype(np.intp)
    behind = np.minimum(before + 1, cells - 1)
    return before, behind, place - before, (at >= start) & (at <= end)


def contours(placed: PlacedHeat, level: float) -> list[NDArray[np.float64]]:
    """Where the heat crosses a level: closed lines, each (n, 2) of (column, row) in pixels of the original image.

    The first point of a line is its last. The upper left corner of the image is (0, 0), the lower right one (columns,
    rows), as in a presentation state (PS3.3 section C.10.5).
    """
    size = image_size(placed.image)
    assert size is not None, "checked by explained_finding"
    step = max(size) / _CONTOUR_SAMPLES
    samples = (max(2, round(size[0] / step)), max(2, round(size[1] / step)))
    # A rim of zeros closes the lines at the border of the image.
    field = np.pad(over_image(placed, samples).astype(np.float64), 1)
    lines = []
    for line in _loops(field, level):
        points = (line - 0.5) * [size[1] / samples[1], size[0] / samples[0]]
        lines.append(np.clip(points, 0, [size[1], size[0]]).round(2))
    return lines


def _loops(field: NDArray[np.float64], level: float) -> list[NDArray[np.float64]]:
    """Closed lines along which a field has a value, as (column, row) in samples (marching squares).

    Every square between four samples is crossed by a line from the side where, clockwise, the field falls below the
    level to the side where it rises above it; in a saddle the mean says which two belong together.
    """
    inside = field >= level
    corners = np.stack([inside[:-1, :-1], inside[:-1, 1:], inside[1:, 1:], inside[1:, :-1]])
    follows: dict[_Edge, _Edge] = {}
    for row, column in np.argwhere(corners.any(axis=0) & ~corners.all(axis=0)):
        around = corners[:, row, column]
        edges = _sides(int(row), int(column))
        falls = [side for side in range(4) if around[side] and not around[(side + 1) % 4]]
        rises = [side for side in range(4) if not around[side] and around[(side + 1) % 4]]
        joined = field[row : row + 2, column : column + 2].mean() >= level
        for side in falls:
            other = rises[0] if len(rises) == 1 else (side + (1 if joined else 3)) % 4
            follows[edges[side]] = edges[other]
    lines = []
    while follows:
        start, edge = follows.popitem()
        points = [_crossing(field, level, start)]
        while edge != start:
            points.append(_crossing(field, level, edge))
            edge = follows.pop(edge)
        lines.append(np.array([*points, points[0]]))
    return lines[::-1]


def _sides(row: int, column: int) -> dict[int, _Edge]:
    """The four sides of a square: ``h`` from a sample to the next in its row, ``v`` to the next in its column."""
    return {
        _TOP: ("h", row, column),
        _RIGHT: ("v", row, column + 1),
        _BOTTOM: ("h", row + 1, column),
        _LEFT: ("v", row, column),
    }


def _crossing(field: NDArray[np.float64], level: float, edge: _Edge) -> tuple[float, float]:
    direction, row, column = edge
    here = field[row, column]
    there = field[row, column + 1] if direction == "h" else field[row + 1, column]
    share = (level - here) / (there - here)
    return (column + share, row) if direction == "h" else (column, row + share)


def coloured(picture: FloatArray, heat: FloatArray) -> NDArray[np.uint8]:
    """Heat over a picture, both (rows, columns) on 0…1: (rows, columns, 3), RGB.

    Red, orange, yellow are added to the dimmed picture as light is (screen). Every channel grows with the heat, so that
    more heat is brighter on a grey-scale screen too, whatever it lies on.
    """
    light = np.stack([heat**1.2, 0.75 * heat**2, 0.3 * heat**4], axis=-1)
    return np.asarray(((1 - (1 - _DIMMED * picture[..., None]) * (1 - light)) * 255).round(), np.uint8)


def heat_object(
    result: UnitResult,
    evidence: Sequence[Dataset],
    picture: FloatArray,
    placed: PlacedHeat,
    *,
    node: NodeIdentity,
    predecessor: Predecessor | None,
) -> Dataset:
    """The Secondary Capture with the heat over the image, in the series of the picture (PS3.3 section A.8.1)."""
    created, _ = created_at(result, evidence[0])
    pixels = draw_heat(
        result, picture, placed, created=created, supersedes=predecessor.revision if predecessor else None
    )
    described = "Heat map of an AI model over the image that was analysed, for people to read"
    return capture("heat", result, [placed.image], pixels, node=node, described=described)


def draw_heat(
    result: UnitResult, picture: FloatArray, placed: PlacedHeat, *, created: datetime, supersedes: int | None
) -> NDArray[np.uint8]:
    """Draw the heat map of a result: (768, 1024, 3), RGB."""
    sheet = begin(result, picture, created=created, supersedes=supersedes)
    finding = explained_finding(result, placed)
    assert sheet.image is not None
    assert finding is not None, "the caller checks that there is something to explain"
    left, top, right, bottom = sheet.image
    grey = np.asarray(sheet.canvas.crop(sheet.image), np.float32)[..., 0] / np.float32(255)
    heat = over_image(placed, (bottom - top, right - left))
    sheet.canvas.paste(Image.fromarray(coloured(grey, heat)), (left, top))
    size = image_size(placed.image)
    assert size is not None
    scale = np.array([(right - left - 1) / size[1], (bottom - top - 1) / size[0]])
    for level, width in zip(wording.LEVELS, _WIDTHS, strict=True):
        for line in contours(placed, level):
            points = [(float(x), float(y)) for x, y in line * scale + [left, top]]
            sheet.pen.line(points, fill=BLACK, width=width + 2, joint="curve")
            sheet.pen.line(points, fill=INK, width=width, joint="curve")
    _explain(sheet.pen, sheet.canvas, finding, placed.heat, sheet.free)
    return np.asarray(sheet.canvas)


_WIDTHS: Final = (1, 3)  # pixels, of the contour at each level


def _explain(pen: ImageDraw.ImageDraw, canvas: Image.Image, finding: Finding, heat: HeatMap, box: Box) -> None:
    """What the heat is about, its scale, and what it is not."""
    left, top, right, bottom = box
    ground, ink = DECISIONS[finding.decision]
    pen.rectangle((left, top, right, top + 114), fill=ground)
    width = right - left - 44
    lines = wrapped(wording.label(finding), 26, width)
    if len(lines) > 1:
        lines = [lines[0], fitted(" ".join(lines[1:]), 26, width)]
    y = top + (10 if len(lines) > 1 else 20)
    for line in lines:
        write(pen, (left + 22, y), line, 26, ink, bold=True)
        y += 31
    word = f"{wording.PRESENCE[finding.decision]} – {wording.ACTIONS[finding.decision]}"
    write(pen, (left + 22, y + 2), word, size_that_fits(word, 26, width), ink)
    top += 132
    write(pen, (left, top), "Where the answer comes from", 26, INK, bold=True)
    top = _draw_legend(pen, canvas, (left, top + 44, right, top + 100))
    for text in wording.heat_lines(heat):
        for line in wrapped(text, 21, right - left):
            if top + 26 > bottom:
                return
            write(pen, (left, top), line, 21, INK if top < bottom - 52 else FAINT)
            top += 27
        top += 9


def _draw_legend(pen: ImageDraw.ImageDraw, canvas: Image.Image, box: Box) -> int:
    """The colours over dark and over bright image, with the contours' levels; where the next thing may begin."""
    left, top, right, bottom = box
    scale = np.broadcast_to(np.linspace(0, 1, right - left, dtype=np.float32), (bottom - top, right - left))
    below = np.broadcast_to(np.where(np.arange(bottom - top) < (bottom - top) / 2, 0.15, 0.8)[:, None], scale.shape)
    canvas.paste(Image.fromarray(coloured(below.astype(np.float32), scale.astype(np.float32))), (left, top))
    for level, width in zip(wording.LEVELS, _WIDTHS, strict=True):
        x = left + level * (right - left)
        pen.line((x, top, x, bottom), fill=BLACK, width=width + 2)
        pen.line((x, top, x, bottom), fill=INK, width=width)
        write(pen, (x, bottom + 14), f"{100 * level:.0f} %", 20, INK, centred=True)
    write(pen, (left, bottom + 4), "none", 18, FAINT)
    write(pen, (right - text_width("strongest", 18), bottom + 4), "strongest", 18, FAINT)
    return bottom + 40
