"""From a decoded image to the model's input tensor. Training and serving use this same code."""

from __future__ import annotations

import numpy as np
from PIL import Image as Pillow

from stepwedge.manifest import Input, PercentilePresentation, WindowPresentation
from stepwedge.records import FloatArray, Image

_RESAMPLING = {
    "bilinear": Pillow.Resampling.BILINEAR,
    "bicubic": Pillow.Resampling.BICUBIC,
    "lanczos": Pillow.Resampling.LANCZOS,
    "box": Pillow.Resampling.BOX,
}


def presented(image: Image, spec: Input) -> FloatArray:
    """The image on 0…1 as the package wants it presented, (rows, columns)."""
    pixels = image.pixels
    if isinstance(spec.presentation, PercentilePresentation):
        # Every pixel of a large radiograph is not needed to find its percentiles.
        step = max(1, int(np.sqrt(pixels.size / 250_000)))
        sample = pixels[::step, ::step]
        low = float(np.percentile(sample, spec.presentation.low))
        high = float(np.percentile(sample, spec.presentation.high))
    elif isinstance(spec.presentation, WindowPresentation):
        if image.window is None:
            low, high = float(pixels.min()), float(pixels.max())
        else:
            centre, width = image.window
            low, high = centre - width / 2, centre + width / 2
    else:
        low, high = image.value_range
    scale = 1.0 / max(high - low, float(np.finfo(np.float32).tiny))
    # Where the two percentiles are one value, whatever lies above it goes beyond float32, and is clipped.
    with np.errstate(over="ignore"):
        scaled: FloatArray = np.clip((pixels - np.float32(low)) * np.float32(scale), 0.0, 1.0)
    return scaled


def resized(pixels: FloatArray, spec: Input) -> FloatArray:
    """``pixels`` at the input's size, (rows, columns), filtered so that shrinking does not alias."""
    rows, columns = pixels.shape
    if spec.fit == "crop":
        ratio = spec.columns / spec.rows
        keep_rows, keep_columns = (
            max(1, min(rows, round(columns / ratio))),
            max(1, min(columns, round(rows * ratio))),
        )
        top, left = (rows - keep_rows) // 2, (columns - keep_columns) // 2
        pixels = pixels[top : top + keep_rows, left : left + keep_columns]
    elif spec.fit == "pad":
        ratio = spec.columns / spec.rows
        want_rows, want_columns = max(rows, round(columns / ratio)), max(columns, round(rows * ratio))
        padded = np.zeros((want_rows, want_columns), np.float32)
        top, left = (want_rows - rows) // 2, (want_columns - columns) // 2
        padded[top : top + rows, left : left + columns] = pixels
        pixels = padded
    picture = Pillow.fromarray(np.ascontiguousarray(pixels, dtype=np.float32))
    return np.asarray(picture.resize((spec.columns, spec.rows), _RESAMPLING[spec.resampling]), np.float32)


def to_plane(image: Image, spec: Input) -> FloatArray:
    """The image as the model is shown it, before normalisation: float32 (rows, columns) on 0…1."""
    return np.clip(resized(presented(image, spec), spec), 0.0, 1.0)


def normalised(planes: FloatArray, spec: Input) -> FloatArray:
    """Planes (n, rows, columns) on 0…1 as an input tensor, float32 (n, channels, rows, columns)."""
    mean = np.broadcast_to(np.asarray(spec.mean, np.float32), (spec.channels,))
    sd = np.broadcast_to(np.asarray(spec.sd, np.float32), (spec.channels,))
    stacked = (planes[:, None, :, :] - mean[:, None, None]) / sd[:, None, None]
    return np.ascontiguousarray(stacked, dtype=np.float32)


def to_tensor(image: Image, spec: Input) -> FloatArray:
    """The input tensor for one image, float32 (1, channels, rows, columns), normalised."""
    return normalised(to_plane(image, spec)[None], spec)
