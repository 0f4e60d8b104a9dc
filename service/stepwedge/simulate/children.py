"""Radiographs of children that do not exist: anatomy drawn from principal components, then given a scanner's look."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageFilter

from stepwedge.errors import StepwedgeError
from stepwedge.records import FloatArray

# Spread of the drawn component weights over that of the patients behind them: typical children, no extremes.
TYPICAL = 0.7

_GRAIN_PIXELS = 3  # width of the fine structure
_STRUCTURE_FROM, _STRUCTURE_TO = 22.0, 60.0  # waves along a side: finer than the components, coarser than grain
_COLLIMATED = 0.03  # grey of the collimated edge
_PENUMBRA = 2  # pixels over which the collimated edge fades


@dataclass(frozen=True, kw_only=True, slots=True)
class Principal:
    """A mean and components scaled by their standard deviations: what values of a Gaussian are drawn from."""

    mean: FloatArray  # (…)
    components: FloatArray  # (components, …)

    def draw(self, rng: np.random.Generator, spread: float) -> FloatArray:
        """One sample, of the shape of ``mean``."""
        weights = (rng.standard_normal(len(self.components)) * spread).astype(np.float32)
        return np.asarray(self.mean + np.tensordot(weights, self.components, axes=1), np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """How children with one label look."""

    appearance: Principal  # (side, side) on 0…1, of radiographs warped onto each other
    shape: Principal  # (2, grid, grid) displacements across and down, a side being 2


Simulator = Mapping[str, Kind]  # by label


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What a scanner and its image processing make of anatomy."""

    rows: tuple[int, int] = (1024, 1537)  # from, below
    aspect: tuple[float, float] = (1.15, 1.4)  # columns over rows; real chests of children have 1.2 to 1.6
    gamma: float = 1.0  # exponent of the look-up curve; below 1 brightens
    contrast: float = 0.0  # of the look-up curve at mid-grey, relative: 0.2 is a slope of 1.2; below 1 (monotone)
    enhancement: float = 0.0  # share of the local detail that is added; below 0 softens
    quantum: float = 0.008  # standard deviation of quantum noise, of the grey scale
    grain: float = 0.012  # standard deviation of fine structure a few pixels wide
    structure: float = 0.0  # standard deviation of vessels, bronchi and bone as texture, of the grey scale
    white: float = 1.0  # grey of what is densest
    margin: float = 0.02  # collimated edge, largest share of each side


PLAIN = Look()


def load_simulator(path: Path) -> Simulator:
    """Read ``simulated.npz``. Raises StepwedgeError if it is missing or is no simulator."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            labels = dict.fromkeys(name.split(".")[0] for name in arrays.files)
            return {
                label: Kind(
                    appearance=_principal(arrays, f"{label}.appearance"), shape=_principal(arrays, f"{label}.shape")
                )
                for label in labels
            }
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise StepwedgeError(f"{path}: cannot be read as simulated patients: {error}; restore the file") from None


def simulate(simulator: Simulator, label: str, rng: np.random.Generator, look: Look = PLAIN) -> FloatArray:
    """A radiograph of a child that does not exist, float32 (rows, columns) on 0…1, brighter where denser.

    Raises StepwedgeError for a label that the simulator does not have.
    """
    return render(draw_anatomy(simulator, label, rng), rng, look)


def draw_anatomy(simulator: Simulator, label: str, rng: np.random.Generator, spread: float = TYPICAL) -> FloatArray:
    """The chest of a child that does not exist, (side, side) on 0…1 or a little beyond.

    ``spread`` is that of the component weights over that of the patients behind them; at 1 children differ as much
    as those did.

    Raises StepwedgeError for a label that the simulator does not have.
    """
    if label not in simulator:
        raise StepwedgeError(f"no simulated patients are labelled {label!r}; there are {', '.join(simulator)}")
    kind = simulator[label]
    appearance = kind.appearance.draw(rng, spread)
    return warped(appearance, -kind.shape.draw(rng, spread))


def stretched(anatomy: FloatArray, down: float, across: float) -> FloatArray:
    """Anatomy that is ``down`` times as long and ``across`` times as wide about the centre, the border repeated."""
    if down == across == 1:
        return anatomy
    side = anatomy.shape[0]
    still, middle = np.arange(side), (side - 1) / 2
    rows, columns = (np.clip(middle + (still - middle) / by, 0, side - 1) for by in (down, across))
    longer = np.stack([np.interp(rows, still, column) for column in anatomy.T], axis=1)
    return np.stack([np.interp(columns, still, row) for row in longer]).astype(np.float32)


def render(anatomy: FloatArray, rng: np.random.Generator, look: Look = PLAIN) -> FloatArray:
    """The anatomy as a scanner shows it, float32 (rows, columns) on 0…1."""
    rows = int(rng.integers(*look.rows))
    columns = round(rows * rng.uniform(*look.aspect))
    drawn = _structured(_curved(_enhanced(anatomy, look), look), rng, look)
    image = resized(drawn, rows, columns) * np.float32(look.white)
    return _collimated(_textured(image, rng, look), rng, look)


def resized(pixels: FloatArray, rows: int, columns: int) -> FloatArray:
    """An image at another size, kept on 0…1."""
    return np.clip(_resampled(pixels, rows, columns), 0.0, 1.0)


def warped(image: FloatArray, displacement: FloatArray) -> FloatArray:
    """Each pixel taken from where ``displacement``, (2, grid, grid), points; bilinear, the border repeated."""
    side = image.shape[0]
    spread = _cubic(side, displacement.shape[1])
    across, down = (spread @ plane @ spread.T * (side / 2) for plane in displacement)
    still = np.arange(side, dtype=np.float32)
    columns = np.clip(still[None, :] + across, 0, side - 1)
    rows = np.clip(still[:, None] + down, 0, side - 1)
    left, top = np.minimum(columns.astype(int), side - 2), np.minimum(rows.astype(int), side - 2)
    right_share, low_share = columns - left, rows - top
    upper = image[top, left] * (1 - right_share) + image[top, left + 1] * right_share
    lower = image[top + 1, left] * (1 - right_share) + image[top + 1, left + 1] * right_share
    return np.asarray(upper * (1 - low_share) + lower * low_share, np.float32)


def _principal(arrays: Mapping[str, NDArray[np.generic]], name: str) -> Principal:
    components = np.asarray(arrays[f"{name}.components"], np.float32)
    scale = np.asarray(arrays[f"{name}.scale"], np.float32)
    return Principal(
        mean=np.asarray(arrays[f"{name}.mean"], np.float32),
        components=components * scale.reshape(-1, *[1] * (components.ndim - 1)),
    )


def _cubic(side: int, points: int) -> FloatArray:
    """Weights (side, points) of cubic convolution between control points, the first and last on the edges."""
    place = np.linspace(0, points - 1, side)
    distance = place[:, None] - np.arange(-2, points + 2)[None, :]
    x, a = np.abs(distance), -0.75
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    weights = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
    inside = weights[:, 2:-2].copy()
    inside[:, 0] += weights[:, :2].sum(axis=1)
    inside[:, -1] += weights[:, -2:].sum(axis=1)
    return np.asarray(inside, np.float32)


def _resampled(pixels: FloatArray, rows: int, columns: int) -> FloatArray:
    picture = Pillow.fromarray(np.ascontiguousarray(pixels, np.float32))
    return np.asarray(picture.resize((columns, rows), Pillow.Resampling.BICUBIC), np.float32)


def _enhanced(anatomy: FloatArray, look: Look) -> FloatArray:
    """With local detail added or taken away (unsharp masking with a 3 × 3 binomial)."""
    if look.enhancement == 0:
        return anatomy
    wider = np.pad(anatomy, 1, mode="edge")
    down = (wider[:-2] + 2 * wider[1:-1] + wider[2:]) / 4
    smooth = (down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]) / 4
    return np.asarray(anatomy + look.enhancement * (anatomy - smooth), np.float32)


def _curved(anatomy: FloatArray, look: Look) -> FloatArray:
    """Through the look-up curve, which leaves black and white where they are."""
    if look.gamma == 1 and look.contrast == 0:
        return anatomy
    grey = np.clip(anatomy, 0.0, 1.0) ** np.float32(look.gamma)
    return np.asarray(grey + 2 * look.contrast * grey * (1 - grey) * (2 * grey - 1), np.float32)


def _structured(anatomy: FloatArray, rng: np.random.Generator, look: Look) -> FloatArray:
    """With structure finer than the components hold, (2 side, 2 side): as much as real radiographs have more of.

    Its power falls with the cube of the frequency, as that of real radiographs does.
    """
    if look.structure == 0:
        return anatomy
    side = 2 * anatomy.shape[0]
    down, across = np.fft.fftfreq(side)[:, None] * side, np.fft.rfftfreq(side)[None, :] * side
    frequency = np.maximum(np.hypot(down, across), 1.0)
    filtered = frequency**-1.5 / (1 + (_STRUCTURE_FROM / frequency) ** 4) / (1 + (frequency / _STRUCTURE_TO) ** 4)
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((side, side))) * filtered, s=(side, side))
    tissue = resized(anatomy, side, side)
    shaded = 4 * tissue * (1 - tissue)  # neither in air nor where nothing shines through
    return np.asarray(tissue + look.structure / field.std() * field * np.sqrt(shaded), np.float32)


def _textured(pixels: FloatArray, rng: np.random.Generator, look: Look) -> FloatArray:
    """With quantum noise, and fine structure where there is tissue."""
    coarse_size = (pixels.shape[0] // _GRAIN_PIXELS + 1, pixels.shape[1] // _GRAIN_PIXELS + 1)
    coarse = rng.standard_normal(coarse_size).astype(np.float32)
    grain = _resampled(coarse, *pixels.shape) * np.sqrt(pixels)
    noise = rng.standard_normal(pixels.shape, dtype=np.float32)
    return np.asarray(np.clip(pixels + look.grain * grain + look.quantum * noise, 0.0, 1.0), np.float32)


def _collimated(pixels: FloatArray, rng: np.random.Generator, look: Look) -> FloatArray:
    """With the field's edges dark, each by its own width, and as soft as a focal spot makes them."""
    rows, columns = pixels.shape
    field = Pillow.new("L", (columns, rows), 0)
    left, right = (int(columns * rng.uniform(0, look.margin)) for _ in range(2))
    top, bottom = (int(rows * rng.uniform(0, look.margin)) for _ in range(2))
    field.paste(255, (left, top, columns - right, rows - bottom))
    share = np.asarray(field.filter(ImageFilter.GaussianBlur(_PENUMBRA)), np.float32) / 255
    scatter = _COLLIMATED + look.quantum * rng.standard_normal(pixels.shape, dtype=np.float32)
    return np.asarray(np.clip(pixels * share + scatter * (1 - share), 0.0, 1.0), np.float32)
