"""Images that a gate must refuse, made in another way than those that it learns from (``stepwedge.package``).

Changes take a radiograph on 0…1, (rows, columns), and a generator, and give another image on 0…1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont
from stepwedge.records import FloatArray

Pixels = NDArray[np.floating[Any]]
Change = Callable[[FloatArray, np.random.Generator], Pixels]


# --- Turned, cut, blurred, on another grey scale ------------------------------------------------------------------


def part(top: float, left: float, rows: float, columns: float) -> Change:
    """A fixed part, in shares of the sides."""

    def change(image: FloatArray, _: np.random.Generator) -> FloatArray:
        height, width = image.shape
        y, x = int(top * height), int(left * width)
        return image[y : y + int(rows * height), x : x + int(columns * width)]

    return change


def half_anywhere(image: FloatArray, rng: np.random.Generator) -> FloatArray:
    """A part of half the area, its shape and place at random."""
    rows = rng.uniform(0.5, 1.0)
    columns = 0.5 / rows
    height, width = int(rows * image.shape[0]), int(columns * image.shape[1])
    y, x = int(rng.integers(image.shape[0] - height + 1)), int(rng.integers(image.shape[1] - width + 1))
    return image[y : y + height, x : x + width]


def convolved(image: FloatArray, kernel: FloatArray) -> FloatArray:
    """With a kernel that is small against the image, mirrored at its borders; in floating point."""
    half = kernel.shape[0] // 2
    padded = np.pad(image, half, mode="symmetric")
    spectrum = np.fft.rfft2(padded) * np.fft.rfft2(kernel / kernel.sum(), padded.shape)
    whole = np.fft.irfft2(spectrum, padded.shape)
    return np.asarray(whole[2 * half :, 2 * half :], np.float32)


def out_of_focus(image: FloatArray, _: np.random.Generator) -> FloatArray:
    """A disc of 1.5 % of the shorter side in radius."""
    radius = max(1.5, 0.015 * min(image.shape))
    reach = np.arange(-int(radius + 1), int(radius + 1) + 1)
    return convolved(image, (np.hypot(reach[:, None], reach[None]) <= radius).astype(np.float32))


def moved(image: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Smeared along a line of 5 % of the shorter side, in any direction."""
    reach = max(2, round(0.025 * min(image.shape)))
    kernel, angle = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32), rng.uniform(0, np.pi)
    along = np.linspace(-reach, reach, 8 * reach)
    rows, columns = np.round(along * np.sin(angle)).astype(int), np.round(along * np.cos(angle)).astype(int)
    kernel[reach + rows, reach + columns] = 1
    return convolved(image, kernel)


def exposed(gain: float, below: float) -> Change:
    """Amplified and clipped, as by a detector at its end."""
    return lambda image, _: np.clip((image - below) * gain, 0, 1)


def narrow_window(image: FloatArray, _: np.random.Generator) -> Pixels:
    """A window of a sixth of the grey scale about the median."""
    return np.clip((image - np.median(image)) * 6 + 0.5, 0, 1)


def on_part(low: float, width: float) -> Change:
    """All of it on a part of the grey scale."""
    return lambda image, _: low + width * image


def sixteen_bits(change: Callable[[NDArray[np.uint16]], NDArray[np.integer[Any]]], full: float) -> Change:
    """What reading the twelve bits wrongly makes of the values, on 0…1 of ``full``."""
    return lambda image, _: change(np.round(image * 4095).astype(np.uint16)).astype(np.float32) / full


def stamped(image: FloatArray, rng: np.random.Generator) -> Pixels:
    """A line of large outlined letters over the middle, somewhat transparent."""
    picture = Pillow.new("L", image.shape[::-1])
    mask = Pillow.new("L", image.shape[::-1])
    words = str(rng.choice(["RESEARCH ONLY", "DO NOT USE", "DUPLICATE FILM", "VOID  VOID"]))
    size = 0.11 * min(image.shape)
    font = ImageFont.load_default(size)
    width = ImageDraw.Draw(picture).textlength(words, font=font)
    place = (image.shape[1] / 2 - width / 2, float(rng.uniform(0.35, 0.6)) * image.shape[0])
    ImageDraw.Draw(picture).text(place, words, fill=255, font=font)
    ImageDraw.Draw(mask).text(place, words, fill=230, font=font, stroke_width=2, stroke_fill=230)
    opacity = np.asarray(mask, np.float32) / 255
    return image * (1 - opacity) + np.asarray(picture, np.float32) / 255 * opacity


def speckled(image: FloatArray, rng: np.random.Generator) -> Pixels:
    """Noise in proportion to the grey value."""
    return np.clip(image * (1 + 0.5 * rng.standard_normal(image.shape)), 0, 1)


def grains(image: FloatArray, rng: np.random.Generator) -> Pixels:
    """Uniform noise of a third of the range to either side."""
    return np.clip(image + rng.uniform(-0.35, 0.35, image.shape), 0, 1)


# --- Faults of readout and transfer -------------------------------------------------------------------------------


def repeated_rows(image: FloatArray, _: np.random.Generator) -> FloatArray:
    """The last two fifths repeat one row."""
    rows = image.copy()
    rows[int(0.6 * len(rows)) :] = rows[int(0.6 * len(rows))]
    return rows


def lost_rows(image: FloatArray, rng: np.random.Generator) -> FloatArray:
    """A tenth of the rows within is black."""
    rows = image.copy()
    start = int(rng.uniform(0.2, 0.6) * len(rows))
    rows[start : start + len(rows) // 10] = 0
    return rows


def garbled_rows(image: FloatArray, rng: np.random.Generator) -> FloatArray:
    """An eighth of the rows within is noise."""
    rows = image.copy()
    start, count = int(rng.uniform(0.2, 0.6) * len(rows)), len(rows) // 8
    rows[start : start + count] = rng.random((count, rows.shape[1]), np.float32)
    return rows


def shifted_rows(image: FloatArray, rng: np.random.Generator) -> FloatArray:
    """A sixth of the rows is moved sideways by a quarter of the width."""
    rows = image.copy()
    start, count = int(rng.uniform(0.2, 0.6) * len(rows)), len(rows) // 6
    rows[start : start + count] = np.roll(rows[start : start + count], rows.shape[1] // 4, axis=1)
    return rows


def cut_short(image: FloatArray, _: np.random.Generator) -> FloatArray:
    """The last two fifths are grey, as decoders fill what did not come."""
    rows = image.copy()
    rows[int(0.6 * len(rows)) :] = 0.5
    return rows


# --- Images of anything else --------------------------------------------------------------------------------------


def noise(kind: str, rng: np.random.Generator) -> Pixels:
    """An image of nothing but noise, on 0…1."""
    rows, columns = (int(side) for side in rng.integers(224, 420, 2))
    if kind == "uniform":
        return rng.random((rows, columns))
    if kind == "Gaussian":
        return np.clip(0.5 + 0.15 * rng.standard_normal((rows, columns)), 0, 1)
    if kind == "salt and pepper":
        return rng.integers(0, 2, (rows, columns)).astype(np.float32)
    coarse = rng.random((rows // 16, columns // 16))
    return np.asarray(Pillow.fromarray(coarse.astype(np.float32)).resize((columns, rows), Pillow.Resampling.BICUBIC))


def blank(rng: np.random.Generator) -> Pixels:
    """One grey value, at times with a trace of noise or a slope."""
    rows, columns = (int(side) for side in rng.integers(224, 420, 2))
    flat = np.full((rows, columns), rng.random())
    kind = rng.integers(3)
    if kind == 1:
        flat = flat + rng.uniform(0.002, 0.01) * rng.standard_normal(flat.shape)
    if kind == 2:
        flat = flat * np.linspace(rng.uniform(0.3, 0.9), 1, rows)[:, None]
    return np.clip(flat, 0, 1)
