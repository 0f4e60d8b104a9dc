"""The picture of a result: a Secondary Capture that a radiologist reads at a glance, even as a thumbnail.

No patient's name or number is drawn: whoever looks at it has the study open.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset

from stepwedge.dicom import wording
from stepwedge.dicom.context import NodeIdentity, Predecessor, created_at, new_object, reference
from stepwedge.dicom.texts import element_text
from stepwedge.records import Decision, Finding, FloatArray, State, UnitResult

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"

_WIDTH, _HEIGHT = 1024, 768  # pixels
_MARGIN = 24
_BANNER = 60  # height of the demonstration banner
_FOOTER = 84
_IMAGE_WIDTH = 500
_GAP = 28
_SHORT_DIGEST = 12  # hexadecimal characters

Colour = tuple[int, int, int]
Box = tuple[int, int, int, int]  # left, top, right, bottom; pixels
_BACKGROUND: Colour = (12, 15, 19)
_PANEL: Colour = (30, 36, 43)
INK: Colour = (240, 243, 246)
FAINT: Colour = (160, 170, 180)
BLACK: Colour = (0, 0, 0)
_AMBER: Colour = (255, 190, 30)
# Bright for what calls for action, dark for what does not: the order holds on a grey-scale screen, too.
DECISIONS: dict[Decision, tuple[Colour, Colour]] = {  # ground, ink
    Decision.ACT: ((255, 122, 66), BLACK),
    Decision.DEFER: (_AMBER, BLACK),
    Decision.INCONCLUSIVE: ((150, 120, 50), BLACK),
    Decision.CLEAR: ((18, 96, 110), INK),
    Decision.NONE: ((62, 70, 80), INK),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sheet:
    """A canvas with what every picture of a result has on it: banner, image, model, revision, footer."""

    canvas: Image.Image
    pen: ImageDraw.ImageDraw
    image: Box | None  # where the image is
    free: Box  # where the answer goes


def picture_object(
    result: UnitResult,
    evidence: Sequence[Dataset],
    picture: FloatArray | None,
    *,
    node: NodeIdentity,
    predecessor: Predecessor | None,
) -> Dataset:
    """The Secondary Capture of a result (PS3.3 section A.8.1), RGB, 8 bits.

    ``picture`` is the image as presented to the model, (rows, columns), 0…1, or None for a card of text.
    """
    created, _ = created_at(result, evidence[0])
    pixels = draw(result, picture, created=created, supersedes=predecessor.revision if predecessor else None)
    described = "Picture of the result of an AI model, for people to read"
    return capture("sc", result, evidence, pixels, node=node, described=described)


def capture(
    kind: str,
    result: UnitResult,
    evidence: Sequence[Dataset],
    pixels: NDArray[np.uint8],
    *,
    node: NodeIdentity,
    described: str,
) -> Dataset:
    """A Secondary Capture of pixels (rows, columns, 3) that tell a result."""
    made = new_object(kind, SECONDARY_CAPTURE, result, evidence[0], node)
    made.ConversionType = "WSD"
    made.ImageType = ["DERIVED", "SECONDARY"]
    # The picture is no view of the patient: it has neither side nor orientation.
    made.Laterality = made.PatientOrientation = None
    made.DerivationDescription = described
    made.ImageComments = "\n".join(
        [*([wording.DEMONSTRATION] if result.policy.demonstration else []), *wording.summary_lines(result)]
    )
    made.SourceImageSequence = [reference(item) for item in evidence]
    made.DateOfSecondaryCapture = made.ContentDate
    made.TimeOfSecondaryCapture = made.ContentTime
    # We draw no identity; what a source image has burned in is still to be seen.
    burned_in = any(element_text(item, "BurnedInAnnotation") == "YES" for item in evidence)
    made.BurnedInAnnotation = "YES" if burned_in else "NO"
    if any(element_text(item, "LossyImageCompression") == "01" for item in evidence):
        made.LossyImageCompression = "01"
    made.SamplesPerPixel = 3
    made.PhotometricInterpretation = "RGB"
    made.PlanarConfiguration = 0
    made.Rows, made.Columns = pixels.shape[:2]
    made.BitsAllocated = made.BitsStored = 8
    made.HighBit = 7
    made.PixelRepresentation = 0
    made.PixelData = pixels.tobytes()
    made["PixelData"].VR = "OB"
    return made


def draw(
    result: UnitResult, picture: FloatArray | None, *, created: datetime, supersedes: int | None
) -> NDArray[np.uint8]:
    """Draw a result: (768, 1024, 3), RGB."""
    sheet = begin(result, picture, created=created, supersedes=supersedes)
    if result.state is State.REPORTED:
        _draw_findings(sheet.pen, result.findings, sheet.free)
    else:
        _draw_no_result(sheet.pen, result, sheet.free)
    return np.asarray(sheet.canvas)


def begin(result: UnitResult, picture: FloatArray | None, *, created: datetime, supersedes: int | None) -> Sheet:
    """A sheet for a result, 1024 × 768, without its answer."""
    canvas = Image.new("RGB", (_WIDTH, _HEIGHT), _BACKGROUND)
    pen = ImageDraw.Draw(canvas)
    top = 0
    if result.policy.demonstration:
        pen.rectangle((0, 0, _WIDTH, _BANNER - 1), fill=_AMBER)
        write(pen, (_WIDTH / 2, _BANNER / 2), wording.DEMONSTRATION, 38, BLACK, bold=True, centred=True)
        top = _BANNER
    top += _MARGIN
    bottom = _HEIGHT - _FOOTER
    left = _MARGIN
    image = None
    if picture is not None:
        image = _paste(canvas, picture, (_MARGIN, top, _MARGIN + _IMAGE_WIDTH, bottom))
        left += _IMAGE_WIDTH + _GAP
    top = _draw_heading(pen, result, supersedes, left, top)
    _draw_footer(pen, result, created, bottom)
    return Sheet(canvas=canvas, pen=pen, image=image, free=(left, top, _WIDTH - _MARGIN, bottom))


def _draw_heading(pen: ImageDraw.ImageDraw, result: UnitResult, supersedes: int | None, left: int, top: int) -> int:
    """The model and the revision; where the next thing may begin."""
    width = _WIDTH - _MARGIN - left
    write(pen, (left, top), fitted(result.model.name, 30, width, bold=True), 30, INK, bold=True)
    write(pen, (left, top + 38), f"AI model, version {result.model.version}", 21, FAINT)
    top += 78
    if result.revision > 1:
        pen.rectangle((left, top, left + width, top + 37), outline=_AMBER, width=2)
        line = fitted(wording.revision_line(result, supersedes), 22, width - 24)
        write(pen, (left + 12, top + 7), line, 22, _AMBER)
        top += 50
    return top


def _draw_findings(
    pen: ImageDraw.ImageDraw,
    findings: Sequence[Finding],
    box: Box,
    *,
    least: int = 66,
    most: int = 132,
) -> None:
    """One block for each finding, those that call for action first, as many as fit."""
    left, top, right, bottom = box
    order = list(DECISIONS)
    ranked = sorted(findings, key=lambda finding: order.index(finding.decision))
    room = max(1, (bottom - top) // least)
    shown = ranked if len(ranked) <= room else ranked[: max(1, (bottom - top - 30) // least)]
    left_over = len(ranked) - len(shown)
    height = (bottom - top - (30 if left_over else 0)) // max(1, len(shown))
    if len(shown) > 1:
        height = min(height, most)
    for finding in shown:
        (_draw_large if height >= 240 else _draw_small)(pen, finding, (left, top, right, top + height))
        top += height
    if left_over:
        write(pen, (left, top + 4), f"and {left_over} more in the structured report", 21, FAINT)


def _draw_large(pen: ImageDraw.ImageDraw, finding: Finding, box: Box) -> None:
    left, top, right, bottom = box
    ground, ink = DECISIONS[finding.decision]
    block = min(250, (bottom - top) - 130)
    pen.rectangle((left, top, right, top + block), fill=ground)
    inner, width = left + 22, right - left - 44
    write(pen, (inner, top + 18), fitted(wording.label(finding), 34, width, bold=True), 34, ink, bold=True)
    word = wording.PRESENCE[finding.decision]
    size = size_that_fits(word, 84, width)
    middle = top + 62 + (block - 62 - 46) // 2
    write(pen, (inner, middle - size * 0.62), word, size, ink, bold=True)
    write(pen, (inner, top + block - 44), wording.ACTIONS[finding.decision], 30, ink)
    if finding.decision is Decision.INCONCLUSIVE:
        write(pen, (left, top + block + 22), wording.INCONCLUSIVE.capitalize(), 24, INK)
        return
    probability = wording.figures(finding)[0]
    write(pen, (left, top + block + 22), probability, 58, INK, bold=True)
    start = left + round(text_width(probability, 58, bold=True)) + 18
    write(pen, (start, top + block + 24), "probability", 22, INK)
    write(pen, (start, top + block + 51), f"at a prevalence of {finding.prevalence:.3g}", 18, FAINT)
    if bottom - top - block >= 160:
        _draw_scale(pen, finding, (left, top + block + 98, right, top + block + 122))
        write(pen, (left, top + block + 134), wording.thresholds_line(finding), 20, FAINT)
    else:
        write(pen, (left, top + block + 88), wording.thresholds_line(finding), 20, FAINT)


def _draw_small(pen: ImageDraw.ImageDraw, finding: Finding, box: Box) -> None:
    left, top, right, bottom = box
    ground, ink = DECISIONS[finding.decision]
    bottom -= 8
    pen.rectangle((left, top, right, bottom), fill=_PANEL)
    chip = 160
    pen.rectangle((left, top, left + chip, bottom), fill=ground)
    word = wording.PRESENCE[finding.decision]
    size = size_that_fits(word, 34, chip - 16)
    write(pen, (left + chip / 2, (top + bottom) / 2), word, size, ink, bold=True, centred=True)
    inner, end = left + chip + 14, right - 14
    room = 2 if bottom - top >= 100 else 1
    lines = wrapped(wording.label(finding), 22, end - inner)
    if len(lines) > room:
        lines[room - 1 :] = [fitted(" ".join(lines[room - 1 :]), 22, end - inner)]
    y = (top + bottom) // 2 - 14 * len(lines) - 14
    for line in lines:
        write(pen, (inner, y), line, 22, INK)
        y += 28
    if finding.decision is Decision.INCONCLUSIVE:
        text = wording.INCONCLUSIVE.capitalize()
        write(pen, (inner, y), text, size_that_fits(text, 20, end - inner), FAINT)
        return
    probability = wording.figures(finding)[0]
    write(pen, (inner, y), probability, 24, INK, bold=True)
    start = inner + round(text_width(probability, 24, bold=True)) + 14
    _draw_scale(pen, finding, (start, y + 10, end, y + 22))


def _draw_scale(pen: ImageDraw.ImageDraw, finding: Finding, box: Box) -> None:
    """The probability on the scale from 0 to 1, over the zones that the thresholds make of it."""
    left, top, right, bottom = box
    limits = finding.thresholds
    zones = [(1.0, Decision.NONE)]
    if limits is not None:
        zones = [(limits.clear_below, Decision.CLEAR), (limits.act_from, Decision.DEFER), (1.0, Decision.ACT)]
    start = 0.0
    for end, decision in zones:
        if end > start:
            span = (left + start * (right - left), top, left + end * (right - left), bottom)
            pen.rectangle(span, fill=DECISIONS[decision][0])
            start = end
    x = left + min(1.0, max(0.0, finding.probability)) * (right - left)
    pen.rectangle((x - 5, top - 6, x + 5, bottom + 6), fill=BLACK)
    pen.rectangle((x - 3, top - 6, x + 3, bottom + 6), fill=INK)


def _draw_no_result(pen: ImageDraw.ImageDraw, result: UnitResult, box: Box) -> None:
    left, top, right, bottom = box
    headline, _, rest = wording.HEADLINES[result.state].upper().partition(": ")
    block = 200
    pen.rectangle((left, top, right, top + block), fill=INK)
    width = right - left - 44
    size = size_that_fits(headline, 72, width)
    write(pen, (left + 22, top + 62 - size / 2), headline, size, BLACK, bold=True)
    size = size_that_fits(rest, 48, width)
    write(pen, (left + 22, top + 146 - size / 2), rest, size, BLACK, bold=True)
    top += block + 24
    write(pen, (left, top), "Why", 22, FAINT)
    top += 32
    lines = [line for reason in wording.reason_lines(result.reasons) for line in wrapped(reason, 24, right - left)]
    room = (bottom - top) // 31
    if len(lines) > room:
        lines = [*lines[: room - 1], "and more, in the structured report"]
    for line in lines:
        write(pen, (left, top), line, 24, INK)
        top += 31


def _draw_footer(pen: ImageDraw.ImageDraw, result: UnitResult, created: datetime, top: int) -> None:
    pen.line((_MARGIN, top + 14, _WIDTH - _MARGIN, top + 14), fill=_PANEL, width=2)
    first = (
        f"Revision {result.revision}    {created:%Y-%m-%d %H:%M:%S %z}    "
        "Made by software, not verified by a person. See the structured report."
    )
    second = (
        f"Stepwedge    model {result.model.digest[:_SHORT_DIGEST]}    "
        f"policy {result.policy.name} {result.policy.version} {result.policy.digest[:_SHORT_DIGEST]}"
    )
    width = _WIDTH - 2 * _MARGIN
    write(pen, (_MARGIN, top + 24), fitted(first, 19, width), 19, FAINT)
    write(pen, (_MARGIN, top + 50), fitted(second, 19, width), 19, FAINT)


def _paste(canvas: Image.Image, picture: FloatArray, box: Box) -> Box:
    """The image, as large as the box allows, in its middle; where it is then."""
    left, top, right, bottom = box
    grey = np.clip(np.nan_to_num(picture, nan=0.0, posinf=1.0, neginf=0.0), 0.0, 1.0)
    image = Image.fromarray((grey * 255.0).round().astype(np.uint8))
    scale = min((right - left) / image.width, (bottom - top) / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.LANCZOS)
    ImageDraw.Draw(canvas).rectangle((left, top, right - 1, bottom - 1), fill=BLACK)
    corner = ((left + right - size[0]) // 2, (top + bottom - size[1]) // 2)
    canvas.paste(image, corner)
    return (*corner, corner[0] + size[0], corner[1] + size[1])


def write(
    pen: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    size: int,
    fill: Colour,
    *,
    bold: bool = False,
    centred: bool = False,
) -> None:
    """Write one line, its upper left corner (or its centre) at a point.

    The font that comes with Pillow has one weight and no en dash: a stroke makes it bold, a line makes the dash.
    """
    x, y = at
    if centred:
        x -= text_width(text, size, bold=bold) / 2
        y -= size * 0.62
    stroke = _stroke(size) if bold else 0
    for index, part in enumerate(_drawable(text).split("–")):
        if index:
            thickness = max(2.0, size / 12) + stroke
            pen.rectangle((x, y + size * 0.66, x + size * 0.5, y + size * 0.66 + thickness), fill=fill)
            x += size * 0.5
        pen.text((x, y), part, font=_font(size), fill=fill, stroke_width=stroke)
        x += _font(size).getlength(part)


def text_width(text: str, size: int, *, bold: bool = False) -> float:
    """The width of a line, pixels."""
    parts = _drawable(text).split("–")
    return sum(_font(size).getlength(part) for part in parts) + (len(parts) - 1) * size * 0.5 + 2 * bold * _stroke(size)


def _stroke(size: int) -> int:
    return max(1, size // 34)


def _drawable(text: str) -> str:
    """The text in the characters of the font: accents are dropped, what has no likeness becomes a question mark."""
    plain = unicodedata.normalize("NFKD", text.replace("—", "–").replace("−", "-").replace("≥", ">=").replace("×", "x"))
    kept = (c for c in plain if not unicodedata.combining(c))
    return "".join(c if c == "–" or " " <= c <= "~" else "?" for c in kept)


def size_that_fits(text: str, size: int, width: float) -> int:
    """The largest font size up to ``size`` in which a line is no wider than a width; 12 at least."""
    while size > 12 and text_width(text, size, bold=True) > width:
        size -= 2
    return size


def fitted(text: str, size: int, width: float, *, bold: bool = False) -> str:
    """The text, cut to a width with an ellipsis where it is longer."""
    if text_width(text, size, bold=bold) <= width:
        return text
    while text and text_width(f"{text}...", size, bold=bold) > width:
        text = text[:-1]
    return f"{text.rstrip()}..."


def wrapped(text: str, size: int, width: float) -> list[str]:
    """The text in lines no wider than a width."""
    lines: list[str] = []
    for word in text.split():
        if lines and text_width(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(fitted(word, size, width))
    return lines


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow is built without FreeType; install its published wheel"
    return font
