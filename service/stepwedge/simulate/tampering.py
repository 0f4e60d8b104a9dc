"""Perturbations that need no knowledge of a model: a patch, and a faint regular pattern.

They change a model's answer now and then, by chance. Attacks that follow a model's gradients do so at will, and are
a matter of the benchmarks, not of a department.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from stepwedge.records import FloatArray
from stepwedge.simulate.children import resized

Kind = Literal["patch", "pattern"]

_PATCH_SIDE = (0.12, 0.2)  # share of the shorter side
_PATCH_BLOCKS = 8  # along each side of the patch
_PATCH_SHARE = 0.6  # of the image that is replaced within it
# Amplitude of the pattern, of the grey scale: 8 to 12 of 255, as procedural noise (Co et al., CCS 2019) is used.
_PATTERN = (8 / 255, 12 / 255)
_WAVES = (10.0, 28.0)  # of the pattern, along a side


def tamper(pixels: FloatArray, kind: Kind, rng: np.random.Generator) -> FloatArray:
    """An image on 0…1, (rows, columns), with a perturbation."""
    return _patched(pixels, rng) if kind == "patch" else _patterned(pixels, rng)


def _patched(pixels: FloatArray, rng: np.random.Generator) -> FloatArray:
    rows, columns = pixels.shape
    side = int(min(rows, columns) * rng.uniform(*_PATCH_SIDE))
    top = int(rng.integers(rows // 5, rows - rows // 5 - side))
    left = int(rng.integers(columns // 5, columns - columns // 5 - side))
    blocks = rng.integers(0, 2, (_PATCH_BLOCKS, _PATCH_BLOCKS)).astype(np.float32)
    place = (slice(top, top + side), slice(left, left + side))
    changed = pixels.copy()
    changed[place] = (1 - _PATCH_SHARE) * pixels[place] + _PATCH_SHARE * resized(blocks, side, side)
    return changed


def _patterned(pixels: FloatArray, rng: np.random.Generator) -> FloatArray:
    rows, columns = pixels.shape
    waves, angle, bend = rng.uniform(*_WAVES), rng.uniform(0, np.pi), rng.uniform(0.1, 0.4)
    down, across = np.linspace(0, 1, rows, dtype=np.float32)[:, None], np.linspace(0, 1, columns, dtype=np.float32)
    phase = waves * (np.cos(angle) * across + np.sin(angle) * down) + bend * np.sin(2 * np.pi * 2 * (across - down))
    pattern = np.sin(2 * np.pi * phase) * rng.uniform(*_PATTERN)
    return np.asarray(np.clip(pixels + pattern, 0.0, 1.0), np.float32)
