"""What an accepted image must not turn into: changed copies of accepted images, to fit and to measure the gate with.

Every function takes an image on 0…1 of its stored range, (rows, columns), and a generator, and gives another one. None
knows what the images show.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFilter, ImageFont

from stepwedge.records import FloatArray

Change = Callable[[FloatArray, np.random.Generator], FloatArray]

_LEVELS = 255  # pictures that pass through Pillow's drawing and filters have 8 bits


# --- Orientation and extent ---------------------------------------------------------------------------------------


def inverted(image: FloatArray, _: np.random.Generator) -> FloatArray:
    """Black for white, as with the photometric interpretation exchanged."""
    return 1 - image


def turned_left(image: FloatArray, _: np.random.Generator) -> FloatArray:
    """A quarter turn, either way."""
    return np.rot90(image)


def turned_right(image: FloatArray, _: np.random.Generator) -> FloatArray:
    """A quarter turn the other way."""
    return np.rot90(image, 3)


def upside_down(image: FloatArray, _: np.random.Generator) -> FloatArray:
    """Turned by 180°."""
    return image[::-1, ::-1]


def mirrored_down(image: FloatArray, _: np.random.Generator) -> FloatArray:
    """Top and bottom exchanged."""
    return image[::-1]


def transposed(image: FloatArray, _: np.random.Generator) -> FloatArray:
    """Rows and columns exchanged."""
    return image.T


def flipped(image: FloatArray, _: np.random.Generator) -> FloatArray:
    """Left and right exchanged."""
    return image[:, ::-1]


def cropped(image: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Half of the image: of its width, of its height, of both, or of its area; anywhere in it, often at its edges."""
    kind = rng.integers(4)
    area = np.sqrt(0.5)
    rows, columns = ((1.0, 0.5), (0.5, 1.0), (0.5, 0.5), (area, area))[kind]
    down, across = (rng.choice([0.0, 1.0, rng.random(), rng.random()]) for _ in range(2))
    return cut(image, rows * rng.uniform(0.85, 1.0), columns * rng.uniform(0.85, 1.0), down, across)


def cut(image: FloatArray, rows: float, columns: float, down: float, across: float) -> FloatArray:
    """A part of an image: shares of its sides, at a share of the way down and across that is left."""
    height, width = max(1, round(image.shape[0] * rows)), max(1, round(image.shape[1] * columns))
    top, left = round((image.shape[0] - height) * down), round((image.shape[1] - width) * across)
    return image[top : top + height, left : left + width]


# --- Sharpness ----------------------------------------------------------------------------------------------------


def blurred(image: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Out of focus or moved: by 1 to 6 % of the shorter side."""
    size = float(np.exp(rng.uniform(np.log(0.008), np.log(0.06))))
    kind = rng.integers(4)
    if kind < 2:
        return gaussian(image, size)
    if kind == 2:
        return boxed(image, 3 * size)
    return coarse(image, 3 * size)


def gaussian(image: FloatArray, size: float) -> FloatArray:
    """Blurred by a Gaussian, its standard deviation as a share of the shorter side."""
    return _filtered(image, ImageFilter.GaussianBlur(size * min(image.shape)))


def boxed(image: FloatArray, size: float) -> FloatArray:
    """Blurred by a box, its width as a share of the shorter side."""
    return _filtered(image, ImageFilter.BoxBlur(size * min(image.shape) / 2))


def coarse(image: FloatArray, size: float) -> FloatArray:
    """Sampled coarsely, the distance as a share of the shorter side, and enlarged again."""
    step = max(1.0, size * min(image.shape))
    small = resized(image, max(4, round(image.shape[0] / step)), max(4, round(image.shape[1] / step)))
    return resized(small, *image.shape)


# --- Grey scale ---------------------------------------------------------------------------------------------------


def narrowed(image: FloatArray, rng: np.random.Generator) -> FloatArray:
    """On a small part of the stored range, anywhere in it: a wrong bit depth, a wrong window, too dark, too bright."""
    width = float(np.exp(rng.uniform(np.log(0.015), np.log(0.25))))
    place = rng.choice([0.0, 1.0, rng.random()])
    return np.asarray(place * (1 - width) + width * image, np.float32)


def bent(image: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Nearly all of it dark or nearly all of it bright, by a power of the grey value."""
    power = float(np.exp(rng.uniform(np.log(3.5), np.log(9.0))))
    return np.asarray(np.power(image, power if rng.random() < 0.5 else 1 / power), np.float32)


def windowed(image: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Stretched between grey values so close that most of it is black or white."""
    width = rng.uniform(5, 35)  # percentiles of the image
    low = rng.uniform(2, 98 - width)
    return stretched(image, low, low + width)


def saturated(image: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Clipped at one end: a third to nine tenths of the image."""
    share = 100 * rng.uniform(0.35, 0.9)
    return stretched(image, 0, 100 - share) if rng.random() < 0.6 else stretched(image, share, 100)


def stretched(image: FloatArray, low: float, high: float) -> FloatArray:
    """Clipped at two percentiles and stretched to 0…1."""
    first, last = np.percentile(image, (low, high))
    return np.asarray(np.clip((image - first) / max(float(last - first), 1e-6), 0, 1), np.float32)


# --- Things in the way --------------------------------------------------------------------------------------------

_WORDS = ("PORTABLE", "NOT FOR DIAGNOSIS", "PATIENT", "COPY", "CHEST AP", "TEST IMAGE", "SAMPLE", "1234567")


def written_across(image: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Writing over the middle of the image, one to four lines, white, black or grey."""
    rows, columns = image.shape
    picture = _to_picture(image)
    draw = ImageDraw.Draw(picture)
    ink = int(rng.choice([_LEVELS, _LEVELS, _LEVELS - int(rng.integers(40)), 0]))
    size = max(8.0, float(rng.uniform(0.05, 0.18)) * min(rows, columns))
    lines = int(rng.integers(1, 5))
    top = rng.uniform(0.25, 0.65) * rows - lines * size / 2
    for line in range(lines):
        words = " ".join(rng.choice(_WORDS, size=int(rng.integers(1, 4))))
        font = ImageFont.load_default(size)
        left = columns / 2 - draw.textlength(words, font=font) / 2
        draw.text((left + rng.uniform(-0.1, 0.1) * columns, top + 1.2 * size * line), words, fill=ink, font=font)
    if rng.random() < 0.3:
        turned = picture.rotate(float(rng.uniform(-45, 45)), resample=Pillow.Resampling.BILINEAR)
        mask = Pillow.new("L", picture.size, _LEVELS).rotate(0)
        if rng.random() < 0.5:
            return _overlaid(image, turned, mask, ink)
    return _from_picture(picture)


def _overlaid(image: FloatArray, turned: Pillow.Image, _: Pillow.Image, ink: int) -> FloatArray:
    written = _from_picture(turned)
    near = np.abs(written - ink / _LEVELS) < 0.02
    return np.where(near, written, image).astype(np.float32)


def noisy(image: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Under noise of at least a seventh of the range."""
    amount = rng.uniform(0.15, 0.6)
    if rng.random() < 0.3:
        lost = rng.random(image.shape) < amount / 2
        return np.where(lost, rng.integers(0, 2, image.shape), image).astype(np.float32)
    return np.clip(image + amount * rng.standard_normal(image.shape), 0, 1).astype(np.float32)


def shuffled(image: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Its tiles in another order: the same texture, another layout."""
    count = int(rng.choice([2, 3, 4, 6]))
    rows, columns = (side - side % count for side in image.shape)
    tiles = image[:rows, :columns].reshape(count, rows // count, count, columns // count).swapaxes(1, 2)
    order = rng.permutation(count * count)
    moved = tiles.reshape(count * count, rows // count, columns // count)[order]
    return moved.reshape(count, count, rows // count, columns // count).swapaxes(1, 2).reshape(rows, columns)


def magnified(image: FloatArray, rng: np.random.Generator) -> FloatArray:
    """A small part: a tenth to a third of each side."""
    return cut(image, rng.uniform(0.12, 0.33), rng.uniform(0.12, 0.33), rng.random(), rng.random())


def twisted(image: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Turned about a point by an angle that grows towards it: the outline stays, the anatomy does not."""
    rows, columns = image.shape
    down, across = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    down, across = down - rng.uniform(-0.2, 0.2), across - rng.uniform(-0.2, 0.2)
    angle = rng.choice([-1, 1]) * rng.uniform(1.5, 5) * np.exp(-(down**2 + across**2) / rng.uniform(0.2, 0.6))
    down, across = down * np.cos(angle) - across * np.sin(angle), down * np.sin(angle) + across * np.cos(angle)
    row = np.clip(((down + 1) / 2 * (rows - 1)).round().astype(int), 0, rows - 1)
    column = np.clip(((across + 1) / 2 * (columns - 1)).round().astype(int), 0, columns - 1)
    return np.asarray(image[row, column], np.float32)


# --- What does not matter -----------------------------------------------------------------------------------------


def ordinary(image: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Another exposure of the same kind: moved, turned and scaled a little, another contrast, size and compression."""
    rows, columns = image.shape
    angle, scale = rng.normal(0, 2.5), np.exp(rng.normal(0, 0.03))
    picture = Pillow.fromarray(np.ascontiguousarray(image, np.float32))
    shift = (rng.normal(0, 0.015) * columns, rng.normal(0, 0.015) * rows)
    picture = picture.rotate(angle, resample=Pillow.Resampling.BILINEAR, translate=shift)
    margin = 0.5 * (1 - 1 / scale)
    box = (margin * columns, margin * rows, (1 - margin) * columns, (1 - margin) * rows)
    if scale > 1:
        picture = picture.resize((columns, rows), Pillow.Resampling.BILINEAR, box=box)
    changed = np.asarray(picture, np.float32)
    kind = rng.integers(4)
    if kind == 0:
        changed = resized(changed, 2 * rows, 2 * columns)
    elif kind == 1:
        changed = np.clip(changed + rng.uniform(0.002, 0.012) * rng.standard_normal(changed.shape), 0, 1)
    elif kind == 2:
        changed = compressed(changed, int(rng.integers(50, 95)))
    bent_by = np.exp(rng.normal(0, 0.12))
    low, width = rng.uniform(0, 0.08), rng.uniform(0.8, 1.0)
    changed = np.asarray(low + min(width, 1 - low) * np.power(np.clip(changed, 0, 1), bent_by), np.float32)
    return marked(changed, rng) if rng.random() < 0.3 else changed


_MARKS = ("L", "R", "PORTABLE AP", "SUPINE", "AP", "R  AP")


def marked(image: FloatArray, rng: np.random.Generator) -> FloatArray:
    """With a laterality marker or a label in a corner, which is normal."""
    rows, columns = image.shape
    picture = _to_picture(image)
    draw = ImageDraw.Draw(picture)
    mark = str(rng.choice(_MARKS))
    size = max(8.0, float(rng.uniform(0.04, 0.09 if len(mark) < 3 else 0.05)) * min(rows, columns))
    font = ImageFont.load_default(size)
    width = draw.textlength(mark, font=font)
    left = rng.uniform(0.02, 0.08) * columns if rng.random() < 0.5 else columns * rng.uniform(0.92, 0.98) - width
    top = rng.uniform(0.02, 0.1) * rows if rng.random() < 0.8 else rows * rng.uniform(0.9, 0.97) - size
    draw.text((left, top), mark, fill=int(rng.integers(200, 256)), font=font)
    return _from_picture(picture)


def compressed(image: FloatArray, quality: int) -> FloatArray:
    """Through JPEG, of a quality of 1 to 95."""
    stream = io.BytesIO()
    _to_picture(image).save(stream, "JPEG", quality=quality)
    with Pillow.open(stream, formats=("JPEG",)) as picture:
        return _from_picture(picture)


# The changes that the gate's heads are fitted on, by the head that has to see them.
CHANGES: Mapping[str, tuple[Change, ...]] = {
    "inverted": (inverted,),
    "rotated": (turned_left, turned_right, upside_down, mirrored_down, transposed),
    "flipped": (flipped,),
    "cropped": (cropped,),
    "blurred": (blurred,),
    "grey_scale": (narrowed, bent),
    "saturated": (windowed, saturated),
    "written_across": (written_across,),
    "noisy": (noisy,),
    "other": (shuffled, magnified, twisted),
}


def resized(image: FloatArray, rows: int, columns: int) -> FloatArray:
    """At another size, filtered so that shrinking does not alias."""
    picture = Pillow.fromarray(np.ascontiguousarray(image, np.float32))
    return np.clip(np.asarray(picture.resize((columns, rows), Pillow.Resampling.BICUBIC), np.float32), 0, 1)


def _filtered(image: FloatArray, kernel: ImageFilter.MultibandFilter) -> FloatArray:
    """Through a filter in 8 bits: Pillow's blurs know no other."""
    return _from_picture(_to_picture(image).filter(kernel))


def _to_picture(image: FloatArray) -> Pillow.Image:
    return Pillow.fromarray(np.round(np.clip(image, 0, 1) * _LEVELS).astype(np.uint8))


def _from_picture(picture: Pillow.Image) -> FloatArray:
    return np.asarray(np.asarray(picture, np.float32) / _LEVELS, np.float32)
