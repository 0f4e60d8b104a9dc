"""Pictures of anything else, drawn by rules: what the gate learns to tell from the images that a model is for.

Coarse imitations of photographs, pages, patterns and other modalities. They need not look real: they spread over what
is not accepted, and the gate's one-class part takes what they leave out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFilter, ImageFont

from stepwedge.records import FloatArray

Drawing = NDArray[np.floating[Any]]

_LEVELS = 255
_SIDES = (192, 352)  # pixels of the drawings: about what the features look at


def draw(rng: np.random.Generator) -> FloatArray:
    """One picture on 0…1, (rows, columns), of a kind, size and shape drawn at random."""
    rows, columns = (int(side) for side in rng.integers(*_SIDES, size=2))
    if rng.random() < 0.3:
        columns = rows
    kind = KINDS[int(rng.integers(len(KINDS)))]
    picture = np.clip(kind(rows, columns, rng), 0, 1)
    if rng.random() < 0.15:
        picture = 1 - picture
    if rng.random() < 0.3:
        picture = picture ** np.exp(rng.normal(0, 0.5))
    return np.asarray(picture, np.float32)


def clouds(rows: int, columns: int, rng: np.random.Generator) -> Drawing:
    """Noise whose power falls with a power of the frequency, as that of photographs does."""
    down, across = np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns)[None]
    frequency = np.hypot(down * rng.uniform(0.5, 2), across)
    frequency[0, 0] = 1
    fall = rng.uniform(0.0, 2.2)
    spectrum = np.exp(2j * np.pi * rng.random(frequency.shape)) / frequency**fall
    return _scaled(np.fft.irfft2(spectrum, (rows, columns)))


def leaves(rows: int, columns: int, rng: np.random.Generator) -> Drawing:
    """Things in front of each other: sizes follow a power law, each has its own texture."""
    picture = Pillow.new("L", (columns, rows), int(rng.integers(256)))
    pen = ImageDraw.Draw(picture)
    smallest = rng.uniform(2, 12)
    angular = rng.random()
    for _ in range(int(rng.integers(20, 400))):
        size = min(smallest / (1 - rng.random()) ** rng.uniform(0.5, 1.2), 0.6 * min(rows, columns))
        x, y = rng.uniform(-0.1, 1.1) * columns, rng.uniform(-0.1, 1.1) * rows
        ink = int(rng.integers(256))
        if rng.random() < angular:
            angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 7))))
            pen.polygon([(x + size * np.cos(a), y + size * np.sin(a)) for a in angles], fill=ink)
        else:
            tall = rng.uniform(0.4, 2.5)
            pen.ellipse((x - size, y - size * tall, x + size, y + size * tall), fill=ink)
    if rng.random() < 0.6:
        picture = picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.4, 2.5))))
    drawn = _grey(picture)
    return drawn + rng.uniform(0, 0.4) * (clouds(rows, columns, rng) - 0.5)


def landscape(rows: int, columns: int, rng: np.random.Generator) -> Drawing:
    """A sky over a ground, with upright things on it."""
    horizon = int(rows * rng.uniform(0.2, 0.8))
    picture = np.empty((rows, columns), np.float32)
    picture[:horizon] = np.linspace(rng.uniform(0.5, 1), rng.uniform(0.5, 1), horizon)[:, None]
    picture[horizon:] = rng.uniform(0.1, 0.6)
    picture[:horizon] += rng.uniform(0, 0.3) * (clouds(horizon, columns, rng) - 0.5)
    picture[horizon:] += rng.uniform(0.1, 0.6) * (clouds(rows - horizon, columns, rng) - 0.5)
    for _ in range(int(rng.integers(0, 14))):
        left, width = int(rng.uniform(0, 0.95) * columns), int(rng.uniform(0.01, 0.25) * columns) + 1
        top = int(rng.uniform(0.05, 1) * horizon)
        bottom = horizon + int(rng.uniform(0, 0.3) * (rows - horizon))
        picture[top:bottom, left : left + width] = rng.random() + 0.15 * rng.standard_normal()
    return picture


def portrait(rows: int, columns: int, rng: np.random.Generator) -> Drawing:
    """Round things with darker and brighter things in them, before a soft ground."""
    picture = _picture(_LEVELS * clouds(rows, columns, rng) * rng.uniform(0.2, 0.9))
    picture = picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 6))))
    pen = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(1, 4))):
        x, y, size = rng.uniform(0.2, 0.8) * columns, rng.uniform(0.2, 0.8) * rows, rng.uniform(0.1, 0.4) * rows
        pen.ellipse((x - size * 0.8, y - size, x + size * 0.8, y + size), fill=int(rng.integers(256)))
        for _ in range(int(rng.integers(2, 10))):
            dx, dy, small = rng.uniform(-0.5, 0.5) * size, rng.uniform(-0.6, 0.6) * size, rng.uniform(0.05, 0.3) * size
            pen.ellipse(
                (x + dx - small, y + dy - small / 2, x + dx + small, y + dy + small / 2), fill=int(rng.integers(256))
            )
    picture = picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 2))))
    return _grey(picture) + rng.uniform(0.02, 0.25) * (clouds(rows, columns, rng) - 0.5)


def pattern(rows: int, columns: int, rng: np.random.Generator) -> Drawing:
    """Stripes, boards, rings, gradients and test charts."""
    down, across = np.mgrid[0 : 1 : rows * 1j, 0 : 1 : columns * 1j]
    angle, count = rng.uniform(0, np.pi), rng.uniform(1, 24)
    along = across * np.cos(angle) + down * np.sin(angle)
    other = down * np.cos(angle) - across * np.sin(angle)
    wave = np.sin(2 * np.pi * count * along + rng.uniform(0, 6))
    kind = rng.integers(5)
    if kind == 0:
        drawn = wave
    elif kind == 1:
        drawn = np.sign(wave * np.sin(2 * np.pi * count * other))
    elif kind == 2:
        drawn = np.sin(2 * np.pi * count * np.hypot(across - rng.random(), down - rng.random()))
    elif kind == 3:
        drawn = _scaled(along) ** rng.uniform(0.3, 3)
    else:
        drawn = np.sign(wave)
    return _scaled(drawn) + rng.uniform(0, 0.1) * rng.standard_normal((rows, columns))


def page(rows: int, columns: int, rng: np.random.Generator) -> Drawing:
    """A page of writing, or a screen with boxes and writing."""
    ground, ink = (235, 20) if rng.random() < 0.7 else (20, 225)
    picture = Pillow.new("L", (columns, rows), ground)
    pen = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(0, 5))):
        corners = np.sort(rng.uniform(0, 1, (2, 2)), axis=0) * (columns, rows)
        pen.rectangle([*map(float, corners.ravel())], outline=ink, fill=int(rng.integers(256)))
    size = rng.uniform(8, 28)
    font = ImageFont.load_default(size)
    letters = np.array(list("abcdefghijklmnoprstuvw     ABCDEFGHIKLMNOPRST0123456789.,"))
    y = rng.uniform(0, 0.1) * rows
    while y < rows * rng.uniform(0.6, 1):
        line = "".join(rng.choice(letters, int(rng.uniform(0.3, 1.9) * columns / size)))
        pen.text((rng.uniform(0.02, 0.1) * columns, y), line, fill=ink, font=font)
        y += size * rng.uniform(1.1, 1.8)
    return _grey(picture)


def slice_of_body(rows: int, columns: int, rng: np.random.Generator) -> Drawing:
    """A round section on black, with a rim, organs and spots, as CT and MR show."""
    side = min(rows, columns)
    picture = Pillow.new("L", (side, side), 0)
    pen = ImageDraw.Draw(picture)
    x, y = side * rng.uniform(0.45, 0.55), side * rng.uniform(0.45, 0.55)
    wide, tall = side * rng.uniform(0.25, 0.49), side * rng.uniform(0.2, 0.49)
    rim = int(rng.integers(60, 256))
    body = int(rng.integers(40, 200))
    pen.ellipse((x - wide, y - tall, x + wide, y + tall), fill=rim)
    inset = 1 - rng.uniform(0.03, 0.15)
    pen.ellipse((x - wide * inset, y - tall * inset, x + wide * inset, y + tall * inset), fill=body)
    for _ in range(int(rng.integers(3, 30))):
        far, angle = rng.random() ** 0.5 * 0.75, rng.uniform(0, 2 * np.pi)
        cx, cy = x + far * wide * np.cos(angle), y + far * tall * np.sin(angle)
        a, b = rng.uniform(0.02, 0.35) * wide, rng.uniform(0.02, 0.35) * tall
        pen.ellipse((cx - a, cy - b, cx + a, cy + b), fill=int(rng.integers(256)))
    picture = picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 2))))
    drawn = _grey(picture)
    drawn = drawn + (drawn > 0.05) * rng.uniform(0, 0.2) * (clouds(side, side, rng) - 0.5)
    return drawn + rng.uniform(0, 0.05) * np.abs(rng.standard_normal((side, side)))


def echo(rows: int, columns: int, rng: np.random.Generator) -> Drawing:
    """A speckled sector on black, with a little writing, as ultrasound shows."""
    down, across = np.mgrid[0 : 1 : rows * 1j, -0.5 : 0.5 : columns * 1j]
    down = down + rng.uniform(-0.05, 0.2)
    far, angle = np.hypot(down, across), np.arctan2(across, down)
    inside = (np.abs(angle) < rng.uniform(0.3, 0.8)) & (far > rng.uniform(0, 0.25)) & (far < rng.uniform(0.7, 1.1))
    if rng.random() < 0.3:
        inside = (np.abs(across) < rng.uniform(0.2, 0.5)) & (down > 0.1) & (down < 0.95)
    speckle = np.abs(rng.standard_normal((rows, columns)) + 1j * rng.standard_normal((rows, columns)))
    soft = _picture(np.clip(speckle / 4 * _LEVELS, 0, 255))
    soft = soft.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 2))))
    tissue = clouds(rows, columns, rng) ** rng.uniform(1, 3)
    picture = _picture(np.clip(_LEVELS * inside * tissue * _grey(soft) * 2.5, 0, 255))
    pen = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(0, 6))):
        place = (rng.uniform(0, 0.8) * columns, rng.uniform(0, 0.95) * rows)
        pen.text(place, "12.5 cm FR 25Hz", fill=220, font=ImageFont.load_default(float(rng.uniform(8, 14))))
    return _grey(picture)


def limb(rows: int, columns: int, rng: np.random.Generator) -> Drawing:
    """Bright shafts with soft edges in a soft band, as radiographs of limbs and fingers show."""
    picture = Pillow.new("L", (columns, rows), int(rng.integers(0, 40)))
    pen = ImageDraw.Draw(picture)
    count = int(rng.integers(1, 6))
    lean = rng.uniform(-0.3, 0.3) * columns
    for index in range(count):
        x = columns * (index + 0.5 + rng.uniform(-0.2, 0.2)) / count
        width = columns / count * rng.uniform(0.15, 0.42)
        top, bottom = rng.uniform(-0.2, 0.3) * rows, rng.uniform(0.7, 1.2) * rows
        soft, bone = int(rng.integers(40, 130)), int(rng.integers(140, 256))
        pen.line((x - lean, top, x + lean, bottom), fill=soft, width=max(2, int(2 * width)))
        pen.line((x - lean, top, x + lean, bottom), fill=bone, width=max(2, int(0.8 * width)))
        pen.line((x - lean, top, x + lean, bottom), fill=int(0.8 * bone), width=max(1, int(0.4 * width)))
        for _ in range(int(rng.integers(0, 4))):
            at, knob = rng.random(), width * rng.uniform(0.5, 0.9)
            cx, cy = x - lean + 2 * lean * at, top + (bottom - top) * at
            pen.ellipse((cx - knob, cy - knob * 0.6, cx + knob, cy + knob * 0.6), fill=bone)
    picture = picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.8, 4))))
    drawn = _grey(picture)
    if rng.random() < 0.3:
        drawn = np.rot90(drawn)
    return drawn + rng.uniform(0.01, 0.12) * (clouds(drawn.shape[0], drawn.shape[1], rng) - 0.5)


def half_round(rows: int, columns: int, rng: np.random.Generator) -> Drawing:
    """A textured half disc at one side on black, as mammograms show."""
    down, across = np.mgrid[-1 : 1 : rows * 1j, 0 : 1 : columns * 1j]
    edge = (down / rng.uniform(0.6, 1.1)) ** 2 + (across / rng.uniform(0.4, 0.9)) ** 2
    inside = 1 / (1 + np.exp((edge - 1) * rng.uniform(10, 60)))
    drawn = inside * (rng.uniform(0.2, 0.5) + rng.uniform(0.3, 0.8) * clouds(rows, columns, rng) ** rng.uniform(1, 3))
    return np.asarray(drawn[:, ::-1] if rng.random() < 0.5 else drawn)


def nothing(rows: int, columns: int, rng: np.random.Generator) -> Drawing:
    """A flat field with a little noise, or with one thing on it."""
    drawn = np.full((rows, columns), rng.random()) + rng.uniform(0.001, 0.05) * rng.standard_normal((rows, columns))
    if rng.random() < 0.5:
        top, left = int(rng.uniform(0, 0.8) * rows), int(rng.uniform(0, 0.8) * columns)
        drawn[top : top + int(rng.uniform(0.03, 0.5) * rows), left : left + int(rng.uniform(0.03, 0.5) * columns)] = (
            rng.random()
        )
    return drawn


Kind = Callable[[int, int, np.random.Generator], Drawing]

KINDS: tuple[Kind, ...] = (
    clouds,
    clouds,
    leaves,
    leaves,
    landscape,
    portrait,
    pattern,
    page,
    slice_of_body,
    slice_of_body,
    echo,
    limb,
    limb,
    half_round,
    nothing,
)


def _scaled(values: Drawing) -> FloatArray:
    low, high = np.percentile(values, (0.5, 99.5))
    return np.asarray(np.clip((values - low) / max(float(high - low), 1e-9), 0, 1), np.float32)


def _grey(picture: Pillow.Image) -> FloatArray:
    return np.asarray(np.asarray(picture, np.float32) / _LEVELS, np.float32)


def _picture(values: Drawing) -> Pillow.Image:
    """From values on 0…255."""
    return Pillow.fromarray(np.clip(values, 0, _LEVELS).astype(np.uint8))
